"""Chain sums: values and worked steps by hand, the split, demonstrations."""

import pytest

from r1jax.config import ConfigError
from r1jax.data.arithmetic import chain_sums, split_of, value_of, worked


@pytest.mark.parametrize(
    ("expression", "steps"),
    [
        ("4 + 8", "4 + 8 = 12"),
        ("6 + 30 - 5", "6 + 30 - 5 = 36 - 5 = 31"),
        ("9 - 12 - 3", "9 - 12 - 3 = -3 - 3 = -6"),
        ("1 - 50 + 99", "1 - 50 + 99 = -49 + 99 = 50"),
    ],
)
def test_worked(expression: str, steps: str) -> None:
    assert worked(expression) == steps
    assert value_of(expression) == int(steps.split(" = ")[-1])


def test_rows_are_of_their_split_and_different() -> None:
    test, train = (chain_sums(0, split, "{expression}?", 200) for split in ("test", "train"))
    questions = [{row["messages"][-1]["content"][:-1] for row in rows} for rows in (test, train)]
    assert [len(asked) for asked in questions] == [200, 200]
    assert [{split_of(e) for e in asked} for asked in questions] == [{"test"}, {"train"}]
    row = chain_sums(0, "train", "{expression}?")(0)
    assert row == train[0]
    assert row["answer"] == str(value_of(row["messages"][0]["content"][:-1]))


def test_demonstrations_stand_before_the_question() -> None:
    row = chain_sums(0, "train", "Calculate {expression}.", None, ["18 + 40"])(0)
    assert row["messages"][:2] == [
        {"role": "user", "content": "Calculate 18 + 40."},
        {"role": "assistant", "content": r"18 + 40 = 58. The answer is \boxed{58}."},
    ]
    assert [message["role"] for message in row["messages"]] == ["user", "assistant", "user"]


def test_a_test_problem_is_no_demonstration() -> None:
    test = chain_sums(0, "test", "{expression}", 1)[0]["messages"][0]["content"]
    with pytest.raises(ConfigError, match=f"'{test}' is a test problem".replace("+", r"\+")):
        chain_sums(0, "train", "{expression}", None, [test])
