"""Graders in worker processes, each item with a wall-clock limit.

Every worker has a thread here that feeds it item after item over a pipe, so grading goes on while
the main thread decodes. A late or dead worker is killed with its process group and replaced; its
item becomes a Failure. Workers are plain `python -c` processes rather than multiprocessing's: those
import the parent's main module again, hence jax, and an accelerator belongs to one process.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pickle import UnpicklingError
from queue import SimpleQueue
from types import FrameType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

from absl import logging

from r1jax.config import Count, Positive, Share
from r1jax.machines.processes import end_with_parent
from r1jax.rewards import Failure, Grade, Weights, load_rewards, score, stop_if_failed
from r1jax.tasks.sandbox import Mode, choose_sandbox

if TYPE_CHECKING:
    from r1jax.types import Example

START_SECONDS = 120.0  # for a worker's imports
MAX_FAILED_STARTS = 3  # in a row, then something is wrong with the machine and not with an item
UNWIND = signal.SIGUSR1
TERM_SECONDS = 0.5  # from UNWIND to SIGKILL
NO_GRADE = "the grader process said something else than a grade"
_CODE = "import sys; from r1jax.rewards.pool import work; work(int(sys.argv[1]))"
_FIELDS = ("id", "messages", "answer", "task", "metadata", "question")


@dataclass(frozen=True)
class GraderConfig:
    """Where rewards are computed.

    A grader that hangs, crashes or asks for too much memory gives its completion a reward of 0 and
    is counted (`grpo/reward/failures`); the first of its kind is shown with its traceback.
    """

    workers: Count = 0  # processes; 0 = in this one, without a time limit
    timeout_s: Positive = 30.0  # wall clock per completion; a worker that is late is killed
    memory_mb: Count = 4096  # of a worker's data; 0 = no limit
    max_failures: Share = 0.5  # of a batch: where a reward raises on more, the run stops
    # What programs under test run in: bubblewrap, or limits alone, without a wall to files and the
    # network (see tasks/sandbox.py).
    sandbox: Mode = "bwrap"


class GraderPool:
    """Workers for several sets of rewards, each under a name; opened once a run.

    `begin` a batch, `submit` items to it, iterate over its `results`; `close` (or leave the `with`
    block) to end the workers. With workers=0 `submit` grades in the caller's process: for cheap
    rules, as nothing there limits the time of a user's function.
    """

    def __init__(self, rewards: Mapping[str, Weights], config: GraderConfig | None = None) -> None:
        config = config or GraderConfig()
        choose_sandbox(config.sandbox)
        self._weights = {name: dict(weights) for name, weights in rewards.items()}
        # A wrong config fails here, not in a worker.
        self._rewards = {name: load_rewards(w) for name, w in self._weights.items()}
        self._items: SimpleQueue[tuple[Grading, Hashable, Any] | None] = SimpleQueue()
        self._most_failures = config.max_failures
        self._shown: set[tuple[str, str]] = set()  # failures: rewards, kind
        self._closed = False
        start = (self._weights, config.sandbox, config.memory_mb)
        self._workers = [_Worker(start, config.timeout_s) for _ in range(config.workers)]
        self._threads = [threading.Thread(target=self._serve, args=(w,)) for w in self._workers]
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    def begin(self, rewards: str) -> Grading:
        """A batch to be graded by this set of rewards."""
        return Grading(self, rewards)

    def put(self, batch: Grading, key: Hashable, item: tuple[Example, str, int, str]) -> None:
        """Queues an item; its grade goes to the batch."""
        if self._workers:
            # Not the Example itself: to unpickle it a worker would import flax and jax.
            fields = {name: getattr(item[0], name) for name in _FIELDS}
            self._items.put((batch, key, (batch.rewards, fields, *item[1:])))
        else:
            batch.done.put((key, score(self._rewards[batch.rewards], *item)))

    def judge(self, batch: Grading, grades: Collection[Grade]) -> None:
        """Shows what failed for the first time; ConfigError where too much did."""
        for failure in (grade.failure for grade in grades if grade.failure):
            if (batch.rewards, failure.kind) not in self._shown:
                self._shown.add((batch.rewards, failure.kind))
                said = f"a completion cannot be graded, and earns 0: {failure.message}"
                logging.warning("%s", f"{said}\n{failure.trace}".rstrip())
        stop_if_failed(grades, self._most_failures, batch.rewards)

    def close(self) -> None:
        self._closed = True
        for worker in self._workers:
            self._items.put(None)
            worker.close()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self, worker: _Worker) -> None:
        """A thread's life: item after item through its worker, until the pool is closed."""
        broken: Exception | None = None
        try:
            worker.start()  # it imports while the first rollouts are decoded
        except Exception as error:
            broken = error
        while not self._closed and (item := self._items.get()) is not None:
            batch, key, fields = item
            try:
                batch.done.put((key, broken or worker.grade(fields)))
            except Exception as error:  # goes to the main thread, which would wait for ever
                broken = error
                batch.done.put((key, broken))
        worker.kill()


class Grading:
    """A batch of items, graded while more of them come."""

    def __init__(self, pool: GraderPool, rewards: str) -> None:
        self._pool, self._pending = pool, 0
        self.rewards = rewards
        self.done: SimpleQueue[tuple[Hashable, Grade | Exception]] = SimpleQueue()

    def submit(
        self, key: Hashable, example: Example, text: str, length: int, finish_reason: str
    ) -> None:
        """Queues one completion; `key` comes back with its grade."""
        self._pending += 1
        self._pool.put(self, key, (example, text, length, finish_reason))

    def results(self) -> Iterator[tuple[Hashable, Grade]]:
        """(key, grade) of everything submitted so far, in the order of finishing."""
        while self._pending:
            key, grade = self.done.get()
            if isinstance(grade, Exception):
                raise grade
            self._pending -= 1
            yield key, grade

    def judge(self, grades: Collection[Grade]) -> None:
        """Of the whole batch, also what other processes have graded: shows what failed for the
        first time; ConfigError where more of them failed than config.graders.max_failures.
        """
        self._pool.judge(self, grades)


class _Worker:
    """The parent's end of a worker process, which starts anew after each failure."""

    def __init__(
        self, start: tuple[Mapping[str, Mapping[str, Any]], Mode, int], timeout_s: float
    ) -> None:
        self._start, self._timeout_s = start, timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = threading.Lock()
        self._closed = False
        self._asked = 0  # messages so far; a reply has the number of its own

    def start(self) -> None:
        for _ in range(MAX_FAILED_STARTS):
            self._spawn()
            reply = self._ask(self._start, START_SECONDS)
            if reply == "ready":
                return
            self.kill()
        raise RuntimeError(f"no grader process starts: {reply.message}")

    def _spawn(self) -> None:
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        with self._starting:
            if self._closed:  # an item that was taken just before
                raise RuntimeError("the pool is closed")
            self._pipe, theirs = Pipe()
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CODE, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # what rewards print
                # A reward that imports jax after all must not take the accelerator.
                env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
                start_new_session=True,  # a process group of its own, which kill() ends as a whole
            )
        theirs.close()

    def close(self) -> None:
        """Ends the process, and no other starts."""
        with self._starting:
            self._closed = True
        self.kill()

    def grade(self, item: tuple[Any, ...]) -> Grade:
        if self._process is None:
            self.start()
        reply = self._ask(item, self._timeout_s)
        if isinstance(reply, Grade):
            return reply
        self.kill()
        failure = reply if isinstance(reply, Failure) else Failure("crash", NO_GRADE)
        return Grade(0.0, dict.fromkeys(self._start[0][item[0]], 0.0), failure)

    def _ask(self, message: Any, timeout_s: float) -> Any:
        """The process's reply, or a Failure after which it must be killed."""
        self._asked += 1
        try:
            self._pipe.send((self._asked, message))
            if not self._pipe.poll(timeout_s):
                return Failure("timeout", f"grading took longer than {timeout_s:g} s")
            reply = self._pipe.recv()
            if isinstance(reply, tuple) and len(reply) == 2 and reply[0] == self._asked:
                return reply[1]
            return Failure("crash", NO_GRADE)
        except (EOFError, OSError, UnpicklingError) as error:
            return Failure("crash", f"the grader process died ({type(error).__name__})")

    def kill(self) -> None:
        """A signal to unwind, then SIGKILL, for the process and whatever it started."""
        process, self._process = self._process, None
        if not process:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, UNWIND)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(TERM_SECONDS)
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class _Terminated(BaseException):
    """Unwinds what a worker is doing: a sandbox that is open ends its program."""


def _end(_signal: int, _frame: FrameType | None) -> None:
    raise _Terminated


def work(descriptor: int) -> None:
    """A worker's life: the rewards, then item after item, until the parent's end is closed."""
    end_with_parent()  # where there is no Linux, a worker hung in an item outlives a killed parent
    signal.signal(UNWIND, _end)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # to a whole group: the run decides
    pipe = Connection(descriptor)
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt, _Terminated):
        number, (weights, sandbox, memory_mb) = pipe.recv()
        if memory_mb:
            resource.setrlimit(resource.RLIMIT_DATA, (memory_mb << 20, memory_mb << 20))
        rewards = {name: load_rewards(of_set) for name, of_set in weights.items()}
        choose_sandbox(sandbox)
        pipe.send((number, "ready"))
        while True:
            number, (name, fields, *rest) = pipe.recv()
            grade = score(rewards[name], SimpleNamespace(**fields), *rest)  # type: ignore[arg-type]
            pipe.send((number, grade))
