"""One writer for a place in a bucket, where no lock ends with its process.

Who has it writes a line into an object again every few seconds. One that nobody has written for
EXPIRY seconds, by the watch of who looks, is of a process that has died. Of two who write at once
the store itself refuses one (a generation that must match).
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from etils import epath

from r1jax.config import ConfigError
from r1jax.files import BUCKETS
from r1jax.machines.peers import LOST

BEAT = 10.0  # seconds between two lines
EXPIRY = 60.0


@dataclass(frozen=True)
class Holder:
    """What the object says."""

    token: str
    process: int
    host: str
    boot: str  # of that host's system
    beat: int = 0

    @property
    def has_died(self) -> bool:
        """Known of processes of this machine alone."""
        here = self.host == platform.node() and self.boot == _boot() != ""
        return here and not _runs(self.process)


@contextmanager
def lease(path: epath.Path) -> Iterator[None]:
    """Holds the object; ConfigError where another process does. Where another takes it meanwhile,
    which it can after EXPIRY seconds in which the bucket was out of reach, this process ends.
    """
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    mine = Holder(secrets.token_hex(8), os.getpid(), platform.node(), _boot())
    try:
        store = _Object(path)
        _take(store, mine)
    except (GoogleAPIError, GoogleAuthError, OSError) as error:
        raise ConfigError(f"{path.parent} cannot be written: {error}") from None
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(store, mine, ended), name="lease", daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join(BEAT)
        store.patience = {"retry": None, "timeout": BEAT}
        with suppress(Exception):  # else it ends by itself; what the run has to say comes first
            found, generation = store.read()
            if found is not None and found.token == mine.token:
                store.delete(generation)


def _take(store: _Object, mine: Holder) -> None:
    """Returns when the object says so."""
    held, generation = store.read()
    if held is not None and not held.has_died:
        print(
            f"{store.path.parent} was in use by process {held.process} of {held.host}:"
            f" {EXPIRY:.0f} s without a sign of it are its end",
            flush=True,
        )
        looked = time.monotonic()
        while held is not None and time.monotonic() - looked < EXPIRY:
            time.sleep(BEAT / 10)
            found, generation = store.read()
            if found not in (None, held):
                raise _in_use(store.path, found)
            held = found
    store.write(mine, generation)
    found, _ = store.read()
    if found != mine:
        raise _in_use(store.path, found)


def _in_use(path: epath.Path, holder: Holder | None) -> ConfigError:
    who = f"process {holder.process} of {holder.host}" if holder else "another process"
    return ConfigError(f"{path.parent} is in use by {who}")


def _beat(store: _Object, mine: Holder, ended: threading.Event) -> None:
    store.patience = {"retry": None, "timeout": BEAT}  # so that it knows soon
    while not ended.wait(BEAT):
        try:
            found, generation = store.read()
            if found is not None and found.token == mine.token:
                store.write(replace(found, beat=found.beat + 1), generation)
                continue
        except Exception:  # of the network: later, or another process will have it
            continue
        if ended.is_set():  # and what is gone is what this process has given back
            return
        print(f"error: {store.path} was taken by another process", file=sys.stderr, flush=True)
        os._exit(LOST)  # nothing more may be written


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"  # ended, and nobody has asked how


def _boot() -> str:
    """Of the system, and where its processes have several spaces of numbers the space."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


class _Object:
    """By Google's own library, since no file system knows generations."""

    def __init__(self, path: epath.Path) -> None:
        from google.cloud import storage

        self.path = path
        self.patience: dict[str, Any] = {}  # how long a question may take; the library's
        bucket, _, self._name = os.fspath(path).removeprefix(BUCKETS).partition("/")
        self._bucket: Any = storage.Client(project=None).bucket(bucket)

    def read(self) -> tuple[Holder | None, int]:
        """What it says, and its generation; (None, 0) where there is none."""
        from google.api_core.exceptions import NotFound, PreconditionFailed

        while (blob := self._bucket.get_blob(self._name, **self.patience)) is not None:
            try:
                text = blob.download_as_bytes(if_generation_match=blob.generation, **self.patience)
                return Holder(**json.loads(text)), blob.generation
            except (NotFound, PreconditionFailed):  # it was replaced meanwhile
                continue
            except (ValueError, TypeError):
                return Holder("", 0, "an unknown host", ""), blob.generation
        return None, 0

    def write(self, holder: Holder, generation: int) -> None:
        """Where it is of this generation still."""
        from google.api_core.exceptions import PreconditionFailed

        blob, text = self._bucket.blob(self._name), json.dumps(asdict(holder))
        with suppress(PreconditionFailed):
            blob.upload_from_string(text, if_generation_match=generation, **self.patience)

    def delete(self, generation: int) -> None:
        """Where it is of this generation still."""
        from google.api_core.exceptions import NotFound, PreconditionFailed

        with suppress(NotFound, PreconditionFailed):
            self._bucket.blob(self._name).delete(if_generation_match=generation, **self.patience)
