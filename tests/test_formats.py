"""Rows as others write them: told by their keys, read by every stage, or refused."""

import ast
import gzip
import json
import math
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from r1jax.benchmarks.math import from_jsonl
from r1jax.config import ConfigError, DataError
from r1jax.data.datasets import DataConfig, FileRow, examples_of, read_row, rows_of
from r1jax.stages import reward_model, sft
from r1jax.tasks import check_example
from r1jax.types import Example

SHARED = Path(__file__).parents[2] / "shared/data"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [user("2 + 2?"), said("4")]
GSM8K = {"question": "2 + 2?", "answer": "It is <<2+2=4>>4.\n#### 1,234"}
MATH = {
    "problem": "2 + 2?",
    "level": "Level 5",
    "type": "Algebra",
    "solution": "First \\boxed{3}, no: $\\boxed{\\frac{1}{2}}$.",
}

# (format, row, the messages that are learnt)
LEARNT = [
    ("messages", {"messages": TURNS}, TURNS),
    ("prompt_completion", {"prompt": "2 + 2?", "completion": "4"}, TURNS),
    ("prompt_completion", {"prompt": [user("2 + 2?")], "completion": [said("4")]}, TURNS),
    ("prompt_completion", {"prompt": [SYSTEM, user("2 + 2?")], "completion": "4"},
     [SYSTEM, *TURNS]),
    ("alpaca", {"instruction": "2 + 2?", "input": "", "output": "4"}, TURNS),
    ("alpaca", {"instruction": "Add.", "input": "2 and 2", "output": "4"},
     [user("Add.\n\n2 and 2"), said("4")]),
    ("alpaca", {"instruction": "2 + 2?", "output": "4", "system": "Be brief.",
                "history": [["1 + 1?", "2"]]},
     [SYSTEM, user("1 + 1?"), said("2"), *TURNS]),
    ("sharegpt", {"conversations": [{"from": "human", "value": "2 + 2?"},
                                    {"from": "gpt", "value": "4"}]}, TURNS),
    ("sharegpt", {"system": "Be brief.", "conversations": [
        {"from": "user", "value": "2 + 2?"}, {"from": "assistant", "value": "4"}]},
     [SYSTEM, *TURNS]),
    ("sharegpt", {"conversations": TURNS}, TURNS),
    ("alpaca", {"instruction": "", "input": "2 + 2?", "output": "4"}, TURNS),
    ("gsm8k", GSM8K, [user("2 + 2?"), said(GSM8K["answer"])]),
    ("math", MATH, [user("2 + 2?"), said(MATH["solution"])]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "messages"), LEARNT)
def test_rows_to_learn(name: str, row: dict[str, Any], messages: list[Any]) -> None:
    for data in (DataConfig(path="a"), DataConfig(path="a", format=name)):
        found = read_row(FileRow(row, "a:1", data), "sft")
        assert found["messages"] == messages
        assert found.keys() <= {"messages", "level", "type"}


# (format, row, prompt, answer, metadata)
ASKED = [
    ("question", {"prompt": "2?", "answer": "2", "task": "math", "problem": "x"}, "2?", "2",
     {"problem": "x"}),
    ("gsm8k", GSM8K, "2 + 2?", "1234", {"solution": "It is <<2+2=4>>4."}),
    ("math", MATH, "2 + 2?", "\\frac{1}{2}",
     {"level": "Level 5", "type": "Algebra", "solution": MATH["solution"]}),
    ("math", {"problem": "2?", "solution": "so $\\boxed 2$."}, "2?", "2",
     {"solution": "so $\\boxed 2$."}),
    ("verl", {"data_source": "gsm8k", "prompt": [user("2?")], "ability": "math",
              "reward_model": {"style": "rule", "ground_truth": "2"}}, "2?", "2",
     {"data_source": "gsm8k", "ability": "math"}),
    ("math", {"problem": "2?", "answer": 2, "subject": "Algebra", "level": 3}, "2?", "2",
     {"subject": "Algebra", "level": 3}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "prompt", "answer", "metadata"), ASKED)
def test_rows_to_ask(
    tmp_path: Path, name: str, row: Any, prompt: str, answer: str, metadata: Any
) -> None:
    path = write(tmp_path / "rows.jsonl", [row])
    for data in (DataConfig(path=path), DataConfig(path=path, format=name)):
        (example,) = examples_of(data, "k")  # type: ignore[misc]
        assert isinstance(example, Example)
        assert (example.question, example.answer) == (prompt, answer)
        assert example.metadata == metadata
        assert example.where == f"{path}:1"
        check_example(example)


HEAD = "\n\nHuman: 1 + 1?\n\nAssistant: 2\n\nHuman: 2 + 2?\n\nAssistant:"
BEFORE = [user("1 + 1?"), said("2"), user("2 + 2?")]
# (format, row, the messages that both sides answer)
PAIRS = [
    ("preference", {"messages": [user("2 + 2?")], "chosen": "4", "rejected": "5"}, TURNS[:1]),
    ("preference", {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}, TURNS[:1]),
    ("preference", {"prompt": [SYSTEM, user("2 + 2?")], "chosen": "4", "rejected": "5"},
     [SYSTEM, user("2 + 2?")]),
    ("preference", {"prompt": "2 + 2?", "chosen": [said("4")], "rejected": [said("5")]},
     TURNS[:1]),
    ("preference", {"prompt": "2 + 2?", "chosen": TURNS, "rejected": [TURNS[0], said("5")]},
     TURNS[:1]),
    ("preference", {"chosen": TURNS, "rejected": [TURNS[0], said("5")]}, TURNS[:1]),
    ("preference", {"prompt": "2 + 2?", "chosen": said("4"), "rejected": said("5")}, TURNS[:1]),
    ("preference", {"prompt": "2 + 2?", "rejected": "5",
                    "chosen": [said("") | {"content": [{"type": "text", "text": "4"}]}]},
     TURNS[:1]),
    ("preference", {"system": "Be brief.", "prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
     [SYSTEM, user("2 + 2?")]),
    ("hh", {"chosen": f"{HEAD} 4", "rejected": f"{HEAD} 5"}, BEFORE),
    ("sharegpt_pair", {"conversations": [{"from": "human", "value": "2 + 2?"}],
                       "chosen": {"from": "gpt", "value": "4"},
                       "rejected": {"from": "gpt", "value": "5"}}, TURNS[:1]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "messages"), PAIRS)
def test_rows_to_compare(tmp_path: Path, name: str, row: Any, messages: list[Any]) -> None:
    path = write(tmp_path / "rows.jsonl", [row])
    for data in (DataConfig(path=path), DataConfig(path=path, format=name)):
        for kind in ("pairwise", "pointwise"):
            (found,) = reward_model.checked_rows(data, kind, "config.data")
            assert found == {"messages": messages, "chosen": "4", "rejected": "5"}


def test_pairs_of_nothing_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = {"prompt": "?", "chosen": "a", "rejected": "b"}
    other = {"chosen": f"{HEAD} 4", "rejected": "\n\nHuman: x\n\nAssistant: 5"}
    path = write(
        tmp_path / "rows.jsonl", [good, good | {"rejected": "a"}, good | {"chosen": " "}, other]
    )
    with caplog.at_level("WARNING", logger="absl"):
        found = reward_model.checked_rows(DataConfig(path=path), "pairwise", "config.data")
    assert len(found) == 1
    assert "config.data: 3 of 4 rows are left out" in caplog.text
    with pytest.raises(DataError, match="no row is a pair"):
        reward_model.checked_rows(
            DataConfig(path=write(tmp_path / "b.jsonl", [other])), "pairwise", "config.data"
        )


# ---- what is refused, and what would do ----

REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    ("sft", {"messages": TURNS, "text": "a"}, "can be read as messages or as text"),
    ("sft", {"instruction": "a", "output": "b", "text": "c"}, "can be read as text or as alpaca"),
    ("sft", {"query": "a", "response": "b"}, "needs the key messages or text; it has query, re"),
    ("sft", {"a": 1}, "formats: messages, text, prompt_completion, alpaca"),
    ("sft", {"conversations": [{"from": "tool", "value": "x"}]}, "from 'tool', not one of"),
    ("sft", {"conversations": "x"}, "conversations is str, not a list"),
    ("sft", {"problem": "a", "answer": "b"}, "no key solution to learn"),
    ("sft", {"prompt": None, "text": None}, "it has prompt .null., text .null."),
    ("sft", {"instruction": "a", "output": "b", "history": [["q"]]}, "history is a list of .quest"),
    ("sft", {"instruction": "a", "output": "b", "history": "qa"}, "history is a list of .questio"),
    ("sft", {"instruction": "a", "output": "b", "input": {"x": 1}}, "one of them is {'x': 1}"),
    ("sft", {"conversations": [{"from": "human", "value": "a", "content": "b"}]}, "both value and"),
    ("sft", {"conversations": [{"from": "human", "value": "a", "role": "gpt"}]}, "both from and r"),
    ("sft", {"prompt": json.dumps(TURNS), "completion": "b"}, "list of messages written as a text"),
    ("sft", {"prompt": str(TURNS), "completion": "b"}, "list of messages written as a text"),
    ("pairs", {"prompt": "a", "chosen": json.dumps(TURNS), "rejected": "b"}, "written as a text"),
    ("rl", {"prompt": "a", "reward_model": {"style": "rule"}}, "which has no ground_truth"),
    ("rl", {"problem": "a", "prompt": "b", "answer": "c"}, "both problem and prompt say"),
    ("rl", {"question": "a", "prompt": "b", "answer": "#### 4"}, "both question and prompt say"),
    ("rl", {"question": "a", "answer": "b"}, "key prompt .or messages. is missing; it has q"),
    ("rl", {"prompt": "a", "answer": "b"}, "key task is missing; it has prompt, answer"),
    ("rl", {"problem": "a", "solution": "none"}, "there is no answer: no key answer, and nothing"),
    ("pairs", {"prompt": "a", "chosen": "b"}, "a pair needs messages .or prompt., chosen and rej"),
    ("pairs", {"chosen": "a", "rejected": "b"}, "there is no prompt"),
    ("pairs", {"prompt": "x", "chosen": TURNS, "rejected": TURNS}, "other messages than the prom"),
    ("pairs", {"chosen": [user("a")], "rejected": [user("b")]}, "not end with a message of the a"),
]


@pytest.mark.parametrize(("use", "row", "message"), REFUSED)
def test_refused_rows(use: Any, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_row(FileRow(row, "a.jsonl:1", DataConfig(path="a.jsonl")), use)


@pytest.mark.parametrize(
    ("use", "row"),
    [
        ("sft", {"messages": TURNS, "text": "a"}),
        ("sft", {"instruction": "a", "output": "b", "text": "c", "id": 3}),
        ("sft", {"query": "a", "response": "b", "score": 5}),
        ("sft", {"prompt": "a", "response": "b"}),
        ("sft", {"messages": TURNS, "problem": "a", "solution": "b", "answer": "c"}),
        ("rl", {"question": "2 + 2?", "answer": "4"}),
        ("rl", {"prompt": "2 + 2?", "answer": "4"}),
        ("rl", {"query": "2 + 2?", "target": "4", "level": 3}),
        ("rl", {"instruction": "2 + 2?", "output": "4"}),
    ],
)
def test_the_config_that_an_error_prints_would_do(
    tmp_path: Path, use: Any, row: dict[str, Any]
) -> None:
    path = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError) as caught:
        list(examples_of(DataConfig(path=path), "k")) if use == "rl" else sft.checked_rows(  # type: ignore[arg-type]
            DataConfig(path=path)
        )
    said_ = str(caught.value).partition("config.data = ")[2].split(" or {")[0]
    data = DataConfig(**ast.literal_eval(said_))
    if use == "rl":
        (example,) = examples_of(data, "k")  # type: ignore[misc]
        assert (example.question, example.answer) == ("2 + 2?", "4")
    else:
        (found,) = sft.checked_rows(data)  # type: ignore[misc]
        read = read_row(found, "sft")
        assert read.keys() - {"id"} in ({"messages"}, {"text"})


@pytest.mark.parametrize(
    ("keys", "row"),
    [
        ({"prompt": "completion", "completion": "prompt"}, {"prompt": "4", "completion": "2 + 2?"}),
        ({"prompt": "q", "completion": "a"}, {"q": "2 + 2?", "a": "4", "prompt": None}),
    ],
)
def test_keys_with_other_names(keys: dict[str, str], row: dict[str, Any]) -> None:
    data = DataConfig(path="a.jsonl", keys=keys)
    assert read_row(FileRow(row, "a.jsonl:1", data), "sft")["messages"] == TURNS


def test_a_format_for_another_use() -> None:
    row = FileRow({"instruction": "a", "output": "b"}, "a:1", DataConfig(path="a", format="alpaca"))
    with pytest.raises(DataError, match="'alpaca' gives no rows to ask and grade; question, gsm8k"):
        read_row(row, "rl")
    with pytest.raises(ConfigError, match="config.data.format 'alpacca' is not one of .*alpaca"):
        rows_of(DataConfig(path="a", format="alpacca"), "config.data")


# ---- files ----


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a": 2}]', '\ufeff \n[{"a": 1},\n {"a": 2}]\n'])
def test_a_json_array(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text, encoding="utf-8")
    rows: Any = rows_of(DataConfig(path=str(path)), "k")
    assert rows == [{"a": 1}, {"a": 2}]
    assert rows[1].where == f"{path}, row 2"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.csv", 'a,b\r\n1,"x, ""y""\nz"\r\n2,\r\n'),
        ("rows.tsv", 'a\tb\n1\t"x, ""y""\nz"\n2\t\n'),
        ("rows.jsonl", '{"a": "1", "b": "x, \\"y\\"\\nz"}\n\n{"a": "2", "b": null}\n'),
    ],
)
def test_tables_and_packed_files(tmp_path: Path, name: str, text: str, packed: bool) -> None:
    data = b"\xef\xbb\xbf" + text.encode()
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(data) if packed else data)
    rows: Any = rows_of(DataConfig(path=str(path)), "k")
    assert rows == [{"a": "1", "b": 'x, "y"\nz'}, {"a": "2", "b": None}]
    assert rows[0].where.startswith(f"{path}:")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", b'[{"a": 1},\n{"a": }]', "a.json:2 is not JSON"),
        ("a.json", b'[{"a": 1}, "b"]', "a.json, row 2 is a JSON str, expected an object"),
        ("a.csv", b"a,b\n1,2\n3\n", "a.csv:3 has other cells than the first line names"),
        ("a.csv", b"a,b\n1,2,3\n", "a.csv:2 has other cells than the first line names"),
        ("a.csv", b"a,a\n1,2\n", "a.csv:1 names a column twice"),
        ("a.csv", b"a,b\n", "a.csv is empty"),
        ("a.csv", b"a\n\xff\n", "a.csv cannot be read as a table"),
        (
            "a.jsonl.gz",
            gzip.compress(mtime=0, data=b'{"a": 1}')[:-9],
            "a.jsonl.gz cannot be unpacked",
        ),
        ("", b"", "is a directory, expected a file"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    if name:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        rows_of(DataConfig(path=str(tmp_path / name)), "k")


def test_an_empty_array(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[]")
    with pytest.raises(DataError, match=r"rows\.json is empty"):
        rows_of(DataConfig(path=str(tmp_path / "rows.json")), "k")


@pytest.mark.parametrize("data", [{"path": "a.parquet"}, {"hub": "openai/gsm8k"}])
def test_extras_are_named(data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pyarrow", "pyarrow.parquet", "datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r'needs (pyarrow|datasets): pip install "r1jax\[data\]"'):
        rows_of(DataConfig(**data), "k")


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*args: Any, **more: Any) -> list[dict[str, Any]]:
        asked.append((args, more))
        return [GSM8K]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    data = DataConfig(hub="openai/gsm8k", split="test", args={"name": "main"})
    (example,) = examples_of(data, "k")  # type: ignore[misc]
    assert asked == [(("openai/gsm8k",), {"split": "test", "name": "main"})]
    assert (example.answer, example.where) == ("1234", "openai/gsm8k, row 1")


@pytest.mark.skipif(not find_spec("pyarrow"), reason="the extra `data`")
def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"messages": TURNS, "level": 3}, {"messages": TURNS, "level": None}]
    path = str(tmp_path / "rows.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    found: Any = rows_of(DataConfig(path=path), "k")
    assert found == rows
    assert found[1].where == f"{path}, row 2"
    with pytest.raises(DataError, match="does not exist"):
        rows_of(DataConfig(path=str(tmp_path / "no.parquet")), "k")
    (tmp_path / "bad.parquet").write_text("hm")
    with pytest.raises(DataError, match="cannot be read"):
        rows_of(DataConfig(path=str(tmp_path / "bad.parquet")), "k")


def test_from_jsonl_keeps_what_a_row_says(tmp_path: Path) -> None:
    row = {"problem": "2?", "answer": "2", "level": 5, "subject": "Algebra", "solution": "s"}
    data = {"path": write(tmp_path / "a.jsonl", [row]), "task": "math", "question": "{problem}!"}
    (found,) = from_jsonl(**data)
    assert {key: found[key] for key in ("prompt", "level", "subject")} == {
        "prompt": "2?!", "level": 5, "subject": "Algebra",
    }  # fmt: skip
    source = DataConfig(function="r1jax.benchmarks.math:from_jsonl", args=data)
    (example,) = examples_of(source, "k")  # type: ignore[misc]
    assert example.metadata["level"] == 5
    assert example.where.endswith("a.jsonl:1")
    for bad, message in (
        ({"problem": None}, "a.jsonl:1: the key 'problem' that the question asks for is null"),
        ({"answer": True}, "a.jsonl:1: answer True is neither a text nor a number"),
        ({"answer": math.nan}, "a.jsonl:1: answer nan is neither a text nor a number"),
    ):
        write(tmp_path / "a.jsonl", [row | bad])
        with pytest.raises(DataError, match=message):
            from_jsonl(**data)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data")
@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("gsm8k/test", "rl"), ("math500/math500", "rl"), ("cmath/cmath", "rl"),
        ("aime24/aime24", "rl"), ("math_train/math_train", "sft"), ("gsm8k/train", "sft"),
        ("hh_harmless_test/hh_harmless_test", "pairs"), ("dpo_en_zh_demo/en", "pairs"),
        ("dpo_en_zh_demo/zh", "pairs"),
    ],
)  # fmt: skip
def test_real_files(name: str, use: str) -> None:
    data = DataConfig(path=str(SHARED / f"{name}.jsonl"))
    if use == "rl":
        assert len(examples_of(data, "k")) > 20  # type: ignore[arg-type]
    elif use == "sft":
        assert len(sft.checked_rows(data)) > 1000  # type: ignore[arg-type]
    else:
        assert len(reward_model.checked_rows(data, "pairwise", "k")) > 200


def test_a_module_beside_the_config(tmp_path: Path) -> None:
    import subprocess

    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "my_own_rewards.py").write_text("def short(*a, **k): return 1.0\n")
    (tmp_path / "configs" / "c.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(arg=''):\n"
        "    return ConfigDict({'stage': 'grpo', 'model': {'path': 'x'}, 'data': {'path': 'y'},\n"
        "        'rewards': (('my_own_rewards:short', 1.0),), 'total_steps': 1})\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "r1jax.train", "--config=configs/c.py", "--workdir=w", "--dry_run"],
        cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
