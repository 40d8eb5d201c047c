"""Low-rank adapters (Hu et al. 2021): beside x W stands x A B alpha / rank.

A matrix `query` [.., *inner, *outer] has its adapter beside it, in the dict of its layer:
`query_lora_a` [.., *inner, rank], random, and `query_lora_b` [.., rank, *outer], zeros, so that a
fresh one changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from r1jax.models.config import ModelConfig

LORA_A, LORA_B = "_lora_a", "_lora_b"


def is_adapter(name: str) -> bool:
    """Whether the parameter of this name, the last of its path, belongs to an adapter."""
    return name.endswith((LORA_A, LORA_B))


def adapter_std(inner: Sequence[int]) -> float:
    """Initial spread of A, that of the first published code and of PEFT."""
    return (3 * math.prod(inner)) ** -0.5


def without_adapters(config: ModelConfig) -> ModelConfig:
    """Of the model whose parameters `merged` gives."""
    return replace(config, lora=None)


def merged(params: Any, config: ModelConfig) -> Any:
    """The parameters of the same model without adapters: W + A B alpha / rank; others as they are.

    Layers may be stacked or apart.
    """
    if config.lora is None:
        return params
    flat = traverse_util.flatten_dict(params)
    new = {path: x for path, x in flat.items() if not is_adapter(path[-1])}
    for path in new:
        *layer, name = path
        if (a := (*layer, name + LORA_A)) in flat:
            change = product(flat[a], flat[(*layer, name + LORA_B)], new[path].ndim)
            new[path] = new[path] + change * config.lora.scale
    return traverse_util.unflatten_dict(new)


def product(a: Any, b: Any, ndim: int) -> jax.Array:
    """A B of each layer, with as many axes as the matrix has."""
    lead = a.shape[: a.ndim + b.ndim - 2 - ndim]  # of stacked layers
    inner, outer = a.shape[len(lead) : -1], b.shape[len(lead) + 1 :]
    rows, columns = a.reshape(*lead, -1, a.shape[-1]), b.reshape(*lead, a.shape[-1], -1)
    flat = jnp.matmul(rows, columns, precision=jax.lax.Precision.HIGHEST)
    return flat.reshape(*lead, *inner, *outer)
