"""An option stated in a fixed form of words, as a benchmark asks for it: "Answer: B".

Each form takes the last statement behind the thoughts, without Markdown and TeX around it: who
corrects an answer means the last one; who names several has none. A letter alone in <answer> tags
will do too, since templates with tags ask for that.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from r1jax.tasks.answers import after_thoughts, said, tagged_answer
from r1jax.tasks.choice_task import choice
from r1jax.tasks.writing import to_ascii

if TYPE_CHECKING:
    from r1jax.types import Example

# An option's letter: not the beginning of a word, in lower case only where nothing follows.
_LETTER = r"\(?([A-J])(?![A-Za-z0-9'])|\(?([a-j])(?=[ \t]*[).,;]?[ \t]*(?:\n|\Z))"
_SEVERAL = re.compile(  # what is behind it names another; "C, I think" does not
    r"[ \t]*\)?[ \t]*(?:or|and|[,/&、或和])+[ \t]*(?:or|and)?[ \t]*"
    r"\(?(?!I[ \t]+(?!(?:or|and)\b)[a-z])[A-J](?![A-Za-z0-9'])"
)
_MARKS = re.compile(  # what simple-evals drops before it looks, and Markdown's
    r"\*\*|__|[`$]|\\[()\[\]]|\\(?:boxed|fbox|text|mathrm|mathbf|textbf)\s*\{|[{}]"
)
_FORMS = {
    "answer_letter": rf"(?i:answer)[ \t]*:[ \t]*(?:{_LETTER})",
    # MMLU-Pro's first two rules; its third, the last capital anywhere, is our lenient one.
    "the_answer_is": rf"(?i:answer[ \t]*(?:is[ \t]*:?|:))[ \t]*(?:{_LETTER})",
    "chinese_answer": r"(?:答案|(?i:answer))[ \t]*(?:应?[该当]?[是为选]|(?i:is))?[ \t]*:?[ \t]*"
    rf"(?:{_LETTER})",
}
_FIELD = re.compile(r'"answer"\s*:\s*"?([^"\n,}]*)')


def stated(form: str) -> Callable[[str], list[str]]:
    """The final answer in one of the forms above: its letter, or [] where it is not stated."""
    pattern = re.compile(_FORMS[form])

    def final(text: str) -> list[str]:
        plain = _MARKS.sub("", to_ascii(said(text)))
        found = list(pattern.finditer(plain))
        if not found:
            return _tagged(text)
        if _SEVERAL.match(plain, found[-1].end()):
            return []
        return [(found[-1][1] or found[-1][2]).upper()]

    return final


def json_answers(text: str) -> list[str]:
    """The letter in the last `"answer": "..."`, be the JSON around it whole or not."""
    found = _FIELD.findall(said(text))
    if not found:
        return _tagged(text)
    letter = choice(found[-1])
    return [] if letter is None else [letter]


def _tagged(text: str) -> list[str]:
    inside = tagged_answer(after_thoughts(text))
    letter = None if inside is None else choice(inside)
    return [] if letter is None else [letter]


def same_option(example: Example, answer: str) -> bool:
    """Whether it is the reference's letter, one of the options that there are."""
    options: Any = example.metadata.get("options")
    letter = choice(answer)
    known = options is None or (letter is not None and ord(letter) < ord("A") + int(options))
    return letter is not None and known and letter == choice(example.answer)
