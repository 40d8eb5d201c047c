"""Asking a judge for its verdicts, and reading what it says.

What is judged is text of a model that may say anything, a verdict too: it goes into a question as
it stands, and a verdict is only looked for in the judge's reply.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from r1jax.benchmarks.kind import Judging
from r1jax.config import UserError
from r1jax.rollout.sampler import Place
from r1jax.tasks.answers import after_thoughts, tagged_answer
from r1jax.types import Example, Message, Sample

if TYPE_CHECKING:
    from r1jax.judges.chat_model import Ask

Verdict = dict[str, float]
ATTEMPTS = 3  # how often a sample is asked about until its verdict can be read
OUTAGE = 8  # so many requests at once and not one reply: the judge is away
MOST_SHOWN = 60_000  # characters of an answer that a judge is shown
LONGEST_LINE = 120  # characters of a line that can be a verdict
# What NFKC leaves of the ways to write a verdict's signs; Markdown's marks say nothing.
_SIGNS = {ord("【"): "[", ord("】"): "]", ord("≫"): ">>", ord("≪"): "<<", ord("\\"): None}
_SIGNS |= {ord(mark): None for mark in "*`"}


def judge_samples(
    examples: Sequence[Example],
    samples: Sequence[Sample],
    judging: Judging,
    ask: Ask,
    on_verdict: Callable[[Sample, Verdict | None, Sequence[str | None]], None],
    done: Mapping[Place, Verdict | None] | None = None,
    portion: int = 64,
) -> dict[Place, Verdict | None]:
    """The verdict on each sample; None where ATTEMPTS times none could be read.

    `done` are those known already: they are returned too, and not asked for. The others are judged
    `portion` at a time; `on_verdict` is told of each, with the last replies, once it is decided. A
    request that got no reply is sent again, and all of a sample whose replies cannot be read.
    UserError where a portion of at least OUTAGE requests gets no reply at all: what was decided
    stays decided.
    """
    verdicts = dict(done or {})
    left = [s for s in samples if (s.prompt_index, s.sample_index) not in verdicts]

    def decide(sample: Sample, verdict: Verdict | None, replies: Sequence[str | None]) -> None:
        verdicts[sample.prompt_index, sample.sample_index] = verdict
        on_verdict(sample, verdict, replies)

    for start in range(0, len(left), portion):
        cases = [_Case(examples[s.prompt_index], s, judging) for s in left[start : start + portion]]
        for attempt in range(ATTEMPTS):
            _ask(cases, ask, attempt)
            undecided = []
            for case in cases:
                if (verdict := case.verdict()) is not None:
                    decide(case.sample, verdict, case.replies)
                else:
                    undecided.append(case)
            cases = undecided
        for case in cases:
            decide(case.sample, None, case.replies)
    return verdicts


def with_verdicts(
    samples: Sequence[Sample], verdicts: Mapping[Place, Verdict | None]
) -> list[Sample]:
    """The samples with what a judge gave them. One without a verdict that can be read earns
    nothing, and counts as a failure.
    """
    found = []
    for sample in samples:
        verdict = verdicts.get((sample.prompt_index, sample.sample_index))
        failure = "judge" if verdict is None else None
        parts = {"accuracy": 0.0} if verdict is None else verdict
        earned = {**sample.reward_breakdown, **parts}
        found.append(replace(sample, reward_breakdown=earned, failure=failure))
    return found


class _Case:
    """A sample before its judge."""

    def __init__(self, example: Example, sample: Sample, judging: Judging) -> None:
        self.example, self.sample, self.judging = example, sample, judging
        self.questions = judging.questions(example, sample.text)
        self.replies: list[str | None] = [None] * len(self.questions)

    def verdict(self) -> Verdict | None:
        replies = [reply for reply in self.replies if reply is not None]
        if len(replies) < len(self.replies):
            return None
        return self.judging.verdict(self.example, replies)

    def open_places(self) -> list[int]:
        """Which questions are to be asked: those without a reply, or all where none is to be."""
        missing = [i for i, reply in enumerate(self.replies) if reply is None]
        return missing or list(range(len(self.replies)))


def _ask(cases: Sequence[_Case], ask: Ask, attempt: int) -> None:
    """Puts the replies into the cases; UserError where the judge is away."""
    places = [(case, place) for case in cases for place in case.open_places()]
    if not places:
        return
    replies = ask([case.questions[place] for case, place in places], attempt)
    if len(replies) >= OUTAGE and all(reply is None for reply in replies):
        raise UserError(
            f"the judge answered none of {len(replies)} requests; what it has said so far is kept:"
            " start again once it answers"
        )
    for (case, place), reply in zip(places, replies, strict=True):
        case.replies[place] = reply


def shown(text: str) -> str:
    """What a judge is shown of a completion: its final summary, never the thoughts.

    That is the inside of <answer>...</answer> behind the last </think>, or else all there, and ends
    before a <think> that is never closed; of more than MOST_SHOWN characters the first ones.
    """
    final = text.rpartition("</think>")[2].partition("<think>")[0]
    tagged = tagged_answer(final)
    return (final if tagged is None else tagged).strip()[:MOST_SHOWN].rstrip()


def filled(template: str, **values: str) -> str:
    """The template with {name} replaced; texts may hold braces, and names in braces too."""
    parts = re.split(rf"\{{({'|'.join(values)})\}}", template)
    return "".join(values[part] if i % 2 else part for i, part in enumerate(parts))


def asked(question: str, system: str = "") -> list[Message]:
    """A conversation of one question."""
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": question}]


def plain(reply: str) -> str:
    """A judge's reply behind its own thoughts, of one width and without marks of emphasis."""
    said = after_thoughts(reply).partition("<think>")[0]
    return unicodedata.normalize("NFKC", said).translate(_SIGNS)


def lines_of(reply: str) -> list[str]:
    """Of the lines of `plain` those short enough to be a verdict alone, as words with one space
    between them."""
    lines = [line for line in plain(reply).splitlines() if len(line) <= LONGEST_LINE]
    return [re.sub(r"[\W_]+", " ", line).strip() for line in lines]


def only(found: Sequence[str]) -> str | None:
    """The one verdict, said once or more; None where there is none, or several."""
    return found[0] if len(set(found)) == 1 else None
