"""Runs by name, at most N at a time; complete ones are skipped, failed ones stop nobody."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from r1jax.config import ConfigError
from r1jax.machines.processes import Processes, lock_workdir
from r1jax.machines.queue import Queue, read_queue
from r1jax.sweep import SweepRun, make_runs, run_all, run_names

ROOT = Path(__file__).parents[1]
CONFIG = """
from ml_collections import config_dict
from r1jax.config import product

def get_config(arg=""):
    return config_dict.create(
        stage="sft", seed=0, wandb_project=arg, model=dict(path="m"), data=dict(path="rows.jsonl"),
        optimizer=dict(learning_rate=0.1),
    )

def sweep():
    return product(**{"optimizer.weight_decay": [0.0, 0.01], "seed": [0, 1]})
"""


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ([{"g.kl": 0.01, "seed": s, "lr": 1} for s in (0, 1)], ["seed=0", "seed=1"]),
        ([{"g.kl": 0.01, "seed": 1}], ["kl=0.01,seed=1"]),
        ([{"a.lr": 1}, {"b.lr": 1}], ["a.lr=1", "b.lr=1"]),
        ([{"lr": 1}, {}], ["lr=1", "defaults"]),
    ],
)
def test_names(sweep: list[dict[str, object]], expected: list[str]) -> None:
    assert run_names(sweep) == expected


def test_names_are_safe_and_distinct() -> None:
    names = run_names([{"data": "a/b c"}, {"data": "a b/c"}, {"data": "x" * 300 + "1"}])
    assert len(set(names)) == 3
    assert all("/" not in name and " " not in name and len(name) < 130 for name in names)
    with pytest.raises(ConfigError, match="has the run seed=1 more than once"):
        run_names([{"seed": 1}, {"seed": 2}, {"seed": 1}])
    with pytest.raises(ConfigError, match="no runs"):
        run_names([])


def test_make_runs(tmp_path: Path) -> None:
    file = tmp_path / "c.py"
    file.write_text(CONFIG)
    runs = make_runs(f"{file}:smoke", tmp_path / "out")
    assert [run.name for run in runs][:2] == [
        "weight_decay=0.0,seed=0",
        "weight_decay=0.0,seed=1",
    ]
    assert runs[3].config["seed"] == 1
    assert runs[3].config["optimizer"] == {"learning_rate": 0.1, "weight_decay": 0.01}
    assert runs[3].config["wandb_project"] == "smoke"
    assert runs[3].command[1:] == [
        "-m",
        "r1jax.train",
        f"--config={file}:smoke",
        f"--workdir={tmp_path}/out/weight_decay=0.01,seed=1",
        "--config.optimizer.weight_decay=0.01",
        "--config.seed=1",
    ]
    file.write_text(CONFIG.replace('"seed"', '"sead"'))
    with pytest.raises(ConfigError, match=r"unknown key config.sead; did you mean config.seed\?"):
        make_runs(str(file), tmp_path / "out")
    file.write_text(CONFIG.replace("def sweep", "def other"))
    with pytest.raises(ConfigError, match=r"has no sweep\(\)"):
        make_runs(str(file), tmp_path / "out")


def make_run(directory: Path, name: str, code: str) -> SweepRun:
    return SweepRun(name, directory / name, [sys.executable, "-S", "-c", code], {"name": name})


def queue_of(runs: list[SweepRun]) -> Queue:
    return Queue(runs[0].workdir.parent, {run.name: run.entry for run in runs}, most_failures=1)


def test_failed_run_stops_nobody(tmp_path: Path) -> None:
    codes = {"a": "print('hello')", "b": "raise SystemExit(3)", "c": "pass"}
    runs = [make_run(tmp_path, name, code) for name, code in codes.items()]
    queue = queue_of(runs)
    assert run_all(runs, 2, queue) == {"a": 0, "b": 3, "c": 0}
    assert (tmp_path / "a/log.txt").read_text() == "hello\n"
    known = read_queue(tmp_path)
    assert [known[name].state for name in codes] == ["complete", "failed", "complete"]
    assert known["b"].error == "ended with exit code 3"
    assert queue_of(runs).entries == known
    runs[0] = SweepRun("a", tmp_path / "a", [], {"name": "another config"})
    assert queue_of(runs).entries["a"].state == "waiting"


@pytest.mark.parametrize("parallel", [1, 2])
def test_never_more_than_the_limit(tmp_path: Path, parallel: int) -> None:
    code = "import time; s = time.time(); time.sleep(0.2); print(s, time.time())"
    runs = [make_run(tmp_path, str(i), code) for i in range(3)]
    run_all(runs, parallel, queue_of(runs))
    spans = [tuple(map(float, (run.workdir / "log.txt").read_text().split())) for run in runs]
    assert max(sum(s <= start < e for s, e in spans) for start, _ in spans) <= parallel


def test_runs_at_the_same_time(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; here, other, end = {!r}, {!r}, time.time() + 30; open(here, 'w')\n"
        "while not os.path.exists(other):\n"
        "    time.sleep(0.01)\n"
        "    if time.time() > end: sys.exit('alone')"
    )
    files = [str(tmp_path / name) for name in ("a.started", "b.started")]
    runs = [
        make_run(tmp_path, "a", code.format(*files)),
        make_run(tmp_path, "b", code.format(*reversed(files))),
    ]
    assert run_all(runs, 2, queue_of(runs)) == {"a": 0, "b": 0}


def test_interrupted_sweep_ends_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "ended"
    code = f"import time; time.sleep(1); open({str(marker)!r}, 'w')"

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    runs = [make_run(tmp_path, "a", code)]
    monkeypatch.setattr("r1jax.machines.processes.time.sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_all(runs, 1, queue_of(runs))
    monkeypatch.undo()
    time.sleep(1.2)
    assert not marker.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_a_killed_sweep_leaves_nobody_in_the_workdirs(tmp_path: Path) -> None:
    """What it had started is killed too, and waited for by who comes next."""
    ready, workdir = tmp_path / "ready", tmp_path / "a"
    run = f"""
from pathlib import Path
from r1jax.machines.processes import end_with_starter, lock_workdir
end_with_starter()
with lock_workdir({str(workdir)!r}):
    memory = bytearray(1 << 30)
    memory[::4096] = memory[::4096].replace(bytes(1), bytes([1]))  # takes a while to be given back
    Path({str(ready)!r}).touch()
    __import__("time").sleep(100)
"""
    driver = f"""
import sys
from pathlib import Path
from r1jax.machines.processes import Processes
with Processes(1) as processes:
    processes.start("a", [sys.executable, "-c", {run!r}], Path({str(workdir)!r}))
    processes.wait()
"""
    process = subprocess.Popen([sys.executable, "-c", driver], cwd=ROOT)
    while not ready.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    with Processes(1) as processes:
        processes.start("a", ["true"], workdir)
        with lock_workdir(workdir):
            pass
        assert processes.wait() == {"a": 0}


def test_arguments_of_the_file_are_swept_too(tmp_path: Path) -> None:
    file = tmp_path / "c.py"
    sweep = '{":arm": "b", ":seed": 2, "seed": 1}, {":arm": "c", ":seed": 3, "seed": 1}'
    file.write_text(CONFIG.partition("def sweep")[0] + f"def sweep():\n    return [{sweep}]\n")
    runs = make_runs(f"{file}:seed=9,smoke", tmp_path / "out")
    assert [run.name for run in runs] == ["arm=b,seed=2", "arm=c,seed=3"]
    assert (runs[0].config["seed"], runs[0].config["wandb_project"]) == (
        1,
        "seed=9,smoke,arm=b,seed=2",
    )
    assert runs[1].command[3:] == [
        f"--config={file}:seed=9,smoke,arm=c,seed=3",
        f"--workdir={tmp_path}/out/arm=c,seed=3",
        "--config.seed=1",
    ]
    assert make_runs(str(file), tmp_path)[0].command[3] == f"--config={file}:arm=b,seed=2"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux only")
def test_parallel_runs_share_no_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its share of the cores that the sweep may use; one run alone has them all."""
    cores = sorted(os.sched_getaffinity(0))
    code = (
        "import os, time; time.sleep(0.5);"
        "open('{}', 'w').write(' '.join(map(str, sorted(os.sched_getaffinity(0)))))"
    )
    monkeypatch.chdir(tmp_path)
    for parallel in (1, 2):
        runs = [make_run(tmp_path, n, code.format(n + ".txt")) for n in "ab"]
        run_all(runs, parallel, queue_of(runs))
        found = [[int(c) for c in (tmp_path / f"{n}.txt").read_text().split()] for n in "ab"]
        if parallel == 1 or len(cores) < 2:
            assert found == [cores, cores]
        else:
            assert not set(found[0]) & set(found[1])
            assert sorted(found[0] + found[1]) == cores
