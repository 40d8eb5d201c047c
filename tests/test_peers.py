"""Processes of one run: who does not come is named, and who dies ends the others."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_processes import free_port

from r1jax.config import ConfigError
from r1jax.machines import hosts, peers

ROOT = Path(__file__).parents[1]
HERE = socket.gethostname()
SCRIPT = """
import sys
import time

from r1jax.config import UserError
from r1jax.machines import peers

peers.GRACE = 0.5
address, count, process, seconds, code = sys.argv[1:]
try:
    peers.meet(address, int(count), int(process), float(seconds))
except UserError as error:
    sys.exit(f"error: {error}")
print("met", flush=True)
if code == "waits":
    time.sleep(60)
peers.ends_with(int(code))
sys.exit(int(code))
"""


def start(
    address: str, count: int, process: int, seconds: float = 30.0, code: str = "waits"
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, address, f"{count}", f"{process}", f"{seconds}", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def met(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "met\n"


@pytest.fixture
def address() -> str:
    return f"localhost:{free_port()}"


@pytest.mark.parametrize(
    ("names", "named"),
    [("", "processes 1, 3 of 5"), ("a,b,c,d,e", "processes 1 (b), 3 (d) of 5")],
)
def test_who_does_not_come_is_named(
    address: str, names: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", names)
    several = [start(address, 5, i, seconds=2) for i in (0, 2, 4)]
    said = {process.communicate(timeout=30)[1] for process in several}
    assert said == {f"error: after 2 s {named} had not come\n"}


def test_the_first_does_not_come(address: str) -> None:
    _, said = start(address, 2, 1, seconds=1).communicate(timeout=30)
    host, _, port = address.partition(":")
    assert f"after 1 s process 0 did not answer at {host}:{int(port) + 1}: " in said


def test_strangers_are_sent_away(address: str) -> None:
    """They may connect before the others, and say anything."""
    host, _, port = address.partition(":")
    first = start(address, 2, 0)
    for said in (b"GET / HTTP/1.1\n", b"[]\n", b""):
        while True:
            try:
                with socket.create_connection((host, int(port) + 1)) as stranger:
                    stranger.sendall(said)
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
    second = start(address, 2, 1)
    met(first, second)
    first.kill()
    second.kill()


def test_the_port_is_taken(address: str) -> None:
    port = int(address.partition(":")[2]) + 1
    with socket.create_server(("", port)):
        _, said = start(address, 2, 0).communicate(timeout=30)
    assert said.startswith(f"error: port {port}, behind the coordinator's, where the processes")
    assert "Address already in use; give JAX_COORDINATOR_ADDRESS" in said


@pytest.mark.parametrize("victim", [0, 2])
def test_who_dies_ends_the_others(address: str, victim: int) -> None:
    several = [start(address, 3, i) for i in range(3)]
    met(*several)
    several[victim].kill()
    for i, process in enumerate(several):
        _, said = process.communicate(timeout=30)
        if i != victim:
            assert process.returncode == peers.LOST
            assert said.startswith(f"error: process {victim} ({HERE}) is gone; the same command")


@pytest.mark.parametrize("victim", [0, 1])
def test_who_fails_alone_ends_the_others(address: str, victim: int) -> None:
    """When they had time to find the same error."""
    several = [start(address, 3, i, code="2" if i == victim else "waits") for i in range(3)]
    for i, process in enumerate(several):
        _, said = process.communicate(timeout=30)
        if i != victim:
            assert process.returncode == peers.LOST
            assert f"process {victim} ({HERE}) has ended with exit code 2; its log" in said


@pytest.mark.parametrize("code", ["0", "75"])
def test_who_ends_in_good_order_ends_nobody(address: str, code: str) -> None:
    several = [start(address, 3, i, code="waits" if i == 2 else code) for i in range(3)]
    assert [process.wait(30) for process in several[:2]] == [int(code)] * 2
    time.sleep(1)
    assert several[2].poll() is None
    several[2].send_signal(signal.SIGKILL)


def test_a_slurm_job_knows_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"JOB_ID": "70000", "STEP_NODELIST": "node[3-5]", "NTASKS": "3", "PROCID": "2"}
    for name, value in (job | {"LOCALID": "0"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    address, count, process = hosts._place()
    assert address.startswith("node3:")
    assert (count, process) == (3, 2)


def test_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="R1JAX_DISTRIBUTED is set, but this is no TPU pod"):
        hosts._place()
    monkeypatch.setenv("R1JAX_START_SECONDS", "soon")
    with pytest.raises(ConfigError, match="R1JAX_START_SECONDS must be a number, not 'soon'"):
        hosts._env_number("R1JAX_START_SECONDS", "300")
