"""Benchmarks of one model, as a stage of a pipeline and for the command of the same name.

Writes WORKDIR/NAME.jsonl, a line per completion, as each benchmark ends, and last results.json.
A benchmark whose file is there is not repeated.
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from r1jax.benchmarks.protocol import (
    BenchmarkConfig,
    Metrics,
    check_benchmark,
    load_examples,
    run_benchmark,
    summarise,
    write_results,
)
from r1jax.config import ConfigError, section
from r1jax.data.tokenizer import Tokenizer
from r1jax.files import ASKED, absolute, read_jsonl, write_json, write_jsonl_atomic
from r1jax.machines.hosts import wait_for_all
from r1jax.machines.mesh import make_mesh
from r1jax.progress import Progress
from r1jax.reports.write import print_evaluation
from r1jax.rewards import load_rewards
from r1jax.rollout.engine import Engine, EngineConfig
from r1jax.rollout.sampler import GraderConfig, from_row, make_prompt, to_row
from r1jax.tasks.sandbox import choose_sandbox
from r1jax.types import Example, Rollout
from r1jax.weights.checkpoint import MANIFEST, Checkpoints
from r1jax.weights.load import OpenModel, open_model


@dataclass(frozen=True)
class EvaluateConfig:
    """What is asked of a model; `mesh`, `engine` and `graders` say how, not what."""

    benchmarks: dict[str, BenchmarkConfig]
    stage: str = "evaluate"
    model: str = ""  # MODEL
    label: str = ""  # its name in tables; "" = the workdir's
    seed: int = 0
    mesh: dict[str, int] = field(default_factory=dict)
    engine: EngineConfig = field(default_factory=EngineConfig)
    graders: GraderConfig = field(default_factory=GraderConfig)


CONFIG = EvaluateConfig  # what train checks the config file against


def describe(config: EvaluateConfig) -> str:
    """What the config asks for, in numbers."""
    return ", ".join(f"{name} x {b.num_samples}" for name, b in config.benchmarks.items())


def check(config: EvaluateConfig) -> None:
    """What can be wrong in the config alone."""
    if not config.benchmarks:
        raise ConfigError("the config has no benchmarks")
    for benchmark in config.benchmarks.values():
        load_rewards(benchmark.rewards)


def run(config_dict: ConfigDict, workdir: str) -> None:
    """Evaluates `config.model` and prints its results."""
    evaluate(section(EvaluateConfig, config_dict), workdir)
    print_evaluation(workdir)


def evaluate(config: EvaluateConfig, workdir: epath.PathLike) -> dict[str, Metrics]:
    """Runs what is not finished yet and writes results.json -> {benchmark: {metric: value}}."""
    check(config)
    choose_sandbox(config.graders.sandbox)
    opened, directory = open_model(config.model), absolute(workdir)
    examples = {}
    for name, benchmark in config.benchmarks.items():
        check_benchmark(benchmark, opened.config.max_length, f"benchmark {name}")
        examples[name] = load_examples(benchmark, f"config.benchmarks.{name}")
    asked = {
        "model": str(absolute(config.model)),
        "step": model_step(config.model),
        "seed": config.seed,
    }
    _check_asked(directory, config, asked)
    rollouts = {
        name: [from_row(row) for row in read_jsonl(_file(directory, name))]
        for name in config.benchmarks
        if _file(directory, name).exists()
    }
    todo = [name for name in config.benchmarks if name not in rollouts]
    if todo:
        _run(opened, config, {name: examples[name] for name in todo}, directory, rollouts)
    results = {
        name: _summary(benchmark, examples[name], opened.tokenizer, rollouts[name])
        for name, benchmark in config.benchmarks.items()
    }
    label = {"label": config.label} if config.label else {}
    if jax.process_index() == 0:
        write_results(directory, results, {}, asked | label)
    wait_for_all("results")
    return results


def model_step(model: str) -> int:
    """The training step of MODEL; 0 where it has none."""
    path = absolute(model)
    if (path / MANIFEST).exists():
        return int(path.name)
    return Checkpoints(path).latest_step() or 0


def _file(directory: epath.Path, benchmark: str) -> epath.Path:
    return directory / f"{benchmark}.jsonl"


def _check_asked(directory: epath.Path, config: EvaluateConfig, about: dict[str, Any]) -> None:
    """Refuses to mix the completions of two models or two configs in one workdir."""
    benchmarks = {name: asdict(benchmark) for name, benchmark in config.benchmarks.items()}
    asked = json.loads(json.dumps(about | {"benchmarks": benchmarks}))
    path = directory / ASKED
    begun = any(_file(directory, name).exists() for name in benchmarks)
    if begun and path.exists():
        old = json.loads(path.read_text())
        different = [key for key in asked if old.get(key) != asked[key]]
        if different:
            raise ConfigError(
                f"{directory} holds an evaluation with another {' and '.join(different)};"
                " take another --workdir"
            )
    if jax.process_index() == 0:
        write_json(path, asked)


def _run(
    opened: OpenModel,
    config: EvaluateConfig,
    examples: dict[str, list[Example]],
    directory: epath.Path,
    rollouts: dict[str, list[Rollout]],
) -> None:
    """Samples and grades these benchmarks; each is written down as it ends."""
    mesh = make_mesh(config.mesh)
    params = opened.load(mesh, config.seed)
    engine = Engine(opened.transformer(mesh), opened.tokenizer.stop_ids, config.engine)
    for name, items in examples.items():
        benchmark = config.benchmarks[name]
        with Progress(name, len(items) * benchmark.num_samples, 0, {}) as progress:
            _, rollouts[name] = run_benchmark(
                benchmark,
                items,
                engine,
                params,
                opened.tokenizer,
                config.seed,
                config.graders,
                functools.partial(progress.update, values={}),
            )
        if jax.process_index() == 0:
            write_jsonl_atomic(_file(directory, name), map(to_row, rollouts[name]))


def _summary(
    benchmark: BenchmarkConfig,
    examples: list[Example],
    tokenizer: Tokenizer,
    rollouts: list[Rollout],
) -> Metrics:
    prompts = [
        make_prompt(e, tokenizer, benchmark.template, benchmark.max_prompt_tokens, benchmark.prefix)
        for e in examples
    ]
    return summarise(prompts, rollouts, benchmark.num_samples)
