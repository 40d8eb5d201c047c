"""A sweep's table and figure, from the files of its runs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from r1jax.config import DataError
from r1jax.files import write_jsonl_atomic
from r1jax.machines.queue import Entry, Queue, Tenure
from r1jax.reports.sweep import differing_keys, draw_sweep, outcomes, read_sweep, sweep_table
from r1jax.reports.table import to_markdown
from r1jax.reports.write import write_sweep_report


def make_sweep(root: Path, **rewards: float) -> Queue:
    """A run a reward: "LR_SEED", a second of four devices a step."""
    entries = {}
    for name, reward in rewards.items():
        lr, seed = name.split("_")[1:]
        entries[name] = Entry({"lr": float(lr), ":seed": int(seed), "kl": 0.1})
        run = root / name
        run.mkdir(parents=True)
        (run / "config.json").write_text(json.dumps({"stage": "grpo", "lr": float(lr)}))
        lines: list[dict[str, Any]] = [
            {"step": step, "grpo/reward/mean": reward * step / 2} for step in (1, 2)
        ]
        write_jsonl_atomic(run / "metrics.jsonl", lines)
        clocks = [{"step": s, "grpo/seconds/total": 1800.0, "grpo/seconds/x": 9.0} for s in (1, 2)]
        write_jsonl_atomic(run / "timings.jsonl", clocks)
        write_jsonl_atomic(run / "starts.jsonl", [{"devices": "8 x cpu"}, {"devices": "4 x cpu"}])
    return Queue(root, entries, most_failures=1)


def test_seeds_are_folded(tmp_path: Path) -> None:
    queue = make_sweep(tmp_path, r_1_0=0.2, r_1_1=0.4, r_10_0=0.9, r_10_1=0.8, r_100_0=0.7)
    for name in ("r_1_0", "r_1_1", "r_10_0", "r_100_0"):
        queue.complete(name)
    queue.failed("r_10_1", "ended with exit code 1: no memory")
    arms = read_sweep(tmp_path)
    assert differing_keys(arms) == ["lr"]
    table = sweep_table(arms, {"lr-0": Tenure(seconds=5400.0), "lr-1": Tenure(seconds=900.0)})
    assert "The slices lr-0, lr-1 were there for 1.75 hours in all." in table.note
    assert table.header == ["lr", "complete", "reward", "chip-hours", "failed"]
    lines = to_markdown(table).splitlines()[4:7]
    assert lines == [
        "| 1.0 | 2 of 2 | 0.3000 ± 0.1414 | 8.00 |  |",
        "| 10.0 | 1 of 2 | 0.9000 | 8.00 | ended with exit code 1: no memory |",
        "| 100.0 | 1 of 1 | 0.7000 | 4.00 |  |",
    ]
    assert (draw_sweep(arms) or b"").startswith(b"\x89PNG")
    paths = write_sweep_report(tmp_path, tmp_path / "report")
    assert {"sweep.md", "sweep.png", "report.html"} <= {Path(path).name for path in paths}


def test_one_that_has_only_begun(tmp_path: Path) -> None:
    make_sweep(tmp_path, r_1_0=0.2, r_10_0=0.9)
    shutil.rmtree(tmp_path / "r_10_0")  # not even that
    arms = read_sweep(tmp_path)
    assert outcomes(arms) == {}
    assert draw_sweep(arms) is None
    assert [row[1] for row in sweep_table(arms).rows] == ["0 of 1", "0 of 1"]
    with pytest.raises(DataError, match=r"is not a sweep's: it has no sweep\.json"):
        read_sweep(tmp_path / "r_1_0")
    (tmp_path / "sweep.json").write_text('{"runs": {"a": {"state": "lost"}}}')
    with pytest.raises(DataError, match="is not a sweep's: TypeError"):
        read_sweep(tmp_path)
