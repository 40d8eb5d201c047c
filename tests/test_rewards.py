"""Graders against hand-made pairs, rewards against hand-made completions, and fuzzing."""

import random
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from r1jax.config import ConfigError, DataError
from r1jax.rewards import (
    REWARDS,
    TASKS,
    Failure,
    Grade,
    accuracy,
    check_example,
    final_answer,
    final_answers,
    format_reward,
    lenient_accuracy,
    load_rewards,
    math_reward,
    r1_format_reward,
    reflective_words,
    same_answer,
    score,
    stop_if_all_failed,
)
from r1jax.rewards.code_reward import final_programs, last_program
from r1jax.rewards.gym_reward import is_plain
from r1jax.rewards.penalties import repetition
from r1jax.types import Example

CONTEXT: dict[str, Any] = {"length": 10, "finish_reason": "stop"}


def example(
    task: str, answer: str, question: str = "?", metadata: Mapping[str, Any] | None = None
) -> Example:
    return Example("e", ({"role": "user", "content": question},), answer, task, metadata or {})


def test_rewards_import_no_jax() -> None:
    code = "import sys, r1jax.rewards, r1jax.rewards.pool; print({'jax', 'flax'} & {*sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


# ---- integer ----

INTEGER_PAIRS = [
    ("1234", "1234", True),
    ("1234", "1,234", True),
    ("1,234", "1234", True),
    ("1234", "1234.", True),
    ("1234", " 1234\n", True),
    ("1234", "１２３４", True),
    ("1234", "１，２３４。", True),
    ("1234", "1{,}234", True),
    ("1234", r"1,\!234", True),
    ("1234", "+1234", True),
    ("1234", "01234", True),
    ("1234", "1234.0", True),
    ("1234", "$1234$", True),
    ("1234", r"\(1234\)", True),
    ("1234", "**1234**", True),
    ("1234", r"\text{1234}", True),
    ("-5", "-5", True),
    ("-5", "−5", True),
    ("-5", "－５", True),
    ("-5", "- 5", True),
    ("0", "-0", True),
    ("9" * 5000, "9" * 5000, True),
    ("1234567", "1,234,567", True),
    ("1234", "12,34", False),
    ("1234", "1234,", False),
    ("1234", "1,2345", False),
    ("1234", "1 234", False),
    ("1234", "12 34", False),
    ("1234", "1234.5", False),
    ("1234", "1234 or 1235", False),
    ("1234", "1235, 1234", False),
    ("1234", "The answer is 1234", False),
    ("1234", "1234 apples", False),
    ("1234", "1200+34", False),
    ("5", "-5", False),
    ("-5", "5", False),
    ("5", "--5", False),
    ("52", "5²", False),
    ("5", "5/1", False),
    ("5", "x=5", False),
    ("5", "five", False),
    ("5", "", False),
    ("5", "५", False),
    ("5", "5%", False),
    ("100000", "1e5", False),
    ("5", "5</answer>", False),
    ("", "", False),
    ("five", "five", False),
    ("9" * 5000, "9" * 4999, False),
]


@pytest.mark.parametrize(("gold", "answer", "expected"), INTEGER_PAIRS)
def test_integer(gold: str, answer: str, expected: bool) -> None:
    assert TASKS["integer"].equivalent(example("integer", gold), answer) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2+3=5", "5"),
        ("so 5. Done", "5"),
        ("it is 1,234,567.", "1,234,567"),
        ("1, 2, 3", "3"),
        ("10-5", "5"),
        ("10 - 5", "5"),
        ("x=-5", "-5"),
        ("is −5。", "-5"),
        ("(-5)", "-5"),
        ("(3)-5", "5"),
        ("答案是１２。", "12"),
        ("是-7吗", "-7"),
        ("costs 5.50", "5.50"),
        ("<answer>7</answer>", "7"),
        (r"\boxed{8}", "8"),
        ("1{,}234", "1,234"),
        ("1,2345", "2345"),
        ("", None),
        ("none", None),
    ],
)
def test_last_number(text: str, expected: str | None) -> None:
    assert TASKS["integer"].extract(text) == expected


# ---- sorted ----

SORTED_PAIRS = [
    ("1, 2, 3", "1, 2, 3", True),
    ("1, 2, 3", "1,2,3", True),
    ("1, 2, 3", "[1, 2, 3]", True),
    ("1, 2, 3", "(1, 2, 3)", True),
    ("1, 2, 3", "{1, 2, 3}", True),
    ("1, 2, 3", r"\{1, 2, 3\}", True),
    ("1, 2, 3", "1 2 3", True),
    ("1, 2, 3", "1、2、3", True),
    ("1, 2, 3", "１，２，３。", True),
    ("1, 2, 3", "1; 2; 3", True),
    ("1, 2, 3", "1, 2, 3.", True),
    ("1, 2, 3", "$1, 2, 3$", True),
    ("1, 2, 3", "1,\n2,\n3", True),
    ("1, 2, 3", " 1 ,2 , 3 ", True),
    ("-3, -1, 2", "-3, -1, 2", True),
    ("-3, -1, 2", "−3, −1, 2", True),
    ("-3, -1, 2", "[-3,-1,+2]", True),
    ("2, 2, 3", "2, 2, 3", True),
    ("7", "7", True),
    ("7", "[7]", True),
    ("1, 234", "1,234", True),
    ("1, 2, 3", "3, 2, 1", False),
    ("1, 2, 3", "1, 2", False),
    ("1, 2, 3", "1, 2, 3, 4", False),
    ("1, 2, 3", "1, 2, 3, 3", False),
    ("2, 2, 3", "2, 3", False),
    ("1, 2, 3", "1, 2, 4", False),
    ("1, 2, 3", "1,, 2, 3", False),
    ("1, 2, 3", "1, 2, 3,", False),
    ("1, 2, 3", "1 < 2 < 3", False),
    ("1, 2, 3", "[1, 2, 3", False),
    ("1, 2, 3", "[[1, 2, 3]]", False),
    ("1, 2, 3", "123", False),
    ("1, 2, 3", "1.0, 2, 3", False),
    ("1, 2, 3", "1, 2, 3 or 3, 2, 1", False),
    ("1, 2, 3", "Sorted: 1, 2, 3", False),
    ("1, 2, 3", "", False),
    ("", "", False),
    ("-3, -1, 2", "3, 1, 2", False),
    ("1, 2, 3", "一, 二, 三", False),
]


@pytest.mark.parametrize(("gold", "answer", "expected"), SORTED_PAIRS)
def test_sorted(gold: str, answer: str, expected: bool) -> None:
    assert TASKS["sorted"].equivalent(example("sorted", gold), answer) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Sort 3, 1, 2: it is 1, 2, 3.", "1, 2, 3"),
        ("3、1、2变成1、2、3。", "1、2、3"),
        ("-1, 2 < 3", "-1, 2"),
        ("1，2，3", "1,2,3"),
        ("<answer>1, 2</answer>", "1, 2"),
        ("only 7", None),
        ("", None),
    ],
)
def test_last_list(text: str, expected: str | None) -> None:
    assert TASKS["sorted"].extract(text) == expected


# ---- letter and choice ----

LETTER_PAIRS = [
    ("B", "B", True),
    ("B", "b", True),
    ("B", "B.", True),
    ("B", "B。", True),
    ("B", "(B)", True),
    ("B", "B)", True),
    ("B", " B\n", True),
    ("B", "Ｂ", True),
    ("B", "（Ｂ）", True),
    ("B", "$B$", True),
    ("B", "**B**", True),
    ("B", "`B`", True),
    ("B", r"\text{B}", True),
    ("B", r"\mathrm{B}", True),
    ("B", r"\text{(B)}", True),
    ("(B)", "B", True),
    ("b", "B", True),
    ("Z", "Z", True),
    ("B", "A", False),
    ("B", "AB", False),
    ("B", "BB", False),
    ("B", "B B", False),
    ("B", "A or B", False),
    ("B", "A, B", False),
    ("B", "B is tallest", False),
    ("B", "Bob", False),
    ("B", "8", False),
    ("B", "ß", False),
    ("B", "В", False),  # Cyrillic
    ("B", "β", False),
    ("B", "", False),
    ("B", "()", False),
    ("B", "-B", False),
    ("B", "not B", False),
    ("", "", False),
    ("B", "丙", False),
]


@pytest.mark.parametrize(("gold", "answer", "expected"), LETTER_PAIRS)
def test_letter(gold: str, answer: str, expected: bool) -> None:
    assert TASKS["letter"].equivalent(example("letter", gold), answer) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A is taller than B.", "B"),
        ("所以是B。", "B"),
        ("B说谎", "B"),
        ("B lies, OK", "B"),
        ("B. I'm sure", "B"),
        ("Ｂ", "B"),
        ("<answer>C</answer>", "C"),
        ("nobody", None),
        ("", None),
    ],
)
def test_last_letter(text: str, expected: str | None) -> None:
    assert TASKS["letter"].extract(text) == expected


CHOICE_PAIRS = [
    ("C", "C", True),
    ("C", "c", True),
    ("C", "(C)", True),
    ("C", "C.", True),
    ("C", "C)", True),
    ("C", "Ｃ", True),
    ("C", "（C）", True),
    ("C", r"\text{(C)}", True),
    ("C", r"\textbf{C}", True),
    ("C", "**C**", True),
    ("C", "C. Paris", True),
    ("C", "(C) Paris", True),
    ("C", "C: Paris", True),
    ("C", "C、巴黎", True),
    ("C", "C. 巴黎。", True),
    ("C", "C. A dog", True),
    ("C", "C. -5", True),
    ("C", "C.\nParis", True),
    ("J", "J", True),
    ("(C)", "C", True),
    ("C", "D", False),
    ("C", "A", False),
    ("C", "K", False),
    ("C", "CD", False),
    ("C", "C D", False),
    ("C", "C and D", False),
    ("C", "C. or D.", False),
    ("C", "(C) (D)", False),
    ("C", "A. B. C.", False),
    ("C", "C) Paris D) Rome", False),
    ("B", "B、C", False),
    ("B", "B: A, B, C, D", False),
    ("B", "B. A cat", True),
    ("C", "Paris", False),
    ("C", "Cat", False),
    ("C", "Not C", False),
    ("C", "The answer is C", False),
    ("C", "С", False),  # Cyrillic
    ("C", "", False),
    ("C", "()", False),
    ("", "", False),
    ("K", "K", False),
]


@pytest.mark.parametrize(("gold", "answer", "expected"), CHOICE_PAIRS)
def test_choice(gold: str, answer: str, expected: bool) -> None:
    assert TASKS["choice"].equivalent(example("choice", gold), answer) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is C. I am sure", "C"),
        ("Answer: (C)", "C"),
        ("answer is not A but C", "C"),
        ("First answer: A. Final answer: C", "C"),
        ("The answer is a dog: D", "D"),
        ("答案是C", "C"),
        ("选C，因为A不对", "C"),
        ("A, B, C", "C"),
        ("K or L", None),
        ("", None),
    ],
)
def test_last_choice(text: str, expected: str | None) -> None:
    assert TASKS["choice"].extract(text) == expected


# ---- countdown ----

GAME = {"numbers": [3, 8, 8, 1], "target": 24}
COUNTDOWN = [
    ("8*3*1*8/8", [3, 8, 8, 1, 8], 24, True),
    ("(8-8+1)*3", [3, 8, 8, 1], 3, True),
    ("8 / (3 - 8 / 3)", [8, 3, 8, 3], 24, True),  # fractions on the way, exactly
    ("1/3*3", [1, 3, 3], 1, True),
    ("4+5", [5, 4], 9, True),
    ("4+5=9", [4, 5], 9, True),
    ("4+5 = 9.", [4, 5], 9, True),
    ("$4+5=9$", [4, 5], 9, True),
    ("4×5", [4, 5], 20, True),
    ("20÷5", [20, 5], 4, True),
    (r"4 \times 5", [4, 5], 20, True),
    (r"20 \div 5", [20, 5], 4, True),
    ("４＋５＝９", [4, 5], 9, True),
    ("7−5", [5, 7], 2, True),
    ("-5+7", [5, 7], 2, True),
    ("5+5", [5, 5], 10, True),
    ("((4)+(5))", [4, 5], 9, True),
    ("36 + 59 - 39", [36, 39, 59], 56, True),
    ("4+5", [4, 5], 10, False),
    ("4+5=10", [4, 5], 10, False),
    ("4+5=8", [4, 5], 9, False),
    ("4+5=9=9", [4, 5], 9, False),
    ("9=4+5", [4, 5], 9, False),
    ("9", [4, 5], 9, False),
    ("4+5", [4, 5, 1], 9, False),  # a number left over
    ("4+5+1-1", [4, 5, 1], 9, False),  # a number twice
    ("4+4+1", [4, 5], 9, False),  # a foreign number
    ("45", [4, 5], 45, False),
    ("4**5", [4, 5], 1024, False),
    ("21//5", [21, 5], 4, False),
    ("21%5", [21, 5], 1, False),
    ("4 5 +", [4, 5], 9, False),
    ("4+5)", [4, 5], 9, False),
    ("4.0+5", [4, 5], 9, False),
    ("4+5#", [4, 5], 9, False),
    ("4+5 or 5+4", [4, 5], 9, False),
    ("4/(5-5)", [4, 5, 5], 0, False),
    ("1/3", [1, 3], 0.3333333333333333, False),
    ("9**9**9", [9, 9, 9], 1, False),
    ("__import__('os').getpid()", [4, 5], 9, False),
    ("(" * 100 + "4+5" + ")" * 100, [4, 5], 9, False),  # too long
    ("(" * 90 + "4+5" + ")" * 90, [4, 5], 9, True),
    ("-" * 190 + "9", [9], 9, True),
    ("4+(5", [4, 5], 9, False),
    ("04+5", [4, 5], 9, False),
    ("4(5)", [4, 5], 20, False),
    ("(4,5)", [4, 5], 9, False),
    ("", [4, 5], 9, False),
    ("=9", [4, 5], 9, False),
    ("答案4+5", [4, 5], 9, False),
]


@pytest.mark.parametrize(("answer", "numbers", "target", "expected"), COUNTDOWN)
def test_countdown(answer: str, numbers: list[int], target: int, expected: bool) -> None:
    game = example("countdown", "", metadata={"numbers": numbers, "target": target})
    assert TASKS["countdown"].equivalent(game, answer) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("try 3+4=7, then 3*8=24. So 3*8", "3*8"),
        ("it is 3*8=24, right", "3*8"),
        ("3×8＝24", "3*8"),
        ("<answer>(1+2)*8</answer>", "(1+2)*8"),
        ("3*8 - yes", "3*8 -"),
        ("step-by-step 24", None),
        ("", None),
    ],
)
def test_last_expression(text: str, expected: str | None) -> None:
    assert TASKS["countdown"].extract(text) == expected


# ---- math ----

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
    ("120", "5!", True),
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
        ("What is $2 + 3$?", "5", "3+2", True),  # equal, and not a copy
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
    monkeypatch.setattr(math_reward, "TIME_LIMIT", 0.3)
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
    def refuse(_gold: str, _answer: str) -> bool:
        raise AssertionError

    monkeypatch.setattr(math_reward, "_verified", refuse)
    assert TASKS["math"].equivalent(example("math", "1,234"), "1234.")
    assert TASKS["math"].equivalent(example("math", "2^{9999999}"), "2^{9999999}")
    hostile = ("1235", "x+" * 500 + "x", "9**9**9", "12345!", "{" * 30 + "1" + "}" * 30, "a? b")
    for answer in hostile:
        assert not TASKS["math"].equivalent(example("math", "1,234"), answer)


def test_gold_answers_are_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gold = r"\frac{31}{37}"
    TASKS["math"].equivalent(example("math", gold), r"\frac{1}{71}")
    misses = math_reward._parse_gold.cache_info().misses
    for denominator in range(72, 76):
        TASKS["math"].equivalent(example("math", gold), rf"\frac{{1}}{{{denominator}}}")
    assert math_reward._parse_gold.cache_info().misses == misses


# ---- where the answer stands ----

FINAL_ANSWERS = [
    ("<think>a</think> <answer>5</answer>", ["5"]),
    ("<think>a</think>\n<answer>\n5\n</answer>\n", ["5"]),
    ("<think>a</think><answer>5</answer> and more", ["5"]),
    (r"<think>a</think> <answer>\boxed{5}</answer>", ["5"]),
    (r"<think>a</think> <answer>It is \boxed{5} km</answer>", ["5"]),
    (r"<think>a</think> <answer>5</answer> \boxed{6}", ["5"]),
    (r"<think>\boxed{4}</think> <answer>5</answer>", ["5"]),
    ("<think><answer>4</answer></think> <answer>5</answer>", ["5"]),
    ("<think>a</think> <answer>4</answer> <answer>5</answer>", ["5"]),
    ("<think>a</think> <answer>5</answer> <answer>6", ["5"]),
    ("<think>a</think> <answer>4 <answer>5</answer>", ["5"]),
    ("<think>a</think> <answer>5</answer></answer>", ["5"]),
    ("<answer>5</answer>", ["5"]),
    ("2+3 <answer>5</answer>", ["5"]),
    ("<think>a <answer>5</answer>", ["5"]),  # the tag leaves thoughts that were never closed
    ("<think>a</think> <answer></answer>", [""]),
    (r"<think>a</think> so \boxed{5}", ["5"]),
    (r"a</think> so \boxed{5}", ["5"]),
    (r"<think>\boxed{4}</think> so \boxed{5}", ["5"]),
    (r"<think>a</think> \boxed{5}, again \boxed{5}", ["5"]),
    (r"<think>a</think> \boxed{5} or \boxed{6}", ["5", "6"]),
    (r"<think>a</think> \boxed{5}" + "\n\n" + r"\boxed{6}", ["5", "6"]),
    (r"<think>a</think> <answer>\boxed{5} \boxed{6}</answer>", ["5", "6"]),
    (r"<think>a</think> <answer>\boxed{5", []),
    (r"<think>a</think> <answer>\boxed{5}", ["5"]),  # cut before the closing tag
    ("<think>a</think> <answer>5", []),
    ("<think>a</think> 5", []),
    (r"<think>\boxed{5}</think>", []),
    (r"<think>\boxed{5}</think> five", []),
    ("<think><answer>5</answer></think>", []),
    ("<think>a <answer>5</answer> b</think> 5", []),
    ("<think>a</think> <answer>5</think></answer>", []),
    (r"<think>so \boxed{5}", []),  # thoughts that were never closed
    (r"<think>a</think> \boxed{5} <think>no: \boxed{6}", ["5"]),
    (r"<think>a</think> \boxed{4} </think> \boxed{5}", ["5"]),
    (r"First \boxed{4}." + "\n" + r"So \boxed{5}", ["5"]),
    (r"It is \boxed{4} or \boxed{5}", ["4", "5"]),
    (r"\boxed{4}" + "\n" + r"\boxed{5} \boxed{5}", ["5"]),
    (r"\boxed{\frac{1}{\sqrt{2}}}", [r"\frac{1}{\sqrt{2}}"]),
    (r"\boxed{\{1, 2\}}", [r"\{1, 2\}"]),
    (r"\boxed {5}", ["5"]),
    (r"\boxed{x = \boxed{5}}", ["5"]),
    (r"\boxed{ \boxed{5}", ["5"]),
    (r"\boxed{5}}", ["5"]),
    (r"\boxed{5", []),
    (r"\boxed 5", []),
    ("the answer is 5", []),
    ("</answer>5<answer>", []),
    ("", []),
    ("<ANSWER>5</ANSWER>", []),
    ("x" * 50_000 + r"</think> <answer>5</answer>", ["5"]),
    (r"\boxed{4}</think>" + "x" * 50_000 + r"\boxed{5}", ["5"]),
]


@pytest.mark.parametrize(("text", "expected"), FINAL_ANSWERS)
def test_final_answers(text: str, expected: list[str]) -> None:
    assert final_answers(text) == expected
    assert final_answer(text) == (expected[0] if len(expected) == 1 else None)
    right = float(bool(expected) and all(answer == "5" for answer in expected))
    assert accuracy(example("integer", "5"), text, **CONTEXT) == right


def test_accuracy_of_several_boxes() -> None:
    half = example("math", r"\frac{1}{2}")
    assert accuracy(half, r"a</think> \boxed{0.5} that is \boxed{\frac{2}{4}}", **CONTEXT) == 1
    assert accuracy(half, r"a</think> \boxed{0.5} or \boxed{0.6}", **CONTEXT) == 0
    assert accuracy(half, r"a</think> \boxed{0.6} or \boxed{0.5}", **CONTEXT) == 0
    pair = example("math", "1,2")
    assert accuracy(pair, r"a</think> \boxed{1}, \boxed{2}", **CONTEXT) == 0
    many = "".join(rf"\boxed{{\frac{{{n}}}{{{2 * n}}}}}" for n in range(1, 20))
    assert accuracy(half, "a</think>" + many, **CONTEXT) == 0


def test_accuracy_variants() -> None:
    five = example("integer", "5")
    formatted, boxed = "<think>a</think> <answer>5</answer>", r"\boxed{5}"
    cut = {"length": 10, "finish_reason": "length"}
    assert accuracy(five, boxed, **cut) == 1  # graded as it stands
    assert REWARDS["accuracy_in_format"](five, formatted, **CONTEXT) == 1
    assert REWARDS["accuracy_in_format"](five, boxed, **CONTEXT) == 0
    assert REWARDS["accuracy_in_format"](five, formatted.replace("5", "6"), **CONTEXT) == 0
    assert REWARDS["accuracy_if_stopped"](five, boxed, **CONTEXT) == 1
    assert REWARDS["accuracy_if_stopped"](five, boxed, **cut) == 0


@pytest.mark.parametrize(
    ("task", "gold", "text", "expected"),
    [
        ("integer", "5", "so it is 5.", 1),
        ("integer", "5", "<think>5", 1),
        ("integer", "5", "5, or rather 6", 0),
        ("integer", "5", "nothing", 0),
        ("math", r"\frac{1}{2}", r"\boxed{\frac12} in step 3", 1),
        ("math", "5", "it is 5", 1),
        ("sorted", "1, 2", "2, 1 becomes 1, 2", 1),
        ("letter", "B", "A? No, B", 1),
        ("choice", "B", "answer: B", 1),
        ("integer", "5", "5" + "x" * 30_000, 0),  # only the end is looked at
    ],
)
def test_lenient_accuracy(task: str, gold: str, text: str, expected: float) -> None:
    assert lenient_accuracy(example(task, gold), text, **CONTEXT) == expected


def test_lenient_accuracy_of_countdown() -> None:
    game = example("countdown", "", metadata={"numbers": [3, 8], "target": 24})
    assert lenient_accuracy(game, "try 3+8=11; 3*8=24, done", **CONTEXT) == 1
    assert lenient_accuracy(game, "3*8=24; or 3+8", **CONTEXT) == 0


# ---- format ----

FORMAT = [
    ("<think>a</think> <answer>b</answer>", 1),
    ("<think>a</think><answer>b</answer>", 1),
    (" <think>a</think>\n\n<answer>b</answer>\n", 1),
    ("<think> a\nb </think> <answer> c\nd </answer>", 1),
    ("<think>想</think> <answer>五</answer>", 1),
    ("<think>1 < 2</think> <answer>a > b</answer>", 1),
    ("<think>.</think> <answer>∞</answer>", 1),
    ("<think></think> <answer>b</answer>", 0),
    ("<think> \n</think> <answer>b</answer>", 0),
    ("<think>\u200b</think> <answer>b</answer>", 0),
    ("<think>a</think> <answer></answer>", 0),
    ("<think>a</think> <answer> </answer>", 0),
    ("<think>a</think> <answer>\u200b\ufeff</answer>", 0),
    ("<think>a</think> <answer>b</answer> c", 0),
    ("c <think>a</think> <answer>b</answer>", 0),
    ("<think>a</think> c <answer>b</answer>", 0),
    ("<think>a</think> <answer>b", 0),
    ("<think>a</think> b</answer>", 0),
    ("<think>a <answer>b</answer>", 0),
    ("a</think> <answer>b</answer>", 0),
    ("<think>a</think>", 0),
    ("<answer>b</answer>", 0),
    ("<answer>b</answer> <think>a</think>", 0),
    ("<think>a <answer>b</answer></think>", 0),
    ("<think>a</think> <answer>b</answer> <answer>b</answer>", 0),
    ("<think>a</think> <think>a</think> <answer>b</answer>", 0),
    ("<think>a</think></think> <answer>b</answer>", 0),
    ("<think><think>a</think> <answer>b</answer>", 0),
    ("<think>say <answer>b</answer></think> <answer>b</answer>", 0),
    ("<think>a</think> <answer><think>b</think></answer>", 0),
    ("</think>a<think> <answer>b</answer>", 0),
    ("<think>a</think> </answer>b<answer>", 0),
    ("<Think>a</Think> <Answer>b</Answer>", 0),
    ("<think >a</think> <answer>b</answer>", 0),
    ("＜think＞a＜/think＞ ＜answer＞b＜/answer＞", 0),
    ("a", 0),
    ("", 0),
]


@pytest.mark.parametrize(("text", "expected"), FORMAT)
def test_format(text: str, expected: float) -> None:
    assert format_reward(example("integer", "5"), text, **CONTEXT) == expected


R1_FORMAT = [
    ("a</think> b", 1),
    ("\na\nb\n</think>\n\nc\nd", 1),
    (r"想</think>答案是\boxed{5}", 1),
    ("a</think>b <answer>c</answer>", 1),
    ("a < b</think> c > d", 1),
    ("</think> b", 0),
    ("\n\n</think> b", 0),
    ("\u200b</think> b", 0),
    ("a</think>", 0),
    ("a</think>\n ", 0),
    ("a</think>\u200b", 0),
    ("<think>a</think> b", 0),
    ("a<think></think> b", 0),
    ("a</think> b</think>", 0),
    ("a</think></think> b", 0),
    ("a</think> b <think>", 0),
    ("a b", 0),
    ("a</Think> b", 0),
    ("", 0),
]


@pytest.mark.parametrize(("text", "expected"), R1_FORMAT)
def test_r1_format(text: str, expected: float) -> None:
    assert r1_format_reward(example("integer", "5"), text, **CONTEXT) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wait mistake however but retry error verify wrong evaluate check", 10),
        ("Wait, WAIT! (wait) wait-wait", 5),
        ("waiting mistakes butter checked unverified rewrite terror recheck debut", 0),
        ("But3 but_ 等wait吧", 3),
        ("等等，检查：不对，但是", 4),
        ("等一下，错误！然而验证一下，重新评估，核对", 7),
        ("<think>check</think>", 1),
        ("", 0),
    ],
)
def test_reflective_words(text: str, expected: int) -> None:
    assert reflective_words(text) == expected


# ---- examples, sums, failures ----


def test_check_example() -> None:
    for good in (
        example("integer", "1,234"),
        example("sorted", "1, 2"),
        example("letter", "B"),
        example("choice", "(C)"),
        example("math", r"\frac{1}{2}"),
        example("countdown", "", metadata=GAME),
    ):
        check_example(good)
    for bad, message in (
        (example("integr", "5"), "task 'integr' is not one of math, integer"),
        (example("integer", "five"), "'five' is no integer answer"),
        (example("math", " "), "' ' is no math answer"),
        (example("choice", "K"), "'K' is no choice answer"),
        (example("countdown", "1+2"), "countdown needs"),
        (example("countdown", "", metadata={"numbers": ["1"], "target": 1}), "not all integers"),
    ):
        with pytest.raises(DataError, match=message):
            check_example(bad)


def test_same_answer() -> None:
    half = example("math", "7")
    assert same_answer(half, r"\frac{1}{2}", "0.5")
    assert not same_answer(half, r"\frac{1}{2}", "0.6")
    assert same_answer(half, "nonsense(", "nonsense(")
    game = example("countdown", "", metadata={"numbers": [3, 8], "target": 24})
    assert same_answer(game, "3*8", "8*3")
    assert not same_answer(game, "3+8", "8*3")
    assert not same_answer(game, "8*3", "3+8")
    # right or wrong: what is voted for is a value made of the same numbers
    game = example("countdown", "", metadata={"numbers": [2, 3, 4], "target": 9})
    assert same_answer(game, "2*3+4", "4+2*3=10")
    assert not same_answer(game, "2*3+4", "5+5")
    assert not same_answer(game, "2+", "3+")
    assert not same_answer(game, "2*3+4=9", "2*3+4")


def sleepy(_example: Example, _text: str, *, length: int, finish_reason: str) -> float:
    raise ValueError("asleep" if finish_reason == "stop" else str(length))


def test_score() -> None:
    five = example("integer", "5")
    rewards = load_rewards([("accuracy", 2), ("format", 0.5), ("lenient_accuracy", 0.25)])
    grade = score(rewards, five, r"\boxed{5}", 10, "stop")
    assert grade == Grade(2.25, {"accuracy": 1.0, "format": 0.0, "lenient_accuracy": 1.0})
    rewards["mine"] = (sleepy, 1.0)
    grade = score(rewards, five, r"\boxed{5}", 10, "stop")
    assert grade.reward == 0
    assert grade.breakdown == {"accuracy": 1, "format": 0, "lenient_accuracy": 1, "mine": 0}
    assert grade.failure == Failure("exception", "reward 'mine' raised ValueError: asleep")


def test_stop_if_all_failed() -> None:
    good = Grade(1.0, {})
    bad = Grade(0.0, {}, Failure("exception", "reward 'mine' raised ValueError: asleep"))
    late = Grade(0.0, {}, Failure("timeout", "late"))
    stop_if_all_failed([])
    stop_if_all_failed([bad, good])
    stop_if_all_failed([late, late])
    with pytest.raises(ConfigError, match="'mine' raised ValueError: asleep"):
        stop_if_all_failed([bad, bad])


# ---- fuzzing ----

GRADED = [
    example("math", r"\frac{1}{2}", r"What is $\frac{1}{4}+\frac14$?"),
    example("integer", "5", "What is 2+3?"),
    example("sorted", "1, 2, 3"),
    example("letter", "B"),
    example("countdown", "3*8", metadata=GAME),
    example("choice", "C"),
    example("knights", "Ann is a knight, Bob is a knave"),
    example("general", ""),
]
PIECES = [
    *("<think>", "</think>", "<answer>", "</answer>", r"\boxed{", r"\fbox{", "}", "{", "(", ")"),
    *(
        r"\frac",
        r"\sqrt",
        "^",
        "**",
        "!",
        "=",
        ",",
        "、",
        ";",
        " ",
        "\n",
        "$",
        "%",
        "\\",
        r"\text{",
    ),
    *("1", "5", "9", "99999999", "0.5", "-", "+", "*", "/", "x", "e", "i", r"\pi", r"\infty"),
    *("Ann is a ", "Bob: ", "knight", "knave", "not a ", "```python\n", "```", "def f(x): "),
    *("A", "B", "C", "answer is", "答案是", "等等", "５", "。", "\u200b", "\x00", "\ud800", "🙂"),
    *(r"\begin{pmatrix}", r"\end{pmatrix}", r"\\", "&", r"\cup", r"\pm", r"\int", r"\sum", "||"),
]
RANDOM_TEXT = st.one_of(
    st.text(max_size=200),
    st.lists(st.sampled_from(PIECES), max_size=60).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=12).map(lambda p: rf"\boxed{{{''.join(p)}}}"),
)


def grade_everywhere(text: str) -> None:
    """No exception, only 0 and 1, and bounded time (with sympy's share cut to keep this short)."""
    start = time.process_time()
    reflective_words(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(math_reward, "TIME_LIMIT", 0.2)
        for graded in GRADED:
            for reward in (accuracy, lenient_accuracy, format_reward, r1_format_reward):
                assert reward(graded, text, **CONTEXT) in (0.0, 1.0)
        assert -1.0 <= repetition(graded, text, **CONTEXT) <= 0.0
        final_programs(text), last_program(text)
        is_plain(text)
    assert time.process_time() - start < 5


FUZZ = settings(
    max_examples=150, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)


@FUZZ
@given(RANDOM_TEXT)
def test_no_exception_leaves_a_grader(text: str) -> None:
    grade_everywhere(text)


@FUZZ
@given(st.sampled_from([text for text, _ in FINAL_ANSWERS + FORMAT]), st.randoms())
def test_no_exception_leaves_a_grader_for_mutated_completions(
    text: str, rng: random.Random
) -> None:
    text = text[-200:]
    for _ in range(rng.randint(1, 4)):
        at, until = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        text = text[:at] + rng.choice([*PIECES, text[at:until]]) + text[until:]
    grade_everywhere(text)


REPEATED = ["1,", "1,111", "1 ", "(1", "-1", "1+", "1、", r"\boxed{5}", r"\boxed{5"]


@pytest.mark.parametrize("piece", [*PIECES, *REPEATED])
def test_long_repetitions_take_bounded_time(piece: str) -> None:
    repeated = piece * (30_000 // len(piece))
    for around in ("{}", r"\boxed{{{}}}", "<answer>{}</answer>"):
        grade_everywhere(around.format(repeated))
