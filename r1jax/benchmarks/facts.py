"""Questions about facts, whose free answer a judge compares with the reference."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from r1jax.benchmarks.judge_prompts import CHINESE_SIMPLEQA, FRAMES, HELPFUL, SIMPLEQA
from r1jax.benchmarks.judging import asked, filled, lines_of, only, plain, shown
from r1jax.benchmarks.kind import Kind, Scores
from r1jax.benchmarks.math import from_jsonl
from r1jax.config import DataError
from r1jax.data.datasets import FileRow
from r1jax.types import Example, Message, Sample

# The wording of the Oracle prompt in DeepSeek-R1's appendix: all pages, each with its address.
_PAGE = "url: {url}\n\nurl content: {text}"
_ORACLE = (
    "Here are the relevant Wikipedia articles:\n{pages}\n\nBased on all the information, answer"
    " the query.\n\nQuery: {query}"
)
_LABELS = {
    **{"NOT ATTEMPTED": "C", "INCORRECT": "B", "CORRECT": "A"},
    **{"未尝试": "C", "错误": "B", "正确": "A"},
}
# "Grade: A", "The final answer is B", "评定结果为:C": a letter, its label, or both, and no more.
_GRADE = re.compile(
    r"(?:(?:THE|MY|FINAL|该回答的|我的|最终|因此|所以) ?)*"
    r"(?:(?:GRADE|VERDICT|ANSWER|EVALUATION|RESULT|评定|评级|评估|判定|判断|结论|答案)"
    r"(?:结果|等级)? ?(?:IS|为|是)? ?)?"
    rf"([ABC])? ?({'|'.join(_LABELS)})?"
)
_DECISION = re.compile(r"DECISION[\W_]*(TRUE|FALSE)\b(?![\W_]*OR\b)")


def grade_of(reply: str) -> str | None:
    """SimpleQA's letter in a judge's reply: A right, B wrong, C not attempted; None: unreadable.

    A line must be the verdict alone ("B", "**Grade: B**", "B: INCORRECT", "【错误】"), and all such
    lines must say the same. simple-evals takes the first A, B or C of the whole reply instead,
    which is the C of "CORRECT" and the A of "I cannot tell. Are you sure?".
    """
    found = []
    for line in lines_of(reply):
        match = _GRADE.fullmatch(line.upper())
        if match is not None:
            found += [match[1]] if match[1] else []
            found += [_LABELS[match[2]]] if match[2] else []
    return only(found)


def truth_of(reply: str) -> str | None:
    """FRAMES's "TRUE" or "FALSE" behind "Decision:", or as a line of its own; None: unreadable."""
    found = _DECISION.findall(plain(reply).upper())
    if not found:
        found = [line for line in map(str.upper, lines_of(reply)) if line in ("TRUE", "FALSE")]
    return only(found)


@dataclass(frozen=True)
class Facts:
    """One question to the judge: does the answer say what the reference says?"""

    template: str  # with {question}, {target} and {answer}
    read: Callable[[str], str | None]  # a reply -> a key of `parts`
    parts: dict[str, dict[str, float]]
    empty: str  # the verdict on an answer of no words, of which no judge is asked
    system: str = ""

    def questions(self, example: Example, text: str) -> list[list[Message]]:
        answer = shown(text)
        if not answer:
            return []
        query = str(example.metadata.get("query", example.question))
        question = filled(self.template, question=query, target=example.answer, answer=answer)
        return [asked(question, self.system)]

    def verdict(self, example: Example, replies: Sequence[str]) -> dict[str, float] | None:
        said = self.read(replies[0]) if replies else self.empty
        return None if said is None else dict(self.parts[said])


def attempts(examples: Sequence[Example], samples: Sequence[Sample]) -> Scores:
    """SimpleQA's other two numbers over what was judged: the share that is right among those that
    were attempted, and its harmonic mean with the share that is right of all (F-score)."""
    parts = [s.reward_breakdown for s in samples if "not_attempted" in s.reward_breakdown]
    right = sum(part["accuracy"] for part in parts)
    tried = len(parts) - sum(part["not_attempted"] for part in parts)
    scores = {"unjudged": float(len(samples) - len(parts))}
    if parts:
        scores["right_of_attempted"] = right / tried if tried else 0.0
        scores["f_score"] = 2 * right / (tried + len(parts))
    return scores


def frames(path: str, pages: bool = False) -> list[FileRow]:
    """FRAMES's questions: rows `{problem, answer}`, asked closed-book.

    With `pages` each row also has "pages": [{"url": ..., "text": ...}], the Wikipedia articles
    that answer it, and is asked by the Oracle prompt.
    """
    rows = from_jsonl(path, "general", "{problem}")
    for row in rows:
        row["query"] = row["prompt"]
        texts = row.pop("pages", None)
        if pages:
            row["prompt"] = filled(_ORACLE, pages=_pages(row, texts), query=row["prompt"])
    return rows


def _pages(row: FileRow, pages: Any) -> str:
    """The articles as one text; DataError where the row has none."""
    texts = []
    for page in pages if isinstance(pages, list) else []:
        if not isinstance(page, dict) or not {"url", "text"} <= page.keys() or not page["text"]:
            raise DataError(f'{row.where}: a page must be {{"url": ..., "text": ...}}')
        texts.append(filled(_PAGE, url=str(page["url"]), text=str(page["text"])))
    if not texts:
        raise DataError(
            f'{row.where} has no "pages": [{{"url": ..., "text": ...}}], the articles that the'
            " Oracle prompt shows; without them the benchmark is frames_closed"
        )
    return "\n\n".join(texts)


_GRADES = {
    "A": {"accuracy": 1.0, "not_attempted": 0.0},
    "B": {"accuracy": 0.0, "not_attempted": 0.0},
    "C": {"accuracy": 0.0, "not_attempted": 1.0},
}
_TRUTHS = {"TRUE": {"accuracy": 1.0}, "FALSE": {"accuracy": 0.0}}
_RATER = Facts(FRAMES, truth_of, _TRUTHS, "FALSE", HELPFUL)


def _kind(title: str, file: str, problems: int, source: str, wording: str, **more: Any) -> Kind:
    """Questions whose answer a judge compares."""
    return Kind(
        title,
        more.pop("rows", from_jsonl),
        file,
        problems,
        more.pop("num_samples", 1),
        source,
        wording,
        rewards={"format": 0.0},
        **more,
    )


KINDS = {
    "simpleqa": _kind(
        "SimpleQA",
        "simpleqa/simpleqa.jsonl",
        4_326,
        "openai/simple-evals; MIT",
        "simple-evals: the question alone, its grader's prompt; one sample, as the paper is silent",
        args={"task": "general", "question": "{problem}"},
        needs="a judge (the original's is GPT-4o)",
        judging=Facts(SIMPLEQA, grade_of, _GRADES, "C"),
        statistic=attempts,
    ),
    "c_simpleqa": _kind(
        "C-SimpleQA",
        "chinese_simpleqa/chinese_simpleqa.jsonl",
        3_000,
        "OpenStellarTeam/ChineseSimpleQA; MIT",
        "the original's: the question alone, its grader's prompt in Chinese; one sample",
        args={"task": "general", "question": "{question}"},
        needs="a judge (the original's is GPT-4o)",
        judging=Facts(CHINESE_SIMPLEQA, grade_of, _GRADES, "C"),
        statistic=attempts,
    ),
    "frames": _kind(
        "FRAMES",
        "frames/frames_pages.jsonl",
        824,
        "google/frames-benchmark; Apache-2.0",
        "the Oracle prompt of the paper's appendix, and the rater of Krishna et al.; one sample",
        rows=frames,
        args={"pages": True},
        needs="a judge, and frames/frames_pages.jsonl: frames.jsonl with the Wikipedia articles as"
        ' "pages": [{"url": ..., "text": ...}], cut to what the model\'s context holds',
        max_prompt_tokens=98_304,
        judging=_RATER,
    ),
    "frames_closed": _kind(
        "FRAMES closed book",
        "frames/frames.jsonl",
        824,
        "google/frames-benchmark; Apache-2.0",
        "the question alone, the rater of Krishna et al.; no row of the paper",
        rows=frames,
        needs="a judge",
        judging=_RATER,
    ),
}
