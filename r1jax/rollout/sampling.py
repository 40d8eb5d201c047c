"""From logits to a token and its log-probability.

Shape legend: S rows (slots), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from r1jax.config import ConfigError

BLOCK = 128  # vocabulary entries summed at once by the inverse-CDF sampler


@dataclass(frozen=True)
class SamplingConfig:
    """How completions are drawn. Log-probabilities are always those without the filters."""

    max_tokens: int = 256
    temperature: float = 1.0  # 0 = greedy
    top_k: int = 0  # 0 = all
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        for name, ok, right in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_k", self.top_k >= 0, "at least 0 (0 = all)"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("min_p", 0 <= self.min_p <= 1, "in [0, 1]"),
        ):
            if not ok:
                raise ConfigError(f"{name} {getattr(self, name)} must be {right}")

    @property
    def filtered(self) -> bool:
        """Whether tokens are drawn from something else than softmax(logits / temperature)."""
        return bool(self.top_k) or self.top_p < 1 or self.min_p > 0 or self.temperature == 0


def row_keys(key: jax.Array, prompt_indices: jax.Array, sample_indices: jax.Array) -> jax.Array:
    """One random key per completion: a function of (key, prompt, sample) and of nothing else."""
    fold = jax.vmap(lambda p, s: jax.random.fold_in(jax.random.fold_in(key, p), s))
    return fold(prompt_indices, sample_indices)


def uniforms(keys_S: jax.Array, positions_S: jax.Array) -> jax.Array:
    """The uniform number in [0, 1) that draws the token at each row's position -> float32 [S]."""
    return jax.vmap(lambda k, p: jax.random.uniform(jax.random.fold_in(k, p)))(keys_S, positions_S)


def sample(
    logits_SV: jax.Array, uniforms_S: jax.Array, config: SamplingConfig
) -> tuple[jax.Array, jax.Array]:
    """(tokens [S], logprobs [S]) with logprobs = log_softmax(logits / temperature), unfiltered."""
    if config.temperature > 0:
        logits_SV = logits_SV / config.temperature
    lse_S = jax.nn.logsumexp(logits_SV, axis=-1)
    if config.temperature == 0:
        tokens_S = jnp.argmax(logits_SV, axis=-1)
    else:
        tokens_S = _inverse_cdf(filter_logits(logits_SV, config), uniforms_S)
    chosen_S = jnp.take_along_axis(logits_SV, tokens_S[:, None], axis=-1)[:, 0]
    return tokens_S.astype(jnp.int32), chosen_S - lse_S


def filter_logits(logits_SV: jax.Array, config: SamplingConfig) -> jax.Array:
    """Exact top-k, then top-p of what is left, then min-p: the others become -inf."""
    if config.top_k or config.top_p < 1:
        order_SV = jnp.argsort(logits_SV, axis=-1, descending=True, stable=True)
        ranked_SV = jnp.take_along_axis(logits_SV, order_SV, axis=-1)
        keep_SV = jnp.ones(ranked_SV.shape, bool)
        if config.top_k:
            keep_SV &= jnp.arange(ranked_SV.shape[-1]) < config.top_k
        if config.top_p < 1:  # the smallest set of tokens whose probability reaches top_p
            probs_SV = jax.nn.softmax(jnp.where(keep_SV, ranked_SV, -jnp.inf), axis=-1)
            keep_SV &= jnp.cumsum(probs_SV, axis=-1) - probs_SV < config.top_p
        rows = jnp.arange(logits_SV.shape[0])[:, None]
        kept_SV = jnp.zeros_like(keep_SV).at[rows, order_SV].set(keep_SV)
        logits_SV = jnp.where(kept_SV, logits_SV, -jnp.inf)
    if config.min_p > 0:
        probs_SV = jax.nn.softmax(logits_SV, axis=-1)
        floor_S1 = config.min_p * probs_SV.max(axis=-1, keepdims=True)
        logits_SV = jnp.where(probs_SV >= floor_S1, logits_SV, -jnp.inf)
    return logits_SV


def _inverse_cdf(logits_SV: jax.Array, uniforms_S: jax.Array) -> jax.Array:
    """The first token whose cumulative probability exceeds the uniform number -> [S].

    One uniform number a row instead of one a vocabulary entry; the cumulative sum is taken over
    blocks first and then inside one block.
    """
    rows, vocab = logits_SV.shape
    probs_SV = jnp.exp(logits_SV - logits_SV.max(axis=-1, keepdims=True))
    blocks = -(-vocab // BLOCK)
    probs_SNB = jnp.pad(probs_SV, [(0, 0), (0, blocks * BLOCK - vocab)]).reshape(
        rows, blocks, BLOCK
    )
    sums_SN = probs_SNB.sum(axis=-1)
    cumulative_SN = jnp.cumsum(sums_SN, axis=-1)
    target_S = uniforms_S * cumulative_SN[:, -1]
    block_S = _first_above(cumulative_SN, sums_SN, target_S)
    before_S = jnp.take_along_axis(cumulative_SN - sums_SN, block_S[:, None], axis=-1)[:, 0]
    inside_SB = jnp.take_along_axis(probs_SNB, block_S[:, None, None], axis=1)[:, 0]
    place_S = _first_above(jnp.cumsum(inside_SB, axis=-1), inside_SB, target_S - before_S)
    return block_S * BLOCK + place_S


def _first_above(cumulative: jax.Array, mass: jax.Array, target: jax.Array) -> jax.Array:
    """First index whose cumulative mass exceeds the target; never one without mass."""
    above = (cumulative > target[:, None]) & (mass > 0)
    last = mass.shape[-1] - 1 - jnp.argmax(mass[:, ::-1] > 0, axis=-1)  # where rounding overshoots
    return jnp.where(above.any(axis=-1), jnp.argmax(above, axis=-1), last)
