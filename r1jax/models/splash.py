"""The splash kernel for TPUs, its mask worked out once for all programs of a process.

A module of its own, since Pallas takes a second to import.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import (
    process_mask,
    process_mask_dkv,
)

from r1jax.models.packed_attention import ATTENTION

SegmentIds = splash.SegmentIds

LANES = 128  # of a TPU; blocks are multiples of it
WIDEST = 1024  # columns of a block: with more, scores don't fit a core's memory
WIDEST_SCORES = 512  # columns whose scores exist at once


def padded_length(length: int, parts: int = 1) -> int:
    """What the kernel wants of a row whose queries are so many devices'."""
    return -(-length // (parts * LANES)) * parts * LANES


@functools.lru_cache(maxsize=32)
def splash_kernel(
    length: int, heads: int, window: int | None, parts: int = 1, interpret: bool = False
) -> Any:
    """For a device's heads: causal, over the last `window` columns where that is a number.

    A pytree with NumPy leaves, which any program may take, split for the devices that have a part
    of the queries each; its mask is walked here, and never again for the same arguments.
    """
    mask = splash.MultiHeadMask([_Causal((length, length), window)] * heads)
    sizes = _block_sizes(length // parts)
    how: Any = {"downcast_smem_data": True, "head_shards": 1, "q_seq_shards": parts}
    # As make_splash_mha has it, which would make arrays of the program that is traced.
    forward, mask_function = process_mask(mask, (sizes.block_q, sizes.block_kv), **how)
    of_queries, _ = process_mask(mask, (sizes.block_q_dq, sizes.block_kv_dq), **how)
    of_keys, _ = process_mask_dkv(mask, (sizes.block_q_dkv, sizes.block_kv_dkv), **how)
    return kernels.SplashAttentionKernel(
        forward,
        of_queries,
        of_keys,
        block_sizes=sizes,
        is_mqa=False,
        save_residuals=False,
        mask_value=kernels.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name=ATTENTION,
        mask_function=mask_function,
        interpret=interpret,
    )


def within_segments(kernel: Any, of_queries_l: jax.Array, of_keys_L: jax.Array) -> Any:
    """The kernel for one row of these segments, positive but for padding (0): blocks of which no
    query is in the segment of a key are left out.
    """
    sizes = kernel.kwargs["block_sizes"]

    def seen(info: Any, queries: int, keys: int, by_key: bool = False) -> Any:
        (first_q, last_q), (first_k, last_k) = (
            _bounds(of_queries_l, queries),
            _bounds(of_keys_L, keys),
        )
        other = info.data_next[0].astype(jnp.int32)  # what the grid's own two numbers don't say
        own = jnp.arange(other.shape[by_key])
        q, k = (other, own[None]) if by_key else (own[:, None], other)
        meet = (first_q[q] <= last_k[k]) & (first_k[k] <= last_q[q])
        return info._replace(block_mask=jnp.where(meet, info.block_mask, 0))

    return kernels.SplashAttentionKernel(
        seen(kernel.fwd_mask_info, sizes.block_q, sizes.block_kv),
        seen(kernel.dq_mask_info, sizes.block_q_dq, sizes.block_kv_dq),
        seen(kernel.dkv_mask_info, sizes.block_q_dkv, sizes.block_kv_dkv, by_key=True),
        **kernel.kwargs,
    )


def _bounds(segments_L: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """The first and the last segment of each block, padding behind them all."""
    blocks = jnp.where(segments_L > 0, segments_L, jnp.iinfo(jnp.int32).max).reshape(-1, size)
    return blocks.min(axis=1), blocks.max(axis=1)


def block_of(length: int) -> int:
    """Columns of a block of such a row: as many as divide it, since a TPU is done with 512 as soon
    as it has begun them.
    """
    padded = padded_length(length)
    return next(size for size in (WIDEST, 512, LANES) if padded % size == 0)


def _block_sizes(length: int) -> splash.BlockSizes:
    block = block_of(length)
    part = min(block, WIDEST_SCORES)
    return splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=part,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=part,
        block_q_dq=block,
        block_kv_dq=part,
    )


class _Causal(splash.LocalMask):
    """A causal mask, with a window or without, that knows of whole blocks without looking inside.

    So a row's mask is walked in the time of its diagonals, not of its square.
    """

    def __init__(self, shape: tuple[int, int], window: int | None) -> None:
        self.columns = window or shape[1]  # that a query sees, its own among them
        super().__init__(shape, (window and window - 1, 0), 0)

    def __getitem__(self, index: Any) -> np.ndarray:
        rows, columns = (range(*part.indices(n)) for part, n in zip(index, self.shape, strict=True))
        nearest, farthest = rows[0] - columns[-1], rows[-1] - columns[0]  # of query from key
        shape = len(rows), len(columns)
        if nearest >= 0 and farthest < self.columns:
            return _whole(shape, True)
        if farthest < 0 or nearest >= self.columns:
            return _whole(shape, False)
        found: np.ndarray = super().__getitem__(index)
        return found


@functools.lru_cache(maxsize=8)
def _whole(shape: tuple[int, int], value: bool) -> np.ndarray:
    return np.full(shape, value)
