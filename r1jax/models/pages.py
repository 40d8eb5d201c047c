"""Keys and values in pages: a row has as many as its tokens need, and shares those of its prompt.

The token at position p of a row lies in the p // E-th page of the row's table, as the p % E-th.

Shape legend: caches.py's; P pages of all shards, each of E tokens; A pages of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from r1jax.machines.mesh import spec_of
from r1jax.models.attention import attend
from r1jax.models.config import ModelConfig
from r1jax.models.layouts import Compute
from r1jax.models.paged_kernels import latent_attention, ragged_attention

LANES = 128  # of a TPU; the kernel's heads have a multiple of so many numbers


@struct.dataclass
class Tables:
    """Where rows have their tokens, and which of them are new."""

    pages: jax.Array  # int32 [B, A], of the row's shard; any, behind what the row needs
    start: jax.Array  # int32 [B], position of the first new token
    end: jax.Array  # int32 [B], new tokens from this position on are padding, and kept nowhere

    def positions(self, length: int) -> jax.Array:
        """Of so many new tokens [B, L]."""
        return self.start[:, None] + jnp.arange(length)

    def seen(self, length: int, size: int) -> jax.Array:
        """What new tokens see of all that the pages of their row hold, bool [B, L, T]."""
        return jnp.arange(self.pages.shape[1] * size) <= self.positions(length)[..., None]


class LayerPages(Protocol):
    """What one layer keeps of tokens, however it is stored. A pytree of arrays [P, ...]."""

    @classmethod
    def zeros(cls, config: ModelConfig, compute: Compute, pages: int, size: int) -> Self:
        """`pages` of `size` tokens each."""
        ...

    @classmethod
    def axes(cls) -> tuple[str | None, ...]:
        """The logical axes of its arrays."""
        ...

    def written(self, tables: Tables, *new: jax.Array) -> Self:
        """With new tokens [B, L, ...], as caches.RowCache.write has them."""
        ...

    def attend(self, q_BLHN: jax.Array, tables: Tables, scale: float, kernel: bool) -> jax.Array:
        """Attention of new queries to all tokens up to their own -> [B, L, H, ...]."""
        ...


@struct.dataclass
class KeyValuePages:
    """Keys and values, those of a kv head side by side."""

    pages: jax.Array  # [P, E, 2 K, N]

    @classmethod
    def zeros(cls, config: ModelConfig, compute: Compute, pages: int, size: int) -> KeyValuePages:
        shape = (pages, size, 2 * config.num_kv_heads, config.head_dim)
        return cls(jnp.zeros(shape, compute.dtype))

    @classmethod
    def axes(cls) -> tuple[str | None, ...]:
        return "batch", None, "kv_heads", None

    def written(self, tables: Tables, *new: jax.Array) -> KeyValuePages:
        both_BLK2N = jnp.stack(new, axis=3)
        rows, length, heads = both_BLK2N.shape[:3]
        return KeyValuePages(
            _put(self.pages, tables, both_BLK2N.reshape(rows, length, 2 * heads, -1))
        )

    def attend(self, q_BLHN: jax.Array, tables: Tables, scale: float, kernel: bool) -> jax.Array:
        if kernel:
            seen = tables.start, tables.end
            return ragged_attention(q_BLHN, self.pages, tables.pages, seen, scale)
        held_BAE2N = self.pages[tables.pages]
        rows, _, size, heads, dim = held_BAE2N.shape
        held_BTK2N = held_BAE2N.reshape(rows, -1, heads // 2, 2, dim)
        k_BKTN, v_BKTN = (held_BTK2N[:, :, :, i].swapaxes(1, 2) for i in (0, 1))
        return attend(q_BLHN, k_BKTN, v_BKTN, tables.seen(q_BLHN.shape[1], size), scale)[0]


@struct.dataclass
class LatentPages:
    """Latent vectors with the rotated key that all heads share, as caches.LatentCache has them.

    Behind these numbers stand zeros up to whole lanes of a TPU: it would have them anyway, or lay
    the pages out otherwise than the kernel reads them.
    """

    pages: jax.Array  # [P, E, C and zeros]
    rank: int = struct.field(pytree_node=False)
    width: int = struct.field(pytree_node=False)  # C

    @classmethod
    def zeros(cls, config: ModelConfig, compute: Compute, pages: int, size: int) -> LatentPages:
        assert config.latent is not None
        rank = config.latent.kv_rank
        width = rank + config.latent.rope_dim
        lanes = -(-width // LANES) * LANES
        return cls(jnp.zeros((pages, size, lanes), compute.dtype), rank, width)

    @classmethod
    def axes(cls) -> tuple[str | None, ...]:
        return "batch", None, None

    def written(self, tables: Tables, *new: jax.Array) -> LatentPages:
        (latents_BLC,) = new
        return replace(self, pages=_put(self.pages, tables, self._in_lanes(latents_BLC)))

    def attend(self, q_BLHC: jax.Array, tables: Tables, scale: float, kernel: bool) -> jax.Array:
        if kernel:
            seen, q_BLHC = (tables.start, tables.end), self._in_lanes(q_BLHC)
            return latent_attention(q_BLHC, self.pages, tables.pages, seen, scale, self.rank)
        k_B1TC = self.latents(tables)[:, None]
        seen_BLT = tables.seen(q_BLHC.shape[1], self.pages.shape[1])
        return attend(q_BLHC, k_B1TC, k_B1TC, seen_BLT, scale)[0][..., : self.rank]

    def latents(self, tables: Tables) -> jax.Array:
        """Of each row, side by side [B, T, C]."""
        held_BAEC = self.pages[tables.pages][..., : self.width]
        return held_BAEC.reshape(len(held_BAEC), -1, self.width)

    def _in_lanes(self, x: jax.Array) -> jax.Array:
        """[..., C] with the zeros behind it."""
        more = self.pages.shape[-1] - self.width
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, more)])


def _put(pages: jax.Array, tables: Tables, new: jax.Array) -> jax.Array:
    """With new tokens [B, L, ...]."""
    count, size = pages.shape[:2]
    positions_BL = tables.positions(new.shape[1])
    in_table_BL = jnp.minimum(positions_BL // size, tables.pages.shape[1] - 1)
    page_BL = jnp.take_along_axis(tables.pages, in_table_BL, axis=1)
    page_BL = jnp.where(positions_BL < tables.end[:, None], page_BL, count)
    return pages.at[page_BL, positions_BL % size].set(new.astype(pages.dtype), mode="drop")


def page_kind(config: ModelConfig) -> type[LayerPages]:
    """What a model of this config keeps of its tokens."""
    return KeyValuePages if config.latent is None else LatentPages


def has_kernel(config: ModelConfig, platform: str) -> bool:
    """Whether a kernel reads the pages of such a model there."""
    return platform == "tpu" and (config.latent is not None or config.head_dim % LANES == 0)


def page_bytes(config: ModelConfig, compute: Compute, size: int, tensor: int) -> int:
    """Of a page of all layers, that of multi-token prediction among them, on one device of so many
    along `tensor`.
    """
    shape: Any = jax.eval_shape(lambda: page_kind(config).zeros(config, compute, 1, size))
    numbers = shape.pages.size // (tensor if config.latent is None else 1)
    return (config.num_layers + config.mtp) * numbers * jnp.dtype(compute.dtype).itemsize


@struct.dataclass
class PagedCache:
    """What a forward pass continues: as caches.Cache, with rows in pages."""

    layers: tuple[Any, ...]  # per layer a LayerPages
    tables: Tables
    sin_cos: tuple[jax.Array, jax.Array] | None = None
    mesh: Mesh | None = struct.field(pytree_node=False, default=None)
    kernel: bool = struct.field(pytree_node=False, default=False)  # a TPU's, or plain products
    is_prompt: bool = struct.field(pytree_node=False, default=False)

    def layer(self, index: int) -> PagedContinued:
        return PagedContinued(
            self.layers[index], self.tables, self.mesh, self.kernel, self.is_prompt
        )


@struct.dataclass
class PagedContinued:
    """What one layer continues: fields as PagedCache's."""

    held: Any  # LayerPages
    tables: Tables
    mesh: Mesh | None = struct.field(pytree_node=False)
    kernel: bool = struct.field(pytree_node=False)
    is_prompt: bool = struct.field(pytree_node=False)

    def written(self, *new: jax.Array) -> Any:
        def write(held: Any, tables: Tables, *new: jax.Array) -> Any:
            return held.written(tables, *new)

        return self._on_each_device(write, new, heads="kv_heads", gives=self.held.axes())

    def attend(
        self, q_BLHN: jax.Array, new: tuple[jax.Array, ...], scale: float
    ) -> tuple[jax.Array, Any]:
        """New tokens to themselves and all before: mixed [B, L, H, O], and the pages with them."""
        after = replace(self, held=self.written(*new))

        def mix(held: Any, tables: Tables, q_BLHN: jax.Array) -> jax.Array:
            mixed: jax.Array = held.attend(q_BLHN, tables, scale, self.kernel)
            return mixed

        gives = ("batch", None, "heads", None)
        mixed_BLHO = after._on_each_device(mix, (q_BLHN,), heads="heads", gives=gives)
        return mixed_BLHO.astype(q_BLHN.dtype), after.held

    def latents(self, held: LatentPages, length: int) -> tuple[jax.Array, jax.Array]:
        """Of all tokens of each row [B, T, C], and which of them `length` new ones see."""

        def gather(held: LatentPages, tables: Tables) -> jax.Array:
            return held.latents(tables)

        gives = ("batch", None, None)
        latents_BTC = replace(self, held=held)._on_each_device(gather, (), "heads", gives)
        return latents_BTC, self.tables.seen(length, held.pages.shape[1])

    def _on_each_device(
        self,
        function: Callable[..., Any],
        new: tuple[jax.Array, ...],
        heads: str,
        gives: tuple[str | None, ...],
    ) -> Any:
        """The function of pages, tables and what is new [B, L, heads, ..] or [B, L, ..], of a
        device's own rows and heads.
        """
        if self.mesh is None or self.mesh.size == 1:
            return function(self.held, self.tables, *new)
        of_new = [
            ("batch", None, heads, None) if x.ndim == 4 else ("batch", None, None) for x in new
        ]
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=(spec_of(self.held.axes()), spec_of(("batch",)), *map(spec_of, of_new)),
            out_specs=spec_of(gives),
            check_vma=False,
        )(self.held, self.tables, *new)
