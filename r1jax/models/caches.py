"""Keys and values that a forward pass continues, and attention to them.

Shape legend: attention.py's.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from r1jax.models.attention import by_kv_head, per_kv_head, softmax_mix


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


def _scores_left(q_BHLN: jax.Array, k_BKTN: jax.Array) -> jax.Array:
    """Products of queries and keys, float32 [B, H, L, T], as keys q^T, transposed.

    For a few queries XLA on CPUs reads the keys faster so (see layouts.project_left).
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
