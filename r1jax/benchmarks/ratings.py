"""Codeforces: a rating from the verdicts of contests, and its percentile.

The paper: ten Div. 2 contests with tests by experts, a rating and the share of people below it. How
it counts several samples is not printed. Here it is as CodeElo does (Quan et al. 2025): samples are
submissions in their order, the first right one solves the problem, each wrong one before it costs
50 points, or 10 of penalty where a contest counts problems. The time of writing costs nothing.

A participant of rating s is above one of rating r with probability 1 / (1 + 10^((r - s) / 400)).
The rating is the most likely r: there the expected number of people above it, summed over all
contests, is the number of those who were above; one with the same result counts half. Where nobody
or everybody was above there is no such r: then it is that of half a person above, or below. For a
single contest that is the equation of CodeElo, which takes the mean over contests.

Files: problems.jsonl has a line a problem, contests.jsonl a line a contest:

    {"contest_id": 2030, "index": "A", "problem": "...", "tests": [{"input": "3", "output": "6"}],
     "time_limit_s": 2, "memory_limit_mb": 256}
    {"contest_id": 2030, "problems": {"A": 500, "B": 1000},
     "standings": [{"rating": 1512, "score": 1460, "penalty": 0}, {"rating": null, "score": 0}]}

`problems` has all of the contest's, by the points of each; null where it counts problems. `rating`
is that before the contest; people without one (null) are left out.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np

from r1jax.benchmarks.code import PROGRAM, stated_limits
from r1jax.benchmarks.kind import Kind, Scores
from r1jax.config import ConfigError, DataError
from r1jax.files import absolute, numbered_jsonl, read_rows
from r1jax.types import Example, Sample

FAR = 4_000.0  # no rating is so far from all of the participants'
POINTS_LOST, PENALTY = 50, 10  # by a wrong submission
SLOPE = math.log(10) / 400  # of the logistic function, per point of rating


@dataclass(frozen=True)
class Contest:
    """The people of one with a rating: their ratings, scores and penalties, float64 [N] each."""

    problems: Mapping[str, float | None]  # points by index
    ratings: np.ndarray
    scores: np.ndarray
    penalties: np.ndarray

    def above(self, score: float, penalty: float) -> float:
        """How many were better than this result; the same one counts half."""
        same = (self.scores == score) & (self.penalties == penalty)
        better = (self.scores > score) | ((self.scores == score) & (self.penalties < penalty))
        return float(better.sum() + same.sum() / 2)

    def result(self, verdicts: Mapping[str, Sequence[bool]]) -> tuple[float, float]:
        """(score, penalty) of submissions by problem, in their order."""
        score = penalty = 0.0
        for index, right in verdicts.items():
            if True not in right:
                continue
            wrong, points = list(right).index(True), self.problems[index]
            if points is None:
                score, penalty = score + 1, penalty + PENALTY * wrong
            else:
                score += max(0.0, points - POINTS_LOST * wrong)
        return score, penalty


def problems(
    path: str,
    attempts: int = 8,
    table: str | None = "../codeforces_test/ratings_2024.jsonl",
    instruction: str = PROGRAM,
    slower: float = 5.0,
) -> list[dict[str, Any]]:
    """Rows of the directory `path`, which has problems.jsonl and contests.jsonl.

    k samples of a problem are k // attempts tries at each contest, of so many submissions a problem
    (one try of k submissions where k is less). `table` has lines {"rating", "count"} of all people,
    relative to the directory; None: no percentile. Python gets `slower` times the time limits.
    """
    if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
        raise ConfigError(f"attempts {attempts!r} must be a whole number above 0")
    directory = absolute(path)
    contests = str(directory / "contests.jsonl")
    known = read_contests(contests)
    people = None if table is None else str(directory / table)
    if people is not None:
        read_table(people)
    rows, seen = [], set()
    file = str(directory / "problems.jsonl")
    keys = ("contest_id", "index", "problem", "tests")
    for number, row in enumerate(read_rows(file, *keys), start=1):
        contest, index = str(row["contest_id"]), str(row["index"])
        if contest not in known:
            raise DataError(f"{file}:{number}: {contests} has no contest_id {contest}")
        if index not in known[contest].problems:
            raise DataError(f"{file}:{number}: contest {contest} of {contests} has no {index!r}")
        if (contest, index) in seen:
            raise DataError(f"{file}:{number}: problem {contest}{index} is there twice")
        seen.add((contest, index))
        limits = stated_limits(row["problem"], slower)
        if "time_limit_s" in row:
            limits["time_limit_s"] = slower * row["time_limit_s"]
        if "memory_limit_mb" in row:
            limits["memory_limit_mb"] = row["memory_limit_mb"]
        rows.append(
            {
                "id": f"codeforces/{contest}{index}",
                "prompt": f"{row['problem'].strip()}\n\n{instruction}",
                "answer": "",
                "task": "code",
                "tests": row["tests"],
                "contest": contest,
                "index": index,
                "contests": contests,
                "attempts": attempts,
                "table": people,
            }
            | limits
        )
    return rows


@lru_cache(maxsize=2)
def read_contests(path: str) -> dict[str, Contest]:
    """Contests by their id; DataError with file and line for what is missing."""
    found: dict[str, Contest] = {}
    for number, row in numbered_jsonl(path):
        where = f"{path}:{number}"
        if missing := [k for k in ("contest_id", "problems", "standings") if k not in row]:
            raise DataError(f"{where} has no key {missing[0]!r}; it has {', '.join(row)}")
        name, points = str(row["contest_id"]), row["problems"]
        if name in found:
            raise DataError(f"{where}: contest {name} is there twice")
        if not isinstance(points, dict) or not all(
            p is None or _is_number(p) for p in points.values()
        ):
            raise DataError(f"{where}: problems must be points (or null) by index: {points!r}")
        people = [_person(f"{where}: standings {i}", x) for i, x in enumerate(row["standings"])]
        rated = [person for person in people if person is not None]
        if not rated:
            raise DataError(f"{where}: nobody in the standings of contest {name} has a rating")
        columns = np.array(rated, np.float64).T
        found[name] = Contest(points, *columns)
    return found


def _person(where: str, row: Any) -> tuple[float, float, float] | None:
    """(rating, score, penalty), or None of somebody without a rating."""
    if not isinstance(row, dict) or "rating" not in row or "score" not in row:
        raise DataError(f'{where} must be {{"rating", "score", "penalty"}}: {str(row)[:80]}')
    if row["rating"] is None:
        return None
    values = row["rating"], row["score"], row.get("penalty", 0)
    if not all(map(_is_number, values)):
        raise DataError(f"{where}: rating, score and penalty must be numbers: {str(row)[:80]}")
    return values


def _is_number(value: Any) -> bool:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and math.isfinite(value)


def most_likely(contests: Sequence[Contest], above: Sequence[float]) -> float:
    """The rating at which as many are expected above as there were, in all contests together."""
    low = min(float(contest.ratings.min()) for contest in contests) - FAR
    high = max(float(contest.ratings.max()) for contest in contests) + FAR
    wanted = sum(above)
    if _is_extreme(contests, above):
        wanted = 0.5 if wanted == 0 else wanted - 0.5
    for _ in range(60):  # what is expected falls as the rating grows
        middle = (low + high) / 2
        if sum(float(expected(c, middle).sum()) for c in contests) > wanted:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _is_extreme(contests: Sequence[Contest], above: Sequence[float]) -> bool:
    """Whether nobody was above, or everybody."""
    return sum(above) in (0, sum(contest.ratings.size for contest in contests))


def expected(contest: Contest, rating: float) -> np.ndarray:
    """How probably each participant is above somebody of this rating, [N]."""
    return 1 / (1 + 10.0 ** ((rating - contest.ratings) / 400))


def standard_error(contests: Sequence[Contest], above: Sequence[float], rating: float) -> float:
    """Of the most likely rating. People of one contest meet the same performance, so contests are
    what is independent: the sandwich estimator with n / (n - 1). nan for one contest, or
    where nobody was above, or everybody."""
    if len(contests) < 2 or _is_extreme(contests, above):
        return math.nan
    chances = [expected(contest, rating) for contest in contests]
    curvature = SLOPE * sum(float((p * (1 - p)).sum()) for p in chances)
    off = [float(p.sum()) - a for p, a in zip(chances, above, strict=True)]
    n = len(contests)
    return math.sqrt(n / (n - 1) * sum(x * x for x in off)) / curvature


@lru_cache(maxsize=2)
def read_table(path: str) -> tuple[list[float], list[int]]:
    """(ratings in order, how many people have at most each) of lines {"rating", "count"}."""
    pairs = []
    for number, row in enumerate(read_rows(path, "rating", "count"), start=1):
        try:
            pairs.append((float(row["rating"]), int(row["count"])))
        except (TypeError, ValueError):
            raise DataError(f"{path}:{number}: rating and count must be numbers") from None
    pairs.sort()
    return [rating for rating, _ in pairs], list(accumulate(count for _, count in pairs))


def percentile(rating: float, table: tuple[Sequence[float], Sequence[int]]) -> float:
    """Percent of the people of a table (read_table) whose rating is below this one."""
    ratings, counts = table
    place = bisect_left(ratings, rating)
    return 100.0 * (counts[place - 1] if place else 0) / counts[-1]


def codeforces_rating(examples: Sequence[Example], samples: Sequence[Sample]) -> Scores:
    """rating, percentile, their standard errors, and CodeElo's mean over contests.

    A problem of a contest that is not among the examples counts as not solved;
    `unasked_problems` says how many there are.
    """
    verdicts: dict[str, dict[str, list[bool]]] = defaultdict(dict)
    for number, example in enumerate(examples):
        mine = [sample for sample in samples if sample.prompt_index == number]
        right = [
            sample.reward_breakdown["accuracy"] == 1 and sample.failure is None
            for sample in sorted(mine, key=lambda sample: sample.sample_index)
        ]
        verdicts[example.metadata["contest"]][example.metadata["index"]] = right
    about = examples[0].metadata
    known = read_contests(about["contests"])
    contests = [known[name] for name in verdicts]
    above = [
        _mean_above(known[name], by_problem, about["attempts"])
        for name, by_problem in verdicts.items()
    ]
    rating = most_likely(contests, above)
    error = standard_error(contests, above, rating)
    alone = [most_likely([c], [a]) for c, a in zip(contests, above, strict=True)]
    scores = {
        "rating": rating,
        "rating_se": error,
        "rating_mean_of_contests": float(np.mean(alone)),
        "contests": len(contests),
        "unasked_problems": sum(len(c.problems) for c in contests) - len(examples),
    }
    for name, own in zip(verdicts, alone, strict=True):
        scores[f"rating/contest/{name}"] = own
    if about["table"] is not None:
        table = read_table(about["table"])
        scores["percentile"] = percentile(rating, table)
        ends = [percentile(rating + sign * error, table) for sign in (1, -1)]
        scores["percentile_se"] = math.nan if math.isnan(error) else (ends[0] - ends[1]) / 2
    return scores


def _mean_above(contest: Contest, verdicts: Mapping[str, Sequence[bool]], attempts: int) -> float:
    """How many were above, on average over the tries that the samples make."""
    k = min(map(len, verdicts.values()))
    size = min(attempts, k)
    tries = [
        {index: right[start : start + size] for index, right in verdicts.items()}
        for start in range(0, k - size + 1, size)
    ]
    return float(np.mean([contest.above(*contest.result(each)) for each in tries]))


KINDS: dict[str, Kind] = {
    "codeforces": Kind(
        "Codeforces",
        problems,
        "codeforces",
        0,
        16,
        "ten Div. 2 contests with hidden tests, which the paper does not publish",
        "our instruction behind the problem; CodeElo's counting of up to 8 submissions (16 samples"
        " are two tries), the most likely rating over all contests, people below it by the table",
        needs="codeforces/problems.jsonl and contests.jsonl (benchmarks/ratings.py says what is in"
        " them), and codeforces_test/ratings_2024.jsonl (rating, count)",
        metric="rating",
        scale=1.0,
        statistic=codeforces_rating,
    ),
}
