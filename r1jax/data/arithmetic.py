"""Chain sums: 2 or 3 numbers of 1 or 2 digits, added and subtracted. For small real models."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Any, Literal

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


def value_of(expression: str) -> int:
    """Left to right."""
    first, *rest = expression.split()
    pairs = zip(rest[::2], rest[1::2], strict=True)
    return int(first) + sum(int(n) if sign == "+" else -int(n) for sign, n in pairs)


def chain_sums(
    seed: int, split: Split, question: str, count: int | None = None
) -> Callable[[int], dict[str, Any]] | list[dict[str, Any]]:
    """Rows for RL: an endless stream, or `count` different problems of it.

    `question` is the wording, with {expression} in it.
    """

    def row(index: int) -> dict[str, Any]:
        expression = expression_at(seed, index, split)
        return {
            "id": expression.replace(" ", ""),
            "prompt": question.replace("{expression}", expression),
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
