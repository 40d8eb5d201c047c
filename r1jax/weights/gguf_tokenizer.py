"""The tokenizer inside a GGUF file, as the files of a Hugging Face directory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from etils import epath
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from r1jax.config import DataError
from r1jax.data.tokenizer import CONFIG, FAST, GENERATION, ROLES
from r1jax.weights.gguf import field, open_reader

# How llama.cpp names the way that text is cut before BPE (its regular expressions, and those of
# the models' own tokenizer.json).
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_WORDS = QWEN2_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
PRE_TOKENIZERS = ("gpt-2", "smollm", "qwen2", "deepseek-r1-qwen", "llama-bpe")
UNKNOWN, CONTROL, USER_DEFINED = ADDED = 2, 3, 4  # of tokenizer.ggml.token_type


def gguf_files(path: epath.Path) -> dict[str, bytes]:
    """tokenizer.json and its companions, made from the file's metadata."""
    reader = open_reader(path)

    def value(key: str, default: Any = None) -> Any:
        return field(reader, f"tokenizer.{key}", default)

    kind, pre = value("ggml.model"), value("ggml.pre", "gpt-2")
    if kind != "gpt2" or pre not in PRE_TOKENIZERS:
        raise DataError(
            f"{path}: tokenizer {kind!r} with pre-tokenizer {pre!r} is not supported; gpt2 with"
            f" {', '.join(PRE_TOKENIZERS)} is"
        )
    tokens, types = value("ggml.tokens"), value("ggml.token_type")
    definition = _byte_level_bpe(tokens, types, value("ggml.merges"), pre).to_str()
    ids = {
        role: value(f"ggml.{name}_token_id")
        for role, name in zip(ROLES, ("bos", "eos", "padding", "unknown"), strict=True)
    }
    config = {role: tokens[i] for role, i in ids.items() if i is not None} | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": value("ggml.add_bos_token", pre == "llama-bpe"),
        "clean_up_tokenization_spaces": False,
    }
    if value("chat_template") is not None:
        config["chat_template"] = value("chat_template")
    stops = [ids["eos_token"], value("ggml.eot_token_id"), value("ggml.eom_token_id")]
    generation = {"eos_token_id": [i for i in dict.fromkeys(stops) if i is not None]}
    contents = {CONFIG: _to_json(config), GENERATION: _to_json(generation)}
    return {FAST: definition.encode("utf-8")} | contents


def _to_json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def _byte_level_bpe(
    tokens: Sequence[str], types: Sequence[int], merges: Sequence[str], pre: str
) -> tokenizers.Tokenizer:
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    vocab = {token: i for i, token in enumerate(tokens)}
    # Llama 3 takes a word that is in the vocabulary whole, even where the merges don't lead to it.
    model = models.BPE(vocab=vocab, merges=pairs, ignore_merges=pre == "llama-bpe")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = _pre_tokenizer(pre)
    tokenizer.decoder = decoders.ByteLevel()
    if pre in ("qwen2", "deepseek-r1-qwen"):
        tokenizer.normalizer = normalizers.NFC()
    added = [
        (t, kind != USER_DEFINED) for t, kind in zip(tokens, types, strict=True) if kind in ADDED
    ]
    tokenizer.add_tokens([AddedToken(t, special=special, normalized=False) for t, special in added])
    return tokenizer


def _pre_tokenizer(pre: str) -> pre_tokenizers.PreTokenizer:
    if pre == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre == "smollm":
        first: pre_tokenizers.PreTokenizer = pre_tokenizers.Digits(individual_digits=True)
    else:
        words = LLAMA3_WORDS if pre == "llama-bpe" else QWEN2_WORDS
        first = pre_tokenizers.Split(Regex(words), behavior="isolated")
    use_regex = pre == "smollm"
    return pre_tokenizers.Sequence(
        [first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)]
    )
