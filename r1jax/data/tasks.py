"""Benchmark files of others as our rows."""

from __future__ import annotations

from typing import Any

from r1jax.config import ConfigError, DataError
from r1jax.metrics import read_jsonl


def from_jsonl(path: str, task: str, question: str, answer: str = "answer") -> list[dict[str, Any]]:
    """Rows of a JSONL file as `{prompt, answer, task}`.

    `question` is the wording with the file's keys in braces, for instance "{problem} Think step by
    step."; doubled braces stay braces. `answer` is the key of the reference answer.
    """
    rows = []
    for number, row in enumerate(read_jsonl(path), start=1):
        try:
            prompt = question.format_map(row)
        except KeyError as error:
            raise ConfigError(
                f"{path}:{number} has no key {error} that the question asks for; it has"
                f" {', '.join(row)}"
            ) from None
        if answer not in row:
            raise DataError(f"{path}:{number} has no key {answer!r}; it has {', '.join(row)}")
        rows.append(
            {
                "id": str(row.get("id", number)),
                "prompt": prompt,
                "answer": str(row[answer]),
                "task": task,
            }
        )
    return rows
