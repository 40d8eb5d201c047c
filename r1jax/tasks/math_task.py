"""Numbers and formulas: what an answer says, and whether it equals the reference.

Integers are compared as digits. Otherwise the structure of both is read (structure.py: lists, sets,
intervals, equations; units.py: units) and compared (comparison.py), the formulas in it by
math-verify's parser and sympy (formulas.py), under a limit of processor time, so that no answer can
hang a grader.
"""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from typing import TYPE_CHECKING

from r1jax.config import DataError
from r1jax.tasks import formulas
from r1jax.tasks.answers import BOX_TOKEN, boxed_values, summary
from r1jax.tasks.choice_task import choice
from r1jax.tasks.comparison import Comparison, literal, variables_of
from r1jax.tasks.computed import is_idle, repeats
from r1jax.tasks.formulas import OutOfTime
from r1jax.tasks.structure import (
    read,
)
from r1jax.tasks.writing import TEXT, bare_words, compact, plain, to_ascii, written

if TYPE_CHECKING:
    from r1jax.types import Example

TIME_LIMIT = formulas.TIME_LIMIT  # seconds of this thread's processor time for one answer
MAX_ANSWER = 1_000  # characters; a longer answer is wrong
MAX_WORDS = 6  # in a formula
MAX_DEPTH = 20  # of braces in a formula

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_INTEGER = re.compile(rf"([+-]?) ?({_DIGITS})(?:\.0*)?")
# A minus right behind a digit, letter or closing bracket is an operator, not a sign.
_NUMBER = re.compile(rf"(?:(?<![0-9A-Za-z)\]}}])[+-])?{_DIGITS}(?:\.[0-9]+)?")
# Sympy would work for minutes on these: exponents in the millions, towers, huge factorials.
TOO_BIG = re.compile(
    r"(?:\^|\*\*)[\s{(]*-?(?:[0-9]{5,}|[0-9.]+\s*(?:\^|\*\*))|[0-9]{4,}[\s)}]*!|[0-9]{400,}"
    r"|!\s*!|binom\s*\{?\s*[0-9]{5,}"
)
_ABOUT = re.compile(r"\\(?:approx|sim|simeq|not|cong)(?![A-Za-z])|≈")


def integer(text: str) -> str | None:
    """The digits of the integer that `text` is as a whole ('1,234.' -> '1234'), or None."""
    match = _INTEGER.fullmatch(plain(text))
    if not match:
        return None
    digits = match[2].replace(",", "").lstrip("0") or "0"  # strings: no limit on their length
    return "-" + digits if match[1] == "-" and digits != "0" else digits


def last_number(text: str) -> str | None:
    """The last number anywhere."""
    matches = _NUMBER.findall(to_ascii(text))
    return matches[-1] if matches else None


def same_integer(example: Example, answer: str) -> bool:
    return integer(answer) is not None and integer(answer) == integer(example.answer)


_LAST_FORMULA = re.compile(
    r"(?<!\\)\$([^$\n]{1,200})(?<!\\)\$|\\\((.{1,200}?)\\\)"
    rf"|(-?\\[dt]?frac\{{[^{{}}]{{1,40}}\}}\{{[^{{}}]{{1,40}}\}})|({_NUMBER.pattern}(?:/[0-9]+)?)"
)


def last_formula(text: str) -> str | None:
    r"""The last \boxed{} anywhere, or else the last number, or what it is part of: $...$, 3/4."""
    boxes = boxed_values(text)
    if boxes:
        return boxes[-1][0]
    found = None
    for match in _LAST_FORMULA.finditer(to_ascii(text)):
        formula_in_dollars = match[1] or match[2]
        if formula_in_dollars is None or re.search("[0-9]", formula_in_dollars):
            found = next(x for x in match.groups() if x is not None)
    return found


# -- references ------------------------------------------------------------------------------------

_INTRODUCED = re.compile(
    r"\b(?:answer|solution|result)\b.{0,20}?\b(?:is|are)\b|答案", re.IGNORECASE
)
_LETTER_AND_VALUE = re.compile(
    rf"(?:{TEXT}\{{\s*)?\(([A-J])\)\s*\}}?[\s\\~:.]*([^\s}}].*)", re.DOTALL
)


@lru_cache(maxsize=10_000)
def references(text: str) -> tuple[str, ...]:
    """What counts as the reference: several only for a letter with its value.

    Of a whole solution what stands in <answer>, behind GSM8K's #### or in the last box; of a list
    of one or a quoted text its inside; of "Answer: 5" what follows.
    """
    text = summary(text)
    if "####" in text:
        text = text.rpartition("####")[2]
    if boxes := boxed_values(text):
        text = boxes[-1][0]
    text = _unquoted(text.strip())
    text = text if _INTRODUCED.search(text) else _unannounced(text)
    match = _LETTER_AND_VALUE.fullmatch(text.strip("$"))
    if match := match or _OPTION.fullmatch(text):
        value = match[2].strip(" $")
        return match[1], value.removesuffix("}") if value.count("}") > value.count("{") else value
    return (text,)


_OPTION = re.compile(r"([A-F])[.、]\s*(\S.*)", re.DOTALL)


def _unquoted(text: str) -> str:
    """The inside of ["72"], ['72'] and "72"."""
    if not re.match(r"""\[?\s*["']""", text):
        return text
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return text
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    return value.strip() if isinstance(value, str) else text


def check_formula(example: Example) -> None:
    """DataError for a reference that no answer could be like."""
    text = example.answer
    (*_, reference) = references(text)
    problem = None
    if not plain(reference):
        problem = "is empty" if not text.strip() else "has no answer behind its last ####"
    elif re.match(r"""[\[{]\s*["'}]""", reference):
        problem = "is a list or a mapping rather than one answer"
    elif len(reference) > MAX_ANSWER or "\n\n" in reference.strip():
        problem = "is a text rather than an answer"
    elif _INTRODUCED.search(reference):
        problem = "is a sentence; the answer alone is wanted"
    elif len(re.findall(r"(?<!\\){", reference)) != len(re.findall(r"(?<!\\)}", reference)):
        problem = "has a brace without its other"
    elif not same_formula(example, reference):
        problem = "is not even equal to itself"
    if problem:
        raise DataError(f"example {example.id}: {text[:200]!r} is no math answer: it {problem}")


# -- comparison ------------------------------------------------------------------------------------


def same_formula(example: Example, answer: str) -> bool:
    """Whether `answer` is written like the reference or equals it.

    Prose is no answer, nor is a calculation that stands in the question or is left to do ("2+3" for
    5, see computed.py).
    """
    if len(answer) > MAX_ANSWER:
        return False
    if literal(example.answer) == literal(answer) != "":
        return True
    golds, parts = references(example.answer), references(answer)
    if len(golds) == len(parts) == 2:  # both a letter and its value
        both = zip(golds, parts, strict=True)
        return all(_same_reference(gold, part, example.question) for gold, part in both)
    return any(_same_reference(gold, answer, example.question) for gold in golds)


def _same_reference(gold: str, answer: str, question: str) -> bool:
    gold, answer = gold.strip(), answer.strip()
    if not gold or not answer:
        return False
    if literal(gold) == literal(answer):
        return True
    if integer(gold) is not None and integer(answer) is not None:
        return integer(gold) == integer(answer)
    letter = choice(gold) if re.fullmatch(r"\(?[A-J]\)?", plain(gold)) else None
    if _LETTERS.fullmatch(plain(gold)) and (letters := _letters(answer)):
        return letters == _letters(gold)
    answer = _unannounced(answer)
    if letter and (_CAPITAL.search(bare_words(answer)) or gold != letter):
        return choice(answer) == letter
    exact, *rounded = re.split(r"\\approx(?![A-Za-z])|≈", answer)
    if rounded and re.search("[0-9]", exact) and not re.search(r"\bor\b|[,;或]", rounded[0]):
        answer = exact.strip()  # \sqrt{51} \approx 7.14
    if _DOTS.search(written(answer)) and not _DOTS.search(written(gold)):
        return False
    if _ABOUT.search(gold):
        gold, answer = (_ABOUT.sub("", text).strip() for text in (gold, answer))
    if _is_no_formula(answer) or TOO_BIG.search(gold) or (is_idle(answer) and not is_idle(gold)):
        return False
    comparison = Comparison(variables_of(question), compact(written(question)))
    formulas.load()  # takes no time of the answer's
    try:
        with formulas.time_limit(TIME_LIMIT):
            return not repeats(question, gold, answer) and any(
                comparison.same(first, second) for first in read(gold) for second in read(answer)
            )
    except (OutOfTime, RecursionError):
        return False


_DOTS = re.compile(r"\\[lcd]?dots\s*$")
_HEDGE = "不非错或可能若如假要约至多少超于近"
_ANNOUNCED = re.compile(
    rf"^{TEXT}\{{(?![^{{}}]*\b(?:not|no|wrong)\b)[A-Za-z ]+:\s*\}}\s*"
    rf"|^(?:{TEXT}\{{)?\s*(?:(?:(?:final )?answer|total|sum|result)\s*[:=]"
    r"|答案?\s*[:：为是]+|[一总合]?共计?(?=\s*[0-9])"
    rf"|(?:(?![{_HEDGE}])[\u4e00-\u9fff]){{1,8}}[为是](?=\s*[-$(\\0-9]))\s*\}}?\s*",
    re.IGNORECASE,
)


def _unannounced(text: str) -> str:
    """5 of "Answer: 5"."""
    said = _ANNOUNCED.sub("", text)
    unclosed = said.count("}") > said.count("{") and said != text
    return said.removesuffix("}") if unclosed else said


_LETTERS = re.compile(r"(?=[A-J]{2,8}$)A?B?C?D?E?F?G?H?I?J?|[①-⑩]{2,10}")  # choices: ACD, ①③
_CAPITAL = re.compile(r"^[\s($*]*[A-Z]|选")


def _letters(text: str) -> str | None:
    """ACD for A, C and D in any order, and so ①③; None if it is something else."""
    found = re.sub(r"\band\b|[\s,;、和及.()$]", "", bare_words(to_ascii(text)))
    alike = re.fullmatch("[A-J]+|[①-⑩]+", found) and len(set(found)) == len(found)
    return "".join(sorted(found)) if alike else None


def _is_no_formula(answer: str) -> bool:
    """Whether it is prose (more words than a unit needs), or too big or broken for sympy."""
    words = re.findall(r"[A-Za-z]{2,}|[\u4e00-\u9fff]{2}", re.sub(r"\\[A-Za-z]+", " ", answer))
    if len(words) > MAX_WORDS or "?" in answer or _is_too_big(answer) or _ABOUT.search(answer):
        return True
    depth = 0
    for token in BOX_TOKEN.finditer(answer):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if not 0 <= depth <= MAX_DEPTH:
            return True
    return depth != 0 or len(re.findall(r"[(\[|]", answer)) > 3 * MAX_DEPTH


_NESTED = re.compile(  # counts of counts
    r"\\(?:sum|prod|binom|int|lim)(?![A-Za-z]).*[)}]\s*!|\\binom\s*\{[^{}]*\\[a-z]{3}|[)}]\s*\^.*\\binom"
    r"|\^\s*\{[^{}]*(?:!|\\(?:binom|sum|prod))"
)


def _is_too_big(text: str) -> bool:
    text = written(text)
    counts = re.search(r"!|\\(?:[dt]?binom|choose|prod|sum|int)(?![A-Za-z])", text)
    large = re.search(r"[0-9]{4,}|10 ?\^ ?\{?[0-9]", text)
    return bool(TOO_BIG.search(text) or (counts and large) or _NESTED.search(text))
