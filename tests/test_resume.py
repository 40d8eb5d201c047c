"""Killed with SIGKILL at any moment and started again, a run ends with the same bits."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers import ONE_DEVICE

from r1jax.weights.checkpoint import Checkpoints

ROOT = Path(__file__).parents[1]
SFT = """
from helpers import sft_config

def get_config(arg=""):
    config = sft_config({tokenizer!r}, total_steps={steps}, checkpoint_every=3, microbatch_rows=2)
    config.model.tokenizer = None  # the run trains its own
    config.model.tokenizer_function = "experiments.mini.world.corpus:tokenizer"
    config.model.tokenizer_args = {{"vocab_size": 512, "count": 400, "seed": 0, "mix": {{}}}}
    return config
"""
GRPO = """
from helpers import grpo_config

def get_config(arg=""):
    return grpo_config({tokenizer!r}, total_steps={steps}, ref_every=6, microbatch_rows=2)
"""
GRPO_LORA = """
from helpers import grpo_config

def get_config(arg=""):
    config = grpo_config({tokenizer!r}, total_steps={steps}, ref_every=6, microbatch_rows=2)
    config.model.config.experts = {{
        "num_experts": 4, "top_k": 2, "ffn_dim": 8, "score": "sigmoid", "bias": True}}
    config.model.config.lora = {{"rank": 2}}
    config.router = {{"bias_step": 1e-2}}
    return config
"""


class Command:
    """`python -m r1jax.train` on one device, with one compilation cache for all of them."""

    def __init__(self, directory: Path, config: str) -> None:
        self.directory = directory
        (directory / "config.py").write_text(config)

    def start(self, workdir: Path) -> subprocess.Popen[bytes]:
        flags = "--config=config.py", f"--workdir={workdir}"
        return subprocess.Popen(
            [sys.executable, "-m", "r1jax.train", *flags],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=self.directory,
            env=os.environ
            | {
                "XLA_FLAGS": ONE_DEVICE,
                "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            },
        )

    def finish(self, workdir: Path) -> Path:
        process = self.start(workdir)
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
        return workdir

    def kill(self, workdir: Path, moment: Callable[[], bool], delay: float = 0.0) -> bool:
        """Kills the run `delay` seconds after `moment`; False if it ended before."""
        process = self.start(workdir)
        try:
            while process.poll() is None and not moment():
                time.sleep(0.001)
            time.sleep(delay)
        finally:
            process.kill()
            _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors.decode()
        return process.returncode != 0


def last_arrays(workdir: Path) -> Any:
    """Everything in the newest checkpoint: parameters, moments, step, reference."""
    checkpoints = Checkpoints(workdir)
    state = checkpoints.directory / str(checkpoints.latest_step()) / "state"
    return ocp.PyTreeCheckpointer().restore(state)


def files(workdir: Path) -> dict[str, bytes]:
    """What must not differ by a byte."""
    paths = [
        *workdir.glob("metrics.jsonl"),
        *workdir.glob("samples.jsonl"),
        *workdir.glob("rollouts/*/*"),
        *workdir.glob("evaluations/*/*.json*"),
    ]
    return {str(path.relative_to(workdir)): path.read_bytes() for path in paths}


def assert_same(first: Path, second: Path) -> None:
    found, expected = files(first), files(second)
    assert sorted(found) == sorted(expected)
    assert "metrics.jsonl" in expected
    for name in expected:
        assert found[name] == expected[name], name
    a, b = last_arrays(first), last_arrays(second)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert len(jax.tree.leaves(a)) > 20
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def exists(path: Path, without: str = "") -> Callable[[], bool]:
    return lambda: path.exists() and not (without and (path / without).exists())


@pytest.mark.parametrize("config", [GRPO, GRPO_LORA], ids=["all", "adapters"])
def test_grpo_killed_twice(tokenizer_dir: str, tmp_path: Path, config: str) -> None:
    """Between a rollout and its updates, and inside a checkpoint."""
    command = Command(tmp_path, config.format(tokenizer=tokenizer_dir, steps=8))
    whole, killed = command.finish(tmp_path / "whole"), tmp_path / "killed"
    assert command.kill(killed, exists(killed / "rollouts/000001/complete.json"))
    assert command.kill(killed, exists(killed / "checkpoints" / "4", without="manifest.json"))
    command.finish(killed)
    assert_same(killed, whole)


def logged(workdir: Path, step: int) -> Callable[[], bool]:
    path = workdir / "metrics.jsonl"
    return lambda: path.exists() and f'"step": {step},' in path.read_text()


def after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def random_moment(
    rng: random.Random, workdir: Path, step: int, seconds: float
) -> Callable[[], bool]:
    """In the first `seconds`, or around `step`: in a rollout, an update, a checkpoint."""
    checkpoint = workdir / "checkpoints" / str(step - step % 6)  # due in both stages
    moments = (
        after(rng.uniform(0, seconds)),
        exists(workdir / "rollouts" / f"{step // 2:06d}"),
        logged(workdir, step),
        exists(checkpoint),
        exists(checkpoint / "state", without="../manifest.json"),
    )
    chosen, passed = rng.choice(moments), logged(workdir, step + 3)  # however slow the machine
    return lambda: chosen() or passed()


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "config"), [("sft", SFT), ("grpo", GRPO)])
def test_killed_five_times(tokenizer_dir: str, tmp_path: Path, stage: str, config: str) -> None:
    command = Command(tmp_path, config.format(tokenizer=tokenizer_dir, steps=42))
    start = time.monotonic()
    whole, killed = command.finish(tmp_path / "whole"), tmp_path / "killed"
    seconds = time.monotonic() - start
    rng = random.Random(stage)
    for kill in range(5):
        moment = random_moment(rng, killed, 6 + 7 * kill + rng.randrange(7), 0.3 * seconds)
        assert command.kill(killed, moment, rng.uniform(0, 0.05)), f"it ended before kill {kill}"
    command.finish(killed)
    assert_same(killed, whole)
