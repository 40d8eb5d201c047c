"""Supervised fine-tuning, and multi-token prediction beside any loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from r1jax.config import ConfigError
from r1jax.losses.aggregation import Metrics, token_mean
from r1jax.losses.logprobs import AheadLoss
from r1jax.models.config import ModelConfig
from r1jax.types import Batch


def nll_loss(logprobs_BL: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
    """Mean negative log-likelihood per target token of the update, in nats."""
    loss = -jnp.sum(token_mean(batch, 0) * logprobs_BL)
    return loss, {"loss": loss}


def token_nll(logprobs_BL: jax.Array, _: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
    """`nll_loss` as a TokenLoss."""
    return nll_loss(logprobs_BL, batch)


def ahead_loss(coef: float, model: ModelConfig, alone: bool = False) -> AheadLoss | None:
    """That of multi-token prediction with this weight, lambda; none at 0.

    Raises ConfigError where the model has no multi-token prediction.
    """
    if not coef:
        return None
    if not model.mtp:
        raise ConfigError(
            f"config.mtp_coef {coef:g}: the model has no multi-token prediction (its config says"
            " mtp False)"
        )
    return AheadLoss(coef, token_nll, alone)
