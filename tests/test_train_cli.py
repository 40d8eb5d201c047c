"""What the train command says: one sentence for a user's mistake, no traceback."""

import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from helpers import RUN_FAKE

from r1jax.config import ConfigError
from r1jax.machines.cpu import keep_memory
from r1jax.machines.hosts import set_up_jax
from r1jax.stages import STAGES

ROOT = Path(__file__).parents[1]
CONFIG = """
from ml_collections import config_dict

def get_config(arg=""):
    return config_dict.create(stage="STAGE", seed=0, grpo=dict(kl_coef=0.1))
"""
FAKE_STAGE = """
from dataclasses import dataclass, field
from r1jax.config import DataError

@dataclass(frozen=True)
class Grpo:
    kl_coef: float = 0.0
    eps: float = 0.2

@dataclass(frozen=True)
class CONFIG:
    stage: str
    seed: int
    grpo: Grpo = field(default_factory=Grpo)

def run(config, workdir):
    if config.seed == 1:
        raise DataError("a.jsonl:3 is not JSON")
    if config.seed == 2:
        raise KeyboardInterrupt
    print("ran", config.grpo.kl_coef, config.grpo.get("eps"), workdir)
"""


def command(*args: str | Path, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, args)],
        capture_output=True,
        text=True,
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "c.py").write_text(CONFIG.replace("STAGE", "fake"))
    (tmp_path / "fake.py").write_text(FAKE_STAGE)
    return tmp_path


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--config=no.py:smoke", "--workdir=w"], "error: config file no.py does not exist"),
        (["--config", "no.py", "--workdir=w"], "error: config file no.py does not exist"),
        (
            ["--config=c.py", "--workdir=w", "--config.gpro.kl_coef", "1"],
            "error: unknown key config.gpro; did you mean config.grpo? "
            "(a key that nobody reads fails)",
        ),
        (
            ["--config=c.py", "--workdir=w", "x"],
            "error: unexpected argument 'x'; flags are written --name=value",
        ),
        (
            ["--config=c.py", "--workdir=w"],
            f"error: config.stage 'fake' is not one of {', '.join(map(repr, STAGES))}",
        ),
    ],
)
def test_mistakes_are_one_sentence(directory: Path, args: list[str], expected: str) -> None:
    done = command("-m", "r1jax.train", *args, directory=directory)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected + "\n")
    assert not (directory / "w").exists()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--config=c.py", "--workdri=w"], "Did you mean: workdir"),
        (["--workdir=w"], "--config must have a value other than None"),
        (["--config=c.py"], "--workdir must have a value other than None"),
        (["--config=c.py", "--workdir=w", "--config.seed=x"], "invalid literal for int"),
    ],
)
def test_wrong_flags(directory: Path, args: list[str], expected: str) -> None:
    done = command("-m", "r1jax.train", *args, directory=directory)
    assert done.returncode == 1
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_key(directory: Path) -> None:
    args = ["--config=c.py", "--workdir=w", "--config.grpo.kl_coeff=1"]
    done = command("-c", RUN_FAKE, *args, directory=directory)
    expected = (
        "error: unknown key config.grpo.kl_coeff; did you mean config.grpo.kl_coef? "
        "(a key that nobody reads fails)\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
    assert not (directory / "w").exists()


def test_a_key_that_the_file_leaves_out(directory: Path) -> None:
    args = ["--config=c.py", "--workdir=w", "--config.grpo.eps=0.5"]
    done = command("-c", RUN_FAKE, *args, directory=directory)
    assert (done.returncode, done.stdout) == (0, "ran 0.1 0.5 w\n")


def test_runs_the_stage(directory: Path) -> None:
    args = ["-c", RUN_FAKE, "--config=c.py:smoke", "--workdir=w", "--config.grpo.kl_coef=1"]
    done = command(*args, directory=directory)
    assert (done.returncode, done.stdout) == (0, "ran 1.0 None w\n")


@pytest.mark.parametrize(("seed", "code", "said"), [(1, 2, "error: a.jsonl:3"), (2, 130, "interr")])
def test_stage_errors(directory: Path, seed: int, code: int, said: str) -> None:
    args = ["-c", RUN_FAKE, "--config=c.py", "--workdir=w", f"--config.seed={seed}"]
    done = command(*args, directory=directory)
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


def test_one_process_per_workdir(tmp_path: Path) -> None:
    hold = (
        "from r1jax.machines.processes import lock_workdir\n"
        "with lock_workdir('w'):\n    print('held', flush=True)\n    input()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    second = command("-c", hold, directory=tmp_path)
    assert f"ConfigError: w is in use by process {holder.pid}" in second.stderr
    holder.kill()
    holder.communicate()
    third = command("-c", hold.replace("    input()\n", ""), directory=tmp_path)
    assert third.returncode == 0


def test_processes_must_be_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R1JAX_COMPILATION_CACHE", "")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ConfigError, match="JAX_NUM_PROCESSES must be a number, not 'two'"):
        set_up_jax()


@pytest.mark.parametrize(("process", "said"), [(0, "here\n"), (1, "")])
def test_the_first_process_speaks(
    process: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("R1JAX_COMPILATION_CACHE", "")
    monkeypatch.setenv("R1JAX_DISTRIBUTED", "1")
    monkeypatch.setattr("r1jax.machines.hosts._join_others", lambda: None)
    monkeypatch.setattr("jax.process_index", lambda: process)
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # restored afterwards
    set_up_jax()
    print("here")
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("module", "tunables", "restarts"),
    [("r1jax.train", None, True), ("r1jax.train", "", False), ("pytest.__main__", None, False)],
)
def test_keep_memory(
    module: str, tunables: str | None, restarts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command restarts itself once, with the same arguments; nobody else does."""
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, argv: started.append([path, *argv]))
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec(module, None))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "-m", module, "--config=x"])
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("GLIBC_TUNABLES", "restored afterwards")
    monkeypatch.delenv("GLIBC_TUNABLES")
    if tunables is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    keep_memory()
    arguments = ["-X", "dev", "-m", module, "--config=x"]
    assert started == ([[sys.executable, sys.executable, *arguments]] if restarts else [])
    if restarts:
        keep_memory()
        assert len(started) == 1
    if restarts and Path("/proc/self/statm").exists():
        assert _kept_by_malloc(os.environ["GLIBC_TUNABLES"])
        assert not _kept_by_malloc("")


def _kept_by_malloc(tunables: str) -> bool:
    """Whether a process that makes and drops an array of 256 MiB still holds it afterwards."""
    code = """
import numpy, threading
thread = threading.Thread(target=lambda: numpy.ones(2**25))
thread.start(), thread.join()
print(open("/proc/self/statm").read().split()[1])
"""
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "GLIBC_TUNABLES": tunables},
        capture_output=True,
        check=True,
        text=True,
    )
    return int(out.stdout) * os.sysconf("SC_PAGE_SIZE") > 2**28
