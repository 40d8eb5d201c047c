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


def steps_of(expression: str) -> list[tuple[int, str, int, int]]:
    """(left, sign, right, result) of each operation, left to right."""
    first, *rest = expression.split()
    value, steps = int(first), []
    for sign, number in zip(rest[::2], map(int, rest[1::2]), strict=True):
        result = value + number if sign == "+" else value - number
        steps.append((value, sign, number, result))
        value = result
    return steps


def value_of(expression: str) -> int:
    return steps_of(expression)[-1][-1]


def worked(expression: str) -> str:
    """How a demonstration answers: '12 + 7 = 19. 19 - 30 = -11. The answer is \\boxed{-11}.'"""
    steps = [
        f"{left} {sign} {right} = {result}." for left, sign, right, result in steps_of(expression)
    ]
    return " ".join([*steps, f"The answer is \\boxed{{{value_of(expression)}}}."])


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
    shown = [
        message
        for expression in demonstrations
        for message in (
            {"role": "user", "content": question.replace("{expression}", expression)},
            {"role": "assistant", "content": worked(expression)},
        )
    ]
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
