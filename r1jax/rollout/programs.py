"""What the rollout engine runs on the device, whatever it keeps of the rows' tokens.

Shape legend: Z shards of the mesh's batch axes; B = Z S rows with S slots a shard.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import NamedSharding

from r1jax.machines.mesh import RULES, parts_of, replicated, spec_of
from r1jax.models.caches import kept_rows
from r1jax.models.layouts import unstack_layers
from r1jax.models.lora import merged, without_adapters
from r1jax.models.moe import ROUTER, ROUTER_BIAS
from r1jax.models.mtp import MTP
from r1jax.models.params import param_axes
from r1jax.models.transformer import Transformer
from r1jax.rollout.decoding import Decoder, Report, Slots
from r1jax.rollout.sampling import SamplingConfig, row_keys


@struct.dataclass
class NewRows:
    """Rows that begin, or go on, int32 [B] each."""

    slot: Any  # of all shards' slots
    token: Any  # the prompt's last, or the last that was sampled
    position: Any  # of that token
    count: Any  # tokens sampled so far
    limit: Any  # tokens that the row may have
    prompt: Any  # numbers of prompt and sample, for the random key
    sample: Any

    @classmethod
    def padding(cls, rows: int) -> NewRows:
        """To be filled; a slot past the end is dropped."""
        return cls(np.full(rows, rows, np.int32), *np.zeros((6, rows), np.int32))


class Programs(ABC):
    """The programs for one model, computed as for rollouts, on its mesh.

    `drafts` are those of the model's multi-token prediction, which is left out else.
    """

    def __init__(self, model: Transformer, stop_ids: Sequence[int], drafts: bool = False) -> None:
        self._trained_config = model.config
        self.model = model.clone(config=replace(without_adapters(model.config), mtp=drafts))
        self.decoder = Decoder(self.model, tuple(stop_ids))
        self.has_experts = any(stack.sparse for stack in model.config.stacks)
        self.mesh = mesh = model.mesh
        self.shards = parts_of("batch", mesh)
        self.prepare = jax.jit(self._prepare, out_shardings=self.param_shardings())
        # Named for all that gives them: what is sharded otherwise would need programs of its own.
        slots = self.slot_shardings()
        self.insert = jax.jit(self._insert, donate_argnums=0, out_shardings=slots)
        self.keep = jax.jit(self._keep, out_shardings=replace(slots, held=None))
        self.decode = jax.jit(
            self._decode,
            static_argnames=("sampling", "steps"),
            donate_argnums=1,
            out_shardings=(slots, None if mesh is None else replicated(mesh)),
        )

    @abstractmethod
    def held_shardings(self) -> Any:
        """Of what is kept of the rows' tokens, a decoding.Held."""

    def param_shardings(self) -> Any:
        """For rollouts parameters are split over `tensor` only, and experts over `expert`: every
        step reads all that a device has.
        """
        if self.mesh is None:
            return None
        _, axes = param_axes(self.model)
        mesh = self.mesh

        def one(names: tuple[str, ...]) -> NamedSharding:
            kept = (name if "fsdp" not in RULES[name] else None for name in names)
            return NamedSharding(mesh, spec_of(tuple(kept)))

        return jax.tree.map(one, axes, is_leaf=lambda x: isinstance(x, tuple))

    def sharding(self, *names: str | None) -> NamedSharding | None:
        """Of an array with these logical axes."""
        return None if self.mesh is None else NamedSharding(self.mesh, spec_of(names))

    def slot_shardings(self) -> Any:
        rows = self.sharding("batch")
        fields: dict[str, Any] = {field.name: rows for field in dataclasses.fields(Slots)}
        return Slots(**(fields | {"held": self.held_shardings()}))

    def indices(self, *shape: int) -> jax.ShapeDtypeStruct:
        """The shape of indices that the host gives, for every shard."""
        return jax.ShapeDtypeStruct((self.shards, *shape), np.int32)

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

    def empty_slots(self, rows: int) -> Slots:
        """Without work, and without what is kept of tokens."""
        zeros, config = jnp.zeros(rows, jnp.int32), self.model.config
        ahead = (rows, config.embed_dim if config.mtp else 0)
        return Slots(
            held=None,
            token=zeros,
            position=zeros,
            ahead=jnp.zeros(ahead, self.model.compute.dtype),
            keys=jax.random.split(jax.random.key(0), rows),
            count=zeros,
            limit=zeros,
            done=jnp.ones(rows, bool),
        )

    def _insert(self, slots: Slots, key: jax.Array, rows: NewRows) -> Slots:
        """Starts rows in slots; a slot id past the end (padding) is dropped."""

        def put(into: jax.Array, values: Any) -> jax.Array:
            return into.at[rows.slot].set(values, mode="drop")

        return replace(
            slots,
            held=slots.held.begun(rows.slot),
            token=put(slots.token, rows.token),
            position=put(slots.position, rows.position),
            keys=put(slots.keys, row_keys(key, rows.prompt, rows.sample)),
            count=put(slots.count, rows.count),
            limit=put(slots.limit, rows.limit),
            done=put(slots.done, False),
        )

    def _keep(self, slots: Slots, keep_ZS: jax.Array) -> Slots:
        """The slots `keep`, without what is kept of their tokens."""
        rows = replace(slots, held=None)
        return jax.tree.map(lambda x: kept_rows(x, keep_ZS, self.mesh), rows)

    def _decode(
        self,
        params: Any,
        slots: Slots,
        shared: Any,
        idle: jax.Array,
        sampling: SamplingConfig,
        steps: int,
    ) -> tuple[Slots, Report]:
        """Decoder.decode; `idle` [B] are rows that the host has taken the work from."""
        slots = replace(slots, done=slots.done | idle)
        return self.decoder.decode(params, slots, shared, sampling, steps)
