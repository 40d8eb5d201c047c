"""GGUF files (llama.cpp): metadata -> ModelConfig, tensors dequantised when they are asked for."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from r1jax.config import ConfigError, DataError
from r1jax.models.config import ModelConfig

FAMILIES = ("llama", "qwen2", "qwen3")
# What would change the forward pass in a way that ModelConfig cannot say.
UNSUPPORTED = ("expert_count", "attention.sliding_window")


def packaged(module: str, install: str) -> str:
    """The path of the GGUF file inside an installed package, which is not imported."""
    spec = importlib.util.find_spec(module)
    files = sorted(Path(spec.origin).parent.rglob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise ConfigError(f"no model: pip install {install}, or name one with :model=DIR")
    return str(files[0])


class GGUFFile:
    """An open file: `config`, `shapes` of its tensors (rows first) and `fetch` for their values."""

    def __init__(self, path: str | Path) -> None:
        """Raises DataError if `path` is no GGUF file, ConfigError if the model is not supported."""
        self.path = str(path)
        reader = open_reader(path)
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.shapes = {name: _shape(tensor) for name, tensor in self._tensors.items()}
        self.config = _config(reader, self.shapes, self.path)
        self._interleaved = field(reader, "general.architecture") == "llama"

    def fetch(self, name: str, index: Sequence[slice]) -> np.ndarray:
        """float32 rows (and columns) in `index`; those of Q and K come in whole heads."""
        tensor = self._tensors[name]
        values = gguf.quants.dequantize(tensor.data[index[0]], tensor.tensor_type)
        if self._interleaved and name.endswith((".attn_q.weight", ".attn_k.weight")):
            values = rotate_half_rows(values, self.config.head_dim)
        return values[:, index[1]] if len(index) > 1 else values


def rotate_half_rows(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """[H * N, D] from llama.cpp's RoPE order, pairs side by side, to pairs half a head apart."""
    heads = rows.reshape(-1, head_dim // 2, 2, rows.shape[-1])
    return heads.swapaxes(1, 2).reshape(rows.shape)


def open_reader(path: str | Path) -> gguf.GGUFReader:
    """The gguf package's reader; raises DataError if `path` is missing or no whole GGUF file."""
    if not Path(path).is_file():
        raise DataError(f"{path} does not exist")
    return _parse(str(path), os.stat(path).st_mtime_ns)


@functools.lru_cache(maxsize=1)  # parsing takes seconds; model and tokenizer are read in turn
def _parse(path: str, modified: int) -> gguf.GGUFReader:
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise DataError(f"{path} is not a whole GGUF file: {error}") from error


def field(reader: gguf.GGUFReader, key: str, default: Any = None) -> Any:
    """A metadata value as plain Python, or `default`."""
    entry = reader.get_field(key)
    return default if entry is None else entry.contents()


def _shape(tensor: gguf.ReaderTensor) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape))


def _config(reader: gguf.GGUFReader, shapes: dict[str, tuple[int, ...]], path: str) -> ModelConfig:
    family = field(reader, "general.architecture")
    if family not in FAMILIES:
        raise ConfigError(
            f"{path}: general.architecture {family!r} is not one of {', '.join(FAMILIES)}"
        )

    def value(key: str, default: Any = None) -> Any:
        found = field(reader, f"{family}.{key}", default)
        if found is None:
            raise ConfigError(f"{path}: metadata key {family}.{key} is missing")
        return found

    _check_supported(reader, shapes, family, path)
    heads = int(value("attention.head_count"))
    head_dim = value("attention.key_length", int(value("embedding_length")) // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if value(key, head_dim) != head_dim:
            raise ConfigError(
                f"{path}: {family}.{key} {value(key)} differs from the {head_dim} of a head"
            )
    return ModelConfig(
        vocab_size=shapes.get("token_embd.weight", (0,))[0],
        embed_dim=int(value("embedding_length")),
        num_layers=int(value("block_count")),
        num_heads=heads,
        num_kv_heads=int(value("attention.head_count_kv", heads)),
        head_dim=int(head_dim),
        ffn_dim=int(value("feed_forward_length")),
        max_length=int(value("context_length")),
        rope_theta=float(value("rope.freq_base", 10_000.0)),
        norm_eps=_short(value("attention.layer_norm_rms_epsilon")),
        tie_embeddings="output.weight" not in shapes,
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
    )


def _check_supported(
    reader: gguf.GGUFReader, shapes: dict[str, tuple[int, ...]], family: str, path: str
) -> None:
    scaling = field(reader, f"{family}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in shapes:
        raise ConfigError(f"{path}: RoPE scaling ({scaling}) is not supported")
    for key in UNSUPPORTED:
        if field(reader, f"{family}.{key}"):
            raise ConfigError(f"{path}: a model with {family}.{key} is not supported")


def _short(number: float) -> float:
    """The shortest decimal for a float32: 1e-05 rather than 9.999999747378752e-06."""
    assert math.isfinite(number)
    return float(str(np.float32(number)))
