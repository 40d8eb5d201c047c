"""Keys and values that a forward pass continues, and attention to them.

Shape legend: attention.py's; Z shards of the mesh's batch axes, S of their rows; C latent vector
with the shared rotated key.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from r1jax.machines.mesh import constrain
from r1jax.models.attention import attend
from r1jax.models.config import ModelConfig
from r1jax.models.layouts import Compute

Attended = tuple[jax.Array, jax.Array]  # mixed values [B, L, H, N], log denominators [B, L, H]


class RowCache(Protocol):
    """What one layer keeps of the tokens of B rows, in T columns, however that is stored.

    A pytree. What a column holds is the business of whoever fills it.
    """

    @classmethod
    def zeros(cls, config: ModelConfig, compute: Compute, rows: int, columns: int) -> Self: ...

    @classmethod
    def axes(cls) -> tuple[str, ...]:
        """The logical axes of its arrays, as far as they are split over a mesh."""
        ...

    @property
    def columns(self) -> int:
        """T"""
        ...

    def write(self, column: jax.Array, *new: jax.Array) -> Self:
        """The new tokens of every row [B, L, ...] in the columns from `column` on.

        Of each there is what the model's attention keeps: keys and values, or latent vectors.
        """
        ...

    def attend(self, q_BLHN: jax.Array, mask_BLT: jax.Array, scale: float) -> Attended:
        """Attention of new queries to the columns that the mask shows them.

        The log denominators are what two of these can be merged by. A query that sees nothing has
        one near MASKED: merged, it weighs nothing.
        """
        ...

    def resized(
        self, keep_ZS: jax.Array, column: jax.Array, columns: int, mesh: Mesh | None = None
    ) -> Self:
        """The rows `keep` of every shard, with `columns` columns (never fewer than before): new
        ones from `column` on, in which nothing may be seen until it is written.
        """
        ...

    def pinned(self, mesh: Mesh | None) -> Self:
        """Itself, split over the mesh as rollouts have it."""
        ...


@struct.dataclass
class LayerCache:
    """Keys and values as they come."""

    keys: jax.Array  # [B, K, T, N]
    values: jax.Array  # [B, K, T, N]

    @classmethod
    def zeros(cls, config: ModelConfig, compute: Compute, rows: int, columns: int) -> LayerCache:
        shape = (rows, config.num_kv_heads, columns, config.head_dim)
        zeros = jnp.zeros(shape, compute.dtype)
        return cls(zeros, zeros)

    @classmethod
    def axes(cls) -> tuple[str, ...]:
        return "batch", "kv_heads"

    @property
    def columns(self) -> int:
        return self.values.shape[2]

    def write(self, column: jax.Array, *new: jax.Array) -> LayerCache:
        put = jax.lax.dynamic_update_slice_in_dim
        k_BKLN, v_BKLN = (x.swapaxes(1, 2).astype(self.keys.dtype) for x in new)
        return LayerCache(put(self.keys, k_BKLN, column, 2), put(self.values, v_BKLN, column, 2))

    def attend(self, q_BLHN: jax.Array, mask_BLT: jax.Array, scale: float) -> Attended:
        return attend(q_BLHN, self.keys, self.values, mask_BLT, scale)

    def resized(
        self, keep_ZS: jax.Array, column: jax.Array, columns: int, mesh: Mesh | None = None
    ) -> LayerCache:
        def one(x_BKTN: jax.Array) -> jax.Array:
            return with_columns(kept_rows(x_BKTN, keep_ZS, mesh), column, columns)

        return jax.tree.map(one, self).pinned(mesh)

    def pinned(self, mesh: Mesh | None) -> LayerCache:
        names = "batch", "kv_heads", "keys", "head_dim"
        return jax.tree.map(lambda x_BKTN: constrain(x_BKTN, mesh, *names), self)


@struct.dataclass
class LatentCache:
    """Latent vectors, each with the rotated key that all heads share: multi-head latent attention.

    Queries come absorbed: to them the latent vector with the key is the key of the only kv head,
    and the latent vector its value (V3 section 2.1.1). Every chip along `tensor` holds all of it.
    """

    latents: jax.Array  # [B, T, C]
    rank: int = struct.field(pytree_node=False)  # how much of C is the latent vector

    @classmethod
    def zeros(cls, config: ModelConfig, compute: Compute, rows: int, columns: int) -> LatentCache:
        assert config.latent is not None
        width = config.latent.kv_rank + config.latent.rope_dim
        return cls(jnp.zeros((rows, columns, width), compute.dtype), config.latent.kv_rank)

    @classmethod
    def axes(cls) -> tuple[str, ...]:
        return ("batch",)

    @property
    def columns(self) -> int:
        return self.latents.shape[1]

    def write(self, column: jax.Array, *new: jax.Array) -> LatentCache:
        (latents_BLC,) = new
        latents_BLC = latents_BLC.astype(self.latents.dtype)
        put = jax.lax.dynamic_update_slice_in_dim
        return replace(self, latents=put(self.latents, latents_BLC, column, 1))

    def attend(self, q_BLHC: jax.Array, mask_BLT: jax.Array, scale: float) -> Attended:
        # The rotated keys are mixed too, and left out then: without them there would be a copy.
        k_B1TC = self.latents[:, None]
        mixed_BLHC, lse_BLH = attend(q_BLHC, k_B1TC, k_B1TC, mask_BLT, scale)
        return mixed_BLHC[..., : self.rank], lse_BLH

    def resized(
        self, keep_ZS: jax.Array, column: jax.Array, columns: int, mesh: Mesh | None = None
    ) -> LatentCache:
        kept_B1TC = kept_rows(self.latents, keep_ZS, mesh)[:, None]
        latents_BTC = with_columns(kept_B1TC, column, columns)[:, 0]
        return replace(self, latents=latents_BTC).pinned(mesh)

    def pinned(self, mesh: Mesh | None) -> LatentCache:
        return replace(self, latents=constrain(self.latents, mesh, "batch", "keys", None))


def cache_kind(config: ModelConfig) -> type[RowCache]:
    """What a model of this config keeps of its tokens."""
    return LayerCache if config.latent is None else LatentCache


def numbers_per_token(config: ModelConfig, tensor: int = 1) -> int:
    """That one device keeps in all layers, that of multi-token prediction among them, if there are
    so many along `tensor`.
    """
    layers = config.num_layers + config.mtp
    if config.latent is not None:
        return layers * (config.latent.kv_rank + config.latent.rope_dim)
    return layers * 2 * (config.num_kv_heads // tensor) * config.head_dim


def with_columns(x_BKTN: jax.Array, column: jax.Array, columns: int) -> jax.Array:
    """With so many columns: new ones from `column` on."""
    more = columns - x_BKTN.shape[2]
    if more == 0:
        return x_BKTN
    before, after = ([(0, 0), (0, 0), ends, (0, 0)] for ends in ((more, 0), (0, more)))
    is_old = jnp.arange(columns)[:, None] < column
    return jnp.where(is_old, jnp.pad(x_BKTN, after), jnp.pad(x_BKTN, before))


@struct.dataclass
class SharedPrefix:
    """Keys and values that many rows read: prompts, and who continues them.

    The rows are split over Z shards of the mesh's batch axes, as are the prompts; a row reads a
    prompt of its own shard. Shape legend: S rows and P prompts a shard, G places a prompt.
    """

    layers: tuple[Any, ...]  # per layer a RowCache of [Z P] rows
    lengths: jax.Array  # int32 [Z, P], columns of a prompt
    members: jax.Array  # int32 [Z, P, G], the rows of the shard that read it; S = none
    places: jax.Array  # int32 [Z, S], where in its shard's flattened `members` a row stands


@struct.dataclass
class Cache:
    """What a forward pass continues: the columns of each row, and where its new tokens go."""

    layers: tuple[Any, ...]  # per layer a RowCache
    column: jax.Array  # int32 scalar, where the first new token of every row goes
    mask: jax.Array  # bool [B, L, T], columns that a query sees, its own among them
    prefix: SharedPrefix | None = None  # further keys and values, which all new tokens see
    sin_cos: tuple[jax.Array, jax.Array] | None = None  # what `rotary` gives, where that is at hand

    def layer(self, index: int) -> Continued:
        shared = None if self.prefix is None else (self.prefix.layers[index], self.prefix)
        return Continued(self.layers[index], self.column, self.mask, shared)


class Before(Protocol):
    """What one layer continues, in columns or in pages."""

    @property
    def is_prompt(self) -> bool:
        """Whether many tokens come at once, and none of those before is shared with other rows."""
        ...

    def written(self, *new: jax.Array) -> Any:
        """What is kept, with new tokens [B, L, ...]: as RowCache.write has them."""
        ...

    def attend(
        self, q_BLHN: jax.Array, new: tuple[jax.Array, ...], scale: float
    ) -> tuple[jax.Array, Any]:
        """New tokens to themselves and all before: mixed [B, L, H, O], and what is kept then."""
        ...

    def latents(self, held: Any, length: int) -> tuple[jax.Array, jax.Array]:
        """Latent vectors of all tokens of each row [B, T, C], and which of them `length` new ones
        see [B, L, T].
        """
        ...


@struct.dataclass
class Continued:
    """What one layer continues in columns: fields as Cache's."""

    cache: Any  # RowCache
    column: jax.Array
    mask: jax.Array
    shared: tuple[Any, SharedPrefix] | None  # the prompts' RowCache, and who reads it

    @property
    def is_prompt(self) -> bool:
        return self.shared is None and self.mask.shape[1] > 1

    def written(self, *new: jax.Array) -> RowCache:
        cache: RowCache = self.cache.write(self.column, *new)
        return cache

    def latents(self, held: Any, length: int) -> tuple[jax.Array, jax.Array]:
        assert isinstance(held, LatentCache) and self.mask.shape[1] == length
        return held.latents, self.mask

    def attend(
        self, q_BLHN: jax.Array, new: tuple[jax.Array, ...], scale: float
    ) -> tuple[jax.Array, RowCache]:
        cache = self.written(*new)
        own = cache.attend(q_BLHN, self.mask, scale)
        if self.shared is None:
            return own[0], cache
        return merge(own, attend_shared(q_BLHN, *self.shared, scale)), cache


def by_shard(x: jax.Array, shards: int, mesh: Mesh | None) -> jax.Array:
    """[Z n, ...] -> [Z, n, ...]"""
    x = x.reshape(shards, x.shape[0] // shards, *x.shape[1:])
    return constrain(x, mesh, "batch", *(None,) * (x.ndim - 1))


def kept_rows(x: jax.Array, keep_ZS: jax.Array, mesh: Mesh | None) -> jax.Array:
    """[Z n, ...] -> the rows `keep` of every shard [Z S, ...]"""
    of_each_shard = jax.vmap(lambda held, keep: held[keep])
    kept = of_each_shard(by_shard(x, len(keep_ZS), mesh), keep_ZS)
    return kept.reshape(keep_ZS.size, *x.shape[1:])


def attend_shared(
    q_BLHN: jax.Array, layer: RowCache, prefix: SharedPrefix, scale: float
) -> Attended:
    """Each row's queries, none of them within it, against its prompt.

    The queries of a prompt's rows are gathered, so that its keys and values are read once for all.
    """
    shards, prompts, group = prefix.members.shape
    length, *rest = q_BLHN.shape[1:]
    q_ZSLHN = q_BLHN.reshape(shards, -1, length, *rest)
    gather = jax.vmap(lambda x, index: x.at[index].get(mode="clip"))
    q_QMHN = gather(q_ZSLHN, prefix.members).reshape(shards * prompts, group * length, *rest)
    mask_Q1T = jnp.arange(layer.columns) < prefix.lengths.reshape(-1, 1, 1)

    def by_row(x_QM: jax.Array) -> jax.Array:
        further = x_QM.shape[2:]
        x_ZSL = gather(x_QM.reshape(shards, prompts * group, length, *further), prefix.places)
        return x_ZSL.reshape(*q_BLHN.shape[:2], *further)

    mixed_QMHO, lse_QMH = layer.attend(q_QMHN, mask_Q1T, scale)
    return by_row(mixed_QMHO), by_row(lse_QMH)


def merge(one: Attended, two: Attended) -> jax.Array:
    """Attention over two sets of keys from attention over each [B, L, H, N]."""
    share_BLH = jax.nn.sigmoid(one[1] - two[1])  # of the first in the common denominator
    share = share_BLH[..., None].astype(one[0].dtype)
    return one[0] * share + two[0] * (1 - share)
