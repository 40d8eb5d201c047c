"""DROP: short answers about a passage, by the metric of its authors (Dua et al. 2019).

An answer is compared as words: in lower case, without punctuation and articles, split at spaces and
hyphens, numbers as floats. F1 is of the two sets of words, and 0 where the reference has numbers of
which the answer has none. Of several references the best counts. Ours: where only articles and
punctuation are left, they are what is compared, so that an empty answer is never a right one.
"""

from __future__ import annotations

import re
import string
from typing import TYPE_CHECKING, Any

from r1jax.config import DataError
from r1jax.tasks.answers import after_thoughts, said, tagged_answer

if TYPE_CHECKING:
    from r1jax.types import Example

_LINE = re.compile(r"(?i)answer\s*:\s*([^\n]+)")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def last_line_answer(text: str) -> list[str]:
    """What follows the last "Answer:" on its line behind the thoughts, or is in <answer> tags.

    simple-evals takes the whole response where there is no such line: that is the lenient way here.
    """
    if found := _LINE.findall(said(text)):
        return [found[-1].strip().removesuffix("</answer>").strip(" *")]
    inside = tagged_answer(after_thoughts(text))
    return [] if inside is None else [inside.strip()]


def whole_answer(text: str) -> str | None:
    """The last "Answer:", or all of the text."""
    found = last_line_answer(text)
    return found[0] if found else said(text).strip()


def exact(example: Example, answer: str) -> bool:
    """Whether it has the words of a reference, in their order."""
    return any(_words(answer) == _words(reference) for reference in references(example))


def f1_of(example: Example, answer: str) -> float:
    """In [0, 1], rounded to the fourth digit as the original's percentages to the second."""
    return max(_f1(set(_words(answer)), set(_words(r))) for r in references(example))


def references(example: Example) -> list[str]:
    """Answers that count as right: metadata["references"], or the answer alone."""
    found: Any = example.metadata.get("references") or [example.answer]
    return [str(reference) for reference in found]


def check_drop(example: Example) -> None:
    """DataError for a reference of white space."""
    if not all(map(_words, references(example))):
        raise DataError(f"example {example.id}: a reference answer of {example.answer!r} is empty")


def _words(text: str) -> list[str]:
    words: list[str] = []
    for token in re.split(" |-", text.lower()):
        word = token if _is_number(token) else token.translate(_NO_PUNCTUATION)
        if _is_number(word):
            word = str(float(word))
        words += _ARTICLES.sub(" ", word).split()
    return words or re.findall(r"\w+", text.lower()) or text.split()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _f1(answer: set[str], reference: set[str]) -> float:
    numbers = set(filter(_is_number, reference))
    if numbers and not numbers & answer:
        return 0.0
    both = len(answer & reference)
    precision = both / len(answer) if answer else 1.0
    recall = both / len(reference) if reference else 1.0
    if precision + recall == 0.0:
        return 0.0
    return round(2 * precision * recall / (precision + recall), 4)
