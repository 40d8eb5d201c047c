"""The objective of GRPO and PPO and its variants: ratios, surrogates, the KL to the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from r1jax.config import NotNegative
from r1jax.losses.aggregation import AGGREGATIONS, Metrics
from r1jax.types import Batch

# exp(20) is 5e8: no clipped objective cares beyond it, and float32 sums stay finite.
MAX_LOG_RATIO = 20.0


def clipped_surrogate(
    ratio: jax.Array, advantages: jax.Array, clip_eps_low: float, clip_eps_high: float
) -> jax.Array:
    """min(ratio A, clip(ratio, 1 - low, 1 + high) A), to be maximised (R1 eq 1)."""
    clipped = jnp.clip(ratio, 1.0 - clip_eps_low, 1.0 + clip_eps_high)
    return jnp.minimum(ratio * advantages, clipped * advantages)


def clipped_weights(
    ratio: jax.Array, advantages: jax.Array, clip_eps_low: float, clip_eps_high: float
) -> jax.Array:
    """clip(ratio, 1 - low, 1 + high) A with the gradient of the unclipped ratio (CISPO eq 4).

    Its gradient is clip(ratio) A d log pi: a clipped token still counts, with a bounded weight.
    """
    clipped = jnp.clip(ratio, 1.0 - clip_eps_low, 1.0 + clip_eps_high)
    own = ratio / jax.lax.stop_gradient(ratio)  # 1, with the gradient of log pi
    return jax.lax.stop_gradient(clipped) * own * advantages


SURROGATES: dict[str, Callable[..., jax.Array]] = {
    "clipped": clipped_surrogate,
    "cispo": clipped_weights,
}


def token_ratio(log_ratio_BL: jax.Array, batch: Batch) -> jax.Array:
    """pi / pi_old of each token (R1 eq 1, DeepSeekMath eq 3)."""
    return jnp.exp(log_ratio_BL)


def sequence_ratio(log_ratio_BL: jax.Array, batch: Batch) -> jax.Array:
    """(pi / pi_old of the completion)^(1 / its length), the same at each of its tokens (GSPO eq 7).

    A completion lies in one row, so its tokens are all here.
    """
    zeros = jnp.zeros(batch.lengths.shape, log_ratio_BL.dtype)
    sums_C = zeros.at[batch.completion_ids].add(log_ratio_BL * batch.loss_mask)
    return jnp.exp(sums_C / jnp.maximum(batch.lengths, 1.0))[batch.completion_ids]


RATIOS: dict[str, Callable[[jax.Array, Batch], jax.Array]] = {
    "token": token_ratio,
    "sequence": sequence_ratio,
}


def kl_k3(logprobs: jax.Array, ref_logprobs: jax.Array) -> jax.Array:
    """pi_ref / pi - log(pi_ref / pi) - 1 >= 0, an unbiased estimate of the KL (R1 eq 2)."""
    log_ratio = jnp.clip(ref_logprobs - logprobs, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    return jnp.expm1(log_ratio) - log_ratio


def truncated_importance(old_BL: jax.Array, batch: Batch, cap: float) -> jax.Array:
    """min(pi_old / pi_sampler, cap) of each token, a weight without a gradient.

    For rollouts of an older policy than the one at the start of their updates, and for samplers
    that compute otherwise than the trainer.
    """
    gap_BL = (old_BL - batch.sampler_logprobs) * batch.loss_mask
    weights_BL = jnp.exp(jnp.clip(gap_BL, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    return jax.lax.stop_gradient(jnp.minimum(weights_BL, cap))


@dataclass(frozen=True)
class GrpoLossConfig:
    """The paper's objective. It prints the clipping epsilon for RL stage 1 only, where it is 10."""

    clip_eps_low: NotNegative = 0.2  # the ratio is clipped below at 1 - this
    clip_eps_high: NotNegative = 0.2  # and above at 1 + this; DAPO: higher than clip_eps_low
    kl_coef: NotNegative = 0.001  # of the k3 KL(policy || reference) in the loss; 0 = none
    # How tokens weigh: "sequence_mean" 1/|o| each (DeepSeekMath), "token_mean" all alike (DAPO),
    # "constant" 1/max_tokens (Dr. GRPO).
    loss_agg: str = "sequence_mean"
    ratio: str = "token"  # pi / pi_old of each "token", or of the "sequence" (GSPO)
    surrogate: str = "clipped"  # "clipped" (PPO, GRPO) or "cispo"
    # Truncated importance sampling: tokens weigh min(pi_old / pi_sampler, cap); 0 = they don't.
    importance_cap: NotNegative = 0.0


def grpo_loss(
    logprobs_BL: jax.Array,
    batch: Batch,
    config: GrpoLossConfig,
    max_tokens: int,
    entropy_BL: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """Token-level GRPO with the k3 KL in the loss (DeepSeekMath eq 3 and 4, R1 eq 1 to 3).

    Without `old_logprobs` this is the only update on its rollout: the current policy is the old
    one, and the ratio is 1 with the policy's gradient. Metrics are means over the packed tokens (as
    partial sums, like the loss); names ending in `_max` are maxima.
    """
    mask_BL = batch.loss_mask
    old_BL = batch.old_logprobs
    if old_BL is None:
        old_BL = jax.lax.stop_gradient(logprobs_BL)
    log_ratio_BL = jnp.clip((logprobs_BL - old_BL) * mask_BL, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio_BL = RATIOS[config.ratio](log_ratio_BL, batch)
    advantages_BL = batch.token_advantages  # PPO's
    if advantages_BL is None:
        advantages_BL = batch.advantages[batch.completion_ids]
    surrogate_BL = SURROGATES[config.surrogate](
        ratio_BL, advantages_BL, config.clip_eps_low, config.clip_eps_high
    )
    objective_BL = surrogate_BL
    importance_BL = None
    if config.importance_cap and batch.sampler_logprobs is not None:
        importance_BL = truncated_importance(old_BL, batch, config.importance_cap)
        objective_BL = objective_BL * importance_BL
    per_token = mask_BL / batch.num_targets
    metrics: Metrics = {}
    if batch.ref_logprobs is not None:
        kl_BL = kl_k3(logprobs_BL, batch.ref_logprobs)
        objective_BL = objective_BL - config.kl_coef * kl_BL
        metrics["kl/ref"] = jnp.sum(per_token * kl_BL)
    loss = -jnp.sum(AGGREGATIONS[config.loss_agg](batch, max_tokens) * objective_BL)

    clipped_BL = surrogate_BL != ratio_BL * advantages_BL
    metrics |= {
        "loss": loss,
        "ratio/clip_fraction": jnp.sum(per_token * clipped_BL),
        "ratio/mean": jnp.sum(per_token * ratio_BL),
        "kl/old_k1": -jnp.sum(per_token * log_ratio_BL),
    }
    if importance_BL is not None:
        metrics["importance/mean"] = jnp.sum(per_token * importance_BL)
        cut_BL = importance_BL >= config.importance_cap
        metrics["importance/truncated"] = jnp.sum(per_token * cut_BL)
    if entropy_BL is not None:
        metrics["policy/entropy"] = jnp.sum(per_token * entropy_BL)
    if batch.sampler_logprobs is not None:
        drift_BL = jnp.abs(old_BL - batch.sampler_logprobs) * mask_BL
        metrics["drift/logprob_mean_abs"] = jnp.sum(per_token * drift_BL)
        metrics["drift/logprob_abs_max"] = jnp.max(drift_BL)
    return loss, jax.tree.map(jax.lax.stop_gradient, metrics)
