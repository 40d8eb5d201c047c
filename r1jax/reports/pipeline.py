"""Tables of a pipeline: its models side by side, its data sets, what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from r1jax.reports.costs import cost_table, distillation_table
from r1jax.reports.paper_tables import STANDARD, Choice, paper_cost, paper_tables
from r1jax.reports.results import ERROR, ROWS, Row, last_cell, mean_of, with_k
from r1jax.reports.runs import RunRecord
from r1jax.reports.table import Cell, Table

# Means of rewards that a benchmark may have beside its accuracies.
MORE_ROWS = (
    Row("language consistency (%)", "language"),
    Row("preferred to the reference (%)", "preference"),
)


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
    return mean_of([last_cell(run, benchmark, row) for run in runs if run.label == label])


def data_table(pipeline: RunRecord) -> Table:
    """What the SFT sets consist of (the paper's Table 5)."""
    rows: list[Sequence[str | Cell]] = []
    for name, statistics in _statistics(pipeline, "mixture").items():
        for domain, values in statistics["domains"].items():
            samples, rounds, tokens = (values[key] for key in ("samples", "rounds", "tokens"))
            rows.append([name, domain, Cell(samples, None, 0), Cell(rounds), Cell(tokens)])
    header = ["Set", "Domain", "Samples", "Rounds", "Tokens a sample"]
    return Table("sft_data", "SFT data (the paper's Table 5)", header, rows)


def sampling_table(pipeline: RunRecord) -> Table:
    """What became of the completions of rejection sampling."""
    found = _statistics(pipeline, "rejection")
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


def _statistics(pipeline: RunRecord, kind: str) -> dict[str, Mapping[str, Any]]:
    return {run.name: run.statistics for run in pipeline.of_kind(kind)}


def costs(pipeline: RunRecord) -> Table:
    return cost_table(list(pipeline.runs.values()))


def pipeline_tables(pipelines: Sequence[RunRecord], choice: Choice = STANDARD) -> list[Table]:
    """The tables of one pipeline, or of several that differ in their seed."""
    evaluated = [pipeline.of_kind("evaluate") for pipeline in pipelines]
    tables = [models_by_stage(evaluated)] if any(evaluated) else []
    models: dict[str, list[RunRecord]] = {}
    for run in (run for runs in evaluated for run in runs):
        models.setdefault(run.label, []).append(run)
    tables += paper_tables(models, choice, always=("stages",) if models else ())
    for make in (sampling_table, data_table, distillation_table, costs):
        tables.append(_stacked([make(pipeline) for pipeline in pipelines], pipelines))
    several = len(pipelines) > 1
    stages = [
        replace(run, name=f"{pipeline.name}/{run.name}" if several else run.name)
        for pipeline in pipelines
        for run in pipeline.runs.values()
    ]
    tables += paper_cost(stages, choice)
    return [table for table in tables if table.rows]


def _stacked(tables: Sequence[Table], pipelines: Sequence[RunRecord]) -> Table:
    """One below the other, with the pipeline's name in front where there are several."""
    if len(tables) == 1:
        return tables[0]
    header = list(dict.fromkeys(name for table in tables for name in table.header))
    rows: list[Sequence[str | Cell]] = []
    for table, pipeline in zip(tables, pipelines, strict=True):
        for row in table.rows:
            cells = dict(zip(table.header, row, strict=True))
            rows.append([pipeline.name, *(cells.get(n, Cell(None)) for n in header)])
    return replace(tables[0], header=["Pipeline", *header], rows=rows)
