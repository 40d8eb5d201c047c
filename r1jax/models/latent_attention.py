"""Multi-head latent attention: DeepSeek-V2, V3 and R1.

Shape legend: transformer.py's; C latent vector, and C + P with the rotated key that all heads
share; N = nope_dim + P of a query or key; O of a value.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from r1jax.models.attention import attend
from r1jax.models.caches import Before
from r1jax.models.config import LatentAttention
from r1jax.models.layer import Attended, AttentionLayer
from r1jax.models.packed_attention import Seen
from r1jax.models.rope import SinCos, rope

LATENT_EPS = 1e-6  # of the norms of latent vectors, whatever the model's other norms have


class MultiHeadLatentAttention(AttentionLayer):
    """Of a token only its latent vector and the shared rotated key are kept (V3 eq 1 to 5).

    Packed rows and prompts make the keys and values of all heads from that: the naive form. A token
    that is decoded takes its queries to the latent vectors instead: the absorbed form, in which
    they are read once for all heads. Both give the same up to rounding.
    """

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, sin_cos: SinCos, seen: Seen | None, before: Before | None
    ) -> Attended:
        c, scale = self.config, self.config.score_scale
        q_BLHN = self._queries(x_BLD, sin_cos)
        latents_BLC = self._latents(x_BLD, sin_cos)
        both = [c.num_heads, self._latent.nope_dim + self._latent.value_dim]
        up_CHN = self.weight(
            "kv_up", [self._latent.kv_rank, *both], ["latent", "heads", "head_dim"]
        )
        if before is None:
            assert seen is not None
            k_BHLN, v_BHLO = self._keys_values(latents_BLC, up_CHN)
            return self.output(seen.attend(q_BLHN, k_BHLN, v_BHLO, scale)), None
        if before.is_prompt:
            held = before.written(latents_BLC)
            latents_BTC, seen_BLT = before.latents(held, x_BLD.shape[1])
            k_BHTN, v_BHTO = self._keys_values(latents_BTC.astype(x_BLD.dtype), up_CHN)
            mixed_BLHO, _ = attend(q_BLHN, k_BHTN, v_BHTO, seen_BLT, scale)
            return self.output(mixed_BLHO), held
        key_up_CHN, value_up_CHO = jnp.split(up_CHN, [self._latent.nope_dim], axis=2)
        nope_BLHN, rotated_BLHP = jnp.split(q_BLHN, [self._latent.nope_dim], axis=3)
        absorbed_BLHC = jnp.einsum("blhn,chn->blhc", nope_BLHN, key_up_CHN)
        q_BLHC = jnp.concatenate([absorbed_BLHC, rotated_BLHP], axis=3)
        mixed_BLHC, held = before.attend(q_BLHC, (latents_BLC,), scale)
        return self.output(jnp.einsum("blhc,cho->blho", mixed_BLHC, value_up_CHO)), held

    @property
    def _latent(self) -> LatentAttention:
        assert self.config.latent is not None
        return self.config.latent

    def _queries(self, x_BLD: jax.Array, sin_cos: SinCos) -> jax.Array:
        """[B, L, H, N], rotated in their last P."""
        c, rank = self.config, self._latent.q_rank
        heads = [c.num_heads, c.head_dim], ["heads", "head_dim"]
        embed = [c.embed_dim], ["embed"]
        if rank:
            x_BLR = self.project(x_BLD, "query_down", embed, ([rank], ["latent_act"]))
            x_BLR = self.norm(x_BLR, "query_latent_norm", LATENT_EPS)
            q_BLHN = self.project(x_BLR, "query_up", ([rank], ["latent"]), heads)
        else:
            q_BLHN = self.project(x_BLD, "query", embed, heads)
        q_BLHN = self.constrain(q_BLHN, "batch", "length", "heads", "head_dim")
        nope_BLHN, rope_BLHP = jnp.split(q_BLHN, [self._latent.nope_dim], axis=3)
        rope_BLHP = rope(rope_BLHP, sin_cos, self._latent.interleaved)
        return jnp.concatenate([nope_BLHN, rope_BLHP], axis=3)

    def _latents(self, x_BLD: jax.Array, sin_cos: SinCos) -> jax.Array:
        """Latent vectors behind their norm, and rotated keys [B, L, C + P]."""
        latent = self._latent
        width = [latent.kv_rank + latent.rope_dim], ["latent_act"]
        down = self.project(x_BLD, "kv_down", ([self.config.embed_dim], ["embed"]), width)
        latents_BLC, key_BLP = jnp.split(down, [latent.kv_rank], axis=2)
        latents_BLC = self.norm(latents_BLC, "kv_latent_norm", LATENT_EPS)
        key_BLP = rope(key_BLP[:, :, None], sin_cos, latent.interleaved)[:, :, 0]
        return jnp.concatenate([latents_BLC, key_BLP], axis=2)

    def _keys_values(
        self, latents_BTC: jax.Array, up_CHN: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Of all heads [B, H, T, N] and [B, H, T, O]."""
        latent = self._latent
        # Gathered while they are narrow.
        latents_BTC = self.constrain(latents_BTC, "batch", "keys", "latent_act")
        latents_BTC, key_BTP = jnp.split(latents_BTC, [latent.kv_rank], axis=2)
        both_BHTN = jnp.einsum("btc,chn->bhtn", latents_BTC, up_CHN)
        both_BHTN = self.constrain(both_BHTN, "batch", "heads", "keys", "head_dim")
        nope_BHTN, v_BHTO = jnp.split(both_BHTN, [latent.nope_dim], axis=3)
        shape = (*nope_BHTN.shape[:3], latent.rope_dim)
        k_BHTP = jnp.broadcast_to(key_BTP[:, None], shape)
        return jnp.concatenate([nope_BHTN, k_BHTP], axis=3), v_BHTO
