"""The accuracy rewards: whether the final answer is right, strictly or leniently."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from r1jax.rewards.format import format_reward, r1_format_reward
from r1jax.tasks import MAX_BOXES, finals, task_of
from r1jax.tasks.answers import MAX_CHARACTERS
from r1jax.tasks.drop_task import f1_of, whole_answer

if TYPE_CHECKING:
    from r1jax.types import Example


def accuracy(example: Example, text: str, *, length: int, finish_reason: str) -> float:
    """The paper's accuracy reward, strict: 1 iff the final answer, in its tags or box, is right.

    Several boxed values must all be right, so different ones score 0.
    """
    return float(_all_right(example, finals(example, text)))


def _all_right(example: Example, answers: Sequence[str]) -> bool:
    equivalent = task_of(example.task).equivalent
    return 0 < len(answers) <= MAX_BOXES and all(equivalent(example, x) for x in answers)


def accuracy_in_format(example: Example, text: str, *, length: int, finish_reason: str) -> float:
    """`accuracy`, and 0 unless `format_reward` is 1 (the switch "require format")."""
    in_format = format_reward(example, text, length=length, finish_reason=finish_reason)
    return in_format and accuracy(example, text, length=length, finish_reason=finish_reason)


def accuracy_in_r1_format(example: Example, text: str, *, length: int, finish_reason: str) -> float:
    """`accuracy`, and 0 unless `r1_format` is 1: for prompts that open <think>.

    There a box in thoughts that never close is no answer; the text alone doesn't tell, since its
    <think> stands in the prompt.
    """
    in_format = r1_format_reward(example, text, length=length, finish_reason=finish_reason)
    return in_format and accuracy(example, text, length=length, finish_reason=finish_reason)


def accuracy_if_stopped(example: Example, text: str, *, length: int, finish_reason: str) -> float:
    """`accuracy`, and 0 for a completion cut by the length limit."""
    if finish_reason != "stop":
        return 0.0
    return accuracy(example, text, length=length, finish_reason=finish_reason)


def lenient_accuracy(example: Example, text: str, *, length: int, finish_reason: str) -> float:
    """1 iff `accuracy` is, or the last thing that looks like an answer is right. For evaluation.

    That is looked for in the final answer where there is one ("<answer>it is C</answer>"), and else
    anywhere. A task that says itself what is lenient (`Task.lenient`) is asked instead.
    """
    task = task_of(example.task)
    answers = finals(example, text)
    if _all_right(example, answers):
        return 1.0
    if task.lenient is not None:
        return float(any(task.lenient(example, answer) for answer in answers))
    if not answers:
        tried = [task.extract(text[-MAX_CHARACTERS:])]
    elif _PROSE.search(answers[-1]):
        tried = [answers[-1], task.extract(answers[-1])]
    else:
        tried = [answers[-1]]
    return float(any(x is not None and task.equivalent(example, x) for x in tried))


def f1(example: Example, text: str, *, length: int, finish_reason: str) -> float:
    """DROP's F1 of the words, in [0, 1], of the answer, or of all that is said without one."""
    answer = whole_answer(text)
    return 0.0 if answer is None else f1_of(example, answer)


_PROSE = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2}|[\u4e00-\u9fff]")
