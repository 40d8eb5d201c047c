"""A sweep's table and figure: the keys that differ, what came of them, what it cost."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from etils import epath

from r1jax.files import absolute
from r1jax.machines.queue import Entry, Tenure, read_queue
from r1jax.reports.costs import HOUR, chip_hours
from r1jax.reports.results import LAST, ROWS, last_value
from r1jax.reports.runs import RunRecord, benchmark_names, read_if_any
from r1jax.reports.table import MISSING, Cell, Table

NOTE = (
    "Mean ± standard deviation over the seeds that are complete. Chip-hours: of all runs of the"
    " line, as far as they are, from their timings; chips are JAX's devices. What slices wait, and"
    " what was lost, is not in them."
)


@dataclass(frozen=True)
class Arm:
    """Runs that differ in nothing but their seeds."""

    overrides: Mapping[str, Any]
    entries: Sequence[Entry]
    runs: Sequence[RunRecord]  # as many

    @property
    def complete(self) -> list[RunRecord]:
        pairs = zip(self.entries, self.runs, strict=True)
        return [run for entry, run in pairs if entry.state == "complete"]

    @property
    def chip_hours(self) -> float:
        return sum(map(chip_hours, self.runs))


def read_sweep(directory: epath.PathLike) -> list[Arm]:
    """In the order of sweep(). DataError where the directory is no sweep's."""
    root = absolute(directory)
    arms: dict[str, tuple[Mapping[str, Any], list[Entry], list[RunRecord]]] = {}
    for name, entry in read_queue(root).items():
        others = {key: value for key, value in entry.overrides.items() if not _is_seed(key)}
        _, entries, runs = arms.setdefault(json.dumps(others, sort_keys=True), (others, [], []))
        entries.append(entry)
        runs.append(read_if_any(root / name))
    return [Arm(*arm) for arm in arms.values()]


def _is_seed(key: str) -> bool:
    return key.lstrip(":").rpartition(".")[2] == "seed"


def differing_keys(arms: Sequence[Arm]) -> list[str]:
    keys = list(dict.fromkeys(key for arm in arms for key in arm.overrides))
    return [key for key in keys if len({repr(arm.overrides.get(key)) for arm in arms}) > 1]


def outcomes(arms: Sequence[Arm]) -> dict[str, list[Cell]]:
    """What the arms came to, by the names that any of them has: pass@1 first, losses last."""
    found: dict[str, list[Cell]] = {}
    runs = [run for arm in arms for run in arm.complete]
    for benchmark in benchmark_names(runs):
        metric = ROWS[0].metric
        values = [
            [
                100.0 * run.evaluations[-1].benchmarks[benchmark][metric]
                for run in arm.complete
                if run.evaluations and metric in run.evaluations[-1].benchmarks.get(benchmark, {})
            ]
            for arm in arms
        ]
        found[f"{benchmark} pass@1 (%)"] = [_cell(each, 1) for each in values]
    for label, name in LAST.items():
        last = [[last_value(run, name) for run in arm.complete] for arm in arms]
        found[label] = [_cell([x for x in each if x is not None], 4) for each in last]
    return {
        label: cells for label, cells in found.items() if any(c.value is not None for c in cells)
    }


def _cell(values: Sequence[float], digits: int) -> Cell:
    if not values:
        return Cell(None)
    return Cell(fmean(values), stdev(values) if len(values) > 1 else None, digits)


def sweep_table(arms: Sequence[Arm], slices: Mapping[str, Tenure] | None = None) -> Table:
    """A line an arm; what the slices cost that it has had, if any, stands below."""
    keys, columns = differing_keys(arms), outcomes(arms)
    rows: list[Sequence[str | Cell]] = []
    for i, arm in enumerate(arms):
        errors = [entry.error for entry in arm.entries if entry.state == "failed"]
        rows.append(
            [
                *(str(arm.overrides.get(key, MISSING)) for key in keys),
                f"{len(arm.complete)} of {len(arm.runs)}",
                *(cells[i] for cells in columns.values()),
                Cell(arm.chip_hours, None, 2),
                *([errors[0] if errors else ""] if _any_failed(arms) else []),
            ]
        )
    header = [*keys, "complete", *columns, "chip-hours", *(["failed"] if _any_failed(arms) else [])]
    return Table("sweep", "The sweep", header, rows, NOTE + _cost(slices or {}))


def _cost(slices: Mapping[str, Tenure]) -> str:
    hours = sum(one.seconds for one in slices.values()) / HOUR
    said = f" The slices {', '.join(slices)} were there for {hours:.2f} hours in all."
    return said if slices else ""


def _any_failed(arms: Sequence[Arm]) -> bool:
    return any(entry.state == "failed" for arm in arms for entry in arm.entries)


def draw_sweep(arms: Sequence[Arm]) -> bytes | None:
    """The first outcome over the one key that differs, or parallel coordinates of several.

    None where there is no outcome, or no two arms have one.
    """
    from matplotlib.figure import Figure

    keys = differing_keys(arms)
    label, cells = next(iter(outcomes(arms).items()), ("", []))
    known = [(arm, cell) for arm, cell in zip(arms, cells, strict=False) if cell.value is not None]
    if not keys or len(known) < 2:
        return None
    figure = Figure(figsize=(max(4.5, 1.6 * len(keys) + 2), 3.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    values = [[arm.overrides.get(key) for arm, _ in known] for key in keys]
    heights = [float(cell.value or 0.0) for _, cell in known]
    if len(keys) == 1:
        spread = [cell.spread or 0.0 for _, cell in known]
        places, names, is_log = _places(values[0])
        order = sorted(range(len(known)), key=lambda i: places[i])
        points = [[sequence[i] for i in order] for sequence in (places, heights, spread)]
        axes.errorbar(points[0], points[1], yerr=points[2], marker="o", capsize=3)
        axes.set(xlabel=keys[0], ylabel=label)
        if is_log:
            axes.set_xscale("log")
        elif names:
            axes.set_xticks(range(len(names)), names)
    else:
        _parallel(axes, [*keys, label], [*values, heights])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _places(values: Sequence[Any]) -> tuple[list[float], list[str], bool]:
    """Where values stand on an axis; their names where they are no numbers; whether it is
    logarithmic."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        numbers = [float(value) for value in values]
        return numbers, [], min(numbers) > 0 and max(numbers) >= 30 * min(numbers)
    names = list(dict.fromkeys(map(str, values)))
    return [float(names.index(str(value))) for value in values], names, False


def _parallel(axes: Any, labels: Sequence[str], columns: Sequence[Sequence[Any]]) -> None:
    """An axis a column, a line an arm, coloured by the last column."""
    import matplotlib
    import numpy as np

    scaled = []
    for x, column in enumerate(columns):
        places, names, is_log = _places(column)
        at = np.log(places) if is_log else np.asarray(places)
        low, high = float(at.min()), float(at.max())
        unit = (at - low) / (high - low) if high > low else np.full(len(at), 0.5)
        scaled.append(unit)
        said = [str(v) for v in column] if names else [f"{p:.3g}" for p in places]
        marks = dict(zip(unit.tolist(), said, strict=True))
        if x == len(columns) - 1:  # of outcomes the least and the most
            marks = {y: marks[y] for y in (min(marks), max(marks))}
        for y, text in marks.items():
            axes.annotate(text, (x, y), (4, 0), textcoords="offset points", fontsize=7, va="center")
        axes.axvline(x, color="0.8", linewidth=1, zorder=0)
    colours = matplotlib.colormaps["viridis_r"]
    for i in range(len(scaled[0])):
        axes.plot([unit[i] for unit in scaled], color=colours(scaled[-1][i]), alpha=0.9)
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    axes.set_yticks([])
    axes.set_xlim(-0.2, len(labels) - 0.6)
    for side in ("left", "right", "top", "bottom"):
        axes.spines[side].set_visible(False)
