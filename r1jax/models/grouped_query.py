"""Grouped-query attention: Llama and Qwen.

Shape legend: transformer.py's.
"""

from __future__ import annotations

import jax
from flax import linen as nn

from r1jax.models.caches import Before
from r1jax.models.layer import Attended, AttentionLayer
from r1jax.models.packed_attention import Seen
from r1jax.models.rope import SinCos, rope


class GroupedQueryAttention(AttentionLayer):
    """Each kv head serves H / K heads of queries."""

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, sin_cos: SinCos, seen: Seen | None, before: Before | None
    ) -> Attended:
        c = self.config
        q_BLHN = rope(self._heads(x_BLD, "query", c.num_heads, "heads"), sin_cos)
        k_BLKN = rope(self._heads(x_BLD, "key", c.num_kv_heads, "kv_heads"), sin_cos)
        v_BLKN = self._heads(x_BLD, "value", c.num_kv_heads, "kv_heads")
        if before is not None:
            mixed_BLHN, cache = before.attend(q_BLHN, (k_BLKN, v_BLKN), c.score_scale)
            return self.output(mixed_BLHN), cache
        assert seen is not None
        k_BKLN, v_BKLN = k_BLKN.swapaxes(1, 2), v_BLKN.swapaxes(1, 2)
        return self.output(seen.attend(q_BLHN, k_BKLN, v_BKLN, c.score_scale)), None

    def _heads(self, x_BLD: jax.Array, name: str, heads: int, axis: str) -> jax.Array:
        """Query, key or value heads [B, L, heads, N], with bias (Qwen2) and norm (Qwen3)."""
        c = self.config
        y = self.project(
            x_BLD, name, ([c.embed_dim], ["embed"]), ([heads, c.head_dim], [axis, "head_dim"])
        )
        if c.qkv_bias:
            y += self.weight(f"{name}_bias", [heads, c.head_dim], [axis, "head_dim"], 0.0)
        if c.qk_norm and name != "value":
            y = self.norm(y, f"{name}_norm")
        return self.constrain(y, "batch", "length", axis, "head_dim")
