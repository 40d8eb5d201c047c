"""pass@k, cons@k and standard errors against values worked out by hand."""

import math

import pytest

from r1jax.benchmarks.estimators import cons_at_k, mean_and_standard_error, pass_at_k


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (1, 0, 1, 0.0),
        (1, 1, 1, 1.0),
        (4, 1, 1, 1 / 4),  # pass@1 is the mean
        (16, 12, 1, 12 / 16),
        (4, 1, 2, 1 / 2),  # 1 - C(3,2)/C(4,2) = 1 - 3/6
        (5, 2, 2, 7 / 10),  # 1 - C(3,2)/C(5,2) = 1 - 3/10
        (5, 2, 3, 9 / 10),  # 1 - C(3,3)/C(5,3) = 1 - 1/10
        (5, 2, 4, 1.0),  # any 4 of 5 hold a right one
        (10, 3, 5, 11 / 12),  # 1 - C(7,5)/C(10,5) = 1 - 21/252
        (64, 0, 64, 0.0),
        (64, 1, 64, 1.0),
    ],
)
def test_pass_at_k(n: int, c: int, k: int, expected: float) -> None:
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 5), (4, 1, 0)])
def test_pass_at_k_refuses_what_is_not_defined(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError):
        pass_at_k(n, c, k)


def test_pass_at_k_is_stable_for_many_samples() -> None:
    exact = 1 - math.comb(99_000, 1_000) / math.comb(100_000, 1_000)
    assert pass_at_k(100_000, 1_000, 1_000) == pytest.approx(exact, rel=1e-9)


def test_mean_and_standard_error() -> None:
    # deviations -0.5, 0, 0.5: variance 0.5 / 2 = 0.25, error 0.5 / sqrt(3)
    assert mean_and_standard_error([0.0, 0.5, 1.0]) == pytest.approx((0.5, 0.5 / math.sqrt(3)))
    assert mean_and_standard_error([1.0, 1.0]) == (1.0, 0.0)
    mean, error = mean_and_standard_error([0.25])
    assert mean == 0.25
    assert math.isnan(error)
    with pytest.raises(ValueError):
        mean_and_standard_error([])


def same_value(first: str, second: str) -> bool:
    return float(first) == float(second)


@pytest.mark.parametrize(
    ("answers", "right", "expected"),
    [
        (["5", "5", "6"], [1, 1, 0], 1.0),
        (["5", "6", "6"], [1, 0, 0], 0.0),
        (["5", "6", "5.0", "6", "5.00"], [1, 0, 1, 0, 1], 1.0),  # equivalent ones vote together
        (["5", "6"], [1, 0], 0.5),  # a tie shares the credit
        (["6", "5"], [0, 1], 0.5),  # whatever the order
        (["5", "6", "7"], [1, 0, 0], 1 / 3),
        (["5", "6", "7", "7", "6"], [1, 0, 0, 0, 0], 0.0),  # both winners are wrong
        ([None, None, None, "5"], [0, 0, 0, 1], 1.0),  # no answer is no vote
        ([None, None], [0, 0], 0.0),
        ([], [], 0.0),
    ],
)
def test_cons_at_k(answers: list[str | None], right: list[float], expected: float) -> None:
    assert cons_at_k(answers, right, same_value) == pytest.approx(expected)


def test_cons_at_k_joins_equal_strings_that_no_grader_can_compare() -> None:
    assert cons_at_k(["?", "?", "5"], [0, 0, 1], lambda _a, _b: False) == 0.0
