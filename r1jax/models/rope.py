"""Rotary positions."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.models.config import ModelConfig, RopeScaling

SinCos = tuple[jax.Array, jax.Array]


def rotary(positions_BL: jax.Array, config: ModelConfig) -> SinCos:
    """(sin, cos) of the rotary angles, float32 [B, L, 1, P/2]; the same for all layers."""
    half, scaling = config.rope_dim // 2, config.rope_scaling
    frequencies = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling is not None:
        frequencies *= jnp.asarray(_stretched(config, scaling), jnp.float32)
    angles = positions_BL[..., None, None].astype(jnp.float32) * frequencies
    amplitude = 1.0 if scaling is None else scaling.amplitude
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    return (sin, cos) if amplitude == 1.0 else (sin * amplitude, cos * amplitude)


def _stretched(config: ModelConfig, scaling: RopeScaling) -> np.ndarray:
    """What each frequency is multiplied by [P/2]: between 1 / factor and 1."""
    half = config.rope_dim // 2
    if scaling.kind == "linear":
        return np.full(half, 1 / scaling.factor)
    if scaling.kind == "llama3":
        turns = (
            scaling.original_length / (2 * math.pi) * config.rope_theta ** -(np.arange(half) / half)
        )  # of each pair, in a sequence of pretraining
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = np.clip((turns - low) / (high - low), 0, 1)
    else:

        def pair_that_turns(times: float) -> float:
            """Which pair turns so often in a sequence of pretraining."""
            turns_of_first = scaling.original_length / (2 * math.pi)
            return half * math.log(turns_of_first / times) / math.log(config.rope_theta)

        low = max(math.floor(pair_that_turns(scaling.beta_fast)), 0)
        high = min(math.ceil(pair_that_turns(scaling.beta_slow)), config.rope_dim - 1)
        kept = 1 - np.clip((np.arange(half) - low) / max(high - low, 1e-3), 0, 1)
    return kept + (1 - kept) / scaling.factor


def rope(x_BLHN: jax.Array, sin_cos: SinCos, interleaved: bool = False) -> jax.Array:
    """Rotary embedding in the half-split convention of Hugging Face (dims i and i + N/2 pair).

    `interleaved` takes dims 2 i and 2 i + 1 as pairs, as DeepSeek's weights have them, and gives
    them apart: products of queries and keys are the same in any order.
    """
    sin, cos = sin_cos
    x32 = x_BLHN.astype(jnp.float32)
    if interleaved:
        first, second = x32[..., ::2], x32[..., 1::2]
    else:
        first, second = jnp.split(x32, 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BLHN.dtype)
