"""Products of tokens with the matrix of their own expert.

Shape legend: A rows that are tokens at their experts, R rows of the layout, Q rows of a block,
E experts, D and F the matrices' sides.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

MAX_BLOCK = 128  # rows


@struct.dataclass
class Groups:
    """Rows in the order of their experts, each expert's from a new block on.

    What is no expert's, stands nowhere.
    """

    place_A: jax.Array  # int32, the row of the layout of what came as row a; R = none
    expert: jax.Array  # int32 [R / Q], of each block
    used: jax.Array  # int32 scalar, blocks that hold anything
    sizes_E: jax.Array  # int32, rows with what fills up the last block
    block: int = struct.field(pytree_node=False)  # Q

    @property
    def rows(self) -> int:
        """R"""
        return self.expert.shape[0] * self.block

    def spread(self, x_TD: jax.Array) -> jax.Array:
        """Tokens, each to the rows of its A / T experts [R, D]; zeros elsewhere."""
        tokens, places = x_TD.shape[0], self.place_A.shape[0]
        source_R = jnp.full(self.rows, tokens, jnp.int32)
        token_A = jnp.arange(places, dtype=jnp.int32) // (places // tokens)
        source_R = source_R.at[self.place_A].set(token_A, mode="drop")
        return x_TD.at[source_R].get(mode="fill", fill_value=0)

    def collect(self, x_RF: jax.Array) -> jax.Array:
        """The inverse: [A, F], zeros where there was no expert."""
        return x_RF.at[self.place_A].get(mode="fill", fill_value=0)


def group(expert_A: jax.Array, experts: int) -> Groups:
    """For rows that belong to experts 0 .. E - 1; any other number is nobody's.

    By counting, since sorting so many numbers compiles for minutes on TPUs.
    """
    rows = expert_A.shape[0]
    block = min(1 << max((rows // experts).bit_length() - 1, 3), MAX_BLOCK)  # at least 8
    is_of_AE = expert_A[:, None] == jnp.arange(experts, dtype=jnp.int32)
    before_AE = jnp.cumsum(is_of_AE, axis=0, dtype=jnp.int32) - is_of_AE
    blocks_E = -(-jnp.sum(is_of_AE, axis=0, dtype=jnp.int32) // block)
    ends_E = jnp.cumsum(blocks_E, dtype=jnp.int32)
    most = rows // block + experts  # blocks, whatever comes
    first_E = (ends_E - blocks_E) * block
    place_A = jnp.sum(jnp.where(is_of_AE, first_E + before_AE, 0), axis=1)
    place_A = jnp.where(jnp.any(is_of_AE, axis=1), place_A, most * block)
    block_expert = jnp.sum(jnp.arange(most)[:, None] >= ends_E, axis=1, dtype=jnp.int32)
    return Groups(
        place_A=place_A,
        expert=jnp.minimum(block_expert, experts - 1),
        used=ends_E[-1],
        sizes_E=blocks_E * block,
        block=block,
    )


def grouped_matmul(x_RD: jax.Array, w_EDF: jax.Array, groups: Groups) -> jax.Array:
    """Each row times its expert's matrix [R, F]; what lies behind the used blocks is zero.

    A block at a time, in a loop over those that hold anything: XLA's own ragged_dot multiplies all
    rows by all matrices where there is no kernel for it.
    """
    return _by_blocks(x_RD, w_EDF, groups.expert, groups.used)


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
