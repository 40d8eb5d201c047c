"""The files of a run, and that a resumed run leaves the same bytes in them."""

import json
import math
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from r1jax.config import ConfigError, DataError
from r1jax.files import plain_number, read_jsonl, read_metrics, write_jsonl_atomic
from r1jax.journal import drop_after
from r1jax.progress import Progress
from r1jax.training import metrics
from r1jax.training.metrics import (
    MetricsWriter,
    ProfileConfig,
    Profiler,
    Timer,
    _wandb_id,
    process_use,
)


def run(workdir: Path, start: int, end: int) -> None:
    """Steps start + 1 .. end."""
    with MetricsWriter(workdir, start or -1) as writer:
        for step in range(start + 1, end + 1):
            values = {"grpo/loss": jnp.float32(1) / step, "tokens": 2**25 + step}
            writer.write(step, values, {"seconds/step": time.perf_counter()})
            writer.samples(step, [{"text": f"第{step}\u2028\ud800"}, {"text": "b"}])


@pytest.mark.parametrize("torn", [b"", b'{"step": 6, "gr', b'{"step": 3}', b"\xe7\xac"])
@pytest.mark.parametrize("checkpoint", [0, 2, 5])
def test_resumed_files_are_identical(tmp_path: Path, torn: bytes, checkpoint: int) -> None:
    run(tmp_path / "whole", 0, 7)
    run(tmp_path / "killed", 0, 5)
    for name in ("metrics.jsonl", "samples.jsonl", "timings.jsonl"):
        with (tmp_path / "killed" / name).open("ab") as file:
            file.write(torn)
    run(tmp_path / "killed", checkpoint, 7)
    for name in ("metrics.jsonl", "samples.jsonl"):
        whole = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "killed" / name).read_bytes() == whole
    timings = read_metrics(tmp_path / "killed", "timings.jsonl")
    assert [row["step"] for row in timings] == list(range(1, 8))


def test_drop_after_keeps_the_old_file_when_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "metrics.jsonl"
    before = b'{"step": 1}\n{"step": 2}\n'
    file.write_bytes(before)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(KeyboardInterrupt):
        drop_after(file, 1)
    assert file.read_bytes() == before


def test_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics.jsonl:2 is not JSON"):
        MetricsWriter(tmp_path, 3)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-30, 3.4e38, 16777217.0, -0.0, 1e-45])
def test_numbers_round_trip_float32(value: float) -> None:
    number = plain_number(jnp.float32(value))
    assert number is not None
    assert np.float32(json.loads(json.dumps(number))) == np.float32(value)
    assert len(json.dumps(number)) <= len(str(np.float32(value))) + 2


def test_plain_numbers() -> None:
    assert plain_number(np.float32(0.1)) == 0.1  # and not 0.10000000149011612
    assert plain_number(2**40 + 1) == 2**40 + 1
    assert plain_number(math.inf) is None
    with pytest.raises(ValueError, match="scalar"):
        plain_number(np.zeros(2))


def test_lines_that_a_checkpoint_knows_of(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, -1) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"x": step})
        writer.samples(1, [{"question": "a"}])
        lines = writer.sync()
    assert lines == {"metrics.jsonl": 3, "samples.jsonl": 1}
    MetricsWriter(tmp_path, 3, lines=lines).close()
    file = tmp_path / "metrics.jsonl"
    file.write_text("\n".join(file.read_text().splitlines()[1:]) + "\n")
    with pytest.raises(DataError, match=r"metrics.jsonl has 2 lines up to step 3, but had 3"):
        MetricsWriter(tmp_path, 3, lines=lines)
    file.write_text('{"step": 1}\n{"x": 2}\n')
    with pytest.raises(DataError, match=r"metrics.jsonl:2 has no step"):
        MetricsWriter(tmp_path, 3)


def test_a_new_run_at_an_old_path_is_another_one(tmp_path: Path) -> None:
    """For Weights & Biases; the same run goes on with its curves."""
    path = epath.Path(tmp_path)
    first = _wandb_id(path)
    assert _wandb_id(path) == first
    (tmp_path / "wandb_id.txt").unlink()
    assert _wandb_id(path) != first


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, -1) as writer:
        writer.write(2, {"sft/grad_norm": math.inf, "sft/loss": jnp.float32("nan"), "x": 1})
    (line,) = read_metrics(tmp_path)
    assert math.isnan(line["sft/loss"])
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 2, "sft/grad_norm": null, "sft/loss": null, "x": 1}\n'
    )


def test_lines_of_one_step_are_merged(tmp_path: Path) -> None:
    write_jsonl_atomic(tmp_path / "metrics.jsonl", [{"step": 2, "a": 1}, {"step": 2, "b": 3}])
    assert read_metrics(tmp_path) == [{"step": 2, "a": 1, "b": 3}]


def test_jsonl_round_trip(tmp_path: Path) -> None:
    rows = [{"text": "中文\u2028\n\ud800", "n": 0.1}, {"text": ""}]
    write_jsonl_atomic(tmp_path / "new" / "a.jsonl", rows)
    assert read_jsonl(tmp_path / "new" / "a.jsonl") == rows
    assert os.listdir(tmp_path / "new") == ["a.jsonl"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "a.jsonl is empty"),
        (b"\n\n", "a.jsonl is empty"),
        (b'{"a": 1}\n\n{"a": }\n', "a.jsonl:3 is not JSON"),
        (b'{"a": 1}\n\xff\n', "a.jsonl:2 is not JSON"),
        (b"[1]\n", "a.jsonl:1 is a JSON list, expected an object"),
    ],
)
def test_bad_jsonl(tmp_path: Path, data: bytes, expected: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(DataError, match=expected):
        read_jsonl(tmp_path / "a.jsonl")


def test_missing_jsonl_and_byte_order_mark(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a.jsonl does not exist"):
        read_jsonl(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n')
    assert read_jsonl(tmp_path / "b.jsonl") == [{"a": 1}]


def test_tensorboard_is_written(tmp_path: Path) -> None:
    run(tmp_path, 0, 2)
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"grpo/loss" in file.read_bytes()


def test_completions_are_a_table_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as a stand-in for wandb tells."""
    logged: list[Any] = []
    run = SimpleNamespace(
        log=lambda values, step: logged.append((step, values)), finish=lambda: None
    )
    stand_in = SimpleNamespace(init=lambda **_: run, Table=lambda columns, rows: (columns, rows))
    monkeypatch.setitem(__import__("sys").modules, "wandb", stand_in)
    with MetricsWriter(tmp_path, -1, wandb_project="p") as writer:
        writer.samples(3, [{"completion": "a", "reward_breakdown": {"x": 1.0}}])
        writer.samples(4, [])
        writer.write(3, {"loss": 0.5})
    columns = ["step", "completion", "reward_breakdown"]
    assert logged == [(3, {"samples": (columns, [[3, "a", '{"x": 1.0}']])}), (3, {"loss": 0.5})]


def test_wandb_must_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'r1jax\[wandb\]'"):
        MetricsWriter(tmp_path, -1, wandb_project="p")


def test_timer_adds_up() -> None:
    timer = Timer()
    for _ in range(2):
        with timer("sleep"):
            time.sleep(0.01)
    seconds = timer.pop()
    assert seconds["seconds/total"] >= seconds["seconds/sleep"] >= 0.02
    rest = timer.pop()
    assert list(rest) == ["seconds/total"]
    assert 0 <= rest["seconds/total"] < 0.02  # counted from the last pop


def test_compilations_are_counted() -> None:
    before = process_use()
    jax.jit(lambda x: x * 3 + 1)(np.arange(7))
    after = process_use()
    assert after["compile/programs"] > before["compile/programs"]
    assert after["compile/seconds"] > before["compile/seconds"]
    assert after["memory/host_peak_mib"] > 10


def test_progress_without_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("mini", 4, 1, {"grpo/reward": "reward", "absent": "x"}, seconds=3600) as progress:
        for step in (2, 3, 4):
            progress.update(step, {"grpo/reward": jnp.float32(0.25), "other": 1})
    first, last = capsys.readouterr().out.splitlines()
    assert first == "mini 2/4  reward 0.25"
    assert re.fullmatch(r"mini 4/4  reward 0\.25  [\d,]+/h  0:00 left", last)


def test_progress_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with Progress("mini", 3, 0, {"grpo/reward": "reward"}) as progress:
        progress.update(3, {"grpo/reward": 12345.6})
    assert "3/3  reward 12,346" in capsys.readouterr().out


def test_profiler_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(metrics.jax.profiler, "start_trace", lambda path: calls.append(path))
    monkeypatch.setattr(metrics.jax.profiler, "stop_trace", lambda: calls.append("stop"))
    profiler = Profiler(ProfileConfig(start_step=3, num_steps=2), tmp_path)
    for step in range(1, 7):
        calls.append(str(step))
        profiler.step(step)
    profiler.close()
    assert calls == ["1", "2", "3", str(tmp_path / "profile"), "4", "5", "stop", "6"]
    Profiler(ProfileConfig(num_steps=0), tmp_path).step(10)
    assert calls[-1] == "6"
