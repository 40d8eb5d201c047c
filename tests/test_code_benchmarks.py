"""Programs of LiveCodeBench and others: how its files are read, asked and checked."""

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest
from test_sandbox import needs_bwrap

from r1jax.benchmarks import code, logic
from r1jax.benchmarks.code import livecodebench, pickled_text
from r1jax.config import ConfigError, DataError
from r1jax.data.datasets import to_example
from r1jax.rewards.accuracy import accuracy
from r1jax.tasks import check_example
from r1jax.tasks.code_task import run_tests, same_lines


def packed(tests: Any) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def test_case(given: str, output: str, kind: str = "stdin") -> dict[str, str]:
    return {"input": given, "output": output, "testtype": kind}


test_case.__test__ = False  # type: ignore[attr-defined]
STDIN = {
    "question_title": "Halve", "question_content": "Halve each.", "platform": "atcoder",
    "question_id": "abc1_a", "contest_id": "abc1", "contest_date": "2024-08-01T00:00:00",
    "starter_code": "", "difficulty": "easy", "metadata": "{}",
    "public_test_cases": json.dumps([test_case("2 4\n", "1 2\n")]),
    "private_test_cases": packed([test_case("3\n", "1.5\n")]),
}  # fmt: skip
METHOD = STDIN | {
    "question_id": "3001", "contest_date": "2025-02-01T00:00:00", "difficulty": "hard",
    "starter_code": "class Solution:\n    def pair(self, a: List[int], k: int) -> List[int]:\n",
    "metadata": '{"func_name": "pair"}',
    "public_test_cases": json.dumps([test_case("[1, 2]\n7", "[2, 7]", "functional")]),
    "private_test_cases": json.dumps([test_case("[null, true]\n-1", "[2, -1]", "functional")]),
}  # fmt: skip
HALVES = "for x in input().split():\n    print(int(x) / 2, end=' ')"
EQUAL = "class A:\n  __eq__ = lambda s, o: True\n"
PAIR = "class Solution:\n  def pair(self, a: List[int], k: int):\n    return (len(a), k)"


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def earned(row: Any, program: str) -> float:
    example = to_example(row, 0, "rows")
    check_example(example)
    return accuracy(example, f"So:\n```python\n{program}\n```", length=1, finish_reason="stop")


def test_the_questions(tmp_path: Path) -> None:
    method, stdin = livecodebench(write(tmp_path / "test.jsonl", [METHOD, STDIN]))
    assert stdin["prompt"].endswith(
        "tests. You will NOT return anything except for the program.\n\n### Question:\nHalve each."
        "\n\n### Format: Read the inputs from stdin solve the problem and write the answer to"
        " stdout (do not directly test on the sample inputs). Enclose your code within delimiters"
        " as follows.\n```python\n# YOUR CODE HERE\n```\n\n### Answer: (use the provided format"
        " with backticks)\n\n"
    )
    assert f"delimiters.\n```python\n{METHOD['starter_code']}\n```\n\n###" in method["prompt"]
    assert (stdin["difficulty"], method["difficulty"]) == ("easy", "hard")
    assert (stdin["time_limit_s"], len(stdin["tests"]), len(method["tests"])) == (6, 2, 2)


def test_the_window_and_the_directory(tmp_path: Path) -> None:
    days = ("2024-07-31", "2024-08-01", "2025-02-01", "2025-02-02")
    rows = [STDIN | {"question_id": day, "contest_date": f"{day}T00:00:00"} for day in days]
    rows.append(STDIN | {"question_id": "late", "contest_date": "2025-02-01T09:00:00"})
    write(tmp_path / "test.jsonl", rows[:2])
    write(tmp_path / "test2.jsonl", rows[2:])
    write(tmp_path / "other.jsonl", rows)
    found = livecodebench(str(tmp_path))
    assert [row["id"] for row in found] == [f"livecodebench/{day}" for day in days[1:3]]
    assert len(livecodebench(str(tmp_path), "2023-01-01", "2026-01-01")) == 5
    with pytest.raises(DataError, match="no problem of a contest from 2020"):
        livecodebench(str(tmp_path), "2020-01-01", "2020-02-01")
    with pytest.raises(ConfigError, match="days like 2024-08-01"):
        livecodebench(str(tmp_path), "August")


@needs_bwrap
@pytest.mark.parametrize(
    ("row", "program", "right"),
    [
        (STDIN, HALVES, 1),
        (STDIN, HALVES.replace("/ 2", "/ 2 + 1e-9"), 0),  # decimals, not floats
        (STDIN, HALVES.replace("/ 2", "// 2"), 0),  # only the private test says so
        (METHOD, PAIR, 1),
        (METHOD, PAIR.replace("(len(a), k)", "[len(a), k]"), 1),
        (METHOD, PAIR.replace("(len(a), k)", "[len(a), abs(k)]"), 0),
        (METHOD, PAIR.replace("(len(a), k)", "None"), 0),
        (METHOD, "def pair(a, k): return len(a), k", 1),
        (METHOD, "def other(a, k): return len(a), k", 0),
        (METHOD, EQUAL + PAIR.replace("(len(a), k)", "A()"), 0),
        (METHOD, PAIR.replace("(len(a), k)", "gcd(2, 4), inf and Counter([k]).total() * k"), 1),
    ],
)  # fmt: skip
def test_the_checker(tmp_path: Path, row: Any, program: str, right: int) -> None:
    (found,) = livecodebench(write(tmp_path / "test.jsonl", [row]))
    assert earned(found, program) == right


@needs_bwrap
def test_a_tuple_inside_is_no_list(tmp_path: Path) -> None:
    cases = json.dumps([test_case("1", "[[1, 2]]", "functional")])
    row = METHOD | {"public_test_cases": cases, "private_test_cases": "[]"}
    (found,) = livecodebench(write(tmp_path / "test.jsonl", [row]))
    method = "class Solution:\n  def pair(self, a): return {}"
    assert earned(found, method.format("([1, 2],)")) == 1
    assert earned(found, method.format("[(1, 2)]")) == 0


@pytest.mark.parametrize(
    ("expected", "output", "same"),
    [
        ("1 2\n3\n", "  1 2 \r\n3\n\n", True),
        ("1 2", "1  2", True),  # numbers
        ("a b", "a  b", False),  # words
        ("1.50", "1.5", True),
        ("0.3", "0.30000000000000004", False),
        ("1\n2", "1 2", False),
        ("1\n\n2", "1\n2", False),
        ("YES", "yes", False),
        ("nan", "NaN", False),
        ("snan", "sNaN", False),  # comparing it is an error
        ("", "\n \n", True),
        ("50000000000000000", "50000000000000001", False),
    ],
)
def test_lines(expected: str, output: str, same: bool) -> None:
    assert same_lines(expected, output) == same


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("executed",))


@pytest.mark.parametrize("protocol", range(2, 6))
def test_pickled_texts(protocol: int, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("", "[1]", "ä" * 300, "x" * 100_000):
        assert pickled_text(pickle.dumps(text, protocol)) == text
    for value in (Evil(), ["[1]"], ("a", Evil()), 3, b"[1]", None, {"a": "b"}):
        with pytest.raises(ValueError, match="its pickle"):
            pickled_text(pickle.dumps(value, protocol))
    assert capsys.readouterr().out == ""


def repacked(value: Any) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"private_test_cases": repacked(Evil())}, "pickle does more than hold a text"),
        ({"private_test_cases": "???"}, "private_test_cases is neither JSON nor JSON packed"),
        ({"private_test_cases": packed([])[:-8]}, "neither JSON nor JSON packed"),
        ({"private_test_cases": repacked("no")}, "neither JSON nor JSON packed"),
        ({"public_test_cases": packed([])}, "public_test_cases is not JSON"),
        ({"public_test_cases": "{}"}, "public_test_cases is no list"),
        ({"metadata": '{"func_name": "f"}'}, "test 1 needs .* testtype 'functional'"),
        ({"contest_date": "soon"}, "contest_date 'soon' is no date"),
    ],
)
def test_refused_rows(
    tmp_path: Path, change: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "test.jsonl", [STDIN, STDIN | change])
    with pytest.raises(DataError, match=f"test.jsonl:2.*{message}"):
        livecodebench(path)
    assert capsys.readouterr().out == ""


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file test\.jsonl"):
        livecodebench(str(tmp_path))
    with pytest.raises(DataError, match="does not exist"):
        livecodebench(str(tmp_path / "test.jsonl"))
    with pytest.raises(DataError, match="test.jsonl:1 has no key 'question_id'"):
        livecodebench(write(tmp_path / "test.jsonl", [{"a": 1}]))


@needs_bwrap
def test_a_function_named_like_one_of_pythons(tmp_path: Path) -> None:
    row = {
        "task_id": 11, "text": "Add.", "code": "def sum(a, b):\n    return a + b",
        "test_setup_code": "", "test_list": ["assert sum(1, 2) == 3"],
    }  # fmt: skip
    (found,) = code.mbpp(write(tmp_path / "mbpp.jsonl", [row]))
    assert earned(found, row["code"]) == 1  # type: ignore[arg-type]
    assert earned(found, "def sum(a, b):\n    return a - b") == 0
    # A test that does not say so still means Python's own.
    cheat = "def f(): return 1\ndef sum(x): return 3"
    assert run_tests(cheat, ["assert sum([f()]) == 3"])[0].verdict == "wrong_answer"


def test_countdown(tmp_path: Path) -> None:
    row = {"id": "c/0", "nums": [36, 39, 59], "target": 56, "example": "36 + 59 - 39"}
    (found,) = logic.countdown(write(tmp_path / "a.jsonl", [row]))
    assert "Using the numbers [36, 39, 59], create an equation that equals 56." in found["prompt"]
    example = to_example(found, 0, "rows")
    check_example(example)
    texts = {
        "<answer>36 + 59 - 39</answer>": 1,
        "</think>**so** <answer> (59 − 39) + 36 = 56 </answer>": 1,
        "<answer>36+59-39</answer> </think> no": 0,
        "<answer>36 + 59</answer>": 0,
        "<answer>59 - 39 + 36 + 36 - 36</answer>": 0,
        "": 0,
    }
    for text, right in texts.items():
        assert accuracy(example, text, length=1, finish_reason="stop") == right, text


def test_reasoning_gym() -> None:
    pytest.importorskip("reasoning_gym")
    rows = logic.gym_mix("", ("leg_counting", "number_sorting"), seed=0, size=3)
    assert [row["family"] for row in rows] == ["leg_counting"] * 3 + ["number_sorting"] * 3
    for i, row in enumerate(rows):
        example = to_example(row, i, "rows")
        check_example(example)
        for answer, right in ((row["answer"], 1), (f"{row['answer']} 7", 0)):
            text = f"<answer>{answer}</answer>"
            assert accuracy(example, text, length=1, finish_reason="stop") == right
