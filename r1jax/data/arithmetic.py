"""Chain sums: 2 or 3 numbers of 1 or 2 digits, added and subtracted. For small real models."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Any, Literal

from r1jax.config import ConfigError

Split = Literal["train", "test"]
TEST_SHARE = 16  # one expression in 16 is a test problem


def split_of(expression: str) -> Split:
    """By a hash of the expression alone, so that no wording moves a problem to the other side."""
    digest = hashlib.sha256(expression.encode()).digest()
    return "test" if digest[0] % TEST_SHARE == 0 else "train"


def expression_at(seed: int, index: int, split: Split) -> str:
    """Expression `index` of an endless sequence of one split: "12 + 7 - 30"."""
    rng = random.Random(f"{seed}/{split}/{index}")
    while True:
        numbers = [rng.randrange(1, 10 ** rng.choice((1, 2))) for _ in range(rng.choice((2, 3)))]
        text = str(numbers[0])
        for number in numbers[1:]:
            text += f" {rng.choice('+-')} {number}"
        if split_of(text) == split:
            return text


def reduced(expression: str) -> str:
    """The expression after its first operation: '6 + 30 - 5' -> '36 - 5'."""
    first, sign, second, *rest = expression.split()
    value = int(first) + int(second) if sign == "+" else int(first) - int(second)
    return " ".join([str(value), *rest])


def worked(expression: str) -> str:
    """The expression with every step to its value: '6 + 30 - 5 = 36 - 5 = 31'."""
    steps = [expression]
    while " " in steps[-1]:
        steps.append(reduced(steps[-1]))
    return " = ".join(steps)


def value_of(expression: str) -> int:
    """Left to right."""
    return int(worked(expression).rpartition("= ")[2])


def demonstration(expression: str, question: str) -> list[dict[str, str]]:
    """Two turns: the question, and its answer worked out and boxed."""
    answer = f"{worked(expression)}. The answer is \\boxed{{{value_of(expression)}}}."
    return [
        {"role": "user", "content": question.replace("{expression}", expression)},
        {"role": "assistant", "content": answer},
    ]


def chain_sums(
    seed: int,
    split: Split,
    question: str,
    count: int | None = None,
    demonstrations: Sequence[str] = (),
) -> Callable[[int], dict[str, Any]] | list[dict[str, Any]]:
    """Rows for RL: an endless stream, or `count` different problems of it.

    `question` is the wording, with {expression} in it. Each problem is preceded by turns that ask
    for and work out the `demonstrations` (expressions); they are train problems in every split.
    """
    shown = [turn for chosen in demonstrations for turn in demonstration(chosen, question)]
    if bad := [expression for expression in demonstrations if split_of(expression) == "test"]:
        raise ConfigError(f"demonstration {bad[0]!r} is a test problem; choose another")

    def row(index: int) -> dict[str, Any]:
        expression = expression_at(seed, index, split)
        asked = {"role": "user", "content": question.replace("{expression}", expression)}
        return {
            "id": expression.replace(" ", ""),
            "messages": [*shown, asked],
            "answer": str(value_of(expression)),
            "task": "integer",
        }

    if count is None:
        return row
    found: dict[str, dict[str, Any]] = {}
    index = 0
    while len(found) < count:
        found.setdefault(expression_at(seed, index, split), row(index))
        index += 1
    return list(found.values())
