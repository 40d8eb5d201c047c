"""Benchmarks: k samples a problem, graded strictly and leniently, and the paper's statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath

from r1jax.benchmarks.estimators import cons_at_k, mean_and_standard_error, pass_at_k
from r1jax.config import ConfigError, Size
from r1jax.data.chat import Template
from r1jax.data.datasets import DataConfig, check_located, finite_examples
from r1jax.data.tokenizer import Tokenizer
from r1jax.files import RESULTS, plain_number, read_object, write_json, write_jsonl_atomic
from r1jax.judges.reward_model import LearnedReward, open_judges
from r1jax.machines.mesh import make_mesh
from r1jax.rewards.format import reflective_words
from r1jax.rewards.pool import GraderConfig, GraderPool
from r1jax.rollout.engine import Engine
from r1jax.rollout.files import to_row
from r1jax.rollout.sampler import Questions, Sampler, make_prompt
from r1jax.rollout.sampling import SamplingConfig
from r1jax.tasks import final_answer, same_answer, task_of
from r1jax.types import Example, Rollout

STRICT, LENIENT = "accuracy", "lenient_accuracy"
Scores = dict[str, float]  # of one benchmark


class RewardsConfig(Protocol):
    """What has rewards: a benchmark's config, or GRPO's."""

    @property
    def rewards(self) -> Any: ...
    @property
    def reward_models(self) -> dict[str, LearnedReward]: ...


@dataclass(frozen=True)
class BenchmarkConfig:
    """Problems, how they are asked, and how often. The paper: T 0.6, top-p 0.95."""

    data: DataConfig
    num_samples: Size = 16  # completions of a problem: k of pass@k and cons@k
    template: Template = "chat"  # a key of data.chat.TEMPLATES
    max_prompt_tokens: Size = 1024  # a longer prompt is an error
    sampling: SamplingConfig = field(
        default_factory=lambda: SamplingConfig(max_tokens=32_768, temperature=0.6, top_p=0.95)
    )
    prefix: Any = ""  # text that every completion begins with, or one by metadata["language"]
    rewards: Any = field(  # as in training; what is reported are their means
        default_factory=lambda: {STRICT: 1.0, LENIENT: 0.0, "format": 0.0}
    )
    reward_models: dict[str, LearnedReward] = field(default_factory=dict)  # means of their scores


class Benchmark:
    """Problems, read, checked and rendered once, to be asked as often as one likes."""

    def __init__(
        self, config: BenchmarkConfig, key: str, tokenizer: Tokenizer, max_length: int
    ) -> None:
        """`key` is the config's name in messages, and the name of its rewards in a sampler.

        Raises ConfigError for what cannot fit into the model, DataError for a wrong problem.
        """
        needed = config.max_prompt_tokens + config.sampling.max_tokens
        if needed > max_length:
            raise ConfigError(
                f"{key}: max_prompt_tokens {config.max_prompt_tokens} + sampling.max_tokens"
                f" {config.sampling.max_tokens} is more than the model's max_length {max_length}"
            )
        self.config, self.key = config, key
        self.examples = finite_examples(config.data, f"{key}.data")
        for example in self.examples:
            check_located(example)
        prompts = [
            make_prompt(e, tokenizer, config.template, config.max_prompt_tokens, config.prefix)
            for e in self.examples
        ]
        self._questions = Questions(prompts, config.sampling, config.num_samples, key)

    @property
    def completions(self) -> int:
        """How many are sampled."""
        return len(self.examples) * self.config.num_samples

    def run(
        self,
        sampler: Sampler,
        params: Any,
        seed: int,
        on_completion: Callable[[int], None] | None = None,
    ) -> tuple[Scores, list[Rollout]]:
        """Samples, grades and summarises."""
        key = jax.random.key(seed)
        rollouts = sampler.sample(params, self._questions, key, on_completion).graded()
        return self.scores(rollouts), rollouts

    def scores(self, rollouts: Sequence[Rollout]) -> Scores:
        """What these rollouts are worth."""
        return summarise(self.examples, rollouts, self.config.num_samples)


def open_benchmarks(
    configs: Mapping[str, BenchmarkConfig], key: str, tokenizer: Tokenizer, max_length: int
) -> dict[str, Benchmark]:
    """Those of a section of a config; `key` is the section's name."""
    return {
        name: Benchmark(config, f"{key}.{name}", tokenizer, max_length)
        for name, config in configs.items()
    }


def open_sampler(
    engine: Engine,
    tokenizer: Tokenizer,
    graders: GraderConfig,
    benchmarks: Iterable[Benchmark],
    more: Mapping[str, RewardsConfig] | None = None,
) -> Sampler:
    """For benchmarks, and for `more` that have rewards, by name."""
    asking = {benchmark.key: benchmark.config for benchmark in benchmarks} | dict(more or {})
    models = {name: config.reward_models for name, config in asking.items()}
    judges = open_judges(models, engine.mesh or make_mesh())  # a wrong one fails before workers run
    pool = GraderPool({name: config.rewards for name, config in asking.items()}, graders)
    return Sampler(engine, tokenizer, pool, judges)


def summarise(examples: Sequence[Example], rollouts: Sequence[Rollout], k: int) -> Scores:
    """pass@1 with its standard error over problems, pass@k, cons@k, by level; length; the means of
    the other rewards (format, language, reward models) under their names."""
    groups = [rollouts[i * k : (i + 1) * k] for i in range(len(examples))]
    metrics: Scores = {"problems": len(examples), "samples": k}
    for name, prefix in ((STRICT, ""), (LENIENT, "lenient_")):
        if name in rollouts[0].reward_breakdown:
            metrics |= _accuracies(examples, groups, name, prefix, k)
    for name in rollouts[0].reward_breakdown:
        if name not in (STRICT, LENIENT):  # format, language, reward models, ...
            metrics[name] = _mean(r.reward_breakdown[name] for r in rollouts)
    lengths = [len(r.completion.tokens) for r in rollouts]
    metrics["length"] = _mean(lengths)
    metrics["truncated"] = _mean(r.completion.finish_reason == "length" for r in rollouts)
    metrics["reflective_words"] = _mean(reflective_words(r.text) for r in rollouts)
    metrics["failures"] = sum(r.failure is not None for r in rollouts)
    return metrics


def _accuracies(
    examples: Sequence[Example], groups: Sequence[Sequence[Rollout]], name: str, prefix: str, k: int
) -> Scores:
    right = [[r.reward_breakdown[name] for r in group] for group in groups]
    means = [float(np.mean(values)) for values in right]
    mean, error = mean_and_standard_error(means)
    metrics = {f"{prefix}pass@1": mean, f"{prefix}pass@1_se": error}
    for n in _powers_of_two(k):
        values = [pass_at_k(k, round(sum(r)), n) for r in right]
        metrics[f"{prefix}pass@{n}"] = float(np.mean(values))
    if k > 1:
        votes = [
            _vote(example, group, values, name)
            for example, group, values in zip(examples, groups, right, strict=True)
        ]
        metrics[f"{prefix}cons@{k}"] = float(np.mean(votes))
    for key in ("level", "language", "family"):
        for value in sorted({str(e.metadata[key]) for e in examples if key in e.metadata}):
            chosen = [
                m for e, m in zip(examples, means, strict=True) if str(e.metadata.get(key)) == value
            ]
            metrics[f"{prefix}pass@1/{key}/{value}"] = float(np.mean(chosen))
    return metrics


def _vote(example: Example, group: Sequence[Rollout], right: Sequence[float], name: str) -> float:
    def extract(text: str) -> str | None:
        if name == STRICT:
            return final_answer(text, example.task)
        return task_of(example.task).extract(text)

    answers = [extract(rollout.text) for rollout in group]
    return cons_at_k(answers, right, lambda a, b: same_answer(example, a, b))


def _powers_of_two(k: int) -> list[int]:
    return sorted({2**i for i in range(1, int(math.log2(k)) + 1)} | ({k} - {1}))


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def write_results(
    directory: epath.Path,
    results: Mapping[str, Scores],
    rollouts: Mapping[str, Sequence[Rollout]],
    about: Mapping[str, Any],
) -> None:
    """NAME.jsonl, a line per completion, and last of all results.json, which marks the end."""
    for name, items in rollouts.items():
        write_jsonl_atomic(directory / f"{name}.jsonl", [to_row(rollout) for rollout in items])
    plain = {
        name: {key: plain_number(value) for key, value in metrics.items()}
        for name, metrics in results.items()
    }
    write_json(directory / RESULTS, {**about, "benchmarks": plain})


def read_results(directory: epath.Path) -> dict[str, Any] | None:
    """What write_results wrote, or None where an evaluation is not complete."""
    path = directory / RESULTS
    return read_object(path) if path.exists() else None
