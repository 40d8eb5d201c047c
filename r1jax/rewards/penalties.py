"""Penalties in [-1, 0] for what rewards of the answer don't see.

In RL they are options, not the paper's; in rejection sampling they are its filters (R1 B.3.3).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from r1jax.config import ConfigError

if TYPE_CHECKING:
    from r1jax.types import Example

# A Han character or a run of other letters and digits.
_WORD = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")


def overlong(
    example: Example, text: str, *, length: int, finish_reason: str, max_tokens: int, buffer: int
) -> float:
    """DAPO's soft overlong punishment (eq 13): 0 up to max_tokens - buffer, then linearly to -1.

    A completion that was cut gets -1 at whatever length.
    """
    if not 0 < buffer <= max_tokens:
        raise ConfigError(f"overlong: buffer {buffer} must be in 1 .. max_tokens {max_tokens}")
    if finish_reason == "length":
        return -1.0
    return -min(max(length - (max_tokens - buffer), 0) / buffer, 1.0)


def repetition(
    example: Example, text: str, *, length: int, finish_reason: str, ngram: int = 8
) -> float:
    """Minus the share of the text's n-grams of words that occurred before; 0 for a short text."""
    if ngram < 1:
        raise ConfigError(f"repetition: ngram {ngram} must be at least 1")
    words = _WORD.findall(text.lower())
    ngrams = [tuple(words[i : i + ngram]) for i in range(len(words) - ngram + 1)]
    return len(set(ngrams)) / len(ngrams) - 1.0 if ngrams else 0.0


def code_blocks(example: Example, text: str, *, length: int, finish_reason: str) -> float:
    """-1 where the thoughts hold a code block."""
    return -float("```" in text.rpartition("</think>")[0])


def long_paragraph(
    example: Example, text: str, *, length: int, finish_reason: str, max_characters: int = 1000
) -> float:
    """-1 where a paragraph (what stands between two line breaks) is longer than that."""
    return -float(any(len(paragraph) > max_characters for paragraph in text.splitlines()))
