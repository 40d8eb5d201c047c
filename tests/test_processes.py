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


SAVES = """
import os, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from r1jax.machines.hosts import set_up_jax
from r1jax.weights import checkpoint
from r1jax.weights.checkpoint import CheckpointError, Checkpoints
set_up_jax()
me, told = jax.process_index(), []
mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(AxisType.Auto,))
split, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (("fsdp",), ()))
def make(step):
    value = np.arange(40.0, dtype=np.float32).reshape(4, 10) + step
    def one(sharding):
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
    return {"split": one(split), "whole": one(whole)}
def add(s):
    return {name: x + 1 for name, x in s.items()}
step = jax.jit(add, donate_argnums=0, out_shardings={"split": split, "whole": whole})
state = make(0)
abstract = {
    n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for n, x in state.items()}
def newest():
    return Checkpoints(sys.argv[1]).restore_newest(abstract)[0]
with Checkpoints(sys.argv[1]) as checkpoints:
    for number in range(3):
        checkpoints.save(number, state, {"step": number})
        state = step(state)  # while it is written: what the main threads do is in step
found, extra = checkpoints.restore(2, abstract)
for name, x in make(2).items():
    for a, b in zip(found[name].addressable_shards, x.addressable_shards):
        np.testing.assert_array_equal(a.data, b.data)
print("restored", me, extra["step"], checkpoints.steps(), flush=True)
if me == 0:  # of a file of the second one
    import json
    directory = checkpoints.directory / "2"
    own = [set(json.loads((directory / f"files.{i}.json").read_text())) for i in range(2)]
    assert not own[0] & own[1]
    assert {"state/split/0.0"} <= own[0] and {"state/split/1.0"} <= own[1]
    file = directory / "state/split/1.0"
    file.write_bytes(b"?" + file.read_bytes()[1:])
try:
    checkpoints.restore(2, abstract)
except CheckpointError as error:
    print("damaged", me, "state/split/1.0" in str(error), newest(), flush=True)
def fail(*_):
    if me == 1:
        raise OSError("no space on the second one")
checkpoint.write_list = fail
try:
    with checkpoints:
        checkpoints.save(5, state)
except CheckpointError as error:
    print("told", me, "no space on the second one" in str(error), checkpoints.steps(), flush=True)
"""


def test_each_process_writes_and_checks_its_own_files(tmp_path: Path) -> None:
    """And an error of one is one of both."""
    several = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    processes: list[subprocess.Popen[bytes]] = []
    for i in range(2):
        environment = {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT), "JAX_PROCESS_ID": str(i)}
        with open(tmp_path / f"{i}.log", "wb") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", SAVES.replace("flush=True", "file=sys.stderr"), "work"],
                    stderr=log,
                    cwd=tmp_path,
                    env=os.environ | environment | several,
                )
            )
    finish(tmp_path, *processes)
    for i in range(2):
        lines = (tmp_path / f"{i}.log").read_text().splitlines()
        assert f"restored {i} 2 [1, 2]" in lines
        assert f"damaged {i} True 1" in lines
        assert f"told {i} True [1]" in lines


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
