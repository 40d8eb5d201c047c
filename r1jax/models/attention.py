"""Rotary positions and grouped-query attention, with and without a cache.

Shape legend: B rows, L queries, T keys, H query heads, K key/value heads, N head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from r1jax.config import ConfigError
from r1jax.models.config import ModelConfig
from r1jax.sharding import spec_of

MASKED = -1e30  # finite: a padding row has nothing to attend to and must not become NaN
SPLASH_BLOCK = 128  # lanes of a TPU; the kernel's blocks are multiples of it
MIN_BLOCK, MAX_BLOCKS = 64, 16  # queries of a block in attend_causally; blocks of a row


@dataclass(frozen=True)
class Span:
    """What a token of a packed row sees at most: the row's front, and a window up to itself."""

    front: int  # columns
    window: int  # columns, its own among them


@struct.dataclass
class LayerCache:
    """Keys and values of one layer. What a column holds is the business of whoever fills it.

    Either lies as its matmul with a few queries reads it fastest.
    """

    keys: jax.Array  # [B, K, N, T]
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

    layers: tuple[LayerCache, ...]
    column: jax.Array  # int32 scalar, where the first new token of every row goes
    mask: jax.Array  # bool [B, L, T], columns that a query sees, its own among them
    prefix: SharedPrefix | None = None  # further keys and values, for passes of one token a row


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
    """Softmax attention, scores in float32 -> [B, L, H, N]."""
    probs_BHLT = jax.nn.softmax(_scores(q_BLHN, k_BKTN, mask_BLT, "bktn"), axis=-1)
    return _mixed(probs_BHLT, v_BKTN).swapaxes(1, 2)


def _scores(q_BLHN: jax.Array, keys: jax.Array, mask_BLT: jax.Array, order: str) -> jax.Array:
    """Scaled and masked, float32 [B, H, L, T]; the keys' axes are in `order`, bktn or bknt.

    The queries that share a kv head lie in one axis M = (H / K) L, so that this product and the
    next are plain batched matmuls without a transposed copy of keys or values.
    """
    batch, length, heads, head_dim = q_BLHN.shape
    q_BKMN = q_BLHN.swapaxes(1, 2).reshape(batch, keys.shape[1], -1, head_dim)
    scores = jnp.einsum(f"bkmn,{order}->bkmt", q_BKMN, keys, preferred_element_type=jnp.float32)
    bias_B1LT = jnp.where(mask_BLT, 0.0, MASKED)[:, None]  # added: cheaper than to choose
    return scores.reshape(batch, heads, length, -1) * head_dim**-0.5 + bias_B1LT


def _mixed(weights_BHLT: jax.Array, v_BKTN: jax.Array) -> jax.Array:
    """Values, summed by weight [B, H, L, N]."""
    batch, heads, length, columns = weights_BHLT.shape
    weights = weights_BHLT.astype(v_BKTN.dtype).reshape(batch, v_BKTN.shape[1], -1, columns)
    mixed_BKMN = jnp.einsum("bkmt,bktn->bkmn", weights, v_BKTN)
    return mixed_BKMN.reshape(batch, heads, length, -1)


def attend_causally(
    q_BLHN: jax.Array,
    k_BKLN: jax.Array,
    v_BKLN: jax.Array,
    mask_BLL: jax.Array,
    span: Span | None = None,
) -> jax.Array:
    """`attend` for whole rows under a causal mask, without most of the scores that it hides.

    Queries come in blocks, each against the keys up to its own end; where the mask shows no more
    than a `span`, against those of the front and of the window only.
    """
    length = q_BLHN.shape[1]
    span = span or Span(length, length)
    block = max(MIN_BLOCK, -(-length // MAX_BLOCKS))
    blocks = []
    for start in range(0, length, block):
        end = min(start + block, length)
        front = min(span.front, end)
        window = max(front, start + 1 - span.window)  # where that of the first query begins
        keys, values, mask_BQT = (
            x[:, :, :end]
            if window == front
            else jnp.concatenate([x[:, :, :front], x[:, :, window:end]], axis=2)
            for x in (k_BKLN, v_BKLN, mask_BLL[:, start:end])
        )
        blocks.append(attend(q_BLHN[:, start:end], keys, values, mask_BQT))
    return jnp.concatenate(blocks, axis=1)


def attend_with_lse(
    q_BLHN: jax.Array, cache: LayerCache, mask_BLT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`attend` to a cache, and the log of the denominator [B, L, H], by which two can be merged.

    A query that sees nothing has a denominator near exp(MASKED): merged, it weighs nothing.
    """
    scores_BHLT = _scores(q_BLHN, cache.keys, mask_BLT, "bknt")
    top_BHL1 = scores_BHLT.max(axis=-1, keepdims=True)
    weights_BHLT = jnp.exp(scores_BHLT - top_BHL1)
    total_BHL1 = weights_BHLT.sum(axis=-1, keepdims=True)
    mixed_BHLN = _mixed(weights_BHLT, cache.values) / total_BHL1
    lse_BHL = (top_BHL1 + jnp.log(total_BHL1))[..., 0]
    return mixed_BHLN.swapaxes(1, 2).astype(q_BLHN.dtype), lse_BHL.swapaxes(1, 2)


def attend_shared(
    q_B1HN: jax.Array, layer: LayerCache, prefix: SharedPrefix
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
    mixed, lse = attend_with_lse(q_QGHN, layer, mask_Q1T)
    mixed_ZSHN = gather(mixed.reshape(shards, prompts * group, *rest), prefix.places)
    lse_ZSH = gather(lse.reshape(shards, prompts * group, rest[0]), prefix.places)
    return mixed_ZSHN.reshape(q_B1HN.shape), lse_ZSH.reshape(q_B1HN.shape[:3])


def merge(one: tuple[jax.Array, jax.Array], two: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Attention over two sets of keys from attention over each [B, L, H, N]."""
    share_BLH = jax.nn.sigmoid(one[1] - two[1])  # of the first in the common denominator
    share = share_BLH[..., None].astype(one[0].dtype)
    return one[0] * share + two[0] * (1 - share)


def attend_by_segments(
    q_BLHN: jax.Array,
    k_BKLN: jax.Array,
    v_BKLN: jax.Array,
    segment_ids_BL: jax.Array,
    mesh: Mesh | None,
    span: Span | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Causal attention within segments by the splash kernel for TPUs -> [B, L, H, N].

    It never holds the scores, and skips the blocks above the diagonal and, of a `span` without a
    front, those before the window. Each device runs it on its own rows and heads. `interpret` runs
    it on any platform, slowly.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # takes a second

    length = q_BLHN.shape[1]
    padded = -(-length // SPLASH_BLOCK) * SPLASH_BLOCK
    block = min(padded, SPLASH_BLOCK * (4 if padded % (4 * SPLASH_BLOCK) == 0 else 1))
    pad = padded - length
    visible: Any = splash.CausalMask((padded, padded))
    if span is not None and span.front == 0:
        visible = splash.LocalMask((padded, padded), (span.window - 1, 0), 0)

    def one_device(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
        mask = splash.MultiHeadMask([visible] * q.shape[1])
        sizes = splash.BlockSizes(*(block,) * 8)
        kernel = splash.make_splash_mha(
            mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
        )
        ids = splash.SegmentIds(q=segments, kv=segments)
        return jax.vmap(kernel)(q, k, v, ids)

    q_BHLN = q_BLHN.swapaxes(1, 2) * q_BLHN.shape[-1] ** -0.5
    q, k, v = (jnp.pad(x, [(0, 0), (0, 0), (0, pad), (0, 0)]) for x in (q_BHLN, k_BKLN, v_BKLN))
    segments = jnp.pad(segment_ids_BL, [(0, 0), (0, pad)])
    if mesh is not None and mesh.size > 1:
        heads, kv_heads, rows = (
            spec_of(("batch", "heads", None, None)),
            spec_of(("batch", "kv_heads", None, None)),
            spec_of(("batch", None)),
        )
        one_device = jax.shard_map(
            one_device,
            mesh=mesh,
            in_specs=(heads, kv_heads, kv_heads, rows),
            out_specs=heads,
            check_vma=False,
        )
    mixed_BHLN = one_device(q, k, v, segments)
    return mixed_BHLN[:, :, :length].swapaxes(1, 2).astype(v_BKLN.dtype)


def attend_by_cudnn(
    q_BLHN: jax.Array, k_BKLN: jax.Array, v_BKLN: jax.Array, mask_BLL: jax.Array
) -> jax.Array:
    """`attend` by cuDNN's kernel for NVIDIA GPUs (bfloat16 or float16)."""
    return jax.nn.dot_product_attention(
        q_BLHN,
        k_BKLN.swapaxes(1, 2),
        v_BKLN.swapaxes(1, 2),
        mask=mask_BLL[:, None],
        implementation="cudnn",
    )


def choose_kernel(config: ModelConfig, mesh: Mesh | None, shared_prompts: bool = False) -> str:
    """What attention over packed rows runs on this mesh: config.attention, "auto" resolved.

    The splash kernel compares segments and nothing else, so it cannot run rows in which completions
    share a prompt: "auto" then means xla, and "splash" is an error. cuDNN wants 16 bits.
    """
    platform = "cpu" if mesh is None else mesh.devices.flat[0].platform
    gpu = platform in ("gpu", "cuda")
    kernel = config.attention
    if kernel == "auto" and platform == "tpu" and not shared_prompts:
        return "splash"
    if kernel == "auto":
        return "cudnn" if gpu and config.dtype == "bfloat16" else "xla"
    if kernel == "splash" and shared_prompts:
        raise ConfigError(
            "attention 'splash' cannot run rows in which completions share a prompt: set"
            " config.share_prompts to False, or attention to 'xla'"
        )
    if (kernel == "splash" and platform != "tpu") or (kernel == "cudnn" and not gpu):
        wanted = "TPUs" if kernel == "splash" else "GPUs"
        raise ConfigError(f"attention {kernel!r} runs on {wanted}; the mesh is of {platform}s")
    return kernel


def update_cache(
    cache: LayerCache, k_BLKN: jax.Array, v_BLKN: jax.Array, column: jax.Array
) -> LayerCache:
    """Writes the new tokens of every row into the columns from `column` on."""

    put = jax.lax.dynamic_update_slice_in_dim
    keys = k_BLKN.transpose(0, 2, 3, 1).astype(cache.keys.dtype)
    values = v_BLKN.swapaxes(1, 2).astype(cache.values.dtype)
    return LayerCache(put(cache.keys, keys, column, 3), put(cache.values, values, column, 2))
