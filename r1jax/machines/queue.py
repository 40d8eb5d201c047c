"""How far each run of a sweep is: SWEEP/sweep.json, written by who drives it and read by tables."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from etils import epath

from r1jax.config import ConfigError, DataError
from r1jax.files import SWEEP, absolute, in_bucket, read_object, write_json

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
    failed_on: list[str] = field(default_factory=list)  # a slice a failure of its own, in a row;
    # "" for one that is gone since
    lost_on: list[str] = field(default_factory=list)  # since then, where its workers were lost
    error: str = ""  # of its last failure

    def is_complete(self, fresh: Entry) -> bool:
        """Whether this is the end of that run, and not of another config's."""
        return self.state == "complete" and self.digest == fresh.digest


@dataclass
class Tenure:
    """Of a slice, over all its lives."""

    is_ready: bool = False  # it was set up
    seconds: float = 0.0  # in which it was there
    seen: float = 0.0  # when it was last; 0 where it is not


def read_queue(workdir: epath.PathLike) -> dict[str, Entry]:
    """The runs by name. DataError where the workdir is no sweep's."""
    return _read(absolute(workdir) / SWEEP)[0]


def read_slices(workdir: epath.PathLike) -> dict[str, Tenure]:
    """The slices that it has had, by name. DataError likewise."""
    return _read(absolute(workdir) / SWEEP)[1]


def _read(path: epath.Path) -> tuple[dict[str, Entry], dict[str, Tenure], str]:
    if not path.exists():
        raise DataError(f"{path.parent} is not a sweep's: it has no {SWEEP}")
    found = read_object(path)
    try:
        runs = {name: Entry(**entry) for name, entry in found["runs"].items()}
        slices = {name: Tenure(**one) for name, one in found.get("slices", {}).items()}
        if wrong := [e.state for e in runs.values() if e.state not in get_args(State)]:
            raise ValueError(f"state {wrong[0]!r}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is not a sweep's: {error!r}") from None
    return runs, slices, found.get("id", "")


class Queue:
    """What threads take runs from. Every change is on disk before anything is done about it."""

    def __init__(
        self, workdir: epath.PathLike, runs: Mapping[str, Entry], most_failures: int = 3
    ) -> None:
        """`runs` by name, as they would begin; what the file says of them is still true."""
        self._path, self._most = absolute(workdir) / SWEEP, most_failures
        known, self.slices, known_id = _read(self._path) if self._path.exists() else ({}, {}, "")
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
        self.id = known_id or secrets.token_hex(8)  # by which workers know the file
        self._working: set[str] = set()  # slices that have a use yet
        self._lock = threading.RLock()
        self._write()

    def take(self, where: str) -> str | None:
        """The run that this slice has, or the next one that waits, to be started there."""
        with self._lock:
            mine = [n for n, e in self.entries.items() if e.state == "running" and e.where == where]
            if mine:
                return mine[0]
            waiting = self._waiting_for(where)
            if not waiting:
                return None

            def order(name: str) -> tuple[int, int]:  # those begun go first, those that fail last
                return len(self.entries[name].failed_on), -self.entries[name].starts

            name = min(waiting, key=order)
            self.start(name, where)
            return name

    def _waiting_for(self, where: str) -> list[str]:
        """A run that has failed is for the slices on which it has failed least often."""
        others = {name for name in self._working if self.is_ready(name)} | {where}
        return [
            name
            for name, entry in self.entries.items()
            if entry.state == "waiting"
            and entry.failed_on.count(where) == min(map(entry.failed_on.count, others))
        ]

    def start(self, name: str, where: str) -> None:
        starts = self.entries[name].starts + 1
        attempt = f"{name}.{secrets.token_hex(4)}"
        self._change(name, state="running", where=where, starts=starts, attempt=attempt)

    def interrupted(self, name: str) -> None:
        """It was stopped, with a checkpoint."""
        self._change(name, state="waiting")

    def wants(self, where: str) -> bool:
        """Whether there is something for this slice to do. Where not, others don't count on it."""
        with self._lock:
            wanted = bool(self._waiting_for(where)) or where in self.places()
            (self._working.add if wanted else self._working.discard)(where)
            return wanted

    def is_ready(self, where: str) -> bool:
        """Whether the slice of this name was set up."""
        return where in self.slices and self.slices[where].is_ready

    def set_ready(self, where: str, is_ready: bool) -> None:
        with self._lock:
            self.slices.setdefault(where, Tenure()).is_ready = is_ready
            self._write()

    def saw(self, where: str) -> None:
        """The slice is there."""
        with self._lock:
            one, now = self.slices.setdefault(where, Tenure()), time.time()
            one.seconds += max(now - one.seen, 0.0) if one.seen else 0.0
            one.seen = now
            if not in_bucket(self._path) or now - self._written > 60:  # which takes few versions
                self._write()

    def slice_gone(self, where: str, taken: bool) -> None:
        """For certain: what ran there goes on where there is one, as often as that happens.

        Where it was taken away, that is why workers were lost on it, which then does not count.
        """
        with self._lock:
            one = self.slices.get(where, Tenure())
            taken = taken and bool(one.seen)  # and not deleted before
            one.is_ready, one.seen = False, 0.0
            for entry in self.entries.values():
                if entry.state == "running" and entry.where == where:
                    entry.state = "waiting"
                entry.failed_on = ["" if name == where else name for name in entry.failed_on]
                if taken:
                    entry.lost_on = [name for name in entry.lost_on if name != where]
            self._write()

    def has_begun(self) -> bool:
        """Whether any run was ever started."""
        return any(entry.starts for entry in self.entries.values())

    def places(self) -> set[str]:
        """Where runs are that run."""
        return {entry.where for entry in self.entries.values() if entry.state == "running"}

    def complete(self, name: str) -> None:
        self._change(name, state="complete", failed_on=[], lost_on=[], error="")

    def lost(self, name: str, until_gone: bool = False) -> None:
        """Workers ended, or are not reached, on a slice that is there: MOST_LOSSES times at most.

        With `until_gone` they may still run: the run is taken by nobody until `slice_gone`.
        """
        entry = self.entries[name]
        lost_on = [*entry.lost_on, entry.where]
        waits = "running" if until_gone else "waiting"
        state = "failed" if len(lost_on) >= MOST_LOSSES else waits
        self._change(name, state=state, lost_on=lost_on, error="workers of its slice were lost")

    def failed(self, name: str, error: str) -> None:
        """It ended by itself; after so many times in a row it is set aside."""
        failed_on = [*self.entries[name].failed_on, self.entries[name].where]
        state = "failed" if len(failed_on) >= self._most else "waiting"
        self._change(name, state=state, failed_on=failed_on, lost_on=[], error=error)

    def retry(self) -> None:
        """Those that were set aside wait again."""
        for name, entry in self.entries.items():
            if entry.state == "failed":
                self._change(name, state="waiting", failed_on=[], lost_on=[])

    def _change(self, name: str, **values: Any) -> None:
        with self._lock:
            for key, value in values.items():
                setattr(self.entries[name], key, value)
            self._write()

    def _write(self) -> None:
        self._written = time.time()
        runs = {name: asdict(entry) for name, entry in self.entries.items()}
        slices = {name: asdict(one) for name, one in sorted(self.slices.items())}
        try:
            write_json(self._path, {"id": self.id, "runs": runs, "slices": slices})
        except OSError as error:
            said = error.strerror or error
            raise DataError(
                f"{self._path} cannot be written: {said}; what runs on slices goes on, and so does"
                " the same command"
            ) from None
