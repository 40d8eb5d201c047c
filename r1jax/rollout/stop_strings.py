"""Stop strings: a completion ends with the token that completes one, wherever its borders lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from r1jax.data.tokenizer import Tokenizer
from r1jax.rollout.engine import StopCheck


def stop_check(tokenizer: Tokenizer, stop: Sequence[str]) -> StopCheck | None:
    """What Engine.generate asks after every chunk; None where nothing stops."""
    if not stop:
        return None
    # A string of n bytes that ends in a new token begins at most n tokens before it; the others
    # keep what a cut does to a text's beginning (half a character, a lost space) away from it.
    margin = max(len(text.encode()) for text in stop) + 8

    def check(tokens: np.ndarray, checked: int) -> int:
        start = max(checked - margin, 0)

        def stops(length: int) -> bool:
            text = tokenizer.decode(tokens[start:length].tolist())
            return any(string in text for string in stop)

        if not stops(len(tokens)):
            return 0
        low, high = checked + 1, len(tokens)  # the fewest tokens whose text has it
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if stops(middle) else (middle + 1, high)
        return low

    return check
