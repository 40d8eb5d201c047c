"""Rows of files are looked at as a whole before a model is loaded: place, fault, what would do."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from helpers import MODEL, grpo_config, read_lines, sft_config
from test_chat_templates import QWEN3_HYBRID, write_tokenizer

from r1jax.config import ConfigError, DataError, UserError
from r1jax.data.datasets import DataConfig, to_example
from r1jax.stages import grpo, sft
from r1jax.stages.grpo_config import GrpoConfig
from r1jax.stages.grpo_rollouts import checked_stream
from r1jax.weights.load import load_tokenizer, open_known

USER = {"role": "user", "content": "2 + 2?"}
SAID = {"role": "assistant", "content": "4"}
GOOD = {"messages": [USER, SAID], "id": 7, "source": "a", "tools": None}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("\n" + "".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer with a chat template that reads `tools` and `enable_thinking`."""
    directory = tmp_path_factory.mktemp("chatty")
    return str(write_tokenizer(directory, QWEN3_HYBRID, "<|im_end|>"))


def sft_of(path: str, tokenizer: str, **changes: Any) -> sft.SftConfig:
    model = {"config": MODEL | {"vocab_size": 400}, "tokenizer": tokenizer}
    data = {"path": path} | changes.pop("data", {})
    defaults = {"model": model, "data": data, "pack_length": 64, "overlong": "error"}
    defaults["template"] = "chat"
    return sft.section(sft.SftConfig, sft_config(tokenizer, **defaults | changes))


def looked_at(config: sft.SftConfig) -> sft.Rows:
    """What a run does with its rows before it loads a model."""
    rows, opened = sft.checked_rows(config.data), open_known(config.model)
    assert opened is not None
    sft.check_rows(config, rows, opened.tokenizer, opened.config.max_length)
    return rows


# -- supervised ------------------------------------------------------------------------------------

BAD_SFT = [
    ({"messages": [USER, SAID], "text": "4"}, "the row can be read as messages or as text"),
    ({"text": None}, "needs the key messages or text"),
    ({"text": 5}, "text is int, not a string"),
    ({"text": ["a"]}, "text is list, not a string"),
    ({"messages": None}, "needs the key messages or text"),
    ({"messages": json.dumps([USER, SAID])}, "messages is a text, not a list of objects"),
    ({"messages": {"role": "user"}}, "messages is dict, not a list"),
    ({"messages": []}, "a conversation has no messages"),
    ({"messages": ["hi", "ho"]}, "a message is a text, not an object"),
    ({"messages": [USER]}, "must end with the assistant's"),
    ({"messages": [USER, SAID | {"content": None}]}, "content is NoneType, not a string"),
    ({"messages": [USER, SAID | {"content": 4}]}, "content is int, not a string"),
    ({"messages": [USER, SAID | {"content": [{"type": "image"}]}]}, "content has a part"),
    ({"messages": [USER | {"role": "tool"}, SAID]}, "role is 'tool', not one of"),
    ({"messages": [USER | {"role": "human"}, SAID]}, "role is 'human', not one of"),
    ({"messages": [USER, SAID | {"weight": 1}]}, "does not read the key 'weight'"),
    ({"messages": [USER, SAID], "weight": 0.5}, "nobody reads the key 'weight'"),
    ({"messages": [USER, SAID], "weight": 0}, "nobody reads the key 'weight'"),
    ({"messages": [USER, SAID], "train": False}, "nobody reads the key 'train'"),
    ({"messages": [USER, SAID], "completion": "4"}, "nobody reads the key 'completion'"),
    ({"messages": [USER, SAID], "chat_template_kwargs": {"x": 1}}, "reads no variable 'x'"),
    ({"messages": [USER, SAID], "chat_template_kwargs": ["x"]}, "kwargs is list, not an object"),
    ({"messages": [USER, SAID], "tools": '[{"name": "f"}]'}, "tools is str, not a list"),
    ({"messages": [USER, SAID | {"content": " \n"}]}, "a message of the assistant is empty"),
    ({"messages": [USER, SAID | {"content": ""}, USER, SAID]}, "message of the assistant is empty"),
    ({"messages": [USER, SAID | {"content": []}]}, "a message of the assistant is empty"),
    ({"messages": [USER | {"content": " "}, SAID]}, "a message of the user is empty"),
    ({"prompt": "a", "completion": ""}, "a message of the assistant is empty"),
    ({"instruction": "", "output": "b"}, "a message of the user is empty"),
    ({"messages": [SAID]}, "answers nothing"),
    ({"text": "a", "completion": "4"}, "nobody reads the key 'completion'"),
    ({"messages": [USER, SAID | {"content": "a" * 99}]}, "tokens, more than config.pack_length 64"),
]


@pytest.mark.parametrize(("row", "message"), BAD_SFT, ids=[m for _, m in BAD_SFT])
def test_a_bad_row_among_good_ones(
    tmp_path: Path, chatty: str, row: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "rows.jsonl", [GOOD, GOOD, row, GOOD])
    with pytest.raises(UserError) as caught:
        looked_at(sft_of(path, chatty))
    assert str(caught.value).startswith(f"{path}:4: ")  # its first line is empty
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_held_out_rows_are_looked_at_before_a_model_is_loaded(
    tmp_path: Path, chatty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = (
        {"path": write(tmp_path / f"{i}", [GOOD, row])} for i, row in enumerate((GOOD, {}))
    )
    changes = {"template": "chat", "pack_length": 64, "held_out": {"data": bad}}
    monkeypatch.setattr(sft, "open_run", never)
    with pytest.raises(DataError, match="1:3: an SFT row needs"):
        sft.run(sft_config(chatty, data=good, **changes), str(tmp_path / "run"))


def test_questions_of_benchmarks_are_looked_at_before_a_model_is_loaded(
    tmp_path: Path, tokenizer_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = ({"path": write(tmp_path / f"{i}", [ASKED, ASKED | row])} for i, row in
                 enumerate(({}, {"answer": "four"})))  # fmt: skip
    monkeypatch.setattr(grpo, "open_run", never)
    sampling = {"max_tokens": 8}
    for name in ("curve", "benchmarks"):
        for changes, message in (
            ({}, "1:3: .*'four' is no integer answer"),
            ({"data": good, "max_prompt_tokens": 60}, "60 . sampling.max_tokens 8 is more than"),
            ({"data": good, "prefix": 5}, "prefix 5 is neither a text nor texts by language"),
        ):
            asked = {"data": bad, "template": "plain", "max_prompt_tokens": 48} | changes
            asked["sampling"] = sampling
            config = grpo_config(
                tokenizer_dir, data=good, evaluation={name: {"b": asked}},
                rewards={"accuracy": 1.0}, graders={"sandbox": "rlimits"},
            )  # fmt: skip
            with pytest.raises(UserError, match=message):
                grpo.run(config, str(tmp_path / "run"))


def never(*args: Any, **more: Any) -> None:
    raise AssertionError("a model is loaded")


def test_the_run_itself_says_so_before_it_loads_a_model(tmp_path: Path, chatty: str) -> None:
    path = write(tmp_path / "rows.jsonl", [GOOD, {"text": None}])
    model = {"path": str(tmp_path / "no_such_model")}
    with pytest.raises(DataError, match=r"rows\.jsonl:3: an SFT row needs|messages"):
        config = sft_config(chatty, data={"path": path}, template="chat", pack_length=64)
        sft.run(config, str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="no_such_model does not exist"):
        config = sft_config(chatty, data={"path": write(tmp_path / "b", [GOOD])}, model=model)
        sft.run(config, str(tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    "row",
    [
        GOOD,
        {"messages": [USER, SAID], "level": 3, "language": "en", "domain": "math"},
        {"text": "2 + 2", "messages": None},
        {"messages": [USER, SAID], "tools": [{"name": "add"}]},
        {"messages": [USER, SAID], "enable_thinking": False},
        {"messages": [USER, SAID], "chat_template_kwargs": {"enable_thinking": False}},
        {"messages": [USER, SAID | {"content": [{"type": "text", "text": "4"}]}]},
        {"messages": [USER, SAID | {"reasoning_content": "hm"}]},
        {"messages": [USER, SAID | {"content": [{"type": "text", "text": "4", "image": None}]}]},
        {"messages": [SAID, USER, SAID]},
    ],
)
def test_good_rows(tmp_path: Path, chatty: str, row: dict[str, Any]) -> None:
    path = write(tmp_path / "rows.jsonl", [GOOD, row])
    assert len(looked_at(sft_of(path, chatty, pack_length=64))) == 2


def test_what_a_row_says_to_the_template(chatty: str) -> None:
    tokenizer = load_tokenizer(chatty)

    def text(**more: Any) -> str:
        return tokenizer.decode(
            sft.tokenize({"messages": [USER, SAID], **more}, tokenizer, "chat")[0]
        )

    assert '{"name": "add"}' in text(tools=[{"name": "add"}])
    assert text() == text(tools=None, chat_template_kwargs=None)
    still = {"enable_thinking": False}
    for more in (still, {"chat_template_kwargs": still}):
        tokens, mask = sft.tokenize({"messages": [USER, SAID], **more}, tokenizer, "chat")
        learnt = [t for t, m in zip(tokens, mask, strict=True) if m]
        assert tokenizer.decode(learnt) == "4"
    with pytest.raises(DataError, match="nobody reads the key 'tools'"):
        sft.tokenize({"messages": [USER, SAID], "tools": [1]}, tokenizer, "r1")


def test_metadata_that_the_config_names(tmp_path: Path, chatty: str) -> None:
    path = write(tmp_path / "rows.jsonl", [GOOD | {"score": 3}])
    with pytest.raises(DataError, match=r"config.data.metadata = \('score',\)"):
        looked_at(sft_of(path, chatty))
    looked_at(sft_of(path, chatty, data={"metadata": ("score",)}))


# -- what does not fit -----------------------------------------------------------------------------

LONG_PROMPT = {"messages": [USER | {"content": "a" * 90}, SAID]}
LONG_ANSWER = {"messages": [USER, SAID | {"content": "a" * 90}]}


@pytest.mark.parametrize(
    ("overlong", "rows", "warnings"),
    [
        ("truncate", [GOOD, LONG_ANSWER], ["1 of 2 rows are cut at config.pack_length"]),
        ("truncate", [GOOD, LONG_PROMPT], ["1 of 2 rows have nothing to learn that fits"]),
        ("drop", [GOOD, LONG_PROMPT], ["1 of 2 rows are longer than config.pack_length and dro"]),
        ("truncate", [GOOD, GOOD], []),
    ],
)
def test_what_is_cut_or_left_out_is_counted(
    tmp_path: Path,
    chatty: str,
    caplog: pytest.LogCaptureFixture,
    overlong: str,
    rows: list[Any],
    warnings: list[str],
) -> None:
    with caplog.at_level("WARNING", logger="absl"):
        looked_at(sft_of(write(tmp_path / "r", rows), chatty, overlong=overlong))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(warnings)
    assert all(wanted in found for wanted, found in zip(warnings, said, strict=True))


@pytest.mark.parametrize("overlong", ["truncate", "drop"])
def test_nothing_to_learn_is_an_error(tmp_path: Path, chatty: str, overlong: str) -> None:
    path = write(tmp_path / "rows.jsonl", [LONG_PROMPT, LONG_PROMPT])
    with pytest.raises(DataError, match="no row is learnt from; of 2, 2 (have nothing|are longer)"):
        looked_at(sft_of(path, chatty, overlong=overlong))


def test_rows_longer_than_the_model(tmp_path: Path, chatty: str) -> None:
    path = write(tmp_path / "rows.jsonl", [GOOD])
    with pytest.raises(ConfigError, match="pack_length 65 is more than the model's max_length 64"):
        looked_at(sft_of(path, chatty, pack_length=65))


# -- reinforcement learning ------------------------------------------------------------------------

ASKED = {"prompt": "2 + 2?", "answer": "4", "task": "integer", "level": 3}


def grpo_of(path: str, tokenizer: str, **changes: Any) -> GrpoConfig:
    config = grpo_config(tokenizer, **{"data": {"path": path}} | changes)
    return sft.section(GrpoConfig, config)


BAD_RL = [
    (ASKED | {"answer": "four"}, "'four' is no integer answer"),
    (ASKED | {"prompt": "2" * 100}, "tokens, more than max_prompt_tokens 48"),
    (ASKED | {"prompt": None}, "key prompt (or messages) is missing"),
    (ASKED | {"messages": [USER]}, "both prompt and messages"),
    (ASKED | {"prompt": [SAID]}, "ends with a message of the assistant"),
    (ASKED | {"prompt": [USER | {"content": None}]}, "has no role and content"),
    (ASKED | {"prompt": [USER | {"role": "tool"}]}, "role is 'tool'"),
    (ASKED | {"task": "maths"}, "'maths' is neither"),
    (ASKED | {"prompt": [USER | {"content": ""}]}, "a message of the user is empty"),
    (ASKED | {"prompt": json.dumps([USER])}, "list of messages written as a text"),
    (ASKED | {"answer": True}, "answer True is neither a text nor a number"),
    (ASKED | {"answer": math.nan, "task": "math"}, "answer nan is neither a text nor a number"),
    (ASKED | {"system": "Be brief."}, "the key 'system' would not be asked"),
    (ASKED | {"tools": [{"name": "f"}]}, "the key 'tools' would not be asked"),
]


@pytest.mark.parametrize(("row", "message"), BAD_RL, ids=[m for _, m in BAD_RL])
def test_a_bad_question_among_good_ones(
    tmp_path: Path, tokenizer_dir: str, row: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "rows.jsonl", [ASKED, ASKED, row, ASKED])
    with pytest.raises(DataError) as caught:
        checked_stream(grpo_of(path, tokenizer_dir))
    assert str(caught.value).startswith(f"{path}:4: ")
    assert message in str(caught.value)


def test_good_questions(tmp_path: Path, tokenizer_dir: str) -> None:
    rows = [ASKED | {"id": None}, ASKED | {"id": None, "system": "", "tools": []}]
    checked_stream(grpo_of(write(tmp_path / "rows.jsonl", rows), tokenizer_dir))
    path = write(tmp_path / "more.jsonl", [ASKED | {"system": "of a task's own"}])
    checked_stream(grpo_of(path, tokenizer_dir, data={"path": path, "metadata": ["system"]}))


def test_overlong_prompts_are_dropped_and_counted(
    tmp_path: Path, tokenizer_dir: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "rows.jsonl", [ASKED, ASKED | {"prompt": "2" * 100, "id": "x"}])
    with caplog.at_level("WARNING", logger="absl"):
        question = checked_stream(grpo_of(path, tokenizer_dir, overlong_prompts="drop"))
    assert "config.data: 1 of 2 prompts have more than" in caplog.text
    assert {question(i).id for i in range(10)} == {"0"}
    path = write(tmp_path / "b.jsonl", [ASKED | {"prompt": "2" * 100}])
    with pytest.raises(DataError, match="every prompt has more than"):
        checked_stream(grpo_of(path, tokenizer_dir, overlong_prompts="drop"))


def test_a_prompt_may_be_messages() -> None:
    parts = [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2?"}]
    example = to_example(ASKED | {"prompt": [USER | {"content": parts}]}, 0, "a")
    assert example.messages == (USER,)
    assert example.metadata == {"level": 3}


# -- sources ---------------------------------------------------------------------------------------


def nothing(count: int = 0) -> None:
    """A function that forgot its return."""


def numbers(count: int) -> list[Any]:
    return list(range(count))


@pytest.mark.parametrize(
    ("function", "args", "message"),
    [
        ("nothing", {}, "gives NoneType, not a list of rows"),
        ("numbers", {"cuont": 3}, "does not take config.data.args: .*'c.*ount'"),
        ("numbers", {}, "does not take config.data.args: missing a required argument: 'count'"),
        ("numbers", {"count": 2}, "row 1: an SFT row needs .* it is int"),
    ],
)
def test_functions_that_give_no_rows(function: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sft.checked_rows(DataConfig(function=f"test_rows:{function}", args=args))


# -- the rows of a resumed run ---------------------------------------------------------------------

TEXTS = [{"text": text} for text in ("3+4=7", "12 and 21", "sort: 5 1 3", "10-2 is 8")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (TEXTS[::-1], "the rows stand in another order, from row 1 on"),
        (TEXTS[:2] + TEXTS[3:] + TEXTS[2:3], "another order, from row 3 on"),
        (TEXTS[:3], "4 rows have become 3 rows"),
        ([*TEXTS[:3], {"text": "10-3 is 7"}], "row 4 is not what it was"),
    ],
)
def test_other_rows_are_refused(
    tokenizer_dir: str, tmp_path: Path, one_device: None, rows: list[Any], message: str
) -> None:
    path = write(tmp_path / "rows.jsonl", TEXTS)
    config = sft_config(tokenizer_dir, data={"path": path}, total_steps=2)
    sft.run(config, str(tmp_path / "run"))
    sft.run(config, str(tmp_path / "run"))  # the same rows are welcome
    write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ConfigError, match=f"config.data: .*{message}.* began with other rows"):
        sft.run(config, str(tmp_path / "run"))


def test_other_questions_are_refused(tokenizer_dir: str, tmp_path: Path, one_device: None) -> None:
    """Killed behind its first rollout, before any checkpoint."""
    from r1jax.stages import grpo

    questions = [ASKED | {"prompt": f"{i} + {i}?", "answer": str(2 * i)} for i in range(6)]
    path = write(tmp_path / "rows.jsonl", questions)
    config = grpo_config(tokenizer_dir, data={"path": path}, total_steps=2, checkpoint_every=9)
    grpo.train(config, str(tmp_path / "run"))
    for directory in (tmp_path / "run" / "checkpoints").iterdir():
        for file in sorted(directory.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        directory.rmdir()
    assert read_lines(tmp_path / "run/rollouts/000000/0.jsonl")
    write(tmp_path / "rows.jsonl", questions[:3])
    with pytest.raises(ConfigError, match="config.data: 6 rows have become 3 rows"):
        grpo.train(config, str(tmp_path / "run"))


def test_a_failed_start_binds_no_rows(tokenizer_dir: str, tmp_path: Path, one_device: None) -> None:
    path = write(tmp_path / "rows.jsonl", TEXTS)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "rows.json").write_text('{"config.data": {"rows": 99}}')
    config = sft_config(tokenizer_dir, data={"path": path}, total_steps=1)
    sft.run(config, str(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "rows.json").read_text())["config.data"]["rows"] == 4
