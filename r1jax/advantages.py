"""Group-relative advantages (R1 eq 3)."""

from __future__ import annotations

import numpy as np


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
