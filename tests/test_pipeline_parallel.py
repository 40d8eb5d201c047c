"""`--only` and `--parallel`: stages of a pipeline as commands of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from etils import epath
from helpers import RUN_FAKE

from r1jax.stages.pipeline import PipelineStage, stages_behind

ROOT = Path(__file__).parents[1]
# Each stage waits for a file that the test (or another stage) makes, and writes its own.
CONFIG = """
from ml_collections import ConfigDict

def get_config(arg=""):
    stages = {
        "d": {"wait": "a.begun"},
        "a": {"wait": "d.begun"},
        "b": {"model": "@a"},
        "c": {"model": "@b"},
    }
    config = ConfigDict({"stage": "pipeline"})
    config.stages = ConfigDict(
        {name: {"stage": "fake"} | values for name, values in stages.items()}, sort_keys=False
    )
    return config
"""
FAKE_STAGE = """
import time
from dataclasses import dataclass
from pathlib import Path
from r1jax.config import ConfigError

@dataclass(frozen=True)
class CONFIG:
    stage: str
    model: str = ""
    wait: str = ""
    fails: bool = False

def run(config, workdir):
    Path(Path(workdir).name + ".begun").touch()
    end = time.time() + 60
    while config.get("wait") and not Path(config.wait).exists():
        time.sleep(0.01)
        if time.time() > end:
            raise ConfigError(f"waited for {config.wait} in vain")
    if config.get("fails"):
        raise ConfigError("it fails")
    if config.get("model"):
        assert (Path(config.model) / "made").exists()
    (Path(workdir) / "made").touch()
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "c.py").write_text(CONFIG)
    (tmp_path / "fake.py").write_text(FAKE_STAGE)
    return tmp_path


def start(directory: Path, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN_FAKE, "--config=c.py", "--workdir=w", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def finish(directory: Path, *flags: str) -> tuple[int, str, str]:
    process = start(directory, *flags)
    out, errors = process.communicate(timeout=300)
    return process.returncode, out, errors


def test_stages_at_the_same_time(directory: Path) -> None:
    """a and d wait for each other; b and c come after what they read; again nothing is run."""
    code, out, errors = finish(directory, "--parallel=2")
    assert code == 0, errors
    begun = [line.split()[2] for line in out.splitlines() if line.endswith("begins")]
    assert sorted(begun[:2]) == ["a", "d"] and begun[2:] == ["b", "c"]
    stages = json.loads((directory / "w/pipeline.json").read_text())["stages"]
    assert all(stage["complete"] for stage in stages.values())
    assert (directory / "w/figures/pipeline.png").exists()
    code, out, errors = finish(directory, "--parallel=2")
    assert code == 0, errors
    assert "begins" not in out


def test_behind_a_failure_nothing_is_started(directory: Path) -> None:
    code, _, errors = finish(directory, "--parallel=2", "--config.stages.a.fails=True")
    assert code == 2
    log = directory / "w/a/log.txt"
    assert errors.splitlines()[-1] == (
        f"error: stage a: it fails (--restart_from=a begins it anew) (see {log})"
    )
    assert (directory / "w/d/stage_complete.json").exists()  # it was running, and could end
    assert not (directory / "w/b").exists()


def test_a_killed_pipeline_leaves_no_stage_running(directory: Path) -> None:
    """Neither d, which waits for the killed a, nor a; then the same command ends as usual."""
    never = "--config.stages.a.wait=never", "--config.stages.d.wait=never"
    process = start(directory, "--parallel=2", *never)
    begun = directory / "a.begun", directory / "d.begun"
    end = time.monotonic() + 60
    while not all(path.exists() for path in begun):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    stages = [int((directory / "w" / name / ".lock").read_text()) for name in "ad"]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    while any(alive(stage) for stage in stages):
        assert time.monotonic() < end
        time.sleep(0.01)
    code, _, errors = finish(directory, "--parallel=2")
    assert code == 0, errors


def alive(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().split()[2] != "Z"


def test_only_one_stage(directory: Path) -> None:
    (directory / "d.begun").touch()
    for flags, code, said in (
        (["--only=b"], 2, "error: stage b reads a, which is not complete"),
        (["--only=e"], 2, "--only 'e' is not one of 'd', 'a', 'b', 'c'"),
        (["--only=a", "--parallel=2"], 2, "--only runs one stage, without --restart_from and"),
        (["--only=a"], 0, ""),
        (["--only=b"], 0, ""),
        (["--only=b"], 0, "stage b is complete"),
    ):
        found, out, errors = finish(directory, *flags)
        assert found == code, errors
        assert said in out + errors
    made = sorted(path.parent.name for path in (directory / "w").glob("*/made"))
    assert made == ["a", "b"]


def test_stages_behind() -> None:
    def step(name: str, *reads: str) -> PipelineStage:
        return PipelineStage(name, "fake", {}, reads, epath.Path(name))

    steps = [step("a"), step("b", "a"), step("c", "a"), step("d", "a", "c"), step("e")]
    assert stages_behind(steps) == {"a": 2, "b": 0, "c": 1, "d": 0, "e": 0}


def test_other_stages_refuse_the_flags(tmp_path: Path) -> None:
    (tmp_path / "c.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(arg=''):\n    return ConfigDict({'stage': 'fake'})\n"
    )
    (tmp_path / "fake.py").write_text(FAKE_STAGE)
    for flag in ("--only=a", "--parallel=2", "--restart_from=a"):
        code, _, errors = finish(tmp_path, flag)
        name = flag.partition("=")[0]
        assert (code, errors) == (2, f"error: {name} is for pipelines; this is the stage 'fake'\n")
