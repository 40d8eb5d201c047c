"""Whether all workers of a slice, and who drives a sweep on it, see the same workdir."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from etils import epath

from r1jax.files import SWEEP, absolute, read_object

APART = "is not one directory for all"
REMEDY = "mount the same disk there on every worker, before setup, or give a workdir on gs://"


def wrong_with(
    workdir: str,
    queue_id: str,
    process: int,
    gather: Callable[[int], Sequence[int]],
    seconds: float = 10.0,
) -> str:
    """What this worker finds wrong with the workdir, or "". All call it at once.

    Each writes a file of a random name, and must find the first one's; and where there is a
    `queue_id`, SWEEP/sweep.json must have it. `gather` has a number of each worker. A file of
    another machine may take some `seconds` to be seen.
    """
    root = absolute(workdir)
    token = gather(secrets.randbelow(1 << 31))[0]
    mine, first = (root / f".probe-{token}-{index}" for index in (process, 0))
    said = ""
    try:
        root.mkdir(parents=True, exist_ok=True)
        mine.write_text(str(token))
    except OSError as error:
        said = f"cannot write to {workdir}: {error}"
    if not gather(not said)[0]:
        said = said or f"worker 0 cannot write to {workdir}"
    elif not said and not _becomes(lambda: first.read_text() == str(token), seconds):
        said = f"{workdir} {APART}: what worker 0 writes there is not here; {REMEDY}"
    elif not said and queue_id and not _becomes(lambda: _id_of(root) == queue_id, seconds):
        said = f"{workdir} {APART}: the {SWEEP} of who drives the sweep is not here; {REMEDY}"
    gather(0)  # all have read
    with suppress(OSError):  # it may not be there
        mine.unlink()
    return said


def _id_of(root: epath.Path) -> Any:
    return read_object(root / SWEEP).get("id")


def _becomes(true: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while True:
        try:
            if true():
                return True
        except (OSError, ValueError, AttributeError):
            pass  # not yet there, or not whole
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
