"""Ratings from verdicts, against contests worked out by hand."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r1jax.benchmarks import ratings
from r1jax.benchmarks.ratings import (
    Contest,
    codeforces_rating,
    most_likely,
    percentile,
    problems,
    read_table,
    standard_error,
)
from r1jax.config import ConfigError, DataError
from r1jax.data.datasets import to_example
from r1jax.tasks import check_example
from r1jax.types import Sample

SHARED = Path(__file__).parents[2] / "shared/data"
TABLE = [{"rating": "1000", "count": 3}, {"rating": 900, "count": 1}, {"rating": 2000, "count": 4}]


def contest(*people: tuple[float, float, float], **points: float | None) -> Contest:
    return Contest(points, *np.array(people, np.float64).T)


def test_one_above_and_one_below_of_the_same_rating() -> None:
    """Of two people rated 1500 one is above: 2 p = 1, so the rating is theirs."""
    found = contest((1500, 500, 0), (1500, 0, 0), A=300)
    assert most_likely([found], [found.above(300, 0)]) == pytest.approx(1500)


def test_one_of_four_above() -> None:
    """Four rated 1200, one above: p = 1/4 = 1 / (1 + 10^(d / 400)), so 10^(d / 400) = 3."""
    found = contest(*[(1200, score, 0) for score in (900, 400, 300, 200)], A=500)
    wanted = 1200 + 400 * math.log10(3)
    assert most_likely([found], [found.above(500, 0)]) == pytest.approx(wanted)


def test_two_different_people() -> None:
    """1000 and 1800, one above: by symmetry the rating is in the middle, 1400."""
    found = contest((1000, 0, 0), (1800, 900, 0), A=500)
    assert most_likely([found], [found.above(500, 0)]) == pytest.approx(1400)


def test_ties_count_half() -> None:
    """Two of 1600, both with the same result: 2 p = 1."""
    found = contest((1600, 2, 30), (1600, 2, 30), A=None)
    assert found.above(2, 30) == 1
    assert most_likely([found], [1]) == pytest.approx(1600)
    assert (found.above(2, 40), found.above(2, 20), found.above(3, 90)) == (2, 0, 0)


def test_nobody_and_everybody_above() -> None:
    """Of two people rated 1500 half a one: p = 1/4, or p = 3/4."""
    found = contest((1500, 100, 0), (1500, 50, 0), A=500)
    wanted = 400 * math.log10(3)
    assert most_likely([found], [found.above(500, 0)]) == pytest.approx(1500 + wanted)
    assert most_likely([found], [found.above(0, 0)]) == pytest.approx(1500 - wanted)
    nothing = contest((1500, 100, 0), (1500, 0, 0), A=500)  # solved nothing, like one of two
    assert nothing.above(0, 0) == 1.5
    assert most_likely([nothing], [1.5]) == pytest.approx(1500 - wanted)


def test_contests_together() -> None:
    """Three rated 1200, two above: p = 2/3; one rated 1200, below: together 2 of 4 are above."""
    one = contest((1200, 9, 0), (1200, 8, 0), (1200, 0, 0), A=5)
    two = contest((1200, 0, 0), A=5)
    assert most_likely([one, two], [2, 0]) == pytest.approx(1200)
    # p = 1/2 everywhere: off by 3/2 - 2 and 1/2 - 0; sqrt(2 * (1/4 + 1/4)) over 4 * slope / 4
    wanted = 1 / (math.log(10) / 400)
    assert standard_error([one, two], [2, 0], 1200) == pytest.approx(wanted)
    assert math.isnan(standard_error([two], [0.5], 1200))
    assert math.isnan(standard_error([one, two], [0, 0], 1500))  # nobody above


@pytest.mark.parametrize(
    ("points", "right", "result"),
    [
        (500, [True], (500, 0)),
        (500, [False, False, True], (400, 0)),
        (500, [False] * 8, (0, 0)),
        (60, [False, False, True], (0, 0)),  # no fewer than none
        (None, [False, False, True, True], (1, 20)),
        (None, [False], (0, 0)),
    ],
)
def test_results(points: float | None, right: list[bool], result: tuple[float, float]) -> None:
    assert contest((1, 1, 1), A=points).result({"A": right}) == result


def test_percentiles(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "table.jsonl", TABLE))
    assert table == ([900, 1000, 2000], [1, 4, 8])
    asked = (800, 900, 901, 1000, 1500, 2000, 2001)
    assert [percentile(r, table) for r in asked] == [0, 0, 12.5, 12.5, 50, 50, 100]
    bad = write(tmp_path / "bad.jsonl", [{"rating": "x", "count": 1}])
    with pytest.raises(DataError, match="bad.jsonl:1: rating and count must be numbers"):
        read_table(bad)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data")
def test_percentiles_of_the_paper() -> None:
    """Above 1,650 the public table is the paper's within a point; below it has fewer people."""
    table = read_table(str(SHARED / "codeforces_test/ratings_2024.jsonl"))
    for rating, printed in ((2029, 96.3), (2061, 96.6), (1820, 93.4), (1746, 92.1), (1687, 90.5)):
        assert percentile(rating, table) == pytest.approx(printed, abs=1)


# -- from files to scores ----


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def problem(contest_id: int, index: str, **more: Any) -> dict[str, Any]:
    tests = [{"input": "1", "output": "1"}]
    return {"contest_id": contest_id, "index": index, "problem": "Say 1.", "tests": tests} | more


def standing(rating: float | None, score: float, **more: float) -> dict[str, Any]:
    return {"rating": rating, "score": score} | more


CONTESTS = [
    {"contest_id": 7, "problems": {"A": 500, "B": 1000},
     "standings": [standing(1500, 1400), standing(None, 5000), standing(1500, 100)]},
    {"contest_id": 8, "problems": {"A": None},
     "standings": [standing(1500, 1, penalty=10), standing(1500, 1, penalty=0)]},
]  # fmt: skip
PROBLEMS = [
    problem(7, "A"), problem(7, "B", time_limit_s=2, memory_limit_mb=256), problem(8, "A"),
]  # fmt: skip


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write(tmp_path / "contests.jsonl", CONTESTS)
    write(tmp_path / "problems.jsonl", PROBLEMS)
    write(tmp_path / "table.jsonl", TABLE)
    return tmp_path


def samples(rights: list[list[int]]) -> list[Sample]:
    """Verdicts by problem, the last sample first."""
    return [
        Sample("e", p, s, "", 1, "stop", {"accuracy": float(right)})
        for p, row in enumerate(rights)
        for s, right in reversed(list(enumerate(row)))
    ]


def test_from_samples_to_a_rating(directory: Path) -> None:
    rows = problems(str(directory), attempts=2, table="table.jsonl")
    examples = [to_example(row, i, "rows") for i, row in enumerate(rows)]
    for example in examples:
        check_example(example)
    assert (rows[1]["time_limit_s"], rows[1]["memory_limit_mb"]) == (10, 256)
    # Two tries of two submissions. Contest 7: 450 and 500, one of two above in both. Contest 8:
    # solved at the second (as good as one, worse than the other: 1.5), not at all (2): 1.75 of 2.
    # Together 2.75 of 4 people of 1500 are above.
    found = codeforces_rating(examples, samples([[0, 1, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]]))
    p = 2.75 / 4
    assert found["rating"] == pytest.approx(1500 + 400 * math.log10((1 - p) / p))
    assert found["rating/contest/7"] == pytest.approx(1500)
    assert found["rating/contest/8"] == pytest.approx(1500 - 400 * math.log10(7))  # p = 7/8
    assert found["rating_mean_of_contests"] == pytest.approx(1500 - 200 * math.log10(7))
    off = 2 * p - 1, 2 * p - 1.75
    slope = math.log(10) / 400 * 4 * p * (1 - p)
    assert found["rating_se"] == pytest.approx(math.sqrt(2 * sum(x * x for x in off)) / slope)
    assert (found["contests"], found["unasked_problems"], found["percentile"]) == (2, 0, 50)


def test_what_is_not_asked_is_told(directory: Path) -> None:
    rows = problems(str(directory), table=None)
    found = codeforces_rating([to_example(rows[0], 0, "rows")], samples([[1]]))
    assert (found["unasked_problems"], found["contests"]) == (1, 1)
    assert "percentile" not in found
    assert math.isnan(found["rating_se"])
    assert found["rating"] == pytest.approx(1500)  # 500 points: one above, one below


def test_a_failure_is_a_wrong_submission(directory: Path) -> None:
    rows = problems(str(directory), table=None)
    failed = Sample("e", 0, 0, "", 1, "stop", {"accuracy": 1.0}, failure="timeout")
    found = codeforces_rating([to_example(rows[0], 0, "rows")], [failed])
    assert found["rating"] == pytest.approx(1500 - 400 * math.log10(3))  # half of two below


@pytest.mark.parametrize(
    ("file", "rows", "message"),
    [
        ("contests", CONTESTS[:1], "problems.jsonl:3: .*contests.jsonl has no contest_id 8"),
        ("problems", [problem(7, "C")], "problems.jsonl:1: contest 7 of .* has no 'C'"),
        ("problems", [problem(7, "A")] * 2, "problems.jsonl:2: problem 7A is there twice"),
        ("problems", [{"contest_id": 7}], "problems.jsonl:1 has no key 'index'"),
        ("contests", [{"contest_id": 7}], "contests.jsonl:1 has no key 'problems'"),
        ("contests", CONTESTS[:1] * 2, "contests.jsonl:2: contest 7 is there twice"),
        ("contests", [CONTESTS[0] | {"standings": [standing(None, 1)]}], "nobody in the standings"),
        ("contests", [CONTESTS[0] | {"standings": [{"rating": 1}]}], "standings 0 must be"),
        ("contests", [CONTESTS[0] | {"problems": ["A"]}], "must be points .or null. by index"),
        ("contests", [CONTESTS[0] | {"standings": [standing("x", 1)]}], "must be numbers"),
    ],
)  # fmt: skip
def test_refused_files(directory: Path, file: str, rows: list[Any], message: str) -> None:
    write(directory / f"{file}.jsonl", rows)
    ratings.read_contests.cache_clear()
    with pytest.raises(DataError, match=message):
        problems(str(directory), table=None)


def test_attempts_must_be_some(directory: Path) -> None:
    with pytest.raises(ConfigError, match="attempts 0 must be a whole number above 0"):
        problems(str(directory), attempts=0, table=None)
