"""Group-relative advantages (R1 eq 3), and other ways to normalise several rewards."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.types import Batch


def group_advantages(
    rewards_BG: np.ndarray, std_eps: float = 1e-6, scale: bool = True
) -> np.ndarray:
    """(r - mean) / (std + std_eps) within each group of G completions -> float32 [B, G].

    `std` is the population's (divide by G). A group whose rewards are all equal has nothing to say
    and gets zeros; it still counts in the loss's denominator. `scale=False` leaves the division
    out (Dr. GRPO). The paper publishes neither std_eps nor the treatment of such groups.
    """
    rewards_BG = np.asarray(rewards_BG, np.float64)
    centred_BG = rewards_BG - rewards_BG.mean(axis=1, keepdims=True)
    if scale:
        centred_BG = centred_BG / (rewards_BG.std(axis=1, keepdims=True) + std_eps)
    same_B1 = (rewards_BG == rewards_BG[:, :1]).all(axis=1, keepdims=True)
    return np.where(same_B1, 0.0, centred_BG).astype(np.float32)


def decoupled_advantages(
    parts_PBG: np.ndarray, weights: Sequence[float], std_eps: float = 1e-6, scale: bool = True
) -> np.ndarray:
    """Each reward normalised within its group, then the weighted sum of them -> float32 [B, G].

    Summed first (`group_advantages` of the sum, the paper's way), different mixes of rewards with
    the same sum get the same advantage, and a reward of small variance drowns in one of large.
    """
    advantages_PBG = [group_advantages(part_BG, std_eps, scale) for part_BG in parts_PBG]
    return np.einsum("p,pbg->bg", weights, np.asarray(advantages_PBG, np.float64)).astype(
        np.float32
    )


def batch_normalised(advantages_BG: np.ndarray, std_eps: float = 1e-6) -> np.ndarray:
    """Advantages over the batch's population standard deviation -> float32 [B, G].

    Keeps their scale when the number of summed rewards grows (GDPO does this after the sum), and
    leaves zeros zero.
    """
    return (advantages_BG / (np.std(advantages_BG, dtype=np.float64) + std_eps)).astype(np.float32)


def token_advantages(
    values: jax.Array,
    batch: Batch,
    rewards_C: jax.Array,
    penalties: jax.Array,
    discount: float,
    gae_lambda: float,
) -> jax.Array:
    """Generalised advantage estimation over packed rows -> float32 like `values` [..., L].

    A completion earns its reward (rewards_C [C + 1]) with its last token, and every token loses its
    penalty. `values` are those of the states before the tokens; 0 outside of completions.
    """
    mask, ids = batch.loss_mask > 0, batch.completion_ids
    same = (ids[..., 1:] == ids[..., :-1]) & mask[..., 1:] & mask[..., :-1]
    no_more = jnp.zeros_like(mask[..., :1])
    follows = jnp.concatenate([same, no_more], axis=-1)  # the next token is of this completion too
    rewards = jnp.where(follows, 0.0, rewards_C[ids]) - penalties
    next_values = jnp.where(follows, jnp.roll(values, -1, axis=-1), 0.0)
    deltas = jnp.where(mask, rewards + discount * next_values - values, 0.0)

    def back(later: jax.Array, x: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        delta, goes_on = x
        now = delta + discount * gae_lambda * jnp.where(goes_on, later, 0.0)
        return now, now

    by_place = (jnp.moveaxis(deltas, -1, 0), jnp.moveaxis(follows, -1, 0))
    _, advantages = jax.lax.scan(back, jnp.zeros(values.shape[:-1]), by_place, reverse=True)
    return jnp.moveaxis(advantages, 0, -1)


def whitened(x: jax.Array, mask: jax.Array, eps: float = 1e-8) -> jax.Array:
    """To mean 0 and standard deviation 1 over what the mask counts."""
    count = jnp.maximum(mask.sum(), 1.0)
    centred = x - jnp.sum(x * mask) / count
    return centred / jnp.sqrt(jnp.sum(mask * centred**2) / count + eps)
