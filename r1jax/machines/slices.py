"""Slices of accelerators by the verbs of tpu_scripts/, and a queue of runs worked off on them.

What happens outside is found out by asking: slices that are taken away, workers that nobody
reaches, runs that have ended while nobody looked.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import r1jax
from r1jax.config import ConfigError
from r1jax.machines.peers import LOST
from r1jax.machines.preemption import STOPPED
from r1jax.machines.queue import Queue
from r1jax.machines.shared import APART

SCRIPTS = Path(r1jax.__path__[0]).parent / "tpu_scripts"
ACTIVE, ABSENT, UNKNOWN = "ACTIVE", "ABSENT", ""
TAKEN = ("PREEMPTED", "FAILED")
BROKEN = 8  # troubles in a row with a slice that is there, before it is made anew
SUSPECT = 3  # failures in a row on a slice, of more than one run, before it is made anew
PATIENCE = 3  # troubles in a row with a workdir that workers do not see, before the sweep ends
# Seconds that a verb may take, for it may hang.
LIMITS = {"create": 900, "setup": 1800, "launch": 600, "status": 300, "delete": 900}
# Ends the verb, and whatever it has started, when its limit is over or this process ends, however
# that dies: then its standard input is closed.
GUARDED = """{ trap '' TERM; read -r; kill -TERM 0; sleep 2; kill -KILL 0; } <&0 &
exec "$@" < /dev/null"""
COMPLETE, FAILED, LEFT = "complete", "FAILED", "lost"  # how an attempt came out
UNSTARTED, GOES_ON = "never started", ("running", "queued")  # how tpu_scripts say it
_STATE = re.compile(r"^slice \S+: (\w+)", re.MULTILINE)
_WORKER = re.compile(r"^worker \S+ \(\S*\): (.*)", re.MULTILINE)
_ENDED = re.compile(r"ended with exit code (\d+)")
Say = Callable[[str], None]
Commands = Mapping[str, Sequence[str]]  # of runs, by name


@dataclass(frozen=True)
class Slice:
    """One, by its name; whether it is there is asked each time."""

    name: str
    flags: Sequence[str] = ()  # of every verb: --backend, --project, --zone
    of_create: Sequence[str] = ()  # --accelerator, --spot
    of_setup: Sequence[str] = ()  # --workdir
    of_launch: Sequence[str] = ()  # --pass
    poll_s: float = field(default_factory=lambda: float(os.environ.get("R1JAX_POLL", "30")))

    def call(self, verb: str, *words: str) -> tuple[bool, str]:
        """Whether the verb succeeded, and what it printed."""
        command = [str(SCRIPTS / verb), f"--name={self.name}", *self.flags, *words]
        limit = min(LIMITS[verb], float(os.environ.get("R1JAX_VERB_SECONDS", "inf")))
        try:
            with TemporaryFile() as out, TemporaryFile() as errors:
                code = _guarded(command, limit, out, errors)
                out.seek(0), errors.seek(0)
                said = (out.read() + errors.read()).decode(errors="replace")
        except OSError as error:  # no process, no temporary file
            return False, f"{verb}: {error}"
        if code is None:
            return False, f"{said}\n{verb} had not ended after {limit:.0f} s"
        return code == 0, said

    def state(self) -> str:
        """As `status` says it; UNKNOWN where nobody answers."""
        found = _STATE.search(self.call("status", "--only_slice")[1])
        return found[1] if found else UNKNOWN

    def workers(self, attempt: str) -> list[str]:
        """What each does of it; [] where not all of them answer."""
        reached, said = self.call("status", f"--run={attempt}")
        return _WORKER.findall(said) if reached else []


def _guarded(command: Sequence[str], limit: float, out: IO[bytes], errors: IO[bytes]) -> int | None:
    """Its exit code; None where it was ended."""
    guarded = ["bash", "-c", GUARDED, "bash", *command]
    process = subprocess.Popen(
        guarded, stdin=subprocess.PIPE, stdout=out, stderr=errors, start_new_session=True
    )
    assert process.stdin is not None
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        process.stdin.close()
        process.wait()


def work_off(
    queue: Queue, commands: Commands, slices: Sequence[Slice], keep: bool, say: Say
) -> None:
    """Each slice takes one run after another until none is for it; then it is deleted, unless kept.

    Where this process ends, slices and runs go on; the same call again finds them. So it ends by
    the first error, of a queue that cannot be written.
    """
    errors: list[BaseException] = []

    def serve(one: Slice) -> None:
        try:
            _serve(one, queue, commands, keep, say)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=serve, args=(one,), daemon=True) for one in slices]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) and not errors:
        time.sleep(0.2)  # and not in join(), which lets no signal through
    if errors:
        raise errors[0]


def _serve(one: Slice, queue: Queue, commands: Commands, keep: bool, say: Say) -> None:
    failed: list[str] = []  # runs, in a row
    was_suspect = False  # since the last one that was complete
    while queue.wants(one.name):
        _make(one, queue, say)
        name = queue.take(one.name)
        if name is None:
            continue
        end = _attempt(one, queue, name, commands[name], say)
        if end == COMPLETE:
            failed, was_suspect = [], False
        elif end == FAILED:
            failed.append(name)
        is_suspect = len(failed) >= SUSPECT and len(set(failed)) > 1 and not was_suspect
        if is_suspect and queue.wants(one.name):
            say(f"suspects {one.name}: {len(failed)} failures in a row, of more than one run")
            failed, was_suspect = [], True
            _end(one, queue, say)
    if not keep:
        _end(one, queue, say)


def _end(one: Slice, queue: Queue, say: Say) -> None:
    while (state := one.state()) != ABSENT:
        if state != UNKNOWN:
            _delete(one, queue, state, say)
        time.sleep(one.poll_s)
    queue.slice_gone(one.name, taken=False)


def _delete(one: Slice, queue: Queue, state: str, say: Say) -> tuple[bool, str]:
    """What ran there is nobody else's before all of the slice has ended."""
    queue.set_ready(one.name, False)
    say(f"deletes  {one.name}")
    done, said = one.call("delete")
    if done:
        queue.slice_gone(one.name, taken=state in TAKEN)
    return done, said


def _make(one: Slice, queue: Queue, say: Say) -> None:
    """Until the slice is there and set up, or has no use any more, as others did what there was.

    What it had, if it was taken away, others may take.
    """
    troubles = 0
    while queue.wants(one.name):
        state = one.state()
        if state == ACTIVE:
            queue.saw(one.name)
        if state == ACTIVE and queue.is_ready(one.name):
            return
        if state == ACTIVE and troubles < BROKEN:
            done, said = one.call("setup", *one.of_setup)
            queue.set_ready(one.name, done)
        elif state in (ACTIVE, *TAKEN):
            done, said = _delete(one, queue, state, say)
            troubles = 0 if done else troubles
        elif state == ABSENT:
            queue.slice_gone(one.name, taken=True)
            say(f"creates  {one.name}")
            done, said = one.call("create", "--no_wait", *one.of_create)
            troubles = 0 if done else troubles
        else:  # it waits, or nobody answers
            done, said = True, ""
            time.sleep(one.poll_s)
        if not done:
            troubles += 1
            say(f"trouble  {one.name}: {_reason(said)}")
            if APART in said and troubles >= PATIENCE and not queue.has_begun():
                raise ConfigError(f"{_reason(said).removeprefix('error: ')}; slices are kept")
            time.sleep(one.poll_s * min(1 << troubles, 16))


def _attempt(one: Slice, queue: Queue, name: str, command: Sequence[str], say: Say) -> str:
    """Starts the run, unless it was started, and waits for its end, or the slice's -> which."""
    attempt, troubles = queue.entries[name].attempt, 0
    while troubles < BROKEN:
        workers = one.workers(attempt)
        is_over = any(_ENDED.match(said) or said.startswith("gone") for said in workers)
        state = ACTIVE if workers else one.state()
        if state == ACTIVE:
            queue.saw(one.name)
        if not workers:
            if state not in (UNKNOWN, ACTIVE):
                say(f"lost     {name}: {one.name} is {state}")
                return LEFT  # it waits when _make has found or made the slice's end
            troubles += state == ACTIVE
        elif UNSTARTED in workers and not is_over:
            words = ["--once", f"--run={attempt}", *one.of_launch, "--", *command]
            done, said = one.call("launch", *words)
            trouble = f"trouble  {one.name}: {_reason(said)}"
            say(f"started  {name} on {one.name}" if done else trouble)
            troubles += not done
        elif any(said.startswith(GOES_ON) for said in workers):
            troubles = 0
        else:
            return _settle(one, queue, name, workers, say)
        time.sleep(one.poll_s)
    queue.lost(name, until_gone=True)
    say(f"lost     {name}: the workers of {one.name} do not answer")
    _delete(one, queue, ACTIVE, say)
    return LEFT


def _settle(one: Slice, queue: Queue, name: str, workers: Sequence[str], say: Say) -> str:
    """By its workers' ends: 0, stopped or left alone by something else, or a failure of its own."""
    codes = [int(found[1]) if (found := _ENDED.match(said)) else None for said in workers]
    own = [code not in (0, STOPPED, LOST, None) for code in codes]
    if not any(codes) and None not in codes:
        queue.complete(name)
        say(f"complete {name}")
        return COMPLETE
    elif any(own) and UNSTARTED not in workers:
        error = workers[own.index(True)]
        queue.failed(name, error)
        times = len(queue.entries[name].failed_on)
        say(f"FAILED   {name} on {one.name}, {times}. time: {error}")
        return FAILED
    queue.lost(name)
    say(f"lost     {name} on {one.name}: {', '.join(workers)}")
    return LEFT


def _reason(said: str) -> str:
    """What the first worker says that something is wrong with, else the last line."""
    lines = [line for line in said.splitlines() if line.strip()] or ["no answer"]
    return next((line for line in lines if line.startswith("error: worker")), lines[-1])
