"""The accuracy rewards: whether the final answer is right, strictly or leniently."""

from __future__ import annotations

from typing import TYPE_CHECKING

from r1jax.rewards.format import format_reward
from r1jax.tasks import MAX_BOXES, task_of
from r1jax.tasks.answers import MAX_CHARACTERS

if TYPE_CHECKING:
    from r1jax.types import Example


def accuracy(example: Example, text: str, *, length: int, finish_reason: str) -> float:
    """The paper's accuracy reward, strict: 1 iff the final answer, in its tags or box, is right.

    Several boxed values must all be right, so different ones score 0.
    """
    task = task_of(example.task)
    answers = task.final(text)
    right = 0 < len(answers) <= MAX_BOXES and all(task.equivalent(example, a) for a in answers)
    return float(right)


def accuracy_in_format(example: Example, text: str, *, length: int, finish_reason: str) -> float:
    """`accuracy`, and 0 unless `format_reward` is 1 (the switch "require format")."""
    in_format = format_reward(example, text, length=length, finish_reason=finish_reason)
    return in_format and accuracy(example, text, length=length, finish_reason=finish_reason)


def accuracy_if_stopped(example: Example, text: str, *, length: int, finish_reason: str) -> float:
    """`accuracy`, and 0 for a completion cut by the length limit."""
    if finish_reason != "stop":
        return 0.0
    return accuracy(example, text, length=length, finish_reason=finish_reason)


def lenient_accuracy(example: Example, text: str, *, length: int, finish_reason: str) -> float:
    """1 iff the last thing anywhere that looks like an answer is right. For evaluation."""
    task = task_of(example.task)
    answer = task.extract(text[-MAX_CHARACTERS:])
    return float(answer is not None and task.equivalent(example, answer))
