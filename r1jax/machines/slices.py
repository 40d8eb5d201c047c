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

import r1jax
from r1jax.machines.peers import LOST
from r1jax.machines.preemption import STOPPED
from r1jax.machines.queue import Queue

SCRIPTS = Path(r1jax.__path__[0]).parent / "tpu_scripts"
ACTIVE, ABSENT, UNKNOWN = "ACTIVE", "ABSENT", ""
BROKEN = 8  # troubles in a row with a slice that is there, before it is made anew
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
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
        return done.returncode == 0, done.stdout + done.stderr

    def state(self) -> str:
        """As `status` says it; UNKNOWN where nobody answers."""
        found = _STATE.search(self.call("status", "--only_slice")[1])
        return found[1] if found else UNKNOWN

    def workers(self, attempt: str) -> list[str]:
        """What each does of it; [] where not all of them answer."""
        reached, said = self.call("status", f"--run={attempt}")
        return _WORKER.findall(said) if reached else []


def work_off(
    queue: Queue, commands: Commands, slices: Sequence[Slice], keep: bool, say: Say
) -> None:
    """Each slice takes one run after another until none waits; then it is deleted, unless kept.

    Where this process ends, slices and runs go on; the same call again finds them.
    """
    threads = [
        threading.Thread(target=_serve, args=(one, queue, commands, keep, say), daemon=True)
        for one in slices
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.2)  # and not in join(), which lets no signal through


def _serve(one: Slice, queue: Queue, commands: Commands, keep: bool, say: Say) -> None:
    while queue.wants(one.name):
        _make(one, queue, say)
        name = queue.take(one.name)
        if name is not None:
            _attempt(one, queue, name, commands[name], say)
    while not keep and (state := one.state()) != ABSENT:
        if state != UNKNOWN:
            _delete(one, queue, say)
        time.sleep(one.poll_s)


def _delete(one: Slice, queue: Queue, say: Say) -> tuple[bool, str]:
    """What ran there is nobody else's before all of the slice has ended."""
    queue.set_ready(one.name, False)
    say(f"deletes  {one.name}")
    done, said = one.call("delete")
    if done:
        queue.slice_gone(one.name)
    return done, said


def _make(one: Slice, queue: Queue, say: Say) -> None:
    """Until the slice is there and set up. What it had, if it was taken away, others may take."""
    troubles = 0
    while True:
        state = one.state()
        if state == ACTIVE and queue.is_ready(one.name):
            return
        if state == ACTIVE and troubles < BROKEN:
            done, said = one.call("setup", *one.of_setup)
            queue.set_ready(one.name, done)
        elif state in (ACTIVE, "PREEMPTED", "FAILED"):
            done, said = _delete(one, queue, say)
            troubles = 0 if done else troubles
        elif state == ABSENT:
            queue.slice_gone(one.name)
            say(f"creates  {one.name}")
            done, said = one.call("create", *one.of_create)
            troubles = 0 if done else troubles
        else:  # it waits, or nobody answers
            done, said = True, ""
            time.sleep(one.poll_s)
        if not done:
            troubles += 1
            say(f"trouble  {one.name}: {_last_line(said)}")
            time.sleep(one.poll_s * min(1 << troubles, 16))


def _attempt(one: Slice, queue: Queue, name: str, command: Sequence[str], say: Say) -> None:
    """Starts the run, unless it was started, and waits for its end, or the slice's."""
    attempt, troubles = queue.entries[name].attempt, 0
    while troubles < BROKEN:
        workers = one.workers(attempt)
        is_over = any(_ENDED.match(said) or said.startswith("gone") for said in workers)
        if not workers:
            state = one.state()
            if state not in (UNKNOWN, ACTIVE):
                say(f"lost     {name}: {one.name} is {state}")
                return  # it waits when _make has found or made the slice's end
            troubles += state == ACTIVE
        elif UNSTARTED in workers and not is_over:
            done, said = one.call("launch", f"--run={attempt}", *one.of_launch, "--", *command)
            result = f"started  {name} on {one.name}" if done else f"trouble  {_last_line(said)}"
            say(result)
            troubles += not done
        elif any(said.startswith(GOES_ON) for said in workers):
            troubles = 0
        else:
            _settle(one, queue, name, workers, say)
            return
        time.sleep(one.poll_s)
    queue.lost(name, until_gone=True)
    say(f"lost     {name}: the workers of {one.name} do not answer")
    _delete(one, queue, say)


def _settle(one: Slice, queue: Queue, name: str, workers: Sequence[str], say: Say) -> None:
    """By its workers' ends: 0, stopped or left alone by something else, or a failure of its own."""
    codes = [int(found[1]) if (found := _ENDED.match(said)) else None for said in workers]
    own = [code not in (0, STOPPED, LOST, None) for code in codes]
    if not any(codes) and None not in codes:
        queue.complete(name)
        say(f"complete {name}")
    elif any(own) and UNSTARTED not in workers:
        error = workers[own.index(True)]
        queue.failed(name, error)
        say(f"FAILED   {name}, {queue.entries[name].failures}. time: {error}")
    else:
        queue.lost(name)
        say(f"lost     {name} on {one.name}: {', '.join(workers)}")


def _last_line(said: str) -> str:
    return next((line for line in reversed(said.splitlines()) if line.strip()), "no answer")
