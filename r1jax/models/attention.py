"""Rotary positions and grouped-query attention, with and without a cache.

Shape legend: B rows, L queries, T keys, H query heads, K key/value heads, N head dimension.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

MASKED = -1e30  # finite: a padding row has nothing to attend to and must not become NaN
MIN_BLOCK, MAX_BLOCKS = 64, 16  # queries of a block in attend_causally; blocks of a row


@struct.dataclass
class LayerCache:
    """Keys and values of one layer; column t of a row holds the token at position t."""

    keys: jax.Array  # [B, K, T, N]
    values: jax.Array  # [B, K, T, N]


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


def packed_mask(segment_ids_BL: jax.Array, completion_ids_BL: jax.Array | None) -> jax.Array:
    """Which key a query may see in packed rows -> bool [B, L, L] (see types.Batch)."""
    length = segment_ids_BL.shape[1]
    same_segment = segment_ids_BL[:, :, None] == segment_ids_BL[:, None, :]
    mask = same_segment & jnp.tril(jnp.ones((length, length), bool))
    if completion_ids_BL is not None:
        key_ids = completion_ids_BL[:, None, :]
        mask &= (key_ids == 0) | (key_ids == completion_ids_BL[:, :, None])
    return mask


def attend(
    q_BLHN: jax.Array, k_BKTN: jax.Array, v_BKTN: jax.Array, mask_BLT: jax.Array
) -> jax.Array:
    """Softmax attention, scores in float32 -> [B, L, H, N].

    The queries that share a kv head lie in one axis M = (H / K) L, so that both products are plain
    batched matmuls without a transposed copy of keys or values.
    """
    batch, length, heads, head_dim = q_BLHN.shape
    kv_heads, columns = k_BKTN.shape[1:3]
    q_BKMN = q_BLHN.swapaxes(1, 2).reshape(batch, kv_heads, -1, head_dim)
    scores = jnp.einsum("bkmn,bktn->bkmt", q_BKMN, k_BKTN, preferred_element_type=jnp.float32)
    bias_B1LT = jnp.where(mask_BLT, 0.0, MASKED)[:, None]  # added: cheaper than to choose
    scores = scores.reshape(batch, heads, length, columns) * head_dim**-0.5 + bias_B1LT
    probs = jax.nn.softmax(scores, axis=-1)
    probs_BKMT = probs.astype(v_BKTN.dtype).reshape(batch, kv_heads, -1, columns)
    mixed_BKMN = jnp.einsum("bkmt,bktn->bkmn", probs_BKMT, v_BKTN)
    return mixed_BKMN.reshape(batch, heads, length, head_dim).swapaxes(1, 2)


def attend_causally(
    q_BLHN: jax.Array, k_BKLN: jax.Array, v_BKLN: jax.Array, mask_BLL: jax.Array
) -> jax.Array:
    """`attend` for whole rows under a causal mask, without the half of the scores it hides.

    Queries come in blocks, each against the keys up to its own end.
    """
    length = q_BLHN.shape[1]
    block = max(MIN_BLOCK, -(-length // MAX_BLOCKS))
    blocks = []
    for start in range(0, length, block):
        end = min(start + block, length)
        keys, values = k_BKLN[:, :, :end], v_BKLN[:, :, :end]
        blocks.append(attend(q_BLHN[:, start:end], keys, values, mask_BLL[:, start:end, :end]))
    return jnp.concatenate(blocks, axis=1)


def update_cache(
    cache: LayerCache, k_BLKN: jax.Array, v_BLKN: jax.Array, positions_BL: jax.Array
) -> LayerCache:
    """Writes each new token into the column of its position."""
    rows = jnp.arange(k_BLKN.shape[0])[:, None]
    return LayerCache(
        keys=cache.keys.at[rows, :, positions_BL].set(k_BLKN.astype(cache.keys.dtype)),
        values=cache.values.at[rows, :, positions_BL].set(v_BLKN.astype(cache.values.dtype)),
    )


def cached_mask(positions_BL: jax.Array, columns: int) -> jax.Array:
    """A query sees the columns up to its own position -> bool [B, L, T]."""
    return jnp.arange(columns) <= positions_BL[:, :, None]
