"""Trains a SentencePiece tokenizer that loses nothing: decode(encode(text)) == text."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

import sentencepiece
from etils import epath

from r1jax.config import ConfigError
from r1jax.files import absolute

SPACE = "▁"  # how SentencePiece writes a space inside a piece
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def train_sentencepiece(
    texts: Iterable[str],
    vocab_size: int,
    directory: str | epath.Path,
    user_symbols: Sequence[str] = TAGS,
) -> epath.Path:
    """Writes directory/tokenizer.model (BPE) and returns its path.

    SentencePiece's defaults turn newlines into spaces, rewrite full-width Chinese punctuation and
    squeeze spaces: all of that is off, digits are single tokens, unknown characters become bytes,
    and one thread makes the result deterministic. Ids: 0 padding, 1 unknown, 2 begin, 3 end.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=True,
            byte_fallback=True,
            character_coverage=1.0,
            user_defined_symbols=["\n", *(s.replace(" ", SPACE) for s in user_symbols)],
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            num_threads=1,
            max_sentence_length=1 << 20,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ConfigError(f"vocab_size {vocab_size} does not suit these texts: {error}") from error
    path = absolute(directory) / "tokenizer.model"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
    return path
