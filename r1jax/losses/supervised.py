"""Supervised fine-tuning."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from r1jax.losses.aggregation import Metrics, token_mean
from r1jax.types import Batch


def nll_loss(logprobs_BL: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
    """Mean negative log-likelihood per target token of the update, in nats."""
    loss = -jnp.sum(token_mean(batch, 0) * logprobs_BL)
    return loss, {"loss": loss}
