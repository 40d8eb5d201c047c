"""What the rollout engine runs on the device: jitted programs over slots and shared prompts.

Shape legend: Z shards of the mesh's batch axes; B = Z S rows with S slots a shard; P prompts a
shard; T columns of a cache; R prompts of a prefill a shard; L their tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import NamedSharding

from r1jax.machines.mesh import RULES, parts_of, replicated, spec_of
from r1jax.models.caches import (
    Cache,
    RowCache,
    SharedPrefix,
    by_shard,
    cache_kind,
    kept_rows,
    with_columns,
)
from r1jax.models.layouts import unstack_layers
from r1jax.models.lora import merged, without_adapters
from r1jax.models.moe import ROUTER, ROUTER_BIAS
from r1jax.models.mtp import MTP
from r1jax.models.params import param_axes
from r1jax.models.transformer import Transformer, forward
from r1jax.rollout.decoding import Decoder, Report, Slots
from r1jax.rollout.sampling import SamplingConfig, row_keys


@struct.dataclass
class NewRows:
    """Rows that begin, int32 [B] each."""

    slot: Any  # of all shards' slots
    token: Any  # the prompt's last
    position: Any  # of that token
    limit: Any  # tokens that the row may have
    prompt: Any  # numbers of prompt and sample, for the random key
    sample: Any


class Programs:
    """The programs for one model, computed as for rollouts, on its mesh.

    Rows that decode have caches of type `row_cache`; prompts have the model's own. `drafts` are
    those of the model's multi-token prediction, which is left out else.
    """

    def __init__(
        self,
        model: Transformer,
        stop_ids: Sequence[int],
        row_cache: type[RowCache] | None = None,
        drafts: bool = False,
    ) -> None:
        self._trained_config = model.config
        self.model = model.clone(config=replace(without_adapters(model.config), mtp=drafts))
        self.decoder = Decoder(self.model, tuple(stop_ids))
        self.prompt_cache = cache_kind(model.config)
        self.row_cache = row_cache or self.prompt_cache
        self.has_experts = any(stack.sparse for stack in model.config.stacks)
        self.mesh = mesh = model.mesh
        self.shards = parts_of("batch", mesh)
        self.prepare = jax.jit(self._prepare, out_shardings=self.param_shardings())
        # Named for all that gives them: what is sharded otherwise would need programs of its own.
        slots, prefix = self._slot_shardings(), self._prefix_shardings()
        self.empty = jax.jit(self._empty, static_argnums=(0, 1), out_shardings=slots)
        self.empty_prefix = jax.jit(self._empty_prefix, static_argnums=(0, 1), out_shardings=prefix)
        self.prefill = jax.jit(self._prefill, donate_argnums=1, out_shardings=prefix)
        self.insert = jax.jit(self._insert, donate_argnums=0, out_shardings=slots)
        self.keep = jax.jit(self._keep, static_argnames="columns", out_shardings=slots)
        self.keep_prefix = jax.jit(self._keep_prefix, out_shardings=prefix)
        self.resize_layer = jax.jit(
            self._resize_layer, static_argnames="columns", out_shardings=slots.layers
        )
        self.decode = jax.jit(
            self._decode,
            static_argnames=("sampling", "steps"),
            donate_argnums=1,
            out_shardings=(slots, None if mesh is None else replicated(mesh)),
        )

    def param_shardings(self) -> Any:
        """For rollouts parameters are split over `tensor` only: every step reads all of them."""
        if self.mesh is None:
            return None
        _, axes = param_axes(self.model)
        mesh = self.mesh

        def one(names: tuple[str, ...]) -> NamedSharding:
            kept = (name if "fsdp" not in RULES[name] else None for name in names)
            return NamedSharding(mesh, spec_of(tuple(kept)))

        return jax.tree.map(one, axes, is_leaf=lambda x: isinstance(x, tuple))

    def _sharding(self, *names: str) -> NamedSharding | None:
        return None if self.mesh is None else NamedSharding(self.mesh, spec_of(names))

    def _slot_shardings(self) -> Any:
        rows = self._sharding("batch")
        fields: dict[str, Any] = {field.name: rows for field in dataclasses.fields(Slots)}
        cache = self._sharding(*self.row_cache.axes())
        return Slots(**(fields | {"layers": cache, "column": self._sharding()}))

    def _prefix_shardings(self) -> Any:
        rows: Any = self._sharding("batch")
        cache: Any = self._sharding(*self.prompt_cache.axes())
        return SharedPrefix(layers=cache, lengths=rows, members=rows, places=rows)

    def _prepare(self, params: Any) -> Any:
        """Training parameters -> a set per layer, in the rollout's type, adapters merged.

        Multi-token prediction only where it makes drafts. Routers stay as they are: rounded, they
        would choose other experts than the update's.
        """
        params = merged(params, self._trained_config)
        if not self.model.config.mtp:
            params = {name: value for name, value in params.items() if name != MTP}
        if "layers_0" not in params:
            params = unstack_layers(params, self.model.config)

        def one(path: Any, x: jax.Array) -> jax.Array:
            is_router = path[-1].key in (ROUTER, ROUTER_BIAS)
            return x if is_router else x.astype(self.model.compute.dtype)

        return jax.tree_util.tree_map_with_path(one, params)

    def _zeros(self, kind: type[RowCache], rows: int, columns: int) -> tuple[RowCache, ...]:
        config, compute = self.model.config, self.model.compute
        layer = kind.zeros(config, compute, rows, columns).pinned(self.mesh)
        return (layer,) * (config.num_layers + config.mtp)

    def _empty(self, rows: int, columns: int) -> Slots:
        zeros, config = jnp.zeros(rows, jnp.int32), self.model.config
        ahead = (rows, config.embed_dim if config.mtp else 0)
        return Slots(
            layers=self._zeros(self.row_cache, rows, columns),
            seen=jnp.zeros((rows, columns), bool),
            column=jnp.int32(0),
            token=zeros,
            position=zeros,
            ahead=jnp.zeros(ahead, self.model.compute.dtype),
            keys=jax.random.split(jax.random.key(0), rows),
            count=zeros,
            limit=zeros,
            done=jnp.ones(rows, bool),
        )

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

        def indices(*shape: int) -> Any:
            return jax.ShapeDtypeStruct((self.shards, *shape), np.int32)

        state = self.empty.eval_shape(self.shards * slots, columns)
        shared = replace(
            self.empty_prefix.eval_shape(prompts, prompt_columns),
            members=indices(prompts, readers),
            places=indices(slots),
        )
        idle = jax.ShapeDtypeStruct((self.shards * slots,), bool)
        return self.decode.lower(params, state, shared, idle, sampling=sampling, steps=steps)

    def compile_resize(self, size: tuple[int, int], new: tuple[int, int]) -> None:
        """`resize` from (slots a shard, columns) to others."""
        state = self.empty.eval_shape(self.shards * size[0], size[1])
        keep = jax.ShapeDtypeStruct((self.shards, new[0]), np.int32)
        self.keep.lower(replace(state, layers=()), keep, columns=new[1]).compile()
        self.resize_layer.lower(state.layers[0], keep, state.column, columns=new[1]).compile()

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

    def _insert(self, slots: Slots, key: jax.Array, rows: NewRows) -> Slots:
        """Starts rows in slots; a slot id past the end (padding) is dropped."""

        def put(into: jax.Array, values: Any) -> jax.Array:
            return into.at[rows.slot].set(values, mode="drop")

        return replace(
            slots,
            token=put(slots.token, rows.token),
            position=put(slots.position, rows.position),
            seen=put(slots.seen, False),
            keys=put(slots.keys, row_keys(key, rows.prompt, rows.sample)),
            count=put(slots.count, 0),
            limit=put(slots.limit, rows.limit),
            done=put(slots.done, False),
        )

    def resize(self, slots: Slots, keep_ZS: np.ndarray, columns: int) -> Slots:
        """The slots `keep`, with a ring of `columns` (never fewer): new ones before its oldest."""
        rest = self.keep(replace(slots, layers=()), keep_ZS, columns=columns)
        return replace(rest, layers=self._resized(slots.layers, keep_ZS, slots.column, columns))

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

    def _keep(self, slots: Slots, keep_ZS: jax.Array, columns: int) -> Slots:
        """The slots `keep` without their layers, for so many columns."""
        more, column = columns - slots.seen.shape[1], slots.column
        rows = replace(slots, column=slots.token)
        rows = jax.tree.map(lambda x: kept_rows(x, keep_ZS, self.mesh), rows)
        seen_BT = with_columns(rows.seen[:, None, :, None], column, columns)[:, 0, :, 0]
        after_T = jnp.arange(columns) - column
        is_new_T = (after_T >= 0) & (after_T < more)
        return replace(rows, column=column, seen=seen_BT & ~is_new_T)

    def _keep_prefix(self, prefix: SharedPrefix, keep_ZP: jax.Array) -> SharedPrefix:
        """The prompts `keep` without their layers."""
        return replace(prefix, lengths=jnp.take_along_axis(prefix.lengths, keep_ZP, axis=1))

    def _resize_layer(
        self, layer: RowCache, keep_ZS: jax.Array, column: jax.Array, columns: int
    ) -> RowCache:
        return layer.resized(keep_ZS, column, columns, self.mesh)

    def _decode(
        self,
        params: Any,
        slots: Slots,
        prefix: SharedPrefix,
        idle: jax.Array,
        sampling: SamplingConfig,
        steps: int,
    ) -> tuple[Slots, Report]:
        """Decoder.decode; `idle` [B] are rows that the host has taken the work from."""
        slots = replace(slots, done=slots.done | idle)
        return self.decoder.decode(params, slots, prefix, sampling, steps)
