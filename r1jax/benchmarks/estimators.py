"""Statistics over k samples a problem: pass@k, cons@k, means with their standard errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that k of n samples, drawn without replacement, hold one of the c right ones.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) of Chen et al. 2021 (arXiv:2107.03374, eq 1),
    as a product. pass@1 is the mean c / n. Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {c} right among {n} samples is not defined")
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def mean_and_standard_error(per_problem: Sequence[float]) -> tuple[float, float]:
    """Mean over problems and its standard error: sample standard deviation / sqrt(problems).

    The error is nan for a single problem. Raises ValueError without any.
    """
    values = np.asarray(per_problem, np.float64)
    if values.size == 0:
        raise ValueError("the mean of no problems is not defined")
    if values.size == 1:
        return float(values[0]), float("nan")
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size))


def cons_at_k(
    answers: Sequence[str | None],
    right: Sequence[float],
    equivalent: Callable[[str, str], bool],
) -> float:
    """Majority vote of k samples of one problem: 1 if the commonest answer is right, else 0.

    `answers` are the final answers (None doesn't vote), `right` says of each sample whether it is
    right. Equivalent answers vote together, in the order seen: an answer joins the first cluster
    whose first answer it equals. Clusters with equally many votes share the credit, which is
    the expectation under a random choice among them; without votes the result is 0.
    """
    clusters: list[list[int]] = []
    for index, answer in enumerate(answers):
        if answer is not None:
            _cluster_of(answer, clusters, answers, equivalent).append(index)
    if not clusters:
        return 0.0
    most = max(map(len, clusters))
    winners = [cluster for cluster in clusters if len(cluster) == most]
    return float(np.mean([right[cluster[0]] for cluster in winners]))


def _cluster_of(
    answer: str,
    clusters: list[list[int]],
    answers: Sequence[str | None],
    equivalent: Callable[[str, str], bool],
) -> list[int]:
    for cluster in clusters:
        first = answers[cluster[0]]
        if first == answer or (first is not None and equivalent(first, answer)):
            return cluster
    clusters.append([])
    return clusters[-1]
