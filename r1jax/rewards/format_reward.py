"""Tags: where the thoughts end and the answer stands; format rewards; checking words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from r1jax.types import Example

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
MAX_CHARACTERS = 20_000  # of a text that extraction looks at, counted from its end

# Figure 9's list, and Chinese equivalents (ours: the paper counts English words only).
REFLECTIVE_WORDS = "wait|mistake|however|but|retry|error|verify|wrong|evaluate|check"
REFLECTIVE_WORDS_ZH = (
    "等等|等一下|然而|但是|不过|错误|错了|不对|重试|再试|重新|验证|检查|检验|核对|评估"
)
_REFLECTIVE = re.compile(
    rf"(?<![a-z])(?:{REFLECTIVE_WORDS})(?![a-z])|{REFLECTIVE_WORDS_ZH}",
    re.IGNORECASE | re.ASCII,
)


def _visible(text: str) -> bool:
    return any(character.isprintable() and not character.isspace() for character in text)


def after_thoughts(text: str) -> str:
    """What follows the last </think> (all of the text if there is none), its last part only."""
    return text.rpartition("</think>")[2][-MAX_CHARACTERS:]


def tagged_answer(text: str) -> str | None:
    """The inside of the last complete <answer>...</answer>, or None."""
    start = text.rfind("<answer>", 0, max(text.rfind("</answer>"), 0))
    if start < 0:
        return None
    inside, _, _ = text[start + len("<answer>") :].partition("</answer>")
    return inside


def summary(text: str) -> str:
    """What a reader sees: the inside of <answer>...</answer> behind the thoughts, or all there."""
    final = after_thoughts(text)
    tagged = tagged_answer(final)
    return (final if tagged is None else tagged).strip()


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
    return float(bool(closed) and empty and _visible(thoughts) and _visible(answer))


def r1_format_reward(example: Example, text: str, *, length: int, finish_reason: str) -> float:
    """1 iff the text is `thoughts</think> summary`, for R1's template, which opens <think> itself.

    A second <think> or </think> scores 0, and so does an empty half.
    """
    if "<think>" in text or text.count("</think>") != 1:
        return 0.0
    thoughts, _, summary = text.partition("</think>")
    return float(_visible(thoughts) and _visible(summary))


def reflective_words(text: str) -> int:
    """Occurrences of Figure 9's words (whole words, any case) or their Chinese equivalents."""
    return sum(1 for _ in _REFLECTIVE.finditer(text))
