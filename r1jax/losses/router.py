"""How evenly a mixture of experts is used: what is measured, and the bias that evens it.

Shape legend: S layers with experts, E experts.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from r1jax.losses.aggregation import Metrics
from r1jax.models.moe import Routing

LOAD, BALANCE = "router/load", "router/balance"  # partial sums: tokens [S, E]; a scalar
COMPARED, DIFFERING = "router/compared", "router/differing"


def routing_metrics(routing: Routing | None) -> Metrics:
    """Of a microbatch; nothing for a model without experts."""
    if routing is None:
        return {}
    found = {LOAD: routing.load_E, BALANCE: jnp.sum(routing.balance)}
    if routing.compared is not None and routing.differing is not None:
        found |= {COMPARED: jnp.sum(routing.compared), DIFFERING: jnp.sum(routing.differing)}
    return found


def moved_bias(bias_E: jax.Array, load_E: jax.Array, gamma: float) -> jax.Array:
    """DeepSeek-V3 section 2.1.2: down by gamma where an expert had more than the mean, else up."""
    return bias_E + gamma * jnp.sign(jnp.mean(load_E, axis=-1, keepdims=True) - load_E)


def read_metrics(metrics: Metrics, tokens: jax.Array) -> Metrics:
    """An update's metrics with what is told of the load in the place of the load.

    `load_max` is that of the busiest expert over the mean, averaged over layers: 1 is even.
    `balance` is V3's eq 17 without alpha, averaged over layers: 1 is even. `unused_share`: of the
    experts, those that no token took. `disagreement`: of the sampler's choices, those that the
    update's pass would not make.
    """
    if LOAD not in metrics:
        return metrics
    load_SE = metrics[LOAD]
    mean_S1 = jnp.maximum(jnp.mean(load_SE, axis=1, keepdims=True), 1e-9)
    read = {
        BALANCE: metrics[BALANCE] / (load_SE.shape[0] * tokens),
        "router/load_max": jnp.mean(jnp.max(load_SE / mean_S1, axis=1)),
        "router/unused_share": jnp.mean(load_SE == 0),
    }
    if COMPARED in metrics:
        read["router/disagreement"] = metrics[DIFFERING] / jnp.maximum(metrics[COMPARED], 1)
    sums = (LOAD, COMPARED, DIFFERING)
    return {name: value for name, value in metrics.items() if name not in sums} | read
