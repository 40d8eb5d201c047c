"""Benchmarks: k samples a problem, graded strictly and leniently, and the paper's statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import jax
import numpy as np
from etils import epath

from r1jax.benchmarks.catalog import kind_of
from r1jax.benchmarks.estimators import cons_at_k, mean_and_standard_error, pass_at_k
from r1jax.benchmarks.kind import Judging, Kind, Scores
from r1jax.benchmarks.samples import file_of, place_of, write_samples
from r1jax.config import ConfigError, Size
from r1jax.data.chat import Template
from r1jax.data.datasets import DataConfig, check_located, finite_examples
from r1jax.data.tokenizer import Tokenizer
from r1jax.files import RESULTS, plain_number, read_object, write_json
from r1jax.judges.reward_model import LearnedReward, open_judges
from r1jax.machines.mesh import make_mesh
from r1jax.rewards.format import reflective_words
from r1jax.rewards.pool import GraderConfig, GraderPool
from r1jax.rollout.engine import Engine
from r1jax.rollout.files import process_of
from r1jax.rollout.sampler import Graders, Place, Prompt, Sampler, grades_of, make_prompt
from r1jax.rollout.sampling import SamplingConfig
from r1jax.tasks import finals, same_answer, task_of
from r1jax.types import Example, Sample

STRICT, LENIENT = "accuracy", "lenient_accuracy"
CORRECTNESS = (STRICT, LENIENT, "f1")  # what a completion that was cut can be refused
# pass@1 is also told for the problems of each value of these, where their rows say it.
PARTS = ("level", "language", "family", "difficulty", "category")


class RewardsConfig(Protocol):
    """What has rewards: a benchmark's config, or GRPO's."""

    @property
    def rewards(self) -> Any: ...
    @property
    def reward_models(self) -> dict[str, LearnedReward]: ...


@dataclass(frozen=True)
class BenchmarkConfig:
    """Problems, how they are asked, and how often. The paper: T 0.6, top-p 0.95.

    r1jax.benchmarks.catalog:benchmark writes this section for those of the paper.
    """

    data: DataConfig
    kind: str = ""  # a key of benchmarks.catalog.KINDS: how it is called and judged
    problems: Size | None = None  # so many of them, evenly spread; None = all
    num_samples: Size = 16  # completions of a problem: k of pass@k and cons@k
    template: Template = "chat"  # a key of data.chat.TEMPLATES
    max_prompt_tokens: Size = 1024  # a longer prompt is an error
    sampling: SamplingConfig = field(
        default_factory=lambda: SamplingConfig(max_tokens=32_768, temperature=0.6, top_p=0.95)
    )
    # A completion cut by its limit: graded as it stands, or wrong. The paper does not say.
    truncated: Literal["graded", "wrong"] = "graded"
    prefix: Any = ""  # text that every completion begins with, or one by metadata["language"]
    rewards: Any = field(  # as in training; what is reported are their means
        default_factory=lambda: {STRICT: 1.0, LENIENT: 0.0, "format": 0.0}
    )
    reward_models: dict[str, LearnedReward] = field(default_factory=dict)  # means of their scores


class Benchmark:
    """Problems, read, checked and rendered once, to be asked as often as one likes."""

    def __init__(
        self, config: BenchmarkConfig, key: str, tokenizer: Tokenizer | None, max_length: int
    ) -> None:
        """`key` is the config's name in messages, and the name of its rewards in graders; without
        a tokenizer nothing is rendered: a server has its own.

        Raises ConfigError for what cannot fit into the model, DataError for a wrong problem.
        """
        self.config, self.key = config, key
        self.kind: Kind | None = kind_of(config.kind) if config.kind else None
        problems = finite_examples(config.data, f"{key}.data")
        self.examples = _spread(problems, config.problems or len(problems))
        for example in self.examples:
            check_located(example)
        self.prompts: list[Prompt] = []
        if tokenizer is None:
            return
        needed = config.max_prompt_tokens + config.sampling.max_tokens
        if needed > max_length:
            raise ConfigError(
                f"{key}: max_prompt_tokens {config.max_prompt_tokens} + sampling.max_tokens"
                f" {config.sampling.max_tokens} is more than the model's max_length {max_length}"
            )
        self.prompts = [
            make_prompt(e, tokenizer, config.template, config.max_prompt_tokens, config.prefix)
            for e in self.examples
        ]

    @property
    def judging(self) -> Judging | None:
        """How a judge grades it, behind the rewards."""
        return None if self.kind is None else self.kind.judging

    @property
    def completions(self) -> int:
        """How many are sampled."""
        return len(self.examples) * self.config.num_samples

    def graded(self, samples: Iterable[Sample], graders: Graders) -> list[Sample]:
        """Each goes to the graders as it comes -> sorted by (prompt, sample) when all are graded.

        Of several processes each grades the answers to some of the questions.
        """
        grading = graders.pool.begin(self.key)
        found: dict[Place, Sample] = {}
        for sample in samples:
            found[place_of(sample)] = sample
            if process_of(sample.prompt_index) == jax.process_index():
                example = self.examples[sample.prompt_index]
                read = sample.text, sample.length, sample.finish_reason
                grading.submit(place_of(sample), example, *read)
        grades = grades_of(grading)
        graded = [
            replace(
                found[place],
                reward=grades[place].reward,
                reward_breakdown=dict(grades[place].breakdown),
                failure=failure.kind if (failure := grades[place].failure) else None,
                failure_message=failure.message if failure else None,
            )
            for place in sorted(found)
        ]
        judge = graders.judges.get(self.key)
        return graded if judge is None else judge.added(graded, self.examples)

    def scores(self, samples: Sequence[Sample]) -> Scores:
        """What these are worth, all of the benchmark's."""
        refused = self.config.truncated == "wrong"
        cut = [refused and sample.finish_reason == "length" for sample in samples]
        samples = [_refused(s) if is_cut else s for s, is_cut in zip(samples, cut, strict=True)]
        scores = summarise(self.examples, samples, self.config.num_samples)
        if self.kind is not None and self.kind.statistic is not None:
            read = zip(samples, cut, strict=True)
            samples = [replace(s, text="") if is_cut else s for s, is_cut in read]
            scores |= self.kind.statistic(self.examples, samples)
        return scores


def _spread(problems: Sequence[Example], count: int) -> list[Example]:
    """So many of them, from all parts of the file: those of one subject often stand together."""
    count = min(count, len(problems))
    return [problems[i * len(problems) // count] for i in range(count)]


def _refused(sample: Sample) -> Sample:
    earned = sample.reward_breakdown
    return replace(
        sample, reward_breakdown={**earned, **{n: 0.0 for n in CORRECTNESS if n in earned}}
    )


def counted(samples: Iterable[Sample], tell: Callable[[int], None]) -> Iterator[Sample]:
    """The same; `tell` hears how many there were so far."""
    for count, sample in enumerate(samples, start=1):
        yield sample
        tell(count)


def open_benchmarks(
    configs: Mapping[str, BenchmarkConfig],
    key: str,
    tokenizer: Tokenizer | None,
    max_length: int,
) -> dict[str, Benchmark]:
    """Those of a section of a config; `key` is the section's name."""
    for name in configs:
        if "/" in name or name.endswith((".partial", ".verdicts")):
            raise ConfigError(f"{key}: {name!r} cannot be the name of a benchmark's file")
    return {
        name: Benchmark(config, f"{key}.{name}", tokenizer, max_length)
        for name, config in configs.items()
    }


def open_graders(
    graders: GraderConfig,
    benchmarks: Iterable[Benchmark],
    more: Mapping[str, RewardsConfig] | None = None,
    mesh: Any = None,
) -> Graders:
    """For benchmarks, and for `more` that have rewards, by name."""
    asking = {benchmark.key: benchmark.config for benchmark in benchmarks} | dict(more or {})
    models = {name: config.reward_models for name, config in asking.items()}
    judges = open_judges(models, mesh or make_mesh())  # a wrong one fails before workers run
    rewards = {name: config.rewards for name, config in asking.items()}
    return Graders(GraderPool(rewards, graders), judges)


def open_sampler(
    engine: Engine,
    tokenizer: Tokenizer,
    graders: GraderConfig,
    benchmarks: Iterable[Benchmark],
    more: Mapping[str, RewardsConfig] | None = None,
) -> Sampler:
    """With the graders of benchmarks, and of `more` that have rewards."""
    found = open_graders(graders, benchmarks, more, engine.mesh)
    return Sampler(engine, tokenizer, found)


def summarise(examples: Sequence[Example], rollouts: Sequence[Sample], k: int) -> Scores:
    """pass@1 with its standard error over problems, pass@k, cons@k, by level; length; the means of
    the other rewards (format, language, reward models) under their names."""
    groups = [rollouts[i * k : (i + 1) * k] for i in range(len(examples))]
    metrics: Scores = {"problems": len(examples), "samples": k}
    for name, prefix in ((STRICT, ""), (LENIENT, "lenient_")):
        if name in rollouts[0].reward_breakdown:
            metrics |= _accuracies(examples, groups, name, prefix, k)
    for name in dict.fromkeys(name for r in rollouts for name in r.reward_breakdown):
        if name not in (STRICT, LENIENT):  # format, language, reward models, ...
            had = [r for r in rollouts if name in r.reward_breakdown]  # not who was not judged
            metrics[name] = _mean(r.reward_breakdown[name] for r in had)
    metrics["length"] = _mean(r.length for r in rollouts)
    metrics["truncated"] = _mean(r.finish_reason == "length" for r in rollouts)
    metrics["reflective_words"] = _mean(reflective_words(r.text) for r in rollouts)
    metrics["failures"] = sum(r.failure is not None for r in rollouts)
    return metrics


def _accuracies(
    examples: Sequence[Example], groups: Sequence[Sequence[Sample]], name: str, prefix: str, k: int
) -> Scores:
    right = [[r.reward_breakdown[name] for r in group] for group in groups]
    means = [float(np.mean(values)) for values in right]
    mean, error = mean_and_standard_error(means)
    metrics = {f"{prefix}pass@1": mean, f"{prefix}pass@1_se": error}
    right_or_wrong = all(value in (0.0, 1.0) for values in right for value in values)
    for n in _powers_of_two(k) if right_or_wrong else ():
        values = [pass_at_k(k, round(sum(r)), n) for r in right]
        metrics[f"{prefix}pass@{n}"] = float(np.mean(values))
    if k > 1 and right_or_wrong:
        votes = [
            _vote(example, group, values, name)
            for example, group, values in zip(examples, groups, right, strict=True)
        ]
        share, error = mean_and_standard_error(votes)
        metrics |= {f"{prefix}cons@{k}": share, f"{prefix}cons@{k}_se": error}
    for key in PARTS:
        for value in sorted({str(e.metadata[key]) for e in examples if key in e.metadata}):
            chosen = [
                m for e, m in zip(examples, means, strict=True) if str(e.metadata.get(key)) == value
            ]
            metrics[f"{prefix}pass@1/{key}/{value}"] = float(np.mean(chosen))
    return metrics


def _vote(example: Example, group: Sequence[Sample], right: Sequence[float], name: str) -> float:
    def extract(text: str) -> str | None:
        if name == STRICT:
            answers = finals(example, text)
            return answers[0] if len(answers) == 1 else None
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
    benchmarks: Mapping[str, Benchmark],
    samples: Mapping[str, Sequence[Sample]],
    about: Mapping[str, Any],
) -> None:
    """NAME.jsonl, a line per completion, and last of all results.json, which marks the end.

    What it has of other benchmarks whose completions are there stays.
    """
    for name, items in samples.items():
        write_samples(file_of(directory, name), items, benchmarks[name].examples)
    plain = {
        name: {key: plain_number(value) for key, value in metrics.items()}
        for name, metrics in results.items()
    }
    kinds = {name: _title(b.kind) for name, b in benchmarks.items() if b.kind is not None}
    before = read_results(directory) or {}
    others = [n for n in before.get("benchmarks", {}) if file_of(directory, n).exists()]
    found: dict[str, Any] = {"benchmarks": plain, "kinds": kinds}
    for key, values in found.items():
        kept = {n: before[key][n] for n in others if n in before.get(key, {})}
        found[key] = kept | values
    write_json(directory / RESULTS, {**about, **found})


def _title(kind: Kind) -> dict[str, Any]:
    """What tables need to know of it."""
    names = "title", "metric", "scale", "problems", "num_samples"
    return {name: getattr(kind, name) for name in names}


def read_results(directory: epath.Path) -> dict[str, Any] | None:
    """What write_results wrote, or None where an evaluation is not complete."""
    path = directory / RESULTS
    return read_object(path) if path.exists() else None
