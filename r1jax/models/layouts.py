"""How a model is computed, and the same parameters laid out for that in other ways."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.config import ConfigError

DTYPES = ("float32", "bfloat16")
REMAT_POLICIES = ("none", "full", "dots")
KERNELS = ("auto", "xla", "splash", "cudnn")


@dataclass(frozen=True)
class Compute:
    """How a model is computed. None of it changes a result beyond rounding."""

    dtype: str = "float32"  # of activations; parameters are float32 masters
    remat: str = "none"  # what the backward pass recomputes: none, full, dots (no products)
    attention: str = "auto"  # kernel for packed rows: auto (by platform), xla, splash, cudnn
    scan_layers: bool = True  # one stacked parameter per kind, or one per layer (engine)
    fused: bool = False  # query, key and value in one matrix, gate and up in another (engine)
    weights_left: bool = False  # fused matrices [out, in] and cached keys stand left (engine, CPU)

    def __post_init__(self) -> None:
        for name, choices in (
            ("dtype", DTYPES),
            ("remat", REMAT_POLICIES),
            ("attention", KERNELS),
        ):
            if (value := getattr(self, name)) not in choices:
                raise ConfigError(f"{name} {value!r} is not one of {', '.join(choices)}")
        if self.weights_left and not self.fused:
            raise ConfigError("weights_left is a form of the fused matrices: set fused as well")

    def for_rollouts(self, platform: str) -> Compute:
        """As the engine wants it: parameters per layer, few and large matmuls.

        Not fused on TPUs, whose compiler would copy the fused matrices once a chunk into a layout
        it prefers (1.5 B parameters on v5e: temporaries of 2.2 GB instead of 0.7).
        """
        return replace(
            self,
            scan_layers=False,
            fused=platform != "tpu",
            weights_left=platform == "cpu",
            remat="none",
        )


def project(x: jax.Array, weight: jax.Array, contracted: int = 1) -> jax.Array:
    """x's last axes times the weight's first, `contracted` of them.

    As one matmul of two plain matrices: XLA on CPUs takes half as long again for the gradients of
    dots with several batch or contracted axes.
    """
    lead, last = x.shape[: x.ndim - contracted], weight.shape[contracted:]
    rows = x.reshape(math.prod(lead), -1)
    return (rows @ weight.reshape(rows.shape[1], -1)).reshape(*lead, *last)


def project_left(x: jax.Array, weight: jax.Array, contracted: int = 1) -> jax.Array:
    """`project` by a weight [out..., in...], its last axes contracted: weight x^T, transposed.

    For a few rows XLA on CPUs multiplies faster so (64 rows of SmolLM2: a seventh less time). The
    barriers keep it from turning the product around.
    """
    lead, first = x.shape[: x.ndim - contracted], weight.shape[: weight.ndim - contracted]
    rows = jax.lax.optimization_barrier(x.reshape(math.prod(lead), -1).T)
    y = jax.lax.optimization_barrier(jnp.tensordot(weight.reshape(*first, -1), rows, 1))
    return jnp.moveaxis(y, -1, 0).reshape(*lead, *first)


def unstack_layers(params: Any) -> Any:
    """Parameters of a scanned model -> those of the same model with scan_layers=False."""
    stacked = params["layers"]
    count = jax.tree.leaves(stacked)[0].shape[0]
    layers = {f"layers_{i}": jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(count)}
    return {name: value for name, value in params.items() if name != "layers"} | layers


def stack_layers(params: Any) -> Any:
    """The inverse of `unstack_layers`, on the host; stacked parameters are left as they are."""
    apart = [name for name in params if name.startswith("layers_")]
    if not apart:
        return params
    layers = [params[f"layers_{i}"] for i in range(len(apart))]
    stacked = jax.tree.map(lambda *of_layers: np.stack(of_layers), *layers)
    return {k: v for k, v in params.items() if k not in apart} | {"layers": stacked}


def fuse_layers(params: Any, compute: Compute) -> Any:
    """Parameters of a model with scan_layers=False -> those of the same model with `fused`."""

    def one(layer: Any) -> Any:
        parts = [name + end for name in ("query", "key", "value") for end in ("", "_bias")]
        rest = {k: v for k, v in layer.items() if k not in (*parts, "gate", "up")}
        rest["gate_up"] = jnp.stack([layer["gate"], layer["up"]], axis=-2)
        rest["qkv"] = _joined_heads(layer["query"], layer["key"], layer["value"])
        if compute.weights_left:
            for name, contracted in (("qkv", 1), ("output", 2), ("gate_up", 1), ("down", 1)):
                into = range(contracted)
                rest[name] = jnp.moveaxis(rest[name], into, [i - contracted for i in into])
        if "query_bias" in layer:
            rest["qkv_bias"] = _joined_heads(*(layer[name] for name in parts[1::2]))
        return rest

    return {k: one(v) if k.startswith("layers_") else v for k, v in params.items()}


def _joined_heads(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """[..., H, N], [..., K, N], [..., K, N] -> [..., K, H / K + 2, N]: kv heads with their own."""
    *lead, kv_heads, head_dim = key.shape
    queries = query.reshape(*lead, kv_heads, -1, head_dim)
    return jnp.concatenate([queries, key[..., None, :], value[..., None, :]], axis=-2)
