"""The paper's claims against runs of ours: its numbers, ours over seeds, and a plain verdict.

A claims file has `claims() -> list[Claim]`, and may have `tables(runs) -> list[Table]` for what is
shown below them (experiments/mini/claims.py).

A comparison says that one number is smaller than another; both are measured once per seed.
Verdicts: `reproduced` where the difference has the paper's sign in every seed and its mean is more
than twice its standard error; `contrary` where the same holds of the other sign; `not reproduced`
otherwise; `not measured` without two seeds that have both numbers.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from etils import epath

from r1jax.config import DataError, load_module
from r1jax.files import absolute, write_atomic
from r1jax.reports.measured import read_runs, with_stages
from r1jax.reports.runs import RunRecord, end_mean
from r1jax.reports.table import MISSING, Cell, Table, to_markdown

REPRODUCED, CONTRARY = "reproduced", "contrary"
NOT_REPRODUCED, NOT_MEASURED, PARTLY = "not reproduced", "not measured", "partly reproduced"

BySeed = Mapping[str, float]
Runs = Mapping[str, RunRecord]  # all runs of the claims' directory, by their path below it
Measured = Callable[[Runs], BySeed]  # a number per seed


@dataclass(frozen=True)
class Comparison:
    """`smaller` is smaller than `larger`, says the paper; `paper` has its two numbers, scaled."""

    label: str
    paper: tuple[float, float]
    smaller: Measured
    larger: Measured
    scale: float = 100.0
    digits: int = 1


@dataclass(frozen=True)
class Claim:
    """What the paper says, where it prints it, and the runs that are compared with it."""

    text: str
    printed_in: str
    config: str
    comparisons: Sequence[Comparison]
    note: str = ""


# -- numbers out of runs ---------------------------------------------------------------------------


def by_seed(runs: Runs, pattern: str) -> dict[str, RunRecord]:
    """The runs whose path is the pattern, in which * stands for the seed."""
    parts = "([^/]*)".join(map(re.escape, pattern.split("*")))
    found = ((re.fullmatch(parts, path), run) for path, run in runs.items())
    return {match[1]: run for match, run in found if match}


def final(pattern: str, benchmark: str, metric: str) -> Measured:
    """A metric of the newest evaluation of each run."""

    def measured(runs: Runs) -> BySeed:
        found = {}
        for seed, run in by_seed(runs, pattern).items():
            values = run.evaluations[-1].benchmarks if run.evaluations else {}
            if metric in values.get(benchmark, {}):
                found[seed] = values[benchmark][metric]
        return found

    return measured


def curve(pattern: str, metric: str, end: str) -> Measured:
    """The `first` or `last` point of a curve; of a curve of training the mean over 5 % of it."""

    def measured(runs: Runs) -> BySeed:
        found = {}
        for seed, run in by_seed(runs, pattern).items():
            values = [line[metric] for line in run.metrics if metric in line]
            if values:
                found[seed] = end_mean(values, {"first": 0, "last": -1}[end], metric)
        return found

    return measured


def minus(one: Measured, other: Measured) -> Measured:
    """The difference of two numbers of the same seed."""

    def measured(runs: Runs) -> BySeed:
        a, b = one(runs), other(runs)
        return {seed: a[seed] - b[seed] for seed in a if seed in b}

    return measured


# -- verdicts --------------------------------------------------------------------------------------


def verdict(differences: Sequence[float]) -> str:
    """Of the differences larger - smaller, one per seed."""
    if len(differences) < 2:
        return NOT_MEASURED
    mean, error = fmean(differences), stdev(differences) / math.sqrt(len(differences))
    if abs(mean) <= 2 * error:
        return NOT_REPRODUCED
    if all(d > 0 for d in differences):
        return REPRODUCED
    return CONTRARY if all(d < 0 for d in differences) else NOT_REPRODUCED


def overall(verdicts: Sequence[str]) -> str:
    """Of a claim with several comparisons."""
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return PARTLY if REPRODUCED in verdicts else NOT_REPRODUCED


def judge(comparison: Comparison, runs: Runs) -> tuple[list[str | Cell], str]:
    """A line of the claim's table, and the verdict."""
    smaller, larger = comparison.smaller(runs), comparison.larger(runs)
    seeds = [seed for seed in smaller if seed in larger]
    differences = [(larger[s] - smaller[s]) * comparison.scale for s in seeds]
    found = verdict(differences)
    theirs = " → ".join(Cell(x, None, comparison.digits).text for x in comparison.paper)
    ours = [_cell([side[s] for s in seeds], comparison).text for side in (smaller, larger)]
    here = " → ".join(ours) if seeds else MISSING
    return [comparison.label, theirs, here, Cell(len(seeds), None, 0), found], found


def _cell(values: Sequence[float], comparison: Comparison) -> Cell:
    scaled = [value * comparison.scale for value in values]
    if not scaled:
        return Cell(None)
    return Cell(fmean(scaled), stdev(scaled) if len(scaled) > 1 else None, comparison.digits)


# -- the page --------------------------------------------------------------------------------------


def claims_page(path: str, root: epath.PathLike) -> str:
    """The claims of a file as Markdown: its docstring, the verdicts, what they rest on.

    Raises ConfigError where there is no such file, DataError where it has no claims().
    """
    module, _ = load_module(path)
    if not hasattr(module, "claims"):
        raise DataError(f"{path} has no claims()")
    runs = with_stages(read_runs(root))
    header = ["Measure (smaller → larger, says the paper)", "Paper", "Here", "Seeds", "Verdict"]
    summary: list[Sequence[str | Cell]] = []
    details = []
    for claim in module.claims():
        judged = [judge(comparison, runs) for comparison in claim.comparisons]
        whole = overall([found for _, found in judged])
        summary.append([claim.text, claim.printed_in, whole])
        table = Table("", claim.text, header, [line for line, _ in judged], claim.note)
        where = f"Paper: {claim.printed_in}. Config: `{claim.config}`.\n"
        details.append(f"{to_markdown(table)}\n{where}")
    counts = Counter(str(row[-1]) for row in summary)
    said = ", ".join(f"{count} {name}" for name, count in counts.items())
    first = Table("", f"Verdicts: {said}", ["Claim", "Paper", "Verdict"], summary)
    more = module.tables(runs) if hasattr(module, "tables") else []
    introduction = (module.__doc__ or "").strip() + "\n"
    return "\n".join([introduction, to_markdown(first), *details, *map(to_markdown, more)])


def write_claims(path: str, root: epath.PathLike, output: epath.PathLike) -> str:
    """Writes OUTPUT/README.md and returns its path."""
    target = absolute(output) / "README.md"
    write_atomic(target, claims_page(path, root).encode())
    return str(target)
