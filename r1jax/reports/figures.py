"""The figures of a run beside the paper's: accuracy, length, words, rewards, levels, health.

Lines are means over the runs of a group (seeds of one config). A band is one standard deviation
over them, or, for a single run's benchmark, one standard error over problems.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
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
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@dataclass(frozen=True)
class Curve:
    steps: np.ndarray
    mean: np.ndarray
    spread: np.ndarray | None


MOST_PANELS = 3  # side by side
HEALTH = {  # of the policy, over training
    "Entropy of a token": "grpo/policy/entropy",
    "KL to the reference": "grpo/kl/ref",
    "Share of clipped tokens": "grpo/ratio/clip_fraction",
    "Norm of the gradient": "grpo/optimizer/grad_norm",
    "Groups without variance": "grpo/group/zero_variance",
    "Sampler against trainer: largest gap": "grpo/drift/logprob_abs_max",
}
ARCHITECTURE = {  # of what only some models have, over training
    "Busiest expert's load over the mean": "router/load_max",
    "Experts without a token (share)": "router/unused_share",
    "Experts that the update would not take (share)": "router/disagreement",
    "Drafts that were right (share)": "rollout/acceptance_rate",
}
LOSSES = {"sft/loss": "training", "reward_model/loss": "training", "eval/held_out/nll": "held out"}


def draw_figures(groups: Groups, paper: Paper) -> dict[str, bytes]:
    """{name: PNG} of the figures for which these runs have measurements."""
    drawings = {
        "accuracy": accuracy_figure,
        "length": length_figure,
        "reflective_words": reflective_words_figure,
        "rewards": rewards_figure,
        "levels": levels_figure,
        "health": health_figure,
        "architecture": architecture_figure,
        "loss": loss_figure,
        "summary": summary_figure,
    }
    figures = {}
    with matplotlib.rc_context(STYLE):
        for name, draw in drawings.items():
            figure = draw(groups, paper)
            if figure is not None:
                figures[name] = _png(figure)
    return figures


def draw_pipeline(stages: Mapping[str, Mapping[str, Any]]) -> bytes:
    """PNG of what came from what; `stages` is that of pipeline.json. Evaluations are left out."""
    shown = {name: stage for name, stage in stages.items() if stage["stage"] != "evaluate"}
    places = _places({name: [o for o in s["reads"] if o in shown] for name, s in shown.items()})
    width = 1 + max((x for x, _ in places.values()), default=0)
    height = 1 + max((y for _, y in places.values()), default=0)
    figure = Figure(figsize=(1.5 * width + 0.4, 0.9 * height + 0.4), layout="constrained", dpi=150)
    ax = figure.subplots()
    kinds = sorted({stage["stage"] for stage in shown.values()})
    boxes = {}
    for name, stage in shown.items():
        x, y = places[name]
        colour = COLOURS[kinds.index(stage["stage"]) % len(COLOURS)]
        box = {"boxstyle": "round,pad=0.4", "fc": "white", "ec": colour, "lw": 1.5}
        box["ls"] = "-" if stage["complete"] else "--"
        text = f"{name}\n{stage['stage'].replace('_', ' ')}"
        if stage.get("model"):
            text += "\n" + textwrap.fill(f"of {stage['model'].rstrip('/').rpartition('/')[2]}", 18)
        placed = ax.text(x, -y, text, ha="center", va="center", fontsize=8, color=colour, bbox=box)
        boxes[name] = placed.get_bbox_patch()
    for name, stage in shown.items():
        for other in stage["reads"]:
            if other in places:
                arrow = {"arrowstyle": "->", "color": "#555555", "shrinkA": 2, "shrinkB": 2}
                arrow |= {"patchA": boxes[other], "patchB": boxes[name]}
                (x, y), (start, down) = places[name], places[other]
                ax.annotate("", (x, -y), xytext=(start, -down), arrowprops=arrow)
    ax.set_xlim(-0.6, width - 0.4)
    ax.set_ylim(0.5 - height, 0.5)
    ax.axis("off")
    return _png(figure)


def _places(reads: Mapping[str, Sequence[str]]) -> dict[str, tuple[int, int]]:
    """(column, row) of each stage: right of all that it reads, and close before who reads it.

    `reads` is in an order in which everything comes after what it reads. The longest chain has
    row 0; the others follow below, where there is room.
    """
    columns: dict[str, int] = {}
    for name, others in reads.items():
        columns[name] = max((columns[other] + 1 for other in others), default=0)
    for name in reversed(list(reads)):
        readers = [columns[other] for other, others in reads.items() if name in others]
        columns[name] = min(readers, default=columns[name] + 1) - 1
    chain = [max(columns, key=lambda name: columns[name])] if columns else []
    while reads and reads[chain[-1]]:
        chain.append(max(reads[chain[-1]], key=lambda name: columns[name]))
    places: dict[str, tuple[int, int]] = {}
    for name in [*chain, *(n for n in reads if n not in chain)]:
        taken = {row for column, row in places.values() if column == columns[name]}
        first = 0 if name in chain else 1
        row = next(row for row in range(first, len(reads) + 1) if row not in taken)
        places[name] = (columns[name], row)
    return places


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


# ---- curves ----


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


def _names(groups: Groups, pattern: str) -> list[str]:
    """What the pattern's group matches in the metrics' names, in order of appearance."""
    names = dict.fromkeys(n for runs in groups.values() for run in runs for x in run for n in x)
    found = (re.fullmatch(pattern, name) for name in names)
    return list(dict.fromkeys(match[1] for match in found if match))


def _draw(ax: Axes, curve: Curve, label: str, colour: str, style: str = "-") -> None:
    marker = "o" if len(curve.steps) <= 40 else ""
    ax.plot(curve.steps, curve.mean, style, color=colour, label=label, marker=marker, markersize=3)
    if curve.spread is not None:
        low, high = curve.mean - curve.spread, curve.mean + curve.spread
        ax.fill_between(curve.steps, low, high, color=colour, alpha=0.15, linewidth=0)


def _draw_noisy(ax: Axes, curve: Curve, label: str, colour: str) -> None:
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


def _panels(titles: Sequence[str], y_label: str) -> tuple[Figure, list[Axes]]:
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


def _finish(axes: Sequence[Axes], percent: bool = False) -> None:
    for ax in axes:
        if percent:
            ax.set_ylim(-2, 102)
        elif not any((values < 0).any() for values in _values_on(ax)):
            ax.set_ylim(bottom=0)
            if not any((values > 0).any() for values in _values_on(ax)):
                ax.set_ylim(-0.02, 1.0)  # the line at 0 is seen
        if ax.get_legend_handles_labels()[0]:
            ax.legend()


def _values_on(ax: Axes) -> list[np.ndarray]:
    return [np.asarray(line.get_ydata(), np.float64) for line in ax.get_lines()]


def _paper_panel(ax: Axes, figure: Mapping[str, Any], y_label: str, scale: float = 1.0) -> None:
    ax.set_title(f"Paper, {figure['printed_in']}:\n{figure['title']}", fontsize=9)
    ax.set_xlabel(STEPS)
    ax.set_ylabel(y_label)
    many = len(figure["series"]) > 3
    for i, (name, points) in enumerate(figure["series"].items()):
        steps, values = np.array(points, np.float64).T
        colour = LEVEL_COLOURS[i] if many else COLOURS[i]
        style = "-" if many else STYLES[i]
        ax.plot(steps, values * scale, style, color=colour, label=name, marker="o", markersize=2)
    for name, value in figure.get("lines", {}).items():
        ax.axhline(value * scale, color="grey", linestyle="-.", linewidth=0.8, label=name)


def _colour(groups: Groups, group: int, line: int) -> str:
    """One group: a colour a line. Several: a colour a group, and a style a line."""
    return COLOURS[(line if len(groups) == 1 else group) % len(COLOURS)]


def _prefix(groups: Groups, label: str) -> str:
    return "" if len(groups) == 1 else f"{label}: "


# ---- the figures ----


def accuracy_figure(groups: Groups, paper: Paper) -> Figure | None:
    """Held-out pass@1 and cons@k over training, beside Fig 1a."""
    names = _names(groups, r"eval/([^/]+)/pass@1")
    if not names:
        return None
    figure, axes = _panels([f"Held-out accuracy: {n}" for n in names] + [""], "accuracy (%)")
    for ax, name in zip(axes, names, strict=False):
        votes = _names(groups, rf"eval/{re.escape(name)}/(cons@\d+)")
        metrics = ["pass@1", *votes, "lenient_pass@1"]
        for g, (label, runs) in enumerate(groups.items()):
            for i, metric in enumerate(metrics):
                curve = make_curve(runs, f"eval/{name}/{metric}", 100)
                if curve is not None:
                    shown = _prefix(groups, label) + metric.replace(
                        "lenient_pass@1", "pass@1, lenient"
                    )
                    _draw(ax, curve, shown, _colour(groups, g, i), STYLES[i % len(STYLES)])
    _paper_panel(axes[-1], paper["accuracy"], "accuracy (%)", 100)
    _finish(axes, percent=True)
    return figure


def summary_figure(groups: Groups, paper: Paper) -> Figure | None:
    """Ours alone and small, for a README: held-out accuracy and length over training."""
    names = _names(groups, r"eval/([^/]+)/pass@1")
    if not names:
        return None
    figure, axes = _panels(["Held-out accuracy (%)", "Held-out length (tokens)"], "")
    figure.set_size_inches(6.4, 2.4)
    votes = _names(groups, rf"eval/{re.escape(names[0])}/(cons@\d+)")
    for g, (label, runs) in enumerate(groups.items()):
        for i, metric in enumerate(["pass@1", *votes]):
            curve = make_curve(runs, f"eval/{names[0]}/{metric}", 100)
            if curve is not None:
                shown = _prefix(groups, label) + metric
                _draw(axes[0], curve, shown, _colour(groups, g, i), STYLES[i % len(STYLES)])
        curve = make_curve(runs, f"eval/{names[0]}/length")
        if curve is not None:
            shown = _prefix(groups, label) + f"mean of {len(runs)} runs"
            _draw(axes[1], curve, shown, _colour(groups, g, 0))
    _finish(axes[:1], percent=True)
    _finish(axes[1:])
    return figure


def length_figure(groups: Groups, paper: Paper) -> Figure | None:
    """Mean completion length over training, beside Fig 1b."""
    return _training_figure(
        groups,
        paper["length"],
        "grpo/completion/length",
        "Completions sampled in training",
        "mean length (tokens)",
        "mean length (tokens)",
    )


def reflective_words_figure(groups: Groups, paper: Paper) -> Figure | None:
    """Words such as "wait" and "check" over training, beside Fig 9."""
    return _training_figure(
        groups,
        paper["reflective_words"],
        "grpo/completion/reflective_words",
        "Reflective words in training",
        "words per completion",
        "words per evaluation",
    )


def _training_figure(
    groups: Groups, paper_figure: Mapping[str, Any], metric: str, title: str, ours: str, theirs: str
) -> Figure | None:
    curves = {label: make_curve(runs, metric) for label, runs in groups.items()}
    if not any(curves.values()):
        return None
    figure, axes = _panels([title, ""], ours)
    for g, (label, curve) in enumerate(curves.items()):
        if curve is not None:
            _draw_noisy(axes[0], curve, label, COLOURS[g % len(COLOURS)])
    _paper_panel(axes[1], paper_figure, theirs)
    _finish(axes)
    return figure


def rewards_figure(groups: Groups, paper: Paper) -> Figure | None:
    """The reward's parts over training; one panel a group."""
    names = [n for n in _names(groups, r"grpo/reward/([^/]+)") if n not in REWARD_SUMMARIES]
    if not names:
        return None
    figure, axes = _panels([f"Rewards in training: {label}" for label in groups], "mean reward")
    for ax, runs in zip(axes, groups.values(), strict=True):
        for i, name in enumerate(sorted(names, key=lambda n: n == "mean")):
            curve = make_curve(runs, f"grpo/reward/{name}")
            if curve is not None:
                label = "total (weighted)" if name == "mean" else name
                _draw_noisy(ax, curve, label, COLOURS[i % len(COLOURS)])
    _finish(axes)
    return figure


def health_figure(groups: Groups, paper: Paper) -> Figure | None:
    """What tells whether an RL run is well."""
    return _over_training(groups, HEALTH)


def architecture_figure(groups: Groups, paper: Paper) -> Figure | None:
    """How even the experts' load is, whether sampler and update take the same ones, and drafts."""
    return _over_training(groups, ARCHITECTURE)


def _over_training(groups: Groups, metrics: Mapping[str, str]) -> Figure | None:
    """One panel a metric, a line a group; a name counts with and without the stage before it."""
    found = {title: _names(groups, f"((?:sft/|grpo/)?{name})") for title, name in metrics.items()}
    shown = {title: names for title, names in found.items() if names}
    if not shown:
        return None
    figure, axes = _panels(list(shown), "")
    for ax, names in zip(axes, shown.values(), strict=True):
        for g, (label, runs) in enumerate(groups.items()):
            for name in names:
                if (curve := make_curve(runs, name)) is not None:
                    _draw_noisy(ax, curve, label, COLOURS[g % len(COLOURS)])
    _finish(axes)
    return figure


def loss_figure(groups: Groups, paper: Paper) -> Figure | None:
    """Of supervised training and reward models, beside that on held-out rows."""
    shown = [(label, name) for name, label in LOSSES.items() if _names(groups, f"({name})")]
    if not shown:
        return None
    figure, (ax,) = _panels(["Loss"], "nats a token")
    for g, (group, runs) in enumerate(groups.items()):
        for i, (label, name) in enumerate(shown):
            if (curve := make_curve(runs, name)) is not None:
                colour = _colour(groups, g, i)
                draw = _draw_noisy if label == "training" else _draw
                draw(ax, curve, f"{_prefix(groups, group)}{label}", colour)
    _finish([ax])
    return figure


def levels_figure(groups: Groups, paper: Paper) -> Figure | None:
    """Held-out pass@1 by difficulty over training, beside Fig 8; a panel a group and benchmark."""
    names = _names(groups, r"eval/([^/]+)/pass@1/level/.+")
    if not names:
        return None
    panels = [(name, label) for name in names for label in groups]
    titles = [f"By level: {name}\n{label}" for name, label in panels]
    figure, axes = _panels([*titles, ""], "pass@1 (%)")
    for ax, (name, label) in zip(axes, panels, strict=False):
        levels = _names(groups, rf"eval/{re.escape(name)}/pass@1/level/(.+)")
        for i, level in enumerate(sorted(levels)):
            curve = make_curve(groups[label], f"eval/{name}/pass@1/level/{level}", 100)
            if curve is not None:
                _draw(ax, curve, f"level {level}", LEVEL_COLOURS[i % len(LEVEL_COLOURS)])
    _paper_panel(axes[-1], paper["levels"], "accuracy (%)", 100)
    _finish(axes, percent=True)
    return figure
