"""What the parts of a decoder block have in common: parameters, norms, products.

Shape legend: transformer.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh

from r1jax.machines.mesh import constrain, gathered, parts_of
from r1jax.models.caches import RowCache
from r1jax.models.config import ModelConfig
from r1jax.models.layouts import Compute, project
from r1jax.models.lora import LORA_A, LORA_B, adapter_std

INIT_STD = 0.02
Axes = tuple[Sequence[int], Sequence[str]]  # of a matrix: sizes, and logical names
Attended = tuple[jax.Array, RowCache | None]  # x [B, L, D], and the cache with its tokens


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """RMSNorm in float32 over the last axis, back in x's type."""
    x32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (x32 * scale * weight).astype(x.dtype)


class Layer(nn.Module):
    """A part of a decoder block, whose parameters are the block's own."""

    config: ModelConfig
    compute: Compute
    mesh: Mesh | None

    @property
    def residual_std(self) -> float:
        """Initial spread of what a residual connection adds."""
        return INIT_STD / (2 * self.config.num_layers) ** 0.5

    def weight(
        self, name: str, shape: Sequence[int], axes: Sequence[str], std: float = INIT_STD
    ) -> jax.Array:
        """The matrix, or bias, of this name, in the type of the activations."""
        value = self.weight32(name, shape, axes, std).astype(self.compute.dtype)
        return gathered(value, self.mesh, *axes)

    def weight32(
        self, name: str, shape: Sequence[int], axes: Sequence[str], std: float = INIT_STD
    ) -> jax.Array:
        """As it is kept."""
        init = nn.with_partitioning(nn.initializers.normal(std), tuple(axes))
        value: Any = self.param(name, init, tuple(shape))
        return value

    def norm(self, x: jax.Array, name: str, eps: float | None = None) -> jax.Array:
        """x behind the RMSNorm of this name, over its last axis."""
        init = nn.with_partitioning(nn.initializers.ones, ("norm",))
        weight: Any = self.param(name, init, x.shape[-1:])
        return rms_norm(x, weight, self.config.norm_eps if eps is None else eps)

    def project(
        self, x: jax.Array, name: str, inner: Axes, outer: Axes, std: float = INIT_STD
    ) -> jax.Array:
        """x's last axes, `inner`, times the matrix of this name -> [..., outer].

        What its adapter says is added, where it has one.
        """
        (into, into_names), (out, out_names) = inner, outer
        weight = self.weight(name, [*into, *out], [*into_names, *out_names], std)
        apart = parts_of("stream", self.mesh) > 1
        y = project(x, weight, len(into), apart)
        if (lora := self.config.lora) is None or name not in self.config.adapted:
            return y
        rank, rank_name = [lora.rank], ["lora"]
        a = self.weight(name + LORA_A, [*into, *rank], [*into_names, *rank_name], adapter_std(into))
        b = self.weight(name + LORA_B, [*rank, *out], [*rank_name, *out_names], 0.0)
        return y + project(project(x, a, len(into), apart), b, 1, apart) * lora.scale

    def constrain(self, x: jax.Array, *names: str | None) -> jax.Array:
        """x, split over the mesh by its logical axes."""
        return constrain(x, self.mesh, *names)

    def mlp(self, x_BLD: jax.Array, width: int, prefix: str = "") -> jax.Array:
        """The gated MLP of this width; its matrices' names begin with `prefix`."""
        embed, ffn = ([self.config.embed_dim], ["embed"]), ([width], ["ffn"])
        gate_BLF, up_BLF = (
            self.project(x_BLD, f"{prefix}{name}", embed, ffn) for name in ("gate", "up")
        )
        h_BLF = self.constrain(jax.nn.silu(gate_BLF) * up_BLF, "batch", "length", "ffn")
        return self.project(h_BLF, f"{prefix}down", ffn, embed, self.residual_std)


class AttentionLayer(Layer):
    """`(x, sin_cos, seen, before)` -> Attended.

    `seen` is what packed rows see, `before` what came before rows that continue: one of them.
    """

    def output(self, mixed_BLHO: jax.Array) -> jax.Array:
        """All heads' mixed values -> [B, L, D]"""
        c = self.config
        mixed_BLHO = self.constrain(mixed_BLHO, "batch", "length", "heads", "head_dim")
        heads = [c.num_heads, c.value_dim], ["heads", "head_dim"]
        return self.project(
            mixed_BLHO, "output", heads, ([c.embed_dim], ["embed"]), self.residual_std
        )
