"""A reward without meaning, to time updates with: every group of completions has advantages."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from r1jax.types import Example


def noise(example: Example, text: str, *, length: int, finish_reason: str) -> float:
    """A number in [0, 1) that the text decides, and nothing that anybody could learn."""
    return zlib.crc32(f"{length}{text}".encode()) / 2**32
