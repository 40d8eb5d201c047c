"""Tables and figures of a pipeline: its stages, its models side by side, its data sets.

Everything comes from files in the stages' workdirs: results.json of `evaluate`, statistics.json of
`rejection` and `mixture`, metrics.jsonl of training stages, pipeline.json of the pipeline itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

from etils import epath

from r1jax.config import DataError
from r1jax.files import PIPELINE, STATISTICS, absolute
from r1jax.reports.costs import Stages, cost_table, distillation_table
from r1jax.reports.paper import read_paper
from r1jax.reports.results import ERROR, ROWS, Row, last_cell, with_k
from r1jax.reports.runs import RunRecord, read_run
from r1jax.reports.table import Cell, Table

# Means of rewards that a benchmark may have beside its accuracies.
MORE_ROWS = (
    Row("language consistency (%)", "language"),
    Row("preferred to the reference (%)", "preference"),
)


def is_pipeline(workdir: epath.PathLike) -> bool:
    return (absolute(workdir) / PIPELINE).exists()


def read_stages(workdir: epath.PathLike) -> Stages:
    path = absolute(workdir) / PIPELINE
    try:
        stages = json.loads(path.read_text())["stages"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a pipeline's: {error!r}") from None
    return stages


def runs_of(workdir: epath.PathLike, kind: str) -> list[RunRecord]:
    """The complete stages of one kind that have measurements, in the pipeline's order."""
    root = absolute(workdir)
    names = [n for n, s in read_stages(root).items() if s["stage"] == kind and s["complete"]]
    return [read_run(root / name) for name in names]


# -- tables ----------------------------------------------------------------------------------------


def models_by_stage(pipelines: Sequence[Sequence[RunRecord]]) -> Table:
    """Every benchmark's metrics, a column per model (the paper's Table 3).

    Several pipelines, seeds of one config, give mean and standard deviation.
    """
    everything = [run for runs in pipelines for run in runs]
    names = dict.fromkeys(n for run in everything for n in run.evaluations[-1].benchmarks)
    labels = dict.fromkeys(run.label for run in everything)
    rows: list[Sequence[str | Cell]] = []
    for name in names:
        found = [run.evaluations[-1].benchmarks.get(name, {}) for run in everything]
        k = max(int(values.get("samples", 1)) for values in found)
        for row in (*ROWS, *MORE_ROWS):
            if "{k}" in row.metric and k == 1:
                continue
            cells = [_mean(everything, label, name, with_k(row, k)) for label in labels]
            if any(cell.value is not None for cell in cells):
                rows.append([name, with_k(row, k).label, *cells])
    several = f"Mean ± standard deviation over {len(pipelines)} pipelines."
    header = ["Benchmark", "Metric", *labels]
    note = several if len(pipelines) > 1 else ERROR
    return Table("stages", "Models by stage", header, rows, note)


def _mean(runs: Sequence[RunRecord], label: str, benchmark: str, row: Row) -> Cell:
    """Of the runs of that label; a single one has its standard error over problems."""
    cells = [last_cell(run, benchmark, row) for run in runs if run.label == label]
    values = [cell.value for cell in cells if cell.value is not None]
    if len(values) < 2:
        return next((cell for cell in cells if cell.value is not None), Cell(None))
    return Cell(fmean(values), stdev(values), row.digits)


def paper_stages() -> Table:
    """The paper's own table of stages."""
    paper = read_paper()
    printed = paper["stages"]
    rows: list[Sequence[str | Cell]] = [
        [name, *(Cell(value, None, 1 if isinstance(value, float) else 0) for value in values)]
        for name, values in printed["rows"].items()
    ]
    header = ["Benchmark", *printed["columns"]]
    title = f"{printed['title']} (the paper's {printed['printed_in']})"
    return Table("paper_stages", title, header, rows, f"Source: {paper['source']['paper']}.")


def data_table(workdir: epath.PathLike) -> Table:
    """What the SFT sets consist of (the paper's Table 5)."""
    rows: list[Sequence[str | Cell]] = []
    for name, statistics in _statistics(workdir, "mixture").items():
        for domain, values in statistics["domains"].items():
            samples, rounds, tokens = (values[key] for key in ("samples", "rounds", "tokens"))
            rows.append([name, domain, Cell(samples, None, 0), Cell(rounds), Cell(tokens)])
    header = ["Set", "Domain", "Samples", "Rounds", "Tokens a sample"]
    return Table("sft_data", "SFT data (the paper's Table 5)", header, rows)


def sampling_table(workdir: epath.PathLike) -> Table:
    """What became of the completions of rejection sampling."""
    found = _statistics(workdir, "rejection")
    fates = list(dict.fromkeys(f for s in found.values() for f in s["completions_by_fate"]))
    fates.sort(key=lambda fate: fate != "kept")
    rows: list[Sequence[str | Cell]] = []
    for name, statistics in found.items():
        counts = statistics["completions_by_fate"]
        numbers = [statistics["questions"], statistics["completions"]]
        numbers += [counts.get(fate, 0) for fate in fates]
        rows.append([name, *(Cell(number, None, 0) for number in numbers)])
    header = ["Set", "Questions", "Completions", *fates]
    note = (
        "kept: a row of the set; a reward's name: the first whose minimum was missed; more than"
        " needed: good, but there were enough of that question."
    )
    return Table("sampling", "Rejection sampling", header, rows, note)


def _statistics(workdir: epath.PathLike, kind: str) -> dict[str, dict[str, Any]]:
    root = absolute(workdir)
    return {
        name: json.loads((root / name / STATISTICS).read_text())
        for name, stage in read_stages(root).items()
        if stage["stage"] == kind and stage["complete"]
    }


def costs(workdir: epath.PathLike) -> Table:
    return cost_table(runs_of(workdir, "sft") + runs_of(workdir, "grpo"))


def distillation(workdir: epath.PathLike) -> Table:
    return distillation_table(workdir, read_stages(workdir))


def pipeline_tables(workdirs: Sequence[epath.PathLike]) -> list[Table]:
    """The tables of one pipeline, or of several that differ in their seed."""
    evaluated = [runs_of(workdir, "evaluate") for workdir in workdirs]
    tables = [models_by_stage(evaluated), paper_stages()] if any(evaluated) else []
    for make in (sampling_table, data_table, distillation, costs):
        tables.append(_stacked([make(workdir) for workdir in workdirs], workdirs))
    return [table for table in tables if table.rows]


def _stacked(tables: Sequence[Table], workdirs: Sequence[epath.PathLike]) -> Table:
    """One below the other, with the pipeline's name in front where there are several."""
    if len(tables) == 1:
        return tables[0]
    header = list(dict.fromkeys(name for table in tables for name in table.header))
    rows: list[Sequence[str | Cell]] = []
    for table, workdir in zip(tables, workdirs, strict=True):
        for row in table.rows:
            cells = dict(zip(table.header, row, strict=True))
            rows.append([absolute(workdir).name, *(cells.get(n, Cell(None)) for n in header)])
    return replace(tables[0], header=["Pipeline", *header], rows=rows)
