"""Rows as others write them, read as ours: every stage reads through `read`.

    config.data = {"path": "alpaca.json", "format": "alpaca"}
    config.data = {"path": "qa.jsonl", "format": "math", "keys": {"problem": "question"}}

Without a `format` it is told by a row's keys. What a format does not use stays in the row: metadata
of a question, and for what is to be learnt a key that somebody must read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from r1jax.config import DataError
from r1jax.data.chat import further_keys, joined, refuse_json_text, says
from r1jax.tasks.answers import boxed_values

Row = Mapping[str, Any]
Reader = Callable[[Row], dict[str, Any]]
Use = Literal["sft", "rl", "pairs"]  # learnt, asked and graded, compared
# Keys of rows that say where they come from: nobody learns them, in any stage.
METADATA = (
    *("id", "idx", "index", "uuid", "unique_id", "prompt_id", "source", "dataset", "split", "url"),
    *("domain", "category", "subject", "topic", "level", "type", "difficulty", "kind"),
    *("language", "lang", "license", "tokens", "rewritten", "delta"),
)
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"human": "user", "gpt": "assistant"} | {r: r for r in ("user", "assistant", "system")}
_OPEN_BOX = re.compile(r"\\boxed\s+([^\s$]+)")  # \boxed 2, as MATH has it here and there


@dataclass(frozen=True)
class Format:
    """How rows with certain keys are read, for each use that they suit."""

    keys: tuple[str, ...]  # that a row of it has
    sft: Reader | None = None  # -> {"messages" or "text", ...}
    rl: Reader | None = None  # -> {"prompt" or "messages", "answer", "task", ...}
    pairs: Reader | None = None  # -> {"messages", "chosen", "rejected", ...}
    tells: Callable[[Row], bool] = lambda row: True  # whether a row with these keys is one

    def reader(self, use: Use) -> Reader | None:
        return {"sft": self.sft, "rl": self.rl, "pairs": self.pairs}[use]


class UnpairedError(DataError):
    """A pair whose two sides don't answer the same, or are the same."""


def read(row: Row, use: Use, data: Any) -> Row:
    """The row as the stages of that use have it; `data` is its DataConfig.

    DataError with the config.data that would do, where the keys tell no format or several.
    """
    for theirs in data.keys.values():
        if theirs not in row:
            raise DataError(f"the row has no key {theirs!r} of config.data.keys; {_has(row)}")
    renamed = _rest(row, *data.keys.values())
    renamed |= {ours: row[theirs] for ours, theirs in data.keys.items()}
    if use != "rl":
        renamed = {key: value for key, value in renamed.items() if key not in data.metadata}
    name = data.format or told(renamed, use, data)
    reader = FORMATS[name].reader(use)
    if reader is None:
        uses = ", ".join(n for n, f in FORMATS.items() if f.reader(use))
        raise DataError(f"format {name!r} gives no rows to {_PURPOSE[use]}; {uses} do")
    if missing := [key for key in FORMATS[name].keys if renamed.get(key) is None]:
        raise DataError(f"a row of format {name!r} needs the key {missing[0]!r}; {_has(row)}")
    return reader(renamed)


def told(row: Row, use: Use, data: Any) -> str:
    """The format that a row's keys tell."""
    has = {key for key, value in row.items() if value is not None}
    if use == "rl" and {"answer", "task"} <= has and has & {"prompt", "messages"}:
        return "question"  # whatever else there is, is metadata
    found = [
        name
        for name, form in FORMATS.items()
        if form.reader(use) and has.issuperset(form.keys) and form.tells(row)
    ]
    # Of two of which one asks for more keys than the other, that one.
    keys = {name: set(FORMATS[name].keys) for name in found}
    best = [n for n in found if not any(keys[n] < keys[other] for other in found)]
    if len(best) == 1:
        return best[0]
    raise DataError(_unsure(row, use, best, data))


_PURPOSE = {"sft": "learn", "rl": "ask and grade", "pairs": "compare"}
_NEEDS = {
    "sft": "an SFT row needs the key messages or text",
    "rl": "a question needs prompt (or messages), answer and task",
    "pairs": "a pair needs messages (or prompt), chosen and rejected",
}
_QUESTIONS = ("problem", "question", "prompt", "query", "instruction", "input")
_ANSWERS = (
    *("answer", "response", "output", "completion", "solution", "target", "label"),
    *("ground_truth", "final_answer", "expected_answer", "gold", "reference"),
)


def _unsure(row: Row, use: Use, found: Sequence[str], data: Any) -> str:
    """What is wrong, and a config.data that would do, as far as it can be guessed."""
    if found:
        readings = " or ".join(_config(data, name, row, use) for name in found)
        return f"the row can be read as {' or as '.join(found)}; say config.data = {readings}"
    reason = f"{_missing(row) if use == 'rl' else _NEEDS[use]}; {_has(row)}"
    asked = next((key for key in _QUESTIONS if row.get(key)), None)
    said = next((key for key in _ANSWERS if row.get(key) and key != asked), None)
    if use == "pairs" or asked is None or said is None:
        return f"{reason}; formats: {', '.join(n for n, f in FORMATS.items() if f.reader(use))}"
    name = "math" if use == "rl" else "prompt_completion"
    ours = ("problem", "answer") if use == "rl" else ("prompt", "completion")
    keys = {o: theirs for o, theirs in zip(ours, (asked, said), strict=True) if o != theirs}
    renamed = _rest(row, asked, said) | dict(zip(ours, (row[asked], row[said]), strict=True))
    return f"{reason}; perhaps config.data = {_config(data, name, renamed, use, keys)}"


def _missing(row: Row) -> str:
    """Which of our keys of a question a row has not got."""
    if row.get("prompt") is None and row.get("messages") is None:
        return "key prompt (or messages) is missing"
    return f"key {next(key for key in ('answer', 'task') if row.get(key) is None)} is missing"


def _config(data: Any, name: str, row: Row, use: Use, keys: Mapping[str, str] | None = None) -> str:
    """A config.data, as Python, with which this row would be read."""
    where = {key: value for key in ("path", "hub", "function") if (value := getattr(data, key))}
    values: dict[str, Any] = {**where, "format": name}
    if keys:
        values["keys"] = dict(keys)
    reader = FORMATS[name].reader(use)
    if use != "rl" and reader is not None:
        known = {"text"} if name == "text" else {"messages", "chosen", "rejected"}
        if unread := sorted(k for k, v in reader(row).items() if v and not known & {k}):
            values["metadata"] = [k for k in unread if k not in METADATA]
    return repr({key: value for key, value in values.items() if value})


def _has(row: Row) -> str:
    keys = (key if value is not None else f"{key} (null)" for key, value in row.items())
    return f"it has {', '.join(keys) or 'no keys'}"


# -- readers ---------------------------------------------------------------------------------------


def _rest(row: Row, *used: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in used}


def _as_it_is(row: Row) -> dict[str, Any]:
    return dict(row)


def _says(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def _turns(value: Any, role: str) -> list[Any]:
    """A text as one message of that role; messages as they are."""
    if isinstance(value, Mapping):
        return [value]
    if isinstance(value, list | tuple):
        return list(value)
    refuse_json_text(value)
    return [_says(role, value)]


def _system(row: Row) -> list[dict[str, Any]]:
    return [_says("system", row["system"])] if row.get("system") else []


def _prompt_completion(row: Row) -> dict[str, Any]:
    turns = _turns(row["prompt"], "user") + _turns(row["completion"], "assistant")
    return _rest(row, "prompt", "completion", "system") | {"messages": _system(row) + turns}


def _alpaca(row: Row) -> dict[str, Any]:
    parts = [row[key] for key in ("instruction", "input") if row.get(key)]
    if wrong := [part for part in parts if not isinstance(part, str)]:
        raise DataError(f"instruction and input are texts, but one of them is {wrong[0]!r}")
    turns = _system(row)
    for turn in row.get("history") or ():
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise DataError(f"history is a list of [question, answer], but it has {turn!r}")
        turns += [_says("user", turn[0]), _says("assistant", turn[1])]
    turns += [_says("user", "\n\n".join(parts)), _says("assistant", row["output"])]
    used = ("instruction", "input", "output", "system", "history")
    return _rest(row, *used) | {"messages": turns}


def _sharegpt(row: Row) -> dict[str, Any]:
    conversation = row["conversations"]
    if not isinstance(conversation, list | tuple):
        raise DataError(f"conversations is {type(conversation).__name__}, not a list of messages")
    turns = _system(row) + [_sharegpt_turn(turn) for turn in conversation]
    return _rest(row, "conversations", "system") | {"messages": turns}


def _sharegpt_turn(turn: Any) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise DataError(f"a message is {type(turn).__name__}, not an object with from and value")
    for theirs, ours in (("from", "role"), ("value", "content")):
        if says(turn.get(theirs)) and says(turn.get(ours)):
            raise DataError(f"a message has both {theirs} and {ours}; leave one out")
    role = turn.get("from", turn.get("role"))
    if role not in _ROLES:
        raise DataError(f"a message is from {role!r}, not one of {', '.join(_ROLES)}")
    content = turn.get("value", turn.get("content"))
    return _rest(turn, "from", "value") | _says(_ROLES[role], content)


def _sharegpt_pair(row: Row) -> dict[str, Any]:
    sides = {key: [_sharegpt_turn(row[key])] for key in ("chosen", "rejected")}
    return _pair(_sharegpt(row) | sides)


def _pair(row: Row) -> dict[str, Any]:
    """Both sides as texts behind the messages that they answer."""
    asked = row.get("messages") or (_turns(row["prompt"], "user") if row.get("prompt") else [])
    asked = _system(row) + asked
    (before, chosen), (same, rejected) = (_answer(row, key) for key in ("chosen", "rejected"))
    if before != same:
        raise UnpairedError("chosen and rejected answer different messages")
    if before and asked and before[-len(asked) :] != asked:
        raise DataError("chosen begins with other messages than the prompt")
    if chosen == rejected or not chosen.strip():
        raise UnpairedError("chosen and rejected are the same, or chosen is empty")
    if not (before or asked):
        raise DataError("chosen and rejected answer nothing: there is no prompt")
    found = {"messages": before or asked, "chosen": chosen, "rejected": rejected}
    return _rest(row, "prompt", "system", *found) | found


def _answer(row: Row, key: str) -> tuple[list[Any], str]:
    """(messages before it, the text) of one side of a pair."""
    *before, last = _turns(row[key], "assistant") or [None]
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        raise DataError(f"{key} does not end with a message of the assistant")
    if more := further_keys(last):
        raise DataError(f"nobody reads the key {more[0]!r} of the answer in {key}")
    return before, joined(last.get("content"))


def _hh(row: Row) -> dict[str, Any]:
    sides = {key: transcript(row[key], key) for key in ("chosen", "rejected")}
    return _pair(dict(row) | sides)


def transcript(text: Any, key: str) -> list[dict[str, Any]]:
    """'\\n\\nHuman: ...\\n\\nAssistant: ...' -> messages, the last of them the assistant's."""
    if not isinstance(text, str):
        raise DataError(f"{key} is {type(text).__name__}, not a transcript")
    _, *parts = _TURN.split(text)
    turns: list[dict[str, Any]] = []
    for name, content in zip(parts[0::2], parts[1::2], strict=True):
        role = "user" if name == "Human" else "assistant"
        if turns and turns[-1]["role"] == role:  # somebody spoke twice
            content = f"{turns.pop()['content']}\n\n{content.strip()}"
        turns.append(_says(role, content.strip()))
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise DataError(f"{key}: the transcript does not end with the assistant's turn")
    return turns


def is_transcript(row: Row) -> bool:
    """Whether a pair's sides are texts as hh-rlhf has them."""
    return isinstance(row["chosen"], str) and row["chosen"].startswith("\n\nHuman:")


def _gsm8k(row: Row) -> dict[str, Any]:
    _refuse_two_questions(row, "question")
    solution, mark, answer = str(row["answer"]).rpartition("####")
    if not mark or not answer.strip():
        raise DataError("the answer has no '#### NUMBER' at its end, as GSM8K's have")
    about = {"prompt": row["question"], "answer": answer.strip().replace(",", "")}
    return _rest(row, "question") | about | {"task": "integer", "solution": solution.strip()}


def _gsm8k_sft(row: Row) -> dict[str, Any]:
    turns = [_says("user", row["question"]), _says("assistant", row["answer"])]
    return _rest(row, "question", "answer") | {"messages": turns}


def _verl(row: Row) -> dict[str, Any]:
    truth = row["reward_model"]
    if not isinstance(truth, Mapping) or truth.get("ground_truth") is None:
        raise DataError(f"reward_model is {truth!r}, which has no ground_truth")
    about = {"answer": truth["ground_truth"], "task": row.get("task") or "math"}
    return _rest(row, "reward_model") | about


def _math(row: Row) -> dict[str, Any]:
    """The reference is the key answer, or else what the solution boxes last."""
    _refuse_two_questions(row, "problem")
    answer = row.get("answer")
    if answer is None:
        answer = _boxed(str(row.get("solution") or ""))
    task = row.get("task") or "math"
    return _rest(row, "problem") | {"prompt": row["problem"], "answer": answer, "task": task}


def _refuse_two_questions(row: Row, key: str) -> None:
    if more := [name for name in ("prompt", "messages") if says(row.get(name))]:
        raise DataError(f"both {key} and {more[0]} say what is asked; leave one out")


def _boxed(solution: str) -> str:
    boxes = [value for value, _ in boxed_values(solution)] or _OPEN_BOX.findall(solution)
    if not boxes or not boxes[-1].strip():
        raise DataError("there is no answer: no key answer, and nothing in a \\boxed{} of solution")
    return str(boxes[-1])


def _math_sft(row: Row) -> dict[str, Any]:
    if row.get("solution") is None:
        raise DataError(f"there is no key solution to learn; {_has(row)}")
    turns = [_says("user", row["problem"]), _says("assistant", row["solution"])]
    return _rest(row, "problem", "solution", "answer") | {"messages": turns}


FORMATS = {
    # Ours.
    "messages": Format(("messages",), sft=_as_it_is),
    "text": Format(("text",), sft=_as_it_is),
    "question": Format(
        ("answer", "task"),
        rl=_as_it_is,
        tells=lambda row: row.get("prompt") is not None or row.get("messages") is not None,
    ),
    # Others'.
    "prompt_completion": Format(("prompt", "completion"), sft=_prompt_completion),
    "alpaca": Format(("instruction", "output"), sft=_alpaca),
    "sharegpt": Format(
        ("conversations",),
        sft=_sharegpt,
        tells=lambda row: row.get("chosen") is None and row.get("rejected") is None,
    ),
    "sharegpt_pair": Format(("conversations", "chosen", "rejected"), pairs=_sharegpt_pair),
    "preference": Format(
        ("chosen", "rejected"), pairs=_pair, tells=lambda row: not is_transcript(row)
    ),
    "hh": Format(("chosen", "rejected"), pairs=_hh, tells=is_transcript),
    "gsm8k": Format(
        ("question", "answer"),
        sft=_gsm8k_sft,
        rl=_gsm8k,
        tells=lambda row: "####" in str(row["answer"]),
    ),
    "verl": Format(("prompt", "reward_model"), rl=_verl),
    "math": Format(
        ("problem",),
        sft=_math_sft,
        rl=_math,
        tells=lambda row: row.get("solution") is not None or row.get("answer") is not None,
    ),
}
