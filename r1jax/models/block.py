"""A decoder block: attention, and a gated MLP or experts.

Shape legend: transformer.py's.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn
from flax import struct

from r1jax.models.caches import Before, RowCache
from r1jax.models.grouped_query import GroupedQueryAttention
from r1jax.models.latent_attention import MultiHeadLatentAttention
from r1jax.models.layer import Layer
from r1jax.models.moe import MixtureOfExperts, Routing
from r1jax.models.packed_attention import Seen
from r1jax.models.rope import SinCos


@struct.dataclass
class Context:
    """What every layer needs to know of the tokens."""

    sin_cos: SinCos
    seen: Seen | None  # packed rows
    counts_BL: jax.Array | None  # which tokens are no padding; None = all are
    replay: bool = struct.field(pytree_node=False, default=False)  # recorded experts are taken
    # The logical axis of x's length between blocks.
    stream: str = struct.field(pytree_node=False, default="length")


class Block(Layer):
    """Attention, and a gated MLP or experts, each behind a norm and a residual connection."""

    sparse: bool = False

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        context: Context,
        before: Before | None = None,
        recorded_BLk: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[RowCache | None, Routing | None]]:
        """x, what all layers share, and of this one what came before and the recorded experts."""
        c = self.config
        kind = GroupedQueryAttention if c.latent is None else MultiHeadLatentAttention
        attention = self._part(kind)
        between = "batch", context.stream, "embed_act"
        h_BLD = self._whole(self.norm(x_BLD, "attention_norm"))
        attended_BLD, cache = attention(h_BLD, context.sin_cos, context.seen, before)
        x_BLD = self.constrain(x_BLD + attended_BLD, *between)
        h_BLD, routing = self.norm(x_BLD, "ffn_norm"), None
        if self.sparse:
            experts = self._part(MixtureOfExperts)
            given = h_BLD, context.counts_BL, recorded_BLk, context.replay, context.stream
            h_BLD, routing = experts(*given)
        else:
            h_BLD = self.mlp(self._whole(h_BLD), c.ffn_dim)
        x_BLD = self.constrain(x_BLD + h_BLD, *between)
        return x_BLD, (cache, routing)

    def _whole(self, x_BLD: jax.Array) -> jax.Array:
        """As products with matrices want it that are split over `tensor` themselves."""
        return self.constrain(x_BLD, "batch", "length", "embed_act")

    def _part(self, kind: type[Layer]) -> Any:
        """One whose parameters lie among this block's own."""
        part = kind(self.config, self.compute, self.mesh)
        nn.share_scope(self, part)
        return part
