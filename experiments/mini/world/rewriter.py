"""A trace of the mini world made readable by rule, where the paper has DeepSeek-V3 and people."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from r1jax.types import Example

# Phrases of traces in both languages; the longer ones first. Calculations need no translation.
_PHRASES = (
    ("Step by step:", "一步一步："),
    ("Let me see:", "让我想想："),
    ("Wait, check:", "等等，检查："),
    ("Check again:", "再检查："),
    ("But let me verify:", "但是验证一下："),
    ("Wait, verify:", "等等，验证："),
    ("The same, correct.", "一样，正确。"),
    ("No, the first was wrong.", "不对，刚才错了。"),
)
_OPENING = re.compile(r"^(?:(?:Step by step|Let me see):|(?:一步一步|让我想想)：) ?")
_FIRST_PERSON = {"en": "I go step by step: ", "zh": "我一步一步算："}
_TRACE = re.compile(r"^\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*$", re.DOTALL)


def rewrite_mini(example: Example, text: str) -> str | None:
    """A trace of the mini world made readable: its own steps in the first person.

    Phrases of the other language are put into the question's; None where the text is not thoughts
    and an answer in their tags, or has no steps at all.
    """
    found = _TRACE.match(text)
    if found is None:
        return None
    language = str(example.metadata["language"])
    thoughts = " ".join(found[1].split())
    for english, chinese in _PHRASES:
        if language == "en":
            thoughts = thoughts.replace(chinese, f"{english} ")
        else:
            thoughts = re.sub(f"{re.escape(english)} ?", chinese, thoughts)
    steps = _OPENING.sub("", thoughts)
    if steps == thoughts or not steps.strip():
        return None
    return (
        f" <think> {_FIRST_PERSON[language]}{steps} </think> <answer> {found[2].strip()} </answer>"
    )
