"""Curves over training and how panels of them are drawn.

Lines are means over the runs of a group (seeds of one config). A band is one standard deviation
over them, or, for a single run's benchmark, one standard error over problems.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Lines = Sequence[Mapping[str, Any]]  # those of one metrics.jsonl
Groups = Mapping[str, Sequence[Lines]]  # runs of one config under their common name
Paper = Mapping[str, Any]  # paper.json

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")
# Viridis, its yellow darker.
LEVEL_COLOURS = ("#E6B800", "#7AD151", "#22A884", "#2A788E", "#414487", "#440154")
STEPS = "training step (optimizer updates)"
REWARD_SUMMARIES = ("std", "failures")  # under grpo/reward/, but not rewards
STYLE: dict[Any, Any] = {
    "figure.dpi": 150,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.framealpha": 0.7,
    "legend.edgecolor": "none",
    "legend.fontsize": 8,
}


@dataclass(frozen=True)
class Curve:
    steps: np.ndarray
    mean: np.ndarray
    spread: np.ndarray | None


MOST_PANELS = 3  # side by side


def make_curve(runs: Sequence[Lines], name: str, scale: float = 1.0) -> Curve | None:
    """The mean over the runs at the steps that all of those with this metric have."""
    series = [{line["step"]: line[name] for line in run if name in line} for run in runs]
    series = [values for values in series if values]
    if not series:
        return None
    steps = sorted(set.intersection(*map(set, series)))
    values = scale * np.array([[run[step] for step in steps] for run in series], np.float64)
    spread = None
    if len(series) > 1:
        spread = values.std(axis=0, ddof=1)
    elif not name.endswith("_se"):
        error = make_curve(runs, f"{name}_se", scale)
        if error is not None and len(error.steps) == len(steps):
            spread = error.mean
    return Curve(np.array(steps), values.mean(axis=0), spread)


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred moving mean; at the ends over what there is."""
    ones = np.ones(window)
    total = np.convolve(values, ones, "same")
    return total / np.convolve(np.ones_like(values), ones, "same")


def metrics_like(groups: Groups, pattern: str) -> list[str]:
    """What the pattern's group matches in the metrics' names, in order of appearance."""
    names = dict.fromkeys(n for runs in groups.values() for run in runs for x in run for n in x)
    found = (re.fullmatch(pattern, name) for name in names)
    return list(dict.fromkeys(match[1] for match in found if match))


def draw_curve(ax: Axes, curve: Curve, label: str, colour: str, style: str = "-") -> None:
    marker = "o" if len(curve.steps) <= 40 else ""
    ax.plot(curve.steps, curve.mean, style, color=colour, label=label, marker=marker, markersize=3)
    if curve.spread is not None:
        low, high = curve.mean - curve.spread, curve.mean + curve.spread
        ax.fill_between(curve.steps, low, high, color=colour, alpha=0.15, linewidth=0)


def draw_noisy(ax: Axes, curve: Curve, label: str, colour: str) -> None:
    """A value a training step: faint as measured, strong as its moving mean."""
    window = max(1, len(curve.steps) // 20) | 1
    ax.plot(curve.steps, curve.mean, color=colour, alpha=0.25, linewidth=0.8)
    smoothed = Curve(
        curve.steps,
        smooth(curve.mean, window),
        None if curve.spread is None else smooth(curve.spread, window),
    )
    ax.plot(smoothed.steps, smoothed.mean, color=colour, label=label)
    if smoothed.spread is not None:
        low, high = smoothed.mean - smoothed.spread, smoothed.mean + smoothed.spread
        ax.fill_between(smoothed.steps, low, high, color=colour, alpha=0.15, linewidth=0)


def make_panels(titles: Sequence[str], y_label: str) -> tuple[Figure, list[Axes]]:
    """A panel for each title, at most MOST_PANELS side by side."""
    columns = min(len(titles), MOST_PANELS)
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[len(titles) :]:
        ax.set_axis_off()
    axes = axes[: len(titles)]
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=9)
        ax.set_xlabel(STEPS)
        ax.set_ylabel(y_label)
    return figure, axes


def finish_panels(axes: Sequence[Axes], percent: bool = False) -> None:
    for ax in axes:
        if percent:
            ax.set_ylim(-2, 102)
        elif not any((values < 0).any() for values in _values_on(ax)):
            ax.set_ylim(bottom=0)
            if not any((values > 0).any() for values in _values_on(ax)):
                ax.set_ylim(-0.02, 1.0)  # the line at 0 is seen
        if ax.get_legend_handles_labels()[0]:
            ax.legend()


def legends_below(figure: Figure, axes: Sequence[Axes]) -> None:
    """Below their panels they hide nothing; the figure becomes higher by as much."""
    most = max(len(ax.get_legend_handles_labels()[0]) for ax in axes)
    for ax in axes:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    rows = -(-len(axes) // MOST_PANELS)
    figure.set_figheight(figure.get_figheight() + 0.18 * -(-most // 2) * rows)


def _values_on(ax: Axes) -> list[np.ndarray]:
    return [np.asarray(line.get_ydata(), np.float64) for line in ax.get_lines()]


def colour_of(groups: Groups, group: int, line: int) -> str:
    """One group: a colour a line. Several: a colour a group, and a style a line."""
    return COLOURS[(line if len(groups) == 1 else group) % len(COLOURS)]


def prefix(groups: Groups, label: str) -> str:
    return "" if len(groups) == 1 else f"{label}: "
