"""Compiled programs on a disk of this machine and, where it is asked for, in a bucket.

A cache in a bucket is slow to ask for each program, and one on a disk ends with a machine that is
taken away. So each bucket has a directory here: all of the bucket's are fetched at the start, and
what it lacks, also of a run that was killed, is brought there behind the run.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from etils import epath

from r1jax.files import absolute, in_bucket, names_below, read_bytes, write_atomic

HERE = Path.home() / ".cache/r1jax/xla"
PAUSE = 60.0  # seconds between two looks for new programs
_sharing: _Sharing | None = None


def program_cache(place: str) -> str:
    """The directory on this machine that JAX is to have, for R1JAX_COMPILATION_CACHE."""
    global _sharing
    if not in_bucket(place):
        return place
    there = absolute(place)
    here = HERE.with_name(f"xla-{hashlib.sha256(str(there).encode()).hexdigest()[:12]}")
    _sharing = _Sharing(there, epath.Path(here))
    return str(here)


def end_sharing() -> None:
    """At a command's end: what it has compiled is in the bucket."""
    global _sharing
    if _sharing is not None:
        _sharing.close()
        _sharing = None


class _Sharing:
    def __init__(self, there: epath.Path, here: epath.Path) -> None:
        self._there, self._here = there, here
        here.mkdir(parents=True, exist_ok=True)
        self._known: set[str] = set()  # what is there already
        try:
            self._known = set(names_below(there))
            self._copy(there, here, self._known - set(names_below(here)))
        except Exception as error:  # whatever the network has: programs are compiled again
            logging.warning("compiled programs of %s cannot be read: %s", there, error)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="programs", daemon=True)
        self._thread.start()

    def _copy(self, source: epath.Path, target: epath.Path, names: set[str]) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: write_atomic(target / n, read_bytes(source / n)), names))

    def _follow(self) -> None:
        while not self._ended.wait(PAUSE):
            self._bring(time.time() - PAUSE)

    def _bring(self, before: float) -> None:
        """Those that were written before: JAX may be writing one."""
        try:
            names = {n for n in names_below(self._here) if n.endswith("-cache")} - self._known
            new = {n for n in names if (self._here / n).stat().mtime < before}
            self._copy(self._here, self._there, new)
            self._known |= new
        except Exception as error:
            logging.warning("compiled programs cannot be brought to %s: %s", self._there, error)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._bring(math.inf)
