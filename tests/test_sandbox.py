"""Programs that try to get out, to last, or to take too much. Needs bubblewrap (apt)."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from r1jax.config import ConfigError
from r1jax.tasks import sandbox
from r1jax.tasks.sandbox import Limits, check_sandbox, run_program

SLEEP = "import time; time.sleep(60)"
SMALL = Limits(cpu_s=1.0, wall_s=1.5, memory_mb=128, processes=8, output_bytes=10_000)
needs_bwrap = pytest.mark.skipif(
    not shutil.which("bwrap") and not os.environ.get("CI"),
    reason="no bwrap: apt install bubblewrap",
)
BOTH = pytest.mark.parametrize("mode", [pytest.param("bwrap", marks=needs_bwrap), "rlimits"])


@BOTH
def test_a_program_reads_and_prints(mode: sandbox.Mode) -> None:
    outcome = run_program("print(int(input()) * 2)", b"21\n", SMALL, mode)
    assert (outcome.cause, outcome.status, outcome.output) == ("exit", 0, b"42\n")


@BOTH
def test_status_and_errors(mode: sandbox.Mode) -> None:
    outcome = run_program("import sys\nsys.exit(3)", b"", SMALL, mode)
    assert (outcome.cause, outcome.status) == ("exit", 3)
    outcome = run_program("x = 1\n1 / 0", b"", SMALL, mode)
    assert outcome.status == 1
    assert 'File "<program>", line 2' in outcome.errors
    assert outcome.errors.endswith("ZeroDivisionError: division by zero\n")


LIMITS = {
    "busy": ("while True: pass", "time_limit"),
    "asleep": ("import time\ntime.sleep(60)", "time_limit"),
    "busy children": (
        "import os\nos.fork(), os.fork()\nwhile True: pass",
        "time_limit",
    ),
    "memory": ("x = []\nwhile True: x.append(bytearray(1_000_000))", "memory_limit"),
    "memory of children": (
        "import os, time\n"
        "for _ in range(4):\n"
        "    if os.fork() == 0:\n"
        "        x = bytearray(60 << 20)\n"
        "        break\n"
        "time.sleep(5)",
        "memory_limit",
    ),
    "memory behind an ended first thread": (
        "import ctypes, threading, time\n"
        "def hold():\n"
        "    x = bytearray(200 << 20)\n"
        "    time.sleep(5)\n"
        "threading.Thread(target=hold).start()\n"
        "ctypes.CDLL(None).syscall(60, 0)",
        "memory_limit",
    ),
    "children nobody waits for": (
        "import os, signal, time\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "while True:\n"
        "    if os.fork() == 0:\n"
        "        start = time.process_time()\n"
        "        while time.process_time() - start < 0.15: pass\n"
        "        os._exit(0)\n"
        "    try: os.wait()\n"  # for its end, but not for its times: SIGCHLD is ignored
        "    except ChildProcessError: pass",
        "time_limit",
    ),
    "output": ("while True: print('x' * 1000)", "output_limit"),
}


@BOTH
@pytest.mark.parametrize("name", LIMITS)
def test_limits(mode: sandbox.Mode, name: str) -> None:
    source, cause = LIMITS[name]
    start = time.monotonic()
    outcome = run_program(source, b"", SMALL, mode)
    assert time.monotonic() - start < 3.0
    assert outcome.cause == cause
    assert len(outcome.output) <= SMALL.output_bytes


@BOTH
def test_fork_bomb(mode: sandbox.Mode) -> None:
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    outcome = run_program(bomb, b"", SMALL, mode)
    assert outcome.cause in ("process_limit", "time_limit")
    count = (
        "import os, time\nchildren = 0\ntry:\n"
        "    while os.fork() or time.sleep(9): children += 1\n"
        "except OSError:\n    print(children, flush=True)\n"
    )
    assert 1 <= int(run_program(count, b"", SMALL, mode).output) <= SMALL.processes + 2


def test_a_process_may_end_while_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stat was read, and then /proc has it no more."""
    nobody = 1 << 22  # above the largest pid
    monkeypatch.setattr(sandbox, "_stat", lambda path: [b"Z"] + 50 * [b"0"])
    usage = sandbox._usage(nobody)
    assert usage is not None
    assert usage.memory_bytes == 0
    assert list(sandbox._tree(nobody)) == [nobody]


@BOTH
def test_processor_time_alone(mode: sandbox.Mode) -> None:
    limits = Limits(cpu_s=0.3, wall_s=30.0)
    outcome = run_program("while True: pass", b"", limits, mode)
    assert outcome.cause == "time_limit"
    assert outcome.seconds < 1.5


@BOTH
def test_nothing_outlives_it(mode: sandbox.Mode) -> None:
    """Not even a grandchild in a session of its own that holds the output open."""
    name = f"r1jax-survivor-{os.getpid()}"
    source = (
        "import os, sys, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        f"        os.execv({sandbox._python()!r}, ['{name}', '-c', '{SLEEP}'])\n"
        "    os._exit(0)\n"
        "time.sleep(0.3)\n"
    )
    assert run_program(source, b"", SMALL, mode).cause == "exit"
    if mode == "bwrap" or os.geteuid() == 0:
        assert (
            name not in subprocess.run(["ps", "axo", "args"], capture_output=True).stdout.decode()
        )


def attempt(body: str) -> str:
    """A program that prints what `body` found, or the error that stopped it."""
    lines = "\n".join("    " + line for line in body.splitlines())
    caught = "except BaseException as error:\n    print('no', error)\n"
    return f"import os, socket\ntry:\n{lines}\n{caught}"


@needs_bwrap
@pytest.mark.parametrize(
    "body",
    [
        "print('got', os.listdir('/home'))",
        "print('got', os.listdir('/root'))",
        f"print('got', open({__file__!r}).read())",
        "print('got', open('/etc/passwd').read())",
        "print('got', os.listdir('/sys'))",
        "open('/usr/x', 'w').write('got')",
        "open('/x', 'w').write('got')",
        "open('/dev/x', 'w').write('got')",
        "os.symlink('/etc/passwd', '/tmp/link'); print('got', open('/tmp/link').read())",
        "os.link('/usr/bin/env', '/tmp/link'); print('got')",
        "os.setuid(0); print('got')",
        "os.chroot('/tmp'); print('got')",
        "os.kill(-1, 0) if os.getpid() > 20 else 1 / 0; print('got')",
        "os.mount('/', '/tmp') if hasattr(os, 'mount') else 1 / 0; print('got')",
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (99, 99)); print('got')",
        "open('/tmp/a', 'wb').write(bytes(20 << 20)); print('got')",
        "for i in range(30): open(f'/tmp/{i}', 'wb').write(bytes(10 << 20))\nprint('got')",
        "for i in range(30): open(f'/dev/shm/{i}', 'wb').write(bytes(10 << 20))\nprint('got')",
        "socket.create_connection(('1.1.1.1', 53), 1); print('got')",
        "fd = os.memfd_create('x'); print('got')",
        "import ctypes\nassert ctypes.CDLL(None).shmget(0, 1 << 20, 0o1600) >= 0; print('got')",
        "import ctypes\nassert ctypes.CDLL(None).msgget(0, 0o1600) >= 0; print('got')",
        "import ctypes\nassert ctypes.CDLL(None).semget(0, 9, 0o1600) >= 0; print('got')",
        "import ctypes\nassert ctypes.CDLL(None).mq_open(b'/q', 66, 384, 0) > 0; print('got')",
        "socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM); print('got')",
        "import ctypes\nassert ctypes.CDLL(None).ptrace(0, 0, 0, 0) >= 0; print('got')",
        "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0; print('got')",
    ],
)
def test_no_way_out(body: str) -> None:
    outcome = run_program(attempt(body), b"", SMALL, "bwrap")
    assert outcome.status == 0
    assert outcome.output.startswith(b"no "), outcome.output


@needs_bwrap
def test_what_it_sees() -> None:
    """Only itself: no environment of ours, no open descriptors, no processes, another user."""
    source = (
        "import os\n"
        "print(sorted(os.environ))\n"
        "print([fd for fd in range(64) if os.path.exists(f'/proc/self/fd/{fd}')])\n"
        "print(len([p for p in os.listdir('/proc') if p.isdigit()]) <= 2)\n"
        "print(os.getuid())\n"
    )
    os.environ["R1JAX_SECRET"] = "token"
    with open(__file__) as kept:
        os.set_inheritable(kept.fileno(), True)
        lines = run_program(source, b"", SMALL, "bwrap").output.decode().splitlines()
    del os.environ["R1JAX_SECRET"]
    assert lines[:3] == ["['HOME', 'LANG', 'PATH', 'PWD']", "[0, 1, 2]", "True"]
    assert int(lines[3]) not in (0, 65534)


@needs_bwrap
def test_network_is_its_own() -> None:
    """A server on this machine's loopback is out of reach."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        body = f"socket.create_connection(('127.0.0.1', {port}), 1); print('got')"
        assert run_program(attempt(body), b"", SMALL, "bwrap").output.startswith(b"no ")


@BOTH
def test_signals_do_not_reach_us(mode: sandbox.Mode) -> None:
    if mode == "rlimits" and os.geteuid() != 0:
        pytest.skip("the same user may signal us: the docstring says so")
    source = f"import os\nfor pid in (os.getppid(), {os.getpid()}):\n"
    source += "    try: os.kill(pid, 9)\n    except OSError: pass"
    assert run_program(source, b"", SMALL, mode).cause == "exit"


@needs_bwrap
def test_many_at_once() -> None:
    """Each has its own count of processes."""
    found: list[bytes] = []

    def one() -> None:
        source = (
            "import os, time\nfor _ in range(4): (os.fork() or (time.sleep(0.5), os._exit(0)))\n"
        )
        found.append(run_program(source + "print('ok')", b"", SMALL, "bwrap").output)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"ok\n"] * 8


@needs_bwrap
def test_it_ends_with_us() -> None:
    """A killed grader takes the running program with it."""
    code = (
        "from r1jax.tasks.sandbox import Limits, run_program\n"
        "run_program('import time; time.sleep(61)', b'', Limits(), 'bwrap')"
    )
    grader = subprocess.Popen([sys.executable, "-c", code])
    while not (below := [pid for pid in sandbox._tree(grader.pid) if pid != grader.pid]):
        time.sleep(0.02)
    time.sleep(0.3)
    below = [pid for pid in sandbox._tree(grader.pid) if pid != grader.pid]
    assert len(below) >= 2
    grader.kill()
    grader.wait()
    deadline = time.monotonic() + 5.0
    while any(Path(f"/proc/{pid}").exists() for pid in below) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(Path(f"/proc/{pid}").exists() for pid in below)


def test_without_bwrap_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    check_sandbox.cache_clear()
    with pytest.raises(ConfigError, match="apt install bubblewrap.*rlimits"):
        check_sandbox("bwrap")
    check_sandbox.cache_clear()


def test_unknown_mode() -> None:
    with pytest.raises(ConfigError, match="sandbox 'none' is not one of bwrap, rlimits"):
        sandbox.choose_sandbox("none")  # type: ignore[arg-type]


def test_rlimits_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    sandbox.choose_sandbox("rlimits")
    sandbox.choose_sandbox("bwrap")
    assert "see this machine's files and network" in caplog.text
