"""SIGTERM, which a cloud sends before it takes a machine away: a run saves what it has and leaves.

`listen` once, then `stop_if_asked` between two pieces of work. A second signal ends one process at
once. Of several processes JAX's preemption service has the signal: whichever of them was told, all
learn it at the same call.
"""

from __future__ import annotations

import itertools
import signal
from types import FrameType

STOPPED = 75  # the exit code, EX_TEMPFAIL: the same command goes on


class Stopped(Exception):
    """The run was asked to end."""


class _Listener:
    """Of this process, which has one signal."""

    def __init__(self) -> None:
        self.asked = False
        self.has_work = False  # that would be lost
        self.calls = itertools.count()

    def heard(self, number: int, _: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, signal.SIG_DFL)
        if not self.has_work:
            raise Stopped


_listener = _Listener()


def listen() -> None:
    """SIGTERM raises Stopped: until the first `stop_if_asked` at once, from then on there."""
    import jax  # late: whoever waits for Stopped need not have it

    if jax.process_count() == 1:
        signal.signal(signal.SIGTERM, _listener.heard)


def stop_if_asked() -> None:
    """Raises Stopped where any process was told to end. All must come here equally often."""
    import jax
    from jax.experimental.multihost_utils import reached_preemption_sync_point

    _listener.has_work = True
    call = next(_listener.calls)
    if _listener.asked or (jax.process_count() > 1 and reached_preemption_sync_point(call)):
        raise Stopped
