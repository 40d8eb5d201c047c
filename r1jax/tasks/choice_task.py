"""Letters: multiple choice (A-J), and puzzles whose answer is a name of one letter (A-Z)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from r1jax.tasks.writing import bare_words, plain, to_ascii

if TYPE_CHECKING:
    from r1jax.types import Example

_LETTER = re.compile(r"\(?([A-Za-z])[).]?")
_LETTER_TOKEN = re.compile(r"(?<![A-Za-z'])[A-Z](?![A-Za-z'])")
# "C", "(C)", "C. Paris", "(C) Paris", "C: Paris", "Option C", "Answer: C", "选C"
_CHOICE = re.compile(
    r"(?:(?i:(?:(?:final|correct)\s+)?answer\s*:|(?:option|choice)\b:?)|答案\s*[:为是]|故?选项?:?)?\s*"
    r"\(?([A-Ja-j])\s*(?:(?:[).:、,]+|(?<=\s)[-—]+\s)\s*(\S.*)?|选项|项)?",
    re.DOTALL,
)
_OPTION = re.compile(r"(?<![A-Za-z])(?:[A-J][).:、]|(?:or|and)\s+\(?[A-J]\b)|[或和]\s*[A-J]")
_BOTH = re.compile(
    r"\b(?:both|either|neither)\s+\(?[A-J]\)?\s+(?:and|n?or)\s+\(?[A-J]\b", re.IGNORECASE
)
_MORE = re.compile(r"\(?[A-J]\)?\s*(?:[,、;/]|$)")  # what is behind a first letter names others
_CHOICE_TOKEN = re.compile(r"(?<![A-Za-z'])[A-J](?![A-Za-z'])")
_DENIED = re.compile(  # "not A", "A is wrong"
    r"(?:\b(?i:not|nor|neither|n't)\s+(?i:option\s+)?|不[选是]|排除)\**\(?[A-J](?![A-Za-z'])"
    r"|(?<![A-Za-z'])[A-J]\)?\**\s*(?:(?:is|are)\s+(?:wrong|incorrect|false|not)\b|错误?|不对|不正确)"
)
_STATED_CHOICE = re.compile(
    r"(?i:answer|answer is|option|choice|答案|答案是|答案为|选|选择)[\s:*$(]{0,8}"
    r"([A-J])(?![A-Za-z'])"
)


def letter(text: str) -> str | None:
    """The letter that `text` is as a whole, in upper case, or None."""
    match = _LETTER.fullmatch(plain(text))
    return match[1].upper() if match else None


def last_letter(text: str) -> str | None:
    """The last capital letter anywhere that is a word by itself."""
    matches = _LETTER_TOKEN.findall(to_ascii(text))
    return matches[-1] if matches else None


def same_letter(example: Example, answer: str) -> bool:
    return letter(answer) is not None and letter(answer) == letter(example.answer)


def choice(text: str) -> str | None:
    """The option A-J that `text` names, alone or before the option's text; None if it names two."""
    marked = re.sub(r"\*\*|[$~]|\\[ ,;]|\\q?quad", " ", bare_words(to_ascii(text)))
    match = _CHOICE.fullmatch(plain(re.sub(r"\s+", " ", marked)))
    rest = match[2] or "" if match else ""
    if not match or _OPTION.search(_BOTH.sub("", rest)) or _MORE.match(rest):
        return None
    return match[1].upper()


def last_choice(text: str) -> str | None:
    """The last option named as the answer ("answer: C", "选C"), or else the last capital A-J."""
    text = _DENIED.sub("", to_ascii(text))
    matches = _STATED_CHOICE.findall(text) or _CHOICE_TOKEN.findall(text)
    return matches[-1] if matches else None


def same_choice(example: Example, answer: str) -> bool:
    return choice(answer) is not None and choice(answer) == choice(example.answer)
