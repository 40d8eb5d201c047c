"""AlpacaEval's length-controlled win rate: what it would be with answers of equal length.

Dubois et al. 2024 (arXiv:2404.04475): a logistic regression of the preferences on the difference
in length, on how hard the instruction is for the baseline, and on which model it is. The win rate
is the mean of its predictions with the length's term at zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

FOLDS = 5  # of the cross-validation
STRENGTHS = np.logspace(-4, 4, 10)  # of the data against the L1 penalty, to choose from
STEPS = 50  # of Newton's method, at most
TOLERANCE = 1e-7  # of coefficients
GAMED_WEIGHT = 0.1  # of a row of the gamed baselines: 0.2, shared by two of them
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """N preferences and what is known of them: arrays [N]."""

    preferences: Floats  # 1: the model's answer won, 0: the baseline's
    lengths: Floats  # characters of the baseline's answer less those of the model's
    # Of the instruction, as published; without it its term is left out.
    difficulties: Floats | None = None
    # (length difference in standard deviations, preference, difficulty) of the baseline's own
    # verbose and concise answers against itself [M, 3]: they hold the length's term where the
    # model alone says little of it.
    gamed: Floats | None = None


def win_rate(rows: Rows) -> tuple[float, float]:
    """The length-controlled win rate, 0 to 1, and the standard error of the predictions' mean.

    With difficulties and the gamed rows it is alpaca_eval's length_controlled_v1, with difficulties
    alone its length_controlled_noreg, with neither length_controlled_minimal. Raises ValueError for
    fewer than FOLDS rows.
    """
    if (count := len(rows.preferences)) < FOLDS:
        raise ValueError(f"a fit to {count} preferences is not defined")
    deviation = rows.lengths.std(ddof=1)
    scaled = rows.lengths / deviation if deviation else np.zeros(count)
    hard = np.zeros(count) if rows.difficulties is None else rows.difficulties
    features = np.stack([np.tanh(scaled), hard, np.ones(count)], axis=1)
    targets, weights = rows.preferences, np.ones(count)
    equal = features * [0.0, 1.0, 1.0]  # as if all answers were equally long
    if rows.gamed is not None:
        scaled, preferences, hard = rows.gamed.T
        more = np.stack([np.tanh(scaled), hard, np.zeros(len(hard))], axis=1)
        features = np.concatenate([more, features])
        targets = np.concatenate([preferences, targets])
        weights = np.concatenate([np.full(len(hard), GAMED_WEIGHT), weights])
    predicted = expit(equal @ fit(features, targets, weights))
    return float(predicted.mean()), float(predicted.std(ddof=1) / np.sqrt(count))


def fit(features: Floats, targets: Floats, weights: Floats) -> Floats:
    """Coefficients [F] of an L1-penalised logistic regression without intercept.

    The penalty is that of STRENGTHS with the least mean loss over FOLDS left-out parts.
    """
    folds = np.arange(len(targets)) % FOLDS

    def left_out(strength: float) -> float:
        losses = []
        for fold in range(FOLDS):
            out = folds == fold
            found = _penalised(features[~out], targets[~out], weights[~out], strength)
            losses.append(np.mean(_losses(features[out] @ found, targets[out]) * weights[out]))
        return float(np.mean(losses))

    best = min(STRENGTHS, key=left_out)
    return _penalised(features, targets, weights, best)


def _penalised(features: Floats, targets: Floats, weights: Floats, strength: float) -> Floats:
    """Least |w|_1 + strength * sum of weighted losses, by Newton's method: each step is the least
    point of the quadratic model with the penalty, halved until it leads downwards."""

    def objective(found: Floats) -> float:
        loss = (weights * _losses(features @ found, targets)).sum()
        return float(np.abs(found).sum() + strength * loss)

    found = np.zeros(features.shape[1])
    for _ in range(STEPS):
        shares = expit(features @ found)
        slope = strength * features.T @ (weights * (shares - targets))
        spread = strength * weights * shares * (1 - shares)
        step = _least(found, slope, (features.T * spread) @ features) - found
        before = objective(found)
        while objective(found + step) > before and np.abs(step).max() > TOLERANCE:
            step = step / 2
        found = found + step
        if np.abs(step).max() <= TOLERANCE:
            break
    return found


def _least(start: Floats, slope: Floats, curvature: Floats) -> Floats:
    """Where slope (w - start) + curvature (w - start)^2 / 2 + |w|_1 is least, by coordinates."""
    found = start.copy()
    diagonal = np.diag(curvature) + 1e-12  # of a feature that is zero everywhere
    for _ in range(10 * STEPS):
        before = found.copy()
        for i in range(len(found)):
            target = found[i] - (slope[i] + curvature[i] @ (found - start)) / diagonal[i]
            found[i] = np.sign(target) * max(abs(target) - 1 / diagonal[i], 0.0)
        if np.abs(found - before).max() <= TOLERANCE:
            break
    return found


def _losses(logits: Floats, targets: Floats) -> Floats:
    """Cross entropy [N] with targets that may be shares."""
    losses: Floats = np.logaddexp(0, logits) - targets * logits
    return losses


def gamed_rows(metadata: Sequence[Mapping[str, Any]]) -> Floats | None:
    """Those of `Rows.gamed` out of examples' "gamed" pairs; None where one has none."""
    rows = []
    for about in metadata:
        if "gamed" not in about:
            return None
        hard = about["instruction_difficulty"]
        rows += [[*pair, hard] for pair in about["gamed"]]
    return np.asarray(rows, np.float64)
