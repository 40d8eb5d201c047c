"""The paper's numbers, and its curves beside ours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from r1jax.reports.runs import RunRecord, end_mean, metric_names
from r1jax.reports.table import Cell, Table

PAPER = Path(__file__).parent / "paper.json"


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
        "reflective words",
        "reflective_words",
        "all words",
        "grpo/completion/reflective_words",
        1,
        2,
    ),
    Measure("pass@1 at level 1 (%)", "levels", "level 1", r"eval/[^/]+/pass@1/level/1", 100, 1),
    Measure("pass@1 at level 5 (%)", "levels", "level 5", r"eval/[^/]+/pass@1/level/5", 100, 1),
)


def read_paper() -> dict[str, Any]:
    return json.loads(PAPER.read_text())


def paper_table(groups: Mapping[str, Sequence[RunRecord]]) -> Table:
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
        " the shapes of the curves may be compared, not their heights. The paper counts reflective"
        " words over all completions of an evaluation, here they are per completion; first and last"
        " of our length and reflective words are means over 5 % of the training steps."
    )
    return Table("paper", "The paper's curves and ours", header, rows, note)


def _curve_end(runs: Sequence[RunRecord], name: str, end: int, measure: Measure) -> Cell:
    curves = [[line[name] for line in run.metrics if name in line] for run in runs]
    values = [end_mean(curve, end, name) * measure.scale for curve in curves if curve]
    if not values:
        return Cell(None)
    return Cell(fmean(values), stdev(values) if len(values) > 1 else None, measure.digits)
