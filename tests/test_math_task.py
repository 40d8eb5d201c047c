"""Mathematics: equal answers by pairs made by hand, limits of time, what is never parsed."""

import hashlib
import threading
import time

import pytest
from helpers import example

from r1jax.tasks import TASKS, comparison, formulas, math_task, same_answer

MATH_PAIRS = [
    (r"\frac{1}{2}", r"\dfrac{1}{2}", True),
    (r"\frac{1}{2}", r"\frac12", True),
    (r"\frac{1}{2}", "1/2", True),
    (r"\frac{1}{2}", "0.5", True),
    (r"\frac{1}{2}", r"\frac{2}{4}", True),
    (r"\frac{1}{3}", "0.3333333333", True),
    (r"1\frac{4}{5}", r"\frac{9}{5}", True),
    ("x^2+1", "1+x^2", True),
    ("(a+5)(b+2)", "ab+2a+5b+10", True),
    (r"\sqrt{8}", r"2\sqrt{2}", True),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)", True),
    (
        r"\begin{pmatrix} 1/2 \\ 3 \end{pmatrix}",
        r"\begin{bmatrix} \frac12 \\ 3 \end{bmatrix}",
        True,
    ),
    ("1,-2", r"\{-2, 1\}", True),
    (r"3 \pm 2 \sqrt{2}", r"3-2\sqrt2, 3+2\sqrt2", True),
    ("(3,4]", r"\left(3, 4\right]", True),
    (r"(-\infty, 2) \cup (3, \infty)", r"(-\infty,2)\cup(3,\infty)", True),
    (r"x \in [-2,7]", "[-2,7]", True),
    ("x=5", "5", True),
    ("5", "x = 5", True),
    ("y = 2x + 3", "y=3+2x", True),
    (r"90^\circ", "90", True),
    ("90", r"90^\circ", True),
    (r"15\mbox{ cm}^2", "15", True),
    ("7", r"7 \text{ apples}", True),
    (r"\$18.90", "18.9", True),
    (r"10,\!080", "10080", True),
    ("58,500", "58500", True),
    (r"50\%", r"\frac{1}{2}", True),
    (r"\text{Evelyn}", "Evelyn", True),
    (r"\text{(C)}", "C", True),
    ("6+9i", "9i+6", True),
    (".0000672", r"6.72\times 10^{-5}", True),
    ("2^{2005}", "2^{2005}", True),
    ("2^{100000}", "2^{100000}", True),  # written alike: never computed
    ("120", "5!", False),  # left to compute
    ("５", "5。", True),
    (r"\frac{1}{2}", "0.51", False),
    (r"\frac{1}{3}", "0.33", False),
    (r"\pi", "3.14", False),
    ("p - q", "q - p", False),
    ("(1,2)", "(2,1)", False),
    ("(1,2]", "[1,2)", False),
    ("1,-2", "1", False),
    ("1", "1,-2", False),
    (r"3 \pm 2 \sqrt{2}", r"3+2\sqrt2", False),
    ("x=5", "x=6", False),
    ("x=5", "y=5", False),
    (r"\text{east}", r"\text{west}", False),
    (r"\text{east}", "teas", False),
    ("5", "5 or 6", False),
    ("5", "not 5", False),
    ("5", "5?", False),
    ("5", "The answer is 5", False),
    ("5", "What is the largest of these numbers, 3, 4, 5?", False),
    ("5", "2+3 or 2+4", False),
    ("12", "1 2", False),
    ("12", r"1\ 2", False),
    ("12", "1\u20612", False),
    ("5", "", False),
    ("", "", False),
    ("5", "}{", False),
    ("5", r"5} \text{or} {6", False),
    ("5", r"\frac{5}{0}", False),
    ("1", "9^{9^{9}}", False),
    ("1", "9**9**9", False),
    ("1", "1000000000!", False),
    ("1", "2^{1000000000}", False),
    ("1", "9" * 999, False),
    ("1", "x" * 100_000, False),
]


@pytest.mark.parametrize(("gold", "answer", "expected"), MATH_PAIRS)
def test_math(gold: str, answer: str, expected: bool) -> None:
    start = time.process_time()
    assert TASKS["math"].equivalent(example("math", gold), answer) is expected
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("question", "gold", "answer", "expected"),
    [
        ("What is 2+3?", "5", "2+3", False),
        ("What is $2 + 3$?", "5", "2+3", False),
        ("What is $2 + 3$?", "5", "3+2", False),  # left to compute
        (r"Compute $\dfrac{1}{2}+\dfrac{1}{3}$.", r"\frac56", r"\frac12 + \frac13", False),
        ("Expand $(x+1)^2$.", "x^2+2x+1", "(x+1)^2", False),
        ("Expand $(x+1)^2$.", "x^2+2x+1", "x^2+1+2x", True),
        (r"Which is largest: $3\sqrt{13}$, 10 or 7?", r"3\sqrt{13}", r"3\sqrt{13}", True),
        ("Is it 1/2 or 1/3?", r"\frac{1}{2}", "1/2", True),
        (r"One angle is $90^\circ$. And the other?", "90", r"90^\circ", True),
        ("Is it 5 or 6?", "5", "5", True),
        (
            r"What is $\frac{9}{2}$ as a decimal?",
            "4.5",
            r"What is $\frac{9}{2}$ as a decimal?",
            False,
        ),
    ],
)
def test_math_gives_nothing_for_repeating_the_question(
    question: str, gold: str, answer: str, expected: bool
) -> None:
    assert TASKS["math"].equivalent(example("math", gold, question), answer) is expected


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in gc callbacks
def test_math_time_limit_ends_what_sympy_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_task, "TIME_LIMIT", 0.3)
    for hostile in (r"\binom{100000000}{50000000}", "(" * 200 + "1" + ")" * 200):
        start = time.process_time()
        assert not TASKS["math"].equivalent(example("math", "77"), hostile)
        assert time.process_time() - start < 3


def test_math_works_in_a_thread_where_signals_do_not() -> None:
    found: list[bool] = []
    pair = example("math", r"\frac{7}{2}")
    thread = threading.Thread(
        target=lambda: found.append(TASKS["math"].equivalent(pair, r"\frac{14}{4}"))
    )
    thread.start()
    thread.join()
    assert found == [True]


def test_what_does_not_reach_math_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_text: str) -> None:
        raise AssertionError

    monkeypatch.setattr(comparison, "formula", refuse)
    monkeypatch.setattr(formulas, "formula", refuse)
    assert TASKS["math"].equivalent(example("math", "1,234"), "1234.")
    assert TASKS["math"].equivalent(example("math", "2^{9999999}"), "2^{9999999}")
    hostile = ("1235", "x+" * 500 + "x", "9**9**9", "12345!", "{" * 30 + "1" + "}" * 30, "a? b")
    for answer in hostile:
        assert not TASKS["math"].equivalent(example("math", "1,234"), answer)


def test_formulas_are_parsed_once() -> None:
    surds = [rf"{n}\sqrt{{{n + 1}}}" for n in range(101, 165)]
    puzzle = example("math", "7")
    formulas.formula.cache_clear()
    start = time.process_time()
    for i, first in enumerate(surds):
        for second in surds[:i]:
            assert not same_answer(puzzle, first, second)
    assert formulas.formula.cache_info().misses == len(surds)
    assert time.process_time() - start < 10


def test_the_limit_counts_the_graders_own_thread() -> None:
    """Other threads' work (XLA's, here hashing) takes nothing from it."""
    running, data = True, b"x" * 10_000_000

    def work() -> None:
        while running:
            hashlib.sha256(data).digest()  # without the interpreter's lock

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        start = time.thread_time()
        with formulas.time_limit(0.4):
            while time.thread_time() - start < 0.3:
                pass
        with pytest.raises(formulas.OutOfTime), formulas.time_limit(0.2):
            while time.thread_time() - start < 5:
                pass
    finally:
        running = False
        for thread in threads:
            thread.join()
    assert time.thread_time() - start < 2
