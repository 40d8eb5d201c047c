"""Attention of packed rows, in which many sequences lie behind each other: no cache.

Shape legend: attention.py's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh

from r1jax.machines.mesh import constrain, parts_of
from r1jax.models.attention import attend, by_kv_head, per_kv_head, scaled, softmax_mix

MIN_BLOCK, MAX_BLOCKS = 96, 12  # queries of a block; blocks of two spans
ATTENTION = "attention"  # what jax.checkpoint may keep of it: its outcome, its log denominators
QUERIES = 512  # of a device, whose scores exist at once where rows are split over devices
NEARER = 0.75  # share of its columns below which a block may take a nearer window instead


@dataclass(frozen=True)
class Span:
    """What a token of a packed row sees at most: where its segment begins, and a window up to it.

    What is shared in a segment, a prompt, stands where it begins.
    """

    prefix: int  # the segment's first columns
    window: int  # columns, the token's own among them


def packed_mask(segment_ids_BL: jax.Array, completion_ids_BL: jax.Array | None) -> jax.Array:
    """Which key a query may see in packed rows -> bool [B, L, L] (see types.Batch).

    Padding sees itself alone, so that it does not make others look far back.
    """
    length = segment_ids_BL.shape[1]
    same_segment = segment_ids_BL[:, :, None] == segment_ids_BL[:, None, :]
    mask = same_segment & (segment_ids_BL > 0)[:, None] & jnp.tril(jnp.ones((length, length), bool))
    if completion_ids_BL is not None:
        key_ids = completion_ids_BL[:, None, :]
        mask &= (key_ids == 0) | (key_ids == completion_ids_BL[:, :, None])
    return mask | jnp.eye(length, dtype=bool)


class Seen(Protocol):
    """What the queries of packed rows see, as a kernel wants it: found once, for all layers."""

    def attend(
        self, q_BLHN: jax.Array, k_BKLN: jax.Array, v_BKLO: jax.Array, scale: float
    ) -> jax.Array:
        """Softmax attention of whole rows to what they see -> [B, L, H, O]."""
        ...


@struct.dataclass
class SeenInBlocks:
    """For XLA, on any platform; scores in float32."""

    mask: jax.Array  # bool [B, L, L]
    windows: tuple[jax.Array, ...]  # which of its windows each block takes; int32 [times]
    blocks: tuple[_Block, ...] = struct.field(pytree_node=False)

    def attend(
        self, q_BLHN: jax.Array, k_BKLN: jax.Array, v_BKLO: jax.Array, scale: float
    ) -> jax.Array:
        seen = self.mask, self.windows
        return _attend_in_blocks(q_BLHN, k_BKLN, v_BKLO, *seen, self.blocks, scale)


@struct.dataclass
class SeenByShard:
    """For XLA where devices have a part of each row's queries: all keys come to them.

    Some of them at a time, whose scores are made again in the backward pass.
    """

    mask: jax.Array  # bool [B, L, L]
    mesh: Mesh | None = struct.field(pytree_node=False, default=None)

    def attend(
        self, q_BLHN: jax.Array, k_BKLN: jax.Array, v_BKLO: jax.Array, scale: float
    ) -> jax.Array:
        k, v = (
            constrain(x, self.mesh, "batch", "kv_heads", "keys", None) for x in (k_BKLN, v_BKLO)
        )
        rows, length, heads, _ = q_BLHN.shape
        shards = parts_of("length", self.mesh)
        own = length // shards
        times = next(n for n in range(-(-own // QUERIES), own + 1) if own % n == 0)

        def in_turn(x_BL: jax.Array, *names: str | None) -> jax.Array:
            x = x_BL.reshape(rows, shards, times, own // times, *x_BL.shape[2:])
            return constrain(
                jnp.moveaxis(x, 2, 0), self.mesh, None, "batch", "length", None, *names
            )

        @jax.checkpoint
        def one(given: tuple[jax.Array, jax.Array]) -> jax.Array:
            q, mask = (x.reshape(rows, -1, *x.shape[3:]) for x in given)
            mixed = attend(q, k, v, mask, scale)[0]
            return mixed.reshape(rows, shards, -1, *mixed.shape[2:])

        given = in_turn(q_BLHN, "heads", None), in_turn(self.mask, None)
        mixed = jnp.moveaxis(jax.lax.map(one, given), 0, 2)
        mixed_BLHO = mixed.reshape(rows, length, heads, -1).astype(v_BKLO.dtype)
        return checkpoint_name(mixed_BLHO, ATTENTION)


def see(mask_BLL: jax.Array, span: Span | None = None, one_device: bool = False) -> SeenInBlocks:
    """A causal mask in blocks of queries, which are computed one by one.

    Each is for the keys up to its own end; where the mask shows no more than a `span`, for those of
    a prefix and of the window only. So most of the scores that the mask hides are not computed. On
    `one_device` a block whose queries turn out to see no more than half a long window, or a
    quarter, takes that: which is so, all rows must agree on.
    """
    length = mask_BLL.shape[1]
    blocks = _blocks(length, span or Span(length, length), one_device)
    return SeenInBlocks(mask_BLL, tuple(block.nearest(mask_BLL) for block in blocks), blocks)


@dataclass(frozen=True)
class _Block:
    """`size` queries of a row; they see nothing but a prefix and `width` columns up to their own.

    The prefix is that of the segment which the first query continues: segments that begin behind
    it begin in the window. Where a prefix begins, differs from row to row: `first_B`.
    """

    start: Any  # its first query: int, or an int32 scalar in a loop over `times`
    size: int  # Q
    prefix: int  # columns, 0 where the window begins with the row
    width: int  # columns of the window
    times: int = 1  # that many blocks of one shape behind each other
    nearer: _Block | None = None  # the same queries with a window that is often enough

    @property
    def columns(self) -> int:
        """T"""
        return self.prefix + self.width

    @property
    def window(self) -> Any:
        """The window's first column."""
        return self.start + self.size - self.width

    @property
    def choices(self) -> list[_Block]:
        """The blocks with the nearer windows, nearest first, and this one."""
        return [*(self.nearer.choices if self.nearer else ()), self]

    @property
    def widest(self) -> _Block:
        """One with room for the columns of all its choices."""
        return replace(self, prefix=max(b.prefix for b in self.choices), nearer=None)

    def moved(self, queries: Any) -> _Block:
        """The block so many queries further."""
        nearer = self.nearer and self.nearer.moved(queries)
        return replace(self, start=self.start + queries, nearer=nearer)

    def queries(self, x: jax.Array, axis: int) -> jax.Array:
        """Its part of queries, or of what is aligned to them."""
        return jax.lax.dynamic_slice_in_dim(x, self.start, self.size, axis)

    def heads(self, x_BLHN: jax.Array) -> jax.Array:
        """Its part, head by head -> [B, H, Q, N]."""
        return self.queries(x_BLHN, 1).swapaxes(1, 2)

    def in_window(self, x: jax.Array) -> jax.Array:
        """The window's part of axis 2."""
        return jax.lax.dynamic_slice_in_dim(x, self.window, self.width, 2)

    def first(self, mask_BLL: jax.Array) -> jax.Array:
        """Where the prefix begins, int32 [B]."""
        last = mask_BLL.shape[2] - self.prefix
        mask_BL = jax.lax.dynamic_index_in_dim(mask_BLL, self.start, 1, keepdims=False)
        return jnp.minimum(jnp.argmax(mask_BL, axis=1), last)

    def seen(self, x_BKLN: jax.Array, first_B: jax.Array) -> jax.Array:
        """The columns T that it sees of keys or values."""
        window_BKTN = self.in_window(x_BKLN)
        if self.prefix == 0:
            return window_BKTN
        return jnp.concatenate([_slices(x_BKLN, first_B, self.prefix), window_BKTN], axis=2)

    def mask(self, mask_BLL: jax.Array, first_B: jax.Array) -> jax.Array:
        """Which of these columns each query sees, bool [B, Q, T]: none of them twice."""
        mask_BQL = self.queries(mask_BLL, 1)
        window_BQT = self.in_window(mask_BQL)
        if self.prefix == 0:
            return window_BQT
        before_BT = first_B[:, None] + jnp.arange(self.prefix) < self.window
        prefix_BQT = _slices(mask_BQL, first_B, self.prefix) & before_BT[:, None]
        return jnp.concatenate([prefix_BQT, window_BQT], axis=2)

    def nearest(self, mask_BLL: jax.Array) -> jax.Array:
        """The first of its choices whose columns are all that its queries see, int32 [times]."""

        def one(queries: jax.Array) -> jax.Array:
            *nearer, _ = self.moved(queries).choices
            hides_some = [~block.shows_all(mask_BLL) for block in nearer]
            return sum(map(jnp.int32, hides_some), jnp.int32(0))  # those behind show no less

        return jax.lax.map(one, jnp.arange(self.times) * self.size)

    def shows_all(self, mask_BLL: jax.Array) -> jax.Array:
        """Whether its columns are all that its queries see, bool scalar."""
        shown = jnp.sum(self.mask(mask_BLL, self.first(mask_BLL)))
        return shown == jnp.sum(self.queries(mask_BLL, 1))

    def among(self, wider: _Block, part_BKTN: jax.Array) -> jax.Array:
        """What is aligned to its columns, among a wider block's columns, with zeros for others."""
        prefix, window = part_BKTN[:, :, : self.prefix], part_BKTN[:, :, self.prefix :]
        shape = (*part_BKTN.shape[:2], wider.columns - self.columns, part_BKTN.shape[3])
        zeros = jnp.zeros(shape, part_BKTN.dtype)
        return jnp.concatenate([prefix, zeros, window], axis=2)

    def add(self, total_BKLN: jax.Array, part_BKTN: jax.Array, first_B: jax.Array) -> jax.Array:
        """The total with a gradient of what `seen` gave added where that came from."""
        put = jax.lax.dynamic_update_slice_in_dim
        if self.prefix:
            prefix_BKTN = _slices(total_BKLN, first_B, self.prefix) + part_BKTN[:, :, : self.prefix]
            total_BKLN = jax.vmap(functools.partial(put, axis=1))(total_BKLN, prefix_BKTN, first_B)
        window_BKTN = self.in_window(total_BKLN) + part_BKTN[:, :, self.prefix :]
        return put(total_BKLN, window_BKTN, self.window, axis=2)


def _slices(x: jax.Array, start_B: jax.Array, size: int) -> jax.Array:
    """`size` columns of axis 2, in each row from its own start."""
    take = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=size, axis=1)
    return jax.vmap(take)(x, start_B)


def _blocks(length: int, span: Span, one_device: bool) -> tuple[_Block, ...]:
    """The blocks of a row; those of one shape, as all are behind the first window, as one."""
    reach = min(length, 2 * (span.prefix + span.window))
    number = max(1, round(length / max(MIN_BLOCK, -(-reach // MAX_BLOCKS))))
    size = -(-length // number)
    blocks: list[_Block] = []
    for start in range(0, length, size):
        block = _block(start, min(size, length - start), span)
        if one_device:
            block = _with_nearer(block, span)
        last = blocks[-1] if blocks else block
        if replace(last, times=1).moved(last.times * last.size) == block:
            blocks[-1] = replace(last, times=last.times + 1)
        else:
            blocks.append(block)
    return tuple(blocks)


def _block(start: int, size: int, span: Span) -> _Block:
    """Of queries that see no more than a span."""
    before = start + 1 - span.window
    if span.prefix < before:
        return _Block(start, size, span.prefix, start + size - before)
    return _Block(start, size, 0, start + size)  # what is before the window is the shorter prefix


def _with_nearer(block: _Block, span: Span) -> _Block:
    """The block with half its span's window where that spares it enough, and half of that again."""
    half = replace(span, window=span.window // 2 + 1)
    nearer = _block(block.start, block.size, half)
    if nearer.columns > NEARER * block.columns:
        return block
    return replace(block, nearer=_with_nearer(nearer, half))


def _with_columns(block: _Block, window: jax.Array, compute: Callable[[_Block], Any]) -> Any:
    """compute(block), with the window of this index among its choices."""
    computes = [functools.partial(compute, choice) for choice in block.choices]
    return computes[0]() if len(computes) == 1 else jax.lax.switch(window, computes)


# compute(carry, block, index of its window) -> (carry, out)
_Compute = Callable[[Any, _Block, jax.Array], tuple[Any, Any]]


def _over_blocks(
    blocks: tuple[_Block, ...], windows: tuple[jax.Array, ...], compute: _Compute, carry: Any
) -> tuple[Any, Any]:
    """carry, out = compute(carry, block, window) for each in turn -> (carry, outs [B, H, L, ...]).

    Those of one shape are a loop, which is compiled once.
    """
    outs = []
    for block, window in zip(blocks, windows, strict=True):
        if block.times == 1:
            carry, out = compute(carry, block, window[0])
        else:

            def moved(carry: Any, x: Any, block: _Block = block) -> tuple[Any, Any]:
                queries, window = x
                return compute(carry, block.moved(queries), window)

            moves = jnp.arange(block.times) * block.size
            carry, out = jax.lax.scan(moved, carry, (moves, window))
            out = jax.tree.map(lambda parts: jnp.concatenate(parts, axis=2), out)
        outs.append(out)
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=2), *outs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend_in_blocks(
    q_BLHN: jax.Array,
    k_BKLN: jax.Array,
    v_BKLN: jax.Array,
    mask_BLL: jax.Array,
    windows: tuple[jax.Array, ...],
    blocks: tuple[_Block, ...],
    scale: float,
) -> jax.Array:
    return _attend_forward(q_BLHN, k_BKLN, v_BKLN, mask_BLL, windows, blocks, scale)[0]


def _attend_forward(
    q_BLHN: jax.Array,
    k_BKLN: jax.Array,
    v_BKLN: jax.Array,
    mask_BLL: jax.Array,
    windows: tuple[jax.Array, ...],
    blocks: tuple[_Block, ...],
    scale: float,
) -> tuple[jax.Array, Any]:
    def forward(block: _Block) -> tuple[jax.Array, jax.Array]:
        first_B = block.first(mask_BLL)
        k_BKTN, v_BKTN = block.seen(k_BKLN, first_B), block.seen(v_BKLN, first_B)
        scores_BHQT = per_kv_head("bkmn,bktn->bkmt", block.heads(q_BLHN), k_BKTN)
        return softmax_mix(scores_BHQT, block.mask(mask_BLL, first_B), v_BKTN, scale)

    def one(carry: None, block: _Block, window: jax.Array) -> tuple[None, Any]:
        return carry, _with_columns(block, window, forward)

    _, (mixed_BHLN, lse_BHL1) = _over_blocks(blocks, windows, one, None)
    mixed_BLHN, lse_BHL1 = checkpoint_name((mixed_BHLN.swapaxes(1, 2), lse_BHL1), ATTENTION)
    return mixed_BLHN, (q_BLHN, k_BKLN, v_BKLN, mask_BLL, windows, mixed_BLHN, lse_BHL1)


def _attend_backward(
    blocks: tuple[_Block, ...], scale: float, saved: Any, mixed_grad_BLHN: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None, None]:
    """Autodiff would pad the gradients of each block's keys and values to the whole row.

    With P the softmax, made again, O = P V and D = rowsum(dO O): dV = P^T dO, dS = P (dO V^T - D),
    dQ = dS K, dK = dS^T Q.
    """
    q_BLHN, k_BKLN, v_BKLN, mask_BLL, windows, mixed_BLHN, lse_BHL1 = saved
    dot_BLH1 = jnp.sum(mixed_grad_BLHN * mixed_BLHN, axis=-1, keepdims=True, dtype=jnp.float32)

    def backward(widest: _Block, block: _Block) -> tuple[jax.Array, jax.Array, jax.Array]:
        first_B = block.first(mask_BLL)
        q_BHQN, grad_BHQN = block.heads(q_BLHN), block.heads(mixed_grad_BLHN)
        k_BKTN, v_BKTN = block.seen(k_BKLN, first_B), block.seen(v_BKLN, first_B)
        scores_BHQT = per_kv_head("bkmn,bktn->bkmt", q_BHQN, k_BKTN)
        scores_BHQT = scaled(scores_BHQT, block.mask(mask_BLL, first_B), scale)
        weights_BHQT = jnp.exp(scores_BHQT - block.queries(lse_BHL1, 2))
        grad_BHQT = per_kv_head("bkmn,bktn->bkmt", grad_BHQN, v_BKTN)
        grad_BHQT = weights_BHQT * (grad_BHQT - block.heads(dot_BLH1)) * scale
        return (
            per_kv_head("bkmt,bktn->bkmn", grad_BHQT, k_BKTN),
            block.among(widest, _over_queries(grad_BHQT, q_BHQN, k_BKTN)),
            block.among(widest, _over_queries(weights_BHQT, grad_BHQN, v_BKTN)),
        )

    def one(totals: Any, block: _Block, window: jax.Array) -> tuple[Any, jax.Array]:
        widest = block.widest
        first_B = widest.first(mask_BLL)
        q_grad_BHQN, *parts = _with_columns(block, window, functools.partial(backward, widest))
        add = functools.partial(widest.add, first_B=first_B)
        return tuple(map(add, totals, parts)), q_grad_BHQN

    totals = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k_BKLN, v_BKLN))
    (k_grad_BKLN, v_grad_BKLN), q_grad_BHLN = _over_blocks(blocks, windows, one, totals)
    return (
        q_grad_BHLN.swapaxes(1, 2).astype(q_BLHN.dtype),
        k_grad_BKLN.astype(k_BKLN.dtype),
        v_grad_BKLN.astype(v_BKLN.dtype),
        None,
        None,
    )


_attend_in_blocks.defvjp(_attend_forward, _attend_backward)


def _over_queries(x_BHLT: jax.Array, y_BHLN: jax.Array, like: jax.Array) -> jax.Array:
    """x^T y over the queries of a kv head, in the type of `like`, float32 [B, K, T, N]."""
    x_BKMT, y_BKMN = (by_kv_head(x, like) for x in (x_BHLT, y_BHLN))
    return jnp.einsum("bkmt,bkmn->bktn", x_BKMT, y_BKMN, preferred_element_type=jnp.float32)
