"""From logits to a token and its log-probability.

Shape legend: S rows (slots), V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from r1jax.config import ConfigError

BLOCK = 128  # vocabulary entries summed at once by the inverse-CDF sampler


@dataclass(frozen=True)
class SamplingConfig:
    """How completions are drawn. Log-probabilities are always those without the filters."""

    max_tokens: int = 256  # of a completion; a longer one is cut
    temperature: float = 1.0  # 0 = greedy
    top_k: int = 0  # the likeliest tokens only; 0 = all
    top_p: float = 1.0  # the smallest set of tokens with this probability; 1 = all
    min_p: float = 0.0  # tokens of at least this share of the likeliest's probability
    stop: tuple[str, ...] = ()  # texts; a completion ends with the token that completes one

    def __post_init__(self) -> None:
        for name, ok, right in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < math.inf, "at least 0 and finite"),
            ("top_k", self.top_k >= 0, "at least 0 (0 = all)"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("min_p", 0 <= self.min_p <= 1, "in [0, 1]"),
            ("stop", all(self.stop), "made of texts that are not empty"),
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
    if config.temperature not in (0, 1):
        logits_SV = logits_SV / config.temperature
    top_S1 = logits_SV.max(axis=-1, keepdims=True)
    probs_SV = jnp.exp(logits_SV - top_S1)
    sums_SN = _block_sums(probs_SV)
    lse_S = top_S1[:, 0] + jnp.log(sums_SN.sum(axis=-1))
    if config.temperature == 0:
        tokens_S = jnp.argmax(logits_SV, axis=-1)
    else:
        if config.filtered:
            probs_SV = jnp.where(kept(logits_SV, config), probs_SV, 0.0)
            sums_SN = _block_sums(probs_SV)
        tokens_S = _inverse_cdf(probs_SV, sums_SN, uniforms_S)
    chosen_S = jnp.take_along_axis(logits_SV, tokens_S[:, None], axis=-1)[:, 0]
    return tokens_S.astype(jnp.int32), chosen_S - lse_S


def kept(logits_SV: jax.Array, config: SamplingConfig) -> jax.Array:
    """Exact top-k, then top-p of what is left, then min-p -> bool [S, V], who may be drawn.

    Among equal logits the first ones are kept.
    """
    keep_SV = jnp.ones(logits_SV.shape, bool)
    if config.top_k and config.top_k < logits_SV.shape[-1]:
        keep_SV = _best(logits_SV, keep_SV.astype(jnp.float32), jnp.float32(config.top_k))
    if config.top_p < 1:  # the smallest set of tokens whose probability reaches top_p
        probs_SV = jax.nn.softmax(jnp.where(keep_SV, logits_SV, -jnp.inf), axis=-1)
        keep_SV &= _best(logits_SV, probs_SV, jnp.float32(config.top_p))
    if config.min_p > 0:
        probs_SV = jax.nn.softmax(jnp.where(keep_SV, logits_SV, -jnp.inf), axis=-1)
        keep_SV &= probs_SV >= config.min_p * probs_SV.max(axis=-1, keepdims=True)
    return keep_SV


def _best(values_SV: jax.Array, mass_SV: jax.Array, target: jax.Array) -> jax.Array:
    """The fewest of the largest values whose mass reaches the target -> bool [S, V].

    Without a sort (which takes longer than the model): floats are ordered like the integers that
    they are made of, and 32 halvings of those find the smallest value that is needed.
    """
    order_SV = jax.lax.bitcast_convert_type(values_SV.astype(jnp.float32), jnp.int32)
    order_SV = jnp.where(order_SV < 0, order_SV ^ 0x7FFFFFFF, order_SV)

    def mass_from(floor_S: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(order_SV >= floor_S[:, None], mass_SV, 0.0), axis=-1)

    def halve(_: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_S, high_S = bounds  # mass_from(low) >= target > mass_from(high)
        middle_S = (low_S & high_S) + ((low_S ^ high_S) >> 1)  # no overflow
        enough_S = mass_from(middle_S) >= target
        return jnp.where(enough_S, middle_S, low_S), jnp.where(enough_S, high_S, middle_S)

    rows = values_SV.shape[0]
    bounds = jnp.full(rows, -(2**31), jnp.int32), jnp.full(rows, 2**31 - 1, jnp.int32)
    floor_S1 = jax.lax.fori_loop(0, 32, halve, bounds)[0][:, None]
    above_SV, equal_SV = order_SV > floor_S1, order_SV == floor_S1
    missing_S1 = target - jnp.sum(jnp.where(above_SV, mass_SV, 0.0), axis=-1, keepdims=True)
    tied_SV = jnp.where(equal_SV, mass_SV, 0.0)
    return above_SV | (equal_SV & (jnp.cumsum(tied_SV, axis=-1) - tied_SV < missing_S1))


def _block_sums(probs_SV: jax.Array) -> jax.Array:
    return _blocks(probs_SV).sum(axis=-1)


def _blocks(probs_SV: jax.Array) -> jax.Array:
    """[S, V] -> [S, V / BLOCK, BLOCK], the rest filled with zeros."""
    rows, vocab = probs_SV.shape
    missing = -vocab % BLOCK
    if missing:
        probs_SV = jnp.pad(probs_SV, [(0, 0), (0, missing)])
    return probs_SV.reshape(rows, -1, BLOCK)


def _inverse_cdf(probs_SV: jax.Array, sums_SN: jax.Array, uniforms_S: jax.Array) -> jax.Array:
    """The first token whose cumulative probability exceeds the uniform number -> [S].

    One uniform number a row instead of one a vocabulary entry; the cumulative sum is taken over
    blocks first and then inside one block. The probabilities need no common denominator.
    """
    cumulative_SN = jnp.cumsum(sums_SN, axis=-1)
    target_S = uniforms_S * cumulative_SN[:, -1]
    block_S = _first_above(cumulative_SN, sums_SN, target_S)
    before_S = jnp.take_along_axis(cumulative_SN - sums_SN, block_S[:, None], axis=-1)[:, 0]
    inside_SB = jnp.take_along_axis(_blocks(probs_SV), block_S[:, None, None], axis=1)[:, 0]
    place_S = _first_above(jnp.cumsum(inside_SB, axis=-1), inside_SB, target_S - before_S)
    return block_S * BLOCK + place_S


def _first_above(cumulative: jax.Array, mass: jax.Array, target: jax.Array) -> jax.Array:
    """First index whose cumulative mass exceeds the target; never one without mass."""
    above = (cumulative > target[:, None]) & (mass > 0)
    last = mass.shape[-1] - 1 - jnp.argmax(mass[:, ::-1] > 0, axis=-1)  # where rounding overshoots
    return jnp.where(above.any(axis=-1), jnp.argmax(above, axis=-1), last)
