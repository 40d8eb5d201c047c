"""Untrusted programs in bubblewrap: limits, supervision, and a sure end.

A program runs as an unused user in namespaces of its own: no network, no view of other processes,
a read-only system (with Python and numpy) without home directories, data or this package, an empty
environment, one private /tmp in memory, no capabilities, no further user namespaces, and some
system calls refused (shared memory and queues that nobody maps, io_uring, bpf, keys, ptrace: see
DENIED). Hard limits (processor time, address space, processes, file size, open files) are set
inside before its first line; outside, the whole tree is watched every POLL_S seconds for its
processor time, resident memory and number of processes, and for wall time and output. It ends with
its PID namespace: nothing outlives it.

What this does not stop: a hole in the kernel, behind a call that is allowed, or in bubblewrap;
reading what any user may read under /usr and Python's own prefix; using a processor and memory up
to the limits, and learning about the machine from timing; memory beyond the limit for less than
POLL_S by several processes together; files in /tmp and /dev/shm up to TMP_BYTES each, and the names
of many empty ones, which are memory too and not counted; processor time of children that live less
than POLL_S and that nobody waits for. Each run leaves an ended process for the machine's init to
collect (in a container: docker run --init).

mode="rlimits" is for machines without bubblewrap and must be chosen: the same limits and watching
and an empty environment, but the program sees the files and the network as its user does, shares
/tmp, and a process that leaves its session may outlive it where r1jax does not run as root.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import itertools
import json
import logging
import os
import platform
import pwd
import select
import shutil
import signal
import struct
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
SPARE_BYTES = 1 << 30  # of address space beyond twice the memory: threads ask for large stacks
SAID = 2_000  # bytes of standard error that are kept
OWN_PROCESSES = 2  # bubblewrap's
FIRST_UID, UIDS = 20_000, 40_000  # user ids to pick unused ones from, when we are root
# Memory that no process is seen to hold, and doors into the kernel that no program here needs.
DENIED = {
    "shmget": {"x86_64": 29, "aarch64": 194},
    "semget": {"x86_64": 64, "aarch64": 190},
    "msgget": {"x86_64": 68, "aarch64": 186},
    "mq_open": {"x86_64": 240, "aarch64": 180},
    "memfd_create": {"x86_64": 319, "aarch64": 279},
    "memfd_secret": {"x86_64": 447, "aarch64": 447},
    "io_uring_setup": {"x86_64": 425, "aarch64": 425},
    "userfaultfd": {"x86_64": 323, "aarch64": 282},
    "bpf": {"x86_64": 321, "aarch64": 280},
    "perf_event_open": {"x86_64": 298, "aarch64": 241},
    "add_key": {"x86_64": 248, "aarch64": 217},
    "request_key": {"x86_64": 249, "aarch64": 218},
    "keyctl": {"x86_64": 250, "aarch64": 219},
    "ptrace": {"x86_64": 101, "aarch64": 117},
}
SOCKET, AF_VSOCK = {"x86_64": 41, "aarch64": 198}, 40
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/tmp"}
# What programs may import beside the standard library, if it is installed; LeetCode has the last.
PACKAGES = ("numpy", "numpy.libs", "sortedcontainers")
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
    memory_mb: int = 512  # resident, of all processes together
    processes: int = 64  # threads count too
    output_bytes: int = 1 << 20
    file_bytes: int = 16 << 20

    def inside(self) -> dict[str, int]:
        """The hard limits that the program's own process starts with."""
        others = 0 if os.geteuid() == 0 else _processes_of_user()
        return {
            "CPU": int(self.cpu_s) + 2,  # the watch is exact; this is for a watch that died
            "AS": (self.memory_mb << 21) + SPARE_BYTES,
            "NPROC": self.processes + OWN_PROCESSES + others,
            "FSIZE": self.file_bytes,
            "NOFILE": 64,
            "MSGQUEUE": 0,
            "CORE": 0,
        }


@dataclass(frozen=True)
class Usage:
    """Of a process and all that it started."""

    processes: int
    memory_bytes: int
    cpu_s: float  # with that of children that were waited for
    own_cpu_s: float = 0.0


class Child:
    """A sandbox with sandbox_worker in it; `kill` before you forget it.

    `passed` are descriptors that the worker finds under the same numbers.
    """

    def __init__(
        self, role: str, mode: Mode, limits: Limits, stdin: int, stdout: int, passed: Sequence[int]
    ) -> None:
        uid = _unused_uid() if os.geteuid() == 0 else None
        self._uid = uid
        self._cpu_s: dict[int, float] = {}  # of every process seen so far
        self._home = tempfile.mkdtemp(prefix="r1jax-") if mode == "rlimits" else None
        if self._home and uid is not None:
            os.chown(self._home, uid, uid)
        arguments = ["-I", "-S", "-c", _worker_source(), role, json.dumps(limits.inside())]
        arguments.append(_packages(mode))
        arguments += [str(descriptor) for descriptor in passed]
        with memory_file(_syscall_filter()) as rules:
            inside = [*_bwrap(), "--seccomp", str(rules), "--"] if mode == "bwrap" else []
            self.process = subprocess.Popen(
                [*_become(uid), *inside, _python(), *arguments],
                stdin=stdin,
                stdout=stdout,
                stderr=stdout,
                pass_fds=[*passed, rules],
                env=ENVIRONMENT,
                cwd=self._home or "/",
                start_new_session=True,
            )
        self.handle = os.pidfd_open(self.process.pid)  # readable when the process has ended

    def usage(self) -> Usage:
        found = {pid: usage for pid in _tree(self.process.pid) if (usage := _usage(pid))}
        for pid, usage in found.items():
            self._cpu_s[pid] = usage.own_cpu_s
        return Usage(
            sum(usage.processes for usage in found.values()),
            sum(usage.memory_bytes for usage in found.values()),
            # Of a child that nobody waited for, the time is known from when it was last seen.
            max(sum(usage.cpu_s for usage in found.values()), sum(self._cpu_s.values())),
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
        poll = select.poll()  # not select(), which knows 1,024 descriptors
        poll.register(of.handle, select.POLLIN)
        while True:
            ended = poll.poll(1_000 * POLL_S)
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


def run_program(
    source: str, stdin: bytes, limits: Limits, mode: Mode, prelude: str = ""
) -> Outcome:
    """Runs a Python program, behind a prelude, with `stdin` as its standard input."""
    with (
        memory_file(json.dumps([prelude, source]).encode()) as code,
        memory_file(stdin) as given,
        memory_file() as output,
        memory_file() as errors,
    ):
        child = Child("program", mode, limits, given, output, [code, errors])
        try:
            watch = Watch([child], limits)
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
    return (files("r1jax.tasks") / "sandbox_worker.py").read_text() + "\nmain()\n"


def _prefix() -> Path:
    """Where the interpreter behind our virtual environment is installed."""
    return Path(sys.base_prefix).resolve()


@lru_cache(maxsize=1)
def _site() -> Path:
    """The folder of numpy."""
    found = importlib.util.find_spec("numpy")
    return Path(found.origin).resolve().parent.parent if found and found.origin else Path("/none")


@lru_cache(maxsize=8)
def _is_closed(path: Path) -> bool:
    """Whether the sandbox's user cannot reach a folder: only root may enter /root/.pyenv."""
    if os.geteuid() != 0:
        return False
    return any(x.exists() and not x.stat().st_mode & 0o001 for x in (path, *path.parents))


def _seen(path: Path) -> Path:
    """A folder of Python's as the sandbox's user can reach it."""
    return Path("/mnt") / path.name if _is_closed(path) else path


@lru_cache(maxsize=1)
def _opened() -> dict[Path, Path]:
    """{folder: where the sandbox's user finds it}"""
    folders = [_prefix(), *(_site() / name for name in PACKAGES)]
    return {folder: _seen(folder) for folder in folders if folder.is_dir()}


def _packages(mode: Mode) -> str:
    return "/packages" if mode == "bwrap" else str(_seen(_site() / PACKAGES[0]).parent)


def _python() -> str:
    python = Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()
    return str(_seen(_prefix()) / python.relative_to(_prefix()))


def _become(uid: int | None) -> list[str]:
    """A command that runs the one behind it as that user, with nothing of root's left."""
    if uid is None:
        return []
    drop = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs"]
    closed = [pair for pair in _opened().items() if pair[0] != pair[1]]
    if not closed:
        return drop
    # In a mount namespace of its own: an empty /mnt, and in it the folders.
    mount = 'mount -t tmpfs -o mode=755,size=64k none /mnt && while [ "$1" != -- ]; do'
    mount += ' mkdir "$2" && mount --bind "$1" "$2" && shift 2 || exit 1; done && shift'
    pairs = [str(path) for pair in closed for path in pair]
    return ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh", *pairs, "--", *drop]


@lru_cache(maxsize=1)
def _bwrap() -> list[str]:
    """bubblewrap and its arguments; those of the system call filter and the command follow."""
    arguments = ["bwrap", "--unshare-all", "--unshare-user", "--disable-userns"]
    arguments += ["--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    arguments += ["--ro-bind", "/usr", "/usr"]
    for path in ("/bin", "/lib", "/lib32", "/lib64", "/sbin"):
        if os.path.islink(path):
            arguments += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            arguments += ["--ro-bind", path, path]
    if not _seen(_prefix()).is_relative_to("/usr"):
        arguments += ["--ro-bind", str(_seen(_prefix())), str(_seen(_prefix()))]
    for folder, seen in _opened().items():
        if folder != _prefix():
            arguments += ["--ro-bind", str(seen), f"/packages/{folder.name}"]
    arguments += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    arguments += ["--proc", "/proc", "--dev", "/dev"]
    for path in ("/dev/shm", "/tmp"):
        arguments += ["--size", str(TMP_BYTES), "--tmpfs", path]
    for path in ("/dev", "/"):
        arguments += ["--remount-ro", path]
    return [*arguments, "--chdir", "/tmp"]


@lru_cache(maxsize=1)
def _syscall_filter() -> bytes:
    """A seccomp program: EPERM for the calls in DENIED, everything else is allowed."""
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06  # BPF: LD W ABS, JEQ K, JGE K, RET K
    allow, refuse, kill = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise ConfigError(
            f"code rewards know the system calls of {' and '.join(ARCHITECTURES)}, not of"
            f' {machine}; choose sandbox="rlimits", which has no filter'
        )
    numbers = [calls[machine] for calls in DENIED.values() if machine in calls]
    program = [
        (load, 0, 0, 4),  # the architecture: a 32-bit call has other numbers
        (equal, 1, 0, ARCHITECTURES[machine]),
        (give, 0, 0, kill),
        (load, 0, 0, 0),  # the call's number; on x86-64 those of x32 begin at 2^30
        (at_least, len(numbers) + 4, 0, 1 << 30),
        *((equal, len(numbers) - i + 3, 0, number) for i, number in enumerate(numbers)),
        (equal, 0, 2, SOCKET[machine]),
        (load, 0, 0, 16),  # its first argument: VSOCK talks to the host of a virtual machine
        (equal, 1, 0, AF_VSOCK),
        (give, 0, 0, allow),
        (give, 0, 0, refuse),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


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
    for thread in _threads(pid):
        with contextlib.suppress(OSError):
            for child in (thread / "children").read_text().split():
                yield from _tree(int(child))


def _threads(pid: int) -> list[Path]:
    """What /proc has of a process's threads; none of one that has ended."""
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def _stat(path: Path) -> list[bytes] | None:
    """The fields of a process's or thread's stat behind its name, which may be any bytes."""
    try:
        return (path / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None


def _usage(pid: int) -> Usage | None:
    path = Path(f"/proc/{pid}")
    if (fields := _stat(path)) is None:
        return None
    own, dead = (int(a) + int(b) for a, b in (fields[11:13], fields[13:15]))
    pages = int(fields[21])
    if fields[0] in (b"Z", b"X"):  # a first thread that ended shows no memory; the others do
        threads = [stat for thread in _threads(pid) if (stat := _stat(thread))]
        pages = max((int(stat[21]) for stat in threads), default=0)
    return Usage(int(fields[17]), pages * _PAGE, (own + dead) / _TICKS, own / _TICKS)


def _processes_of(uid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if path.stat().st_uid == uid and _is_alive(path):
                found.append(int(path.name))
    return found


def _is_alive(path: Path) -> bool:
    fields = _stat(path)
    return fields is not None and (fields[0] not in (b"Z", b"X") or int(fields[17]) > 1)


def _processes_of_user() -> int:
    """Threads of our own user, which the limit counts too."""
    return sum(usage.processes for pid in _processes_of(os.geteuid()) if (usage := _usage(pid)))
