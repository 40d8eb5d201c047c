"""What a workdir says of its run: config, metrics and evaluations, read from its files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from etils import epath

from r1jax.config import DataError
from r1jax.files import CONFIG, EVALUATIONS, METRICS, RESULTS, absolute, read_metrics

FORCED = "_forced"  # benchmark X_forced is X with a prefix that forces step-by-step work
FREE = ("seed", "wandb_project", "profile")  # config keys in which runs of one group may differ


@dataclass(frozen=True)
class Evaluation:
    """One results.json: {benchmark: {metric: value}} at a step."""

    step: int
    benchmarks: Mapping[str, Mapping[str, float]]
    directory: epath.Path
    model: str = ""  # MODEL, where `evaluate` wrote it
    label: str = ""  # the model's name


@dataclass(frozen=True)
class RunRecord:
    """What one workdir says of itself."""

    name: str
    workdir: epath.Path
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]  # the lines of metrics.jsonl, by step
    evaluations: Sequence[Evaluation]  # by step

    @property
    def label(self) -> str:
        """What the newest evaluation says the model is called, or the workdir's name."""
        return next((e.label for e in self.evaluations[::-1] if e.label), self.name)


def read_run(workdir: epath.PathLike) -> RunRecord:
    """Raises DataError where the workdir doesn't exist or holds no measurements."""
    path = absolute(workdir)
    if not path.is_dir():
        raise DataError(f"workdir {workdir} does not exist")
    has_metrics = (path / METRICS).exists() and (path / METRICS).stat().length > 0
    metrics = read_metrics(path) if has_metrics else []
    directories = [*sorted((path / EVALUATIONS).glob("*")), path]
    found = [_read_evaluation(d) for d in directories if (d / RESULTS).exists()]
    if not metrics and not found:
        raise DataError(f"workdir {workdir} has neither {METRICS} nor {RESULTS}")
    config = json.loads((path / CONFIG).read_text()) if _has_config(path) else {}
    return RunRecord(path.name, path, config, metrics, sorted(found, key=lambda e: e.step))


def _has_config(path: epath.Path) -> bool:
    return (path / CONFIG).exists()


def _read_evaluation(directory: epath.Path) -> Evaluation:
    try:
        values = json.loads((directory / RESULTS).read_text())
        about = {key: str(values.get(key, "")) for key in ("model", "label")}
        return Evaluation(values["step"], values["benchmarks"], directory, **about)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{directory / 'results.json'} is not an evaluation: {error!r}") from None


def group_runs(runs: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Runs of one config, whatever their seeds, under a common name."""
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(json.dumps(_without_seeds(run.config), sort_keys=True), []).append(run)
    names = [_common_name(members) for members in groups.values()]
    unique = [n if names.count(n) == 1 else f"{n} ({i})" for i, n in enumerate(names, start=1)]
    return dict(zip(unique, groups.values(), strict=True))


def _without_seeds(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {k: _without_seeds(v) for k, v in config.items() if k not in FREE}
    return config


def _common_name(runs: Sequence[RunRecord]) -> str:
    """ "kl=0.1,seed=0" and "kl=0.1,seed=1" -> "kl=0.1"; runs named by their seed keep all names."""
    names = [run.name for run in runs]
    stems = {re.sub(r"[-_,.]*(seed)?[-_=]*\d*$", "", name) for name in names}
    has_stem = len(names) > 1 and len(stems) == 1 and stems != {""}
    return stems.pop() if has_stem else ", ".join(names)


def benchmark_names(runs: Sequence[RunRecord]) -> list[str]:
    """Benchmarks of the runs; X_forced belongs to X where there is an X."""
    evaluations = [evaluation for run in runs for evaluation in run.evaluations]
    names = list(dict.fromkeys(name for e in evaluations for name in e.benchmarks))
    return [n for n in names if n.removesuffix(FORCED) == n or n.removesuffix(FORCED) not in names]


def metric_names(runs: Sequence[RunRecord], pattern: str) -> list[str]:
    """Names in the runs' metrics that match the whole pattern."""
    names = dict.fromkeys(name for run in runs for line in run.metrics for name in line)
    return [name for name in names if re.fullmatch(pattern, name)]


def end_mean(curve: Sequence[float], end: int, name: str) -> float:
    """Of a held-out curve its first or last point, of a training curve its first or last 5 %."""
    window = max(1, len(curve) // 20) if name.startswith("grpo/") else 1
    return fmean(curve[:window] if end == 0 else curve[-window:])
