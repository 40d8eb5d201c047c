"""Attention to pages by kernels for TPUs, each run on one device's own rows and heads.

Shape legend: pages.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

BLOCK_TOKENS = 2048  # of a row that the ragged kernel takes at once
BLOCK_QUERIES = 8  # of one or several rows; of prompts as many more as fit
PROMPT_QUERIES = 32
LATENT_PAGES = 8  # that the latent kernel takes at once
VMEM_BYTES = 64 << 20
Seen = tuple[jax.Array, jax.Array]  # pages.Tables' start and end
RAGGED_KERNEL = "ragged_paged_attention_kernel"  # its names in programs
LATENT_KERNEL = "latent_paged_attention"
FLOATS = ("bf16", "f32")


def ragged_attention(
    q_BLHN: jax.Array, pages: jax.Array, table_BA: jax.Array, seen: Seen, scale: float
) -> jax.Array:
    """Of queries to keys and values [P, E, 2 K, N], by the kernel that comes with jax."""
    from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention

    rows, length, heads, width = q_BLHN.shape
    size, most = pages.shape[1], table_BA.shape[1]
    mixed = ragged_paged_attention(
        q_BLHN.reshape(rows * length, heads, width).astype(pages.dtype),
        pages,
        _tokens(seen, length),
        table_BA,
        jnp.arange(rows + 1, dtype=jnp.int32) * length,
        jnp.full(1, rows, jnp.int32),
        sm_scale=scale,
        num_kv_pages_per_block=min(most, max(BLOCK_TOKENS // size, 1)),
        num_queries_per_block=BLOCK_QUERIES if length <= BLOCK_QUERIES else PROMPT_QUERIES,
        vmem_limit_bytes=VMEM_BYTES,
    )
    return mixed.reshape(q_BLHN.shape)


def latent_attention(
    q_BLHC: jax.Array, pages: jax.Array, table_BA: jax.Array, seen: Seen, scale: float, rank: int
) -> jax.Array:
    """Of absorbed queries to latent vectors [P, E, C], each of which is read once: [B, L, H, rank].

    A step takes some pages of one row; Pallas fetches those of the next step meanwhile, whichever
    row they belong to. There are as many steps as the rows' tokens need.
    """
    rows, length, heads, width = q_BLHC.shape
    size, most = pages.shape[1], table_BA.shape[1]
    at_once = min(LATENT_PAGES, most)
    tokens_B = _tokens(seen, length)
    steps_B = -(-tokens_B // (at_once * size))
    ends_B = jnp.cumsum(steps_B)
    step_S = jnp.arange(rows * -(-most // at_once))
    row_S = jnp.minimum(jnp.searchsorted(ends_B, step_S, side="right"), rows - 1).astype(jnp.int32)
    part_S = (step_S - (ends_B - steps_B)[row_S]).astype(jnp.int32)  # of its row
    page_SI = part_S[:, None] * at_once + jnp.arange(at_once)
    page_SI = jnp.minimum(page_SI, (tokens_B[row_S] - 1)[:, None] // size)  # fetched already
    # Steps last: scalars' memory has whole tiles of 128, so that [S, I] would fill it 16 times.
    page_IS = jnp.take_along_axis(table_BA[row_S], page_SI, axis=1).T
    queries = length * heads
    of_row = pl.BlockSpec((1, queries, width), lambda s, row, *_: (row[s], 0, 0))
    out = pl.BlockSpec((1, queries, rank), lambda s, row, *_: (row[s], 0, 0))

    def page(i: int) -> pl.BlockSpec:
        return pl.BlockSpec(
            (1, size, width), lambda s, row, part, page_IS, *_: (page_IS[i, s], 0, 0)
        )

    from jax.experimental.pallas import tpu as pltpu

    kernel = partial(_latent_step, scale=scale, heads=heads, rank=rank)
    mixed = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((rows, queries, rank), q_BLHC.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=5,
            grid=(ends_B[-1],),
            in_specs=[of_row, *map(page, range(at_once))],
            out_specs=out,
            scratch_shapes=[
                pltpu.VMEM((queries, 1), jnp.float32),
                pltpu.VMEM((queries, 1), jnp.float32),
                pltpu.VMEM((queries, rank), jnp.float32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary",), vmem_limit_bytes=VMEM_BYTES
        ),
        name=LATENT_KERNEL,
    )(
        row_S,
        part_S,
        page_IS,
        tokens_B,
        steps_B,
        q_BLHC.reshape(rows, queries, width).astype(pages.dtype),
        *(pages,) * at_once,
    )
    return mixed.reshape(rows, length, heads, rank)


def _latent_step(*refs: Any, scale: float, heads: int, rank: int) -> None:
    """Adds a step's pages to what its row has so far: m the largest score, t and sum of weights."""
    row_S, part_S, _, tokens_B, steps_B, q_ref, *page_refs = refs[:-4]
    out_ref, top_ref, total_ref, sum_ref = refs[-4:]
    step = pl.program_id(0)
    row, part = row_S[step], part_S[step]

    @pl.when(part == 0)
    def _begin() -> None:
        top_ref[...] = jnp.full(top_ref.shape, -jnp.inf, jnp.float32)
        total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)
        sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)

    q_MC = q_ref[0]
    k_TC = jnp.concatenate([page_ref[0] for page_ref in page_refs])
    scores_MT = scale * jax.lax.dot_general(
        q_MC, k_TC, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    tokens, length = tokens_B[row], q_MC.shape[0] // heads
    key_MT = part * k_TC.shape[0] + jax.lax.broadcasted_iota(jnp.int32, scores_MT.shape, 1)
    query_MT = jax.lax.broadcasted_iota(jnp.int32, scores_MT.shape, 0) // heads
    scores_MT = jnp.where(key_MT <= tokens - length + query_MT, scores_MT, -jnp.inf)
    top_M1 = jnp.maximum(top_ref[...], scores_MT.max(axis=1, keepdims=True))
    weights_MT = jnp.exp(scores_MT - top_M1)
    before_M1 = jnp.exp(top_ref[...] - top_M1)
    total_ref[...] = total_ref[...] * before_M1 + weights_MT.sum(axis=1, keepdims=True)
    sum_ref[...] = sum_ref[...] * before_M1 + jnp.dot(
        weights_MT.astype(k_TC.dtype), k_TC[:, :rank], preferred_element_type=jnp.float32
    )
    top_ref[...] = top_M1

    @pl.when(part == steps_B[row] - 1)
    def _end() -> None:
        out_ref[0] = (sum_ref[...] / total_ref[...]).astype(out_ref.dtype)


def _tokens(seen: Seen, length: int) -> jax.Array:
    """That a row's last new one sees, int32 [B]; of a row without new ones as few as can be."""
    start_B, end_B = seen
    return jnp.where(start_B < end_B, start_B + length, length).astype(jnp.int32)


def paged_costs(share: float) -> Mapping[str, Callable[..., tuple[float, float]]]:
    """FLOPs and bytes of these kernels, for `python -m r1jax.plan`: where rows have this share of
    the tokens that their tables have room for.
    """
    return {RAGGED_KERNEL: partial(_cost, share), LATENT_KERNEL: partial(_cost, share)}


def _cost(share: float, operands: Sequence[Any], results: Sequence[Any]) -> tuple[float, float]:
    floats = [x for x in operands if x.dtype in FLOATS]
    rows, most = next(x.dims for x in operands if len(x.dims) == 2 and x.dtype == "s32")
    q, page, mixed = floats[0], floats[1], results[0]
    read = share * rows * most * page.bytes / page.dims[0]
    if len(page.dims) == 4:  # [P, E, 2 K, N], of queries [B L, H, N]
        seen = share * rows * most * page.dims[1] * q.dims[0] / rows * q.dims[1]
    else:  # [P, E, C], of queries [B, L H, C]; its table is by steps
        seen = share * rows * most * page.dims[1] * q.dims[1]
    flops = 2.0 * seen * (q.dims[-1] + mixed.dims[-1])
    return flops, read + q.bytes + mixed.bytes
