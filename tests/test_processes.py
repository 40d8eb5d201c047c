"""Two processes with a device each end as one process with two devices."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import read_lines

TESTS = Path(__file__).parent
RUN = f"""
import json, sys
sys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent)!r}]
from r1jax.cli import set_up_jax
set_up_jax()
from helpers import grpo_config
from r1jax.stages import grpo
tokenizer, workdir, changes = sys.argv[1:]
grpo.train(grpo_config(tokenizer, **json.loads(changes)), workdir)
"""
CHANGES = """{
    "rewards": {"helpers:by_process": 1.0}, "rollouts_ahead": 1, "mesh": {"fsdp": -1},
    "loss": {"kl_coef": 0.01, "importance_cap": 2.0}, "engine": {"slots": 0, "bucket": 64}
}"""


def start(tokenizer: str, workdir: Path, cache: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, tokenizer, str(workdir), CHANGES],
        env={**os.environ, "R1JAX_COMPILATION_CACHE": cache, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate(timeout=500)
    assert process.returncode == 0, said[-3000:]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


@pytest.mark.slow
def test_two_processes_are_one(tokenizer_dir: str, tmp_path: Path, compilation_cache: str) -> None:
    """The same rollouts and metrics up to the order of sums; graders count on the first only."""
    address = f"localhost:{free_port()}"
    common = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "XLA_FLAGS": ""}
    processes = [
        start(tokenizer_dir, tmp_path / "two", compilation_cache, JAX_PROCESS_ID=str(i), **common)
        for i in range(2)
    ]
    try:
        for process in processes:
            finish(process)
    finally:
        for process in processes:
            process.kill()
    devices = "--xla_force_host_platform_device_count=2"
    finish(start(tokenizer_dir, tmp_path / "one", compilation_cache, XLA_FLAGS=devices))

    def rows(name: str, iteration: int) -> list[dict[str, Any]]:
        return read_lines(tmp_path / name / f"rollouts/{iteration:06d}.jsonl")

    for iteration in range(2):
        for two, one in zip(rows("two", iteration), rows("one", iteration), strict=True):
            assert two["tokens"] == one["tokens"]
            assert two["reward"] == one["reward"]
    lines = [read_lines(tmp_path / name / "metrics.jsonl") for name in ("two", "one")]
    for two, one in zip(*lines, strict=True):
        assert two.keys() == one.keys()
        np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-3, atol=1e-5)
