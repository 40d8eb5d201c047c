"""The paper's tables: its numbers against each other, and workdirs of evaluate beside them."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import write_lines

from r1jax.config import ConfigError, DataError
from r1jax.reports.measured import read_measured, write_measured
from r1jax.reports.paper import read_paper
from r1jax.reports.paper_tables import Choice, _papers, models_of, paper_cost, paper_tables
from r1jax.reports.pipeline import pipeline_tables
from r1jax.reports.runs import RunRecord, read_run
from r1jax.reports.table import Table, text_of, to_csv, to_latex, to_markdown
from r1jax.reports.write import make_tables, read_all, runs_page, write_page

KINDS = {
    "aime24": ("AIME 2024", "pass@1", 100.0, 30, 64),
    "math500": ("MATH-500", "pass@1", 100.0, 500, 16),
    "lcb": ("LiveCodeBench", "pass@1", 100.0, 279, 8),
    "cf": ("Codeforces", "rating", 1.0, 60, 16),
    "ifeval": ("IF-Eval", "prompt_strict", 100.0, 541, 4),
}
KEYS = ("title", "metric", "scale", "problems", "num_samples")
PRINTED = {key: table for key, table in read_paper().items() if "models" in table}


def scores(kind: str, value: float, **more: float) -> dict[str, float | None]:
    _, metric, _, problems, k = KINDS[kind]
    found = {"problems": problems, "samples": k, metric: value, f"{metric}_se": value / 10}
    return found | more  # type: ignore[return-value]


def workdir(path: Path, benchmarks: dict[str, Any], **about: Any) -> RunRecord:
    path.mkdir(parents=True)
    kinds = {n: dict(zip(KEYS, KINDS[n], strict=True)) for n in benchmarks if n in KINDS}
    values = {"step": 0, "model": str(path), "seed": 0, "benchmarks": benchmarks, "kinds": kinds}
    (path / "results.json").write_text(json.dumps(values | about))
    return read_run(path)


def named(tables: list[Table], name: str) -> Table:
    return next(table for table in tables if table.name == name)


def columns(table: Table) -> dict[str, dict[str, str]]:
    """{column: {row: text}}"""
    return {
        name: {text_of(row[0]): text_of(row[i]) for row in table.rows}
        for i, name in enumerate(table.header)
    }


def lines(table: Table) -> dict[str, list[str]]:
    return {text_of(row[0]): [text_of(cell) for cell in row[1:]] for row in table.rows}


# ---- the paper alone ----


def test_the_tables_have_their_shapes() -> None:
    shapes = {key: (len(t["rows"]), len(t["columns"])) for key, t in PRINTED.items()}
    assert shapes == {
        "stages": (21, 5), "base": (21, 4), "others": (21, 6), "o1": (3, 6), "distilled": (10, 6),
        "distillation": (3, 5), "small_zero": (3, 2), "fresh": (5, 3), "difficulty": (3, 5),
    }  # fmt: skip
    for table in PRINTED.values():
        assert {len(values) for values in table["rows"].values()} == {len(table["columns"])}
        assert table["models"] in ("rows", "columns")
        assert table["beside"] in _papers(table)


def test_what_stands_in_two_tables_is_the_same() -> None:
    """But for R1-Zero, of which v1 prints other AIME and GPQA than v2."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for key, table in PRINTED.items():
        for model, column in _papers(table).items():
            for label, cell in column.items():
                if cell.value is not None:
                    found.setdefault((model, label), {})[key] = cell.value
    shared = {where: values for where, values in found.items() if len(values) > 1}
    assert len(shared) == 89  # 3 x 21 of stages, base, others; 6 + 10 + 10 of models that are rows
    differ = {where: values for where, values in shared.items() if len(set(values.values())) > 1}
    assert differ == {
        ("R1-Zero", "AIME 2024"): {"stages": 77.9, "base": 77.9, "o1": 71.0},
        ("R1-Zero", "GPQA-D"): {"stages": 75.8, "base": 75.8, "o1": 73.3},
    }


def test_numbers_that_follow_from_others() -> None:
    for points, problems, index in PRINTED["fresh"]["rows"].values():
        assert index == pytest.approx(points + 10 * problems)  # how the USAMO index is defined
    *parts, total = read_paper()["cost"]["rows"].values()
    assert [sum(column) for column in zip(*parts, strict=True)] == total
    assert all(dollars == 2 * hours for hours, dollars in [*parts, total])
    # The three levels have one share each of LiveCodeBench, whatever the model.
    parts = np.array(list(PRINTED["difficulty"]["rows"].values())).T
    overall = np.array(PRINTED["stages"]["rows"]["LiveCodeBench"])
    shares = np.linalg.lstsq(parts, overall, rcond=None)[0]
    assert shares.sum() == pytest.approx(1, abs=0.02) and shares.min() > 0.2
    np.testing.assert_allclose(parts @ shares, overall, atol=0.1)
    for values in PRINTED["stages"]["rows"].values():
        assert all(0 < value <= 100 or isinstance(value, int) for value in values)


FACTS = Path("/work/shared/paper/r1_facts.md")


@pytest.mark.skipif(not FACTS.exists(), reason="the facts are not on this machine")
def test_the_numbers_are_those_of_the_facts() -> None:
    text = FACTS.read_text()
    for key, heading in {"stages": "### 6.3", "others": "### 6.1", "distilled": "### 6.5"}.items():
        section = text.partition(heading)[2].partition("###")[0]
        cells = [
            [part.partition("(")[0].strip() for part in line.strip("| ").split("|")][1:]
            for line in section.splitlines()[3:]
            if line.startswith("| ")
        ]
        expected = [[None if x == "–" else float(x) for x in line] for line in cells]
        assert [list(v) for v in PRINTED[key]["rows"].values()] == expected, key
    line = text.partition("### 6.4")[2].splitlines()[1].rstrip(".")
    groups = [part.rpartition(" ")[2].split("/") for part in line.split("; ")]
    expected = [[None if x == "–" else float(x) for x in group] for group in groups]
    assert list(PRINTED["base"]["rows"].values()) == expected


# ---- ours beside it ----


def test_a_model_beside_the_papers(tmp_path: Path) -> None:
    run = workdir(
        tmp_path / "tiny",
        {
            "aime24": scores("aime24", 0.5, **{"cons@64": 0.6}),
            "lcb": scores("lcb", 0.3, **{"pass@1/difficulty/Easy": 0.9}),
            "cf": scores("cf", 1500.4, percentile=80.0),
            "ifeval": scores("ifeval", 0.4, **{"pass@1": 0.1}),
            "own": {"problems": 3, "samples": 1, "pass@1": 1.0},
        },
    )
    tables = paper_tables(models_of([run]))
    assert [table.name for table in tables] == [
        f"paper_{key}"
        for key in (
            *("stages", "base", "others", "o1", "distilled", "distillation", "small_zero"),
            "difficulty",
        )
    ]
    stages = columns(named(tables, "paper_stages"))
    assert list(stages) == [
        *("Benchmark", "R1-Zero", "Dev1", "Dev2", "Dev3", "R1", "tiny", "tiny minus R1"),
    ]
    assert stages["R1"]["Codeforces rating"] == "2,029"
    ours = {
        "IF-Eval": ("40.0 ± 4.0", "-43.3 ± 4.0"),
        "LiveCodeBench": ("30.0 ± 3.0", "-35.9 ± 3.0"),
        "Codeforces pct": ("80.0", "-16.3"),
        "Codeforces rating": ("1,500 ± 150", "-529 ± 150"),
        "AIME 2024": ("50.0 ± 5.0", "-29.8 ± 5.0"),
    }
    for label in stages["Benchmark"]:
        found = stages["tiny"][label], stages["tiny minus R1"][label]
        assert found == ours.get(label, ("-", "-"))
    distilled = lines(named(tables, "paper_distilled"))
    assert list(distilled)[-2:] == ["tiny", "tiny minus DeepSeek-R1-Distill-Qwen-32B"]
    assert distilled["tiny"] == ["50.0 ± 5.0", "60.0", "-", "-", "30.0 ± 3.0", "1,500 ± 150"]
    assert list(distilled.values())[-1] == [
        *("-22.6 ± 5.0", "-23.3", "-", "-", "-27.2 ± 3.0", "-191 ± 150"),
    ]
    difficulty = lines(named(tables, "paper_difficulty"))
    assert difficulty["LiveCodeBench easy"][-2:] == ["90.00", "-10.00"]
    assert difficulty["LiveCodeBench hard"] == [
        *("17.09", "23.21", "30.36", "33.16", "34.44", "-", "-"),
    ]
    note = named(tables, "paper_stages").note
    assert "tiny: ± is the standard error over problems." in note.replace("Benchmark", "")
    assert "k =" not in note and "*" not in note
    small = lines(named(tables, "paper_small_zero"))
    assert small["tiny minus Qwen2-Math-7B-Zero"] == ["27.7 ± 5.0", "-"]
    assert small["GPT-4o"] == ["9.3", "-"]


def test_the_row_that_is_asked_for(tmp_path: Path) -> None:
    models = models_of([workdir(tmp_path / "tiny", {"math500": scores("math500", 0.5)})])
    tables = paper_tables(models, Choice(beside="V3"))
    assert columns(named(tables, "paper_base"))["tiny minus V3"]["MATH-500"] == "-40.2 ± 5.0"
    assert "tiny minus R1" in columns(named(tables, "paper_stages"))  # which has no V3
    with pytest.raises(ConfigError, match="'V4' is no model of the paper's tables, .*V3-Base"):
        paper_tables(models, Choice(beside="V4"))


def test_a_model_that_is_called_as_one_of_the_papers(tmp_path: Path) -> None:
    run = workdir(tmp_path / "x", {"math500": scores("math500", 0.5)}, label="R1-Zero")
    tables = paper_tables(models_of([run]))
    header = named(tables, "paper_stages").header
    assert header[-2:] == ["R1-Zero (ours)", "R1-Zero (ours) minus R1-Zero"]
    assert list(lines(named(tables, "paper_distilled")))[-2] == "R1-Zero (ours)"
    found = paper_tables(models_of([run]), Choice(beside="R1"))
    assert named(found, "paper_stages").header[-1] == "R1-Zero (ours) minus R1"


def test_another_k_and_fewer_problems_are_said(tmp_path: Path) -> None:
    benchmarks = {
        "aime24": scores("aime24", 0.5, samples=4, **{"cons@4": 0.6}),
        "math500": scores("math500", 0.5, problems=100),
    }
    (table,) = [
        table
        for table in paper_tables(models_of([workdir(tmp_path / "few", benchmarks)]))
        if table.name == "paper_distillation"
    ]
    assert lines(table)["few"] == ["50.0 ± 5.0", "60.0", "50.0 ± 5.0 *", "-", "-"]
    assert list(lines(table).values())[-1][2] == "-44.3 ± 5.0 *"
    assert "AIME 2024, AIME 2024 cons@64 of few: k = 4, the paper: 64." in table.note
    assert "MATH-500 of few: * 100 problems, published: 500." in table.note
    rows = list(csv.reader(io.StringIO(to_csv(table))))
    at = rows[0].index("MATH-500")
    assert rows[0][at : at + 3] == ["MATH-500", "MATH-500 ±", "MATH-500 mark"]
    assert rows[-2][at : at + 3] == ["50.0", "5.0", "*"]
    assert rows[1][at : at + 3] == ["90.6", "-", ""]
    assert {len(row) for row in rows} == {len(rows[0])}
    assert "few & 50.0 $\\pm$ 5.0 & 60.0 & 50.0 $\\pm$ 5.0 * & -- & -- \\\\" in to_latex(table)


def test_seeds_of_one_model(tmp_path: Path) -> None:
    """One model, other seeds: mean and standard deviation of what was measured."""
    runs = [
        workdir(
            tmp_path / f"eval_seed{seed}",
            {"math500": scores("math500", 0.5 + seed / 10)}
            | ({"aime24": scores("aime24", 0.5)} if seed else {}),
            model="m",
            seed=seed,
        )
        for seed in (0, 1)
    ]
    models = models_of(runs)
    assert {name: len(group) for name, group in models.items()} == {"eval": 2}
    table = named(paper_tables(models), "paper_stages")
    assert columns(table)["eval"]["MATH-500"] == "55.0 ± 7.1"
    assert columns(table)["eval"]["AIME 2024"] == "50.0 ± 5.0"
    assert "MATH-500 of eval: ± is the standard deviation over 2 seeds." in table.note
    assert "AIME 2024 of eval: ± is the standard error over problems." in table.note


def test_which_evaluations_are_one_model(tmp_path: Path) -> None:
    math_, aime = {"math500": scores("math500", 0.5)}, {"aime24": scores("aime24", 0.5)}
    few = {"math500": scores("math500", 0.5, samples=4)}

    def names(*runs: RunRecord) -> dict[str, int]:
        return {name: len(group) for name, group in models_of(runs).items()}

    a = workdir(tmp_path / "a", math_, model="m", label="L")
    other_benchmark = workdir(tmp_path / "b", aime, model="m", label="L")
    assert names(a, other_benchmark) == {"L": 2}
    trained_anew = workdir(tmp_path / "c", math_, model="n", label="L")
    assert names(a, trained_anew) == {"L": 2}
    again = workdir(tmp_path / "d", math_, model="m", label="L")
    assert names(a, again) == {"L (a)": 1, "L (d)": 1}
    other_k = workdir(tmp_path / "e", few, model="m", label="L", seed=1)
    assert names(a, other_k) == {"L (a)": 1, "L (e)": 1}
    unnamed = [workdir(tmp_path / f"f{i}/eval", math_, model=f"m{i}") for i in range(2)]
    assert names(*unnamed) == {"eval (f0/eval)": 1, "eval (f1/eval)": 1}
    later = workdir(tmp_path / "g", math_, model="m0", step=5, seed=1)
    assert names(unnamed[0], later) == {"eval": 1, "g": 1}


def test_without_a_number_of_ours_only_if_all_are_asked_for(tmp_path: Path) -> None:
    own = {"own": {"problems": 3, "samples": 1, "pass@1": 1.0, "pass@1_se": None}}
    models = models_of([workdir(tmp_path / "own", own)])
    assert paper_tables(models) == []
    tables = paper_tables(models, Choice(everything=True))
    assert [table.name for table in tables] == [f"paper_{key}" for key in PRINTED]
    assert lines(named(tables, "paper_fresh"))["R1"] == ["143.7", "11.3", "256.7"]
    assert "own" not in named(tables, "paper_stages").header
    assert paper_tables({}, Choice(everything=True)) == tables


def test_a_value_that_is_missing_is_a_dash(tmp_path: Path) -> None:
    values = scores("math500", 0.5) | {"pass@1": None}
    run = workdir(tmp_path / "x", {"math500": values, "aime24": scores("aime24", 0.5)})
    table = named(paper_tables(models_of([run])), "paper_stages")
    assert columns(table)["x"]["MATH-500"] == "-"
    without = scores("aime24", 0.5) | {"pass@1_se": None}
    run = workdir(tmp_path / "y", {"aime24": without})
    table = named(paper_tables(models_of([run])), "paper_stages")
    assert columns(table)["y"]["AIME 2024"] == "50.0"
    assert "±" not in table.note


def test_names_in_every_form(tmp_path: Path) -> None:
    label = r"50%_a&b #1 {x} <i> ^~\ |"
    run = workdir(tmp_path / "x", {"math500": scores("math500", 0.5)}, label=label)
    page = runs_page([run])
    write_page(page, tmp_path / "out")
    tex = (tmp_path / "out/tables/paper_distilled.tex").read_text()
    said = r"50\%\_a\&b \#1 \{x\} $<$i$>$ \textasciicircum{}\textasciitilde{}\textbackslash{} |"
    assert f"\n{said} & -- & -- & 50.0 $\\pm$ 5.0 & -- & -- & -- \\\\\n" in tex
    html = (tmp_path / "out/report.html").read_text()
    assert "50%_a&amp;b #1 {x} &lt;i&gt;" in html and "<i>" not in html
    table = named(list(page.tables), "paper_distilled")
    assert label.replace("|", "\\|") in to_markdown(table)
    assert f"\n{label}," in (tmp_path / "out/tables/paper_distilled.csv").read_text()


def test_measured_files_keep_what_is_needed(tmp_path: Path) -> None:
    run = workdir(tmp_path / "w", {"math500": scores("math500", 0.5)}, seed=3)
    write_measured({"w": run}, tmp_path / "m.jsonl")
    (again,) = read_measured(tmp_path / "m.jsonl").values()
    assert (again.evaluations[0].seed, again.evaluations[0].kinds) == (
        3,
        {"math500": dict(zip(KEYS, KINDS["math500"], strict=True))},
    )
    assert paper_tables(models_of([again])) == paper_tables(models_of([run]))


def test_kinds_that_are_not_whole(tmp_path: Path) -> None:
    for i, kinds in enumerate(({"math500": {"title": "MATH-500"}}, {"math500": 1}, [1])):
        with pytest.raises(DataError, match=r"results\.json is not an evaluation"):
            workdir(tmp_path / str(i), {"math500": scores("math500", 0.5)}, kinds=kinds)


def test_stages_of_a_pipeline(tmp_path: Path) -> None:
    stages = {}
    for name, label in (("eval_zero", "R1-Zero"), ("eval_r1", "R1")):
        workdir(tmp_path / name, {"math500": scores("math500", 0.5)}, label=label)
        stages[name] = {"stage": "evaluate", "reads": [], "complete": True}
    (tmp_path / "pipeline.json").write_text(json.dumps({"stages": stages}))
    table = named(pipeline_tables([read_run(tmp_path)]), "paper_stages")
    assert table.header[6:] == [
        *("R1-Zero (ours)", "R1-Zero (ours) minus R1-Zero", "R1 (ours)", "R1 (ours) minus R1"),
    ]
    assert lines(table)["MATH-500"][5:] == [
        "50.0 ± 5.0",
        "-45.9 ± 5.0",
        "50.0 ± 5.0",
        "-47.3 ± 5.0",
    ]


HOURS = Choice(hours=True)


def test_cost(tmp_path: Path) -> None:
    for name, seconds in (("zero", 1800.0), ("r1", 900.0)):
        (tmp_path / name).mkdir()
        write_lines(tmp_path / name / "metrics.jsonl", [{"step": 1, "grpo/loss": 1.0}])
        write_lines(tmp_path / name / "timings.jsonl", [{"step": 1, "grpo/seconds/total": seconds}])
        write_lines(tmp_path / name / "starts.jsonl", [{"devices": "8 x cpu"}])
    stages = {name: {"stage": "grpo", "reads": [], "complete": True} for name in ("zero", "r1")}
    (tmp_path / "pipeline.json").write_text(json.dumps({"stages": stages}))
    pipeline = read_run(tmp_path)
    both = named(pipeline_tables([pipeline, pipeline], HOURS), "paper_cost")
    assert list(lines(both))[4:] == [
        *(f"{tmp_path.name}/{name} (ours)" for name in stages),
        "total (ours)",
    ]
    (table,) = paper_cost(read_all([tmp_path / "zero", tmp_path / "r1"]), HOURS)
    assert lines(table) == {
        "R1-Zero": ["101,000", "202,000", "-"],
        "SFT data creation": ["5,000", "10,000", "-"],
        "R1": ["41,000", "82,000", "-"],
        "total": ["147,000", "294,000", "-"],
        "zero (ours)": ["-", "-", "4.00"],
        "r1 (ours)": ["-", "-", "2.00"],
        "total (ours)": ["-", "-", "6.00"],
    }
    assert paper_cost(read_all([tmp_path / "zero"])) == []  # a run's own report has no clock in it
    assert paper_cost([], HOURS) == []
    assert len(paper_cost([], Choice(everything=True))) == 1


def test_the_report_has_them(tmp_path: Path) -> None:
    run = workdir(tmp_path / "tiny", {"math500": scores("math500", 0.5)})
    names = [table.name for table in make_tables([run])]
    assert names[:2] == ["models", "benchmarks_tiny"] and "paper_stages" in names
    page = runs_page([run], Choice(everything=True))
    assert {"paper_fresh", "paper_cost"} <= {table.name for table in page.tables}


def test_the_command(tmp_path: Path) -> None:
    workdir(tmp_path / "a,b", {"math500": scores("math500", 0.5)})
    flags = ["--workdirs=a,b", "--output=out", "--beside=Dev1", "--all_of_paper"]
    subprocess.run(
        [sys.executable, "-m", "r1jax.tables", *flags], check=True, capture_output=True,
        cwd=tmp_path, env={"PYTHONPATH": str(Path(__file__).parents[1]), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    written = {path.name for path in (tmp_path / "out").glob("*/*")}
    assert {f"paper_{key}.{end}" for key in PRINTED for end in ("md", "csv", "tex")} <= written
    assert {"paper_cost.tex", "language_consistency.png", "ppo.png"} <= written
    header = (tmp_path / "out/tables/paper_stages.csv").read_text().splitlines()[0]
    assert header.endswith('"a,b","a,b ±","a,b minus Dev1","a,b minus Dev1 ±"')
    page = (tmp_path / "out/report.html").read_text()
    assert "a,b minus Dev1" in page and "LiveCodeBench by difficulty" in page
