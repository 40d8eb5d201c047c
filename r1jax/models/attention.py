"""Rotary positions, and grouped-query attention to a cache.

Shape legend: B rows, L queries, T keys, H query heads, K key/value heads, N head dimension.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

MASKED = -1e30  # finite: a padding row has nothing to attend to and must not become NaN


@struct.dataclass
class LayerCache:
    """Keys and values of one layer. What a column holds is the business of whoever fills it."""

    keys: jax.Array  # [B, K, T, N]
    values: jax.Array  # [B, K, T, N]

    @property
    def columns(self) -> int:
        """T"""
        return self.values.shape[2]


@struct.dataclass
class SharedPrefix:
    """Keys and values that many rows read: prompts, and who continues them.

    The rows are split over Z shards of the mesh's batch axes, as are the prompts; a row reads a
    prompt of its own shard. Shape legend: S rows and P prompts a shard, G places a prompt.
    """

    layers: tuple[LayerCache, ...]  # per layer of [Z P] rows
    lengths: jax.Array  # int32 [Z, P], columns of a prompt
    members: jax.Array  # int32 [Z, P, G], the rows of the shard that read it; S = none
    places: jax.Array  # int32 [Z, S], where in its shard's flattened `members` a row stands


@struct.dataclass
class Cache:
    """What a forward pass continues: the columns of each row, and where its new tokens go."""

    layers: tuple[Any, ...]  # LayerCache or lane_cache.LaneCache
    column: jax.Array  # int32 scalar, where the first new token of every row goes
    mask: jax.Array  # bool [B, L, T], columns that a query sees, its own among them
    prefix: SharedPrefix | None = None  # further keys and values, for passes of one token a row
    sin_cos: tuple[jax.Array, jax.Array] | None = None  # what `rotary` gives, where that is at hand


def rotary(positions_BL: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """(sin, cos) of the rotary angles, float32 [B, L, 1, N/2]; the same for all layers."""
    half = head_dim // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions_BL[..., None, None].astype(jnp.float32) * frequencies
    return jnp.sin(angles), jnp.cos(angles)


def rope(x_BLHN: jax.Array, sin_cos: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary embedding in the half-split convention of Hugging Face (dims i and i + N/2 pair)."""
    sin, cos = sin_cos
    first, second = jnp.split(x_BLHN.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BLHN.dtype)


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


def scaled(scores_BHLT: jax.Array, mask_BLT: jax.Array, head_dim: int) -> jax.Array:
    """Scores as the softmax takes them. The mask is added: cheaper than to choose."""
    return scores_BHLT * head_dim**-0.5 + jnp.where(mask_BLT, 0.0, MASKED)[:, None]


def softmax(
    scores_BHLT: jax.Array, mask_BLT: jax.Array, head_dim: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of scaled, masked scores s: weights w [B, H, L, T], their sums t and d [B, H, L, 1].

    The softmax is w / t, or exp(s - d).
    """
    scores_BHLT = scaled(scores_BHLT, mask_BLT, head_dim)
    top_BHL1 = scores_BHLT.max(axis=-1, keepdims=True)
    weights_BHLT = jnp.exp(scores_BHLT - top_BHL1)
    total_BHL1 = weights_BHLT.sum(axis=-1, keepdims=True)
    return weights_BHLT, total_BHL1, top_BHL1 + jnp.log(total_BHL1)


def softmax_mix(
    scores_BHLT: jax.Array, mask_BLT: jax.Array, v_BKTN: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Values, averaged by the softmax of scores, [B, H, L, N] in their type; its log denominator
    [B, H, L, 1].
    """
    weights_BHLT, total_BHL1, lse_BHL1 = softmax(scores_BHLT, mask_BLT, v_BKTN.shape[-1])
    sum_BHLN = per_kv_head("bkmt,bktn->bkmn", weights_BHLT, v_BKTN)
    return (sum_BHLN / total_BHL1).astype(v_BKTN.dtype), lse_BHL1


def _scores_left(q_BHLN: jax.Array, k_BKTN: jax.Array) -> jax.Array:
    """Products of queries and keys, float32 [B, H, L, T], as keys q^T, transposed.

    For a few queries XLA on CPUs reads the keys faster so (see transformer.project_left).
    """
    q_BKMN = by_kv_head(q_BHLN, k_BKTN)
    scores_BKTM = jnp.einsum("bktn,bkmn->bktm", k_BKTN, q_BKMN, preferred_element_type=jnp.float32)
    scores_BKMT = jax.lax.optimization_barrier(scores_BKTM).swapaxes(2, 3)
    return scores_BKMT.reshape(*q_BHLN.shape[:3], -1)


def attend_with_lse(
    q_BLHN: jax.Array, cache: LayerCache, mask_BLT: jax.Array, keys_left: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Attention to a cache, and the log of the denominator [B, L, H], by which two can be merged.

    A query that sees nothing has a denominator near exp(MASKED): merged, it weighs nothing.
    `keys_left` gives the same numbers, for a few queries faster on CPUs.
    """
    q_BHLN = q_BLHN.swapaxes(1, 2)
    if keys_left:
        scores_BHLT = _scores_left(q_BHLN, cache.keys)
    else:
        scores_BHLT = per_kv_head("bkmn,bktn->bkmt", q_BHLN, cache.keys)
    mixed_BHLN, lse_BHL1 = softmax_mix(scores_BHLT, mask_BLT, cache.values)
    return mixed_BHLN.swapaxes(1, 2).astype(q_BLHN.dtype), lse_BHL1[..., 0].swapaxes(1, 2)


def attend_shared(
    q_B1HN: jax.Array, layer: LayerCache, prefix: SharedPrefix, keys_left: bool = False
) -> tuple[jax.Array, jax.Array]:
    """One query a row against its prompt -> as `attend_with_lse`.

    The queries of a prompt's rows are gathered, so that its keys and values are read once for all.
    """
    shards, prompts, group = prefix.members.shape
    rest = q_B1HN.shape[2:]
    q_ZSHN = q_B1HN.reshape(shards, -1, *rest)
    gather = jax.vmap(lambda x, index: x.at[index].get(mode="clip"))
    q_QGHN = gather(q_ZSHN, prefix.members).reshape(shards * prompts, group, *rest)
    mask_Q1T = jnp.arange(layer.columns) < prefix.lengths.reshape(-1, 1, 1)
    mixed, lse = attend_with_lse(q_QGHN, layer, mask_Q1T, keys_left)
    mixed_ZSHN = gather(mixed.reshape(shards, prompts * group, *rest), prefix.places)
    lse_ZSH = gather(lse.reshape(shards, prompts * group, rest[0]), prefix.places)
    return mixed_ZSHN.reshape(q_B1HN.shape), lse_ZSH.reshape(q_B1HN.shape[:3])


def merge(one: tuple[jax.Array, jax.Array], two: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Attention over two sets of keys from attention over each [B, L, H, N]."""
    share_BLH = jax.nn.sigmoid(one[1] - two[1])  # of the first in the common denominator
    share = share_BLH[..., None].astype(one[0].dtype)
    return one[0] * share + two[0] * (1 - share)


def update_cache(
    cache: LayerCache, k_BLKN: jax.Array, v_BLKN: jax.Array, column: jax.Array
) -> LayerCache:
    """Writes the new tokens of every row into the columns from `column` on."""

    put = jax.lax.dynamic_update_slice_in_dim
    keys, values = (x.swapaxes(1, 2).astype(cache.keys.dtype) for x in (k_BLKN, v_BLKN))
    return LayerCache(put(cache.keys, keys, column, 2), put(cache.values, values, column, 2))
