"""Runs as they are committed: a file of JSON lines, a line a run, its metrics as columns.

    {"name": "seed=0", "config": {..}, "params": 1900000, "evaluations": [{"step": 80, ..}],
     "metrics": [{"step": [0, 10], "eval/x": [0.1, 0.2]}, {"step": [1, 2, 3], "grpo/loss": [..]}]}

Metrics that were written at the same steps stand together. A data set has its "statistics", a
pipeline its "stages" and their "runs", each of which is as a line. Every number is the one of the
workdir's files; what is not here are completions, tokenizers and checkpoints.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from r1jax.config import DataError
from r1jax.files import (
    CONFIG,
    EVALUATIONS,
    METRICS,
    PIPELINE,
    RESULTS,
    STATISTICS,
    absolute,
    by_step,
    numbered_jsonl,
    write_atomic,
)
from r1jax.reports.runs import Evaluation, RunRecord, read_if_any, read_run

WORKDIR_FILES = (CONFIG, METRICS, EVALUATIONS, RESULTS, STATISTICS, PIPELINE)
PLAIN = (
    "config",
    "params",
    "active_params",
    "statistics",
    "stages",
)  # fields of RunRecord that are JSON already
FIELDS = ("name", *PLAIN, "evaluations", "metrics", "timings", "runs")

# -- all runs of a path ----------------------------------------------------------------------------


def read_runs(path: epath.PathLike) -> dict[str, RunRecord]:
    """The runs by name: of a workdir, of a measured file, or of a directory of either.

    In a directory a name is the path below it. Raises DataError where there are no measurements.
    """
    root = absolute(path)
    if root.is_dir() and not _is_workdir(root):
        found = dict(_below(root))
        for file in sorted(root.glob("*.jsonl")):
            found |= {f"{file.stem}/{name}": run for name, run in read_measured(file).items()}
        if not found:
            raise DataError(f"{path} holds no workdir with measurements and no measured file")
        return found
    if root.is_dir() or not root.exists():
        return {root.name: read_run(path)}
    return read_measured(root)


def with_stages(runs: Mapping[str, RunRecord]) -> dict[str, RunRecord]:
    """The runs, and behind each pipeline its stages' as PIPELINE/STAGE."""
    found = {}
    for name, run in runs.items():
        found[name] = run
        found |= {f"{name}/{stage}": record for stage, record in run.runs.items()}
    return found


def _is_workdir(path: epath.Path) -> bool:
    return any((path / name).exists() for name in WORKDIR_FILES)


def _below(directory: epath.Path, prefix: str = "") -> Iterator[tuple[str, RunRecord]]:
    """The workdirs at any depth; not those in a workdir, nor those that have only begun."""
    for path in sorted(path for path in directory.iterdir() if path.is_dir()):
        name = f"{prefix}{path.name}"
        if not _is_workdir(path):
            yield from _below(path, f"{name}/")
        elif (run := read_if_any(path)).has_measurements:
            yield name, run


# -- the file --------------------------------------------------------------------------------------


def write_measured(runs: Mapping[str, RunRecord], path: epath.PathLike) -> None:
    """Replaces the file, if there is one."""
    encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
    lines = [encode(_row(name, run)) + "\n" for name, run in runs.items()]
    write_atomic(path, "".join(lines).encode())


def read_measured(path: epath.PathLike) -> dict[str, RunRecord]:
    """Raises DataError with file and line for whatever is wrong."""
    file = absolute(path)
    runs: dict[str, RunRecord] = {}
    for number, row in numbered_jsonl(file):
        try:
            run = _record(row, file.parent / file.stem)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}:{number} is not a measured run: {error!r}") from None
        if row["name"] in runs:
            raise DataError(f"{path}:{number} is a second run called {row['name']!r}")
        runs[row["name"]] = run
    return runs


def _row(name: str, run: RunRecord) -> dict[str, Any]:
    """Without what is empty."""
    row: dict[str, Any] = {"name": name} | {key: getattr(run, key) for key in PLAIN}
    row["evaluations"] = [_evaluation_row(evaluation) for evaluation in run.evaluations]
    row |= {"metrics": _columns(run.metrics), "timings": _columns(run.timings)}
    row["runs"] = [_row(stage, record) for stage, record in run.runs.items()]
    return {key: value for key, value in row.items() if value}


def _record(row: Mapping[str, Any], directory: epath.Path) -> RunRecord:
    workdir = directory / row["name"]
    if unknown := [key for key in row if key not in FIELDS]:
        raise KeyError(unknown[0])
    return RunRecord(
        workdir.name,
        workdir,
        config=row.get("config", {}),
        metrics=_lines(row.get("metrics", [])),
        evaluations=[
            Evaluation(directory=workdir / EVALUATIONS / f"{values['step']:06d}", **values)
            for values in row.get("evaluations", [])
        ],
        timings=_lines(row.get("timings", [])),
        params=row.get("params", 0),
        active_params=row.get("active_params", row.get("params", 0)),
        statistics=row.get("statistics", {}),
        stages=row.get("stages", {}),
        runs={stage["name"]: _record(stage, workdir) for stage in row.get("runs", [])},
    )


def _evaluation_row(evaluation: Evaluation) -> dict[str, Any]:
    row = {key: getattr(evaluation, key) for key in ("step", "model", "label", "seed", "kinds")}
    named = {key: value for key, value in row.items() if value not in ("", None, {})}
    return named | {"benchmarks": evaluation.benchmarks}


def _columns(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, list[Any]]]:
    """The metrics of the same steps together, each as the list of its values; nan is null."""
    steps: dict[str, list[int]] = {}
    for line in lines:
        for name in line:
            steps.setdefault(name, []).append(line["step"])
    together: dict[tuple[int, ...], dict[str, list[Any]]] = {}
    for name, at in steps.items():
        if name != "step":
            columns = together.setdefault(tuple(at), {"step": at})
            columns[name] = [_or_null(line[name]) for line in lines if name in line]
    return list(together.values())


def _or_null(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _lines(tables: Sequence[Mapping[str, Sequence[Any]]]) -> list[dict[str, Any]]:
    """What _columns was made of."""
    return by_step(
        dict(zip(columns, values, strict=True))
        for columns in tables
        for values in zip(*columns.values(), strict=True)
    )
