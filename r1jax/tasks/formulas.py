"""Formulas by math-verify: parsed by its parser, compared by value, all under a limit of time.

Its own reading of an answer as a whole is left out: it takes letters for units and the first
fraction for a formula that it cannot parse; and it holds whatever is below 5e-7 for 0.
"""

from __future__ import annotations

import logging
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import FrameType
from typing import Any

TIME_LIMIT = 2.0  # seconds of processor time for all that one answer asks
TICK_S = 0.05  # of this process's processor time between two looks at the thread's
AGAIN_S = 0.2  # should a bare `except:` in sympy swallow the first
DIGITS = 50  # that equal numbers share
ROUNDED = 1.1e-6  # relative: six digits of a number that no decimal ends; above 1 half of it
PRINTED = 1e-12  # relative: what is left of a decimal's rounding in a computer


class OutOfTime(BaseException):
    """Not an Exception, so that sympy's own handlers let it pass."""


_limited = False


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises OutOfTime after `seconds` of this thread's processor time; within another limit, that
    one holds.

    Signals reach the main thread only; in another thread there is no limit.
    """
    global _limited
    if _limited or threading.current_thread() is not threading.main_thread():
        yield
        return
    deadline = time.thread_time() + seconds

    def look(_signal: int, _frame: FrameType | None) -> None:
        nonlocal deadline
        if _limited and time.thread_time() >= deadline:
            deadline = time.thread_time() + AGAIN_S
            raise OutOfTime

    before = signal.signal(signal.SIGVTALRM, look)
    _limited = True
    # The timer counts all threads of the process; it only says when to look at our own.
    tick = min(TICK_S, seconds)
    signal.setitimer(signal.ITIMER_VIRTUAL, tick, tick)
    try:
        yield
    finally:
        _limited = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@dataclass(frozen=True, eq=False)
class Formula:
    """A parsed formula: with decimals as fractions, and its value where it is a number."""

    expression: Any
    number: Any | None  # to DIGITS digits, complex; None: it holds variables, or has no value
    rounded: bool  # a decimal stands in it

    @property
    def exact(self) -> bool:
        """Whether it is a fraction of integers."""
        return bool(self.expression.is_Rational)

    @property
    def ends(self) -> bool:
        """Whether it is a number that some decimal writes in full."""
        if not self.exact:
            return False
        below = self.expression.q
        for prime in (2, 5):
            while below % prime == 0:
                below //= prime
        return below == 1


@lru_cache(maxsize=1)
def load() -> Any:
    """(math_verify, its parser), imported at first use: sympy costs 0.6 s and 60 MB, and integers
    don't need it."""
    import latex2sympy2_extended
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of our own time limit
    return math_verify, latex2sympy2_extended


@lru_cache(maxsize=20_000)
def formula(text: str) -> Formula | None:
    """None for what is no formula to math-verify's parser, or costs too much."""
    _, parser = load()
    config = parser.NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
    )
    try:
        with time_limit(TIME_LIMIT):
            normal = parser.normalize_latex(text, config)
            parsed = parser.latex2sympy(normal, is_real=True, convert_degrees=False)
            return _formula(parsed)
    except (OutOfTime, Exception):  # a parser's errors are of many kinds
        return None


def _formula(parsed: Any) -> Formula | None:
    import sympy

    if not isinstance(parsed, sympy.Expr) or parsed.has(sympy.Derivative):
        return None  # to differentiate is work, and dy/dx of letters would be 0
    floats = {x: sympy.Rational(str(x)) for x in parsed.atoms(sympy.Float)}
    units = {x: sympy.I for x in parsed.free_symbols if x.name == "i"}
    expression = parsed.xreplace(floats | units).doit()
    if expression.has(sympy.nan, sympy.zoo):
        return None
    number = None
    if not expression.free_symbols and not expression.has(sympy.oo, -sympy.oo):
        number = sympy.N(expression, DIGITS + 10)
        if not (number.is_number and number.is_finite):
            return None
    return Formula(expression, number, bool(floats))


def same_formulas(gold: str, answer: str) -> bool:
    """Whether two formulas have the same value, for all values of their variables."""
    first, second = formula(gold), formula(answer)
    if first is None or second is None:
        return False
    if first.number is not None or second.number is not None:
        return _same_numbers(first, second)
    return _same_case(gold, answer) and _same_symbolic(gold, answer)


def _same_case(gold: str, answer: str) -> bool:
    """Whether R is no r and f' no f, which the parser takes for one. A constant C may be c."""
    if gold.count("'") != answer.count("'"):
        return False
    letters = [set(re.findall("[A-Za-z]", re.sub(r"\\[A-Za-z]+", " ", x))) for x in (gold, answer)]
    other_case = {x.swapcase() for x in letters[0] - letters[1]} & (letters[1] - letters[0])
    return other_case <= {"c", "C"}


def _same_numbers(first: Formula, second: Formula) -> bool:
    if first.number is None or second.number is None:
        return False
    if first.exact and second.exact and not (first.rounded or second.rounded):
        return bool(first.expression == second.expression)
    size = max(abs(first.number), abs(second.number))
    difference = abs(first.number - second.number)
    if difference <= size * 10.0**-DIGITS:
        return True
    if not (first.rounded or second.rounded):
        return False
    plain = [x for x in (first, second) if not x.rounded]
    if all(x.ends for x in plain):
        return bool(difference <= size * PRINTED)
    return bool(difference <= min(size * ROUNDED, max(size, 1) * ROUNDED / 2))


@lru_cache(maxsize=10_000)  # the samples of a group often agree
def _same_symbolic(gold: str, answer: str) -> bool:
    first, second = formula(gold), formula(answer)
    if first is None or second is None:
        return False
    try:
        with time_limit(TIME_LIMIT):
            if first.expression == second.expression:
                return True
            alike = first.expression.free_symbols == second.expression.free_symbols
            if not alike and not _depends_alike(first, second):
                return False
            library, _ = load()
            return _agree_somewhere(first, second) and bool(
                library.verify([first.expression], [second.expression], timeout_seconds=None)
            )
    except (OutOfTime, Exception):
        return False


def _depends_alike(first: Formula, second: Formula) -> bool:
    """Variables that cancel are none: x + y - y is x."""
    import sympy

    both = (sympy.simplify(x.expression).free_symbols for x in (first, second))
    return next(both) == next(both)


def _agree_somewhere(first: Formula, second: Formula) -> bool:
    """Values at one point differ by no more than rounding; True where there are none."""
    import sympy

    symbols = sorted(
        first.expression.free_symbols | second.expression.free_symbols, key=lambda x: x.name
    )
    point = {x: sympy.Rational(7 + 4 * i, 11 + 3 * i) for i, x in enumerate(symbols)}
    try:
        values = [sympy.N(x.expression.subs(point), 30) for x in (first, second)]
        size = max(abs(value) for value in values)
        if not size.is_finite:
            return True
        return bool(
            abs(values[0] - values[1])
            <= size * (ROUNDED if first.rounded or second.rounded else 1e-15)
        )
    except (TypeError, ValueError, AttributeError):
        return True


@lru_cache(maxsize=10_000)
def same_equations(gold: tuple[str, str], answer: tuple[str, str], positive: bool = False) -> bool:
    """Whether one equation is the other times a number, which may have to be positive."""
    import sympy

    sides = [formula(text) for text in (*gold, *answer)]
    if any(side is None for side in sides) or not _same_case(" ".join(gold), " ".join(answer)):
        return False
    a, b, c, d = (side.expression for side in sides if side)
    try:
        with time_limit(TIME_LIMIT):
            first, _ = sympy.fraction(sympy.together(a - b))
            second, _ = sympy.fraction(sympy.together(c - d))
            first, second = sympy.expand(first), sympy.expand(second)
            if first == 0 or second == 0 or first.free_symbols != second.free_symbols:
                return False
            ratio = sympy.simplify(first / second)
            same = bool(ratio.is_number and ratio.is_finite and ratio != 0)
            return same and (not positive or bool(ratio > 0))
    except (OutOfTime, Exception):
        return False


def same_sets(gold: Any, answer: Any) -> bool:
    """Whether two regions (structure.Region) hold the same numbers."""
    try:
        with time_limit(TIME_LIMIT):
            first, second = _set_of(gold), _set_of(answer)
            return bool(first == second or first.symmetric_difference(second).is_empty)
    except (OutOfTime, Exception):
        return False


def _set_of(region: Any) -> Any:
    """As a set of sympy's; ValueError where an end is no number or formula."""
    import sympy

    def end(text: str) -> Any:
        found = formula(text)
        if found is None:
            raise ValueError(text)
        return found.expression

    parts = []
    for conditions in region.parts:
        part = sympy.S.Reals
        for condition in conditions:
            if isinstance(condition, str):
                part -= sympy.FiniteSet(end(condition))
                continue
            left_open, right_open = condition.brackets[0] == "(", condition.brackets[1] == ")"
            left, right = end(condition.left), end(condition.right)
            part = part.intersect(sympy.Interval(left, right, left_open, right_open))
        parts.append(part)
    return sympy.Union(*parts)
