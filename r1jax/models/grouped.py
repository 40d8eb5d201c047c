"""Products of tokens with the matrix of their own expert: which kernel runs them where.

Shape legend: A rows that are tokens at their experts, R rows of the layout, Q rows of a block,
E experts, D and F the matrices' sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

BLOCKS, MEGABLOX = "blocks", "megablox"
MAX_BLOCK = 128  # rows
TILE_ROWS, TILE_COLUMNS = (128, 512), 1024  # of megablox; least and most, most in 16 bits
LANES = 128  # of a TPU


def choose_grouped(mesh: Mesh | None) -> str:
    """What multiplies grouped rows on this mesh: JAX's own kernel on TPUs, a loop elsewhere."""
    platform = "cpu" if mesh is None else mesh.devices.flat[0].platform
    return MEGABLOX if platform == "tpu" else BLOCKS


@struct.dataclass
class Groups:
    """Rows in the order of their experts, each expert's from a new block on.

    What is no expert's, stands nowhere. For megablox, which takes rows in tiles, a block is a row.
    """

    place_A: jax.Array  # int32, the row of the layout of what came as row a; R = none
    sizes_E: jax.Array  # int32, rows with what fills up the last block
    rows: int = struct.field(pytree_node=False)  # R
    block: int = struct.field(pytree_node=False)  # Q
    tile: int = struct.field(pytree_node=False, default=0)  # rows of one of megablox's; 0: a loop
    interpret: bool = struct.field(pytree_node=False, default=False)  # megablox, on any platform

    @property
    def blocks(self) -> tuple[jax.Array, jax.Array]:
        """The expert of each block, int32 [R / Q], and how many hold anything."""
        ends_E = jnp.cumsum(self.sizes_E // self.block, dtype=jnp.int32)
        places = jnp.arange(self.rows // self.block)
        expert = jnp.sum(places[:, None] >= ends_E, axis=1, dtype=jnp.int32)
        return jnp.minimum(expert, ends_E.shape[0] - 1), ends_E[-1]

    def spread(self, x_TD: jax.Array) -> jax.Array:
        """Tokens, each to the rows of its A / T experts [R, D]; zeros elsewhere."""
        return x_TD.at[self._token_R(len(x_TD))].get(mode="fill", fill_value=0)

    def weights(self, weights_Tk: jax.Array) -> jax.Array:
        """Of the rows [R], zeros elsewhere."""
        return jnp.zeros(self.rows).at[self.place_A].set(weights_Tk.reshape(-1), mode="drop")

    def combine(self, y_RF: jax.Array, tokens: int) -> jax.Array:
        """The sums of the tokens' rows [T, F]."""
        places = len(self.place_A)
        if self.rows >= places:
            y_AF = y_RF.at[self.place_A].get(mode="fill", fill_value=0)
            y_TkF = y_AF.reshape(tokens, places // tokens, -1)
            return jnp.sum(y_TkF, axis=1, dtype=jnp.float32).astype(y_RF.dtype)
        # Most of a token's experts are not among these: less is moved if the rows go to the tokens.
        sums_TF = jnp.zeros((tokens, y_RF.shape[1]), y_RF.dtype)
        return sums_TF.at[self._token_R(tokens)].add(y_RF, mode="drop")

    def _token_R(self, tokens: int) -> jax.Array:
        """Whose each row is; T = nobody's."""
        places = len(self.place_A)
        token_A = jnp.arange(places, dtype=jnp.int32) // (places // tokens)
        nobody_R = jnp.full(self.rows, tokens, jnp.int32)
        return nobody_R.at[self.place_A].set(token_A, mode="drop")


def group(expert_A: jax.Array, experts: int, kernel: str = BLOCKS, mean: int = 0) -> Groups:
    """For rows that belong to experts 0 .. E - 1; any other number is nobody's.

    `mean` is about how many an expert has (0: all rows are of these experts). By counting, since
    sorting so many numbers compiles for minutes on TPUs.
    """
    rows = expert_A.shape[0]
    mean = mean or rows // experts
    if kernel == MEGABLOX:  # an expert's last tile is half empty, and so is its first one
        least, most = TILE_ROWS
        block, tile = 1, min(max(_power_of_two(mean // 2), least), most)
        room = -(-rows // tile) * tile
    else:
        block, tile = min(max(_power_of_two(rows // experts), 8), MAX_BLOCK), 0
        room = (rows // block + experts) * block  # whatever comes
    is_of_AE = expert_A[:, None] == jnp.arange(experts, dtype=jnp.int32)
    before_AE = jnp.cumsum(is_of_AE, axis=0, dtype=jnp.int32) - is_of_AE
    sizes_E = -(-jnp.sum(is_of_AE, axis=0, dtype=jnp.int32) // block) * block
    first_E = jnp.cumsum(sizes_E, dtype=jnp.int32) - sizes_E
    place_A = jnp.sum(jnp.where(is_of_AE, first_E + before_AE, 0), axis=1)
    place_A = jnp.where(jnp.any(is_of_AE, axis=1), place_A, room)
    return Groups(place_A, sizes_E, room, block, tile)


def _power_of_two(number: int) -> int:
    """The largest one up to it, at least 1."""
    return 1 << max(number.bit_length() - 1, 0)


def grouped_matmul(x_RD: jax.Array, w_EDF: jax.Array, groups: Groups) -> jax.Array:
    """Each row times its expert's matrix [R, F]; what lies behind the used blocks may be anything.

    Where there is no kernel a block at a time, in a loop over those that hold anything: XLA's own
    ragged_dot multiplies all rows by all matrices there, and its weights' gradients on TPUs too.
    """
    if groups.tile:
        return _by_megablox(x_RD, w_EDF, groups)
    return _by_blocks(x_RD, w_EDF, *groups.blocks)


def _by_megablox(x_RD: jax.Array, w_EDF: jax.Array, groups: Groups) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import megablox

    tiling = _Tiling(groups.tile, x_RD.dtype.itemsize)
    # It writes no tile that nobody has rows in.
    given = x_RD, w_EDF, groups.sizes_E, x_RD.dtype
    y_RF: jax.Array = megablox.gmm(*given, tiling, interpret=groups.interpret)
    return y_RF


@dataclass(frozen=True)
class _Tiling:
    """(rows, inner, columns) -> those of a tile, whatever the product: forward or a gradient."""

    rows: int
    itemsize: int  # of a number, in bytes

    def __call__(self, _: int, inner: int, columns: int) -> tuple[int, int, int]:
        return self.rows, self._width(inner), self._width(columns)

    def _width(self, size: int) -> int:
        """All of it, or a part without a rest if there is one that is wide enough."""
        most = TILE_COLUMNS * 2 // self.itemsize
        if size <= most:
            return size
        wide = range(most, most // 2, -LANES)
        return next((width for width in wide if size % width == 0), most)


@jax.custom_vjp
def _by_blocks(x_RD: jax.Array, w_EDF: jax.Array, expert: jax.Array, used: jax.Array) -> jax.Array:
    zeros_RF = _zeros((x_RD.shape[0], w_EDF.shape[2]), x_RD.dtype, used)
    return _products("qd,df->qf", x_RD, w_EDF, zeros_RF, expert, used)


def _products(
    equation: str,
    x: jax.Array,
    w_EDF: jax.Array,
    out: jax.Array,
    expert: jax.Array,
    used: jax.Array,
) -> jax.Array:
    """`out` with the products of the used blocks in it."""
    block = x.shape[0] // expert.shape[0]

    def one(i: Any, out: jax.Array) -> jax.Array:
        product = jnp.einsum(equation, _rows(x, i, block), _matrix(w_EDF, expert[i]))
        return jax.lax.dynamic_update_slice_in_dim(out, product.astype(out.dtype), i * block, 0)

    return jax.lax.fori_loop(0, used, one, out)


def _zeros(shape: tuple[int, ...], dtype: Any, used: jax.Array) -> jax.Array:
    """That differ between devices as `used` does: a loop inside shard_map asks for it."""
    return jnp.broadcast_to((0 * used).astype(dtype), shape)


def _rows(x: jax.Array, index: Any, block: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, index * block, block)


def _matrix(w_EDF: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(w_EDF, index, keepdims=False)


def _forward(
    x_RD: jax.Array, w_EDF: jax.Array, expert: jax.Array, used: jax.Array
) -> tuple[jax.Array, Any]:
    return _by_blocks(x_RD, w_EDF, expert, used), (x_RD, w_EDF, expert, used)


def _backward(saved: Any, grad_RF: jax.Array) -> tuple[jax.Array, jax.Array, None, None]:
    x_RD, w_EDF, expert, used = saved
    block = x_RD.shape[0] // expert.shape[0]
    x_grad_RD = _products(
        "qf,df->qd", grad_RF, w_EDF, _zeros(x_RD.shape, x_RD.dtype, used), expert, used
    )

    def one(i: Any, w_grad_EDF: jax.Array) -> jax.Array:
        pair = _rows(x_RD, i, block), _rows(grad_RF, i, block)
        grad_DF = jnp.einsum("qd,qf->df", *pair, preferred_element_type=jnp.float32)
        total_DF = _matrix(w_grad_EDF, expert[i]) + grad_DF
        return jax.lax.dynamic_update_index_in_dim(w_grad_EDF, total_DF, expert[i], 0)

    w_grad_EDF = jax.lax.fori_loop(0, used, one, _zeros(w_EDF.shape, jnp.float32, used))
    return x_grad_RD, w_grad_EDF.astype(w_EDF.dtype), None, None


_by_blocks.defvjp(_forward, _backward)
