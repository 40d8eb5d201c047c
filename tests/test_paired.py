"""Two models on the same problems, against scipy and by hand."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

from r1jax.config import DataError
from r1jax.reports.paired import paired_difference, paired_table, problem_means
from r1jax.reports.paper_tables import models_of
from r1jax.reports.runs import RunRecord, read_run
from r1jax.reports.table import text_of
from r1jax.reports.write import make_tables


def test_the_test_is_scipys() -> None:
    rng = np.random.default_rng(0)
    for count in (2, 3, 30, 500):
        one, other = rng.random(count), rng.random(count)
        found, expected = paired_difference(one, other), ttest_rel(one, other)
        assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
        assert found.mean == pytest.approx((one - other).mean())
        assert found.mean / found.error == pytest.approx(expected.statistic)
        assert found.problems == count
        assert paired_difference(other, one).p == pytest.approx(found.p)


def test_by_hand() -> None:
    """Differences 1, 0, 0, 1: mean 1/2, variance 1/3, error 1/sqrt(12), t = sqrt(3), 3 degrees."""
    found = paired_difference([1, 0.5, 0, 1], [0, 0.5, 0, 0])
    assert (found.mean, found.problems) == (0.5, 4)
    assert found.error == pytest.approx(1 / math.sqrt(12))
    # The density of Student's t with 3 degrees has an integral of elementary functions.
    t = math.sqrt(3)
    tail = 0.5 - (t / math.sqrt(3) / (1 + t * t / 3) + math.atan(t / math.sqrt(3))) / math.pi
    assert found.p == pytest.approx(2 * tail)


def test_where_the_differences_do_not_vary() -> None:
    same = paired_difference([0.1, 0.7, 0.3], [0.1, 0.7, 0.3])
    assert (same.mean, same.error, same.p) == (0, 0, 1)
    always = paired_difference([0.3, 0.4, 0.9], [0.2, 0.3, 0.8])
    assert (always.error, always.p) == (0, 0.25)  # but for rounding all are 0.1
    one = paired_difference([1.0], [0.0])
    assert one.mean == 1 and math.isnan(one.error) and math.isnan(one.p)
    for pair in (([], []), ([1.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match="are no pairs"):
            paired_difference(*pair)


def test_the_level_is_kept() -> None:
    """Of 2,000 comparisons of two equal models on 40 problems about 5 % have p < 0.05."""
    rng = np.random.default_rng(1)
    difficulty = rng.random((2000, 40))
    a, b = (rng.binomial(4, difficulty) / 4 for _ in range(2))
    ps = [paired_difference(x, y).p for x, y in zip(a, b, strict=True)]
    assert 0.035 < np.mean(np.array(ps) < 0.05) < 0.065


def evaluation(
    path: Path,
    right: Mapping[str, Sequence[float]],
    seed: int = 0,
    model: str = "",
    reward: str = "accuracy",
) -> RunRecord:
    """Completions in the order in which they came: not that of the problems."""
    path.mkdir(parents=True)
    k = len(next(iter(right.values())))
    values = {"problems": len(right), "samples": k, "pass@1": 0.5, "pass@1_se": 0.1}
    about = {"step": 0, "model": model or path.name, "seed": seed}
    (path / "results.json").write_text(json.dumps(about | {"benchmarks": {"sums": values}}))
    lines = [
        {
            "example_id": problem, "prompt_index": i, "sample_index": sample, "text": "",
            "reward": 0.0, "reward_breakdown": {reward: value}, "prompt_tokens": [],
            "tokens": [],
        }
        for sample in range(k)
        for i, problem in enumerate(right)
        for value in [right[problem][sample]]
    ]  # fmt: skip
    (path / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_run(path)


def rows(runs: Sequence[RunRecord]) -> list[list[str]]:
    return [[text_of(cell) for cell in row] for row in paired_table(models_of(runs)).rows]


A = {"p": [1, 1], "q": [1, 0], "r": [0, 0], "s": [1, 1]}
B = {"s": [0, 0], "p": [0, 0], "q": [0, 1], "r": [0, 0]}


def test_two_models(tmp_path: Path) -> None:
    """The differences of test_by_hand; files of another order."""
    runs = [evaluation(tmp_path / "a", A), evaluation(tmp_path / "b", B)]
    assert problem_means(runs[:1], "sums") == {"p": 1, "q": 0.5, "r": 0, "s": 1}
    assert rows(runs) == [
        ["sums", "a", "b", "62.5", "12.5", "50.0 ± 28.9", "0.1817", "4"],
    ]
    assert "paired" in [table.name for table in make_tables(runs)]
    three = [*runs, evaluation(tmp_path / "c", A)]
    assert [row[1:3] for row in rows(three)] == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert rows(three)[1][5:] == ["0.0 ± 0.0", "1.0000", "4"]


def test_other_problems_are_no_pairs(tmp_path: Path) -> None:
    runs = [evaluation(tmp_path / "a", A), evaluation(tmp_path / "b", B)]
    runs.append(evaluation(tmp_path / "few", {key: A[key] for key in "pq"}))
    assert [row[1:3] for row in rows(runs)] == [["a", "b"]]
    note = paired_table(models_of(runs)).note
    assert "Not the same problems: sums (a, few), sums (b, few)." in note


def test_seeds_of_a_model_are_taken_together(tmp_path: Path) -> None:
    runs = [
        evaluation(tmp_path / "a0", A, 0, "a"),
        evaluation(tmp_path / "a1", B, 1, "a"),
    ]
    assert rows(runs) == []  # one model
    runs.append(evaluation(tmp_path / "b", B))
    assert rows(runs) == [["sums", "a", "b", "37.5", "12.5", "25.0 ± 14.4", "0.1817", "4"]]


def test_what_has_no_completions(tmp_path: Path) -> None:
    runs = [evaluation(tmp_path / name, A) for name in "ab"]
    (tmp_path / "a/sums.jsonl").unlink()
    assert rows(runs) == []
    assert rows([runs[1], evaluation(tmp_path / "c", A, reward="preference")]) == []
    (tmp_path / "a/sums.jsonl").write_text('{"example_id": 1}\n')
    with pytest.raises(DataError, match=r"a/sums\.jsonl:1 is not a completion: KeyError"):
        rows(runs)
