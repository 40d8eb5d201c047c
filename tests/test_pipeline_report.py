"""Tables of a pipeline from files written by hand."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import write_lines

from r1jax.config import DataError
from r1jax.reports.costs import distillation_table, matches
from r1jax.reports.pipeline import costs, data_table, pipeline_tables, sampling_table
from r1jax.reports.runs import read_run, read_stages
from r1jax.reports.table import text_of
from r1jax.reports.write import write_pipeline_report


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


MODEL = {
    "vocab_size": 100, "embed_dim": 48, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
    "head_dim": 16, "ffn_dim": 256,
}  # fmt: skip


def stage(root: Path, name: str, kind: str, reads: list[str], complete: bool = True) -> None:
    path = root / "pipeline.json"
    stages = json.loads(path.read_text())["stages"] if path.exists() else {}
    stages[name] = {"stage": kind, "reads": reads, "complete": complete}
    write(path, {"stages": stages})


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    for name, label, right in (("eval_a", "R1-Zero", 0.25), ("eval_b", "R1", 0.5)):
        stage(tmp_path, name, "evaluate", [])
        values = {"problems": 4, "samples": 1, "pass@1": right, "pass@1_se": 0.05, "length": 12.0}
        more = {"preference": 0.75} if label == "R1" else {}
        results = {"step": 0, "model": "x", "label": label, "benchmarks": {"r": values | more}}
        write(tmp_path / name / "results.json", results)
    stage(tmp_path, "eval_c", "evaluate", [], complete=False)
    stage(tmp_path, "cold", "rejection", [])
    fates = {"accuracy": 5, "kept": 3}
    statistics = {"questions": 2, "completions": 8, "completions_by_fate": fates}
    write(tmp_path / "cold/statistics.json", statistics)
    stage(tmp_path, "set", "mixture", ["cold"])
    domains = {"math": {"samples": 3, "rounds": 1.0, "tokens": 10.5}}
    write(tmp_path / "set/statistics.json", {"sources": {}, "domains": domains})
    stage(tmp_path, "sft", "sft", ["set"])
    lines = [{"step": 2, "sft/data/tokens": 100}, {"step": 4, "sft/data/tokens": 300}]
    write(tmp_path / "sft/model.json", MODEL)
    write_lines(tmp_path / "sft/metrics.jsonl", lines)
    return tmp_path


def rows(table: Any) -> list[list[str]]:
    return [[text_of(cell) for cell in row] for row in table.rows]


def test_models_side_by_side(pipeline: Path) -> None:
    table, paper, *_ = pipeline_tables([read_run(pipeline)])
    assert table.header == [
        "Benchmark",
        "Metric",
        "R1-Zero",
        "R1",
    ]  # only what is complete
    assert rows(table) == [
        ["r", "pass@1 strict (%)", "25.0 ± 5.0", "50.0 ± 5.0"],
        ["r", "length (tokens)", "12.0", "12.0"],
        ["r", "preferred to the reference (%)", "-", "75.0"],
    ]
    assert paper.header[1:] == ["R1-Zero", "Dev1", "Dev2", "Dev3", "R1"]
    assert ["AIME 2024", "77.9", "59.0", "74.0", "78.1", "79.8"] in rows(paper)
    assert ["Codeforces rating", "1,444", "1,534", "1,687", "1,746", "2,029"] in rows(paper)


def test_data_and_costs(pipeline: Path) -> None:
    run = read_run(pipeline)
    assert rows(sampling_table(run)) == [["cold", "2", "8", "3", "5"]]
    assert rows(data_table(run)) == [["set", "math", "3", "1.0", "10.5"]]
    # 4 updates of 200 tokens in the mean: 6 x 97,200 x 800 = 4.7e8
    assert rows(costs(run)) == [["sft", "0.10", "4", "1", "0", "0.00"]]


def test_distillation_against_rl_at_equal_cost(tmp_path: Path) -> None:
    """The RL run's curve is read where it has cost as much as the distillation, by hand."""
    params = 97_200  # of MODEL: 100 x 48 + 2 x (4 x 48 x 48 + 3 x 48 x 256 + 96) + 48
    for name, kind, reads in (
        ("r1", "grpo", []),
        ("traces", "rejection", ["r1"]),
        ("student", "sft", []),
        ("rl", "grpo", ["student"]),
        ("distilled", "sft", ["traces", "student"]),
        ("on_logits", "sft", ["traces", "student", "r1"]),
        ("eval", "evaluate", ["distilled", "judge"]),
    ):
        stage(tmp_path, name, kind, reads)
        write(tmp_path / name / "model.json", MODEL)
    write(tmp_path / "traces/statistics.json", {"completion_tokens": 10_000})
    values = {"problems": 4, "samples": 1, "pass@1": 0.5, "pass@1_se": 0.01}
    write(tmp_path / "eval/results.json", {"step": 0, "benchmarks": {"r": values}})
    for name in ("student", "distilled", "on_logits"):
        write_lines(tmp_path / name / "metrics.jsonl", [{"step": 2, "sft/data/tokens": 1000}])
    update = {"grpo/batch/tokens": 500, "grpo/completion/tokens": 400, "grpo/kl/ref": 0.1}
    curve = [{"step": 0, "eval/r/pass@1": 0.1}]
    curve += [update | {"step": i, "eval/r/pass@1": 0.1 * (i + 1)} for i in range(1, 9)]
    write_lines(tmp_path / "rl/metrics.jsonl", curve)
    write_lines(tmp_path / "r1/metrics.jsonl", [update | {"step": 1}])

    table = distillation_table(read_run(tmp_path))
    # distilled: 2 x 1000 tokens x 6 + 10,000 x 2 = 32,000 operations a parameter; RL: 8 x 500 +
    # 2 x 400 = 4,800 an update, so 4 updates have its tokens and 6 its operations
    assert 32_000 // 4_800 == 6
    found = {row[0]: row[1:4] + row[5:6] for row in rows(table)}
    assert found["distilled"] == ["r", "50.0 ± 1.0", "0.10", "2"]
    assert found["on_logits"] == ["r", "-", "0.10", "2"]
    flops = [row[-1].value for row in table.rows]  # type: ignore[union-attr]
    assert flops[0] == pytest.approx(params * 32_000 / 1e12)
    assert flops[4] == pytest.approx(params * 36_000 / 1e12)  # the teacher read 2,000 more
    lines = [row[:3] + row[4:5] for row in rows(table)]
    assert lines[1:4] == [
        ["rl, as many tokens trained", "r", "50.0", "4"],
        ["rl, as much compute", "r", "70.0", "6"],
        ["rl, at its end", "r", "90.0", "8"],
    ]
    assert lines[6] == ["rl, as much compute", "r", "80.0", "7"]  # of the logits


def test_a_teacher_from_outside(tmp_path: Path) -> None:
    """Its size is that of the model that the traces' config names."""
    for name, kind, reads in (
        ("traces", "rejection", []),
        ("student", "sft", []),
        ("rl", "grpo", ["student"]),
        ("distilled", "sft", ["traces", "student"]),
    ):
        stage(tmp_path, name, kind, reads)
    (match,) = matches(read_stages(tmp_path))
    assert (match.distilled, match.traces, match.teacher) == ("distilled", "traces", None)


def test_a_report_of_what_is_there(pipeline: Path, tmp_path: Path) -> None:
    paths = write_pipeline_report([pipeline], tmp_path / "out")
    names = {str(Path(path).relative_to(tmp_path / "out")) for path in paths}
    assert {"report.md", "report.html", "figures/pipeline.png", "tables/stages.csv"} <= names
    assert all((tmp_path / "out" / name).stat().st_size > 0 for name in names)


def test_seeds_of_a_pipeline(pipeline: Path, tmp_path: Path) -> None:
    """Means over the pipelines, a label that only one has keeps its error, rows are stacked."""
    other = tmp_path / "other"
    shutil.copytree(pipeline, other, ignore=shutil.ignore_patterns("other"))
    path = other / "eval_b/results.json"
    results = json.loads(path.read_text())
    results["benchmarks"]["r"]["pass@1"] = 0.6
    write(path, results)
    path = other / "eval_a/results.json"
    write(path, json.loads(path.read_text()) | {"label": "Zero"})
    table, _, sampling, *_ = pipeline_tables([read_run(pipeline), read_run(other)])
    assert table.header[2:] == ["R1-Zero", "R1", "Zero"]
    assert rows(table)[0][2:] == ["25.0 ± 5.0", "55.0 ± 7.1", "25.0 ± 5.0"]
    assert table.note == "Mean ± standard deviation over 2 pipelines."
    names = [pipeline.name, "other"]
    assert rows(sampling) == [[name, "cold", "2", "8", "3", "5"] for name in names]


def test_a_damaged_overview(tmp_path: Path) -> None:
    (tmp_path / "pipeline.json").write_text("{")
    with pytest.raises(DataError, match=r"pipeline.json is not a pipeline's"):
        read_stages(tmp_path)
