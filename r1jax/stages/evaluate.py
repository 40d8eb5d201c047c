"""Benchmarks of one model, as a stage of a pipeline and for the command of the same name.

Writes WORKDIR/NAME.jsonl, a line per completion, as each benchmark ends, and last results.json.
A benchmark whose file is there is not repeated.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from r1jax.benchmarks.protocol import (
    Benchmark,
    BenchmarkConfig,
    Scores,
    open_benchmarks,
    open_sampler,
    write_results,
)
from r1jax.config import ConfigError, DataError, Seed, section
from r1jax.data.fingerprint import keep_rows
from r1jax.files import (
    ASKED,
    CHECKPOINTS,
    absolute,
    read_jsonl,
    read_object,
    write_json,
    write_jsonl_atomic,
)
from r1jax.judges.planned import scoring_programs
from r1jax.machines.hosts import ask_first, wait_for_all
from r1jax.machines.planned import Assumed, Iteration, bytes_of
from r1jax.progress import Progress
from r1jax.reports.write import print_evaluation
from r1jax.rewards import load_rewards
from r1jax.rewards.pool import GraderConfig
from r1jax.rollout.config import EngineConfig
from r1jax.rollout.engine import Engine
from r1jax.rollout.files import from_row, to_row
from r1jax.rollout.planned import Asked, params_of, questions_in, rollout_programs
from r1jax.tasks.sandbox import choose_sandbox
from r1jax.types import Rollout
from r1jax.weights.checkpoint import Checkpoints
from r1jax.weights.load import ModelSource, OpenModel, open_model, open_shapes, with_chat
from r1jax.weights.manifest import MANIFEST


@dataclass(frozen=True)
class EvaluateConfig:
    """What is asked of a model; `mesh`, `engine` and `graders` say how, not what."""

    benchmarks: dict[str, BenchmarkConfig]
    stage: str = "evaluate"  # only this
    model: str = ""  # a MODEL; the command evaluate has it from its flag
    # Of its fields what is to be other than its own: {"dtype": "bfloat16"}, as in config.model.
    override: dict[str, Any] = field(default_factory=dict)
    # The tokens that end a completion, instead of those that the model's files name.
    stop_tokens: tuple[str, ...] = ()
    # Variables of the model's own chat template: {"enable_thinking": False}.
    template_args: dict[str, Any] = field(default_factory=dict)
    label: str = ""  # its name in tables; "" = the workdir's
    seed: Seed = 0  # of the samples
    # Devices along "data", "fsdp", "context", "expert" and "tensor"; one may be -1: what is left.
    mesh: dict[str, int] = field(default_factory=dict)
    engine: EngineConfig = field(default_factory=EngineConfig)
    graders: GraderConfig = field(default_factory=GraderConfig)


CONFIG = EvaluateConfig


def describe(config: EvaluateConfig) -> str:
    """What the config asks for, in numbers."""
    return ", ".join(f"{name} x {b.num_samples}" for name, b in config.benchmarks.items())


def check(config: EvaluateConfig) -> None:
    """What can be wrong in the config alone."""
    if not config.benchmarks:
        raise ConfigError("the config has no benchmarks")
    for benchmark in config.benchmarks.values():
        load_rewards(benchmark.rewards)


def planned(config: EvaluateConfig, mesh: Mesh, assumed: Assumed, memory: float) -> Iteration:
    """One benchmark behind the other, in shapes alone (see r1jax.stages)."""
    source = ModelSource(config.model or None, override=config.override)
    if source.path is None:
        raise ConfigError('config.model is missing: --config.model="models/NAME" says what to plan')
    opened = open_shapes(source)
    model = opened.transformer(mesh)
    programs, notes = [], []
    for name, benchmark in config.benchmarks.items():
        questions = questions_in(benchmark.data, f"config.benchmarks.{name}.data", assumed)
        limits = benchmark.sampling.max_tokens, benchmark.max_prompt_tokens
        asked = Asked(questions, benchmark.num_samples, *limits)
        scored, state = scoring_programs(
            benchmark.reward_models,
            *(opened.compute, mesh, asked, assumed, {"parameters": bytes_of(params_of(model))}),
        )
        found, said = rollout_programs(model, config.engine, asked, assumed, memory, state)
        programs += [replace(each, name=f"{name} {each.name}") for each in [*found, *scored]]
        notes += [f"{name}: {note}" for note in said]
    return Iteration(programs, 1, notes)


def run(config_dict: ConfigDict, workdir: str) -> None:
    """Evaluates `config.model` and prints its results."""
    evaluate(section(EvaluateConfig, config_dict), workdir)
    print_evaluation(workdir)


def evaluate(config: EvaluateConfig, workdir: epath.PathLike) -> dict[str, Scores]:
    """Runs what is not finished yet and writes results.json -> {benchmark: {metric: value}}."""
    check(config)
    choose_sandbox(config.graders.sandbox)
    opened, directory = open_model(config.model, config.override), absolute(workdir)
    opened = with_chat(opened, config.stop_tokens, config.template_args, "config")
    benchmarks = open_benchmarks(
        config.benchmarks, "config.benchmarks", opened.tokenizer, opened.config.max_length
    )
    asked = {
        "model": str(absolute(config.model)),
        "step": model_step(config.model),
        "seed": config.seed,
    }
    _check_asked(directory, config, asked)
    sources = {benchmark.key: benchmark.examples for benchmark in benchmarks.values()}
    done = _done(directory, benchmarks)
    keep_rows(directory, sources, [benchmarks[name].key for name in done])
    todo = {name: benchmark for name, benchmark in benchmarks.items() if name not in done}
    rollouts = {
        name: _written(_file(directory, name), benchmark)
        for name, benchmark in benchmarks.items()
        if name not in todo
    }
    if todo:
        rollouts |= _run(opened, config, todo, directory)
    results = {name: benchmark.scores(rollouts[name]) for name, benchmark in benchmarks.items()}
    label = {"label": config.label} if config.label else {}
    if jax.process_index() == 0:
        write_results(directory, results, {}, asked | label)
    wait_for_all("results")
    return results


def model_step(model: str) -> int:
    """The training step of MODEL; 0 where it has none."""
    path = absolute(model)
    if ask_first((path / MANIFEST).exists):
        return int(path.name)
    trained = ask_first((path / CHECKPOINTS).exists)
    return (Checkpoints(path).latest_step() if trained else None) or 0


def _written(path: epath.Path, benchmark: Benchmark) -> list[Rollout]:
    """A finished benchmark's rollouts; DataError for a file that is not as it was written."""
    again = "delete it, and the benchmark is run again"
    try:
        found = [from_row(row) for row in read_jsonl(path)]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not what was written ({error!r}); {again}") from None
    if len(found) != benchmark.completions:
        raise DataError(f"{path} has {len(found)} of {benchmark.completions} completions; {again}")
    return found


def _file(directory: epath.Path, benchmark: str) -> epath.Path:
    return directory / f"{benchmark}.jsonl"


def _done(directory: epath.Path, benchmarks: Iterable[str]) -> list[str]:
    """Those whose completions are there."""
    found = ask_first(lambda: [name for name in benchmarks if _file(directory, name).exists()])
    return list(found)


def _check_asked(directory: epath.Path, config: EvaluateConfig, about: dict[str, Any]) -> None:
    """Refuses to mix the completions of two models or two configs in one workdir."""
    benchmarks = {name: asdict(benchmark) for name, benchmark in config.benchmarks.items()}
    changes = {key: getattr(config, key) for key in ("override", "stop_tokens", "template_args")}
    more = {key: value for key, value in changes.items() if value}
    asked = json.loads(json.dumps(about | {"benchmarks": benchmarks} | more))
    path = directory / ASKED
    begun = _done(directory, benchmarks)
    if begun and ask_first(path.exists):
        old = read_object(path)
        different = [key for key in old | asked if old.get(key) != asked.get(key)]
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
    benchmarks: dict[str, Benchmark],
    directory: epath.Path,
) -> dict[str, list[Rollout]]:
    """Samples and grades these benchmarks; each is written down as it ends."""
    mesh = opened.mesh(config.mesh)
    params = opened.load(mesh, config.seed)
    engine = Engine(opened.transformer(mesh), opened.tokenizer.stop_ids, config.engine)
    rollouts = {}
    with open_sampler(engine, opened.tokenizer, config.graders, benchmarks.values()) as sampler:
        for name, benchmark in benchmarks.items():
            with Progress(name, benchmark.completions, 0, {}) as progress:
                advance = functools.partial(progress.update, values={})
                _, rollouts[name] = benchmark.run(sampler, params, config.seed, advance)
            if jax.process_index() == 0:
                write_jsonl_atomic(_file(directory, name), map(to_row, rollouts[name]))
    return rollouts
