"""SIGTERM, which a cloud sends before it takes a machine away: a run saves what it has and leaves.

`listen` once, then `stop_if_asked` between two pieces of work. A second signal, some seconds later,
ends one process at once. Of several processes JAX's preemption service has the signal: whichever of
them was told, all learn it at the same call.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from types import FrameType

TOGETHER = 5.0  # seconds in which several signals are one
STOPPED = 75  # the exit code, EX_TEMPFAIL: the same command goes on


class Stopped(BaseException):
    """The run was asked to end; nothing is wrong."""


class _Listener:
    """Of this process, which has one signal."""

    def __init__(self) -> None:
        self.asked = False
        self.has_work = False  # that would be lost
        self.calls = itertools.count()
        self._since = 0.0

    def heard(self, number: int, _: FrameType | None) -> None:
        if self.asked and time.monotonic() - self._since < TOGETHER:
            return  # to the whole group, and from whoever started this process
        if self.asked:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.asked, self._since = True, time.monotonic()
        if not self.has_work:
            raise Stopped


_listener = _Listener()


def listen() -> None:
    """SIGTERM raises Stopped: until the first `stop_if_asked` at once, from then on there."""
    if not _several():
        signal.signal(signal.SIGTERM, _listener.heard)


def stop_if_asked() -> None:
    """Raises Stopped where any process was told to end. All must come here equally often."""
    _listener.has_work = True
    call = next(_listener.calls)
    if _listener.asked:
        raise Stopped
    if _several():
        from jax.experimental.multihost_utils import reached_preemption_sync_point

        if reached_preemption_sync_point(call):
            raise Stopped


def _several() -> bool:
    """Without a question to the devices: who starts others leaves those to them."""
    from jax._src.distributed import global_state  # late: whoever waits for Stopped needs no JAX

    return global_state.client is not None
