"""Others' files as our rows: what fetch_data does with the bytes that it has downloaded.

Each takes the contents of a source's files, in its order, and gives the rows of one JSONL file, in
which nothing depends on the machine: sources.py knows the hash of what must come out.
"""

from __future__ import annotations

import ast
import csv
import gzip
import importlib
import io
import json
import random
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from r1jax.config import ConfigError, DataError
from r1jax.files import json_lines
from r1jax.tasks.gym_task import gym

Row = dict[str, Any]
Originals = Sequence[bytes]
Converter = Callable[[Originals], Iterable[Mapping[str, Any]] | bytes]  # rows, or the file

NUMBER = "#"  # in the place of a key: the row's number, from 0
LETTERS = "ABCD"
COUNTDOWN = {"min_numbers": 3, "max_numbers": 4, "max_value": 99}
COUNTDOWN |= {"min_target": 10, "max_target": 100, "size": 2_500, "seed": 20_250_122}
COUNTDOWN_TEST = 256  # the first of them


# ---- one object a row ----


def json_rows(data: bytes) -> list[Row]:
    """The objects of JSON lines or of one JSON array, which may be packed by gzip."""
    data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    data = data.removeprefix(b"\xef\xbb\xbf")
    if data.lstrip().startswith(b"["):
        rows = json.loads(data)
    else:
        rows = [row for _, row in json_lines("the original", data)]
    if wrong := [row for row in rows if not isinstance(row, dict)]:
        raise DataError(f"the original has a JSON {type(wrong[0]).__name__}, expected objects")
    return rows


def as_it_is(originals: Originals) -> list[Row]:
    """JSON rows without a change."""
    return json_rows(originals[0])


def renamed(
    originals: Originals, keys: Mapping[str, str], changes: Mapping[str, Callable[[Any], Any]]
) -> list[Row]:
    """JSON rows with these keys, `{ours: theirs}`, in this order, and some values changed."""
    return [
        chosen(number, row, keys, changes) for number, row in enumerate(json_rows(originals[0]))
    ]


def chosen(
    number: int,
    row: Mapping[str, Any],
    keys: Mapping[str, str],
    changes: Mapping[str, Callable[[Any], Any]],
) -> Row:
    """One row of `renamed`."""
    values = {ours: number if their == NUMBER else row[their] for ours, their in keys.items()}
    return {ours: changes.get(ours, _same)(value) for ours, value in values.items()}


def _same(value: Any) -> Any:
    return value


def without(originals: Originals, keys: Sequence[str]) -> list[Row]:
    """JSON rows but for some keys."""
    return [{k: v for k, v in row.items() if k not in keys} for row in json_rows(originals[0])]


def whole(number: Any) -> str:
    """Of 27.0 or "027" the text "27"."""
    if float(number) != int(float(number)):
        raise DataError(f"the original has {number!r} where a whole number should stand")
    return str(int(float(number)))


# ---- mathematics ----


def gsm8k(originals: Originals, split: str) -> list[Row]:
    """The answer is what stands behind "####", without the commas between thousands."""
    return [
        {
            "id": f"gsm8k/{split}/{number}",
            "problem": row["question"],
            "answer": row["answer"].rpartition("####")[2].strip().replace(",", ""),
            "solution": row["answer"],
        }
        for number, row in enumerate(json_rows(originals[0]))
    ]


def aime25(originals: Originals) -> list[Row]:
    """In its LaTeX some backslashes before t and f have become tabs and form feeds."""
    marred = str.maketrans({"\t": "\\t", "\f": "\\f"})
    return [
        {
            "id": str(row["id"]),
            "problem": row["problem"].translate(marred),
            "answer": whole(row["answer"]),
        }
        for row in json_rows(originals[0])
    ]


def aime_years(originals: Originals) -> list[Row]:
    """AIME 1983 to 2023, named by year, contest and number."""
    return [
        {
            "id": f"{row['year']}-{row['aime_number']}-{row['problem_number']}",
            "problem": row["problem"],
            "answer": row["answer"],
            "difficulty": row["difficulty"],
        }
        for row in json_rows(originals[0])
    ]


def gaokao(originals: Originals, name: str) -> list[Row]:
    """Rows with an id; where only a label says which choice is right, it is the answer."""
    rows = []
    for number, row in enumerate(json_rows(originals[0])):
        label = {"answer": row["label"]} if row.get("label") else {}
        rows.append(row | label | {"id": f"{name}/{number}"})
    return rows


def mgsm(originals: Originals) -> list[Row]:
    """Two tables (question, tab, answer) whose lines are the same problems: English, Chinese."""
    english, chinese = (
        [line.rsplit("\t", 1) for line in data.decode("utf-8").splitlines()] for data in originals
    )
    return [
        {"id": number, "problem_en": en, "problem_zh": zh}
        | {"answer": answer.replace(",", ""), "answer_zh": answer_zh.replace(",", "")}
        for number, ((en, answer), (zh, answer_zh)) in enumerate(zip(english, chinese, strict=True))
    ]


def math_problems(originals: Originals, split: str) -> list[Row]:
    """Hendrycks' MATH, a file a problem, out of a zip of the repository; by subject and number.

    The solutions of the test split are left out; `in_math500` marks those of a second original.
    """
    held_out = {row["unique_id"] for data in originals[1:] for row in json_rows(data)}
    with zipfile.ZipFile(io.BytesIO(originals[0])) as archive:
        found = {}
        for name in archive.namelist():
            if match := re.search(rf"/data/math/{split}/(\w+)/(\d+)\.json$", name):
                found[match[1], int(match[2])] = json.loads(archive.read(name))
    rows = []
    for (subject, number), problem in sorted(found.items()):
        row = {
            "id": f"{split}/{subject}/{number}.json",
            "problem": problem["problem"],
            "answer": last_boxed(problem["solution"]) or "0",  # two are empty, and mean that
        }
        row |= {"solution": problem["solution"]} if split == "train" else {}
        row |= {"subject": problem["type"], "level": problem["level"]}
        rows.append(row | ({"in_math500": row["id"] in held_out} if split == "test" else {}))
    return rows


def last_boxed(text: str) -> str:
    r"""What the last \boxed{...} holds, braces in pairs; of "\boxed 2" the 2."""
    start = text.rindex("\\boxed") + len("\\boxed")
    if text[start] != "{":
        return re.match(r"\s*([^\s$]*)", text[start:])[1]  # type: ignore[index]
    depth = 0
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start + 1 : end]
    raise DataError(f"the original has an open brace: {text[start : start + 40]!r}")


# ---- knowledge ----


def table(text: str) -> list[list[str]]:
    """The cells of a .csv file."""
    csv.field_size_limit(1 << 30)
    return list(csv.reader(io.StringIO(text, newline="")))


def mmlu(originals: Originals, split: str) -> list[Row]:
    """A zip with a .csv file a subject: question, four choices, a letter; no line of names."""
    rows = []
    for subject, lines in _tables(originals[0], split):
        for number, (question, *choices, answer) in enumerate(lines):
            row = {"id": f"{subject}/{split}/{number}", "subject": subject, "question": question}
            rows.append(row | {"choices": choices, "answer": answer})
    return rows


def _tables(packed: bytes, split: str) -> list[tuple[str, list[list[str]]]]:
    """Of a zip, ("anatomy", cells) for each file SPLIT/anatomy_SPLIT.csv, by name; a line ends
    with a line feed alone, in the cells too.
    """
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        named = {
            match[1]: name
            for name in archive.namelist()
            if (match := re.search(rf"(?:^|/){split}/(\w+)_{split}\.csv$", name))
        }
        return [
            (subject, table(archive.read(name).decode("utf-8-sig").replace("\r\n", "\n")))
            for subject, name in sorted(named.items())
        ]


def ceval(originals: Originals, split: str) -> list[Row]:
    """As mmlu, with a line of names; dev has explanations."""
    rows = []
    for subject, (names, *lines) in _tables(originals[0], split):
        for line in lines:
            cells = dict(zip(names, line, strict=True))
            row: Row = {"id": f"{subject}/{split}/{cells['id']}", "subject": subject}
            row |= {"question": cells["question"], "choices": [cells[x] for x in LETTERS]}
            row |= {"answer": cells["answer"]}
            rows.append(row | {key: cells[key] for key in ("explanation",) if key in cells})
    return rows


def mmlu_redux(originals: Originals) -> list[Row]:
    """A table of verdicts on 100 questions a subject, in the subjects' order; and MMLU's zip, whose
    questions are named by id. What is not found there word for word is spelled out.
    """
    asked = mmlu(originals[1:], "test")
    known = {(row["question"].strip(), tuple(row["choices"])): row["id"] for row in asked}
    subjects = sorted({row["subject"] for row in asked})
    rows = []
    names, *lines = table(originals[0].decode("utf-8"))
    for number, line in enumerate(lines):
        cells, subject = dict(zip(names, line, strict=True)), subjects[number // 100]
        choices = ast.literal_eval(cells["choices"])
        found = known.get((cells["question"].strip(), tuple(choices)))
        row = {"id": f"{subject}/{number % 100}", "subject": subject}
        row |= {} if found else {"question": cells["question"], "choices": choices}
        row |= {"answer": LETTERS[int(cells["groundtruth_answer"])]}
        rows.append(row | {"error_type": cells["error_type"], "mmlu_id": found})
    return rows


def mmlu_pro(originals: Originals) -> list[Row]:
    """The questions of a zip with a model's published answers, which are left out; by id."""
    with zipfile.ZipFile(io.BytesIO(originals[0])) as archive:
        answered = json.loads(archive.read(archive.namelist()[0]))
    keys = {"id": "question_id", "category": "category", "question": "question"}
    keys |= {"choices": "options", "answer": "answer"}
    rows = [chosen(0, row, keys, {}) for row in answered]
    return sorted(rows, key=lambda row: row["id"])


def simpleqa(originals: Originals) -> list[Row]:
    """A table whose first cell is a Python literal: topic, kind of answer, addresses."""
    names, *lines = table(originals[0].decode("utf-8-sig"))
    rows = []
    for number, line in enumerate(lines):
        cells = dict(zip(names, line, strict=True))
        about = ast.literal_eval(cells["metadata"])
        row = {"id": number, "problem": cells["problem"], "answer": cells["answer"]}
        rows.append(row | {key: about[key] for key in ("topic", "answer_type")})
    return rows


# ---- code, puzzles, preferences ----


def leetcode(originals: Originals, solutions: bool) -> list[Row]:
    """Problems with a function check() as the test; those to train on without the solution."""
    return [
        {"id": number, "problem": row["problem"], "test": row["tests"]["functional"]}
        | ({"solution": row["solutions"]} if solutions else {})
        for number, row in enumerate(json_rows(originals[0]))
    ]


def ratings(originals: Originals) -> list[Row]:
    """How many had a rating."""
    counts = json.loads(originals[0])
    return [{"rating": rating, "count": count} for rating, count in counts.items()]


def knights(originals: Originals, split: str) -> list[Row]:
    """Logic-RL's .parquet files, of three to seven inhabitants."""
    rows = []
    for people, data in enumerate(originals, start=3):
        for row in _parquet(data):
            about = {"id": f"kk/{people}ppl/{split}/{row['index']}", "problem": row["quiz"]}
            rows.append(about | {"names": row["names"], "solution": row["solution"]})
    return rows


def knights_thoughts(originals: Originals, size: int) -> list[Row]:
    """The solutions that come with the puzzles of three to five inhabitants, some by lot."""
    rows = [
        {
            "id": f"kk/{people}ppl/train/{row['index']}",
            "think": "\n".join([row["cot_head"], *row["cot_repeat_steps"], row["cot_foot"]]),
            "answer": row["solution_text_format"],
        }
        for people, data in enumerate(originals, start=3)
        for row in _parquet(data)
    ]
    random.Random(0).shuffle(rows)
    return rows[:size]


def _parquet(data: bytes) -> list[Row]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ConfigError('a .parquet file needs pyarrow: pip install "r1jax[data]"') from None
    rows: list[Row] = parquet.read_table(io.BytesIO(data)).to_pylist()
    return rows


def countdown(_: Originals, split: str) -> list[Row]:
    """reasoning-gym's numbers game: the first puzzles to test with, the others to train on."""
    return _puzzles()[:COUNTDOWN_TEST] if split == "test" else _puzzles()[COUNTDOWN_TEST:]


@cache
def _puzzles() -> list[Row]:
    """Generated in half a minute; each set of numbers with its target once."""
    seen, rows = set(), []
    for number, entry in enumerate(gym().create_dataset("countdown", **COUNTDOWN)):
        about = entry["metadata"]
        puzzle = (*sorted(about["numbers"]), about["target"])
        if puzzle not in seen:
            seen.add(puzzle)
            row = {"id": f"countdown/{number}", "nums": about["numbers"]}
            rows.append(row | {"target": about["target"], "example": about["expression"]})
    return rows


# ---- as their readers take them ----


def table_with(originals: Originals, columns: Sequence[str]) -> bytes:
    """A .csv file as it is, if it has these columns."""
    names = next(iter(table(originals[0].decode("utf-8-sig"))), [])
    if missing := [column for column in columns if column not in names]:
        raise DataError(f"the original has no column {missing[0]!r}; it has {', '.join(names)}")
    return originals[0]


def drop(originals: Originals) -> list[Row]:
    """simple-evals' rows: a prompt with three examples, and all answers that are right."""
    return [
        {"id": str(number), "context": row["context"], "completion": row["completion"]}
        | {"ref_text": row["ref_text"]}
        for number, row in enumerate(json_rows(originals[0]))
    ]
