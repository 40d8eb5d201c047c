"""Language consistency (R1 eq 7): the share of the thoughts' words that are in the target language.

The paper does not say what a word is or how languages are told apart. Here, by Unicode script:

- a Han character is a Chinese word (there are no spaces to count by);
- a run of two or more Latin letters is an English word, with the apostrophes and hyphens inside it;
- a run of letters of any other script (kana and hangul too) is a word of neither.

What is no language does not count: digits, single Latin letters (variables), tags, addresses, and
the Latin letters in LaTeX and code (other scripts count there too: nothing is hidden by a pair of
dollars). So words of other languages in Latin script count as English. Thoughts are what stands
before the last </think>, or all of the text where there is none.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from r1jax.config import DataError

if TYPE_CHECKING:
    from r1jax.types import Example

LANGUAGES = ("en", "zh")

# What opens a formula or code, and what closes it. Three before one: the longest is tried first.
_QUOTED = {"```": "```", "`": "`", "$$": "$$", "$": "$", "\\[": "\\]", "\\(": "\\)"}
_OPENING = re.compile("|".join(map(re.escape, _QUOTED)))
_LATIN_LETTERS = re.compile(r"[A-Za-z]+")
_NO_WORDS = re.compile(r"</?(?:think|answer)>|https?://[^\s\u4e00-\u9fff]+|\\[A-Za-z]+")
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_LETTER = rf"(?![{_HAN}])[^\W\d_]"
_WORD = re.compile(rf"([{_HAN}])|(?:{_LETTER})+(?:['’-](?:{_LETTER})+)*")


def language_reward(example: Example, text: str, *, length: int, finish_reason: str) -> float:
    """Words in the example's language / words (eq 7), in [0, 1]; 0 where there are no words.

    The language is metadata["language"], "en" or "zh", or else that of most words of the question.
    """
    counts = word_counts(thoughts(text))
    total = sum(counts.values())
    return counts[target_language(example)] / total if total else 0.0


def target_language(example: Example) -> str:
    """Raises DataError where neither the metadata nor the question tells it."""
    language = example.metadata.get("language")
    if language is None:
        counts = word_counts(example.question)
        language = max(LANGUAGES, key=lambda name: counts[name])
        if not counts[language]:
            raise DataError(
                f"example {example.id}: its question has no English or Chinese words;"
                ' set the key "language"'
            )
    if language not in LANGUAGES:
        raise DataError(
            f"example {example.id}: language {language!r} is not one of {', '.join(LANGUAGES)}"
        )
    return str(language)


def thoughts(text: str) -> str:
    """What stands before the last </think>; all of the text if there is none."""
    before, closed, after = text.rpartition("</think>")
    return before if closed else after


def word_counts(text: str) -> Mapping[str, int]:
    """The number of words by language: "en", "zh" and "other", as the module says."""
    counts = {"en": 0, "zh": 0, "other": 0}
    for match in _WORD.finditer(_prose(text)):
        word = match[0]
        if match[1]:
            counts["zh"] += 1
        elif not all(map(_is_latin, word)):
            counts["other"] += 1
        elif len(word) > 1:
            counts["en"] += 1
    return counts


def _is_latin(character: str) -> bool:
    if character.isascii() or not character.isalpha():
        return True
    return unicodedata.name(character, "").startswith("LATIN")


def _prose(text: str) -> str:
    """The text without tags and addresses, and without the Latin letters of formulas and code."""
    parts = (_LATIN_LETTERS.sub(" ", part) if quoted else part for part, quoted in _parts(text))
    return _NO_WORDS.sub(" ", " ".join(parts))


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """(part, whether it is a formula or code) in order; what is never closed is ordinary text.

    In linear time: a closing mark that was not found once is not searched for again.
    """
    at, absent = 0, set()
    for match in _OPENING.finditer(text):
        closing = _QUOTED[match[0]]
        if match.start() < at or closing in absent:
            continue
        end = text.find(closing, match.end())
        if end < 0:
            absent.add(closing)
            continue
        yield text[at : match.start()], False
        yield text[match.end() : end], True
        at = end + len(closing)
    yield text[at:], False
