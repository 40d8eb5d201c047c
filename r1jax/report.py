"""Tables and figures of finished or running workdirs, from their files alone.

Reads config.json, metrics.jsonl, evaluations/STEP/results.json (of training) and results.json (of
`evaluate`); the paper's numbers come from paper.json. What was not measured is "-", never guessed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from etils import epath

from r1jax.html_report import html_page
from r1jax.metrics import absolute, write_atomic
from r1jax.run_files import FORCED, Run, benchmark_names, group_runs, read_run
from r1jax.samples import questions_of_models, questions_of_training, samples_page
from r1jax.table import (
    MISSING,
    Cell,
    Table,
    print_rich,
    text_of,
    to_csv,
    to_latex,
    to_markdown,
)

PAPER = Path(__file__).parent / "paper.json"


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
    Row("checking words", "reflective_words", 1.0, 2),
)
ERROR = "± is the standard error over problems."
EXPLAINED = (
    "Strict: the answer in its tags; lenient: the last answer anywhere. Length and checking words:"
    " mean per completion."
)
FORCED_NOTE = "Forced: the base made to begin with step-by-step work."


def results_table(groups: Mapping[str, Sequence[Run]]) -> Table:
    """Per benchmark and metric: base, the base forced into step-by-step work, after, change."""
    rows: list[Sequence[str | Cell]] = []
    for label, runs in groups.items():
        for benchmark in benchmark_names(runs):
            for row in _rows_for(runs, benchmark):
                cells = _result_cells(runs, benchmark, row)
                if any(cell.value is not None for cell in cells):
                    rows.append([label, benchmark, row.label, *cells])
    header = ["Run", "Benchmark", "Metric", *_result_header(groups)]
    title = f"Before and after: {', '.join(groups)}"
    return _without_empty(Table("results", title, header, rows, _note(groups)))


def _result_header(groups: Mapping[str, Sequence[Run]]) -> list[str]:
    configs = [run.config for runs in groups.values() for run in runs]
    zero = all(str(config.get("template", "")).startswith("r1_zero") for config in configs)
    return ["Base", "Forced", "R1-Zero" if zero else "After RL", "Change"]


def _without_empty(table: Table) -> Table:
    """Without the name of the run if there is only one, and the forced base if there is none."""
    runs = {row[0] for row in table.rows}
    forced = table.header.index("Forced")
    has_forced = any(text_of(row[forced]) != MISSING for row in table.rows)
    keep = [i for i in range(len(table.header)) if (i > 0 or len(runs) > 1)]
    keep = [i for i in keep if i != forced or has_forced]
    rows = [[row[i] for i in keep] for row in table.rows]
    return replace(table, header=[table.header[i] for i in keep], rows=rows)


def _note(groups: Mapping[str, Sequence[Run]]) -> str:
    if any(len(runs) > 1 for runs in groups.values()):
        counts = ", ".join(f"{label}: {len(runs)}" for label, runs in groups.items())
        return f"Mean ± standard deviation over seeds ({counts}). {EXPLAINED} {FORCED_NOTE}"
    return f"{ERROR} {EXPLAINED} {FORCED_NOTE}"


def _rows_for(runs: Sequence[Run], benchmark: str) -> list[Row]:
    """ROWS with k in its place; without the rows of k where k is 1."""
    found = [e.benchmarks.get(benchmark, {}) for run in runs for e in run.evaluations]
    k = int(max((values.get("samples", 1) for values in found), default=1))
    return [with_k(row, k) for row in ROWS if k > 1 or "{k}" not in row.metric]


def _result_cells(runs: Sequence[Run], benchmark: str, row: Row) -> list[Cell]:
    before = [_value(run, 0, benchmark, row.metric) for run in runs]
    after = [_value(run, -1, benchmark, row.metric) for run in runs]
    pairs = zip(before, after, strict=True)
    change = [y - x for x, y in pairs if x is not None and y is not None]
    return [
        _aggregate(runs, 0, benchmark, row),
        _aggregate(runs, 0, benchmark + FORCED, row),
        _aggregate(runs, -1, benchmark, row),
        _mean_cell(change, row),
    ]


def _aggregate(runs: Sequence[Run], which: int, benchmark: str, row: Row) -> Cell:
    """One run: its value and standard error; several: mean and standard deviation over them."""
    values = [_value(run, which, benchmark, row.metric) for run in runs]
    cell = _mean_cell([value for value in values if value is not None], row)
    if len(runs) > 1:
        return cell
    error = _value(runs[0], which, benchmark, f"{row.metric}_se")
    return replace(cell, spread=None if error is None else error * row.scale)


def _mean_cell(values: Sequence[float], row: Row) -> Cell:
    scaled = [value * row.scale for value in values]
    spread = stdev(scaled) if len(scaled) > 1 else None
    return Cell(fmean(scaled) if scaled else None, spread, row.digits)


def _value(run: Run, which: int, benchmark: str, metric: str) -> float | None:
    """Of the evaluation at step 0 (which = 0), or of the last one after it (which = -1)."""
    chosen = [e for e in run.evaluations if (e.step == 0) == (which == 0)]
    return chosen[which].benchmarks.get(benchmark, {}).get(metric) if chosen else None


def groups_table(
    title: str, groups: Mapping[str, Sequence[Run]], benchmark: str, shown: Sequence[Row]
) -> Table:
    """A line a group: its last results on one benchmark, mean and standard deviation over runs."""
    rows: list[Sequence[str | Cell]] = [
        [label, Cell(len(runs), None, 0), *(_aggregate(runs, -1, benchmark, row) for row in shown)]
        for label, runs in groups.items()
    ]
    header = ["Run", "Seeds", *(row.label for row in shown)]
    return Table("groups", title, header, rows)


def seeds_table(groups: Mapping[str, Sequence[Run]]) -> Table:
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


def breakdown_table(groups: Mapping[str, Sequence[Run]]) -> Table:
    """pass@1 by level, language, family: whatever the problems' metadata has."""
    rows: list[Sequence[str | Cell]] = []
    for label, runs in groups.items():
        for benchmark in benchmark_names(runs):
            for metric in _breakdown_metrics(runs, benchmark):
                kind, _, part = metric.partition("/")
                row = Row(metric, metric)
                cells = _result_cells(runs, benchmark, row)
                strictness = "lenient" if kind.startswith("lenient") else "strict"
                rows.append([label, benchmark, part.replace("/", " "), strictness, *cells])
    header = ["Run", "Benchmark", "Part", "pass@1 (%)", *_result_header(groups)]
    return _without_empty(Table("breakdown", "pass@1 by kind of problem", header, rows))


def _breakdown_metrics(runs: Sequence[Run], benchmark: str) -> list[str]:
    found = [e.benchmarks.get(benchmark, {}) for run in runs for e in run.evaluations]
    return list(dict.fromkeys(m for values in found for m in values if "pass@1/" in m))


def models_table(runs: Sequence[Run]) -> Table:
    """pass@1 of every workdir of `evaluate`, a column each."""
    row = ROWS[0]
    names = list(dict.fromkeys(name for run in runs for name in run.evaluations[-1].benchmarks))
    rows: list[Sequence[str | Cell]] = [
        [name, *(last_cell(run, name, row) for run in runs)] for name in names
    ]
    header = ["pass@1 (%)", *(run.label for run in runs)]
    return Table("models", "Models", header, rows, ERROR)


def evaluation_table(run: Run) -> Table:
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


def with_k(row: Row, k: int) -> Row:
    return replace(row, label=row.label.format(k=k), metric=row.metric.format(k=k))


def last_cell(run: Run, benchmark: str, row: Row) -> Cell:
    values = run.evaluations[-1].benchmarks.get(benchmark, {})
    numbers = [values.get(name) for name in (row.metric, f"{row.metric}_se")]
    value, error = (None if x is None else x * row.scale for x in numbers)
    return Cell(value, error, row.digits)


# ---- the paper's curves and ours ----


@dataclass(frozen=True)
class Measure:
    """A curve of the paper and the metric of ours that stands beside it."""

    label: str
    paper: str  # a key of paper.json
    series: str
    metric: str  # a regular expression that finds the metric's name
    scale: float
    digits: int


MEASURES = (
    Measure("held-out pass@1 (%)", "accuracy", "pass@1", r"eval/[^/]+/pass@1", 100, 1),
    Measure("held-out cons@16 (%)", "accuracy", "cons@16", r"eval/[^/]+/cons@16", 100, 1),
    Measure("mean length in training (tokens)", "length", "length", "grpo/completion/length", 1, 1),
    Measure(
        "checking words", "reflective_words", "all words", "grpo/completion/reflective_words", 1, 2
    ),
    Measure("pass@1 at level 1 (%)", "levels", "level 1", r"eval/[^/]+/pass@1/level/1", 100, 1),
    Measure("pass@1 at level 5 (%)", "levels", "level 5", r"eval/[^/]+/pass@1/level/5", 100, 1),
)


def read_paper() -> dict[str, Any]:
    return json.loads(PAPER.read_text())


def paper_table(groups: Mapping[str, Sequence[Run]]) -> Table:
    """First and last point of the paper's curves and of ours."""
    paper = read_paper()
    rows: list[Sequence[str | Cell]] = []
    for label, runs in groups.items():
        for measure in MEASURES:
            figure = paper[measure.paper]
            points = figure["series"][measure.series]
            theirs = [
                Cell(y * measure.scale, None, measure.digits) for _, y in (points[0], points[-1])
            ]
            for name in metric_names(runs, measure.metric) or [""]:
                where = f" ({name.split('/')[1]})" if name.startswith("eval/") else ""
                ours = [_curve_end(runs, name, end, measure) for end in (0, -1)]
                rows.append([label, measure.label + where, figure["printed_in"], *theirs, *ours])
    header = ["Run", "Measure", "Paper", "paper, first", "paper, last", "here, first", "here, last"]
    note = (
        f"Source of the paper's numbers: {paper['source']['paper']}. Other models, other problems:"
        " the shapes of the curves may be compared, not their heights. The paper counts checking"
        " words over all completions of an evaluation, here they are per completion; first and last"
        " of our length and checking words are means over 5 % of the training steps."
    )
    return Table("paper", "The paper's curves and ours", header, rows, note)


def metric_names(runs: Sequence[Run], pattern: str) -> list[str]:
    """Names in the runs' metrics that match the whole pattern."""
    names = dict.fromkeys(name for run in runs for line in run.metrics for name in line)
    return [name for name in names if re.fullmatch(pattern, name)]


def _curve_end(runs: Sequence[Run], name: str, end: int, measure: Measure) -> Cell:
    curves = [[line[name] for line in run.metrics if name in line] for run in runs]
    values = [end_mean(curve, end, name) * measure.scale for curve in curves if curve]
    if not values:
        return Cell(None)
    return Cell(fmean(values), stdev(values) if len(values) > 1 else None, measure.digits)


def end_mean(curve: Sequence[float], end: int, name: str) -> float:
    """Of a held-out curve its first or last point, of a training curve its first or last 5 %."""
    window = max(1, len(curve) // 20) if name.startswith("grpo/") else 1
    return fmean(curve[:window] if end == 0 else curve[-window:])


# ---- everything ----


def make_tables(runs: Sequence[Run]) -> list[Table]:
    """The tables that these runs have something to say in."""
    training = [run for run in runs if run.metrics]
    evaluated = [run for run in runs if not run.metrics]
    groups = group_runs(training)
    tables = []
    if training:
        tables += [results_table(groups), breakdown_table(groups)]
        if any(len(members) > 1 for members in groups.values()):
            tables.append(seeds_table(groups))
        if any(metric_names(members, "(grpo|eval)/.*") for members in groups.values()):
            tables.append(paper_table(groups))
    if evaluated:
        tables.append(models_table(evaluated))
        names = Counter(run.name for run in evaluated)
        for run in evaluated:
            name = run.name if names[run.name] == 1 else f"{run.workdir.parent.name}-{run.name}"
            tables.append(replace(evaluation_table(run), name=f"benchmarks_{name}"))
    return [table for table in tables if table.rows]


def write_report(workdirs: Sequence[epath.PathLike], output: epath.PathLike) -> list[str]:
    """Writes OUTPUT/tables/*.{md,csv,tex}, figures/*.png, samples.md, report.md and report.html.

    Returns the paths written. Raises DataError for a workdir without measurements.
    """
    from r1jax.figures import draw_figures  # matplotlib takes a second to import

    runs = [read_run(workdir) for workdir in workdirs]
    target = absolute(output)
    files: dict[str, bytes] = {}
    tables = make_tables(runs)
    for table in tables:
        for suffix, render in (("md", to_markdown), ("csv", to_csv), ("tex", to_latex)):
            files[f"tables/{table.name}.{suffix}"] = render(table).encode()
    groups = group_runs([run for run in runs if run.metrics])
    curves = {label: [run.metrics for run in members] for label, members in groups.items()}
    figures = draw_figures(curves, read_paper())
    files |= {f"figures/{name}.png": image for name, image in figures.items()}
    samples = "\n".join(filter(None, map(samples_page, runs)))
    if samples:
        files["samples.md"] = samples.encode("utf-8", "replace")
    if files:
        files["report.md"] = _report_page(runs, tables, list(figures), bool(samples)).encode()
        questions = questions_of_models([run for run in runs if run.evaluations])
        questions += [q for run in runs for q in questions_of_training(run)]
        title = ", ".join(run.name for run in runs)
        files["report.html"] = html_page(title, tables, figures, questions).encode(
            "utf-8", "replace"
        )
    for name, content in files.items():
        write_atomic(target / name, content)
    return [str(target / name) for name in files]


def _report_page(
    runs: Sequence[Run], tables: Sequence[Table], figures: Sequence[str], samples: bool
) -> str:
    parts = [f"# {', '.join(run.name for run in runs)}\n", *map(to_markdown, tables)]
    parts += [f"![{name}](figures/{name}.png)\n" for name in figures]
    if samples:
        parts.append("Completions to read: [samples.md](samples.md)\n")
    return "\n".join(parts)


def print_table(workdir: epath.PathLike) -> None:
    """Prints a training run's table of results, if it has any."""
    run = read_run(workdir)
    table = results_table({run.name: [run]})
    if table.rows:
        print_rich(table)


def print_evaluation(workdir: epath.PathLike) -> None:
    """Prints the results of a workdir of `evaluate`, a line per benchmark."""
    print_rich(evaluation_table(read_run(workdir)))
