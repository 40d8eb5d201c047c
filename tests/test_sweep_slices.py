"""A sweep on slices that are taken away, by a driver that is killed: local processes stand in."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from r1jax.config import ConfigError, DataError
from r1jax.machines import queue as queue_module
from r1jax.machines import slices as slices_module
from r1jax.machines.queue import MOST_LOSSES, Entry, Queue, read_queue, read_slices
from r1jax.machines.shared import APART
from r1jax.machines.slices import Slice, work_off
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


def test_a_run_that_waits_for_its_machines_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On GKE a workload may be queued for hours."""
    queue = Queue(tmp_path, {"a": Entry({}, "a")})
    queue.take("one")
    said = iter(
        ["queued: no room", "queued as pod-0", "running as pod-0", "ended with exit code 0"]
    )
    monkeypatch.setattr(Slice, "workers", lambda *_: [next(said)])
    slices_module._attempt(Slice("one", poll_s=0), queue, "a", [], lambda _: None)
    assert queue.entries["a"].state == "complete"


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


def test_a_run_that_failed_goes_to_another_slice(tmp_path: Path) -> None:
    queue = Queue(tmp_path, {name: Entry({}, name) for name in "ab"})
    for slice_name in ("one", "two"):
        assert queue.wants(slice_name)
        queue.set_ready(slice_name, True)
    assert queue.take("one") == "a"
    queue.failed("a", "no memory")
    assert queue.take("one") == "b"
    queue.failed("b", "no memory")
    assert queue.take("one") is None and not queue.wants("one")  # both are for two
    assert queue.take("two") == "a"
    queue.failed("a", "no memory")
    assert queue.take("two") == "b"
    queue.complete("b")
    assert queue.wants("two")  # nobody else is left
    queue.slice_gone("two", taken=True)
    assert queue.take("two") == "a"
    queue.failed("a", "no memory")
    assert read_queue(tmp_path)["a"].failed_on == ["one", "", "two"]
    assert read_queue(tmp_path)["a"].state == "failed"


def test_a_slice_that_never_comes_is_not_waited_for(tmp_path: Path) -> None:
    queue = Queue(tmp_path, {"a": Entry({}, "a")})
    assert queue.wants("one") and queue.wants("two")
    for _ in range(3):
        assert queue.take("one") == "a"
        queue.failed("a", "no memory")
    assert not queue.wants("one")


@pytest.mark.parametrize("taken", [True, False])
def test_a_slice_that_is_taken_away_is_no_loss(tmp_path: Path, taken: bool) -> None:
    """Its workers may be seen to end before it is; but a slice that only we deleted was there."""
    queue = Queue(tmp_path, {"a": Entry({}, "a")})
    for _ in range(MOST_LOSSES + 1):
        if queue.take("one") is None:
            break
        queue.saw("one")
        queue.lost("a")
        queue.slice_gone("one", taken=taken)
        queue.slice_gone("one", taken=True)  # as it is found by who makes the next one
    assert queue.entries["a"].state == ("waiting" if taken else "failed")


def test_hours_of_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, now = {"a": Entry({}, "a")}, [100.0]
    monkeypatch.setattr(queue_module.time, "time", lambda: now[0])
    queue = Queue(tmp_path, runs)
    for now[0] in (100.0, 130.0):
        queue.saw("one")
    queue = Queue(tmp_path, runs)  # its driver was killed
    now[0] = 160.0
    queue.saw("one")
    now[0] = 900.0
    queue.slice_gone("one", taken=True)  # nobody knows since when
    for now[0] in (1000.0, 1005.0):
        queue.saw("one")
    assert read_slices(tmp_path)["one"].seconds == 65.0


@dataclass(frozen=True)
class Played(Slice):
    """A slice in the head: `ends` says how a run ends on it, by its name and the slice's life."""

    poll_s: float = 0.0
    ends: Callable[[str, int], str] = lambda _name, _life: "ended with exit code 0"
    lives: list[str] = field(default_factory=list)
    is_there: list[bool] = field(default_factory=lambda: [False])
    of_run: dict[str, str] = field(default_factory=dict)

    def call(self, verb: str, *words: str) -> tuple[bool, str]:
        if verb in ("create", "delete"):
            self.is_there[0] = verb == "create"
            self.lives.extend(["one more"] * (verb == "create"))
        if verb == "launch":
            attempt = next(word.removeprefix("--run=") for word in words if "--run=" in word)
            self.of_run[attempt] = self.ends(attempt.partition(".")[0], len(self.lives))
        return True, ""

    def state(self) -> str:
        return "ACTIVE" if self.is_there[0] else "ABSENT"

    def workers(self, attempt: str) -> list[str]:
        return [self.of_run.get(attempt, "never started")]


BAD, GOOD = "ended with exit code 1: bad host", "ended with exit code 0"


def play(tmp_path: Path, names: str, slices: Sequence[Slice]) -> tuple[dict[str, Entry], str]:
    said: list[str] = []
    queue = Queue(tmp_path, {name: Entry({}, name) for name in names})
    work_off(queue, {name: ["train"] for name in names}, slices, False, said.append)
    assert not any(one.is_there[0] for one in slices if isinstance(one, Played))
    return read_queue(tmp_path), "\n".join(said)


def test_a_broken_slice_is_made_anew(tmp_path: Path) -> None:
    one = Played("one", ends=lambda _, life: BAD if life == 1 else GOOD)
    entries, said = play(tmp_path, "abcdef", [one])
    assert {entry.state for entry in entries.values()} == {"complete"}
    assert said.count("FAILED") == 3 and said.count("suspects one: 3 failures in a row") == 1


def test_a_slice_that_stays_broken_sets_nothing_aside(tmp_path: Path) -> None:
    def slowly(name: str, life: int) -> str:
        time.sleep(0.02)
        return GOOD

    slices = [Played("one", ends=lambda *_: BAD), Played("two", ends=slowly)]
    entries, _ = play(tmp_path, "abcdefgh", slices)
    assert {entry.state for entry in entries.values()} == {"complete"}
    assert len(slices[0].lives) <= 2


@pytest.mark.parametrize("count", [1, 3])
def test_broken_runs_are_set_aside(tmp_path: Path, count: int) -> None:
    slices = [
        Played(f"s{i}", ends=lambda name, _: BAD if name in "bc" else GOOD) for i in range(count)
    ]
    entries, said = play(tmp_path, "abcdef", slices)
    assert [n for n, entry in entries.items() if entry.state == "failed"] == ["b", "c"]
    assert said.count("FAILED") == 6


def test_a_slice_that_never_comes_keeps_nobody(tmp_path: Path) -> None:
    class Refused(Played):
        def call(self, verb: str, *words: str) -> tuple[bool, str]:
            return (False, "no quota") if verb == "create" else super().call(verb, *words)

    entries, _ = play(tmp_path, "ab", [Refused("one"), Played("two")])
    assert {entry.state for entry in entries.values()} == {"complete"}


def test_when_all_is_broken_a_sweep_ends(tmp_path: Path) -> None:
    one = Played("one", ends=lambda *_: BAD)
    entries, _ = play(tmp_path, "abcd", [one])
    assert {entry.state for entry in entries.values()} == {"failed"}
    assert len(one.lives) == 2


def test_a_queue_that_cannot_be_written_ends_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def breaks_the_disk(*_: Any) -> str:
        monkeypatch.setattr(queue_module, "write_json", full)
        return GOOD

    one = Played("one", ends=breaks_the_disk)
    with pytest.raises(DataError, match=r"sweep\.json cannot be written: No space left on device"):
        play(tmp_path, "ab", [one])
    assert one.is_there[0]


def test_a_workdir_that_workers_do_not_see_ends_the_sweep(tmp_path: Path) -> None:
    class Apart(Played):
        def call(self, verb: str, *words: str) -> tuple[bool, str]:
            said = f"x\nerror: worker 1 (host): /disk {APART}\nERROR: exit code 2"
            return (False, said) if verb == "setup" else super().call(verb, *words)

    with pytest.raises(ConfigError, match=r"^worker 1 \(host\): /disk is not one directory"):
        play(tmp_path, "ab", [Apart("one")])


SLEEPS = """#!/bin/sh
echo "slice x: ACTIVE"
sleep 1000 &
echo $! > {}
wait
"""


def is_alive(file: Path) -> bool:
    """Of the process that the file names; it was alive."""
    until(lambda: file.exists() and file.read_text().strip() != "", "the verb begins")
    try:
        state = Path(f"/proc/{file.read_text().strip()}/stat").read_text().rpartition(")")[2]
    except OSError:
        return False
    return state.split()[0] != "Z"


def test_a_verb_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that it has started; and so it is where the driver is killed."""
    verb, pid = tmp_path / "status", tmp_path / "pid"
    verb.write_text(SLEEPS.format(pid))
    verb.chmod(0o755)
    monkeypatch.setattr(slices_module, "SCRIPTS", tmp_path)
    monkeypatch.setenv("R1JAX_VERB_SECONDS", "1")
    done, said = Slice("x").call("status")
    assert not done and said.endswith("status had not ended after 1 s")
    until(lambda: not is_alive(pid), "the verb's child ends", 10)
    pid.unlink()
    code = f"""
from pathlib import Path
from r1jax.machines import slices
slices.SCRIPTS = Path({str(tmp_path)!r})
slices.Slice("x").call("status")
"""
    environment = os.environ | {"R1JAX_VERB_SECONDS": "100", "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen([sys.executable, "-c", code], env=environment)
    assert is_alive(pid)
    driver.kill()
    driver.wait()
    until(lambda: not is_alive(pid), "the verb's child ends", 10)
