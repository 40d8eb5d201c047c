"""Tags: where the thoughts end and the answer stands; format rewards; reflective words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from r1jax.tasks.answers import TAGS, visible

if TYPE_CHECKING:
    from r1jax.types import Example


# Figure 9's list, and Chinese equivalents (ours: the paper counts English words only).
REFLECTIVE_WORDS = "wait|mistake|however|but|retry|error|verify|wrong|evaluate|check"
REFLECTIVE_WORDS_ZH = (
    "等等|等一下|然而|但是|不过|错误|错了|不对|重试|再试|重新|验证|检查|检验|核对|评估"
)
_REFLECTIVE = re.compile(
    rf"(?<![a-z])(?:{REFLECTIVE_WORDS})(?![a-z])|{REFLECTIVE_WORDS_ZH}",
    re.IGNORECASE | re.ASCII,
)


def format_reward(example: Example, text: str, *, length: int, finish_reason: str) -> float:
    """1 iff the text is `<think>thoughts</think> <answer>answer</answer>` and nothing else (eq 4).

    White space is allowed around and between the two; each tag occurs once, neither part is empty.
    """
    if any(text.count(tag) != 1 for tag in TAGS):
        return 0.0
    before, _, rest = text.partition("<think>")
    thoughts, _, rest = rest.partition("</think>")
    between, _, rest = rest.partition("<answer>")
    answer, closed, after = rest.partition("</answer>")
    empty = not (before + between + after).strip()
    return float(bool(closed) and empty and visible(thoughts) and visible(answer))


def r1_format_reward(example: Example, text: str, *, length: int, finish_reason: str) -> float:
    """1 iff the text is `thoughts</think> summary`, for R1's template, which opens <think> itself.

    A second <think> or </think> scores 0, and so does an empty half.
    """
    if "<think>" in text or text.count("</think>") != 1:
        return 0.0
    thoughts, _, summary = text.partition("</think>")
    return float(visible(thoughts) and visible(summary))


def reflective_words(text: str) -> int:
    """Occurrences of Figure 9's words (whole words, any case) or their Chinese equivalents."""
    return sum(1 for _ in _REFLECTIVE.finditer(text))
