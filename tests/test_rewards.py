"""Rewards against hand-made completions, where answers stand, sums of rewards, and fuzzing."""

import random
import subprocess
import sys
import time
from typing import Any

import pytest
from helpers import example, final_answer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from r1jax.config import ConfigError, DataError
from r1jax.rewards import REWARDS, Failure, Grade, load_rewards, score, stop_if_failed
from r1jax.rewards.accuracy import accuracy, lenient_accuracy
from r1jax.rewards.format import format_reward, r1_format_reward, reflective_words
from r1jax.rewards.penalties import repetition
from r1jax.tasks import check_example, math_task, same_answer
from r1jax.tasks.answers import final_answers
from r1jax.tasks.code_task import final_programs, last_program
from r1jax.tasks.gym_task import is_plain
from r1jax.types import Example

CONTEXT: dict[str, Any] = {"length": 10, "finish_reason": "stop"}
GAME = {"numbers": [3, 8, 8, 1], "target": 24}


def test_rewards_import_no_jax() -> None:
    code = "import sys, r1jax.rewards, r1jax.rewards.pool; print({'jax', 'flax'} & {*sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


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
    (r"<think>a</think> \boxed{6}" + "\n\n" + r"\boxed{5}", ["5"]),  # corrected
    (r"<think>a</think> \boxed{6}. Wait, no: \boxed{5}", ["5"]),
    (r"<think>a</think> $\boxed{6}$. Wait, no: $\boxed{5}$.", ["5"]),
    (r"<think>a</think> \[\boxed{6}.\] It is \[\boxed{5}\]", ["5"]),
    (r"</think>是\boxed{6}。不对，是\boxed{5}。", ["5"]),
    (r"a</think> <answer>\boxed{6}. No, \boxed{5}</answer>", ["5"]),
    (r"a</think> \boxed{4}; \boxed{6}, \boxed{5}", ["4", "6", "5"]),
    (r"a</think> \boxed{4}. \boxed{6} and \boxed{5}", ["6", "5"]),
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
    r1_format = REWARDS["accuracy_in_r1_format"]
    assert r1_format(five, rf"thoughts</think> {boxed}", **CONTEXT) == 1
    assert r1_format(five, rf"thoughts</think> {boxed}".replace("5", "6"), **CONTEXT) == 0
    assert r1_format(five, rf"thoughts that never close: {boxed}", **CONTEXT) == 0
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
        # the final answer first: never below the strict one
        ("math", r"\frac{3}{4}", r"<answer>\frac{3}{4}</answer>", 1),
        ("math", "4", r"<answer>\frac{3}{4}</answer>", 0),
        ("math", "1", r"<answer>x^2+1</answer>", 0),
        ("math", r"\frac{3}{4}", "so it is 3/4.", 1),
        ("math", r"\frac{3}{4}", r"so it is \frac{3}{4}.", 1),
        ("math", "x+1", "so $y = x+1$.", 1),
        ("math", "5", "<answer>The answer is 5</answer>", 1),
        ("math", "5", "<answer>6</answer> not 5", 0),
        ("math", "(1,2)", r"a</think> \boxed{(1,2)} as 3 > 2", 1),
        ("choice", "B", r"\boxed{B}. Option A fails.", 1),
        ("choice", "A", r"\boxed{B}. Option A fails.", 0),
        ("choice", "C", r"\boxed{\textbf{(C)}\ 12}", 1),
        ("choice", "C", "<answer>I think it is C</answer>", 1),
        ("integer", "5", r"\boxed{5} apples, 3 of them red", 1),
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
    ("<think>\u3164</think> <answer>b</answer>", 0),
    ("<think>\u2800\u2800</think> <answer>b</answer>", 0),
    ("<think>\u034f</think> <answer>b</answer>", 0),
    ("<think>\u115f\u1160\uffa0</think> <answer>b</answer>", 0),
    ("<think>\u0301\ufe0f</think> <answer>b</answer>", 0),
    ("<think>a</think> <answer>\u3164</answer>", 0),
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
        (example("integr", "5"), "task .integr. is neither module:NAME nor one of math, integer"),
        (example("integer", "five"), "'five' is no integer answer"),
        (example("math", " "), "' ' is no math answer"),
        (example("math", '["1","2"]'), "a list or a mapping rather than one answer"),
        (example("math", "['1', '2']"), "a list or a mapping"),
        (example("math", '{"value": 5}'), "a list or a mapping"),
        (example("math", "The answer is 5"), "a sentence; the answer alone is wanted"),
        (example("math", "答案是5"), "a sentence"),
        (example("math", "She has 5 + 3 = 8.\n\nSo it is 8."), "a text rather than an answer"),
        (example("math", "x " * 600), "a text rather than an answer"),
        (example("math", r"\frac{1}{2"), "a brace without its other"),
        (example("math", "5 ####"), "no answer behind its last ####"),
        (example("choice", "K"), "'K' is no choice answer"),
        (example("countdown", "1+2"), "countdown needs"),
        (example("countdown", "", metadata={"numbers": ["1"], "target": 1}), "not all integers"),
    ):
        with pytest.raises(DataError, match=message):
            check_example(bad)


@pytest.mark.parametrize(
    ("reference", "right", "wrong"),
    [
        ("Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n\nSo 48+24 = 72.\n#### 72", "72", "24"),
        ("#### 1,200", "1200", "1,201"),
        ('["72"]', "72", "73"),
        ("['72']", "72", "73"),
        ('"72"', "72", "73"),
        (r"\boxed{72}", "72", "73"),
        ("Answer: 72", "72", "73"),
        (r"\text{Answer: 72}", "72", "73"),
        ("<think>70 + 2</think> <answer>72</answer>", "72", "70"),
        (r"We add and get $70+2=\boxed{72}$, as was to be shown.", "72", "70"),
        (r"\textbf{(A)}\ 72", "72", "73"),
        (r"\textbf{(A)}\ 72", "A", "B"),
        ("6e13", r"6 \times 10^{13}", "6"),
        ("1.6E-19", r"1.6 \cdot 10^{-19}", "0"),
        ("[1, 2]", "[1,2]", "(1,2)"),
        ("{1, 2}", r"\{2, 1\}", "1"),
    ],
)
def test_references_are_read(reference: str, right: str, wrong: str) -> None:
    row = example("math", reference)
    check_example(row)
    assert accuracy(row, rf"a</think> \boxed{{{right}}}", **CONTEXT) == 1
    assert accuracy(row, rf"a</think> \boxed{{{wrong}}}", **CONTEXT) == 0


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


def test_stop_if_failed() -> None:
    good = Grade(1.0, {})
    bad = Grade(0.0, {}, Failure("exception", "reward 'mine' raised ValueError: asleep"))
    late = Grade(0.0, {}, Failure("timeout", "late"))
    stop_if_failed([], 0.5, "training")
    stop_if_failed([bad, good], 0.5, "training")
    stop_if_failed([late, late], 0.5, "training")
    expected = r"'mine' raised ValueError: asleep \(2 of 3 completions of training failed"
    with pytest.raises(ConfigError, match=expected):
        stop_if_failed([bad, bad, good], 0.5, "training")
    with pytest.raises(ConfigError, match="more than the share 0 of"):
        stop_if_failed([bad, good, good], 0, "training")


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
        patch.setattr(math_task, "TIME_LIMIT", 0.2)
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
