"""Two models on the same problems: the difference of their means, and whether it may be chance."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import stdtr

from r1jax.config import DataError
from r1jax.reports.runs import RunRecord
from r1jax.reports.table import Cell, Table

ACCURACY = "accuracy"


@dataclass(frozen=True)
class Difference:
    """Of the means of two models over the same problems."""

    mean: float
    error: float  # the standard error; nan for a single problem
    p: float  # two-sided
    problems: int


def paired_difference(one: Sequence[float], other: Sequence[float]) -> Difference:
    """`one` minus `other`, each a value a problem: the mean of its samples, in the same order.

    So samples of a problem are one cluster. p is that of Student's paired t test with problems - 1
    degrees of freedom. Where all differences are the same the test is not defined: p is 1 if they
    are 0, and else 2^(1 - problems), the chance of one sign for all. Raises ValueError for
    sequences of different lengths and for none.
    """
    if len(one) != len(other) or not len(one):
        raise ValueError(f"{len(one)} and {len(other)} problems are no pairs")
    differences = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    count, mean = len(differences), float(differences.mean())
    if count == 1:
        return Difference(mean, math.nan, math.nan, 1)
    error = float(differences.std(ddof=1) / math.sqrt(count))
    if error <= 1e-12 * max(1.0, abs(mean)):
        p = 1.0 if abs(mean) <= 1e-12 else 2.0 ** (1 - count)
        return Difference(mean, 0.0, p, count)
    return Difference(mean, error, float(2 * stdtr(count - 1, -abs(mean) / error)), count)


def problem_means(runs: Sequence[RunRecord], benchmark: str) -> dict[str, float]:
    """Accuracy by the problems' ids, each over all completions of all the runs.

    {} where a run has no completions of it, or other problems than the others, or they have no
    accuracy. Raises DataError with file and line for what is no completion.
    """
    sums: dict[str, list[float]] = {}
    first: set[str] | None = None
    for run in runs:
        seen = set()
        for problem, value in _accuracies(run, benchmark):
            seen.add(problem)
            total = sums.setdefault(problem, [0.0, 0.0])
            total[0], total[1] = total[0] + value, total[1] + 1
        if not seen or seen != (first or seen):
            return {}
        first = seen
    return {problem: total / count for problem, (total, count) in sums.items()}


def _accuracies(run: RunRecord, benchmark: str) -> list[tuple[str, float]]:
    """Line by line, as the files may be large; [] where there is none."""
    path = run.evaluations[-1].directory / f"{benchmark}.jsonl"
    found: list[tuple[str, float]] = []
    if not path.exists():
        return found
    with path.open("r") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                rewards = row["reward_breakdown"]
                if ACCURACY not in rewards:
                    return []
                found.append((str(row["example_id"]), float(rewards[ACCURACY])))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}:{number} is not a completion: {error!r}") from None
    return found


def paired_table(models: Mapping[str, Sequence[RunRecord]]) -> Table:
    """Every two models on every benchmark of both whose completions are there."""
    benchmarks = dict.fromkeys(
        name for runs in models.values() for run in runs for name in run.evaluations[-1].benchmarks
    )
    rows: list[Sequence[str | Cell]] = []
    others: list[str] = []
    for benchmark in benchmarks:
        having = {
            name: with_it
            for name, runs in models.items()
            if (with_it := [run for run in runs if benchmark in run.evaluations[-1].benchmarks])
        }
        if len(having) < 2:
            continue
        means = {name: problem_means(runs, benchmark) for name, runs in having.items()}
        for a, b in combinations([name for name, values in means.items() if values], 2):
            if means[a].keys() != means[b].keys():
                others.append(f"{benchmark} ({a}, {b})")
                continue
            problems = sorted(means[a])
            values = [[means[name][problem] for problem in problems] for name in (a, b)]
            found = paired_difference(*values)
            cells = [Cell(100 * float(np.mean(each))) for each in values]
            difference = Cell(100 * found.mean, 100 * found.error)
            tested = [Cell(found.p, None, 4), Cell(found.problems, None, 0)]
            rows.append([benchmark, a, b, *cells, difference, *tested])
    note = (
        "Only on the same problems. Difference ± its standard error over problems, a problem's"
        " samples taken together; p: Student's paired t test over problems, two-sided, not"
        " corrected for several comparisons."
    )
    if others:
        note += f" Not the same problems: {', '.join(others)}."
    header = ["Benchmark", "A", "B", "A pass@1 (%)", "B pass@1 (%)", "A minus B", "p", "problems"]
    return Table("paired", "Two models on the same problems", header, rows, note)
