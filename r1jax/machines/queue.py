"""How far each run of a sweep is: SWEEP/sweep.json, written by who drives it and read by tables."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from etils import epath

from r1jax.config import ConfigError, DataError
from r1jax.files import SWEEP, absolute, read_object, write_json

MOST_LOSSES = 10
HERE = "this machine"  # whose runs end with their driver
State = Literal["waiting", "running", "complete", "failed"]


@dataclass
class Entry:
    """A run."""

    overrides: Mapping[str, Any]  # as sweep() has them
    digest: str = ""  # of its whole config: a run of another one begins anew
    state: State = "waiting"
    where: str = ""  # the slice that has it, or had it last
    starts: int = 0
    attempt: str = ""  # the last start's own name on its slice, that no other start has had
    failures: int = 0  # in a row, and its own: not of a slice that was taken away
    losses: int = 0  # since a failure, of workers of a slice that was there
    error: str = ""  # of its last failure

    def is_complete(self, fresh: Entry) -> bool:
        """Whether this is the end of that run, and not of another config's."""
        return self.state == "complete" and self.digest == fresh.digest


def read_queue(workdir: epath.PathLike) -> dict[str, Entry]:
    """The runs by name. DataError where the workdir is no sweep's."""
    path = absolute(workdir) / SWEEP
    if not path.exists():
        raise DataError(f"{workdir} is not a sweep's: it has no {SWEEP}")
    try:
        found = {name: Entry(**entry) for name, entry in read_object(path)["runs"].items()}
        if wrong := [e.state for e in found.values() if e.state not in get_args(State)]:
            raise ValueError(f"state {wrong[0]!r}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is not a sweep's: {error!r}") from None
    return found


class Queue:
    """What threads take runs from. Every change is on disk before anything is done about it."""

    def __init__(
        self, workdir: epath.PathLike, runs: Mapping[str, Entry], most_failures: int = 3
    ) -> None:
        """`runs` by name, as they would begin; what the file says of them is still true."""
        self._path, self._most = absolute(workdir) / SWEEP, most_failures
        known = read_queue(workdir) if self._path.exists() else {}
        for name, entry in known.items():
            same = name in runs and runs[name].digest == entry.digest
            if entry.state == "running" and entry.where != HERE and not same:
                raise ConfigError(
                    f"{workdir}: {name} still runs on the slice {entry.where} with another config:"
                    " delete the slice, and the run's entry in sweep.json"
                )
        self.entries = {
            name: known[name] if name in known and known[name].digest == run.digest else run
            for name, run in runs.items()
        }
        self._ready = set(read_object(self._path).get("slices", ())) if known else set()
        self._lock = threading.RLock()
        self._write()

    def take(self, where: str) -> str | None:
        """The run that this slice has, or the next one that waits, to be started there."""
        with self._lock:
            mine = [n for n, e in self.entries.items() if e.state == "running" and e.where == where]
            if mine:
                return mine[0]
            waiting = [name for name, entry in self.entries.items() if entry.state == "waiting"]
            if not waiting:
                return None
            name = min(waiting, key=lambda n: -self.entries[n].starts)  # those begun go first
            self.start(name, where)
            return name

    def start(self, name: str, where: str) -> None:
        starts = self.entries[name].starts + 1
        attempt = f"{name}.{secrets.token_hex(4)}"
        self._change(name, state="running", where=where, starts=starts, attempt=attempt)

    def interrupted(self, name: str) -> None:
        """It was stopped, with a checkpoint."""
        self._change(name, state="waiting")

    def wants(self, where: str) -> bool:
        """Whether there is something for this slice to do."""
        with self._lock:
            return any(
                entry.state == "waiting" or (entry.state == "running" and entry.where == where)
                for entry in self.entries.values()
            )

    def is_ready(self, where: str) -> bool:
        """Whether the slice of this name was set up."""
        return where in self._ready

    def set_ready(self, where: str, is_ready: bool) -> None:
        with self._lock:
            (self._ready.add if is_ready else self._ready.discard)(where)
            self._write()

    def slice_gone(self, where: str) -> None:
        """For certain: what ran there goes on where there is one, as often as that happens."""
        with self._lock:
            self._ready.discard(where)
            for entry in self.entries.values():
                if entry.state == "running" and entry.where == where:
                    entry.state = "waiting"
            self._write()

    def places(self) -> set[str]:
        """Where runs are that run."""
        return {entry.where for entry in self.entries.values() if entry.state == "running"}

    def complete(self, name: str) -> None:
        self._change(name, state="complete", failures=0, losses=0, error="")

    def lost(self, name: str, until_gone: bool = False) -> None:
        """Workers ended, or are not reached, on a slice that is there: MOST_LOSSES times at most.

        With `until_gone` they may still run: the run is taken by nobody until `slice_gone`.
        """
        losses = self.entries[name].losses + 1
        waits = "running" if until_gone else "waiting"
        state = "failed" if losses >= MOST_LOSSES else waits
        self._change(name, state=state, losses=losses, error="workers of its slice were lost")

    def failed(self, name: str, error: str) -> None:
        """It ended by itself; after so many times in a row it is set aside."""
        failures = self.entries[name].failures + 1
        state = "failed" if failures >= self._most else "waiting"
        self._change(name, state=state, failures=failures, losses=0, error=error)

    def retry(self) -> None:
        """Those that were set aside wait again."""
        for name, entry in self.entries.items():
            if entry.state == "failed":
                self._change(name, state="waiting", failures=0, losses=0)

    def _change(self, name: str, **values: Any) -> None:
        with self._lock:
            for key, value in values.items():
                setattr(self.entries[name], key, value)
            self._write()

    def _write(self) -> None:
        runs = {name: asdict(entry) for name, entry in self.entries.items()}
        write_json(self._path, {"runs": runs, "slices": sorted(self._ready)})
