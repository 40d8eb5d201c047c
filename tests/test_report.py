"""Tables and figures from hand-made files: the numbers in them are checked by hand."""

import csv
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r1jax.config import DataError
from r1jax.reports import curves, figures
from r1jax.reports.paper import paper_table, read_paper
from r1jax.reports.results import configs_table, results_table, seeds_table
from r1jax.reports.runs import benchmark_names, group_runs, read_run, variant_names
from r1jax.reports.samples import _fenced
from r1jax.reports.table import Cell, Table, print_rich, text_of, to_csv, to_latex, to_markdown
from r1jax.reports.write import make_tables, print_table, write_report
from r1jax.tables import joined

ROOT = Path(__file__).parents[1]


def results(pass1: float, **more: float | None) -> dict[str, float | None]:
    return {
        "problems": 4, "samples": 2, "pass@1": pass1, "pass@1_se": 0.02, "pass@2": pass1 + 0.1,
        "lenient_pass@1": pass1 + 0.2, "length": 40.0, "reflective_words": 0.25,
    } | more  # fmt: skip


def completion(problem: int, sample: int, text: str) -> dict[str, Any]:
    return {
        "example_id": f"e{problem}", "question": f"problem {problem}?", "length": 1, "text": text,
        "sample_index": sample, "reward": 1.5, "reward_breakdown": {"accuracy": 1.0, "format": 0.5},
    }  # fmt: skip


def write_evaluation(directory: Path, step: int, **benchmarks: Any) -> None:
    directory.mkdir(parents=True)
    values = {"step": step, "model": "m", "seed": 0, "benchmarks": benchmarks}
    (directory / "results.json").write_text(json.dumps(values))
    with (directory / "test.jsonl").open("w") as file:
        for problem in range(4):
            for sample in range(2):
                row = completion(problem, sample, f"problem {problem}.{sample} at {step}")
                file.write(json.dumps(row) + "\n")


def write_run(workdir: Path, seed: int, base: float, after: float, kl: float = 0.1) -> Path:
    write_evaluation(
        workdir / "evaluations/000000",
        0,
        test=results(base, **{"pass@1/level/1": base}),
        test_forced=results(base + 0.05, samples=1),
    )
    last = results(after, length=60.0, **{"pass@1/level/1": after})
    write_evaluation(workdir / "evaluations/000010", 10, test=last)
    config = {"template": "r1_zero", "seed": seed, "data": {"args": {"seed": seed}}, "kl": kl}
    config["evaluation"] = {"benchmarks": {"test": {"prefix": ""}, "test_forced": {"prefix": "So"}}}
    (workdir / "config.json").write_text(json.dumps(config))
    lines = [
        {
            "step": 0,
            "eval/held/pass@1": base,
            "eval/held/pass@1_se": 0.02,
            "eval/held/cons@16": 0.3,
        },
        {"step": 1, "grpo/completion/length": 40.0 + seed, "grpo/reward/accuracy": 0.5},
        {"step": 1, "grpo/reward/mean": 0.75},
        {"step": 10, "grpo/completion/length": 60.0 + seed, "grpo/reward/accuracy": 0.75},
        {"step": 10, "eval/held/pass@1": after, "eval/held/pass@1_se": None},
    ]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return workdir


@pytest.fixture
def seeds(tmp_path: Path) -> list[Path]:
    return [
        write_run(tmp_path / "zero_seed0", 0, 0.10, 0.70),
        write_run(tmp_path / "zero_seed1", 1, 0.20, 0.90),
    ]


def lines_of(table: Table) -> dict[str, list[str]]:
    """{metric: the cells behind it}"""
    rows = [[text_of(cell) for cell in row] for row in table.rows]
    at = table.header.index("Metric")
    return {row[at]: row[at + 1 :] for row in rows}


def test_one_run_has_standard_errors(seeds: list[Path]) -> None:
    run = read_run(seeds[0])
    table = results_table(group_runs([run]))
    assert table.header == ["Benchmark", "Metric", "Base", "Forced", "R1-Zero", "Change"]
    assert lines_of(table) == {
        "pass@1 strict (%)": ["10.0 ± 2.0", "15.0 ± 2.0", "70.0 ± 2.0", "60.0"],
        "pass@1 lenient (%)": ["30.0", "35.0", "90.0", "60.0"],
        "pass@2 strict (%)": ["20.0", "25.0", "80.0", "60.0"],
        "length (tokens)": ["40.0", "40.0", "60.0", "20.0"],
        "reflective words": ["0.25", "0.25", "0.25", "0.00"],
    }
    assert "standard error over problems" in table.note
    assert "Forced: the base, with the beginning of its completions given." in table.note


def test_only_a_prefix_makes_a_variant(tmp_path: Path) -> None:
    """A benchmark may be called as another and something more; and a variant needs the other."""
    run = write_run(tmp_path / "run", 0, 0.1, 0.7)
    path = run / "evaluations/000000/results.json"
    values = json.loads(path.read_text())
    values["benchmarks"] |= {"test_hard": results(0.05), "code_forced": results(0.3)}
    path.write_text(json.dumps(values))
    config = {"test_forced": {"prefix": "So"}, "test_hard": {}, "code_forced": {"prefix": "So"}}
    (run / "config.json").write_text(json.dumps({"evaluation": {"benchmarks": config}}))
    assert variant_names([read_run(run)]) == ["forced"]
    assert benchmark_names([read_run(run)]) == ["test", "test_hard", "code_forced"]
    (run / "config.json").unlink()
    assert "test_forced" in benchmark_names([read_run(run)])


def test_seeds_of_one_config_have_mean_and_standard_deviation(seeds: list[Path]) -> None:
    groups = group_runs([read_run(path) for path in seeds])
    assert list(groups) == ["zero"]
    table = results_table(groups)
    assert lines_of(table)["pass@1 strict (%)"] == [
        "15.0 ± 7.1", "20.0 ± 7.1", "80.0 ± 14.1", "65.0 ± 7.1",
    ]  # fmt: skip
    assert "standard deviation over seeds (zero: 2)" in table.note
    names = [row[0] for row in seeds_table(groups).rows]
    assert names == ["zero_seed0", "zero_seed1"]


def test_runs_that_are_named_by_their_seeds(tmp_path: Path) -> None:
    """As a sweep over seeds alone names them: there is no common name."""
    paths = [write_run(tmp_path / f"seed={seed}", seed, 0.1, 0.4) for seed in (0, 1)]
    assert list(group_runs([read_run(path) for path in paths])) == ["seed=0, seed=1"]


def test_another_config_is_another_group(seeds: list[Path], tmp_path: Path) -> None:
    other = write_run(tmp_path / "kl", 0, 0.1, 0.4, kl=0.2)
    groups = group_runs([read_run(path) for path in [*seeds, other]])
    assert {label: len(runs) for label, runs in groups.items()} == {"zero": 2, "kl": 1}
    table = results_table(groups)
    assert table.header[0] == "Run"
    assert {row[0] for row in table.rows} == {"zero", "kl"}


def test_a_sweep_is_a_line_a_run(seeds: list[Path], tmp_path: Path) -> None:
    other = write_run(tmp_path / "kl", 0, 0.1, 0.4, kl=0.2)
    groups = group_runs([read_run(path) for path in [*seeds, other]])
    table = configs_table(groups)
    assert table.header == [
        "Run", "data.args.seed", "kl", "seed", "updates", "reward", "test pass@1 (%)",
    ]  # fmt: skip
    assert [[text_of(cell) for cell in row] for row in table.rows] == [
        ["zero_seed0", "0", "0.1", "0", "10", "0.750", "70.0 ± 2.0"],
        ["zero_seed1", "1", "0.1", "1", "10", "0.750", "90.0 ± 2.0"],
        ["kl", "0", "0.2", "0", "10", "0.750", "40.0 ± 2.0"],
    ]


def test_what_was_not_measured_is_missing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_evaluation(run / "evaluations/000000", 0, test=results(0.1, **{"pass@1_se": None}))
    (run / "metrics.jsonl").write_text('{"step": 0, "grpo/loss": 1.0}\n')
    table = results_table(group_runs([read_run(run)]))
    assert table.header == ["Benchmark", "Metric", "Base", "After RL", "Change"]
    assert lines_of(table)["pass@1 strict (%)"] == ["10.0", "-", "-"]


def test_the_three_forms_of_a_table() -> None:
    rows: list[list[str | Cell]] = [
        ["a|b_c", Cell(1234.56, 0.25)],
        ["%", Cell(None)],
        ["nan", Cell(math.nan, 1.0)],
    ]
    table = Table("t", "Title", ["Name", "x (%)"], rows, "Note.")
    assert to_markdown(table) == (
        "### Title\n\n| Name | x (%) |\n| --- | ---: |\n| a\\|b_c | 1,234.6 ± 0.2 |\n| % | - |\n"
        "| nan | - |\n\nNote.\n"
    )
    assert list(csv.reader(io.StringIO(to_csv(table)))) == [
        ["Name", "x (%)", "x (%) ±"],
        ["a|b_c", "1234.6", "0.2"],
        ["%", "-", "-"],
        ["nan", "-", "1.0"],
    ]
    assert to_latex(table) == (
        "% Title. Note.\n\\begin{tabular}{lr}\n\\toprule\nName & x (\\%) \\\\\n\\midrule\n"
        "a|b\\_c & 1,234.6 $\\pm$ 0.2 \\\\\n\\% & -- \\\\\nnan & -- \\\\\n\\bottomrule\n"
        "\\end{tabular}\n"
    )


def test_the_papers_numbers_beside_ours(seeds: list[Path]) -> None:
    groups = group_runs([read_run(path) for path in seeds])
    rows = [[text_of(c) for c in row] for row in paper_table(groups).rows]
    found = {row[1]: row[2:] for row in rows}
    assert found["held-out pass@1 (%) (held)"] == [
        "Fig. 1a", "15.6", "77.3", "15.0 ± 7.1", "80.0 ± 14.1",
    ]  # fmt: skip
    assert found["held-out cons@16 (%) (held)"] == [
        "Fig. 1a",
        "25.3",
        "86.7",
        "30.0 ± 0.0",
        "30.0 ± 0.0",
    ]
    assert found["mean length in training (tokens)"] == [
        "Fig. 1b", "549.0", "13,648.0", "40.5 ± 0.7", "60.5 ± 0.7",
    ]  # fmt: skip
    assert found["reflective words"][-2:] == ["-", "-"]


def test_the_papers_curves_are_whole() -> None:
    paper = read_paper()
    sizes = {
        key: [len(points) for points in paper[key]["series"].values()]
        for key in ("accuracy", "length", "levels", "reflective_words")
    }
    assert sizes == {
        "accuracy": [43, 43], "length": [52], "levels": [18] * 5, "reflective_words": [18],
    }  # fmt: skip
    for key in sizes:
        for points in paper[key]["series"].values():
            steps = [step for step, _ in points]
            assert steps == sorted(set(steps))
            assert paper[key]["unit"] != "share" or all(0 <= value <= 1 for _, value in points)
    # MATH-500 as a whole, which the paper prints for the last step: 476 of 500
    sizes_of_levels = (43, 90, 105, 128, 134)
    last = [points[-1][1] for points in paper["levels"]["series"].values()]
    assert round(sum(n * x for n, x in zip(sizes_of_levels, last, strict=True))) == 476


def test_curves() -> None:
    runs = [
        [{"step": 0, "a": 1.0, "a_se": 0.5}, {"step": 2, "a": 3.0, "a_se": 0.25}],
        [{"step": 0, "a": 3.0}, {"step": 1, "a": 9.0}, {"step": 2, "a": 3.0}],
    ]
    one = curves.make_curve(runs[:1], "a", 100)
    assert one is not None and one.spread is not None
    assert (one.steps.tolist(), one.mean.tolist(), one.spread.tolist()) == (
        [0, 2], [100, 300], [50, 25],
    )  # fmt: skip
    both = curves.make_curve(runs, "a")
    assert both is not None and both.spread is not None
    assert (both.steps.tolist(), both.mean.tolist()) == ([0, 2], [2, 3])
    np.testing.assert_allclose(both.spread, [math.sqrt(2), 0])
    assert curves.make_curve(runs, "b") is None
    smoothed = curves.smooth(np.array([3.0, 0.0, 0.0, 6.0]), 3)
    np.testing.assert_allclose(smoothed, [1.5, 1, 2, 3])


def test_one_base_of_several_seeds_has_its_standard_error(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / f"seed={s}", s, 0.1, 0.4 + 0.1 * s) for s in (0, 1)]
    table = results_table(group_runs([read_run(path) for path in paths]))
    found = lines_of(table)["pass@1 strict (%)"]
    assert (found[0], found[2]) == ("10.0 ± 2.0", "45.0 ± 7.1")
    assert "where all seeds have one value" in table.note


def test_eight_groups_are_drawn_in_rows() -> None:
    """And rewards below zero are seen."""
    values = {"grpo/policy/entropy": 0.5, "grpo/kl/ref": 0.1}
    rows: list[dict[str, Any]] = [
        {"step": s, "grpo/reward/mean": -float(s), "grpo/reward/penalty": -1.0} | values
        for s in (1, 2)
    ]
    groups = {f"group {i}": [rows] for i in range(8)}
    rewards = figures.rewards_figure(groups, read_paper())
    assert rewards is not None
    width, height = rewards.get_size_inches()
    assert width * 150 <= 2100 and height == 3 * 3.4
    drawn = [ax for ax in rewards.axes if ax.axison]
    assert len(drawn) == 8
    assert all(ax.get_ylim()[0] < -2 for ax in drawn)
    health = figures.health_figure(groups, read_paper())
    assert health is not None
    assert [ax.get_title() for ax in health.axes] == ["Entropy of a token", "KL to the reference"]
    assert all(ax.get_ylim()[0] == 0 for ax in health.axes)
    assert figures.health_figure({"a": [[{"step": 1}]]}, read_paper()) is None


def test_what_only_some_models_have_is_drawn() -> None:
    """Whichever stage measured it."""
    of = {"sft": {"sft/router/load_max": 2.0}, "grpo": {"grpo/router/load_max": 1.5}}
    of["grpo"]["grpo/rollout/acceptance_rate"] = 0.8
    groups = {label: [[{"step": s, **values} for s in (1, 2)]] for label, values in of.items()}
    figure = figures.architecture_figure(groups, read_paper())
    assert figure is not None
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["Busiest expert's load over the mean", "Drafts that were right (share)"]
    drawn = [[float(line.get_ydata()[-1]) for line in ax.get_lines()] for ax in figure.axes]
    assert sorted(set(drawn[0])) == [1.5, 2.0] and set(drawn[1]) == {0.8}
    assert figures.architecture_figure({"a": [[{"step": 1}]]}, read_paper()) is None


def test_the_report_of_a_workdir(seeds: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    paths = write_report([seeds[0]], seeds[0])
    names = {str(Path(path).relative_to(seeds[0])) for path in paths}
    tables = {
        f"tables/{t}.{s}" for t in ("results", "breakdown", "paper") for s in ("md", "csv", "tex")
    }
    images = {f"figures/{name}.png" for name in ("accuracy", "length", "rewards", "summary")}
    assert names == tables | images | {"samples.md", "report.md", "report.html"}
    assert all(Path(path).stat().st_size > 0 for path in paths)
    for name in images:
        assert (seeds[0] / name).read_bytes().startswith(b"\x89PNG")
        assert name in (seeds[0] / "report.md").read_text()
    samples = (seeds[0] / "samples.md").read_text()
    assert "problem 3.0 at 0" in samples and "problem 3.0 at 10" in samples
    assert "1 tokens, reward 1.5 (accuracy 1, format 0.5)" in samples
    assert "problem 3.1" not in samples
    print_table(seeds[0])
    assert "10.0 ± 2.0" in capsys.readouterr().out


def test_evaluations_of_models_side_by_side(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "small", 0, math=results(0.25))
    write_evaluation(tmp_path / "large", 0, math=results(0.5), code=results(0.75))
    runs = [read_run(tmp_path / name) for name in ("small", "large")]
    models, small, _ = make_tables(runs)
    assert models.header == ["pass@1 (%)", "small", "large"]
    assert [[text_of(c) for c in row] for row in models.rows] == [
        ["math", "25.0 ± 2.0", "50.0 ± 2.0"], ["code", "-", "75.0 ± 2.0"],
    ]  # fmt: skip
    assert [text_of(c) for c in small.rows[0]] == [
        "math", "4", "2", "25.0 ± 2.0", "45.0", "35.0", "-", "-", "40.0",
    ]  # fmt: skip


def test_text_in_a_sample_cannot_close_its_fence() -> None:
    assert _fenced("a ```` b") == "`````text\na ```` b\n`````\n"


def test_wrong_workdirs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no does not exist"):
        read_run(tmp_path / "no")
    with pytest.raises(DataError, match=r"has neither metrics\.jsonl nor results\.json nor"):
        read_run(tmp_path)
    (tmp_path / "model.json").write_text('{"no_such_field": 0}')
    with pytest.raises(
        DataError, match=r"model\.json is not a model's: unknown key .*no_such_field"
    ):
        read_run(tmp_path)
    (tmp_path / "results.json").write_text('{"step": 0}')
    with pytest.raises(DataError, match=r"results\.json is not an evaluation: KeyError"):
        read_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step"\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2 is not JSON"):
        read_run(tmp_path)


def test_workdirs_may_hold_commas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("arm=ppo,seed=0", "arm=ppo,seed=1", "c"):
        (tmp_path / name).mkdir()
    parts = ["arm=ppo", "seed=0", "c", "no", "arm=ppo", "seed=1"]
    assert joined(parts) == ["arm=ppo,seed=0", "c", "no", "arm=ppo,seed=1"]


def test_labels_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_rich(Table("t", "title [a]", ["R1 [seed 0]"], [["[/work/b]"]], "note [b]"))
    printed = capsys.readouterr().out
    for text in ("title [a]", "R1 [seed 0]", "[/work/b]", "note [b]"):
        assert text in printed


def test_evaluations_of_one_name_have_tables_of_their_own(tmp_path: Path) -> None:
    values = {"problems": 4, "samples": 1, "pass@1": 0.5, "pass@1_se": 0.01}
    text = json.dumps({"step": 0, "benchmarks": {"r": values}})
    for name in ("a/eval", "b/eval"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "results.json").write_text(text)
    runs = [read_run(tmp_path / name) for name in ("a/eval", "b/eval")]
    names = [table.name for table in make_tables(runs)]
    assert names == ["models", "benchmarks_a-eval", "benchmarks_b-eval"]


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--workdirs=a,no", "--output=out"], 2, "error: workdir no does not exist"),
        (["--workdirs=a", "--output=out"], 2, "nothing to report"),
        (["--workdirs=a"], 2, "either --output or --measured"),
        (["--workdirs=a", "--output=out", "--beside=V4"], 2, "'V4' is no model of the paper's"),
        (["--workdirs=a", "--measured=out", "--beside=R1"], 2, "--workdirs and --output alone"),
        (["--workdir=a", "--output=out"], 1, "Did you mean: workdirs"),
    ],
)
def test_the_command(tmp_path: Path, args: list[str], code: int, said: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/metrics.jsonl").write_text('{"step": 1, "sft/data/tokens": 2}\n')
    done = subprocess.run(
        [sys.executable, "-m", "r1jax.tables", *args], capture_output=True, text=True, cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


# -- the pipeline's picture ------------------------------------------------------------------------


def test_places_of_stages() -> None:
    reads = {
        "zero": [],
        "cold": ["zero"],
        "judge": [],
        "dev1": ["cold"],
        "r1": ["dev1", "judge"],
        "other": ["zero"],
    }
    # the longest chain lies in row 0; what has time stands just before who reads it
    assert figures._places(reads) == {
        "zero": (0, 0),
        "cold": (1, 0),
        "dev1": (2, 0),
        "r1": (3, 0),
        "judge": (2, 1),
        "other": (1, 1),
    }


def test_the_pipeline_is_drawn_without_its_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    text = figures.Figure.subplots

    def spied(figure: Any) -> Any:
        ax = text(figure)
        draw = ax.text
        ax.text = lambda x, y, s, **kwargs: texts.append(s) or draw(x, y, s, **kwargs)
        return ax

    monkeypatch.setattr(figures.Figure, "subplots", spied)
    stages = {
        "zero": {"stage": "grpo", "reads": [], "complete": True, "model": "runs/base"},
        "cold_start": {"stage": "rejection", "reads": ["zero"], "complete": False},
        "eval_zero": {"stage": "evaluate", "reads": ["zero"], "complete": False},
    }
    assert figures.draw_pipeline(stages).startswith(b"\x89PNG")
    assert texts == ["zero\ngrpo\nof base", "cold_start\nrejection"]
