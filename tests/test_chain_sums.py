"""Chain sums: values and worked steps by hand, the split, demonstrations."""

import pytest

from experiments.smollm2.chain_sums import chain_sums, split_of, spoken, value_of, worked
from r1jax.config import ConfigError


@pytest.mark.parametrize(
    ("expression", "steps", "said"),
    [
        ("4 + 8", ["4 + 8 = 12"], "4 + 8"),
        ("6 + 30 - 5", ["6 + 30 = 36", "36 - 5 = 31"], "6 + 30, then subtract 5"),
        ("9 - 12 - 3", ["9 - 12 = -3", "-3 - 3 = -6"], "9 - 12, then subtract 3"),
        ("1 - 50 + 99", ["1 - 50 = -49", "-49 + 99 = 50"], "1 - 50, then add 99"),
    ],
)
def test_worked_and_spoken(expression: str, steps: list[str], said: str) -> None:
    assert worked(expression) == steps
    assert spoken(expression) == said
    assert value_of(expression) == int(steps[-1].split(" = ")[-1])


def test_rows_are_of_their_split_and_different() -> None:
    test, train = (chain_sums(0, split, "{expression}?", 200) for split in ("test", "train"))
    questions = [{row["messages"][-1]["content"][:-1] for row in rows} for rows in (test, train)]
    assert [len(asked) for asked in questions] == [200, 200]
    assert [{split_of(e) for e in asked} for asked in questions] == [{"test"}, {"train"}]
    row = chain_sums(0, "train", "{expression}?")(0)
    assert row == train[0]
    assert row["answer"] == str(value_of(row["messages"][0]["content"][:-1]))


def test_demonstrations_stand_before_the_question() -> None:
    row = chain_sums(0, "train", "{spoken}: {expression}.", None, ["6 + 30 - 5"])(0)
    assert row["messages"][:2] == [
        {"role": "user", "content": "6 + 30, then subtract 5: 6 + 30 - 5."},
        {"role": "assistant", "content": r"6 + 30 = 36. 36 - 5 = 31. The answer is \boxed{31}."},
    ]
    assert [message["role"] for message in row["messages"]] == ["user", "assistant", "user"]


def test_a_test_problem_is_no_demonstration() -> None:
    test = chain_sums(0, "test", "{expression}", 1)[0]["messages"][0]["content"]
    with pytest.raises(ConfigError, match=f"'{test}' is a test problem".replace("+", r"\+")):
        chain_sums(0, "train", "{expression}", None, [test])
