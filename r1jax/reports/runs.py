"""What a workdir says of its run: config, metrics, evaluations and more, read from its files.

Everything else in this room takes RunRecords. measured.py keeps them in files to be committed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from statistics import fmean
from typing import Any

from etils import epath

from r1jax.config import ConfigError, DataError
from r1jax.files import (
    CONFIG,
    EVALUATIONS,
    METRICS,
    MODEL_JSON,
    PIPELINE,
    RESULTS,
    STATISTICS,
    TIMINGS,
    absolute,
    children,
    read_metrics,
    read_object,
)
from r1jax.journal import count_lines
from r1jax.models.config import ModelConfig
from r1jax.models.params import count_active_params, count_params
from r1jax.weights.load import read_model_json

Stages = Mapping[str, Mapping[str, Any]]  # pipeline.json: {name: {"stage", "reads", "complete"}}

# What is known of a benchmark that is one of the paper's: its name there, what of its results the
# tables show and times what, how many problems are published, and the paper's k.
KIND_KEYS = ("title", "metric", "scale", "problems", "num_samples")

FREE = ("seed", "wandb_project", "profile")  # config keys in which runs of one group may differ


@dataclass(frozen=True)
class Evaluation:
    """One results.json: {benchmark: {metric: value}} at a step."""

    step: int
    benchmarks: Mapping[str, Mapping[str, float]]
    directory: epath.Path
    model: str = ""  # MODEL, where `evaluate` wrote it
    label: str = ""  # the model's name
    seed: int | None = None  # of the samples
    kinds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # KIND_KEYS by benchmark


@dataclass(frozen=True)
class RunRecord:
    """What one workdir says of itself: of a run, a data set, or a pipeline and all its stages."""

    name: str
    workdir: epath.Path  # where its other files lie; a measured run has none there
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]  # the lines of metrics.jsonl, by step
    evaluations: Sequence[Evaluation]  # by step
    timings: Sequence[Mapping[str, Any]] = ()  # the lines of timings.jsonl, by step
    params: int = 0  # of the model that was trained
    active_params: int = 0  # of these, those that one token meets
    statistics: Mapping[str, Any] = field(default_factory=dict)  # of the data set
    stages: Stages = field(default_factory=dict)  # of the pipeline, in its order
    runs: Mapping[str, RunRecord] = field(default_factory=dict)  # of the pipeline's complete stages

    @property
    def label(self) -> str:
        """What the newest evaluation says the model is called, or the workdir's name."""
        return next((e.label for e in self.evaluations[::-1] if e.label), self.name)

    @property
    def has_measurements(self) -> bool:
        return bool(self.metrics or self.evaluations or self.statistics or self.stages)

    def of_kind(self, kind: str) -> list[RunRecord]:
        """A pipeline's complete stages of one kind, in its order."""
        names = [name for name, stage in self.stages.items() if stage["stage"] == kind]
        return [self.runs[name] for name in names if name in self.runs]


def read_run(workdir: epath.PathLike) -> RunRecord:
    """Raises DataError where the workdir doesn't exist or holds no measurements."""
    path = absolute(workdir)
    if not path.is_dir():
        raise DataError(f"workdir {workdir} does not exist")
    run = read_if_any(path)
    if not run.has_measurements:
        raise DataError(
            f"workdir {workdir} has neither {METRICS} nor {RESULTS} nor {STATISTICS} nor {PIPELINE}"
        )
    return run


def read_if_any(path: epath.Path) -> RunRecord:
    """As read_run, but of a run that has only begun there is a record too."""
    stages = read_stages(path) if (path / PIPELINE).exists() else {}
    complete = [name for name, stage in stages.items() if stage["complete"]]
    runs = {name: read_if_any(path / name) for name in complete}
    return RunRecord(
        path.name,
        path,
        config=_read_json(path / CONFIG),
        metrics=_lines(path, METRICS),
        evaluations=_read_evaluations(path),
        timings=_lines(path, TIMINGS),
        params=_read_params(path / MODEL_JSON, count_params),
        active_params=_read_params(path / MODEL_JSON, count_active_params),
        statistics=_read_json(path / STATISTICS),
        stages=stages,
        runs={name: run for name, run in runs.items() if run.has_measurements},
    )


def read_stages(workdir: epath.PathLike) -> Stages:
    path = absolute(workdir) / PIPELINE
    try:
        stages = json.loads(path.read_text())["stages"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a pipeline's: {error!r}") from None
    return stages


def _lines(path: epath.Path, name: str) -> list[dict[str, Any]]:
    """[] where there is no such file, or nothing in it yet."""
    return read_metrics(path, name) if count_lines(path / name) else []


def _read_json(path: epath.Path) -> Mapping[str, Any]:
    """{} where there is no such file."""
    return read_object(path) if path.exists() else {}


def _read_params(path: epath.Path, count: Callable[[ModelConfig], int]) -> int:
    """0 where there is no such file."""
    try:
        return _counted(count, read_model_json(path)[0]) if path.exists() else 0
    except (DataError, ConfigError) as error:
        raise DataError(f"{path} is not a model's: {error}") from None


@cache
def _counted(count: Callable[[ModelConfig], int], config: ModelConfig) -> int:
    return count(config)


def _read_evaluations(path: epath.Path) -> list[Evaluation]:
    directories = [*sorted(children(path / EVALUATIONS)), path]
    found = [_read_evaluation(d) for d in directories if (d / RESULTS).exists()]
    return sorted(found, key=lambda e: e.step)


def _read_evaluation(directory: epath.Path) -> Evaluation:
    try:
        values = json.loads((directory / RESULTS).read_text())
        about: dict[str, Any] = {key: str(values.get(key, "")) for key in ("model", "label")}
        kinds = {
            name: {key: kind[key] for key in KIND_KEYS}
            for name, kind in values.get("kinds", {}).items()
        }
        about |= {"seed": values.get("seed"), "kinds": kinds}
        return Evaluation(values["step"], values["benchmarks"], directory, **about)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{directory / 'results.json'} is not an evaluation: {error!r}") from None


def group_runs(runs: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Runs of one config, whatever their seeds, under a common name."""
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(json.dumps(_without_seeds(run.config), sort_keys=True), []).append(run)
    names = [common_name(members) for members in groups.values()]
    unique = [n if names.count(n) == 1 else f"{n} ({i})" for i, n in enumerate(names, start=1)]
    return dict(zip(unique, groups.values(), strict=True))


def _without_seeds(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {k: _without_seeds(v) for k, v in config.items() if k not in FREE}
    return config


def common_name(runs: Sequence[RunRecord]) -> str:
    """ "kl=0.1,seed=0" and "kl=0.1,seed=1" -> "kl=0.1"; runs named by their seed keep all names."""
    names = [run.name for run in runs]
    stems = {re.sub(r"[-_,.]*(seed)?[-_=]*\d*$", "", name) for name in names}
    has_stem = len(names) > 1 and len(stems) == 1 and stems != {""}
    return stems.pop() if has_stem else ", ".join(names)


def benchmark_names(runs: Sequence[RunRecord]) -> list[str]:
    """Benchmarks of the runs, without those that are variants of another (`variant_names`)."""
    names = _all_benchmarks(runs)
    variants = {f"{name}_{variant}" for name in names for variant in variant_names(runs)}
    return [name for name in names if name not in variants]


def variant_names(runs: Sequence[RunRecord]) -> list[str]:
    """NAMEs of the benchmarks X_NAME beside X whose config begins completions with a `prefix`."""
    known = _all_benchmarks(runs)
    found: dict[str, None] = {}
    for run in runs:
        benchmarks = (run.config.get("evaluation") or {}).get("benchmarks") or {}
        for name in (name for name, config in benchmarks.items() if config.get("prefix")):
            base, _, variant = name.rpartition("_")
            if base in known:
                found[variant] = None
    return list(found)


def _all_benchmarks(runs: Sequence[RunRecord]) -> list[str]:
    evaluations = [evaluation for run in runs for evaluation in run.evaluations]
    return list(dict.fromkeys(name for e in evaluations for name in e.benchmarks))


def metric_names(runs: Sequence[RunRecord], pattern: str) -> list[str]:
    """Names in the runs' metrics that match the whole pattern."""
    names = dict.fromkeys(name for run in runs for line in run.metrics for name in line)
    return [name for name in names if re.fullmatch(pattern, name)]


def end_mean(curve: Sequence[float], end: int, name: str) -> float:
    """Of a held-out curve its first or last point, of a training curve its first or last 5 %."""
    window = max(1, len(curve) // 20) if name.startswith("grpo/") else 1
    return fmean(curve[:window] if end == 0 else curve[-window:])
