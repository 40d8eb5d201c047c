"""Questions with a formula or a number as the answer: files of others as our rows."""

from __future__ import annotations

import re
from typing import Any

from r1jax.config import ConfigError, DataError
from r1jax.data.datasets import FileRow, answer_text, errors_at
from r1jax.files import numbered_jsonl, read_jsonl


def from_jsonl(path: str, task: str, question: str, answer: str = "answer") -> list[FileRow]:
    """Rows of a JSONL file as `{prompt, answer, task}`.

    `question` is the wording with the file's keys in braces, for instance "{problem} Think step by
    step."; doubled braces stay braces. `answer` is the key of the reference answer. What else a row
    says (level, subject) stays as metadata.
    """
    rows = []
    for number, row in numbered_jsonl(path):
        where = f"{path}:{number}"
        if nulls := [key for key, value in row.items() if value is None and f"{{{key}" in question]:
            raise DataError(f"{where}: the key {nulls[0]!r} that the question asks for is null")
        try:
            prompt = question.format_map(row)
        except KeyError as error:
            raise ConfigError(
                f"{path}:{number} has no key {error} that the question asks for; it has"
                f" {', '.join(row)}"
            ) from None
        except (ValueError, IndexError) as error:
            raise ConfigError(
                f"question {question!r}: {error}; braces that are to stay are doubled"
            ) from None
        if row.get(answer) is None:
            raise DataError(f"{path}:{number} has no key {answer!r}; it has {', '.join(row)}")
        with errors_at(where):
            reference = answer_text(row[answer])
        about = {
            "id": str(number if row.get("id") is None else row["id"]),
            "prompt": prompt,
            "answer": reference,
            "task": task,
        }
        rest = {key: row[key] for key in row if key not in ("messages", answer)}
        rows.append(FileRow(rest | about, where))
    return rows


def gsm8k_solutions(path: str, question: str) -> list[dict[str, Any]]:
    """GSM8K's own solutions as SFT rows {"messages"}: <think> steps </think> <answer> 72 </answer>.

    `path` is a JSONL file with `problem`, `answer` and `solution`, `question` as in `from_jsonl`.
    The calculator's annotations ("<<48/2=24>>") and the last line ("#### 72") are left out.
    """
    rows = []
    for asked, row in zip(from_jsonl(path, "integer", question), read_jsonl(path), strict=True):
        if "solution" not in row:
            raise DataError(
                f"{path}: {row.get('id')} has no key 'solution'; it has {', '.join(row)}"
            )
        steps = re.sub(r"<<.*?>>", "", row["solution"]).partition("####")[0].split("\n")
        thoughts = "\n".join(step.strip() for step in steps if step.strip())
        reply = f"<think> {thoughts} </think> <answer> {asked['answer']} </answer>"
        turns = [("user", asked["prompt"]), ("assistant", reply)]
        rows.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    return rows
