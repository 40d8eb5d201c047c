"""Penalties, rewards with arguments, knights and knaves, reasoning-gym."""

import json
from pathlib import Path
from typing import Any

import pytest

from r1jax.benchmarks.logic import gym, knights
from r1jax.benchmarks.math import gsm8k_solutions
from r1jax.config import ConfigError, DataError
from r1jax.data.datasets import to_example
from r1jax.rewards import load_rewards, score
from r1jax.rewards.accuracy import accuracy, lenient_accuracy
from r1jax.rewards.penalties import overlong, repetition
from r1jax.tasks import TASKS, check_example
from r1jax.tasks.gym_task import EVALUATED, is_plain
from r1jax.types import Example

CONTEXT: dict[str, Any] = {"length": 10, "finish_reason": "stop"}
EXAMPLE = Example("e", ({"role": "user", "content": "?"},), "5", "integer")


# -- penalties -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "reason", "expected"),
    [
        (1, "stop", 0), (80, "stop", 0), (85, "stop", -0.25), (90, "stop", -0.5), (100, "stop", -1),
        (150, "stop", -1), (100, "length", -1), (10, "length", -1),
    ],
)  # fmt: skip
def test_overlong(length: int, reason: str, expected: float) -> None:
    found = overlong(EXAMPLE, "", length=length, finish_reason=reason, max_tokens=100, buffer=20)
    assert found == expected


@pytest.mark.parametrize(
    ("text", "ngram", "expected"),
    [
        ("", 2, 0), ("one", 2, 0), ("one two three", 2, 0),
        ("a b a b a b", 2, -3 / 5),  # ab ba ab ba ab: two of five are new
        ("A b, a B!", 2, -1 / 3),  # case and marks don't matter
        ("好好好好", 1, -3 / 4), ("今天天气好", 2, 0), ("x " * 1000, 8, -992 / 993),
    ],
)  # fmt: skip
def test_repetition(text: str, ngram: int, expected: float) -> None:
    assert repetition(EXAMPLE, text, **CONTEXT, ngram=ngram) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ({"overlong": 1.0}, "overlong' needs the argument max_tokens"),
        ({"overlong": {"weight": 1.0, "max_tokens": 9}}, "needs the argument buffer"),
        ({"repetition": {"weight": 1.0, "n": 3}}, "has no argument n .it takes: ngram"),
        ({"accuracy": {"weight": 1.0, "n": 3}}, "has no argument n .it takes: none"),
        ({"repetition": {"ngram": 3}}, "weight of 'repetition' is None"),
    ],
)
def test_wrong_arguments(rewards: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_rewards(rewards)


def test_arguments_and_weights() -> None:
    rewards = load_rewards({"accuracy": 1.0, "repetition": {"weight": 0.5, "ngram": 1}})
    grade = score(rewards, EXAMPLE, "5 5 is \\boxed{5}", 10, "stop")
    assert grade.breakdown == {"accuracy": 1.0, "repetition": pytest.approx(-2 / 5)}
    assert grade.reward == pytest.approx(1 - 0.5 * 2 / 5)


# -- knights and knaves ----------------------------------------------------------------------------

GOLD = "(1) Amelia is a knight\n(2) Liam is a knave\n(3) Noah is a knight"


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (GOLD, 1),
        ("Amelia is a knight, Liam is a knave, and Noah is a knight.", 1),
        ("Noah: knight; Liam: Knave; amelia: KNIGHT", 1),
        ("Amelia = knight, Liam = knave, Noah = knight", 1),
        ("\\text{Amelia is a knight, Liam is a knave, Noah is a knight}", 1),
        ("**Amelia** is a **knight**, **Liam** is a **knave**, **Noah** is a **knight**", 1),
        ("Amelia is not a knave, Liam is not a knight, Noah is a knight", 1),
        ("Amelia is a knight, Liam is a knave", 0),
        ("Amelia is a knight, Liam is a knave, Noah is a knave", 0),
        ("Amelia is a knight, Liam is a knave, Noah is a knight, Zoe is a knave", 0),
        ("Amelia is a knight, Amelia is a knave, Liam is a knave, Noah is a knight", 0),
        ("Amelia is a knight or Liam is a knave, and Noah is either", 0),
        ("knight, knave, knight", 0),
        ("Amelia is a knight or a knave, Liam is a knave, Noah is a knight", 0),
        ("Amelia is a knight, or a knave; Liam is a knave; Noah is a knight", 0),
        ("Amelia is a knight/knave, Liam is a knave, Noah is a knight", 0),
        ("Amelia is a knight? Liam is a knave, Noah is a knight", 0),
        ("Amelia is a knight if Liam is a knave, Noah is a knight, Amelia is a knight", 0),
        ("Maybe Amelia is a knight, Liam is a knave, Noah is a knight", 0),
        ("Amelia is the knight, Liam is the knave, and Noah is a knight", 1),
        ("It is false that Amelia is a knight; Liam is a knave, Noah is a knight", 0),
        ("Not Amelia is a knight; Liam is a knave, Noah is a knight", 0),
        ("Amelia is a knight, Liam is a knave, Noah is a knight: the opposite of that", 0),
        ("", 0),
        (GOLD + "!" * 5000, 0),
    ],
)
def test_knights(answer: str, right: int) -> None:
    example = Example("e", ({"role": "user", "content": "?"},), GOLD, "knights")
    check_example(example)
    text = f"<think>Noah is a knave?</think><answer>{answer}</answer>"
    assert accuracy(example, text, **CONTEXT) == right


def test_lenient_knights_takes_the_last_statements() -> None:
    example = Example("e", ({"role": "user", "content": "?"},), GOLD, "knights")
    thoughts = "If Amelia is a knave, then Liam is a knight. So not. "
    text = f"{thoughts} Amelia is a knight, Liam is a knave and Noah is a knight."
    assert lenient_accuracy(example, text, **CONTEXT) == 1
    assert lenient_accuracy(example, text.replace("Noah is a knight", "ok"), **CONTEXT) == 0
    assert TASKS["knights"].extract("nothing here") is None
    marked = "**Amelia** is a **knight**, **Liam** is a **knave**, **Noah** is a **knight**"
    assert lenient_accuracy(example, marked, **CONTEXT) == 1


def test_knights_rows(tmp_path: Any) -> None:
    path = tmp_path / "kk.jsonl"
    path.write_text(
        '{"id": "1", "problem": "Who?", "names": ["Ann", "Bob"], "solution": [true, false]}'
    )
    (row,) = knights(str(path))
    example = to_example(row, 0, "kk")
    check_example(example)
    assert example.answer == "Ann is a knight, Bob is a knave"


# -- reasoning-gym ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("3 * (4 + 2)", True), ("[[1, 0], [0, 1]]", True), ("x**2/2 + sin(x) + C", True),
        ("1 2 3", True), ("_ Q _\nQ _ _", True), ("", True),
        ("__import__('os').system('x')", False), ("(1).__class__", False), ("open(a)", False),
        ("[x for x in y]", False), ("lambda: 0", False), ("exec(a)", False), ("a.b", False),
        ("sin(x, evaluate=0)", False), ("'a' * 5", False), ("['A', 'B']", True),
        ("f'{a}'", False), ("a if b else c", False), ("exit()", False), ("preview(x)", False),
        ("x := 3", False), ("10**10**10", False), ("9**99999", False), ("[1] * 10**9", False),
        ("import os", True), ("a;b", False), ("a = open('x')", False), ("__x__ y", False),
    ],
)  # fmt: skip
def test_plain_answers(answer: str, plain: bool) -> None:
    assert is_plain(answer) is plain


@pytest.mark.parametrize(
    "name", ["basic_arithmetic", "knights_knaves", "countdown", "spiral_matrix"]
)
def test_gym(name: str) -> None:
    pytest.importorskip("reasoning_gym")
    rows = gym(name, seed=1, size=5)
    assert rows == gym(name, seed=1, size=5) != gym(name, seed=2, size=5)
    for i, row in enumerate(rows):
        example = to_example(row, i, name)
        check_example(example)
        text = f"<think>x</think><answer>{row['answer']}</answer>"
        assert accuracy(example, text, **CONTEXT) == 1
        assert accuracy(example, "<think>x</think><answer>no idea</answer>", **CONTEXT) == 0
        assert lenient_accuracy(example, f"So it is\n{row['answer']}\n", **CONTEXT) == 1


def test_gym_partial_credit_is_none() -> None:
    library = pytest.importorskip("reasoning_gym")
    (row,) = gym("basic_arithmetic", seed=1, size=1)
    wrong = f"{row['answer']}0"
    example = to_example(row, 0, "gym")
    graded = library.get_score_answer_fn("basic_arithmetic")
    theirs = graded(answer=f"{wrong} or", entry=row["entry"])
    assert theirs < 1
    assert accuracy(example, f"\\boxed{{{wrong}}}", **CONTEXT) == 0


def test_an_answer_is_not_executed(tmp_path: Any) -> None:
    pytest.importorskip("reasoning_gym")
    for name in sorted(EVALUATED):
        (row,) = gym(name, seed=1, size=1)
        example = to_example(row, 0, name)
        for shape in ("{}", "[{}]", "[[{}]]"):
            answer = shape.format(f"open('{tmp_path}/{name}', 'w')")
            assert accuracy(example, f"<answer>{answer}</answer>", **CONTEXT) == 0
    assert not list(tmp_path.iterdir())


def test_every_scorer_that_evaluates_is_known() -> None:
    """Their code is read: a new release may bring another."""
    library = pytest.importorskip("reasoning_gym")
    import inspect
    import re

    found = set()
    for name, (dataset, _) in library.factory.DATASETS.items():
        method = getattr(dataset, "score_answer", None)
        if method and re.search(
            r"\b(?:eval|exec|parse_expr|sympify)\(answer", inspect.getsource(method)
        ):
            found.add(name)
    assert found == EVALUATED


def test_unknown_gym_dataset() -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ConfigError, match="'nothing' is no dataset"):
        gym("nothing", seed=0, size=1)
    with pytest.raises(DataError, match="'nothing' is no dataset"):
        check_example(
            to_example({"prompt": "?", "answer": "", "task": "gym", "dataset": "nothing"}, 0, "")
        )


def test_gsm8k_solutions_become_thoughts_and_answer(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    solution = "He sold 48/2 = <<48/2=24>>24.\n In all 48+24 = $<<48+24=72>>72.\n#### 72"
    row = {"id": "g/0", "problem": "How many {clips}?", "answer": "72", "solution": solution}
    path.write_text(json.dumps(row) + "\n")
    assert gsm8k_solutions(str(path), "Q: {problem}") == [
        {
            "messages": [
                {"role": "user", "content": "Q: How many {clips}?"},
                {
                    "role": "assistant",
                    "content": "<think> He sold 48/2 = 24.\nIn all 48+24 = $72. </think>"
                    " <answer> 72 </answer>",
                },
            ]
        }
    ]
    path.write_text(json.dumps({"id": "g/1", "problem": "?", "answer": "72"}) + "\n")
    with pytest.raises(DataError, match="g/1 has no key 'solution'; it has id, problem, answer"):
        gsm8k_solutions(str(path), "{problem}")
