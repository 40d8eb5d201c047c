"""Grouped-query attention: what attention to caches and attention of packed rows share.

Shape legend: B rows, L queries, T keys, H query heads, K key/value heads, N head dimension.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite: a padding row has nothing to attend to and must not become NaN


def by_kv_head(x_BHL: jax.Array, like: jax.Array) -> jax.Array:
    """[B, H, L, ...] -> [B, K, M, ...], in the type of `like` [B, K, ...].

    The queries that share a kv head lie in one axis M = (H / K) L, so that products with what it
    has are plain batched matmuls without a transposed copy of keys or values.
    """
    return x_BHL.reshape(*like.shape[:2], -1, x_BHL.shape[-1]).astype(like.dtype)


def per_kv_head(equation: str, x_BHL: jax.Array, of_kv_heads: jax.Array) -> jax.Array:
    """A product of what each query has with what its kv head has, float32 [B, H, L, ...]."""
    product = jnp.einsum(
        equation,
        by_kv_head(x_BHL, of_kv_heads),
        of_kv_heads,
        preferred_element_type=jnp.float32,
    )
    return product.reshape(*x_BHL.shape[:3], -1)


def scaled(scores_BHLT: jax.Array, mask_BLT: jax.Array, scale: float) -> jax.Array:
    """Scores as the softmax takes them. The mask is added: cheaper than to choose."""
    return scores_BHLT * scale + jnp.where(mask_BLT, 0.0, MASKED)[:, None]


def softmax(
    scores_BHLT: jax.Array, mask_BLT: jax.Array, scale: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of scaled, masked scores s: weights w [B, H, L, T], their sums t and d [B, H, L, 1].

    The softmax is w / t, or exp(s - d).
    """
    scores_BHLT = scaled(scores_BHLT, mask_BLT, scale)
    top_BHL1 = scores_BHLT.max(axis=-1, keepdims=True)
    weights_BHLT = jnp.exp(scores_BHLT - top_BHL1)
    total_BHL1 = weights_BHLT.sum(axis=-1, keepdims=True)
    return weights_BHLT, total_BHL1, top_BHL1 + jnp.log(total_BHL1)


def softmax_mix(
    scores_BHLT: jax.Array, mask_BLT: jax.Array, v_BKTN: jax.Array, scale: float
) -> tuple[jax.Array, jax.Array]:
    """Values, averaged by the softmax of scores, [B, H, L, N] in their type; its log denominator
    [B, H, L, 1].
    """
    weights_BHLT, total_BHL1, lse_BHL1 = softmax(scores_BHLT, mask_BLT, scale)
    sum_BHLN = per_kv_head("bkmt,bktn->bkmn", weights_BHLT, v_BKTN)
    return (sum_BHLN / total_BHL1).astype(v_BKTN.dtype), lse_BHL1


def attend(
    q_BLHN: jax.Array, k_BKTN: jax.Array, v_BKTO: jax.Array, mask_BLT: jax.Array, scale: float
) -> tuple[jax.Array, jax.Array]:
    """Mixed values [B, L, H, O] in the queries' type, and log denominators [B, L, H]."""
    scores_BHLT = per_kv_head("bkmn,bktn->bkmt", q_BLHN.swapaxes(1, 2), k_BKTN)
    mixed_BHLO, lse_BHL1 = softmax_mix(scores_BHLT, mask_BLT, v_BKTO, scale)
    return mixed_BHLO.swapaxes(1, 2).astype(q_BLHN.dtype), lse_BHL1[..., 0].swapaxes(1, 2)
