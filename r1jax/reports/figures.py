"""The figures of runs: those of the paper (overlays.py), rewards, health, losses, a pipeline."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from r1jax.reports.curves import (
    COLOURS,
    REWARD_SUMMARIES,
    STYLE,
    STYLES,
    Groups,
    Paper,
    colour_of,
    draw_curve,
    draw_noisy,
    finish_panels,
    make_curve,
    make_panels,
    metrics_like,
    prefix,
)
from r1jax.reports.overlays import OVERLAYS, PAPER_PANELS, paper_alone

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


def draw_figures(groups: Groups, paper: Paper, everything: bool = False) -> dict[str, bytes]:
    """{name: PNG} of the figures for which these runs have measurements; `everything`: also those
    of the paper for which they have none."""
    with matplotlib.rc_context(STYLE):
        drawn = {name: make(groups, paper) for name, make in FIGURES.items()}
        for name in PAPER_PANELS if everything else ():
            drawn[name] = drawn[name] or paper_alone(name, paper)
        return {name: _png(figure) for name, figure in drawn.items() if figure is not None}


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


# ---- the figures ----


def summary_figure(groups: Groups, paper: Paper) -> Figure | None:
    """Ours alone and small, for a README: held-out accuracy and length over training."""
    names = metrics_like(groups, r"eval/([^/]+)/pass@1")
    if not names:
        return None
    figure, axes = make_panels(["Held-out accuracy (%)", "Held-out length (tokens)"], "")
    figure.set_size_inches(6.4, 2.4)
    votes = metrics_like(groups, rf"eval/{re.escape(names[0])}/(cons@\d+)")
    for g, (label, runs) in enumerate(groups.items()):
        for i, metric in enumerate(["pass@1", *votes]):
            curve = make_curve(runs, f"eval/{names[0]}/{metric}", 100)
            if curve is not None:
                shown = prefix(groups, label) + metric
                draw_curve(axes[0], curve, shown, colour_of(groups, g, i), STYLES[i % len(STYLES)])
        curve = make_curve(runs, f"eval/{names[0]}/length")
        if curve is not None:
            shown = prefix(groups, label) + f"mean of {len(runs)} runs"
            draw_curve(axes[1], curve, shown, colour_of(groups, g, 0))
    finish_panels(axes[:1], percent=True)
    finish_panels(axes[1:])
    return figure


def rewards_figure(groups: Groups, paper: Paper) -> Figure | None:
    """The reward's parts over training; one panel a group."""
    names = [n for n in metrics_like(groups, r"grpo/reward/([^/]+)") if n not in REWARD_SUMMARIES]
    if not names:
        return None
    figure, axes = make_panels([f"Rewards in training: {label}" for label in groups], "mean reward")
    for ax, runs in zip(axes, groups.values(), strict=True):
        for i, name in enumerate(sorted(names, key=lambda n: n == "mean")):
            curve = make_curve(runs, f"grpo/reward/{name}")
            if curve is not None:
                label = "total (weighted)" if name == "mean" else name
                draw_noisy(ax, curve, label, COLOURS[i % len(COLOURS)])
    finish_panels(axes)
    return figure


def health_figure(groups: Groups, paper: Paper) -> Figure | None:
    """What tells whether an RL run is well."""
    return _over_training(groups, HEALTH)


def architecture_figure(groups: Groups, paper: Paper) -> Figure | None:
    """How even the experts' load is, whether sampler and update take the same ones, and drafts."""
    return _over_training(groups, ARCHITECTURE)


def _over_training(groups: Groups, metrics: Mapping[str, str]) -> Figure | None:
    """One panel a metric, a line a group; a name counts with and without the stage before it."""
    found = {
        title: metrics_like(groups, f"((?:sft/|grpo/)?{name})") for title, name in metrics.items()
    }
    shown = {title: names for title, names in found.items() if names}
    if not shown:
        return None
    figure, axes = make_panels(list(shown), "")
    for ax, names in zip(axes, shown.values(), strict=True):
        for g, (label, runs) in enumerate(groups.items()):
            for name in names:
                if (curve := make_curve(runs, name)) is not None:
                    draw_noisy(ax, curve, label, COLOURS[g % len(COLOURS)])
    finish_panels(axes)
    return figure


def loss_figure(groups: Groups, paper: Paper) -> Figure | None:
    """Of supervised training and reward models, beside that on held-out rows."""
    shown = [(label, name) for name, label in LOSSES.items() if metrics_like(groups, f"({name})")]
    if not shown:
        return None
    figure, (ax,) = make_panels(["Loss"], "nats a token")
    for g, (group, runs) in enumerate(groups.items()):
        for i, (label, name) in enumerate(shown):
            if (curve := make_curve(runs, name)) is not None:
                colour = colour_of(groups, g, i)
                draw = draw_noisy if label == "training" else draw_curve
                draw(ax, curve, f"{prefix(groups, group)}{label}", colour)
    finish_panels([ax])
    return figure


FIGURES = OVERLAYS | {
    "rewards": rewards_figure,
    "health": health_figure,
    "architecture": architecture_figure,
    "loss": loss_figure,
    "summary": summary_figure,
}
