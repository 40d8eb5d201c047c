"""Questions in, graded rollouts out: the first half of GRPO, rejection sampling and evaluation."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, Self, TypeVar

import jax
import numpy as np

from r1jax.config import ConfigError, DataError
from r1jax.data.chat import render_prompt
from r1jax.data.datasets import errors_at
from r1jax.data.tokenizer import Tokenizer
from r1jax.machines.hosts import agreed, of_all
from r1jax.rewards import Failure, Grade
from r1jax.rewards.pool import GraderPool, Grading
from r1jax.rollout.engine import Engine
from r1jax.rollout.files import process_of
from r1jax.rollout.sampling import SamplingConfig
from r1jax.rollout.stop_strings import stop_check
from r1jax.types import Completion, Example, Rollout, Sample

Place = tuple[int, int]  # (prompt, sample)
Graded = TypeVar("Graded", Rollout, Sample)


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

    def added(self, rollouts: Sequence[Graded], examples: Sequence[Example]) -> list[Graded]:
        """The rollouts with the judges' scores; `examples` are the prompts'."""


@dataclass(frozen=True)
class Graders:
    """What grades answers, for several sets of rewards by name: the rules' pool, and the models."""

    pool: GraderPool
    judges: Mapping[str, Judge] = field(default_factory=dict)  # a set may do without

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.close()


class Sampler:
    """A model that is asked, and what grades its answers: opened once a run, closed by `with`.

    The parameters come with every call, since training changes them.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        graders: Graders | None = None,
    ) -> None:
        """Who only reads texts needs no graders."""
        self.engine, self.tokenizer, self.graders = engine, tokenizer, graders

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.graders is not None:
            self.graders.pool.close()

    def completions(
        self,
        params: Any,
        prompts: Sequence[np.ndarray],
        sampling: SamplingConfig,
        key: jax.Array,
        group_size: int = 1,
        done: Collection[Place] = (),
    ) -> Iterator[tuple[Completion, str]]:
        """`group_size` completions of each prompt with their texts, in the order of finishing,
        without those that are `done`.
        """
        for completion in self._generate(params, prompts, sampling, key, group_size, done):
            yield completion, self._text(completion)

    def _generate(
        self,
        params: Any,
        prompts: Sequence[np.ndarray],
        sampling: SamplingConfig,
        key: jax.Array,
        group_size: int,
        done: Collection[Place] = (),
    ) -> Iterator[Completion]:
        check = stop_check(self.tokenizer, sampling.stop)
        return self.engine.generate(params, prompts, sampling, key, group_size, done, check)

    def _text(self, completion: Completion) -> str:
        return self.tokenizer.decode(completion.tokens.tolist())

    def sample(
        self,
        params: Any,
        questions: Questions,
        key: jax.Array,
    ) -> Ungraded:
        """The answers to these questions; each goes to the graders while others decode.

        Of several processes each reads and grades the answers to some of the questions. Returns
        when all are sampled, `graded()` of that when all are graded.
        """
        assert self.graders is not None, "a sampler without graders reads texts only"
        prompts = questions.prompts
        finished: dict[Place, Completion] = {}
        texts: dict[Place, str] = {}
        grading = self.graders.pool.begin(questions.rewards)
        tokens = [prompt.tokens for prompt in prompts]
        how = questions.sampling, key, questions.group_size
        for completion in self._generate(params, tokens, *how):
            place = (completion.prompt_index, completion.sample_index)
            finished[place] = completion
            if process_of(completion.prompt_index) == jax.process_index():
                prompt, length = prompts[completion.prompt_index], len(completion.tokens)
                text = texts[place] = prompt.prefix + self._text(completion)
                grading.submit(place, prompt.example, text, length, completion.finish_reason)
        judge = self.graders.judges.get(questions.rewards)
        return Ungraded(prompts, finished, texts, grading, judge)


@dataclass(frozen=True)
class Ungraded:
    """Sampled completions whose rewards are being computed."""

    prompts: Sequence[Prompt]
    finished: Mapping[Place, Completion]
    texts: Mapping[Place, str]  # of those that this process grades
    grading: Grading
    judge: Judge | None

    def graded(self) -> list[Rollout]:
        """Waits for the graders, asks the judges -> rollouts sorted by (prompt, sample)."""
        return self.judged(self.by_rules())

    def by_rules(self) -> list[Rollout]:
        """The rules' part alone. ConfigError where more failed than config.graders.max_failures."""
        grades = grades_of(self.grading)
        own = [[*place, text] for place, text in self.texts.items()]
        texts = {(p, g): text for of_one in of_all(own) for p, g, text in of_one}
        return [
            _rollout(self.prompts[place[0]], self.finished[place], texts[place], grades[place])
            for place in sorted(self.finished)
        ]

    def judged(self, rollouts: list[Rollout]) -> list[Rollout]:
        """With what the judges say beside."""
        if self.judge is None:
            return rollouts
        return self.judge.added(rollouts, [prompt.example for prompt in self.prompts])


def grades_of(grading: Grading) -> dict[Place, Grade]:
    """Of all that was submitted under its place, when it is graded.

    Of several processes each tells the others its grades. None grades anew: graders have time
    limits, and a grade that differed between two would let them train on different things.
    ConfigError where more failed than config.graders.max_failures.
    """
    found: dict[Any, Grade] = agreed(lambda: dict(grading.results()), RuntimeError, OSError)
    own = [[*place, asdict(grade)] for place, grade in found.items()]
    grades = {(p, g): _grade(grade) for of_one in of_all(own) for p, g, grade in of_one}
    grading.judge(list(grades.values()))
    return grades


def _grade(values: Mapping[str, Any]) -> Grade:
    """The inverse of asdict."""
    failure = values["failure"]
    return Grade(values["reward"], values["breakdown"], failure and Failure(**failure))


def _rollout(prompt: Prompt, completion: Completion, text: str, grade: Grade) -> Rollout:
    return Rollout(
        example_id=prompt.example.id,
        prompt_tokens=prompt.tokens,
        completion=completion,
        text=text,
        reward=grade.reward,
        reward_breakdown=grade.breakdown,
        failure=grade.failure.kind if grade.failure else None,
        failure_message=grade.failure.message if grade.failure else None,
    )
