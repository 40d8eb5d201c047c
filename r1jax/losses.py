"""Every loss of the pipeline, one formula each, and the log-probabilities they are made of.

Shape legend: B rows, L tokens, D model, V vocabulary, C completions of the update (entry 0 of a
per-completion array stands for "none"). Losses return a *partial sum*: weights divide by counts of
the whole update, so the losses (and gradients) of its microbatches add up to one big batch's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from r1jax.models.transformer import Transformer, forward, head_weights
from r1jax.sharding import constrain
from r1jax.types import Batch

Metrics = dict[str, jax.Array]

# exp(20) is 5e8: no clipped objective cares beyond it, and float32 sums stay finite.
MAX_LOG_RATIO = 20.0


# ---------------------------------------------------------------------------------------------
# Log-probabilities


def token_logprobs(
    model: Transformer, params: Any, batch: Batch, temperature: float = 1.0, chunk: int = 128
) -> tuple[jax.Array, jax.Array]:
    """(log-probabilities, entropies) of the targets [B, L] under log_softmax(logits / temperature).

    Entry l is log p(tokens[l] | the tokens before it), 0 where the loss mask is 0. The head is
    applied to `chunk` positions at a time and recomputed in the backward pass: no [B, L, V] array
    exists. The entropies carry no gradient.
    """
    hidden_BLD = _hidden(model, params, batch)
    head_DV = head_weights(params).astype(hidden_BLD.dtype)

    def of_chunk(h_BCD: jax.Array, tokens_BC: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits_BCV = _logits(h_BCD, head_DV, temperature, model.mesh)
        logprobs_BC, entropy_BC = _of_targets(logits_BCV, tokens_BC)[:2]
        return logprobs_BC, jax.lax.stop_gradient(entropy_BC)

    targets_BL = jnp.roll(batch.tokens, -1, axis=1)  # hidden l predicts token l + 1
    logprobs_BL, entropy_BL = _of_chunks(of_chunk, (hidden_BLD, targets_BL), batch, chunk)
    return logprobs_BL, entropy_BL


def _hidden(model: Transformer, params: Any, batch: Batch) -> jax.Array:
    place = (batch.tokens, batch.positions, batch.segment_ids, batch.completion_ids)
    return forward(model, params, *place).hidden


def _of_chunks(function: Callable[..., Any], arrays: Any, batch: Batch, chunk: int) -> Any:
    """`function` of `chunk` columns of the arrays [B, L, ...] at a time -> [B, L], at targets.

    Its outcomes are float32 [B, C]. It is skipped for chunks that predict no target, is recomputed
    in the backward pass, and 0 stands wherever there is no target.
    """
    order_BL = _targets_first(batch)
    mask_BL = batch.loss_mask > 0
    mask_NBC, *chunks = _chunks((jnp.roll(mask_BL, -1, axis=1), *arrays), order_BL, chunk)

    @jax.checkpoint
    def one(_: None, x: Any) -> tuple[None, Any]:
        mask_BC, *args = x
        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(function, *args))
        return None, jax.lax.cond(jnp.any(mask_BC), function, lambda *_: zeros, *args)

    _, found = jax.lax.scan(one, None, (mask_NBC, *chunks))
    back_BL = jnp.argsort(order_BL, axis=1)

    def in_place(x_NBC: jax.Array) -> jax.Array:
        x_BL = x_NBC.swapaxes(0, 1).reshape(mask_BL.shape[0], -1)
        x_BL = jnp.take_along_axis(x_BL, back_BL, axis=1)  # at the column that predicts
        return jnp.where(mask_BL, jnp.roll(x_BL, 1, axis=1), 0.0)

    return jax.tree.map(in_place, found)


def _targets_first(batch: Batch) -> jax.Array:
    """The columns of each row [B, L], those in front whose next token is a target.

    So columns that the head is not needed for come together: prompts, padding, ends.
    """
    return jnp.argsort(jnp.roll(batch.loss_mask, -1, axis=1) == 0, axis=1, stable=True)


def _chunks(tree: Any, order_BL: jax.Array, chunk: int) -> Any:
    """Leaves [B, L, ...] -> [N, B, chunk, ...]: columns in this order, padded with zeros."""
    length = order_BL.shape[1]
    chunk = min(chunk, length)
    padded = -(-length // chunk) * chunk

    def one(x_BL: jax.Array) -> jax.Array:
        x_BL = jax.vmap(lambda x_L, order_L: x_L[order_L])(x_BL, order_BL)
        rest = x_BL.shape[2:]
        x_BL = jnp.pad(x_BL, [(0, 0), (0, padded - length)] + [(0, 0)] * len(rest))
        return x_BL.reshape(x_BL.shape[0], -1, chunk, *rest).swapaxes(0, 1)

    return jax.tree.map(one, tree)


def _logits(h_BCD: jax.Array, head_DV: jax.Array, temperature: Any, mesh: Any) -> jax.Array:
    logits = jnp.einsum("bcd,dv->bcv", h_BCD, head_DV, preferred_element_type=jnp.float32)
    return constrain(logits / temperature, mesh, "batch", "length", "vocab")


def _of_targets(
    logits_BCV: jax.Array, targets_BC: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(log-probabilities, entropies, logs of the denominator), each [B, C]."""
    top_BC1 = logits_BCV.max(axis=-1, keepdims=True)
    weights_BCV = jnp.exp(logits_BCV - top_BC1)
    total_BC = weights_BCV.sum(axis=-1)
    lse_BC = top_BC1[..., 0] + jnp.log(total_BC)
    entropy_BC = lse_BC - jnp.sum(weights_BCV * logits_BCV, axis=-1) / total_BC
    chosen_BC = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)[..., 0]
    return chosen_BC - lse_BC, entropy_BC, lse_BC


# (log-probabilities [B, C], entropies [B, C], batch of these tokens) -> (partial sum, metrics)
TokenLoss = Callable[[jax.Array, jax.Array, Batch], tuple[jax.Array, Metrics]]


def token_loss(
    model: Transformer,
    params: Any,
    batch: Batch,
    loss: TokenLoss,
    temperature: float = 1.0,
    chunk: int = 128,
) -> tuple[jax.Array, Metrics]:
    """`loss` of `token_logprobs`, for a loss that is a sum over tokens, to be differentiated.

    A chunk's logits are made once: its loss and the gradients of hidden states and head are taken
    while they exist, where autodiff of `token_logprobs` would make them again.
    """
    hidden_BLD = _hidden(model, params, batch)
    head_DV = head_weights(params).astype(hidden_BLD.dtype)
    order_BL = _targets_first(batch)
    # What is aligned to targets goes to the tokens that predict them; entry 0 is no target.
    predicted = jax.tree.map(
        lambda x: _chunks(jnp.roll(x, -1, axis=1), order_BL, chunk) if x.ndim == 2 else x, batch
    )
    hidden_NBCD = _chunks(hidden_BLD, order_BL, chunk)
    return _head_loss(hidden_NBCD, head_DV, predicted, temperature, loss, model.mesh)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _head_loss(
    hidden_NBCD: jax.Array,
    head_DV: jax.Array,
    batch: Batch,
    temperature: Any,
    loss: TokenLoss,
    mesh: Any,
) -> tuple[jax.Array, Metrics]:
    """(loss, metrics) of a batch whose token-level leaves are [N, B, C], a chunk at a time.

    The chunks that predict a target come first.
    """
    return _head_loss_forward(hidden_NBCD, head_DV, batch, temperature, loss, mesh)[0]


def _head_loss_forward(
    hidden_NBCD: jax.Array,
    head_DV: jax.Array,
    batch: Batch,
    temperature: Any,
    loss: TokenLoss,
    mesh: Any,
) -> tuple[tuple[jax.Array, Metrics], tuple[jax.Array, jax.Array]]:
    def chunk_of(index: Any) -> Batch:
        return jax.tree.map(lambda x: x[index] if x.ndim == 3 else x, batch)

    def one(index: Any, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_grad_NBCD, head_grad_DV, total = carry
        h_BCD, part = hidden_NBCD[index], chunk_of(index)
        logits_BCV = _logits(h_BCD, head_DV, temperature, mesh)
        logprobs_BC, entropy_BC, lse_BC = _of_targets(logits_BCV, part.tokens)
        found, weights_BC = jax.value_and_grad(loss, has_aux=True)(logprobs_BC, entropy_BC, part)
        hit_BCV = part.tokens[..., None] == jnp.arange(head_DV.shape[1])
        grad_BCV = hit_BCV - jnp.exp(logits_BCV - lse_BC[..., None])
        grad_BCV = (grad_BCV * (weights_BC / temperature)[..., None]).astype(head_DV.dtype)
        h_grad_BCD = jnp.einsum("bcv,dv->bcd", grad_BCV, head_DV)
        head_grad_DV += jnp.einsum(
            "bcd,bcv->dv", h_BCD, grad_BCV, preferred_element_type=jnp.float32
        )
        return (
            hidden_grad_NBCD.at[index].set(h_grad_BCD),
            head_grad_DV,
            add_partial(total, found),
        )

    first = chunk_of(0)
    float_BC = jax.ShapeDtypeStruct(first.tokens.shape, jnp.float32)
    start = jax.tree.map(jnp.zeros_like, jax.eval_shape(loss, float_BC, float_BC, first))
    with_targets = jnp.sum(jnp.any(batch.loss_mask > 0, axis=(1, 2)))
    hidden_grad_NBCD, head_grad_DV, result = jax.lax.fori_loop(
        0,
        with_targets,
        one,
        (jnp.zeros_like(hidden_NBCD), jnp.zeros(head_DV.shape, jnp.float32), start),
    )
    return result, (hidden_grad_NBCD, head_grad_DV.astype(head_DV.dtype))


def _head_loss_backward(
    loss: TokenLoss, mesh: Any, saved: tuple[jax.Array, jax.Array], gradients: tuple[Any, Metrics]
) -> tuple[jax.Array, jax.Array, None, None]:
    hidden_grad_NBCD, head_grad_DV = saved
    weight = gradients[0]  # of the loss; metrics carry no gradient
    return (
        (weight * hidden_grad_NBCD).astype(hidden_grad_NBCD.dtype),
        (weight * head_grad_DV).astype(head_grad_DV.dtype),
        None,
        None,
    )


_head_loss.defvjp(_head_loss_forward, _head_loss_backward)


def add_partial(one: tuple[Any, Metrics], two: tuple[Any, Metrics]) -> tuple[Any, Metrics]:
    """(losses or gradients, metrics) of two parts of an update as one.

    Everything is a partial sum, but metrics whose name ends in `_max` are maxima.
    """
    merged = {
        name: jnp.maximum(one[1][name], value) if name.endswith("_max") else one[1][name] + value
        for name, value in two[1].items()
    }
    return jax.tree.map(jnp.add, one[0], two[0]), merged


# ---------------------------------------------------------------------------------------------
# Aggregation: weights per token, so that a loss is sum(weights * per-token loss) over the update


def sequence_mean(batch: Batch, max_tokens: int) -> jax.Array:
    """1/C sum_i 1/|o_i| sum_t (DeepSeekMath eq 3; the GRPO of the paper) -> [B, L]."""
    return batch.loss_mask / (batch.lengths[batch.completion_ids] * _count(batch))


def token_mean(batch: Batch, max_tokens: int) -> jax.Array:
    """1 / sum_i |o_i| (DAPO eq 8) -> [B, L]."""
    return batch.loss_mask / jnp.sum(batch.lengths[1:])


def constant(batch: Batch, max_tokens: int) -> jax.Array:
    """1 / (C max_tokens): no length in the denominator (Dr. GRPO) -> [B, L]."""
    return batch.loss_mask / (_count(batch) * max_tokens)


def _count(batch: Batch) -> int:
    return batch.lengths.shape[0] - 1


AGGREGATIONS: dict[str, Callable[[Batch, int], jax.Array]] = {
    "sequence_mean": sequence_mean,
    "token_mean": token_mean,
    "constant": constant,
}


# ---------------------------------------------------------------------------------------------
# Losses


def nll_loss(logprobs_BL: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
    """Mean negative log-likelihood per target token of the update, in nats."""
    loss = -jnp.sum(token_mean(batch, 0) * logprobs_BL)
    return loss, {"loss": loss}


def teacher_kl(
    model: Transformer,
    params: Any,
    teacher: Transformer,
    teacher_params: Any,
    batch: Batch,
    temperature: float = 1.0,
    chunk: int = 128,
) -> jax.Array:
    """KL(teacher || student) of the targets' distributions [B, L]; 0 where the loss mask is 0.

    Both are softmax(logits / temperature); no gradient reaches the teacher, and logits exist for
    `chunk` positions at a time.
    """
    hidden_BLD = _hidden(model, params, batch)
    teachers_BLD = jax.lax.stop_gradient(_hidden(teacher, teacher_params, batch))
    head_DV = head_weights(params).astype(hidden_BLD.dtype)
    teachers_head_DV = jax.lax.stop_gradient(head_weights(teacher_params))
    teachers_head_DV = teachers_head_DV.astype(teachers_BLD.dtype)

    def of_chunk(h_BCD: jax.Array, teachers_BCD: jax.Array) -> jax.Array:
        logits_BCV = _logits(h_BCD, head_DV, temperature, model.mesh)
        teachers_BCV = _logits(teachers_BCD, teachers_head_DV, temperature, model.mesh)
        wanted_BCV = jax.nn.log_softmax(teachers_BCV)
        gap_BCV = wanted_BCV - jax.nn.log_softmax(logits_BCV)
        return jnp.sum(jnp.exp(wanted_BCV) * gap_BCV, axis=-1)

    kl_BL: jax.Array = _of_chunks(of_chunk, (hidden_BLD, teachers_BLD), batch, chunk)
    return kl_BL


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
    return jnp.exp(sums_C / batch.lengths)[batch.completion_ids]


RATIOS: dict[str, Callable[[jax.Array, Batch], jax.Array]] = {
    "token": token_ratio,
    "sequence": sequence_ratio,
}


def kl_k3(logprobs: jax.Array, ref_logprobs: jax.Array) -> jax.Array:
    """pi_ref / pi - log(pi_ref / pi) - 1 >= 0, an unbiased estimate of the KL (R1 eq 2)."""
    log_ratio = jnp.clip(ref_logprobs - logprobs, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    return jnp.expm1(log_ratio) - log_ratio


def token_scalars(model: Transformer, params: Any, batch: Batch) -> jax.Array:
    """The scalar head's value at every token, float32 [B, L]."""
    output = forward(
        model, params, batch.tokens, batch.positions, batch.segment_ids, batch.completion_ids
    )
    hidden_BLD = output.hidden.astype(jnp.float32)
    return hidden_BLD @ params["scalar_head"] + params["scalar_bias"]


def token_values(model: Transformer, params: Any, batch: Batch) -> jax.Array:
    """The scalar head's value of the state before each token, float32 [B, L]; 0 at a row's first.

    Aligned to targets, as log-probabilities are.
    """
    return jnp.roll(token_scalars(model, params, batch), 1, axis=1).at[:, 0].set(0.0)


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
    """The paper's objective; eps is printed for RL stage 1 only (r1_facts 1.2)."""

    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2
    kl_coef: float = 0.001
    loss_agg: str = "sequence_mean"
    ratio: str = "token"  # "sequence": GSPO
    surrogate: str = "clipped"  # "cispo"
    # Truncated importance sampling: tokens weigh min(pi_old / pi_sampler, cap); 0 = they don't.
    importance_cap: float = 0.0


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
