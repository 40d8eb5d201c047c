"""Losses of scalar heads: values (PPO), and the rewards of reward models."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from r1jax.losses.aggregation import Metrics
from r1jax.types import Batch


def value_loss(values_BL: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
    """Half the squared error of the values, mean over the update's tokens."""
    weights_BL = batch.loss_mask / batch.num_targets
    error_BL = jnp.where(weights_BL > 0, values_BL - batch.returns, 0.0)
    loss = 0.5 * jnp.sum(weights_BL * error_BL**2)
    metrics = {"loss": loss, "value_mean": jnp.sum(weights_BL * values_BL)}
    return loss, jax.tree.map(jax.lax.stop_gradient, metrics)


def sequence_scalars(scalars_BL: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """(the scalar at each sequence's target, whether the sequence is here), both [C + 1].

    A sequence has one target, its last token (where it is in another microbatch: 0 and 0).
    """

    def sums(x_BL: jax.Array) -> jax.Array:
        zeros = jnp.zeros(batch.lengths.shape, jnp.float32)
        return zeros.at[batch.completion_ids].add(x_BL * batch.loss_mask)

    return sums(scalars_BL), sums(jnp.ones_like(scalars_BL))


def pairwise_loss(scalars_BL: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
    """Bradley-Terry: the mean over pairs of -log sigmoid(chosen - rejected).

    Sequences 2k + 1 and 2k + 2 are pair k, the chosen one first, both in the same microbatch.
    """
    values_C, here_C = sequence_scalars(scalars_BL, batch)
    margins, weights = values_C[1::2] - values_C[2::2], here_C[1::2] / (batch.num_targets / 2)
    loss = -jnp.sum(weights * jax.nn.log_sigmoid(margins))
    metrics = {
        "loss": loss,
        "accuracy": jnp.sum(weights * ((margins > 0) + 0.5 * (margins == 0))),
        "margin": jnp.sum(weights * margins),
    }
    return loss, jax.tree.map(jax.lax.stop_gradient, metrics)


def pointwise_loss(scalars_BL: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
    """Binary cross-entropy of sigmoid(scalar) with the sequences' labels, mean over sequences."""
    values_C, here_C = sequence_scalars(scalars_BL, batch)
    weights = here_C / batch.num_targets
    loss = jnp.sum(weights * (jax.nn.softplus(values_C) - batch.labels * values_C))
    metrics = {
        "loss": loss,
        "accuracy": jnp.sum(weights * ((values_C > 0) == (batch.labels > 0.5))),
    }
    return loss, jax.tree.map(jax.lax.stop_gradient, metrics)
