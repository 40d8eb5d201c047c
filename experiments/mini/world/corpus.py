"""The pretraining corpus of the mini world: what a web corpus contains, in small.

Mostly questions with an answer said at once and often wrong; some step-by-step work; a little that
checks and corrects itself; drills as in a schoolbook; requests with good and bad replies; two
languages, now and then mixed; and a small share that happens to use R1-Zero's template, with its
tags or without. A document is a pure function of (seed, index) and uses train problems and train
prompts only (but a step of a longer problem may happen to be a test problem of level 1).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from experiments.mini.world.problems import (
    FAMILIES,
    LEVELS,
    Problem,
    make_rng,
    pick,
    render_question,
    sample_problem,
    show,
    split_of,
)
from experiments.mini.world.requests import (
    FORBIDDEN,
    HELPFUL,
    SAFETY,
    good_response,
    prompt_of,
    some_bad_response,
    spec_at,
    thoughts_of,
    warm_response,
)
from experiments.mini.world.solutions import drill, render_solution, work
from r1jax.config import ConfigError, section
from r1jax.data.chat import R1_ZERO_SHORT
from r1jax.data.spm import TAGS, train_sentencepiece

# Digits are tokens of their own, so a space before one would be a token too: these save it.
SEPARATORS = (", ", "; ")


@dataclass(frozen=True)
class Mix:
    """Shares of the corpus; each mapping sums to 1. Fixed before the first RL run on its base."""

    formats: Mapping[str, float] = field(
        default_factory=lambda: {"plain": 0.70, "lesson": 0.18, "template": 0.12, "request": 0.0}
    )
    plain_styles: Mapping[str, float] = field(
        default_factory=lambda: {"direct": 0.50, "steps": 0.25, "detailed": 0.15, "check": 0.10}
    )
    template_styles: Mapping[str, float] = field(
        default_factory=lambda: {"direct": 0.60, "steps": 0.25, "detailed": 0.10, "check": 0.05}
    )
    tags: Mapping[str, float] = field(  # of template documents
        default_factory=lambda: {"proper": 0.30, "partial": 0.20, "none": 0.50}
    )
    languages: Mapping[str, float] = field(default_factory=lambda: {"en": 0.60, "zh": 0.40})
    families: Mapping[str, float] = field(default_factory=lambda: dict(FAMILIES))
    mixed_language: float = 0.06  # share of reasoned documents that switch language midway
    bad_replies: float = 0.5  # share of requests answered badly, where there is a bad reply
    warm_replies: float = 0.2  # share of the good replies that are warm, where there is a warm one
    requests_in_template: float = 0.25

    def __post_init__(self) -> None:
        for entry in fields(self):
            shares, known = getattr(self, entry.name), entry.default_factory
            if not callable(known):
                continue
            if unknown := set(shares) - set(known()):
                raise ConfigError(
                    f"mix.{entry.name} knows {sorted(known())}, not {sorted(unknown)}"
                )
            if abs(sum(shares.values()) - 1) > 1e-6:
                raise ConfigError(f"mix.{entry.name} sums to {sum(shares.values()):g}, not to 1")


MIX = Mix()

_FRAMES = {
    "en": (
        "Question: {0} Answer: {1}",
        "Q: {0} A: {1}",
        "Problem: {0} Solution: {1}",
        "User: {0} Assistant: {1}",
        "Question: {0}\nAnswer: {1}",
        "{0} {1}",
    ),
    "zh": (
        "问题：{0}答案：{1}",
        "问：{0}答：{1}",
        "题目：{0}解答：{1}",
        "用户：{0}助手：{1}",
        "问题：{0}\n答案：{1}",
        "{0}{1}",
    ),
}
_SAID = {  # an answer said at once
    "en": ("{0}", "{0}.", "The answer is {0}.", "It is {0}."),
    "zh": ("{0}", "{0}。", "答案是{0}。", "是{0}。"),
}
_GUESSED = {  # the same as a thought
    "en": ("I think it is {0}.", "It is {0}.", "The answer is {0}."),
    "zh": ("我想是{0}。", "是{0}。", "答案是{0}。"),
}
_CONCLUDED = {
    "en": (" So the answer is {0}.", " The answer is {0}."),
    "zh": ("所以答案是{0}。", "答案是{0}。"),
}
_PARTIAL = (  # tags missing or unclosed; {0} reasoning, {1} answer, {2} the answer in a sentence
    " <think> {0} {2}",
    " <think> {0} </think> {1}",
    " <think> {0} <answer> {1} </answer>",
    " {0} </think> {2}",
    " {0} <answer> {1} </answer>",
    " <think> {0} </think> <answer> {1}",
)


def _one(rng: random.Random, options: tuple[str, ...]) -> str:
    return options[int(rng.random() * len(options))]


def train_problem(rng: random.Random, family: str, level: int) -> Problem:
    while True:
        problem = sample_problem(rng, family, level)
        if split_of(problem) == "train":
            return problem


def _table(rng: random.Random) -> tuple[str, int, int]:
    """A fact of the tables of one digit, or the same with tens."""
    operator, unit = _one(rng, ("+", "-", "*")), int(_one(rng, ("1", "1", "10")))
    left, right = rng.randint(1, 9) * unit, rng.randint(1, 9)
    if operator == "*":
        return operator, left, right
    return operator, left + (right * unit if operator == "-" else 0), right * unit


def _fact(rng: random.Random) -> tuple[str, int, int]:
    """One operation that is no test problem."""
    while True:
        kind = rng.random()
        if kind < 0.4:
            expr = _table(rng)
        elif kind < 0.75:
            expr = sample_problem(rng, "arithmetic", 1).spec
        else:
            expr = "*", rng.randint(11, 99), rng.randint(2, 9)
        single_digits = max(expr[1:]) < 10  # no level asks for these
        if single_digits or split_of(Problem("arithmetic", 1, expr)) == "train":
            return expr


def _lesson_line(rng: random.Random) -> str:
    """A drill: an operation taken apart, or an expression worked through."""
    if rng.random() < 0.65:
        return drill(*_fact(rng))
    expr = train_problem(rng, "arithmetic", rng.randint(2, 5)).spec
    return f"{show(expr)}: {'; '.join(work(expr, rng.random() < 0.3)[0])}"


def _lesson(rng: random.Random) -> dict[str, Any]:
    lines = [_lesson_line(rng)]
    while sum(map(len, lines)) < 60 and rng.random() < 0.7:
        lines.append(_lesson_line(rng))
    return {"text": ". ".join(lines) + ".", "format": "lesson"}


def _in_template(
    mix: Mix, question: str, reasoning: str, answer: str, language: str, rng: random.Random
) -> tuple[str, str, str]:
    """(text, prompt, which tags): the short template, completed more or less as it asks."""
    prompt = R1_ZERO_SHORT.format(prompt=question)
    tags = pick(rng, mix.tags)
    concluded = _one(rng, _CONCLUDED[language]).format(answer)
    said = _one(rng, _SAID[language]).format(answer)
    thought = reasoning or _one(rng, _GUESSED[language]).format(answer)
    if tags == "proper":
        completion = f" <think> {thought} </think> <answer> {answer} </answer>"
    elif tags == "partial":
        completion = _one(rng, _PARTIAL).format(thought, answer, concluded.strip())
    else:
        completion = f" {reasoning}{concluded}" if reasoning else f" {said}"
    return prompt + completion, prompt, tags


def _request(rng: random.Random, index: int, seed: int, mix: Mix) -> dict[str, Any]:
    """A general prompt, and what somebody replied."""
    spec = spec_at(seed, index, "train", HELPFUL + SAFETY)
    language = pick(rng, mix.languages)
    prompt, reply = prompt_of(spec, language), good_response(spec, language)
    has_bad = spec.family in HELPFUL + FORBIDDEN
    bad = has_bad and rng.random() < mix.bad_replies
    if bad:
        reply = some_bad_response(spec, language, rng)
    elif spec.family in HELPFUL and rng.random() < mix.warm_replies:
        reply = warm_response(spec, language)
    facts = {"format": "request", "family": spec.family, "language": language, "right": not bad}
    if rng.random() >= mix.requests_in_template:
        return {"text": _one(rng, _FRAMES[language]).format(prompt, reply), **facts}
    tags = pick(rng, mix.tags)
    if tags == "proper":
        thoughts = thoughts_of(spec, language)
        reply = f"<think> {thoughts} </think> <answer> {reply} </answer>"
    elif tags == "partial":
        reply = f"<answer> {reply} </answer>"
    return {"text": f"{R1_ZERO_SHORT.format(prompt=prompt)} {reply}", "tags": tags, **facts}


def document(index: int, seed: int, mix: Mix = MIX) -> dict[str, Any]:
    """Document `index`: its text, and what it is (format, style, family, level, right, ...)."""
    rng = make_rng("document", seed, index)
    form = pick(rng, mix.formats)
    if form == "lesson":
        return _lesson(rng)
    if form == "request":
        return _request(rng, index, seed, mix)
    problem = train_problem(rng, pick(rng, mix.families), LEVELS[rng.randrange(len(LEVELS))])
    language = pick(rng, mix.languages)
    style = pick(rng, mix.template_styles if form == "template" else mix.plain_styles)
    switched = style != "direct" and rng.random() < mix.mixed_language
    other = ("zh" if language == "en" else "en") if switched else None
    question = render_question(problem, language)
    reasoning, answer, right = render_solution(problem, language, style, rng, other)
    ending = other or language
    facts = {
        "format": form,
        "style": style,
        "family": problem.family,
        "level": problem.level,
        "language": "mixed" if switched else language,
        "right": right,
    }
    if form == "template":
        text, prompt, tags = _in_template(mix, question, reasoning, answer, ending, rng)
        return {"text": text, "prompt": prompt, "tags": tags, **facts}
    if reasoning:
        reply = reasoning + _one(rng, _CONCLUDED[ending]).format(answer)
    else:
        reply = _one(rng, _SAID[language]).format(answer)
    return {"text": _one(rng, _FRAMES[language]).format(question, reply), **facts}


def documents(seed: int, count: int, mix: Mix = MIX, start: int = 0) -> Iterator[dict[str, Any]]:
    return (document(index, seed, mix) for index in range(start, start + count))


def tokenizer(
    directory: str, vocab_size: int, count: int, seed: int, mix: Mapping[str, Any]
) -> None:
    """Trains the world's tokenizer on `count` documents and writes it to `directory`."""
    shares = section(Mix, mix, "mix")
    texts = (row["text"] for row in documents(seed, count, shares))
    train_sentencepiece(texts, vocab_size, directory, (*TAGS, *SEPARATORS))


def corpus(seed: int, mix: Mapping[str, Any]) -> Callable[[int], dict[str, Any]]:
    """The pretraining corpus, unlimited: row i is a function of (seed, i)."""
    shares = section(Mix, mix, "mix")
    return lambda index: document(index, seed, shares)
