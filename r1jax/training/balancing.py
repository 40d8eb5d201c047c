"""Keeping the experts of a mixture evenly busy while it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from r1jax.config import ConfigError, NotNegative
from r1jax.losses.router import BALANCE, moved_bias
from r1jax.models.config import ModelConfig
from r1jax.models.moe import ROUTER_BIAS
from r1jax.models.mtp import MTP
from r1jax.types import Batch


@dataclass(frozen=True)
class RouterConfig:
    """Of a model with experts. DeepSeek-V3 was pretrained with 1e-3 and 1e-4; of RL the paper says
    nothing.
    """

    bias_step: NotNegative = 0.0  # gamma: how far the router's bias moves after an update
    balance_coef: NotNegative = 0.0  # alpha: weight of the sequence-wise balance loss


def check_router(config: RouterConfig, model: ModelConfig) -> None:
    """Raises ConfigError where there is nothing that the config could even."""
    if config.balance_coef and model.experts is None:
        raise ConfigError("config.router.balance_coef is for a model with experts; leave it at 0")
    if config.bias_step and not (model.experts and model.experts.bias):
        raise ConfigError(
            "config.router.bias_step is for a model whose experts have a bias (DeepSeek-V3's, not"
            " Qwen3's); leave it at 0"
        )


def balance_loss(metrics: Any, tokens: jax.Array, config: RouterConfig) -> jax.Array | float:
    """Of a microbatch, as its part of an update of so many tokens (V3 eq 17 to 20)."""
    if not config.balance_coef or BALANCE not in metrics:
        return 0.0
    return config.balance_coef * metrics[BALANCE] / tokens


def tokens_of(batch: Batch) -> jax.Array:
    """Tokens that are no padding."""
    return jnp.maximum(jnp.sum(batch.segment_ids > 0), 1)


def with_moved_biases(params: Any, load_SE: jax.Array, model: ModelConfig, step: float) -> Any:
    """The parameters with the biases of all routers a step further after an update of this load."""

    def moved(name: str, load_E: jax.Array) -> Any:
        bias = moved_bias(params[name][ROUTER_BIAS], load_E, step)
        return {**params[name], ROUTER_BIAS: bias}

    new, done = dict(params), 0
    for stack in model.stacks:
        if not stack.sparse:
            continue
        load_nE = load_SE[done : done + len(stack.layers)]
        done += len(stack.layers)
        if stack.name in params:
            new[stack.name] = moved(stack.name, load_nE)
            continue
        for i, load_E in zip(stack.layers, load_nE, strict=True):
            new[f"layers_{i}"] = moved(f"layers_{i}", load_E)
    if done < len(load_SE):  # that of multi-token prediction, where it ran
        new[MTP] = moved(MTP, load_SE[done])
    return new
