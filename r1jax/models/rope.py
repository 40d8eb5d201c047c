"""Rotary positions."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rotary(positions_BL: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """(sin, cos) of the rotary angles, float32 [B, L, 1, N/2]; the same for all layers."""
    half = head_dim // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions_BL[..., None, None].astype(jnp.float32) * frequencies
    return jnp.sin(angles), jnp.cos(angles)


def rope(x_BLHN: jax.Array, sin_cos: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary embedding in the half-split convention of Hugging Face (dims i and i + N/2 pair)."""
    sin, cos = sin_cos
    first, second = jnp.split(x_BLHN.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BLHN.dtype)
