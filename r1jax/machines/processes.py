"""Commands that run at the same time: a share of the cores each, one process per workdir."""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from etils import epath

from r1jax.config import ConfigError
from r1jax.files import LOCK, LOG, absolute, in_bucket, read_bytes, write_atomic
from r1jax.machines.lease import lease

PARENT = "R1JAX_PARENT"  # the process without which a command is not to go on


class Processes:
    """At most `parallel` commands at a time; leaving the `with` block ends those that still run,
    which may save what they have.
    """

    def __init__(self, parallel: int) -> None:
        self._shares = core_shares(parallel)
        self.running: dict[str, tuple[set[int], subprocess.Popen[bytes]]] = {}
        self._logs: dict[str, tuple[epath.Path, epath.Path]] = {}  # here, and in a bucket

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for _cores, process in self.running.values():
            process.terminate()
        for _cores, process in self.running.values():
            process.wait()
        for name in list(self._logs):
            self._bring_log(name)

    @property
    def free(self) -> int:
        """How many may be started now."""
        return len(self._shares)

    def start(self, name: str, command: Sequence[str], workdir: epath.PathLike) -> None:
        """Starts it; what it prints is appended to WORKDIR/log.txt, in a bucket at its end."""
        if not in_bucket(workdir):  # where the command itself waits
            _until_free(Path(workdir))
        cores = self._shares.pop()
        with self._log_of(name, absolute(workdir)).open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {PARENT: str(os.getpid())},
            )
        if cores:
            os.sched_setaffinity(process.pid, cores)  # before it has imported anything
        self.running[name] = (cores, process)

    def _log_of(self, name: str, workdir: epath.Path) -> epath.Path:
        if not in_bucket(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
            return workdir / LOG
        path = epath.Path(tempfile.mkdtemp(prefix="r1jax-")) / LOG
        self._logs[name] = path, workdir / LOG
        return path

    def _bring_log(self, name: str) -> None:
        """Behind what earlier starts have said."""
        here, there = self._logs.pop(name)
        try:
            before = read_bytes(there) if there.exists() else b""
            write_atomic(there, before + here.read_bytes())
            here.parent.rmtree()
        except Exception as error:  # no reason to lose what the run has come to
            logging.warning("%s cannot be written, see %s: %s", there, here, error)

    def wait(self) -> dict[str, int]:
        """{name: exit code} of the commands that have ended, once there are any."""
        codes: dict[str, int] = {}
        while not codes:
            time.sleep(0.05)
            codes = {
                name: process.returncode
                for name, (_, process) in self.running.items()
                if process.poll() is not None
            }
        for name in codes:
            self._shares.append(self.running.pop(name)[0])
            if name in self._logs:
                self._bring_log(name)
        return codes


def core_shares(parallel: int) -> list[set[int]]:
    """Which cores each of the commands may use: threads of two on one core slow both down.

    Empty sets, which leave a command where it is, where the system cannot tell or has fewer cores.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    cores = sorted(affinity(0)) if affinity else []
    if parallel == 1 or len(cores) < parallel:
        return [set() for _ in range(parallel)]
    return [set(cores[i::parallel]) for i in range(parallel)]


@contextmanager
def lock_workdir(workdir: str | os.PathLike[str]) -> Iterator[None]:
    """Holds the workdir for this process; ConfigError if another one has it.

    A POSIX record lock: it ends with its process, however that dies, and children don't hold it.
    In a bucket there are none (lease.py).
    """
    if in_bucket(workdir):
        with lease(absolute(workdir) / LOCK):
            yield
        return
    path = Path(absolute(workdir)) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise ConfigError(f"{workdir} is in use by process {file.read().strip()}") from None
        file.truncate(0)
        print(os.getpid(), file=file, flush=True)
        yield


def _until_free(workdir: Path, seconds: float = 60.0) -> None:
    """A process of a starter that was killed is killed too, but may take a while to give its memory
    back, and has its workdir until then. After so long its own command may say that it is in use.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(ConfigError), lock_workdir(workdir):
            return
        time.sleep(0.1)


def end_with_parent() -> None:
    """This process is killed when its parent ends, however that dies (Linux only)."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def end_with_starter() -> None:
    """The same for a command that `Processes` has started; others go on without their parent."""
    parent = os.environ.pop(PARENT, "")
    if parent:
        end_with_parent()
        if os.getppid() != int(parent):  # it has ended already
            os.kill(os.getpid(), signal.SIGKILL)
