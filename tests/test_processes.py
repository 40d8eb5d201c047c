"""Two processes with a device each, as on two hosts, against one process with both devices."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import metrics_by_step, read_lines

ROOT = Path(__file__).parents[1]
CONFIG = """
from helpers import grpo_config

def get_config(arg=""):
    rewards = {{"helpers:ascii_share": 1.0, "helpers:process": 1.0}}
    return grpo_config(
        {tokenizer!r}, rewards=rewards, rollouts_ahead=1, loss={{"importance_cap": 2.0}}
    )
"""


def start(directory: Path, workdir: str, **environment: str) -> subprocess.Popen[bytes]:
    with open(directory / f"{workdir}-{environment.get('JAX_PROCESS_ID', 0)}.log", "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "r1jax.train", "--config=config.py", f"--workdir={workdir}"],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=os.environ
            | {
                "XLA_FLAGS": "",
                "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
                "R1JAX_COMPILATION_CACHE": str(directory / "xla"),
                **environment,
            },
        )


def finish(directory: Path, *processes: subprocess.Popen[bytes]) -> None:
    try:
        codes = [process.wait(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    logs = "\n".join(path.read_text() for path in sorted(directory.glob("*.log")))
    assert not any(codes), f"{codes}\n{logs}"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


def without_seconds(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if "seconds" not in name}


@pytest.mark.slow
def test_two_processes_are_one_with_two_devices(tokenizer_dir: str, tmp_path: Path) -> None:
    """One rollout ahead, and a reward that every process grades differently: the first's counts."""
    (tmp_path / "config.py").write_text(CONFIG.format(tokenizer=tokenizer_dir))
    flags = "--xla_force_host_platform_device_count=2"
    finish(tmp_path, start(tmp_path, "one", XLA_FLAGS=flags))
    several = {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
        "JAX_NUM_PROCESSES": "2",
    }
    both = [start(tmp_path, "two", JAX_PROCESS_ID=str(i), **several) for i in range(2)]
    finish(tmp_path, *both)

    one, two = metrics_by_step(tmp_path / "one"), metrics_by_step(tmp_path / "two")
    assert list(one) == list(two)
    assert len(one) == 4
    for step in one:
        expected, found = without_seconds(one[step]), without_seconds(two[step])
        assert expected.keys() == found.keys()
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-6)
    for path in sorted((tmp_path / "one/rollouts").iterdir()):
        expected, found = read_lines(path), read_lines(tmp_path / "two/rollouts" / path.name)
        for key in ("prompt_tokens", "tokens", "finish_reason", "reward_breakdown"):
            assert [row[key] for row in found] == [row[key] for row in expected]
