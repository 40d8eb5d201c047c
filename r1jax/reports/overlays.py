"""The paper's figures with curves of ours, and its own points on the same panels, hollow."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from r1jax.reports.curves import (
    COLOURS,
    LEVEL_COLOURS,
    REWARD_SUMMARIES,
    STYLES,
    Groups,
    Paper,
    colour_of,
    draw_curve,
    draw_noisy,
    finish_panels,
    legends_below,
    make_curve,
    make_panels,
    metrics_like,
    prefix,
)
from r1jax.rewards import REWARDS

GREY = "0.45"
MARKERS = ("o", "s", "^", "v", "D")
SAME_SCALE = 0.25  # of the paper's steps, or values: from there on ours are drawn on its axis
ALWAYS, IF_LARGER = "always", "if larger"


@dataclass(frozen=True)
class Theirs:
    """Some series of one of the paper's figures, as a panel shows them."""

    key: str  # of paper.json
    label: str
    scale: float = 1.0
    series: Sequence[str] = ()  # () = all
    right: str = ""  # when it has an axis of its own on the right: ALWAYS or IF_LARGER

    def points(self, paper: Paper) -> dict[str, np.ndarray]:
        """(steps, values) by the series' names."""
        found = paper[self.key]["series"]
        scales = np.array([[1.0], [self.scale]])
        return {n: scales * np.array(found[n], np.float64).T for n in self.series or found}


ACCURACY = Theirs("accuracy", "accuracy (%)", 100)
LENGTH = Theirs("length", "mean length (tokens)", right=IF_LARGER)
WORDS = Theirs("reflective_words", "words per evaluation", right=ALWAYS)
LEVELS = Theirs("levels", "accuracy (%)", 100)
REWARD = Theirs("reward_hacking", "reward", 1, ["reward (smoothed)"], right=ALWAYS)
HACKED = Theirs("reward_hacking", "pass@1 (%)", 100, ["Codeforces pass@1"])
CONSISTENCY, CODE, AIME = (
    Theirs("language_consistency", f"{label} (%)", 100, [f"{name}, {w}" for w in ways])
    for ways in [("with", "without")]
    for name, label in (
        ("consistency", "language consistency"),
        ("LiveCodeBench", "pass@1"),
        ("AIME", "pass@1"),
    )
)
PPO = Theirs("ppo", "accuracy (%)", 100)
# What stands in each figure of the paper, a panel each.
PAPER_PANELS = {
    "accuracy": [ACCURACY],
    "length": [LENGTH],
    "reflective_words": [WORDS],
    "levels": [LEVELS],
    "reward_hacking": [REWARD, HACKED],
    "language_consistency": [CONSISTENCY, CODE, AIME],
    "ppo": [PPO],
}


# ---- the paper's points ----


def paper_alone(name: str, paper: Paper) -> Figure:
    """A figure of the paper without curves of ours."""
    shown = PAPER_PANELS[name]
    figure, axes = make_panels([""] * len(shown), "")
    for ax, theirs in zip(axes, shown, strict=True):
        printed = paper[theirs.key]
        ax.set_title(f"Paper, {printed['printed_in']}:\n{printed['title']}", fontsize=9)
        ax.set_ylabel(theirs.label)
        points = theirs.points(paper)
        for i, (series, (steps, values)) in enumerate(points.items()):
            colour = (LEVEL_COLOURS if theirs == LEVELS else COLOURS)[i]
            ax.plot(steps, values, color=colour, label=series, marker=MARKERS[i], markersize=3)
        _lines(ax, paper, theirs)
    finish_panels(axes)
    return figure


def _lines(ax: Axes, paper: Paper, theirs: Theirs) -> None:
    for name, value in paper[theirs.key].get("lines", {}).items():
        ax.axhline(value * theirs.scale, color=GREY, linestyle="-.", linewidth=0.8, label=name)


def overlay(ax: Axes, paper: Paper, theirs: Theirs, colours: Iterable[str] = ()) -> None:
    """The paper's points on a panel of ours, behind the curves that are on it already.

    Its steps are on an axis of their own above where ours are far fewer.
    """
    points = theirs.points(paper)
    printed = paper[theirs.key]["printed_in"]
    drawn = [np.asarray(line.get_xydata()).max(axis=0) for line in ax.get_lines()]
    ours, height = np.max(drawn, axis=0) if drawn else (0.0, 0.0)
    last, top = np.max([series.max(axis=1) for series in points.values()], axis=0)
    target = ax
    if theirs.right == ALWAYS or (theirs.right == IF_LARGER and height < SAME_SCALE * top):
        target = _twin(target.twinx())
        target.set_ylabel(f"{printed}: {theirs.label}", color=GREY)
        target.set_ylim(0, 1.05 * top)
    if 0 < ours < SAME_SCALE * last:
        target = _twin(target.twiny())
        target.set_xlabel(f"{printed}: training step", color=GREY)
        target.set_xlim(-0.04 * last, 1.04 * last)
        ax.set_xlim(-0.04 * ours, 1.04 * ours)
    chosen = dict(zip(points, colours, strict=False))
    for i, (name, (steps, values)) in enumerate(points.items()):
        look: dict[str, Any] = {
            "color": chosen.get(name, GREY),
            "marker": "o" if chosen else MARKERS[i],
            "markersize": 3.5,
            "markerfacecolor": "none",
            "markeredgewidth": 0.8,
            "linestyle": ":" if len(steps) < 3 else "",
            "linewidth": 0.8,
            "alpha": 0.8,
        }
        target.plot(steps, values, **look)
        if name not in chosen:
            ax.plot([], [], label=f"{printed}: {name}", **look)
    if chosen:
        ax.plot([], [], label=f"{printed}, same colours", **look | {"color": GREY, "marker": "o"})
    _lines(ax, paper, theirs)
    if target is not ax:
        ax.set_zorder(target.get_zorder() + 1)
        ax.patch.set_visible(False)


def _twin(ax: Axes) -> Axes:
    ax.grid(False)
    ax.tick_params(colors=GREY)
    for side in ("top", "right"):
        ax.spines[side].set_visible(True)
        ax.spines[side].set_color("0.8")
    return ax


# ---- the figures ----


def accuracy_figure(groups: Groups, paper: Paper) -> Figure | None:
    """Held-out pass@1 and cons@k over training (Fig 1a)."""
    names = metrics_like(groups, r"eval/([^/]+)/pass@1")
    if not names:
        return None
    figure, axes = make_panels([f"Held-out accuracy: {n}" for n in names], "accuracy (%)")
    for ax, name in zip(axes, names, strict=True):
        votes = metrics_like(groups, rf"eval/{re.escape(name)}/(cons@\d+)")
        metrics = ["pass@1", *votes, "lenient_pass@1"]
        for g, (label, runs) in enumerate(groups.items()):
            for i, metric in enumerate(metrics):
                curve = make_curve(runs, f"eval/{name}/{metric}", 100)
                if curve is not None:
                    shown = metric.replace("lenient_pass@1", "pass@1, lenient")
                    style = STYLES[i % len(STYLES)]
                    draw_curve(
                        ax, curve, prefix(groups, label) + shown, colour_of(groups, g, i), style
                    )
        overlay(ax, paper, ACCURACY)
    finish_panels(axes, percent=True)
    legends_below(figure, axes)
    return figure


def length_figure(groups: Groups, paper: Paper) -> Figure | None:
    """Mean completion length over training (Fig 1b)."""
    titles = "Completions sampled in training", "mean length (tokens)"
    return _training_figure(groups, paper, "length", titles, LENGTH)


def reflective_words_figure(groups: Groups, paper: Paper) -> Figure | None:
    """Words such as "wait" and "check" over training (Fig 9)."""
    titles = "Reflective words in training", "words per completion"
    return _training_figure(groups, paper, "reflective_words", titles, WORDS)


def _training_figure(
    groups: Groups, paper: Paper, metric: str, titles: tuple[str, str], theirs: Theirs
) -> Figure | None:
    name = f"grpo/completion/{metric}"
    if not _with(groups, [name]):
        return None
    figure, (ax,) = make_panels(titles[:1], titles[1])
    _in_training(ax, groups, name)
    overlay(ax, paper, theirs)
    finish_panels([ax])
    legends_below(figure, [ax])
    return figure


def _in_training(ax: Axes, groups: Groups, name: str, scale: float = 1.0) -> None:
    for g, (label, runs) in enumerate(groups.items()):
        if (curve := make_curve(runs, name, scale)) is not None:
            draw_noisy(ax, curve, label, COLOURS[g % len(COLOURS)])


def _held_out(ax: Axes, groups: Groups, name: str) -> None:
    """pass@1 on a benchmark, a line a group; groups beyond the colours have other dashes."""
    for g, (label, runs) in enumerate(groups.items()):
        if (curve := make_curve(runs, f"eval/{name}/pass@1", 100)) is not None:
            style = STYLES[g // len(COLOURS) % len(STYLES)]
            draw_curve(ax, curve, label, COLOURS[g % len(COLOURS)], style)


def levels_figure(groups: Groups, paper: Paper) -> Figure | None:
    """Held-out pass@1 by difficulty over training (Fig 8); a panel a group and benchmark."""
    names = metrics_like(groups, r"eval/([^/]+)/pass@1/level/.+")
    if not names:
        return None
    panels = [(n, g) for n in names for g, runs in groups.items() if _levels({g: runs}, n)]
    titles = [f"By level: {name}\n{label}" for name, label in panels]
    figure, axes = make_panels(titles, "pass@1 (%)")
    for ax, (name, label) in zip(axes, panels, strict=True):
        for i, level in enumerate(sorted(_levels(groups, name))):
            curve = make_curve(groups[label], f"eval/{name}/pass@1/level/{level}", 100)
            if curve is not None:
                colour = LEVEL_COLOURS[i % len(LEVEL_COLOURS)]
                draw_curve(ax, curve, f"level {level}", colour)
        overlay(ax, paper, LEVELS, LEVEL_COLOURS)
    finish_panels(axes, percent=True)
    legends_below(figure, axes)
    return figure


def _levels(groups: Groups, benchmark: str) -> list[str]:
    return metrics_like(groups, rf"eval/{re.escape(benchmark)}/pass@1/level/(.+)")


def reward_hacking_figure(groups: Groups, paper: Paper) -> Figure | None:
    """A learned reward over training, and what held-out problems say of it (Fig 6)."""
    known = (*REWARDS, *REWARD_SUMMARIES, "mean")
    learned = [n for n in metrics_like(groups, r"grpo/reward/([^/:]+)") if n not in known]
    names = [f"grpo/reward/{name}" for name in learned]
    having = _with(groups, names)
    if not having:
        return None
    benchmarks = metrics_like(having, r"eval/([^/]+)/pass@1")
    titles = [f"Learned reward: {n}" for n in learned] + [f"Held out: {n}" for n in benchmarks]
    figure, axes = make_panels(titles, "")
    for ax, name in zip(axes, names, strict=False):
        ax.set_ylabel("mean reward")
        _in_training(ax, having, name)
        overlay(ax, paper, REWARD)
    for ax, name in zip(axes[len(names) :], benchmarks, strict=True):
        ax.set_ylabel(HACKED.label)
        _held_out(ax, having, name)
        overlay(ax, paper, HACKED)
    finish_panels(axes[: len(names)])
    finish_panels(axes[len(names) :], percent=True)
    legends_below(figure, axes)
    return figure


def language_figure(groups: Groups, paper: Paper) -> Figure | None:
    """Language consistency over training, and held-out accuracy, with its reward and without
    (Fig 7)."""
    having = _with(groups, ["grpo/reward/language"])
    if not having:
        return None
    benchmarks = metrics_like(having, r"eval/([^/]+)/pass@1")
    titles = ["Language consistency in training", *(f"Held out: {n}" for n in benchmarks)]
    figure, axes = make_panels(titles, "pass@1 (%)")
    axes[0].set_ylabel(CONSISTENCY.label)
    _in_training(axes[0], having, "grpo/reward/language", 100)
    overlay(axes[0], paper, CONSISTENCY)
    for ax, name in zip(axes[1:], benchmarks, strict=True):
        _held_out(ax, having, name)
        overlay(ax, paper, CODE if re.search("code|lcb", name, re.I) else AIME)
    finish_panels(axes, percent=True)
    legends_below(figure, axes)
    return figure


def ppo_figure(groups: Groups, paper: Paper) -> Figure | None:
    """Held-out pass@1 over training of PPO and GRPO (Fig 4), where some run has a critic."""
    benchmarks = metrics_like(groups, r"eval/([^/]+)/pass@1")
    if not benchmarks or not _with(groups, ["grpo/critic/loss"]):
        return None
    figure, axes = make_panels([f"PPO and GRPO: {n}" for n in benchmarks], PPO.label)
    for ax, name in zip(axes, benchmarks, strict=True):
        _held_out(ax, groups, name)
        overlay(ax, paper, PPO)
    finish_panels(axes, percent=True)
    legends_below(figure, axes)
    return figure


def _with(groups: Groups, names: Sequence[str]) -> Groups:
    """The groups that have one of these metrics."""
    return {
        label: runs
        for label, runs in groups.items()
        if any(name in line for run in runs for line in run for name in names)
    }


OVERLAYS: dict[str, Callable[[Groups, Paper], Figure | None]] = {
    "accuracy": accuracy_figure,
    "length": length_figure,
    "reflective_words": reflective_words_figure,
    "levels": levels_figure,
    "reward_hacking": reward_hacking_figure,
    "language_consistency": language_figure,
    "ppo": ppo_figure,
}
