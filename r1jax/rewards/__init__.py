"""Rewards: one set of graders for RL, rejection sampling and evaluation. Imports no jax.

A reward function is `fn(example, text, *, length, finish_reason) -> float`; `text` is the
completion's text, `length` its tokens. What a config may name: REWARDS, or `module:function`. Where
the answer stands in a text and what equals the reference: r1jax/tasks. So a file my_rewards.py with

    def short(example, text, *, length, finish_reason):
        return float(length < 100)

is a reward of its own beside the built-in ones; the pairs are name and weight:

    config.rewards = (("accuracy", 1.0), ("format", 1.0), ("my_rewards:short", 0.1))
    config.rewards = {"overlong": {"weight": 0.5, "max_tokens": 1024, "buffer": 128}, "format": 1.0}

Built in are `accuracy`, `format`, `r1_format` (where the prompt opens `<think>`), `language` (the
share of the thoughts' words in the target language, R1 eq 7), the penalties `overlong`,
`repetition`, `code_blocks` and `long_paragraph`, variants of accuracy, and `f1` of words (DROP).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import math
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from r1jax.config import ConfigError, import_function
from r1jax.rewards.accuracy import (
    accuracy,
    accuracy_if_stopped,
    accuracy_in_format,
    accuracy_in_r1_format,
    f1,
    lenient_accuracy,
)
from r1jax.rewards.format import format_reward, r1_format_reward
from r1jax.rewards.language import language_reward
from r1jax.rewards.penalties import code_blocks, long_paragraph, overlong, repetition

if TYPE_CHECKING:
    from r1jax.types import Example

RewardFunction = Callable[..., float]
Weights = Mapping[str, Any] | Iterable[tuple[str, Any]]
Rewards = dict[str, tuple[RewardFunction, float]]
OF_THE_REWARD = ("exception", "invalid")  # kinds of failures that no completion should cause
CONTEXT = ("length", "finish_reason")  # what every reward function is called with


REWARDS: dict[str, RewardFunction] = {
    "accuracy": accuracy,
    "accuracy_in_format": accuracy_in_format,
    "accuracy_in_r1_format": accuracy_in_r1_format,
    "accuracy_if_stopped": accuracy_if_stopped,
    "lenient_accuracy": lenient_accuracy,
    "f1": f1,
    "format": format_reward,
    "r1_format": r1_format_reward,
    "language": language_reward,
    "overlong": overlong,
    "repetition": repetition,
    "code_blocks": code_blocks,
    "long_paragraph": long_paragraph,
}


class _Nowhere(io.TextIOBase):
    """Where goes what rewards print: the terminal is the run's."""

    def write(self, text: str) -> int:
        return len(text)


@dataclass(frozen=True)
class Failure:
    """Why an item has no honest grade; its reward is 0."""

    kind: Literal["exception", "invalid", "timeout", "crash", "memory"]
    message: str  # names the reward
    trace: str = field(default="", compare=False)  # where a function raised


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
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight):
            raise ConfigError(f"rewards: the weight of {name!r} is {weight!r}, not a number")
        loaded[name] = (_with_arguments(name, _function(name), arguments), float(weight))
    if not loaded:
        raise ConfigError(f"rewards is empty; it maps names to weights: {', '.join(REWARDS)}")
    return loaded


def by_name(pairs: Weights, key: str) -> dict[str, Any]:
    """A mapping or pairs as a dict; ConfigError names `key` where it is something else."""
    try:
        items: list[tuple[str, Any]] = list(pairs.items() if hasattr(pairs, "items") else pairs)
        found = dict(items)
    except (TypeError, ValueError):
        raise ConfigError(f"{key} {pairs!r} is neither a section of names nor pairs") from None
    if len(found) < len(items):
        twice, _ = Counter(name for name, _ in items).most_common(1)[0]
        raise ConfigError(f"{key} has {twice!r} twice")
    return found


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
            with contextlib.redirect_stdout(_Nowhere()):
                value = float(function(example, text, length=length, finish_reason=finish_reason))
        except (Exception, SystemExit) as error:  # untrusted: a user's function
            kind: Literal["memory", "exception"]
            kind = "memory" if isinstance(error, MemoryError) else "exception"
            said = f"reward {name!r} raised {_said(error)}"
            failure = failure or Failure(kind, said, traceback.format_exc())
            continue
        if math.isfinite(value):
            breakdown[name] = value
        else:
            failure = failure or Failure("invalid", f"reward {name!r} gave {value}")
    if failure:
        return Grade(0.0, breakdown, failure)
    return Grade(sum(weight * breakdown[name] for name, (_, weight) in rewards.items()), breakdown)


def stop_if_failed(grades: Collection[Grade], most: float, what: str) -> None:
    """Raises ConfigError where a reward itself failed on more than the share `most` of these.

    A grader that is late, dies or runs out of memory may owe that to what it had to grade.
    """
    failures = [g.failure for g in grades if g.failure and g.failure.kind in OF_THE_REWARD]
    if len(failures) > most * len(grades):
        raise ConfigError(
            f"{failures[0].message} ({len(failures)} of {len(grades)} completions of {what} failed,"
            f" more than the share {most:g} of config.graders.max_failures)"
        )
