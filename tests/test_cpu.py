"""Cores as devices."""

import os
import subprocess
import sys

import pytest

DEVICES = """
import os
os.sched_getaffinity = lambda process: set(range(6))
from r1jax.machines.cpu import SMALL_MODEL, devices_for
from r1jax.machines.hosts import set_up_jax
set_up_jax()
import jax
small = [len(devices_for(1000, rows)) for rows in (0, 1, 2, 4, 9, 18)]
print(jax.device_count(), small, len(devices_for(SMALL_MODEL, 2)))
"""
MESHES = """
from r1jax.machines.mesh import make_mesh
from r1jax.weights.load import open_model
base = open_model("experiments/mini/base")
meshes = base.mesh({"data": -1}, 2), base.mesh(None, 3), base.mesh({"data": 1}, 2), make_mesh()
print([mesh.size for mesh in meshes])
"""


def run(script: str, environment: dict[str, str]) -> list[str]:
    """In a process of its own, whose devices nobody has counted yet."""
    kept = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_small_model_has_a_device_a_core() -> None:
    """Six cores, of which a mesh takes as many as divide the rows; a large model takes one."""
    assert run(DEVICES + MESHES, {}) == ["6 [6, 1, 2, 4, 3, 6] 1", "[2, 3, 1, 1]"]


@pytest.mark.parametrize(
    "environment",
    [
        {"JAX_NUM_CPU_DEVICES": "2"},
        {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
    ],
)
def test_who_counts_devices_gets_them_all(environment: dict[str, str]) -> None:
    assert run(DEVICES, environment) == ["2 [2, 2, 2, 2, 2, 2] 2"]
