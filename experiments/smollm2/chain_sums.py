"""Chain sums: 2 or 3 numbers of 1 or 2 digits, added and subtracted. For small real models."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from r1jax.config import ConfigError
from r1jax.tasks.answers import boxed_values

if TYPE_CHECKING:
    from r1jax.types import Example


Split = Literal["train", "test"]
TEST_SHARE = 16  # one expression in 16 is a test problem


def split_of(expression: str) -> Split:
    """By a hash of the expression alone, so that no wording moves a problem to the other side."""
    digest = hashlib.sha256(expression.encode()).digest()
    return "test" if digest[0] % TEST_SHARE == 0 else "train"


def expression_at(
    seed: int,
    index: int,
    split: Split,
    terms: Sequence[int] = (2, 3),
    digits: Sequence[int] = (1, 2),
) -> str:
    """Expression `index` of an endless sequence of one split: "12 + 7 - 30".

    `terms` and `digits` are what is drawn from: numbers of an expression, digits of a number.
    """
    rng = random.Random(f"{seed}/{split}/{index}")
    while True:
        numbers = [rng.randrange(1, 10 ** rng.choice(digits)) for _ in range(rng.choice(terms))]
        text = str(numbers[0])
        for number in numbers[1:]:
            text += f" {rng.choice('+-')} {number}"
        if split_of(text) == split:
            return text


def worked(expression: str) -> list[str]:
    """Every operation with its value: '6 + 30 - 5' -> ['6 + 30 = 36', '36 - 5 = 31']."""
    first, *rest = expression.split()
    value, steps = int(first), []
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        result = value + int(number) if sign == "+" else value - int(number)
        steps.append(f"{value} {sign} {number} = {result}")
        value = result
    return steps


def value_of(expression: str) -> int:
    """Left to right."""
    return int(worked(expression)[-1].rpartition("= ")[2])


def spoken(expression: str) -> str:
    """The first operation, and the others as orders: '25 - 4, then add 3'."""
    first, sign, second, *rest = expression.split()
    verbs = {"+": "add", "-": "subtract"}
    orders = [f"{verbs[sign]} {number}" for sign, number in zip(rest[::2], rest[1::2], strict=True)]
    return ", then ".join([f"{first} {sign} {second}", *orders])


def asked(expression: str, question: str) -> str:
    """`question` with {expression} ('25 - 4 + 3') or {spoken} ('25 - 4, then add 3') filled in."""
    return question.replace("{expression}", expression).replace("{spoken}", spoken(expression))


def demonstration(expression: str, question: str) -> list[dict[str, str]]:
    """Two turns: the question, and its answer: a sentence a step, then the value, boxed."""
    boxed = f"The answer is \\boxed{{{value_of(expression)}}}"
    answer = " ".join(f"{sentence}." for sentence in [*worked(expression), boxed])
    return [
        {"role": "user", "content": asked(expression, question)},
        {"role": "assistant", "content": answer},
    ]


def chain_sums(
    seed: int,
    split: Split,
    question: str,
    count: int | None = None,
    demonstrations: Sequence[str] = (),
    terms: Sequence[int] = (2, 3),
    digits: Sequence[int] = (1, 2),
) -> Callable[[int], dict[str, Any]] | list[dict[str, Any]]:
    """Rows for RL: an endless stream, or `count` different problems of it.

    `question` is the wording, with {expression} or {spoken} in it (see `asked`). Each problem is
    preceded by turns that ask for and work out the `demonstrations` (expressions); they are train
    problems in every split. `terms` and `digits`: see `expression_at`.
    """
    shown = [turn for chosen in demonstrations for turn in demonstration(chosen, question)]
    if bad := [expression for expression in demonstrations if split_of(expression) == "test"]:
        raise ConfigError(f"demonstration {bad[0]!r} is a test problem; choose another")

    def row(index: int) -> dict[str, Any]:
        expression = expression_at(seed, index, split, terms, digits)
        return {
            "id": expression.replace(" ", ""),
            "messages": [*shown, {"role": "user", "content": asked(expression, question)}],
            "answer": str(value_of(expression)),
            "task": "integer",
        }

    if count is None:
        return row
    found: dict[str, dict[str, Any]] = {}
    index = 0
    while len(found) < count:
        made = row(index)
        found.setdefault(made["id"], made)
        index += 1
    return list(found.values())


_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def rewrite_boxed(example: Example, text: str) -> str | None:
    """A worked answer that ends with a boxed value -> its steps as thoughts, the value as answer.

    None where no sentence stands before the one with the box, where that holds several values, or
    where the text has tags of its own.
    """
    sentences = _SENTENCE_END.split(text.strip())
    steps, last = " ".join(sentences[:-1]), sentences[-1]
    values = [value for value, _ in boxed_values(last)]
    if not steps or len(values) != 1 or "\\boxed" in steps or "think>" in text:
        return None
    return f"<think> {steps} </think> <answer> {values[0]} </answer>"
