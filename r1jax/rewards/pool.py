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
from collections.abc import Hashable, Iterator, Mapping
from multiprocessing.connection import Connection, Pipe
from pickle import UnpicklingError
from queue import SimpleQueue
from types import FrameType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from r1jax.machines.processes import end_with_parent
from r1jax.rewards import Failure, Grade, Weights, load_rewards, score, stop_if_all_failed
from r1jax.tasks.sandbox import Mode, choose_sandbox

if TYPE_CHECKING:
    from r1jax.types import Example

START_SECONDS = 120.0  # for a worker's imports
MAX_FAILED_STARTS = 3  # in a row, then something is wrong with the machine and not with an item
TERM_SECONDS = 0.5  # from SIGTERM to SIGKILL
_CODE = "import sys; from r1jax.rewards.pool import work; work(int(sys.argv[1]))"
_FIELDS = ("id", "messages", "answer", "task", "metadata", "question")


class GraderPool:
    """`submit` items, iterate over `results`, `close` (contextlib.closing) to end the workers.

    With workers=0 `submit` grades in the caller's process: for cheap rules, as nothing there
    limits the time of a user's function.
    """

    def __init__(
        self,
        rewards: Weights,
        *,
        workers: int,
        timeout_s: float = 30.0,
        memory_mb: int = 4096,
        sandbox: Mode = "bwrap",
    ) -> None:
        choose_sandbox(sandbox)
        self._weights = dict(rewards)
        self._rewards = load_rewards(self._weights)  # a wrong config fails here, not in a worker
        self._items: SimpleQueue[Any] = SimpleQueue()
        self._done: SimpleQueue[tuple[Hashable, Grade | Exception]] = SimpleQueue()
        self._pending = 0
        self._first_batch: list[Grade] | None = []
        self._closed = False
        start = (self._weights, sandbox, memory_mb)
        self._workers = [_Worker(start, timeout_s) for _ in range(workers)]
        self._threads = [threading.Thread(target=self._serve, args=(w,)) for w in self._workers]
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    def submit(
        self, key: Hashable, example: Example, text: str, length: int, finish_reason: str
    ) -> None:
        """Queues one completion; `key` comes back with its grade."""
        self._pending += 1
        if self._workers:
            # Not the Example itself: to unpickle it a worker would import flax and jax.
            fields = {name: getattr(example, name) for name in _FIELDS}
            self._items.put((key, (fields, text, length, finish_reason)))
        else:
            self._done.put((key, score(self._rewards, example, text, length, finish_reason)))

    def results(self) -> Iterator[tuple[Hashable, Grade]]:
        """(key, grade) of everything submitted so far, in the order of finishing.

        Once a batch, please: after the first, ConfigError if every grade in it failed.
        """
        while self._pending:
            key, grade = self._done.get()
            if isinstance(grade, Exception):
                raise grade
            self._pending -= 1
            if self._first_batch is not None:
                self._first_batch.append(grade)
            yield key, grade
        if self._first_batch:
            first_batch, self._first_batch = self._first_batch, None
            stop_if_all_failed(first_batch)

    def close(self) -> None:
        self._closed = True
        for worker in self._workers:
            self._items.put(None)
            worker.close()
        for thread in self._threads:
            thread.join()

    def _serve(self, worker: _Worker) -> None:
        """A thread's life: item after item through its worker, until the pool is closed."""
        try:
            worker.start()  # it imports while the first rollouts are decoded
            while not self._closed and (item := self._items.get()) is not None:
                key, fields = item
                self._done.put((key, worker.grade(fields)))
        except Exception as error:  # goes to the main thread, which would wait for ever
            self._done.put((None, error))
        finally:
            worker.kill()


class _Worker:
    """The parent's end of a worker process, which starts anew after each failure."""

    def __init__(self, start: tuple[Mapping[str, Any], Mode, int], timeout_s: float) -> None:
        self._start, self._timeout_s = start, timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = threading.Lock()
        self._closed = False

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
        grade = self._ask(item, self._timeout_s)
        if isinstance(grade, Failure):
            self.kill()
            return Grade(0.0, dict.fromkeys(self._start[0], 0.0), grade)
        return grade

    def _ask(self, message: Any, timeout_s: float) -> Any:
        """The process's reply, or a Failure after which it must be killed."""
        try:
            self._pipe.send(message)
            if self._pipe.poll(timeout_s):
                return self._pipe.recv()
            return Failure("timeout", f"grading took longer than {timeout_s:g} s")
        except (EOFError, OSError, UnpicklingError) as error:
            return Failure("crash", f"the grader process died ({type(error).__name__})")

    def kill(self) -> None:
        """SIGTERM, then SIGKILL, for the process and whatever it started."""
        process, self._process = self._process, None
        if not process:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGTERM)
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
    signal.signal(signal.SIGTERM, _end)
    pipe = Connection(descriptor)
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt, _Terminated):
        weights, sandbox, memory_mb = pipe.recv()
        if memory_mb:
            resource.setrlimit(resource.RLIMIT_DATA, (memory_mb << 20, memory_mb << 20))
        rewards = load_rewards(weights)
        choose_sandbox(sandbox)
        pipe.send("ready")
        while True:
            fields, *rest = pipe.recv()
            pipe.send(score(rewards, SimpleNamespace(**fields), *rest))  # type: ignore[arg-type]
