"""Numbers and formulas: what an answer says, and whether it equals the reference.

Integers are compared as digits; only the rest goes through math-verify (sympy), under a limit of
processor time, so that no answer can hang a grader.
"""

from __future__ import annotations

import logging
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import FrameType
from typing import TYPE_CHECKING, Any

from r1jax.tasks.answers import BOX_TOKEN, boxed_values

if TYPE_CHECKING:
    from r1jax.types import Example

MAX_ANSWER = 1_000  # characters; a longer answer is wrong
MAX_WORDS = 4  # in a formula
MAX_DEPTH = 20  # of braces in a formula
TIME_LIMIT = 3.0  # seconds of processor time for one parse, and for one comparison

# Full-width ASCII, the ideographic space and full stop, and three more ways to write a minus.
_TO_ASCII = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {
    0x3000: " ",
    0x3002: ".",
    0x2212: "-",
    0x2013: "-",
    0xFE63: "-",
}
_WRAPPERS = (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox)\{([^{}]*)\}")
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_INTEGER = re.compile(rf"([+-]?) ?({_DIGITS})(?:\.0*)?")
# A minus right behind a digit, letter or closing bracket is an operator, not a sign.
_NUMBER = re.compile(rf"(?:(?<![0-9A-Za-z)\]}}])[+-])?{_DIGITS}(?:\.[0-9]+)?")
# Sympy would work for minutes on these: exponents in the millions, towers, huge factorials.
TOO_BIG = re.compile(
    r"(?:\^|\*\*)[\s{(]*-?(?:[0-9]{5,}|[0-9.]+\s*(?:\^|\*\*))|[0-9]{4,}[\s)}]*!|[0-9]{400,}"
)


_BASE = re.compile(r"[0-9]_\{?[0-9]")  # 52_8, a number in another base
_ABOUT = re.compile(r"\\(?:approx|sim|simeq|ne|neq|not)(?![A-Za-z])|[≈≠]")


class OutOfTime(BaseException):
    """Not an Exception, so that sympy's own handlers let it pass."""


def to_ascii(text: str) -> str:
    """Full-width characters as ASCII, TeX's ways to group thousands as commas."""
    text = text.translate(_TO_ASCII)
    return text.replace("{,}", ",").replace(r",\!", ",").replace(r"\!", "")


def plain(text: str) -> str:
    """`text` in ASCII without what is wrapped around an answer: $...$, \\text{...}, a full stop."""
    text = to_ascii(text).strip().removesuffix(".").strip()
    for opening, closing in _WRAPPERS:
        inside = text[len(opening) : len(text) - len(closing)]
        if text == opening + inside + closing and opening not in inside:
            text = inside.strip().removesuffix(".").strip()
    wrapped = _TEXT_COMMAND.fullmatch(text)
    return wrapped[1].strip() if wrapped else text


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


def last_formula(text: str) -> str | None:
    r"""The last \boxed{} anywhere, or else the last number."""
    boxes = boxed_values(text)
    return boxes[-1][0] if boxes else last_number(text)


def same_formula(example: Example, answer: str) -> bool:
    """Whether `answer` is written like the reference or equals it according to math-verify.

    Prose is no answer, nor is a piece of the question that equals the reference ("2+3" for 5).
    """
    gold, answer = plain(example.answer), plain(answer)
    if not gold or not answer or len(answer) > MAX_ANSWER:
        return False
    if _literal(gold) == _literal(answer):
        return True
    if integer(gold) is not None and integer(answer) is not None:
        return integer(gold) == integer(answer)
    if _TEXT_COMMAND.fullmatch(example.answer.strip("$. ")):  # to sympy east is teas: e*a*s*t
        return gold.strip("()").casefold() == answer.strip("()").casefold()
    if _is_no_formula(answer) or _repeats(example.question, answer):
        return False
    if _BASE.search(gold + " " + answer):  # 52_8: to sympy the index is nothing
        return re.sub(r"[{}]", "", _literal(gold)) == re.sub(r"[{}]", "", _literal(answer))
    return all(_verified(gold, side) for side in _sides(gold, answer))


def _sides(gold: str, answer: str) -> list[str]:
    """What must equal the reference: every side of an equation but a variable's name ("x = 5").

    Math-verify looks at the last side only, so that 6 = 5 would be 5.
    """
    if "=" in gold or not re.search(r"(?<![<>!:])=", answer):
        return [answer]
    sides = answer.split("=")
    named = len(sides) == 2 and re.match(r"\s*\\?[A-Za-z]", sides[0])
    return sides[1:] if named else sides


def _literal(text: str) -> str:
    """`text` without what doesn't show: spaces that part no words or numbers, \\left, \\dfrac."""
    text = re.sub(r"\\(?:left|right)(?![A-Za-z])", "", text)
    text = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}", text)
    return re.sub(r"(?<![0-9A-Za-z])\s+|\s+(?![0-9A-Za-z\s])", "", text)


def _is_no_formula(answer: str) -> bool:
    """Whether it is prose (more words than a unit needs), or too big or broken for sympy."""
    words = re.findall(r"[A-Za-z]{2,}|[\u4e00-\u9fff]{2}", re.sub(r"\\[A-Za-z]+", " ", answer))
    if len(words) > MAX_WORDS or "?" in answer or TOO_BIG.search(answer) or _ABOUT.search(answer):
        return True
    depth = 0
    for token in BOX_TOKEN.finditer(answer):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if not 0 <= depth <= MAX_DEPTH:
            return True
    return depth != 0


def _repeats(question: str, answer: str) -> bool:
    """Whether `answer` is a calculation that stands in the question; a lone fraction is none."""
    answer = re.sub(r"\^\{?\\circ\}?", "", _literal(answer))
    calculation = re.search(r"[0-9A-Za-z)}!]\s*(?:[-+*/^!]|\\times|\\cdot|\\div)|\\sqrt", answer)
    if not calculation or re.fullmatch(r"-?[0-9]+/[0-9]+", answer):
        return False
    return answer.replace(" ", "") in _literal(to_ascii(question)).replace(" ", "")


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises OutOfTime after `seconds` of this process's processor time.

    Signals reach the main thread only; in another thread there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGVTALRM, stop)
    # Again every half second, should a bare `except:` in sympy swallow the first.
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@lru_cache(maxsize=1)
def _math_verify() -> Any:
    """Imported at first use: sympy costs 0.6 s and 60 MB, and integers don't need it."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of our own time limit
    return math_verify


def _parse(text: str) -> list[Any]:
    library = _math_verify()
    config = [library.LatexExtractionConfig(boxed_match_priority=0)]
    try:
        with time_limit(TIME_LIMIT):
            return library.parse(rf"\boxed{{{text}}}", config, parsing_timeout=None)
    except OutOfTime:
        return []


_parse_gold = lru_cache(maxsize=50_000)(_parse)  # each reference is parsed once


@lru_cache(maxsize=10_000)  # the samples of a group often agree
def _verified(gold: str, answer: str) -> bool:
    parsed_gold, parsed = _parse_gold(gold), _parse(answer)
    try:
        with time_limit(TIME_LIMIT):
            return bool(_math_verify().verify(parsed_gold, parsed, timeout_seconds=None))
    except OutOfTime:
        return False
