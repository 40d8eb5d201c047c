"""The paper's tables with models of ours beside the paper's, and how far they are from one of it.

A table of paper.json has rows and says whether its models are the rows or the columns, which of
them ours are compared with ("beside"), how many digits it prints, and what is to be known ("note").
What stands in it of ours comes from the newest results.json of a run, which says of a benchmark
what the paper calls it ("kinds": see KIND_KEYS).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from r1jax.config import ConfigError
from r1jax.reports.costs import chip_hours
from r1jax.reports.paper import read_paper
from r1jax.reports.results import mean_of
from r1jax.reports.runs import Evaluation, RunRecord, common_name, group_runs
from r1jax.reports.table import Cell, Table

Models = Mapping[str, Sequence[RunRecord]]  # evaluations of one model by its name
Column = dict[str, Cell]  # of one model, by the paper's names of benchmarks
FEWER = "*"  # the mark of a score on other problems than those published
ERROR, SEEDS = "the standard error over problems", "the standard deviation over"


@dataclass(frozen=True)
class Choice:
    """What is asked of the paper's tables and figures."""

    beside: str | None = None  # the paper's model that ours are compared with, where a table has it
    everything: bool = False  # those without a number of ours, too
    hours: bool = False  # that of cost, whose numbers of ours are other ones each time


STANDARD = Choice()


@dataclass(frozen=True)
class Source:
    """Where a number of the paper's tables is in results, if not in a benchmark of that title."""

    title: str
    metric: str  # {k} = samples a problem; in lower case
    scale: float = 100.0


SOURCES = {
    "AIME 2024 cons@64": Source("AIME 2024", "cons@{k}"),
    "Codeforces rating": Source("Codeforces", "rating", 1.0),
    "Codeforces pct": Source("Codeforces", "percentile", 1.0),
} | {
    f"LiveCodeBench {level}": Source("LiveCodeBench", f"pass@1/difficulty/{level}")
    for level in ("easy", "medium", "hard")
}


@dataclass(frozen=True)
class Ours:
    """A model of ours in one table, and what is to be said of which labels."""

    name: str
    header: str
    column: Column
    remarks: Mapping[str, Sequence[str]]

    @property
    def is_there(self) -> bool:
        return any(cell.value is not None for cell in self.column.values())


def paper_tables(
    models: Models, choice: Choice = STANDARD, always: Sequence[str] = ()
) -> list[Table]:
    """Those in which these models have a number, and those with the keys `always`; or all.

    Raises ConfigError for an unknown `beside`.
    """
    printed = {key: table for key, table in read_paper().items() if "models" in table}
    known = list(dict.fromkeys(name for table in printed.values() for name in _papers(table)))
    if choice.beside is not None and choice.beside not in known:
        raise ConfigError(
            f"--beside: {choice.beside!r} is no model of the paper's tables, which have"
            f" {', '.join(known)}"
        )
    tables = []
    for key, table in printed.items():
        ours = [_ours(name, runs, _papers(table), name in known) for name, runs in models.items()]
        ours = [one for one in ours if one.is_there]
        if ours or choice.everything or key in always:
            tables.append(_table(key, table, ours, choice))
    return tables


def _papers(printed: Mapping[str, Any]) -> dict[str, Column]:
    """The paper's own numbers by model."""
    rows, columns = printed["rows"], printed["columns"]
    in_rows = printed["models"] == "rows"
    names, labels = (list(rows), columns) if in_rows else (columns, list(rows))
    found: dict[str, Column] = {name: {} for name in names}
    for i, label in enumerate(labels):
        values = [rows[n][i] for n in rows] if in_rows else rows[label]
        whole = all(value is None or isinstance(value, int) for value in values)
        digits = 0 if whole else printed.get("digits", 1)
        for name, value in zip(names, values, strict=True):
            found[name][label] = Cell(value, None, digits)
    return found


def _table(key: str, printed: Mapping[str, Any], ours: Sequence[Ours], choice: Choice) -> Table:
    paper = _papers(printed)
    grid = dict(paper)
    for one in ours:
        names = (choice.beside, one.name, printed["beside"])
        other = next(name for name in names if name is not None and name in paper)
        grid[one.header] = one.column
        grid[f"{one.header} minus {other}"] = {
            label: _minus(cell, paper[other][label]) for label, cell in one.column.items()
        }
    rows: list[Sequence[str | Cell]]
    if printed["models"] == "rows":
        header_row = ["Model", *next(iter(paper.values()))]
        rows = [[name, *column.values()] for name, column in grid.items()]
    else:
        header_row = ["Benchmark", *grid]
        labels = next(iter(paper.values()))
        rows = [[label, *(column[label] for column in grid.values())] for label in labels]
    note = " ".join([_source(printed), *_remarks(ours)])
    return Table(f"paper_{key}", _title(printed), header_row, rows, note)


def _title(printed: Mapping[str, Any]) -> str:
    return f"{printed['title']} (the paper's {printed['printed_in']})"


def _source(printed: Mapping[str, Any]) -> str:
    parts = [f"Source: {read_paper()['source']['paper']}.", printed.get("note", "")]
    return " ".join(filter(None, parts))


def _remarks(ours: Sequence[Ours]) -> list[str]:
    """Each once, behind whom it is said of."""
    found: dict[str, list[str]] = {}
    for one in ours:
        for text, labels in one.remarks.items():
            every = len(labels) == sum(cell.value is not None for cell in one.column.values())
            where = one.header if every else f"{', '.join(labels)} of {one.header}"
            found.setdefault(text, []).append(where)
    return [f"{'; '.join(where)}: {text}." for text, where in found.items()]


def _ours(
    name: str, runs: Sequence[RunRecord], paper: Mapping[str, Column], is_papers: bool
) -> Ours:
    """What a model of ours has under the labels of one of the paper's tables; `is_papers` says
    that the paper has a model of that name."""
    column: Column = {}
    remarks: dict[str, list[str]] = {}
    for label, theirs in next(iter(paper.values())).items():
        found = [_found(run.evaluations[-1], label, theirs.digits) for run in runs]
        cells = [one for one in found if one is not None]
        column[label] = mean_of([cell for cell, _ in cells])
        said = [text for _, texts in cells for text in texts]
        if any(text.startswith(FEWER) for text in said):
            column[label] = replace(column[label], mark=FEWER)
        if column[label].spread is not None:
            said.append(f"± is {f'{SEEDS} {len(cells)} seeds' if len(cells) > 1 else ERROR}")
        for text in dict.fromkeys(said):
            remarks.setdefault(text, []).append(label)
    return Ours(name, f"{name} (ours)" if is_papers else name, column, remarks)


def _found(evaluation: Evaluation, label: str, digits: int) -> tuple[Cell, list[str]] | None:
    """The number of an evaluation under a label, and what is to be said of it."""
    benchmark = _benchmark(evaluation, label)
    cell = _cell(evaluation, benchmark, label, digits) if benchmark else Cell(None)
    if benchmark is None or cell.value is None:
        return None
    kind, values = evaluation.kinds[benchmark], evaluation.benchmarks[benchmark]
    said = []
    if values["samples"] != kind["num_samples"]:
        said.append(f"k = {values['samples']:.0f}, the paper: {kind['num_samples']}")
    if values["problems"] != kind["problems"]:
        said.append(f"{FEWER} {values['problems']:,.0f} problems, published: {kind['problems']:,}")
    return cell, said


def _benchmark(evaluation: Evaluation, label: str) -> str | None:
    """The first benchmark of the title that the label's numbers are of."""
    title = _title_of(label)
    names = (n for n, kind in evaluation.kinds.items() if _title_of(kind["title"]) == title)
    return next((name for name in names if name in evaluation.benchmarks), None)


def _title_of(label: str) -> str:
    return SOURCES[label].title if label in SOURCES else label


def _cell(evaluation: Evaluation, benchmark: str, label: str, digits: int) -> Cell:
    kind = evaluation.kinds[benchmark]
    source = SOURCES.get(label, Source(label, kind["metric"], kind["scale"]))
    values = {metric.lower(): v for metric, v in evaluation.benchmarks[benchmark].items()}
    metric = source.metric.lower().format(k=int(values["samples"]))
    value, error = (values.get(name) for name in (metric, f"{metric}_se"))
    if value is None:
        return Cell(None)
    return Cell(value * source.scale, None if error is None else error * source.scale, digits)


def _minus(ours: Cell, paper: Cell) -> Cell:
    if ours.value is None or paper.value is None:
        return Cell(None)
    return replace(ours, value=ours.value - paper.value)


# ---- which evaluations are of one model ----


def models_of(runs: Sequence[RunRecord]) -> Models:
    """The evaluated runs by model; a run of training is the model that it ends with.

    Evaluations are of one model that have one label, or without one the same MODEL at the same
    step, unless both are of the same seed, or asked a benchmark differently: then they are two.
    """
    evaluated = [run for run in runs if run.evaluations]
    trained = group_runs([run for run in evaluated if run.metrics])
    found: list[tuple[str, list[RunRecord]]] = list(trained.items())
    groups: dict[str, list[list[RunRecord]]] = {}
    for run in (run for run in evaluated if not run.metrics):
        others = groups.setdefault(_identity(run), [])
        fitting = (group for group in others if all(_go_together(run, one) for one in group))
        group = next(fitting, None)
        if group is None:
            others.append([run])
        else:
            group.append(run)
    for group in (group for others in groups.values() for group in others):
        label = group[-1].evaluations[-1].label
        found.append((label or common_name(group), group))
    return dict(zip(_told_apart(found), [group for _, group in found], strict=True))


def _identity(run: RunRecord) -> str:
    newest = run.evaluations[-1]
    if newest.label or not newest.model:
        return f"label {newest.label or run.workdir}"
    return json.dumps([newest.model, newest.step])


def _go_together(run: RunRecord, other: RunRecord) -> bool:
    one, two = run.evaluations[-1], other.evaluations[-1]
    both = set(one.benchmarks) & set(two.benchmarks)
    if both and (one.model, one.step, one.seed) == (two.model, two.step, two.seed):
        return False
    return all(
        one.benchmarks[name][key] == two.benchmarks[name][key]
        for name in both
        for key in ("problems", "samples")
    )


def _told_apart(groups: Sequence[tuple[str, Sequence[RunRecord]]]) -> list[str]:
    """The names, those of several groups with their workdirs' or a number behind them."""
    names = [name for name, _ in groups]
    for parts in (0, 1, 2):
        added = ["/".join(runs[0].workdir.parts[-parts:] if parts else ()) for _, runs in groups]
        found = [
            f"{name} ({more})" if more and more != name and names.count(name) > 1 else name
            for name, more in zip(names, added, strict=True)
        ]
        if len(set(found)) == len(found):
            return found
    return [f"{n} ({i})" if names.count(n) > 1 else n for i, n in enumerate(names, start=1)]


# ---- cost ----


def paper_cost(runs: Sequence[RunRecord], choice: Choice = STANDARD) -> list[Table]:
    """The paper's hours and dollars, and the chip-hours of ours, a line a run or stage; [] where
    they are not asked for, so that a run's own report is the same whenever it is run again."""
    printed = read_paper()["cost"]
    ours = [(run.name, chip_hours(run)) for run in runs]
    shown = [(name, hours) for name, hours in ours if hours > 0]
    if not choice.everything and not (shown and choice.hours):
        return []
    rows: list[Sequence[str | Cell]] = [
        [name, *(Cell(value, None, 0) for value in values), Cell(None)]
        for name, values in printed["rows"].items()
    ]
    absent = [Cell(None)] * len(printed["columns"])
    rows += [[f"{name} (ours)", *absent, Cell(hours, None, 2)] for name, hours in shown]
    if len(shown) > 1:
        rows.append(["total (ours)", *absent, Cell(sum(hours for _, hours in shown), None, 2)])
    header = ["Model", *printed["columns"], "chip-hours"]
    note = f"{_source(printed)} Chip-hours: the runs' timings times JAX's devices."
    return [Table("paper_cost", _title(printed), header, rows, note)]
