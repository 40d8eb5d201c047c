"""How the values of tokens become one number: by weights, so that a loss is sum(weights * values)
over the update; and how the parts of its microbatches add up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from r1jax.types import Batch

Metrics = dict[str, jax.Array]


def add_partial(one: tuple[Any, Metrics], two: tuple[Any, Metrics]) -> tuple[Any, Metrics]:
    """(losses or gradients, metrics) of two parts of an update as one.

    Everything is a partial sum, but metrics whose name ends in `_max` are maxima.
    """
    merged = {
        name: jnp.maximum(one[1][name], value) if name.endswith("_max") else one[1][name] + value
        for name, value in two[1].items()
    }
    return jax.tree.map(jnp.add, one[0], two[0]), merged


def sum_partial(part: tuple[Any, Metrics], axes: tuple[str, ...]) -> tuple[Any, Metrics]:
    """add_partial over the devices along these axes of a mesh, within shard_map."""
    metrics = {
        name: jax.lax.pmax(value, axes) if name.endswith("_max") else jax.lax.psum(value, axes)
        for name, value in part[1].items()
    }
    return jax.lax.psum(part[0], axes), metrics


def sequence_mean(batch: Batch, max_tokens: int) -> jax.Array:
    """1/C sum_i 1/|o_i| sum_t (DeepSeekMath eq 3; the GRPO of the paper) -> [B, L]."""
    return batch.loss_mask / (_lengths(batch)[batch.completion_ids] * _count(batch))


def token_mean(batch: Batch, max_tokens: int) -> jax.Array:
    """1 / sum_i |o_i| (DAPO eq 8) -> [B, L]."""
    return batch.loss_mask / jnp.maximum(jnp.sum(batch.lengths[1:]), 1.0)


def constant(batch: Batch, max_tokens: int) -> jax.Array:
    """1 / (C max_tokens): no length in the denominator (Dr. GRPO) -> [B, L]."""
    return batch.loss_mask / (_count(batch) * max_tokens)


def _lengths(batch: Batch) -> jax.Array:
    """Of each completion; 1 for those that do not count, which have no token in the loss."""
    return jnp.maximum(batch.lengths, 1.0)


def _count(batch: Batch) -> jax.Array:
    """C, the completions that count."""
    return jnp.maximum(jnp.sum(batch.lengths[1:] > 0), 1)


AGGREGATIONS: dict[str, Callable[[Batch, int], jax.Array]] = {
    "sequence_mean": sequence_mean,
    "token_mean": token_mean,
    "constant": constant,
}
