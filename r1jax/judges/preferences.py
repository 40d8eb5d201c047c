"""Preference pairs: files of others as our rows, and the paper's way to make them with a judge.

A pair is `{"messages": [...], "chosen": text, "rejected": text}`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from r1jax.config import DataError, import_function
from r1jax.data.chat import render
from r1jax.data.datasets import errors_at
from r1jax.data.formats import transcript
from r1jax.files import read_jsonl
from r1jax.types import Message
from r1jax.weights.load import load_tokenizer

Row = dict[str, Any]
Judge = Callable[[Sequence[list[Message]]], Sequence[str]]  # conversations -> what it says to each
QUERIES = 4  # of the judge, for a pair (R1 B.3.1)
MIN_DELTA = 1.0  # of the mean verdict, to be kept
VERDICTS = {"A>>B": 2, "A>B": 1, "A=B": 0, "B>A": -1, "B>>A": -2}
_VERDICT = re.compile(r"\[\[(A>>B|A>B|A=B|B>A|B>>A)\]\]")

# Ours, in the words of what the paper says of it (Arena-Hard's): an own answer first,
# then the comparison, then one of five verdicts.
JUDGE_PROMPT = """\
You will judge which of two assistants answered a user better.

First write your own answer to the user. Then compare both assistants' answers with yours. Name \
mistakes, then say which answer is more helpful, relevant and concise, whether one is more \
creative where that is wanted, and what is missing in either. End with exactly one of these:
[[A>>B]] A is much better; [[A>B]] A is better; [[A=B]] they are about equal; [[B>A]] B is better; \
[[B>>A]] B is much better.

<|user|>
{question}

<|assistant A|>
{a}
<|end of A|>

<|assistant B|>
{b}
<|end of B|>"""


# -- files -----------------------------------------------------------------------------------------


def hh(path: str) -> list[Row]:
    """hh-rlhf's JSONL of two transcripts; those that differ in more than the last turn, or not at
    all, are left out."""
    rows = []
    for number, row in enumerate(read_jsonl(path), start=1):
        with errors_at(f"{path}:{number}"):
            *messages, chosen = transcript(row.get("chosen"), "chosen")
            *same, rejected = transcript(row.get("rejected"), "rejected")
        if messages == same and chosen != rejected:
            sides = {"chosen": chosen["content"], "rejected": rejected["content"]}
            rows.append({"messages": messages, **sides})
    return rows


def sharegpt(path: str) -> list[Row]:
    """JSONL of {conversations: [{from, value}], chosen: {value}, rejected: {value}}."""
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    rows = []
    for number, row in enumerate(read_jsonl(path), start=1):
        try:
            turns = [
                {"role": roles[turn["from"]], "content": turn["value"]}
                for turn in row["conversations"]
            ]
            chosen, rejected = row["chosen"]["value"], row["rejected"]["value"]
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}:{number} is no ShareGPT pair ({error!r})") from None
        rows.append({"messages": turns, "chosen": chosen, "rejected": rejected})
    return rows


def fitting(
    function: str,
    args: Mapping[str, Any],
    tokenizer: str,
    max_tokens: int,
    start: int,
    count: int,
    template: str = "chat",
) -> list[Row]:
    """Pairs start, start + 1, ... of those whose conversations both have at most `max_tokens`.

    `function` ("r1jax.judges.preferences:hh") gives the pairs; `tokenizer` is a MODEL's or a path.
    """
    known = load_tokenizer(tokenizer)

    def size(row: Row, key: str) -> int:
        return len(render([*row["messages"], _answer(row[key])], known, template)[0])

    found = [
        row
        for row in import_function(function, f"function = {function!r}")(**args)
        if max(size(row, "chosen"), size(row, "rejected")) <= max_tokens
    ]
    if len(found) < start + count:
        raise DataError(
            f"{len(found)} pairs of {args} have at most {max_tokens} tokens, fewer than"
            f" start {start} + count {count}"
        )
    return found[start : start + count]


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": text}


# -- pairs from a judge ----------------------------------------------------------------------------


@dataclass
class BuildStatistics:
    """Where candidates went."""

    candidates: int = 0
    unparsed: int = 0  # verdicts that name none of the five
    undecided: int = 0  # |mean verdict| <= MIN_DELTA
    length: int = 0  # dropped so that chosen and rejected are equally long on the whole
    kept: int = 0


def judge_pairs(
    candidates: Sequence[Row], judge: Judge, seed: int, queries: int = QUERIES
) -> tuple[list[Row], BuildStatistics]:
    """Candidates {"messages", "responses": [first, second]} -> pairs the judge is sure of.

    As in the paper (B.3.1): each candidate is judged `queries` times with A and B in random order,
    the verdicts are averaged, and the pair is kept if the mean is further than MIN_DELTA from 0 (on
    the scale of VERDICTS; the paper does not print its scale). Then pairs are dropped until chosen
    and rejected responses have comparable lengths over the set (`length_matched`).
    """
    rng = random.Random(seed)
    asked, orders = [], []
    for row in candidates:
        for _ in range(queries):
            swapped = rng.random() < 0.5
            first, second = row["responses"][:: -1 if swapped else 1]
            asked.append(judge_messages(row["messages"], first, second))
            orders.append(-1 if swapped else 1)
    said = judge(asked)
    statistics = BuildStatistics(candidates=len(candidates))
    pairs = []
    for i, row in enumerate(candidates):
        verdicts = []
        for text, order in zip(
            said[i * queries : (i + 1) * queries], orders[i * queries :], strict=False
        ):
            value = verdict_of(text)
            statistics.unparsed += value is None
            if value is not None:
                verdicts.append(order * value)
        delta = sum(verdicts) / len(verdicts) if verdicts else 0.0
        if abs(delta) <= MIN_DELTA:
            statistics.undecided += 1
            continue
        chosen, rejected = row["responses"][:: 1 if delta > 0 else -1]
        pairs.append(
            {"messages": row["messages"], "chosen": chosen, "rejected": rejected, "delta": delta}
        )
    kept = length_matched(pairs)
    statistics.length, statistics.kept = len(pairs) - len(kept), len(kept)
    return kept, statistics


def judge_messages(messages: Sequence[Message], a: str, b: str) -> list[Message]:
    """What the judge is asked; the conversation before the last question is shown to it as well."""
    question = "\n\n".join(
        m["content"] if m["role"] == "user" else f"<|{m['role']}|>\n{m['content']}"
        for m in messages
    )
    # Not str.format: the answers may hold braces, and {b} too.
    parts = re.split(r"\{(question|a|b)\}", JUDGE_PROMPT)
    values = {"question": question, "a": a, "b": b}
    text = "".join(values[part] if i % 2 else part for i, part in enumerate(parts))
    return [{"role": "user", "content": text}]


def verdict_of(text: str) -> int | None:
    """The last verdict, 2 (A much better) to -2; None where there is none."""
    found = _VERDICT.findall(text)
    return VERDICTS[found[-1]] if found else None


def length_matched(pairs: Sequence[Row], tolerance: float = 0.05) -> list[Row]:
    """Without the pairs that make chosen and rejected responses differ in mean length.

    The pair with the largest difference in the direction of the set's goes first, until the mean
    lengths (in characters) are within `tolerance` of each other.
    """
    kept = sorted(pairs, key=_difference)  # the most one-sided stand at the ends
    total = sum(map(_difference, kept))
    size = sum(len(row["chosen"]) + len(row["rejected"]) for row in kept) / 2
    while kept and abs(total) > tolerance * size:
        row = kept.pop() if total > 0 else kept.pop(0)
        total -= _difference(row)
        size -= (len(row["chosen"]) + len(row["rejected"])) / 2
    left = {id(row) for row in kept}
    return [row for row in pairs if id(row) in left]


def _difference(row: Row) -> int:
    return len(row["chosen"]) - len(row["rejected"])
