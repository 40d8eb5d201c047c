"""Keys and values that a forward pass continues, and attention to them.

Shape legend: attention.py's; Z shards of the mesh's batch axes, S of their rows.
"""

from __future__ import annotations

from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from r1jax.machines.mesh import constrain
from r1jax.models.attention import per_kv_head, softmax_mix
from r1jax.models.config import ModelConfig
from r1jax.models.layouts import Compute

Attended = tuple[jax.Array, jax.Array]  # mixed values [B, L, H, N], log denominators [B, L, H]


class RowCache(Protocol):
    """What one layer keeps of the tokens of B rows, in T columns, however that is stored.

    A pytree. What a column holds is the business of whoever fills it.
    """

    @classmethod
    def zeros(cls, config: ModelConfig, compute: Compute, rows: int, columns: int) -> Self: ...

    @property
    def columns(self) -> int:
        """T"""
        ...

    def write(self, k_BLKN: jax.Array, v_BLKN: jax.Array, column: jax.Array) -> Self:
        """The new tokens of every row in the columns from `column` on."""
        ...

    def attend(self, q_BLHN: jax.Array, mask_BLT: jax.Array) -> Attended:
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

    @property
    def columns(self) -> int:
        return self.values.shape[2]

    def write(self, k_BLKN: jax.Array, v_BLKN: jax.Array, column: jax.Array) -> LayerCache:
        put = jax.lax.dynamic_update_slice_in_dim
        k_BKLN, v_BKLN = (x.swapaxes(1, 2).astype(self.keys.dtype) for x in (k_BLKN, v_BLKN))
        return LayerCache(put(self.keys, k_BKLN, column, 2), put(self.values, v_BKLN, column, 2))

    def attend(self, q_BLHN: jax.Array, mask_BLT: jax.Array) -> Attended:
        q_BHLN = q_BLHN.swapaxes(1, 2)
        scores_BHLT = per_kv_head("bkmn,bktn->bkmt", q_BHLN, self.keys)
        mixed_BHLN, lse_BHL1 = softmax_mix(scores_BHLT, mask_BLT, self.values)
        return mixed_BHLN.swapaxes(1, 2).astype(q_BLHN.dtype), lse_BHL1[..., 0].swapaxes(1, 2)

    def resized(
        self, keep_ZS: jax.Array, column: jax.Array, columns: int, mesh: Mesh | None = None
    ) -> LayerCache:
        def one(x_BKTN: jax.Array) -> jax.Array:
            x_BKTN = kept_rows(x_BKTN, keep_ZS, mesh)
            more = columns - x_BKTN.shape[2]
            if more == 0:
                return x_BKTN
            before, after = ([(0, 0), (0, 0), ends, (0, 0)] for ends in ((more, 0), (0, more)))
            is_old = jnp.arange(columns)[:, None] < column
            return jnp.where(is_old, jnp.pad(x_BKTN, after), jnp.pad(x_BKTN, before))

        return jax.tree.map(one, self).pinned(mesh)

    def pinned(self, mesh: Mesh | None) -> LayerCache:
        names = "batch", "kv_heads", "length", "head_dim"
        return jax.tree.map(lambda x_BKTN: constrain(x_BKTN, mesh, *names), self)


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
    prefix: SharedPrefix | None = None  # further keys and values, for passes of one token a row
    sin_cos: tuple[jax.Array, jax.Array] | None = None  # what `rotary` gives, where that is at hand

    def layer(self, index: int) -> Continued:
        shared = None if self.prefix is None else (self.prefix.layers[index], self.prefix)
        return Continued(self.layers[index], self.column, self.mask, shared)


@struct.dataclass
class Continued:
    """What one layer continues: fields as Cache's."""

    cache: Any  # RowCache
    column: jax.Array
    mask: jax.Array
    shared: tuple[Any, SharedPrefix] | None  # the prompts' RowCache, and who reads it

    def attend(
        self, q_BLHN: jax.Array, k_BLKN: jax.Array, v_BLKN: jax.Array
    ) -> tuple[jax.Array, RowCache]:
        """New tokens to themselves and all before: mixed [B, L, H, N], and the cache with them."""
        cache = self.cache.write(k_BLKN, v_BLKN, self.column)
        own = cache.attend(q_BLHN, self.mask)
        if self.shared is None:
            return own[0], cache
        return merge(own, attend_shared(q_BLHN, *self.shared)), cache


def by_shard(x: jax.Array, shards: int, mesh: Mesh | None) -> jax.Array:
    """[Z n, ...] -> [Z, n, ...]"""
    x = x.reshape(shards, -1, *x.shape[1:])
    return constrain(x, mesh, "batch", *(None,) * (x.ndim - 1))


def kept_rows(x: jax.Array, keep_ZS: jax.Array, mesh: Mesh | None) -> jax.Array:
    """[Z n, ...] -> the rows `keep` of every shard [Z S, ...]"""
    of_each_shard = jax.vmap(lambda held, keep: held[keep])
    return of_each_shard(by_shard(x, len(keep_ZS), mesh), keep_ZS).reshape(-1, *x.shape[1:])


def attend_shared(q_B1HN: jax.Array, layer: RowCache, prefix: SharedPrefix) -> Attended:
    """One query a row against its prompt.

    The queries of a prompt's rows are gathered, so that its keys and values are read once for all.
    """
    shards, prompts, group = prefix.members.shape
    rest = q_B1HN.shape[2:]
    q_ZSHN = q_B1HN.reshape(shards, -1, *rest)
    gather = jax.vmap(lambda x, index: x.at[index].get(mode="clip"))
    q_QGHN = gather(q_ZSHN, prefix.members).reshape(shards * prompts, group, *rest)
    mask_Q1T = jnp.arange(layer.columns) < prefix.lengths.reshape(-1, 1, 1)
    mixed, lse = layer.attend(q_QGHN, mask_Q1T)
    mixed_ZSHN = gather(mixed.reshape(shards, prompts * group, *rest), prefix.places)
    lse_ZSH = gather(lse.reshape(shards, prompts * group, rest[0]), prefix.places)
    return mixed_ZSHN.reshape(q_B1HN.shape), lse_ZSH.reshape(q_B1HN.shape[:3])


def merge(one: Attended, two: Attended) -> jax.Array:
    """Attention over two sets of keys from attention over each [B, L, H, N]."""
    share_BLH = jax.nn.sigmoid(one[1] - two[1])  # of the first in the common denominator
    share = share_BLH[..., None].astype(one[0].dtype)
    return one[0] * share + two[0] * (1 - share)
