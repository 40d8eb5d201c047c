"""Tables of a pipeline from files written by hand."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r1jax import pipeline_report
from r1jax.checkpoint import Checkpoints
from r1jax.config import DataError
from r1jax.table import text_of


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


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
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft/metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    params = {"a": np.zeros((1000, 500), np.float32), "b": np.zeros(7, np.float32)}
    Checkpoints(tmp_path / "sft").save(4, {"params": params, "step": np.int32(4)})
    return tmp_path


def rows(table: Any) -> list[list[str]]:
    return [[text_of(cell) for cell in row] for row in table.rows]


def test_models_side_by_side(pipeline: Path) -> None:
    table, paper, *_ = pipeline_report.pipeline_tables([pipeline])
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
    assert rows(pipeline_report.sampling_table(pipeline)) == [["cold", "2", "8", "3", "5"]]
    assert rows(pipeline_report.data_table(pipeline)) == [["set", "math", "3", "1.0", "10.5"]]
    # 4 updates of 200 tokens in the mean, 500,007 parameters: 6 * 500,007 * 800 = 2.4e9
    assert rows(pipeline_report.cost_table(pipeline)) == [["sft", "0.50", "4", "1", "0", "0.00"]]


def test_a_report_of_what_is_there(pipeline: Path, tmp_path: Path) -> None:
    paths = pipeline_report.write_pipeline_report([pipeline], tmp_path / "out")
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
    table, _, sampling, *_ = pipeline_report.pipeline_tables([pipeline, other])
    assert table.header[2:] == ["R1-Zero", "R1", "Zero"]
    assert rows(table)[0][2:] == ["25.0 ± 5.0", "55.0 ± 7.1", "25.0 ± 5.0"]
    assert table.note == "Mean ± standard deviation over 2 pipelines."
    names = [pipeline.name, "other"]
    assert rows(sampling) == [[name, "cold", "2", "8", "3", "5"] for name in names]


def test_a_damaged_overview(tmp_path: Path) -> None:
    (tmp_path / "pipeline.json").write_text("{")
    with pytest.raises(DataError, match=r"pipeline.json is not a pipeline's"):
        pipeline_report.read_stages(tmp_path)
