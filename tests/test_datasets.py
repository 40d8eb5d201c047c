"""Rows from files and generators, their endless stream, and what is said of bad ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from r1jax.config import ConfigError, DataError
from r1jax.data.datasets import (
    DataConfig,
    examples_of,
    finite_examples,
    last_turns,
    mixed,
    rows_of,
    stream,
    to_example,
)
from r1jax.types import Example

ROW = {"prompt": "1 + 1 = ?", "answer": 2, "task": "math"}


def endless(start: int = 0) -> Callable[[int], dict[str, Any]]:
    """A source without end, as a config names it."""
    return lambda index: ROW | {"id": f"row-{start + index}"}


def finite(count: int) -> list[dict[str, Any]]:
    """A source with an end."""
    return [ROW | {"id": index} for index in range(count)]


HERE = f"{__name__}:"


# -- stream ------------------------------------------------------------------------------------


def test_every_row_comes_once_an_epoch_in_another_order() -> None:
    row = stream(list(range(10)), seed=3)
    epochs = [[row(i) for i in range(start, start + 10)] for start in (0, 10, 20)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert len({tuple(epoch) for epoch in [*epochs, list(range(10))]}) == 4


def test_a_row_is_a_function_of_seed_and_index() -> None:
    forward = [stream(list(range(10)), seed=3)(i) for i in range(40)]  # a new stream each time
    row = stream(list(range(10)), seed=3)
    assert [row(i) for i in reversed(range(40))] == forward[::-1]
    assert [row(i) for i in (35, 2, 35, 2)] == [forward[35], forward[2]] * 2
    other = stream(list(range(10)), seed=4)
    assert [other(i) for i in range(40)] != forward


def test_an_unlimited_source_is_its_own_stream() -> None:
    row = stream(endless(start=5), seed=3)
    assert [row(i)["id"] for i in (7, 0)] == ["row-12", "row-5"]


# -- rows_of -----------------------------------------------------------------------------------


def test_rows_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n{"a": "三"}\n', encoding="utf-8")
    assert rows_of(DataConfig(path=str(path)), "config.data") == [{"a": 1}, {"a": 2}, {"a": "三"}]
    assert rows_of(DataConfig(path=str(path), limit=1), "config.data") == [{"a": 1}]


def test_rows_of_a_function() -> None:
    assert rows_of(DataConfig(function=HERE + "finite", args={"count": 3}), "k") == finite(3)
    rows = rows_of(DataConfig(function=HERE + "endless", args={"start": 4}), "k")
    assert callable(rows)
    assert rows(1)["id"] == "row-5"
    limited = rows_of(DataConfig(function=HERE + "endless", limit=2), "k")
    assert [row["id"] for row in limited] == ["row-0", "row-1"]


@pytest.mark.parametrize("config", [DataConfig(), DataConfig(path="a", function="b:c")])
def test_exactly_one_source(config: DataConfig) -> None:
    with pytest.raises(ConfigError, match=r"config\.data needs exactly one of path and function"):
        rows_of(config, "config.data")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "rows.jsonl is empty"),
        (b"\n \n", "rows.jsonl is empty"),
        (b'{"a": 1}\n\n{"a": \n', "rows.jsonl:3 is not JSON"),  # blank lines count as lines
        (b'{"a": 1}\n{"a": "\xff"}\n', "rows.jsonl:2 is not JSON"),
        (b'{"a": 1}\n[1]\n', "rows.jsonl:2 is a JSON list, expected an object"),
    ],
)
def test_bad_files_are_named_with_the_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        rows_of(DataConfig(path=str(path)), "config.data")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl does not exist"):
        rows_of(DataConfig(path=str(tmp_path / "nowhere.jsonl")), "config.data")


# -- examples ----------------------------------------------------------------------------------


def test_a_prompt_becomes_one_user_message() -> None:
    example = to_example(ROW | {"level": 3}, 6, "rows.jsonl")
    assert example == Example(
        id="6",
        messages=({"role": "user", "content": "1 + 1 = ?"},),
        answer="2",
        task="math",
        metadata={"level": 3},
    )
    assert example.question == "1 + 1 = ?"


def test_messages_and_id_are_kept() -> None:
    messages = [{"role": "system", "content": "Think."}, {"role": "user", "content": "1 + 1 = ?"}]
    row = {"id": 17, "messages": messages, "answer": "2", "task": "math"}
    example = to_example(row, 0, "rows.jsonl")
    assert (example.id, example.messages, example.metadata) == ("17", tuple(messages), {})
    assert to_example(example, 0, "rows.jsonl") is example


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (
            "prompt",
            r"rows\.jsonl, row 3: key prompt \(or messages\) is missing; it has answer, task",
        ),
        ("answer", r"rows\.jsonl, row 3: key answer is missing; it has prompt, task"),
        ("task", r"rows\.jsonl, row 3: key task is missing; it has prompt, answer"),
    ],
)
def test_a_missing_key_is_named(missing: str, message: str) -> None:
    row = {key: value for key, value in ROW.items() if key != missing}
    with pytest.raises(DataError, match=message):
        to_example(row, 2, "rows.jsonl")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"answer": None}, "row 3: key answer is missing"),
        ({"prompt": None}, r"row 3: key prompt \(or messages\) is missing"),
        ({"prompt": 7}, "row 3: prompt 7 is not a text"),
        ({"messages": []}, r"row 3: messages \[\] is not a list of messages"),
        ({"messages": "hi"}, "row 3: messages 'hi' is not a list of messages"),
        ({"messages": [{"role": "user"}]}, "row 3: message .* has no role and content"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_example(ROW | values, 2, "rows.jsonl")


def test_a_source_without_rows() -> None:
    with pytest.raises(DataError, match="has no rows"):
        stream([], 0)
    part = {"function": HERE + "finite", "args": {"count": 0}, "share": 1}
    with pytest.raises(DataError, match="parts.a has no rows"):
        mixed({"a": part}, 0)


def test_examples_of_finite_and_unlimited_sources() -> None:
    examples = examples_of(DataConfig(function=HERE + "finite", args={"count": 2}), "k")
    assert [example.id for example in examples] == ["0", "1"]
    unlimited = examples_of(DataConfig(function=HERE + "endless"), "k")
    assert callable(unlimited)
    assert unlimited(8).id == "row-8"


def test_an_evaluation_set_has_an_end() -> None:
    with pytest.raises(ConfigError, match=r"config\.eval\.limit must be set: .*endless has no end"):
        finite_examples(DataConfig(function=HERE + "endless"), "config.eval")
    limited = finite_examples(DataConfig(function=HERE + "endless", limit=2), "config.eval")
    assert [example.id for example in limited] == ["row-0", "row-1"]


# -- mixed -------------------------------------------------------------------------------------


def test_last_turns_leave_demonstrations_out(tmp_path: Path) -> None:
    turns = [{"role": role, "content": role + n} for n in "123" for role in ("user", "assistant")]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"id": "a", "messages": turns}) + "\n")
    wanted = {"id": "a", "messages": turns[4:]}
    assert last_turns(str(path)) == [wanted]
    with path.open("a") as file:
        file.write(json.dumps({"messages": turns[:5]}) + "\n")
    with pytest.raises(DataError, match=r"rows.jsonl:2: messages do not end with a question"):
        last_turns(str(path))


def test_mixed_keeps_the_shares_and_loses_no_row() -> None:
    parts = {
        "many": {"function": f"{HERE}finite", "args": {"count": 6}, "share": 3},
        "few": {"function": f"{HERE}endless", "args": {"start": 100}, "share": 1},
    }
    row = mixed(parts, seed=5)
    names = [row(i)["id"] for i in range(16)]
    few = [i for i, name in enumerate(names) if isinstance(name, str)]
    assert [names[i] for i in few] == [f"row-{n}" for n in (100, 101, 102, 103)]
    assert few == [2, 6, 10, 14]
    many = [name for name in names if isinstance(name, int)]
    assert sorted(many[:6]) == sorted(many[6:]) == list(range(6))  # every row once an epoch
    assert [mixed(parts, seed=5)(i)["id"] for i in (9, 3)] == [names[9], names[3]]


def test_mixed_mistakes() -> None:
    part = {"function": f"{HERE}finite", "args": {"count": 6}}
    with pytest.raises(ConfigError, match="parts is empty"):
        mixed({}, seed=0)
    for share in (None, 0, 0.5):
        with pytest.raises(ConfigError, match="parts.a.share .* must be a whole number above 0"):
            mixed({"a": part | {"share": share}}, seed=0)
    with pytest.raises(ConfigError, match="unknown key parts.a.arg"):
        mixed({"a": part | {"share": 1, "arg": 1}}, seed=0)
