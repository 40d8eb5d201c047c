"""Untrusted programs in bubblewrap: limits, supervision, and a sure end.

A program runs as an unused user in namespaces of its own: no network, no view of other processes,
a read-only system without home directories, data or this package, an empty environment, one private
/tmp in memory, no capabilities, no further user namespaces. Hard limits (processor time, address
space, processes, file size, open files) are set inside before its first line; from outside the
whole tree is watched every POLL_S seconds for its processor time, resident memory and number of
processes, and for wall time and output. It ends with its PID namespace: nothing outlives it.

What this does not stop: a hole in the kernel or in bubblewrap (there is no seccomp filter);
reading what any user may read under /usr and Python's own prefix; using a processor and memory up
to the limits, and learning about the machine from timing; memory beyond the limit for less than
POLL_S by several processes together; files in /tmp and /dev/shm up to TMP_BYTES each, which are
memory too and not counted.

mode="rlimits" is for machines without bubblewrap and must be chosen: the same limits and watching
and an empty environment, but the program sees the files and the network as its user does, shares
/tmp, and a process that leaves its session may outlive it where r1jax does not run as root.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

from r1jax.config import ConfigError

Mode = Literal["bwrap", "rlimits"]
MODES = ("bwrap", "rlimits")
Cause = Literal["exit", "time_limit", "memory_limit", "output_limit", "process_limit"]
POLL_S = 0.02
TMP_BYTES = 64 << 20
SAID = 2_000  # bytes of standard error that are kept
OWN_PROCESSES = 2  # bubblewrap's
FIRST_UID, UIDS = 20_000, 40_000  # user ids to pick unused ones from, when we are root
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/tmp"}
_PAGE, _TICKS = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
_numbers = itertools.count()


_chosen: Mode = "bwrap"


def choose_sandbox(mode: Mode) -> None:
    """How this process runs programs from now on."""
    global _chosen
    if mode not in MODES:
        raise ConfigError(f"sandbox {mode!r} is not one of {', '.join(MODES)}")
    _chosen = mode
    if mode == "rlimits":
        logging.warning(
            "sandbox 'rlimits': programs under test see this machine's files and network"
        )


def chosen_sandbox() -> Mode:
    return _chosen


@dataclass(frozen=True)
class Limits:
    """For one program, with whatever it starts."""

    cpu_s: float = 10.0
    wall_s: float = 20.0
    memory_mb: int = 512  # resident, of all processes together; address space of each is twice that
    processes: int = 16  # threads count too
    output_bytes: int = 1 << 20
    file_bytes: int = 16 << 20

    def inside(self) -> dict[str, int]:
        """The hard limits that the program's own process starts with."""
        others = 0 if os.geteuid() == 0 else _processes_of_user()
        return {
            "CPU": int(self.cpu_s) + 2,  # the watch is exact; this is for a watch that died
            "AS": self.memory_mb << 21,
            "NPROC": self.processes + OWN_PROCESSES + others,
            "FSIZE": self.file_bytes,
            "NOFILE": 64,
            "CORE": 0,
        }


@dataclass(frozen=True)
class Usage:
    """Of a process and all that it started."""

    processes: int
    memory_bytes: int
    cpu_s: float


class Child:
    """A sandbox with code_worker in it; `kill` before you forget it.

    `passed` are descriptors that the worker finds under the same numbers.
    """

    def __init__(
        self, role: str, mode: Mode, limits: Limits, stdin: int, stdout: int, passed: Sequence[int]
    ) -> None:
        uid = _unused_uid() if os.geteuid() == 0 else None
        self._uid = uid
        self._home = tempfile.mkdtemp(prefix="r1jax-") if mode == "rlimits" else None
        if self._home and uid is not None:
            os.chown(self._home, uid, uid)
        command = [*_become(uid), *(_bwrap() if mode == "bwrap" else [_python()])]
        command += ["-I", "-S", "-c", _worker_source(), role, json.dumps(limits.inside())]
        self.process = subprocess.Popen(
            command + [str(descriptor) for descriptor in passed],
            stdin=stdin,
            stdout=stdout,
            stderr=stdout,
            pass_fds=passed,
            env=ENVIRONMENT,
            cwd=self._home or "/",
            start_new_session=True,
        )
        self.handle = os.pidfd_open(self.process.pid)  # readable when the process has ended

    def usage(self) -> Usage:
        found = [usage for pid in _tree(self.process.pid) if (usage := _usage(pid))]
        return Usage(
            sum(usage.processes for usage in found),
            sum(usage.memory_bytes for usage in found),
            sum(usage.cpu_s for usage in found),
        )

    def kill(self) -> int:
        """Ends the whole tree; the exit status of its root."""
        for pid in list(_tree(self.process.pid)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        status = self.process.wait()
        os.close(self.handle)
        if self._home:
            while self._uid is not None and (left := _processes_of(self._uid)):
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            shutil.rmtree(self._home, ignore_errors=True)
        return status


class Watch:
    """Looks after children until one ends or a limit is passed. `restart` begins a new turn."""

    def __init__(self, children: Sequence[Child], limits: Limits) -> None:
        self._children, self._limits = children, limits
        self._cpu_before = 0.0
        self.restart()

    def restart(self) -> None:
        """Processor and wall time count from here."""
        self._start = time.monotonic()
        self._cpu_before = sum(child.usage().cpu_s for child in self._children)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def until_end(self, of: Child, output: int, on_poll: Callable[[], None] | None = None) -> Cause:
        """Waits for the end of a child, or a cause to kill them all."""
        while True:
            ended, _, _ = select.select([of.handle], [], [], POLL_S)
            if on_poll:
                on_poll()
            cause = self._passed(output)
            if cause or ended:
                return cause or "exit"

    def _passed(self, output: int) -> Cause | None:
        limits = self._limits
        if os.fstat(output).st_size > limits.output_bytes:
            return "output_limit"
        usages = [child.usage() for child in self._children]
        if any(usage.memory_bytes > limits.memory_mb << 20 for usage in usages):
            return "memory_limit"
        if any(usage.processes > limits.processes + OWN_PROCESSES for usage in usages):
            return "process_limit"
        cpu_s = sum(usage.cpu_s for usage in usages) - self._cpu_before
        if self.seconds > limits.wall_s or cpu_s > limits.cpu_s:
            return "time_limit"
        return None


@dataclass(frozen=True)
class Outcome:
    """How a whole program ended."""

    cause: Cause
    status: int  # exit status; negative: the signal
    output: bytes  # standard output, at most output_bytes
    errors: str  # the end of standard error
    seconds: float


def run_program(source: str, stdin: bytes, limits: Limits, mode: Mode) -> Outcome:
    """Runs a Python program with `stdin` as its standard input."""
    with (
        memory_file(source.encode(errors="surrogatepass")) as code,
        memory_file(stdin) as given,
        memory_file() as output,
        memory_file() as errors,
    ):
        child = Child("program", mode, limits, given, output, [code, errors])
        watch = Watch([child], limits)
        try:
            cause = watch.until_end(child, output)
        finally:
            status = child.kill()
        said = os.pread(errors, SAID, max(os.fstat(errors).st_size - SAID, 0))
        return Outcome(
            cause,
            status,
            os.pread(output, limits.output_bytes, 0),
            said.decode(errors="replace"),
            watch.seconds,
        )


@lru_cache(maxsize=1)
def check_sandbox(mode: Mode) -> None:
    """Raises ConfigError unless programs can be run, with what is missing."""
    if sys.platform != "linux":
        raise ConfigError("code rewards need Linux: their sandbox is made of its namespaces")
    if mode == "bwrap" and not shutil.which("bwrap"):
        raise ConfigError(
            "code rewards run programs in bubblewrap, and there is no bwrap here: apt install"
            ' bubblewrap, or choose sandbox="rlimits", which shows them files and network'
        )
    outcome = run_program("print(6 * 7)", b"", Limits(), mode)
    if outcome.output != b"42\n":
        raise ConfigError(
            f"sandbox {mode!r} does not run here (exit status {outcome.status}):"
            f" {(outcome.output.decode(errors='replace') + outcome.errors).strip()[-500:]}"
        )


@contextlib.contextmanager
def memory_file(content: bytes = b"") -> Iterator[int]:
    """A file without a name, at its start."""
    descriptor = os.memfd_create("r1jax")
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


@lru_cache(maxsize=1)
def _worker_source() -> str:
    return (files("r1jax.rewards") / "code_worker.py").read_text() + "\nmain()\n"


def _prefix() -> Path:
    """Where the interpreter behind our virtual environment is installed."""
    return Path(sys.base_prefix).resolve()


@lru_cache(maxsize=1)
def _seen_prefix() -> Path:
    """The same as the sandbox's user can reach it: only root may enter /root/.pyenv."""
    closed = any(not parent.stat().st_mode & 0o001 for parent in (_prefix(), *_prefix().parents))
    return Path("/mnt") if os.geteuid() == 0 and closed else _prefix()


def _python() -> str:
    python = Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()
    return str(_seen_prefix() / python.relative_to(_prefix()))


def _become(uid: int | None) -> list[str]:
    """A command that runs the one behind it as that user, with nothing of root's left."""
    if uid is None:
        return []
    drop = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs"]
    if _seen_prefix() == _prefix():
        return drop
    mount = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'  # in a mount namespace of its own
    shell = ["sh", "-c", mount, "sh", str(_prefix()), str(_seen_prefix())]
    return ["unshare", "--mount", *shell, *drop]


@lru_cache(maxsize=1)
def _bwrap() -> list[str]:
    """bubblewrap with Python in it; Python's arguments follow."""
    arguments = ["bwrap", "--unshare-all", "--unshare-user", "--disable-userns"]
    arguments += ["--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    arguments += ["--ro-bind", "/usr", "/usr"]
    for path in ("/bin", "/lib", "/lib32", "/lib64", "/sbin"):
        if os.path.islink(path):
            arguments += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            arguments += ["--ro-bind", path, path]
    if not _prefix().is_relative_to("/usr"):
        arguments += ["--ro-bind", str(_seen_prefix()), str(_seen_prefix())]
    arguments += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    arguments += ["--proc", "/proc", "--dev", "/dev"]
    for path in ("/dev/shm", "/tmp"):
        arguments += ["--size", str(TMP_BYTES), "--tmpfs", path]
    for path in ("/dev", "/"):
        arguments += ["--remount-ro", path]
    return [*arguments, "--chdir", "/tmp", "--", _python()]


def _unused_uid() -> int:
    """Another one for every child, so that limits of processes are their own."""
    while True:
        uid = FIRST_UID + (os.getpid() * 31 + next(_numbers)) % UIDS
        try:
            pwd.getpwuid(uid)
        except KeyError:
            return uid


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                yield from _tree(int(child))


def _usage(pid: int) -> Usage | None:
    try:
        line = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    values = [int(x) for x in line.rpartition(")")[2].split()[1:]]  # from the parent's id on
    ticks = sum(values[10:14])  # user and system time, its own and its dead children's
    return Usage(values[16], values[20] * _PAGE, ticks / _TICKS)


def _processes_of(uid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if path.stat().st_uid == uid and _is_alive(path):
                found.append(int(path.name))
    return found


def _is_alive(path: Path) -> bool:
    return (path / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"


def _processes_of_user() -> int:
    """Threads of our own user, which the limit counts too."""
    return sum(usage.processes for pid in _processes_of(os.geteuid()) if (usage := _usage(pid)))
