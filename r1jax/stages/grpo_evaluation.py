"""Evaluation beside GRPO: points of the held-out curves, and the benchmarks before and after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import jax

from r1jax.benchmarks.protocol import (
    Benchmark,
    counted,
    open_benchmarks,
    open_sampler,
    read_results,
    write_results,
)
from r1jax.benchmarks.respondents import OwnModel
from r1jax.data.tokenizer import Tokenizer
from r1jax.files import EVALUATIONS
from r1jax.machines.hosts import ask_first
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampler import Sampler
from r1jax.stages.grpo_config import GrpoConfig
from r1jax.stages.grpo_rollouts import REWARDS
from r1jax.training.run import TrainingRun
from r1jax.types import Sample

Benchmarks = dict[str, Benchmark]


def held_out_of(
    config: GrpoConfig, tokenizer: Tokenizer, max_length: int
) -> tuple[Benchmarks, Benchmarks]:
    """Those of the curves, and those before and after, each problem looked at."""
    key, found = "config.evaluation", config.evaluation
    curve = open_benchmarks(found.curve, f"{key}.curve", tokenizer, max_length)
    return curve, open_benchmarks(found.benchmarks, f"{key}.benchmarks", tokenizer, max_length)


@contextmanager
def open_evaluation(
    config: GrpoConfig, stage: TrainingRun, benchmarks: tuple[Benchmarks, Benchmarks] | None
) -> Iterator[tuple[Sampler, HeldOut]]:
    """The run's one sampler, for its own rollouts and for held-out problems, and those problems,
    where they are not in `benchmarks` yet.
    """
    tokenizer, limit = stage.tokenizer, stage.trained.model.config.max_length
    curve, full = benchmarks or held_out_of(config, tokenizer, limit)
    engine = Engine(stage.trained.model, tokenizer.stop_ids, config.engine)
    asking = [*curve.values(), *full.values()]
    with open_sampler(engine, tokenizer, config.graders, asking, {REWARDS: config}) as sampler:
        yield sampler, HeldOut(config, stage, sampler, curve, full)


class HeldOut:
    """What is measured on held-out problems while the stage trains."""

    def __init__(
        self,
        config: GrpoConfig,
        stage: TrainingRun,
        sampler: Sampler,
        curve: Mapping[str, Benchmark],
        full: Mapping[str, Benchmark],
    ) -> None:
        self._config, self._stage, self._sampler = config.evaluation, stage, sampler
        self._curve, self._full = curve, full

    def measure_curves(self, step: int) -> None:
        """A point of the curves, where one is due, as metrics of that step."""
        every, stage = self._config.every, self._stage
        if not every or step % every or (step == 0 and stage.start > 0):
            return
        values: dict[str, float] = {}
        with stage.timer("evaluation"):
            for name, benchmark in self._curve.items():
                scores = benchmark.scores(self._samples(benchmark))
                values |= {f"{name}/{key}": value for key, value in scores.items()}
        stage.log(step, "eval", values)

    def run_benchmarks(self, step: int) -> None:
        """The full benchmarks, before the first update and after the last; done once."""
        stage, seed = self._stage, self._config.seed
        directory = stage.workdir / EVALUATIONS / f"{step:06d}"
        written = ask_first(lambda: read_results(directory) is not None)
        done = written or (step == 0 and stage.start > 0)
        if done or not self._full:
            return
        samples = {}
        for name, benchmark in self._full.items():
            title = f"evaluating {name} at step {step}"
            with stage.progress.task(title, benchmark.completions) as advance:
                samples[name] = self._samples(benchmark, advance)
        results = {name: benchmark.scores(samples[name]) for name, benchmark in self._full.items()}
        about = {"step": step, "model": str(stage.workdir), "seed": seed}
        if jax.process_index() == 0:
            write_results(directory, results, self._full, samples, about)

    def _samples(
        self, benchmark: Benchmark, tell: Callable[[int], None] = lambda count: None
    ) -> list[Sample]:
        """What the model that is trained says, graded."""
        sampler = self._sampler
        assert sampler.graders is not None
        model = OwnModel(sampler, self._stage.trained.params, self._config.seed)
        return benchmark.graded(counted(model.answers(benchmark, set()), tell), sampler.graders)
