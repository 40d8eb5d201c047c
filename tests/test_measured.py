"""Measured files: what workdirs say of their runs, as one line a run, and back."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from helpers import write_lines

from r1jax.config import DataError
from r1jax.reports.measured import read_measured, read_runs, with_stages, write_measured
from r1jax.reports.pipeline import pipeline_tables
from r1jax.reports.table import to_csv
from r1jax.reports.write import make_tables, read_all

MODEL = {
    "vocab_size": 100, "embed_dim": 48, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
    "head_dim": 16, "ffn_dim": 256,
}  # fmt: skip


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_results(path: Path, step: int, right: float, **about: str) -> None:
    values = {"problems": 4, "samples": 2, "pass@1": right, "pass@1_se": 0.02, "length": 12.5}
    write(path / "results.json", {"step": step, "benchmarks": {"r": values}} | about)


def write_run(workdir: Path, seed: int) -> None:
    """A GRPO run with a curve at steps of its own, a value that is not a number, and timings."""
    write(workdir / "config.json", {"seed": seed, "template": "r1_zero", "words": "\u5b66"})
    write(workdir / "model.json", MODEL)
    lines: list[dict[str, Any]] = [{"step": 0, "eval/held/pass@1": 0.020833334 + seed}]
    lines += [{"step": i, "grpo/loss": 7.500002e-05 * i, "grpo/batch/tokens": i} for i in (1, 2)]
    lines += [{"step": 2, "eval/held/pass@1": 0.5}, {"step": 3, "grpo/loss": None}]
    write_lines(workdir / "metrics.jsonl", lines)
    write_lines(workdir / "timings.jsonl", [{"step": 1, "grpo/seconds/total": 1.5}])
    for step, right in ((0, 0.25), (3, 0.5 + seed / 10)):
        write_results(workdir / f"evaluations/{step:06d}", step, right)


def write_pipeline(workdir: Path, right: float) -> None:
    stages = {
        "zero": {"stage": "grpo", "reads": [], "complete": True},
        "cold": {"stage": "rejection", "reads": ["zero"], "complete": True},
        "eval_zero": {"stage": "evaluate", "reads": ["zero"], "complete": True},
        "later": {"stage": "grpo", "reads": ["cold"], "complete": False},
    }
    write(workdir / "pipeline.json", {"stages": stages})
    write_run(workdir / "zero", 0)
    write_run(workdir / "later", 0)
    fates = {"kept": 3, "accuracy": 5}
    statistics = {"questions": 2, "completions": 8, "completions_by_fate": fates}
    write(workdir / "cold/statistics.json", statistics)
    write_results(workdir / "eval_zero", 0, right, model="x", label="R1-Zero")


def tables_of(paths: list[Path]) -> list[str]:
    runs = read_all(paths)
    tables = pipeline_tables(runs) if runs[0].stages else make_tables(runs)
    return [table.name + to_csv(table) for table in tables]


def test_runs_come_back(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"zero/seed={seed}", seed)
    (tmp_path / "zero/seed=2/checkpoints").mkdir(parents=True)
    write(tmp_path / "zero/seed=2/config.json", {})  # has only begun
    file = tmp_path / "measured.jsonl"
    write_measured(read_runs(tmp_path / "zero"), file)
    assert len(file.read_text().splitlines()) == 2

    found, expected = read_runs(file), read_runs(tmp_path / "zero")
    assert list(found) == list(expected) == ["seed=0", "seed=1"]
    for name, run in found.items():
        lines, written = (map(sorted, map(dict.items, r.metrics)) for r in (run, expected[name]))
        assert repr(list(lines)) == repr(list(written))  # by their texts, as nan is not nan
        assert (run.timings, run.config) == (expected[name].timings, expected[name].config)
        assert (run.name, run.params) == (name, 97_200)
    assert math.isnan(found["seed=0"].metrics[3]["grpo/loss"])
    text = file.read_text()
    assert "0.020833334" in text and "7.500002e-05" in text  # the numbers as they were written
    assert '{"step":[0,2],"eval/held/pass@1":[0.020833334,0.5]}' in text
    assert "results" in "".join(tables_of([file]))
    assert tables_of([file]) == tables_of([tmp_path / "zero/seed=0", tmp_path / "zero/seed=1"])


def test_pipelines_come_back(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_pipeline(tmp_path / f"r1/seed={seed}", 0.25 + seed / 10)
    write_measured(read_runs(tmp_path / "r1"), tmp_path / "measured/r1.jsonl")
    paths = [tmp_path / "r1/seed=0", tmp_path / "r1/seed=1"]
    tables = tables_of([tmp_path / "measured/r1.jsonl"])
    assert tables == tables_of(paths)
    assert "R1-Zero" in tables[0] and any(table.startswith("sampling") for table in tables)
    # In a directory, a measured file's runs have the names of the workdirs that they stand for.
    stages = ["", "/zero", "/cold", "/eval_zero"]
    names = [f"r1/seed={seed}{stage}" for seed in (0, 1) for stage in stages]
    assert list(with_stages(read_runs(tmp_path / "measured"))) == names
    assert list(with_stages(read_runs(tmp_path))) == names


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"name": "b", "met', "is not JSON"),
        ('{"step": 1, "grpo/loss": 0.5}', r"is not a measured run: KeyError\('name'\)"),
        ('{"name": "b", "steps": [1]}', r"is not a measured run: KeyError\('steps'\)"),
        ('{"name": "b", "metrics": [{"grpo/loss": [1.0]}]}', "is not a measured run: KeyError"),
        (
            '{"name": "b", "metrics": [{"step": [1, 2], "x": [1.0]}]}',
            "is not a measured run: ValueError",
        ),
        ('{"name": "b", "metrics": [[1]]}', "is not a measured run: AttributeError"),
        ('{"name": "b", "evaluations": [{"step": 1}]}', "is not a measured run: TypeError"),
        ('{"name": "a"}', "is a second run called 'a'"),
    ],
)
def test_what_is_no_measured_file(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "m.jsonl"
    file.write_text('{"name": "a", "params": 1}\n' + line + "\n")
    with pytest.raises(DataError, match=rf"m\.jsonl:2 {said}"):
        read_measured(file)


def test_directories_without_measurements(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no workdir with measurements"):
        read_runs(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        read_runs(tmp_path / "no")
