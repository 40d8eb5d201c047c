"""The paper's figures with curves of ours: which are drawn, and that both are where they belong."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from r1jax.reports.figures import draw_figures
from r1jax.reports.overlays import (
    OVERLAYS,
    PAPER_PANELS,
    accuracy_figure,
    language_figure,
    length_figure,
    levels_figure,
    paper_alone,
    ppo_figure,
    reflective_words_figure,
    reward_hacking_figure,
)
from r1jax.reports.paper import read_paper

PAPER = read_paper()


def run(last: int, **metrics: Sequence[float]) -> list[dict[str, Any]]:
    """Lines of two steps: 0 and `last`."""
    names = {name.replace("__", "/").replace("_at_", "@"): v for name, v in metrics.items()}
    return [{"step": s} | {n: v[i] for n, v in names.items()} for i, s in enumerate((0, last))]


def points(ax: Axes) -> dict[tuple[float, ...], np.ndarray]:
    """Lines with points in all axes that lie on one another, by their last point."""
    found = {}
    for other in ax.figure.axes:
        if np.allclose(other.get_position().bounds, ax.get_position().bounds):
            for line in other.get_lines():
                data = np.asarray(line.get_xydata())
                if len(data) > 1:
                    found[tuple(np.round(data[-1], 3))] = data
    return found


def legend(ax: Axes) -> list[str]:
    shown = ax.get_legend()
    assert shown is not None
    return [text.get_text() for text in shown.get_texts()]


ACCURATE = {"eval__h__pass_at_1": [0.1, 0.5], "eval__h__cons_at_4": [0.2, 0.6]}


def test_accuracy_has_the_papers_points_on_steps_of_their_own() -> None:
    figure = accuracy_figure({"a": [run(80, **ACCURATE)]}, PAPER)
    assert figure is not None
    ours, theirs = figure.axes
    assert {(80, 50), (80, 60), (10000, 77.29), (10000, 86.7)} <= set(points(ours))
    assert legend(ours) == [
        *("pass@1", "cons@4", "Fig. 1a: pass@1", "Fig. 1a: cons@16", "human participants"),
    ]
    left = [ax.transData.transform((x, 50.0))[0] for ax, x in ((ours, 0), (theirs, 0))]
    right = [ax.transData.transform((x, 50.0))[0] for ax, x in ((ours, 80), (theirs, 10000))]
    assert left[0] == pytest.approx(left[1]) and right[0] == pytest.approx(right[1])
    height = [ax.transData.transform((0.0, 50.0))[1] for ax in (ours, theirs)]
    assert height[0] == pytest.approx(height[1])  # one axis of percent
    assert theirs.get_xlabel() == "Fig. 1a: training step"


def test_a_run_as_long_as_the_papers_shares_its_steps() -> None:
    figure = accuracy_figure({"a": [run(2500, **ACCURATE)]}, PAPER)
    assert figure is not None and len(figure.axes) == 1
    assert {(2500, 50), (10000, 77.29)} <= set(points(figure.axes[0]))
    figure = accuracy_figure({"a": [run(2400, **ACCURATE)]}, PAPER)
    assert figure is not None and len(figure.axes) == 2


def test_length_has_an_axis_of_its_own_where_ours_is_far_shorter() -> None:
    for longest, axes in ((60.0, 2), (9_000.0, 1)):
        lines = run(10_000, grpo__completion__length=[20.0, longest])
        figure = length_figure({"a": [lines]}, PAPER)
        assert figure is not None and len(figure.axes) == axes
        assert (10178, 13648) in points(figure.axes[0])
    words = run(10_000, grpo__completion__reflective_words=[0.0, 9_000.0])
    figure = reflective_words_figure({"a": [words]}, PAPER)
    assert figure is not None and len(figure.axes) == 2  # words of another kind, whatever the size
    assert figure.axes[1].get_ylabel() == "Fig. 9: words per evaluation"


def test_levels_are_drawn_for_those_who_have_them() -> None:
    lines = run(80)
    for line, value in zip(lines, (0.1, 0.6), strict=True):
        line["eval/h/pass@1/level/1"] = value
    figure = levels_figure({"a": [lines], "b": [run(80, **ACCURATE)]}, PAPER)
    assert figure is not None
    panel = figure.axes[0]
    assert [ax.get_title() for ax in figure.axes if ax.get_title()] == ["By level: h\na"]
    assert legend(panel) == ["level 1", "Fig. 8, same colours"]
    assert (10400, 90.3) in points(panel) and (80, 60) in points(panel)


def test_reward_hacking_is_of_learned_rewards() -> None:
    known = run(80, grpo__reward__accuracy=[0, 1], grpo__reward__mean=[0, 1], **ACCURATE)
    assert reward_hacking_figure({"a": [known]}, PAPER) is None
    learned = run(80, grpo__reward__helpful=[0.5, 3.0], grpo__reward__std=[0, 1], **ACCURATE)
    figure = reward_hacking_figure({"a": [known], "hacked": [learned]}, PAPER)
    assert figure is not None
    titles = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in titles] == ["Learned reward: helpful", "Held out: h"]
    assert legend(titles[0]) == ["hacked", "Fig. 6: reward (smoothed)"]
    assert legend(titles[1]) == ["hacked", "Fig. 6: Codeforces pass@1"]
    figure.canvas.draw()
    assert (700, 28.9) in points(titles[1]) and (695, 4.32) in points(titles[0])


def test_language_with_its_reward_and_without() -> None:
    lines = run(40, grpo__reward__language=[0.9, 1.0], eval__lcb__pass_at_1=[0.1, 0.2], **ACCURATE)
    figure = language_figure({"with": [lines], "other": [run(40, **ACCURATE)]}, PAPER)
    assert figure is not None
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert [legend(ax)[1] for ax in panels] == [
        f"Fig. 7: {name}, with" for name in ("consistency", "LiveCodeBench", "AIME")
    ]
    assert all(legend(ax)[0] == "with" and "other" not in legend(ax) for ax in panels)
    assert language_figure({"other": [run(40, **ACCURATE)]}, PAPER) is None


def test_ppo_needs_a_critic() -> None:
    grpo = {"grpo": [run(60, **ACCURATE)]}
    assert ppo_figure(grpo, PAPER) is None
    figure = ppo_figure(grpo | {"ppo": [run(60, grpo__critic__loss=[1, 0], **ACCURATE)]}, PAPER)
    assert figure is not None
    assert legend(figure.axes[0]) == [
        *("grpo", "ppo", "Fig. 4: PPO, lambda 0.95", "Fig. 4: PPO, lambda 1", "Fig. 4: GRPO"),
    ]
    assert (2500, 55) in points(figure.axes[0])


def test_the_papers_figures_alone_only_if_asked_for() -> None:
    groups: Mapping[str, Any] = {"a": [run(80, grpo__completion__length=[1.0, 2.0])]}
    assert list(draw_figures(groups, PAPER)) == ["length"]
    assert draw_figures({}, PAPER) == {}
    drawn = draw_figures(groups, PAPER, everything=True)
    assert set(drawn) == set(PAPER_PANELS) == set(OVERLAYS)
    assert all(png.startswith(b"\x89PNG") for png in drawn.values())
    series = [line for ax in paper_alone("language_consistency", PAPER).axes for line in ax.lines]
    assert [line.get_label() for line in series] == list(PAPER["language_consistency"]["series"])
    for key, panels in PAPER_PANELS.items():  # every series of the figure is in a panel
        shown = [name for panel in panels for name in panel.points(PAPER)]
        assert sorted(shown) == sorted(PAPER[key]["series"])


def test_a_run_that_has_only_begun() -> None:
    figure = accuracy_figure({"a": [run(80, **ACCURATE)[:1]]}, PAPER)
    assert figure is not None and len(figure.axes) == 1
