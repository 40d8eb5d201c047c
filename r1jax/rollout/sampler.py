"""Completions with their rewards: the first half of GRPO, rejection sampling and evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from r1jax.config import DataError
from r1jax.data.chat import render_prompt
from r1jax.data.tokenizer import Tokenizer
from r1jax.machines.hosts import of_first_process
from r1jax.rewards import Grade
from r1jax.rewards.pool import GraderPool
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampling import SamplingConfig
from r1jax.rollout.stop_strings import stop_check
from r1jax.types import Completion, Example, Rollout


@dataclass(frozen=True)
class GraderConfig:
    """Where rewards are computed.

    A grader that hangs, crashes or asks for too much memory gives its completion a reward of 0 and
    is counted (`grpo/reward/failures`).
    """

    workers: int = 0  # processes; 0 = in this one, without a time limit
    timeout_s: float = 30.0  # wall clock per completion; a worker that is late is killed
    memory_mb: int = 4096  # of a worker's data; 0 = no limit
    # What programs under test run in: bubblewrap, or limits alone, without a wall to files and the
    # network (see tasks/sandbox.py).
    sandbox: Literal["bwrap", "rlimits"] = "bwrap"


@contextlib.contextmanager
def open_pool(rewards: Mapping[str, Any], config: GraderConfig) -> Iterator[GraderPool]:
    pool = GraderPool(
        rewards,
        workers=config.workers,
        timeout_s=config.timeout_s,
        memory_mb=config.memory_mb,
        sandbox=config.sandbox,
    )
    with contextlib.closing(pool):
        yield pool


@dataclass(frozen=True)
class Prompt:
    """A rendered question; `prefix` is text that the completion was made to begin with."""

    example: Example
    tokens: np.ndarray  # int32
    prefix: str = ""


def make_prompt(
    example: Example,
    tokenizer: Tokenizer,
    template: str,
    max_tokens: int,
    prefix: str | Mapping[str, str] = "",
) -> Prompt:
    """Renders a question; DataError where it has more than `max_tokens` tokens.

    `prefix` may differ by the example's metadata["language"].
    """
    if not isinstance(prefix, str):
        language = str(example.metadata.get("language"))
        if language not in prefix:
            raise DataError(
                f"example {example.id}: prefix has no entry for its language {language!r}"
            )
        prefix = prefix[language]
    tokens = render_prompt(example.messages, tokenizer, template) + tokenizer.encode(prefix)
    if len(tokens) > max_tokens:
        raise DataError(
            f"example {example.id}: its prompt has {len(tokens)} tokens, more than"
            f" max_prompt_tokens {max_tokens}"
        )
    return Prompt(example, np.asarray(tokens, np.int32), prefix)


@dataclass(frozen=True)
class Ungraded:
    """Sampled completions whose rewards are being computed."""

    prompts: Sequence[Prompt]
    finished: Mapping[tuple[int, int], tuple[Completion, str]]  # (prompt, sample) -> with its text
    pool: GraderPool

    def graded(self) -> list[Rollout]:
        """Waits for the graders -> rollouts sorted by (prompt, sample).

        Of several processes the first one grades for all: graders have time limits, and a grade
        that differed between two would let them train on different things.
        """
        places = sorted(self.finished)
        found: dict[Any, Grade] = dict(self.pool.results())
        grades = of_first_process([_grade_row(found[place]) for place in places if place in found])
        return [
            _rollout(self.prompts[place[0]], *self.finished[place], grade)
            for place, grade in zip(places, grades, strict=True)
        ]


def sample_rollouts(
    engine: Engine,
    params: Any,
    prompts: Sequence[Prompt],
    pool: GraderPool,
    tokenizer: Tokenizer,
    sampling: SamplingConfig,
    key: jax.Array,
    group_size: int,
    on_completion: Callable[[int], None] | None = None,
) -> Ungraded:
    """`group_size` completions per prompt; each goes to the graders while others decode.

    Returns when all are sampled, `graded()` of that when all are graded. `on_completion` is told
    how many completions are finished.
    """
    finished: dict[tuple[int, int], tuple[Completion, str]] = {}
    stream = engine.generate(
        params,
        [prompt.tokens for prompt in prompts],
        sampling,
        key,
        group_size,
        stop_check=stop_check(tokenizer, sampling.stop),
    )
    for completion in stream:
        place = (completion.prompt_index, completion.sample_index)
        prompt = prompts[completion.prompt_index]
        text = prompt.prefix + tokenizer.decode(completion.tokens.tolist())
        finished[place] = completion, text
        if jax.process_index() == 0:
            length = len(completion.tokens)
            pool.submit(place, prompt.example, text, length, completion.finish_reason)
        if on_completion is not None:
            on_completion(len(finished))
    return Ungraded(prompts, finished, pool)


def _grade_row(grade: Grade) -> dict[str, Any]:
    """A Rollout's fields that are the graders'."""
    return {
        "reward": grade.reward,
        "reward_breakdown": dict(grade.breakdown),
        "failure": grade.failure.kind if grade.failure else None,
    }


def _rollout(
    prompt: Prompt, completion: Completion, text: str, grade: Mapping[str, Any]
) -> Rollout:
    return Rollout(
        example_id=prompt.example.id,
        prompt_tokens=prompt.tokens,
        completion=completion,
        text=text,
        **grade,
    )


def to_row(rollout: Rollout) -> dict[str, Any]:
    """A rollout as one JSON line; float32 numbers survive exactly."""
    completion = rollout.completion
    return {
        "example_id": rollout.example_id,
        "prompt_index": completion.prompt_index,
        "sample_index": completion.sample_index,
        "prompt_tokens": rollout.prompt_tokens.tolist(),
        "tokens": completion.tokens.tolist(),
        "logprobs": [float(str(x)) for x in completion.logprobs],  # shortest text of a float32
        "finish_reason": completion.finish_reason,
        "text": rollout.text,
        "reward": rollout.reward,
        "reward_breakdown": dict(rollout.reward_breakdown),
        "failure": rollout.failure,
    }


def from_row(row: Mapping[str, Any]) -> Rollout:
    """The inverse of to_row."""
    completion = Completion(
        prompt_index=row["prompt_index"],
        sample_index=row["sample_index"],
        tokens=np.asarray(row["tokens"], np.int32),
        logprobs=np.asarray(row["logprobs"], np.float32),
        finish_reason=row["finish_reason"],
    )
    return Rollout(
        example_id=row["example_id"],
        prompt_tokens=np.asarray(row["prompt_tokens"], np.int32),
        completion=completion,
        text=row["text"],
        reward=row["reward"],
        reward_breakdown=row["reward_breakdown"],
        failure=row["failure"],
    )
