"""A cache for decoding on one CPU, laid out for its vector units.

XLA runs the products of a row's few queries with its cache, a batch of small matmuls, on one core
and at a third of the speed of the memory. Here those sums are written out, term by term. XLA makes
one loop over the whole batch of that, which runs on all cores and reads the cache as it lies.

Shape legend: attention.py's, M = H / K queries a kv head. Of a sum over S elements for each of R:
P parts of C terms that are written out, J pieces of I lanes, so S = P C and R = J I.
"""

from __future__ import annotations

import functools
import math
import operator

import jax
import jax.numpy as jnp
from flax import struct
from jax.experimental.xla_metadata import set_xla_metadata
from jax.sharding import Mesh

from r1jax.models.attention import softmax
from r1jax.models.caches import Attended, LayerCache
from r1jax.models.config import ModelConfig
from r1jax.models.layouts import Compute

TERMS = 16  # written out in a loop: as many lines of the memory as a core has registers for
LANES = 16  # floats that lie side by side: a line of the memory


@struct.dataclass
class LaneCache:
    """A LayerCache's keys, whose sums go over N, and values, whose sums go over T columns.

    For one new token a row, on one device. Fastest where columns and head dimension are multiples
    of 16.
    """

    keys: jax.Array  # [P, B, K, J, C, I] of S = N and R = T
    values: jax.Array  # [P, B, K, J, C, I] of S = T and R = N

    @classmethod
    def zeros(cls, config: ModelConfig, compute: Compute, rows: int, columns: int) -> LaneCache:
        return cls.of(LayerCache.zeros(config, compute, rows, columns))

    @classmethod
    def of(cls, plain: LayerCache) -> LaneCache:
        return cls(_to_lanes(plain.keys.swapaxes(2, 3)), _to_lanes(plain.values))

    def plain(self) -> LayerCache:
        """The inverse of `of`."""
        return LayerCache(_from_lanes(self.keys).swapaxes(2, 3), _from_lanes(self.values))

    @classmethod
    def axes(cls) -> tuple[str, ...]:
        return LayerCache.axes()

    @property
    def columns(self) -> int:
        return self.keys.shape[3] * self.keys.shape[5]

    def write(self, column: jax.Array, *new: jax.Array) -> LaneCache:
        k_B1KN, v_B1KN = new
        keys, values = self.keys, self.values
        parts, rows, heads, _, terms, lanes = keys.shape
        k_BKPC = k_B1KN.astype(keys.dtype).reshape(rows, heads, parts, terms)
        k_PBK1C1 = jnp.moveaxis(k_BKPC, 2, 0)[:, :, :, None, :, None]
        keys = jax.lax.dynamic_update_slice(
            keys, k_PBK1C1, (0, 0, 0, column // lanes, 0, column % lanes)
        )
        terms, lanes = values.shape[4:]
        v_1BKJ1I = v_B1KN.astype(values.dtype).reshape(1, rows, heads, -1, 1, lanes)
        values = jax.lax.dynamic_update_slice(
            values, v_1BKJ1I, (column // terms, 0, 0, 0, column % terms, 0)
        )
        return LaneCache(keys, values)

    def attend(self, q_B1HN: jax.Array, mask_B1T: jax.Array, scale: float) -> Attended:
        rows, _, heads, head_dim = q_B1HN.shape
        grouped = rows, self.keys.shape[2], -1  # the queries of a kv head
        scores_BKMT = _sums(q_B1HN.reshape(*grouped, head_dim), self.keys)
        scores_BH1T = scores_BKMT.reshape(rows, heads, 1, -1)
        weights_BH1T, total_BH11, lse_BH11 = softmax(scores_BH1T, mask_B1T, scale)
        mixed_BKMN = _sums(weights_BH1T.reshape(*grouped, self.columns), self.values)
        mixed_B1HN = mixed_BKMN.reshape(q_B1HN.shape) / total_BH11.swapaxes(1, 2)
        return mixed_B1HN.astype(q_B1HN.dtype), lse_BH11[..., 0].swapaxes(1, 2)

    def resized(
        self, keep_ZS: jax.Array, column: jax.Array, columns: int, mesh: Mesh | None = None
    ) -> LaneCache:
        if columns == self.columns:  # rows alone stay as they lie
            return jax.tree.map(lambda x_PBKJCI: x_PBKJCI[:, keep_ZS[0]], self)
        return self.of(self.plain().resized(keep_ZS, column, columns, mesh))

    def pinned(self, mesh: Mesh | None) -> LaneCache:
        return self  # there is one device


def _to_lanes(x_BKSR: jax.Array) -> jax.Array:
    terms, lanes = math.gcd(x_BKSR.shape[2], TERMS), math.gcd(x_BKSR.shape[3], LANES)
    x_BKPCJI = x_BKSR.reshape(*x_BKSR.shape[:2], -1, terms, x_BKSR.shape[3] // lanes, lanes)
    return x_BKPCJI.transpose(2, 0, 1, 4, 3, 5)


def _from_lanes(x_PBKJCI: jax.Array) -> jax.Array:
    parts, rows, heads, pieces, terms, lanes = x_PBKJCI.shape
    x_BKPCJI = x_PBKJCI.transpose(1, 2, 0, 4, 3, 5)
    return x_BKPCJI.reshape(rows, heads, parts * terms, pieces * lanes)


def _sums(weights_BKMS: jax.Array, x_PBKJCI: jax.Array) -> jax.Array:
    """The sums of x over S, weighted, float32 [B, K, M, R]."""
    parts, rows, heads, pieces, terms, lanes = x_PBKJCI.shape
    w_BKMPC = weights_BKMS.astype(jnp.float32).reshape(rows, heads, -1, parts, terms)
    # A call of its own: fused with what stands around it, it would be computed twice, or in a loop
    # over one flat index, for which LLVM with AVX-512 loads every float by itself.
    with set_xla_metadata(inlineable="false"):
        sums_PBKJMI = _parts_of_sums(jnp.moveaxis(w_BKMPC, 3, 0), x_PBKJCI)
    # Added by a product with ones: as a reduction it takes longer than all the rest.
    sums = jnp.ones((1, parts)) @ sums_PBKJMI.reshape(parts, -1)
    sums_BKMJI = sums.reshape(rows, heads, pieces, -1, lanes).swapaxes(2, 3)
    return sums_BKMJI.reshape(rows, heads, -1, pieces * lanes)


@jax.jit
def _parts_of_sums(w_PBKMC: jax.Array, x_PBKJCI: jax.Array) -> jax.Array:
    """The sums over C, float32 [P, B, K, J, M, I]."""
    terms = [
        w_PBKMC[:, :, :, None, :, term, None] * x_PBKJCI[:, :, :, :, None, term]
        for term in range(x_PBKJCI.shape[4])
    ]
    return functools.reduce(operator.add, terms)
