"""Rewards: one set of graders for RL, rejection sampling and evaluation. Imports no jax.

A reward function is `fn(example, text, *, length, finish_reason) -> float`; `text` is the
completion's text, `length` its tokens. Where the answer stands: `final_answers`. What equals the
reference: TASKS. What a config may name: REWARDS, or `module:function`.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from r1jax.config import ConfigError, DataError, import_function
from r1jax.data.general import follows
from r1jax.rewards.choice_reward import last_choice, last_letter, same_choice, same_letter
from r1jax.rewards.code_reward import check_code, final_programs, last_program, passes_tests
from r1jax.rewards.format_reward import (
    MAX_CHARACTERS,
    after_thoughts,
    format_reward,
    r1_format_reward,
    reflective_words,
    summary,
    tagged_answer,
)
from r1jax.rewards.gym_reward import check_gym, last_line, solves_gym
from r1jax.rewards.language_reward import language_reward
from r1jax.rewards.logic_reward import (
    last_expression,
    last_list,
    last_roles,
    same_expression,
    same_list,
    same_roles,
    solves_countdown,
)
from r1jax.rewards.math_reward import (
    boxed_values,
    last_formula,
    last_number,
    same_formula,
    same_integer,
)
from r1jax.rewards.penalties import code_blocks, long_paragraph, overlong, repetition

if TYPE_CHECKING:
    from r1jax.types import Example

__all__ = [
    "REWARDS",
    "TASKS",
    "Failure",
    "Grade",
    "accuracy",
    "check_example",
    "final_answer",
    "final_answers",
    "format_reward",
    "language_reward",
    "lenient_accuracy",
    "load_rewards",
    "r1_format_reward",
    "reflective_words",
    "same_answer",
    "score",
    "stop_if_all_failed",
]

RewardFunction = Callable[..., float]
Weights = Mapping[str, Any] | Iterable[tuple[str, Any]]
Rewards = dict[str, tuple[RewardFunction, float]]
CONTEXT = ("length", "finish_reason")  # what every reward function is called with
REQUEST_KEYS = {"family", "name", "numbers", "things", "language"}
MAX_BOXES = 8  # different boxed values; a final answer with more is wrong


@dataclass(frozen=True)
class Task:
    """How one kind of answer is found and compared."""

    extract: Callable[[str], str | None]  # lenient: the last thing like an answer, anywhere
    equivalent: Callable[[Example, str], bool]  # strict: the answer as a whole, nothing around it
    final: Callable[[str], list[str]] = field(default=lambda text: final_answers(text))
    comparable: bool = True  # whether two answers can be compared
    same: Callable[[str, str], bool] | None = None  # how, where not by `equivalent`


TASKS = {
    "math": Task(last_formula, same_formula),
    "integer": Task(last_number, same_integer),
    "sorted": Task(last_list, same_list),
    "letter": Task(last_letter, same_letter),
    "countdown": Task(last_expression, solves_countdown, same=same_expression),
    "choice": Task(last_choice, same_choice),
    "general": Task(lambda text: None, lambda example, answer: False, comparable=False),
    "request": Task(summary, follows, lambda text: [summary(text)], comparable=False),
    "knights": Task(last_roles, same_roles),
    "gym": Task(last_line, solves_gym, comparable=False),
    "code": Task(last_program, passes_tests, final_programs, comparable=False),
}


def check_example(example: Example) -> None:
    """Raises DataError if no completion could ever be right: a silent reward of 0 for ever."""
    if example.task not in TASKS:
        known = ", ".join(TASKS)
        raise DataError(f"example {example.id}: task {example.task!r} is not one of {known}")
    if example.task == "general":
        return  # nothing to check: its reward is a model's
    if example.task == "code":
        check_code(example)
    elif example.task == "gym":
        check_gym(example)
    elif example.task == "countdown":
        numbers, target = (example.metadata.get(key) for key in ("numbers", "target"))
        if not isinstance(target, int) or not isinstance(numbers, list | tuple):
            raise DataError(f"example {example.id}: countdown needs integers numbers and target")
        if not all(isinstance(number, int) for number in numbers):
            raise DataError(f"example {example.id}: numbers {numbers!r} are not all integers")
    elif example.task == "request" and (lacks := REQUEST_KEYS - set(example.metadata)):
        raise DataError(f"example {example.id}: key {min(lacks)} of a request is missing")
    elif not TASKS[example.task].equivalent(example, example.answer):
        raise DataError(f"example {example.id}: {example.answer!r} is no {example.task} answer")


def final_answers(text: str) -> list[str]:
    r"""The final answer as written, [] if there is none; several if it boxes several values.

    It stands in the last <answer>...</answer> behind the thoughts (there in \boxed{} or bare), or
    else in the \boxed{} values behind the last </think>. Without these tags it is the line of the
    last \boxed{}. What stands before a </think> never counts, nor does a box behind a <think> that
    is never closed (an <answer> there does: it ends the thoughts).
    """
    final = after_thoughts(text)
    tagged = tagged_answer(final)
    if tagged is not None:
        boxes = [value for value, _ in boxed_values(tagged)]
        return list(dict.fromkeys(boxes)) or [tagged.strip()]
    final = final.partition("<think>")[0]
    found = boxed_values(final)
    if found and "</think>" not in text:
        line_start = final.rfind("\n", 0, found[-1][1])
        found = [(value, place) for value, place in found if place > line_start]
    return list(dict.fromkeys(value for value, _ in found))


def final_answer(text: str, task: str = "math") -> str | None:
    """The final answer if there is exactly one: what cons@k votes with."""
    answers = TASKS[task].final(text)
    return answers[0] if len(answers) == 1 else None


def same_answer(example: Example, first: str, second: str) -> bool:
    """Whether two answers to the same question say the same, right or wrong (for cons@k)."""
    task = TASKS[example.task]
    equivalent = task.equivalent
    if first == second or not task.comparable:
        return first == second
    if task.same is not None:
        return task.same(first, second)
    return equivalent(replace(example, answer=first), second) and equivalent(
        replace(example, answer=second), first
    )


def accuracy(example: Example, text: str, *, length: int, finish_reason: str) -> float:
    """The paper's accuracy reward, strict: 1 iff the final answer, in its tags or box, is right.

    Several boxed values must all be right, so different ones score 0.
    """
    task = TASKS[example.task]
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
    task = TASKS[example.task]
    answer = task.extract(text[-MAX_CHARACTERS:])
    return float(answer is not None and task.equivalent(example, answer))


REWARDS: dict[str, RewardFunction] = {
    "accuracy": accuracy,
    "accuracy_in_format": accuracy_in_format,
    "accuracy_if_stopped": accuracy_if_stopped,
    "lenient_accuracy": lenient_accuracy,
    "format": format_reward,
    "r1_format": r1_format_reward,
    "language": language_reward,
    "overlong": overlong,
    "repetition": repetition,
    "code_blocks": code_blocks,
    "long_paragraph": long_paragraph,
}


@dataclass(frozen=True)
class Failure:
    """Why an item has no honest grade; its reward is 0."""

    kind: Literal["exception", "invalid", "timeout", "crash", "memory"]
    message: str  # names the reward


@dataclass(frozen=True)
class Grade:
    """The weighted sum and its unweighted parts by name; a part that failed counts 0."""

    reward: float
    breakdown: Mapping[str, float]
    failure: Failure | None = None


def load_rewards(rewards: Weights) -> Rewards:
    """{name: weight} (or such pairs) -> {name: (function, weight)}; ConfigError names a bad one.

    In the place of the weight may stand {"weight": ..., argument: value, ...}: the function is
    called with these arguments as well. Pairs are for ConfigDicts, whose keys may not hold the dots
    of a `package.module:function`.
    """
    loaded = {}
    for name, weight in by_name(rewards, "rewards").items():
        arguments: dict[str, Any] = {}
        if isinstance(weight, Mapping):
            arguments = {key: value for key, value in weight.items() if key != "weight"}
            weight = weight.get("weight")
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ConfigError(f"rewards: the weight of {name!r} is {weight!r}, not a number")
        loaded[name] = (_with_arguments(name, _function(name), arguments), float(weight))
    if not loaded:
        raise ConfigError(f"rewards is empty; it maps names to weights: {', '.join(REWARDS)}")
    return loaded


def by_name(pairs: Weights, key: str) -> dict[str, Any]:
    """A mapping or pairs as a dict; ConfigError names `key` where it is something else."""
    try:
        return dict(pairs)
    except (TypeError, ValueError):
        raise ConfigError(f"{key} {pairs!r} is neither a section of names nor pairs") from None


def _function(name: str) -> RewardFunction:
    if name not in REWARDS and ":" not in name:
        raise ConfigError(f"reward {name!r} is neither module:function nor one of {list(REWARDS)}")
    return REWARDS.get(name) or import_function(name, f"reward {name!r}")


def _with_arguments(
    name: str, function: RewardFunction, arguments: dict[str, Any]
) -> RewardFunction:
    """The function with its own arguments filled in, checked against its signature."""
    parameters = inspect.signature(function).parameters.values()
    own = [p for p in parameters if p.kind == p.KEYWORD_ONLY and p.name not in CONTEXT]
    missing = [p.name for p in own if p.default is p.empty and p.name not in arguments]
    takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters)
    unknown = [key for key in arguments if not takes_any and key not in [p.name for p in own]]
    if missing or unknown:
        said = f"needs the argument {missing[0]}" if missing else f"has no argument {unknown[0]}"
        takes = ", ".join(p.name for p in own) or "none"
        raise ConfigError(
            f"reward {name!r} {said} (it takes: {takes}); write"
            f' {{"weight": 1.0, "argument": value}} instead of the weight alone'
        )
    return functools.partial(function, **arguments) if arguments else function


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def score(rewards: Rewards, example: Example, text: str, length: int, finish_reason: str) -> Grade:
    """The weighted sum of all parts. A function that raises makes the whole item a Failure."""
    breakdown: dict[str, float] = {}
    failure: Failure | None = None
    for name, (function, _) in rewards.items():
        breakdown[name] = 0.0
        try:
            value = float(function(example, text, length=length, finish_reason=finish_reason))
        except MemoryError as error:
            failure = failure or Failure("memory", f"reward {name!r} raised {_said(error)}")
            continue
        except (Exception, SystemExit) as error:  # untrusted: a user's function
            failure = failure or Failure("exception", f"reward {name!r} raised {_said(error)}")
            continue
        if math.isfinite(value):
            breakdown[name] = value
        else:
            failure = failure or Failure("invalid", f"reward {name!r} gave {value}")
    if failure:
        return Grade(0.0, breakdown, failure)
    return Grade(sum(weight * breakdown[name] for name, (_, weight) in rewards.items()), breakdown)


def stop_if_all_failed(grades: Iterable[Grade]) -> None:
    """Raises ConfigError if a reward function failed on every item of a (first) batch."""
    failures = [grade.failure for grade in grades]
    if failures and all(f is not None and f.kind in ("exception", "invalid") for f in failures):
        assert failures[0] is not None
        raise ConfigError(f"{failures[0].message} (on every item of the first batch)")
