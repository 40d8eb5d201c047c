"""Questions in, graded rollouts out: the first half of GRPO, rejection sampling and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import jax
import numpy as np

from r1jax.config import ConfigError, DataError
from r1jax.data.chat import render_prompt
from r1jax.data.datasets import errors_at
from r1jax.data.tokenizer import Tokenizer
from r1jax.machines.hosts import of_first_process
from r1jax.rewards import Grade
from r1jax.rewards.pool import GraderPool, Grading
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampling import SamplingConfig
from r1jax.rollout.stop_strings import stop_check
from r1jax.types import Completion, Example, Rollout

DRAFTS = ("drafts", "right_drafts")  # of a completion; written where there were any


class OverlongError(DataError):
    """A prompt with more tokens than the config allows."""


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
    """Renders a question; OverlongError where it has more than `max_tokens` tokens.

    `prefix` may differ by the example's metadata["language"].
    """
    if not isinstance(prefix, str | Mapping):
        raise ConfigError(f"prefix {prefix!r} is neither a text nor texts by language")
    if not isinstance(prefix, str):
        language = str(example.metadata.get("language"))
        if language not in prefix:
            raise DataError(f"{example.name}: prefix has no entry for its language {language!r}")
        prefix = prefix[language]
    with errors_at(example.name):
        tokens = render_prompt(example.messages, tokenizer, template) + tokenizer.encode(prefix)
    if len(tokens) > max_tokens:
        raise OverlongError(
            f"{example.name}: its prompt has {len(tokens)} tokens, more than"
            f" max_prompt_tokens {max_tokens}"
        )
    return Prompt(example, np.asarray(tokens, np.int32), prefix)


@dataclass(frozen=True)
class Questions:
    """What is asked, how, how often, and which rewards grade the answers."""

    prompts: Sequence[Prompt]
    sampling: SamplingConfig
    group_size: int = 1
    rewards: str = ""  # the name of one of the sets of the sampler's pool and judges


class Judge(Protocol):
    """Models that judge, behind the rules (judges/reward_model.py)."""

    def added(self, rollouts: Sequence[Rollout], examples: Sequence[Example]) -> list[Rollout]:
        """The rollouts with the judges' scores; `examples` are the prompts'."""


class Sampler:
    """A model that is asked, and what grades its answers: opened once a run, closed by `with`.

    The parameters come with every call, since training changes them.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        pool: GraderPool | None = None,
        judges: Mapping[str, Judge] | None = None,
    ) -> None:
        """`pool` and `judges` have the same names for their sets of rewards; a set may do without
        judges. Who only reads texts needs neither.
        """
        self.engine, self.tokenizer, self.pool = engine, tokenizer, pool
        self._judges = dict(judges or {})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.close()

    def completions(
        self,
        params: Any,
        prompts: Sequence[np.ndarray],
        sampling: SamplingConfig,
        key: jax.Array,
        group_size: int = 1,
    ) -> Iterator[tuple[Completion, str]]:
        """`group_size` completions of each prompt with their texts, in the order of finishing."""
        check = stop_check(self.tokenizer, sampling.stop)
        for completion in self.engine.generate(
            params, prompts, sampling, key, group_size, stop_check=check
        ):
            yield completion, self.tokenizer.decode(completion.tokens.tolist())

    def sample(
        self,
        params: Any,
        questions: Questions,
        key: jax.Array,
        on_completion: Callable[[int], None] | None = None,
    ) -> Ungraded:
        """The answers to these questions; each goes to the graders while others decode.

        Returns when all are sampled, `graded()` of that when all are graded. `on_completion` is
        told how many completions are finished.
        """
        assert self.pool is not None, "a sampler without graders reads texts only"
        prompts = questions.prompts
        finished: dict[tuple[int, int], tuple[Completion, str]] = {}
        grading = self.pool.begin(questions.rewards)
        tokens = [prompt.tokens for prompt in prompts]
        for completion, decoded in self.completions(
            params, tokens, questions.sampling, key, questions.group_size
        ):
            place = (completion.prompt_index, completion.sample_index)
            prompt = prompts[completion.prompt_index]
            text = prompt.prefix + decoded
            finished[place] = completion, text
            if jax.process_index() == 0:
                length = len(completion.tokens)
                grading.submit(place, prompt.example, text, length, completion.finish_reason)
            if on_completion is not None:
                on_completion(len(finished))
        return Ungraded(prompts, finished, grading, self._judges.get(questions.rewards))


@dataclass(frozen=True)
class Ungraded:
    """Sampled completions whose rewards are being computed."""

    prompts: Sequence[Prompt]
    finished: Mapping[tuple[int, int], tuple[Completion, str]]  # (prompt, sample) -> with its text
    grading: Grading
    judge: Judge | None

    def graded(self) -> list[Rollout]:
        """Waits for the graders, asks the judges -> rollouts sorted by (prompt, sample)."""
        return self.judged(self.by_rules())

    def by_rules(self) -> list[Rollout]:
        """The rules' part alone.

        Of several processes the first one grades for all: graders have time limits, and a grade
        that differed between two would let them train on different things.
        """
        places = sorted(self.finished)
        found: dict[Any, Grade] = dict(self.grading.results())
        grades = of_first_process([_grade_row(found[place]) for place in places if place in found])
        return [
            _rollout(self.prompts[place[0]], *self.finished[place], grade)
            for place, grade in zip(places, grades, strict=True)
        ]

    def judged(self, rollouts: list[Rollout]) -> list[Rollout]:
        """With what the judges say beside."""
        if self.judge is None:
            return rollouts
        return self.judge.added(rollouts, [prompt.example for prompt in self.prompts])


def _grade_row(grade: Grade) -> dict[str, Any]:
    """A Rollout's fields that are the graders'."""
    return {
        "reward": grade.reward,
        "reward_breakdown": dict(grade.breakdown),
        "failure": grade.failure.kind if grade.failure else None,
        "failure_message": grade.failure.message if grade.failure else None,
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
        "failure_message": rollout.failure_message,
        **({} if completion.experts is None else {"experts": completion.experts.tolist()}),
        **({name: getattr(completion, name) for name in DRAFTS} if completion.drafts else {}),
    }


def from_row(row: Mapping[str, Any]) -> Rollout:
    """The inverse of to_row."""
    completion = Completion(
        prompt_index=row["prompt_index"],
        sample_index=row["sample_index"],
        tokens=np.asarray(row["tokens"], np.int32),
        logprobs=np.asarray(row["logprobs"], np.float32),
        finish_reason=row["finish_reason"],
        experts=np.asarray(row["experts"], np.int16) if "experts" in row else None,
        **{name: row[name] for name in DRAFTS if name in row},
    )
    return Rollout(
        example_id=row["example_id"],
        prompt_tokens=np.asarray(row["prompt_tokens"], np.int32),
        completion=completion,
        text=row["text"],
        reward=row["reward"],
        reward_breakdown=row["reward_breakdown"],
        failure=row["failure"],
        failure_message=row.get("failure_message"),
    )
