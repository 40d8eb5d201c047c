"""Programs over pages: a pool for all rows of a shard, prompts among them.

Shape legend: models/pages.py's and programs.py's; R prompts of a prefill a shard; L their tokens;
I pages of each shard that are copied or moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from r1jax.machines.mesh import spec_of
from r1jax.models.paged_kernels import LATENT_KERNEL, RAGGED_KERNEL
from r1jax.models.pages import PagedCache, Tables, page_kind
from r1jax.models.transformer import Transformer, forward
from r1jax.rollout.decoding import Slots
from r1jax.rollout.programs import Programs
from r1jax.rollout.sampling import SamplingConfig

MOVED_PAGES = 16  # of a row, that go to the host or come back together
ON_HOSTS, ON_DEVICES = "pinned_host", "device"  # kinds of memory


@struct.dataclass
class Pool:
    """The pages of all rows; the tables that say which are whose come with each chunk."""

    layers: tuple[Any, ...]  # per layer a LayerPages; last that of the drafts
    mesh: Mesh | None = struct.field(pytree_node=False, default=None)
    kernel: bool = struct.field(pytree_node=False, default=False)

    def begun(self, slots: jax.Array) -> Pool:
        return self

    def cache(self, slots: Slots, shared: jax.Array, width: int) -> PagedCache:
        """`shared` are the rows' tables [B, A]."""
        end = jnp.where(slots.done, 0, slots.position + width)
        tables = Tables(shared, slots.position, end)
        return PagedCache(self.layers, tables, mesh=self.mesh, kernel=self.kernel)

    def after(self, layers: Sequence[Any], is_own_BW: jax.Array) -> Pool:
        """A token that is not the row's own is written over by the next step."""
        return replace(self, layers=tuple(layers))


class PagePrograms(Programs):
    """`size` tokens a page; `kernel`: read by a TPU's kernels, or by plain products."""

    def __init__(
        self, model: Transformer, stop_ids: Sequence[int], drafts: bool, size: int, kernel: bool
    ) -> None:
        self.size, self.kernel, self._kind = size, kernel, page_kind(model.config)
        super().__init__(model, stop_ids, drafts)
        slots: Any = self.slot_shardings()
        self.empty = jax.jit(self._empty, static_argnums=(0, 1), out_shardings=slots)
        self.prefill = jax.jit(self._prefill, donate_argnums=1, out_shardings=slots.held)
        layer = slots.held.layers
        self.copy = jax.jit(self._copy, donate_argnums=0, out_shardings=layer)
        self.read = jax.jit(self._read, out_shardings=layer)
        self.write = jax.jit(self._write, donate_argnums=0, out_shardings=layer)

    @property
    def kernels(self) -> tuple[str, ...]:
        """That decoding runs."""
        return (
            (LATENT_KERNEL if self.model.config.latent else RAGGED_KERNEL,) if self.kernel else ()
        )

    def held_shardings(self) -> Any:
        layer: Any = self.sharding(*self._kind.axes())
        return Pool(layers=layer, mesh=self.mesh, kernel=self.kernel)

    def to_hosts(self, layer: Any) -> Any:
        """What `read` gave, in the memory of the hosts."""
        return jax.tree.map(lambda x: jax.device_put(x, self._moved(x, ON_HOSTS)), layer)

    def to_devices(self, layer: Any) -> Any:
        """What `to_hosts` gave, in that of the devices."""
        return jax.tree.map(lambda x: jax.device_put(x, self._moved(x, ON_DEVICES)), layer)

    def _moved(self, x: jax.Array, kind: str) -> Any:
        """x's sharding in memory of this kind; its own where devices and hosts have one memory."""
        device: Any = next(iter(x.sharding.device_set))
        kinds = {memory.kind for memory in device.addressable_memories()}
        return x.sharding.with_memory_kind(kind) if ON_DEVICES in kinds else x.sharding

    def _empty(self, rows: int, pages: int) -> Slots:
        """`pages` of all shards."""
        config, compute = self.model.config, self.model.compute
        layer = self._kind.zeros(config, compute, pages, self.size)
        layers = (layer,) * (config.num_layers + config.mtp)
        return replace(self.empty_slots(rows), held=Pool(layers, self.mesh, self.kernel))

    def lower_decode(
        self,
        params: Any,
        size: tuple[int, int, int],
        sampling: SamplingConfig,
        steps: int,
    ) -> jax.stages.Lowered:
        """`decode` for (slots of a shard, its pages, pages of a row)."""
        slots, pages, width = size
        rows = self.shards * slots
        state = self.empty.eval_shape(rows, self.shards * pages)
        tables = jax.ShapeDtypeStruct((rows, width), jnp.int32)
        idle = jax.ShapeDtypeStruct((rows,), bool)
        return self.decode.lower(params, state, tables, idle, sampling=sampling, steps=steps)

    def _prefill(
        self,
        params: Any,
        pool: Pool,
        tokens_ZRL: jax.Array,
        next_ZRL: jax.Array,
        tables_ZRA: jax.Array,
        lengths_ZR: jax.Array,
        begin: jax.Array,
    ) -> Pool:
        """A chunk of some prompts, from position `begin` on, and the tokens behind each of them.

        What lies behind a prompt's length is padding.
        """
        length = tokens_ZRL.shape[2]
        tokens = tokens_ZRL.reshape(-1, length)
        starts = jnp.full(len(tokens), begin, jnp.int32)
        tables = Tables(tables_ZRA.reshape(len(tokens), -1), starts, lengths_ZR.reshape(-1))
        positions = tables.positions(length)
        cache = PagedCache(pool.layers, tables, mesh=self.mesh, kernel=self.kernel, is_prompt=True)
        output = forward(self.model, params, tokens, positions, cache=cache)
        layers: Any = output.cache
        if self.model.config.mtp:
            given = output.hidden, next_ZRL.reshape(-1, length), positions
            layers = (*layers, self.decoder.ahead(params, *given, cache)[1])
        return replace(pool, layers=layers)

    def _copy(self, layer: Any, source_ZI: jax.Array, target_ZI: jax.Array) -> Any:
        """Pages into others; a target past the end is dropped."""

        def copy(held: jax.Array, source: jax.Array, target: jax.Array) -> jax.Array:
            return held.at[target[0]].set(held[source[0]], mode="drop")

        return self._of_each_shard(copy, (layer,), source_ZI, target_ZI)

    def _read(self, layer: Any, pages_ZI: jax.Array) -> Any:
        """The content of pages [Z I, ...]."""
        return self._of_each_shard(lambda held, pages: held[pages[0]], (layer,), pages_ZI)

    def _write(self, layer: Any, content: Any, pages_ZI: jax.Array) -> Any:
        """What `read` gave; a page past the end is dropped."""

        def write(held: jax.Array, new: jax.Array, pages: jax.Array) -> jax.Array:
            return held.at[pages[0]].set(new, mode="drop")

        return self._of_each_shard(write, (layer, content), pages_ZI)

    def _of_each_shard(
        self, function: Callable[..., jax.Array], paged: tuple[Any, ...], *indices_ZI: jax.Array
    ) -> Any:
        """The function of a shard's part of what has pages, and of indices [1, I]."""
        on_shard = function
        if self.mesh is not None and self.mesh.size > 1:
            axes, rows = spec_of(self._kind.axes()), spec_of(("batch", None))
            on_shard = jax.shard_map(
                function,
                mesh=self.mesh,
                in_specs=(*(axes,) * len(paged), *(rows,) * len(indices_ZI)),
                out_specs=axes,
                check_vma=False,
            )
        return jax.tree.map(lambda *held: on_shard(*held, *indices_ZI), *paged)
