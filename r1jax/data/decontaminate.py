"""Decontamination (R1 B.3.3): rows that share a 10-gram of words with a benchmark are removed.

Like the paper's, it does not catch paraphrases.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from r1jax.data.datasets import messages_of
from r1jax.types import Example

NGRAM = 10
_WORD = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")  # a Han character, or a run of others


class Benchmarks:
    """The n-grams of benchmarks' questions and answers.

    A question of fewer than n words has no n-gram: it meets only the same text, whole.
    """

    def __init__(self, examples: Iterable[Example], ngram: int = NGRAM) -> None:
        self._ngram = ngram
        self._ngrams: set[tuple[str, ...]] = set()
        self._short: set[str] = set()
        for example in examples:
            if len(words(example.question)) < ngram:
                self._short.add(_plain(example.question))
            for text in (example.question, example.answer):
                self._ngrams |= set(self._of(words(text)))

    def meets(self, row: Mapping[str, Any]) -> bool:
        """Whether any text of a row (messages or text) has an n-gram of a benchmark's."""
        texts = [row["text"]] if "text" in row else [m["content"] for m in messages_of(row)]
        return any(
            _plain(text) in self._short or not self._ngrams.isdisjoint(self._of(words(text)))
            for text in texts
        )

    def _of(self, text: Sequence[str]) -> Iterable[tuple[str, ...]]:
        return (tuple(text[i : i + self._ngram]) for i in range(len(text) - self._ngram + 1))


def words(text: str) -> list[str]:
    """Lower-case words; punctuation and operators are none."""
    return _WORD.findall(text.lower())


def _plain(text: str) -> str:
    return "".join(text.lower().split())
