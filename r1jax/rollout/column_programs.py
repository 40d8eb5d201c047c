"""Programs over columns: a ring for each row, and prompts that many rows read.

Shape legend: programs.py's; P prompts a shard; T columns of a cache; R prompts of a prefill a
shard; L their tokens; W tokens of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from r1jax.models.caches import (
    Cache,
    RowCache,
    SharedPrefix,
    by_shard,
    cache_kind,
    kept_rows,
    with_columns,
)
from r1jax.models.transformer import Transformer, forward
from r1jax.rollout.decoding import Slots
from r1jax.rollout.programs import Programs
from r1jax.rollout.sampling import SamplingConfig


@struct.dataclass
class Ring:
    """What rows keep of their own tokens: each step writes the same columns for all of them."""

    layers: tuple[Any, ...]  # per layer a RowCache of T columns; last that of the drafts
    seen: jax.Array  # bool [B, T], columns that hold a row's own tokens
    column: jax.Array  # int32 scalar, the first of the next step
    mesh: Mesh | None = struct.field(pytree_node=False, default=None)

    def begun(self, slots: jax.Array) -> Ring:
        return replace(self, seen=self.seen.at[slots].set(False, mode="drop"))

    def cache(self, slots: Slots, shared: SharedPrefix, width: int) -> Cache:
        step_T = jnp.arange(self.seen.shape[1]) - self.column  # 0 .. W - 1 are this step's
        is_step_T = (step_T >= 0) & (step_T < width)
        before_BT = self.seen & ~is_step_T
        own_WT = is_step_T & (step_T <= jnp.arange(width)[:, None])
        return Cache(self.layers, self.column, before_BT[:, None] | own_WT, shared)

    def after(self, layers: Sequence[RowCache], is_own_BW: jax.Array) -> Ring:
        return replace(
            self,
            layers=tuple(layer.pinned(self.mesh) for layer in layers),
            seen=jax.lax.dynamic_update_slice_in_dim(self.seen, is_own_BW, self.column, 1),
            column=(self.column + is_own_BW.shape[1]) % self.seen.shape[1],
        )


class ColumnPrograms(Programs):
    """Rows that decode have caches of type `row_cache`; prompts have the model's own."""

    def __init__(
        self,
        model: Transformer,
        stop_ids: Sequence[int],
        row_cache: type[RowCache] | None = None,
        drafts: bool = False,
    ) -> None:
        self.prompt_cache = cache_kind(model.config)
        self.row_cache = row_cache or self.prompt_cache
        super().__init__(model, stop_ids, drafts)
        slots, prefix = self.slot_shardings(), self._prefix_shardings()
        self.empty = jax.jit(self._empty, static_argnums=(0, 1), out_shardings=slots)
        self.empty_prefix = jax.jit(self._empty_prefix, static_argnums=(0, 1), out_shardings=prefix)
        self.prefill = jax.jit(self._prefill, donate_argnums=1, out_shardings=prefix)
        self.keep_seen = jax.jit(
            self._keep_seen, static_argnames="columns", out_shardings=slots.held.seen
        )
        self.keep_prefix = jax.jit(self._keep_prefix, out_shardings=prefix)
        self.resize_layer = jax.jit(
            self._resize_layer, static_argnames="columns", out_shardings=slots.held.layers
        )

    def held_shardings(self) -> Any:
        cache: Any = self.sharding(*self.row_cache.axes())
        rows: Any = self.sharding("batch")
        return Ring(layers=cache, seen=rows, column=self.sharding(), mesh=self.mesh)  # type: ignore[arg-type]

    def _prefix_shardings(self) -> Any:
        rows: Any = self.sharding("batch")
        cache: Any = self.sharding(*self.prompt_cache.axes())
        return SharedPrefix(layers=cache, lengths=rows, members=rows, places=rows)

    def _zeros(self, kind: type[RowCache], rows: int, columns: int) -> tuple[RowCache, ...]:
        config, compute = self.model.config, self.model.compute
        layer = kind.zeros(config, compute, rows, columns).pinned(self.mesh)
        return (layer,) * (config.num_layers + config.mtp)

    def _empty(self, rows: int, columns: int) -> Slots:
        layers = self._zeros(self.row_cache, rows, columns)
        ring = Ring(layers, jnp.zeros((rows, columns), bool), jnp.int32(0), self.mesh)
        return replace(self.empty_slots(rows), held=ring)

    def _empty_prefix(self, prompts: int, columns: int) -> SharedPrefix:
        return SharedPrefix(
            layers=self._zeros(self.prompt_cache, self.shards * prompts, columns),
            lengths=jnp.zeros((self.shards, prompts), jnp.int32),
            members=jnp.zeros((self.shards, 0, 0), jnp.int32),  # every decode brings its own
            places=jnp.zeros((self.shards, 0), jnp.int32),
        )

    def lower_decode(
        self,
        params: Any,
        size: tuple[int, int],
        prefix: tuple[int, int, int],
        sampling: SamplingConfig,
        steps: int,
    ) -> jax.stages.Lowered:
        """`decode` for (slots a shard, columns) and (prompts, columns, readers of a prompt).

        Once it is compiled, a call of these shapes finds it so.
        """
        (slots, columns), (prompts, prompt_columns, readers) = size, prefix
        state = self.empty.eval_shape(self.shards * slots, columns)
        shared = replace(
            self.empty_prefix.eval_shape(prompts, prompt_columns),
            members=self.indices(prompts, readers),
            places=self.indices(slots),
        )
        idle = jax.ShapeDtypeStruct((self.shards * slots,), bool)
        return self.decode.lower(params, state, shared, idle, sampling=sampling, steps=steps)

    def compile_resize(self, size: tuple[int, int], new: tuple[int, int]) -> None:
        """`resize` from (slots a shard, columns) to others."""
        state = self.empty.eval_shape(self.shards * size[0], size[1])
        keep = jax.ShapeDtypeStruct((self.shards, new[0]), np.int32)
        ring = state.held
        if new[0] != size[0]:
            self.keep.lower(replace(state, held=None), keep).compile()
        self.keep_seen.lower(ring.seen, keep, ring.column, columns=new[1]).compile()
        self.resize_layer.lower(ring.layers[0], keep, ring.column, columns=new[1]).compile()

    def compile_resize_prefix(self, size: tuple[int, int], new: tuple[int, int]) -> None:
        """`resize_prefix` from (prompts a shard, columns) to others."""
        prefix = self.empty_prefix.eval_shape(*size)
        keep = jax.ShapeDtypeStruct((self.shards, new[0]), np.int32)
        self.keep_prefix.lower(replace(prefix, layers=()), keep).compile()
        end = np.int32(size[1])
        self.resize_layer.lower(prefix.layers[0], keep, end, columns=new[1]).compile()

    def _prefill(
        self,
        params: Any,
        prefix: SharedPrefix,
        tokens_ZRL: jax.Array,
        next_ZRL: jax.Array,
        places: tuple[jax.Array, jax.Array],
        begin: jax.Array,
    ) -> SharedPrefix:
        """A chunk of some prompts, from position `begin` on, and the tokens behind each of them.

        `places` are the rows and lengths of the prompts [Z, R]; a row past the end is padding.

        What comes to lie behind a prompt's end is masked by its length.
        """
        (rows_ZR, lengths_ZR), (shards, size, length) = places, tokens_ZRL.shape

        def rows_of(x: jax.Array) -> jax.Array:
            found = jax.vmap(lambda held, rows: held.at[rows].get(mode="clip"))(
                by_shard(x, shards, self.mesh), rows_ZR
            )
            return found.reshape(shards * size, *x.shape[1:])

        def put(held: jax.Array, new: jax.Array) -> jax.Array:
            whole = jax.vmap(lambda held, rows, new: held.at[rows].set(new, mode="drop"))(
                by_shard(held, shards, self.mesh), rows_ZR, by_shard(new, shards, self.mesh)
            )
            return whole.reshape(held.shape)

        layers = self._pinned(jax.tree.map(rows_of, prefix.layers))
        tokens = tokens_ZRL.reshape(-1, length)
        positions = jnp.broadcast_to(begin + jnp.arange(length), tokens.shape)
        columns = layers[0].columns
        mask = jnp.arange(columns) <= positions[:, :, None]
        cache = Cache(layers, begin, mask)
        output = forward(self.model, params, tokens, positions, cache=cache)
        new: Any = output.cache
        if self.model.config.mtp:
            given = output.hidden, next_ZRL.reshape(-1, length), positions
            new = (*new, self.decoder.ahead(params, *given, cache)[1])
        lengths = jax.vmap(lambda held, rows, new: held.at[rows].set(new, mode="drop"))(
            prefix.lengths, rows_ZR, lengths_ZR
        )
        layers = self._pinned(jax.tree.map(put, prefix.layers, new))
        return replace(prefix, layers=layers, lengths=lengths)

    def resize(self, slots: Slots, keep_ZS: np.ndarray, columns: int) -> Slots:
        """The slots `keep`, with a ring of `columns` (never fewer): new ones before its oldest."""
        ring: Ring = slots.held
        rest = replace(slots, held=None)
        if keep_ZS.size != len(slots.token):
            rest = self.keep(rest, keep_ZS)
        seen = self.keep_seen(ring.seen, keep_ZS, ring.column, columns=columns)
        layers = self._resized(ring.layers, keep_ZS, ring.column, columns)
        return replace(rest, held=replace(ring, layers=layers, seen=seen))

    def resize_prefix(
        self, prefix: SharedPrefix, keep_ZP: np.ndarray, columns: int
    ) -> SharedPrefix:
        """The prompts `keep`, with `columns` columns (never fewer): new ones behind the others."""
        rest = self.keep_prefix(replace(prefix, layers=()), keep_ZP)
        end = np.int32(prefix.layers[0].columns)
        return replace(rest, layers=self._resized(prefix.layers, keep_ZP, end, columns))

    def _resized(
        self, layers: tuple[Any, ...], keep_ZS: np.ndarray, column: Any, columns: int
    ) -> tuple[Any, ...]:
        """A layer at a time: one program for all of them takes far longer to compile."""
        return tuple(self.resize_layer(x, keep_ZS, column, columns=columns) for x in layers)

    def _pinned(self, layers: tuple[RowCache, ...]) -> tuple[RowCache, ...]:
        return tuple(layer.pinned(self.mesh) for layer in layers)

    def _keep_seen(
        self, seen_BT: jax.Array, keep_ZS: jax.Array, column: jax.Array, columns: int
    ) -> jax.Array:
        """Of the slots `keep`, for so many columns."""
        more = columns - seen_BT.shape[1]
        kept_BT = kept_rows(seen_BT, keep_ZS, self.mesh)
        kept_BT = with_columns(kept_BT[:, None, :, None], column, columns)[:, 0, :, 0]
        after_T = jnp.arange(columns) - column
        return kept_BT & ~((after_T >= 0) & (after_T < more))

    def _keep_prefix(self, prefix: SharedPrefix, keep_ZP: jax.Array) -> SharedPrefix:
        """The prompts `keep` without their layers."""
        return replace(prefix, lengths=jnp.take_along_axis(prefix.lengths, keep_ZP, axis=1))

    def _resize_layer(
        self, layer: RowCache, keep_ZS: jax.Array, column: jax.Array, columns: int
    ) -> RowCache:
        return layer.resized(keep_ZS, column, columns, self.mesh)
