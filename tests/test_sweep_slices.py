"""A sweep on slices that are taken away, by a driver that is killed: local processes stand in."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from r1jax.machines.queue import MOST_LOSSES, Entry, Queue, read_queue
from r1jax.sweep import make_runs

ROOT = Path(__file__).parents[1]
CONFIG = """
from helpers import sft_config

def get_config(arg=""):
    return sft_config("unused")

def sweep():
    return [{"seed": seed} for seed in range(SEEDS)]
"""
# In the place of `python` on workers and here: setup proves nothing, training counts to ten.
PYTHON = """#!/bin/sh
case "$*" in
  "-m r1jax.train"*) shift 2; exec REAL -S HERE/train.py "$@" ;;
  "- "*) exit 0 ;;
  *) exec REAL "$@" ;;
esac
"""
TRAIN = """
import pathlib, sys, time
flags = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
workdir, seed = pathlib.Path(flags["workdir"]), int(flags["config.seed"])
workdir.mkdir(parents=True, exist_ok=True)
step = workdir / "step"
begin = int(step.read_text()) if step.exists() else 0
if begin == 10:  # its slice was taken away before anybody saw that it had ended
    sys.exit(0)
for i in range(begin, 10):
    time.sleep(0.1)
    if (seed, i) == BROKEN:
        sys.exit("this one is broken")
    step.write_text(str(i + 1))
    print(f"seed {i + 1}/10", flush=True)
with (workdir / "ends").open("a") as file:
    file.write("ended\\n")
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Starts tpu_scripts/sweep over three local slices."""
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    python.write_text(PYTHON.replace("REAL", sys.executable).replace("HERE", str(tmp_path)))
    python.chmod(0o755)
    environment = {
        "TPU_ENV": "/nonexistent", "R1JAX_SLICES": str(tmp_path / "slices"), "R1JAX_POLL": "0.2",
        "PYTHONPATH": str(ROOT / "tests"), "R1JAX_PYTHON": str(python),
    }  # fmt: skip

    def start(seeds: int, broken: tuple[int, int], *flags: str) -> subprocess.Popen[str]:
        (tmp_path / "config.py").write_text(CONFIG.replace("SEEDS", str(seeds)))
        (tmp_path / "train.py").write_text(TRAIN.replace("BROKEN", str(broken)))
        command = [str(ROOT / "tpu_scripts/sweep"), "--backend=local", "--name=try", "--slices=3"]
        where = [f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/out"]
        return subprocess.Popen(
            [*command, *where, *flags],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def take_away(slice_directory: Path) -> None:
    """As a cloud does: what runs there is gone, and then the slice is said to be."""
    for file in slice_directory.glob("worker-*/runs/*/pid"):
        with contextlib.suppress(ProcessLookupError, ValueError):
            os.killpg(os.getpgid(int(file.read_text())), signal.SIGKILL)
    (slice_directory / "preempted").touch()


def until(true: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.05)


@pytest.mark.slow
def test_twelve_runs_on_three_slices(start: Start, tmp_path: Path) -> None:
    """Two slices taken away, the driver killed twice, one run broken: each other ends once."""
    out, slices = tmp_path / "out", tmp_path / "slices"

    def complete(least: int) -> bool:
        return len(list(out.glob("*/ends"))) >= least

    def busy() -> list[Path]:
        entries = read_queue(out).values() if (out / "sweep.json").exists() else ()
        names = [entry.where for entry in entries if entry.state == "running"]
        return [slices / name for name in names if any((slices / name).glob("worker-*/runs/*/pid"))]

    broken = 5, 4
    for least in (1, 4):
        driver = start(12, broken)
        until(lambda least=least: complete(least), f"{least} runs end")
        until(lambda: bool(busy()), "a slice has a run")
        take_away(busy()[0])
        time.sleep(0.5)
        driver.kill()
        driver.communicate()
        time.sleep(0.5)  # runs go on, and may end, while nobody looks
    said = start(12, broken).communicate(timeout=120)[0]
    entries = read_queue(out)
    failed = entries.pop("seed=5")
    assert {entry.state for entry in entries.values()} == {"complete"}, said
    assert all((out / name / "ends").read_text() == "ended\n" for name in entries)
    assert (failed.state, len(failed.failed_on)) == ("failed", 3)
    assert failed.error == "ended with exit code 1: this one is broken"
    assert "12 runs in" in said and "set aside after" in said
    assert sum(entry.starts for entry in entries.values()) <= 11 + 3
    assert list(slices.iterdir()) == []
    again = start(12, (-1, 0), "--retry")
    assert "12 complete" in again.communicate(timeout=60)[0]
    assert again.returncode == 0
    assert (out / "seed=5/ends").read_text() == "ended\n"


def test_wrong_flags_start_nothing(start: Start, tmp_path: Path) -> None:
    driver = start(2, (-1, 0), "--backend=queued", "--accelerator=v5p-8")
    assert "--project is missing" in driver.communicate()[0]
    assert driver.returncode == 2
    shown = start(2, (-1, 0), "--dry_run").communicate()[0]
    assert shown.count("-m r1jax.train") == 2
    for i in range(3):
        assert f"try-{i}\n    mkdir -p {tmp_path}/slices/try-{i}/worker-0\n" in shown
    assert not (tmp_path / "slices").exists()


def test_runs_on_slices_are_not_started_here(tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text(CONFIG.replace("SEEDS", "1"))
    (run,) = make_runs(f"{tmp_path}/config.py", tmp_path)
    assert Queue(tmp_path / "out", {run.name: run.entry}).take("lr-0") == run.name
    command = [sys.executable, "-m", "r1jax.sweep", f"--config={tmp_path}/config.py"]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path}/out"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests")},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "has a run on the slice lr-0: tpu_scripts/sweep goes on" in done.stderr


def test_a_queue_is_kept(tmp_path: Path) -> None:
    runs = {name: Entry({"seed": i}, name) for i, name in enumerate("abc")}
    queue = Queue(tmp_path, runs)
    assert [queue.take("one"), queue.take("two"), queue.take("one")] == ["a", "b", "a"]
    queue = Queue(tmp_path, runs)  # its driver was killed
    assert queue.take("two") == "b"
    queue.slice_gone("one", taken=True)
    assert queue.take("two") == "b" and queue.take("three") == "a"  # which goes before c
    assert queue.entries["a"].starts == 2
    queue.complete("a")
    queue.failed("b", "no memory")
    assert queue.take("two") == "c"  # b has failed here
    queue.interrupted("c")
    for _ in range(2):
        queue.start("b", "two")
        queue.failed("b", "no memory")
    assert queue.take("two") == "c" and queue.places() == {"two"} and not queue.wants("one")
    queue.lost("c", until_gone=True)  # they may still run
    assert queue.take("three") is None
    queue.slice_gone("two", taken=False)
    for _ in range(MOST_LOSSES - 1):
        assert queue.take("two") == "c"
        queue.lost("c")
    assert {n: e.state for n, e in read_queue(tmp_path).items()} == {
        "a": "complete", "b": "failed", "c": "failed",
    }  # fmt: skip
    assert queue.places() == set()
    queue.retry()
    assert queue.take("one") == "c"  # begun most often
