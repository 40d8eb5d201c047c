"""Tables and figures of finished or running workdirs, from their files alone.

Reads config.json, metrics.jsonl, evaluations/STEP/results.json (of training) and results.json (of
`evaluate`); the paper's numbers come from paper.json. What was not measured is "-", never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from flax import traverse_util

from r1jax.reports.runs import RunRecord, benchmark_names, metric_names, variant_names
from r1jax.reports.table import MISSING, Cell, Table, text_of

# ---- base against what came of it ----


@dataclass(frozen=True)
class Row:
    """A line of the table of results: a metric of results.json and how it is shown."""

    label: str
    metric: str  # {k} = samples a problem
    scale: float = 100.0
    digits: int = 1


ROWS = (
    Row("pass@1 strict (%)", "pass@1"),
    Row("pass@1 lenient (%)", "lenient_pass@1"),
    Row("pass@{k} strict (%)", "pass@{k}"),
    Row("pass@{k} lenient (%)", "lenient_pass@{k}"),
    Row("cons@{k} strict (%)", "cons@{k}"),
    Row("cons@{k} lenient (%)", "lenient_cons@{k}"),
    Row("format (%)", "format"),
    Row("length (tokens)", "length", 1.0),
    Row("cut by length (%)", "truncated"),
    Row("reflective words", "reflective_words", 1.0, 2),
)
ERROR = "± is the standard error over problems."
EXPLAINED = (
    "Strict: the answer in its tags; lenient: the last answer anywhere. Length and reflective"
    " words: mean per completion."
)


def results_table(groups: Mapping[str, Sequence[RunRecord]]) -> Table:
    """Per benchmark and metric: base, the base on the benchmark's variants, after, change."""
    rows: list[Sequence[str | Cell]] = []
    variants = _variants(groups)
    for label, runs in groups.items():
        for benchmark in benchmark_names(runs):
            for row in _rows_for(runs, benchmark):
                cells = _result_cells(runs, benchmark, variants, row)
                if any(cell.value is not None for cell in cells):
                    rows.append([label, benchmark, row.label, *cells])
    header = ["Run", "Benchmark", "Metric", *_result_header(groups, variants)]
    title = f"Before and after: {', '.join(groups)}"
    table = Table("results", title, header, rows, _note(groups, variants))
    return _without_empty(table, variants)


def _variants(groups: Mapping[str, Sequence[RunRecord]]) -> list[str]:
    return variant_names([run for runs in groups.values() for run in runs])


def _result_header(groups: Mapping[str, Sequence[RunRecord]], variants: Sequence[str]) -> list[str]:
    configs = [run.config for runs in groups.values() for run in runs]
    zero = all(str(config.get("template", "")).startswith("r1_zero") for config in configs)
    return ["Base", *map(str.capitalize, variants), "R1-Zero" if zero else "After RL", "Change"]


def _without_empty(table: Table, variants: Sequence[str]) -> Table:
    """Without the name of the run if there is only one, and without variants not measured."""
    runs = {row[0] for row in table.rows}
    empty = [table.header.index(variant.capitalize()) for variant in variants]
    empty = [i for i in empty if all(text_of(row[i]) == MISSING for row in table.rows)]
    keep = [i for i in range(len(table.header)) if (i > 0 or len(runs) > 1) and i not in empty]
    rows = [[row[i] for i in keep] for row in table.rows]
    return replace(table, header=[table.header[i] for i in keep], rows=rows)


def _note(groups: Mapping[str, Sequence[RunRecord]], variants: Sequence[str]) -> str:
    spread = ERROR
    if any(len(runs) > 1 for runs in groups.values()):
        counts = ", ".join(f"{label}: {len(runs)}" for label, runs in groups.items())
        spread = (
            f"Mean ± standard deviation over seeds ({counts}), or where all seeds have one value,"
            " as of their base, ± its standard error over problems."
        )
    begun = [
        f"{v.capitalize()}: the base, with the beginning of its completions given."
        for v in variants
    ]
    return " ".join([spread, EXPLAINED, *begun])


def _rows_for(runs: Sequence[RunRecord], benchmark: str) -> list[Row]:
    """ROWS with k in its place; without the rows of k where k is 1."""
    found = [e.benchmarks.get(benchmark, {}) for run in runs for e in run.evaluations]
    k = int(max((values.get("samples", 1) for values in found), default=1))
    return [with_k(row, k) for row in ROWS if k > 1 or "{k}" not in row.metric]


def _result_cells(
    runs: Sequence[RunRecord], benchmark: str, variants: Sequence[str], row: Row
) -> list[Cell]:
    before = [_value(run, 0, benchmark, row.metric) for run in runs]
    after = [_value(run, -1, benchmark, row.metric) for run in runs]
    pairs = zip(before, after, strict=True)
    change = [y - x for x, y in pairs if x is not None and y is not None]
    return [
        _aggregate(runs, 0, benchmark, row),
        *(_aggregate(runs, 0, f"{benchmark}_{variant}", row) for variant in variants),
        _aggregate(runs, -1, benchmark, row),
        _mean_cell(change, row),
    ]


def _aggregate(runs: Sequence[RunRecord], which: int, benchmark: str, row: Row) -> Cell:
    """One run: its value and standard error; several: mean and standard deviation over them.

    Runs that begin at one base have one value of it: then the standard error is theirs.
    """
    values = [_value(run, which, benchmark, row.metric) for run in runs]
    cell = _mean_cell([value for value in values if value is not None], row)
    if cell.spread:
        return cell
    error = _value(runs[0], which, benchmark, f"{row.metric}_se")
    return replace(cell, spread=None if error is None else error * row.scale)


def _mean_cell(values: Sequence[float], row: Row) -> Cell:
    scaled = [value * row.scale for value in values]
    spread = stdev(scaled) if len(scaled) > 1 else None
    return Cell(fmean(scaled) if scaled else None, spread, row.digits)


def _value(run: RunRecord, which: int, benchmark: str, metric: str) -> float | None:
    """Of the evaluation at step 0 (which = 0), or of the last one after it (which = -1)."""
    chosen = [e for e in run.evaluations if (e.step == 0) == (which == 0)]
    return chosen[which].benchmarks.get(benchmark, {}).get(metric) if chosen else None


def groups_table(
    title: str, groups: Mapping[str, Sequence[RunRecord]], benchmark: str, shown: Sequence[Row]
) -> Table:
    """A line a group: its last results on one benchmark, mean and standard deviation over runs."""
    rows: list[Sequence[str | Cell]] = [
        [label, Cell(len(runs), None, 0), *(_aggregate(runs, -1, benchmark, row) for row in shown)]
        for label, runs in groups.items()
    ]
    header = ["Run", "Seeds", *(row.label for row in shown)]
    return Table("groups", title, header, rows)


def seeds_table(groups: Mapping[str, Sequence[RunRecord]]) -> Table:
    """One line a run: what the means of results_table are made of."""
    chosen = [row for row in ROWS if row.metric in ("pass@1", "lenient_pass@1", "length", "format")]
    header = [
        "Run",
        "Benchmark",
        *(f"{row.label} {t}" for row in chosen for t in ("base", "after")),
    ]
    rows: list[Sequence[str | Cell]] = []
    for run in (run for runs in groups.values() for run in runs):
        for benchmark in benchmark_names([run]):
            cells = [
                _aggregate([run], which, benchmark, row) for row in chosen for which in (0, -1)
            ]
            rows.append([run.name, benchmark, *cells])
    return Table("seeds", "Each run", header, rows, ERROR)


LAST = {"reward": "grpo/reward/mean", "loss": "sft/loss", "held-out loss": "eval/held_out/nll"}


def configs_table(groups: Mapping[str, Sequence[RunRecord]]) -> Table:
    """A line a run of a sweep: the keys of the config that differ, and what came of them."""
    runs = [run for members in groups.values() for run in members]
    flat = {
        run.name: traverse_util.flatten_dict(dict(run.config), sep=".", keep_empty_nodes=True)
        for run in runs
    }
    keys = sorted({key for config in flat.values() for key in config})
    differing = [k for k in keys if len({repr(config.get(k)) for config in flat.values()}) > 1]
    last = {label: name for label, name in LAST.items() if metric_names(runs, re.escape(name))}
    benchmarks = benchmark_names(runs)
    rows: list[Sequence[str | Cell]] = [
        [
            run.name,
            *(str(flat[run.name].get(key, MISSING)) for key in differing),
            Cell(max(line["step"] for line in run.metrics), None, 0),
            *(Cell(last_value(run, name), None, 3) for name in last.values()),
            *(_aggregate([run], -1, benchmark, ROWS[0]) for benchmark in benchmarks),
        ]
        for run in runs
    ]
    header = ["Run", *differing, "updates", *last, *(f"{name} pass@1 (%)" for name in benchmarks)]
    return Table("configs", "What differs between the runs", header, rows, ERROR)


def last_value(run: RunRecord, name: str) -> float | None:
    """A metric's newest value."""
    return next((line[name] for line in reversed(run.metrics) if name in line), None)


def breakdown_table(groups: Mapping[str, Sequence[RunRecord]]) -> Table:
    """pass@1 by level, language, family: whatever the problems' metadata has."""
    variants = _variants(groups)
    rows: list[Sequence[str | Cell]] = []
    for label, runs in groups.items():
        for benchmark in benchmark_names(runs):
            for metric in _breakdown_metrics(runs, benchmark):
                kind, _, part = metric.partition("/")
                row = Row(metric, metric)
                cells = _result_cells(runs, benchmark, variants, row)
                strictness = "lenient" if kind.startswith("lenient") else "strict"
                rows.append([label, benchmark, part.replace("/", " "), strictness, *cells])
    header = ["Run", "Benchmark", "Part", "pass@1 (%)", *_result_header(groups, variants)]
    table = Table("breakdown", "pass@1 by kind of problem", header, rows)
    return _without_empty(table, variants)


def _breakdown_metrics(runs: Sequence[RunRecord], benchmark: str) -> list[str]:
    found = [e.benchmarks.get(benchmark, {}) for run in runs for e in run.evaluations]
    return list(dict.fromkeys(m for values in found for m in values if "pass@1/" in m))


def models_table(runs: Sequence[RunRecord]) -> Table:
    """pass@1 of every workdir of `evaluate`, a column each."""
    row = ROWS[0]
    names = list(dict.fromkeys(name for run in runs for name in run.evaluations[-1].benchmarks))
    rows: list[Sequence[str | Cell]] = [
        [name, *(last_cell(run, name, row) for run in runs)] for name in names
    ]
    header = ["pass@1 (%)", *(run.label for run in runs)]
    return Table("models", "Models", header, rows, ERROR)


def evaluation_table(run: RunRecord) -> Table:
    """The benchmarks of the newest evaluation, a line each."""
    shown = ("pass@1", "lenient_pass@1", "pass@{k}", "cons@{k}", "format", "length")
    chosen = [row for row in ROWS if row.metric in shown]
    rows: list[Sequence[str | Cell]] = []
    for name, values in run.evaluations[-1].benchmarks.items():
        k = int(values["samples"])
        cells = [last_cell(run, name, with_k(row, k)) for row in chosen]
        rows.append([name, Cell(values["problems"], None, 0), Cell(k, None, 0), *cells])
    labels = [row.label.format(k="k").replace(" strict", "") for row in chosen]
    header = ["Benchmark", "Problems", "k", *labels]
    return Table("benchmarks", f"Results: {run.name}", header, rows, f"{ERROR} {EXPLAINED}")


def mean_of(cells: Sequence[Cell]) -> Cell:
    """Mean and standard deviation of those that have a value, as of seeds; one is itself.

    Where all are the same their first spread stands.
    """
    found = [cell for cell in cells if cell.value is not None]
    values = [cell.value for cell in found if cell.value is not None]
    if not found:
        return Cell(None)
    spread = stdev(values) if len(values) > 1 else 0.0
    return replace(found[0], value=fmean(values), spread=spread or found[0].spread)


def with_k(row: Row, k: int) -> Row:
    return replace(row, label=row.label.format(k=k), metric=row.metric.format(k=k))


def last_cell(run: RunRecord, benchmark: str, row: Row) -> Cell:
    values = run.evaluations[-1].benchmarks.get(benchmark, {})
    numbers = [values.get(name) for name in (row.metric, f"{row.metric}_se")]
    value, error = (None if x is None else x * row.scale for x in numbers)
    return Cell(value, error, row.digits)
