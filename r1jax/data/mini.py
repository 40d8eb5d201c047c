"""The mini world as configs name it (`module:function`): tokenizer, pretraining rows, problems."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from r1jax.config import section
from r1jax.data.corpus import Mix, document, documents
from r1jax.data.spm import TAGS, train_sentencepiece
from r1jax.data.world import LEVELS, Split, example_at, examples
from r1jax.types import Example

# Digits are tokens of their own, so a space before one would be a token too: these save it.
SEPARATORS = (", ", "; ")


def tokenizer(
    directory: str, vocab_size: int, count: int, seed: int, mix: Mapping[str, Any]
) -> None:
    """Trains the world's tokenizer on `count` documents and writes it to `directory`."""
    shares = section(Mix, mix, "mix")
    texts = (row["text"] for row in documents(seed, count, shares))
    train_sentencepiece(texts, vocab_size, directory, (*TAGS, *SEPARATORS))


def corpus(seed: int, mix: Mapping[str, Any]) -> Callable[[int], dict[str, Any]]:
    """The pretraining corpus, unlimited: row i is a function of (seed, i)."""
    shares = section(Mix, mix, "mix")
    return lambda index: document(index, seed, shares)


def problems(
    seed: int, split: Split, levels: Sequence[int] = LEVELS, count: int | None = None
) -> Callable[[int], Example] | list[Example]:
    """Problems as Examples: an endless stream, or the first `count` different ones of it."""
    if count is None:
        return lambda index: example_at(seed, index, split, levels=levels)
    return examples(seed, count, split, levels=levels)
