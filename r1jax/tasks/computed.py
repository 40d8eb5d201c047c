r"""What an answer leaves to compute, and whether it only gives the question back.

"Compute 99 \cdot 101" is not answered by 101 \cdot 99, nor by 99 \cdot 101 + 0. Where the reference
is a number, an answer may leave no more to compute than the reference does: signs, fractions, roots
and powers are ways to write a number; sums, products and functions are work that is left.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import lru_cache

from r1jax.tasks.formulas import same_formulas
from r1jax.tasks.writing import compact, written

_FUNCTIONS = {
    name: family
    for family, names in {
        "log": "log ln lg",
        "trig": "sin cos tan cot sec csc",
        "arc": "arcsin arccos arctan",
        "binom": "binom dbinom tbinom choose",
        "round": "lfloor rfloor lceil rceil",
        "big": "sum prod int oint lim limits",
        "other": "gcd lcm max min det mod bmod pmod exp operatorname",
    }.items()
    for name in names.split()
}
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_SCIENTIFIC = re.compile(r"(?<![0-9.])([0-9]+(?:\.[0-9]+)?)\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^")
_BEHIND_VALUE = r"(?<=[0-9A-Za-z)}!|\]])\s*"
_SUM = re.compile(rf"{_BEHIND_VALUE}[-+](?!\s*\}}?$)|{_BEHIND_VALUE}\\(?:pm|mp)(?![A-Za-z])")
_PRODUCT = re.compile(r"\*|\\(?:times|cdot|div)(?![A-Za-z])")
_NEXT_TO_ROOT = re.compile(
    r"(?<![0-9])(?<![0-9] )(?:\\pi|\\sqrt(?:\[[0-9]\])?\{[^{}]*\})\s*(?:\\times|\\cdot|\*)|"
    r"(?:\\times|\\cdot|\*)\s*(?:\\sqrt|\\pi|\\ln|\\log|\\sin|\\cos|e|i|[a-z]\b)"
)
_FACTORS = re.compile(r"[0-9)}]\s*\(\s*-?[0-9.]+\s*\)|\)\s*\(\s*-?[0-9.]+\s*\)")
_IMAGINARY = re.compile(r"(?<![A-Za-z\\^])(?<!\^\{)i(?![A-Za-z^])")
_POWER_OF_SUM = re.compile(r"\([^()]*[0-9A-Za-z)}]\s*[-+][^()]*\)\s*\^")
_SIGNS_IN_EXPONENT = re.compile(r"\^\s*\{\s*[-+]\s*|\^\s*[-+]")
_LIMITS = r"_(?:\{[^{}]*\}|\w)\^(?:\{[^{}]*\}|\w)"  # of integrals and sums
_IDLE = re.compile(
    r"(?<=[0-9A-Za-z)}!|\]])\s*[-+]\s*0(?![0-9.])(?!\s*(?:\\times|\\cdot|\*|[A-Za-z(]))"
    r"|^\s*0\s*[-+](?=\s*[0-9A-Za-z\\(])"
    r"|(?:\\cdot|\\times|\*)\s*\(?1\)?(?![0-9./])|(?<![0-9.])\(?1\)?\s*(?:\\cdot|\\times|\*)"
    r"(?!\s*10\s*\^)|/\s*1(?![0-9.])|\^\s*\{?\s*[01]\s*\}?(?![0-9./])|[-+]\s*\\frac\{0\}|[-+]\s*0\s*i(?![A-Za-z])"
    r"|(?<![0-9._{])1\^"
)


def left_to_compute(text: str) -> Counter[str]:
    """The operations that the writing of a number leaves undone, by kind."""
    text = re.sub(r"_(?:\{[^{}]*\}|\w)", " ", text)  # bases and indices
    text = _SCIENTIFIC.sub(r"\1e^", _SIGNS_IN_EXPONENT.sub("^", text))
    found = Counter(_FUNCTIONS[x] for x in _COMMAND.findall(text) if x in _FUNCTIONS)
    found["sum"] = len(_SUM.findall(text)) - bool(_IMAGINARY.search(text))  # a + bi is a number
    found["power of i"] = len(re.findall(r"(?<![A-Za-z\\])i\^", text))
    found["product"] = len(_PRODUCT.findall(text)) - len(_NEXT_TO_ROOT.findall(text))
    found["product"] += len(_FACTORS.findall(text))
    found["power of a sum"] = len(_POWER_OF_SUM.findall(text))
    found["factorial"] = text.count("!")
    found["absolute"] = text.count("|") // 2
    return +found


def is_worked_out(answer: str, gold: str) -> bool:
    """Whether the answer leaves no more to compute than the reference; functions by their kind."""
    left, allowed = left_to_compute(answer), left_to_compute(gold)
    counted = ("sum", "product", "power of a sum")
    return all(left[kind] <= allowed[kind] if kind in counted else kind in allowed for kind in left)


def has_no_more_sums(answer: str, gold: str) -> bool:
    """Whether a formula leaves no more sums, products, integrals and limits than the reference."""
    return left_to_compute(answer)["big"] <= left_to_compute(gold)["big"]


def is_idle(answer: str) -> bool:
    """Whether something stands in its end that changes nothing: + 0, times 1, to the power 1."""
    answer = re.sub(_LIMITS, "", _end(compact(written(answer))))
    return not re.fullmatch(r"-?[0-9]+/1", answer) and bool(_IDLE.search(answer))


_FORMULA = re.compile(
    r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]|"
    r"|((?:[0-9]+|(?<![A-Za-z])[A-Za-z](?![A-Za-z])|[-+*/^().!√×÷ ])+)",
    re.DOTALL,
)
_SPLIT = re.compile(r"(?<![<>!:])=|,|;|\?|\\(?:le|ge|ne|text|qquad|quad)(?![A-Za-z])|[<>]")
_NO_SIGN = re.compile(r"\\(?:cdot|times)(?![A-Za-z])|[\s*{}()\[\]]")
_TOKEN = re.compile(r"\\[A-Za-z]+|[0-9]+(?:\.[0-9]+)?|\S")
_CALCULATION = re.compile(
    r"[0-9A-Za-z)}!]\s*(?:[-+*/^!]|\\(?:times|cdot|div|binom)|\()|\\[A-Za-z]+\s*[\[{(0-9]|\|"
)


def _signature(text: str) -> tuple[str, ...]:
    """The signs of a formula but for brackets and signs of multiplication, in no order."""
    text = re.sub(r"\\div(?![A-Za-z])", "/", text)
    if text.startswith("-"):
        text = text.replace("+", "", 1)  # -9 + x^2 is x^2 - 9
    count = len(re.findall(r"\\frac(?![A-Za-z])", text))
    tokens = _TOKEN.findall(_NO_SIGN.sub(" ", text.replace(r"\frac", " ")))
    return tuple(sorted([*(token for token in tokens if token != "^\\circ"), *["/"] * count]))


def repeats(question: str, gold: str, answer: str) -> bool:
    r"""Whether `answer` is a calculation that stands in the question, in whatever order or dress.

    A lone fraction in lowest terms is none (but the question's 3/20 is no decimal), nor is what the
    reference says literally. Of an equation 99 \cdot 101 = 9999 the end counts.
    """
    if "=" not in gold:
        answer = _end(answer)
    answer = written(re.sub(r"\^\{?\\circ\}?", "", answer))
    flat, flat_gold, flat_question = map(_flat, (answer, written(gold), written(question)))
    if not question or flat == flat_gold or _signature(answer) == _signature(written(gold)):
        return False
    if _is_reduced(answer) or _DECIMAL.fullmatch(flat):
        other_kind = ("." in gold) != ("." in flat) or ("%" in flat and "%" not in gold)
        given = rf"(?<![0-9.]){re.escape(flat)}(?![0-9.])"
        asked = other_kind and _CONVERT.search(question)
        return bool(asked and re.search(given, flat_question))
    if not _CALCULATION.search(answer):
        return False
    if len(flat) > 1 and flat in flat_question:
        return True
    parts = _parts(question)
    if any(_signature(part) == _signature(answer) for part in parts):
        return all(_signature(written(gold)) != _signature(part) for part in parts)
    dressed = (part for part in parts if len(_flat(part)) > 2 and _flat(part) in flat)
    return any(
        _CALCULATION.search(part) and _flat(part) not in flat_gold and same_formulas(gold, part)
        for part in dressed
    )


def _end(answer: str) -> str:
    """The last side of an equation, the first where the last is a name: 9 = x."""
    first, *_, last = [answer, *_SPLIT_EQUALS.split(answer)]
    if re.search("[0-9]|\\\\", last) or first == last:
        return last
    return _SPLIT_EQUALS.split(answer)[0]


_SPLIT_EQUALS = re.compile(r"(?<![<>!:\\])=")
_CONVERT = re.compile(r"decimal|fraction|percent|小数|分数|百分", re.IGNORECASE)
_DECIMAL = re.compile(r"-?[0-9]*\.[0-9]+|-?[0-9.]+\\?%")


@lru_cache(maxsize=2_000)
def _parts(question: str) -> list[str]:
    """The formulas of a question, cut at equals signs and commas."""
    formulas = ("".join(x or "" for x in match.groups()) for match in _FORMULA.finditer(question))
    return [part for text in formulas for part in _SPLIT.split(written(text)) if part.strip()][:50]


@lru_cache(maxsize=5_000)
def _flat(text: str) -> str:
    return _NO_SIGN.sub("", text).replace(r"\%", "%")


def _is_reduced(text: str) -> bool:
    match = re.fullmatch(r"-?(?:\\frac\{([0-9]+)\}\{([0-9]+)\}|([0-9]+)/([0-9]+))", compact(text))
    if not match:
        return False
    above, below = (int(x) for x in match.groups() if x)
    return math.gcd(above, below) == 1 and below > 1
