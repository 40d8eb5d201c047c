"""Whether two answers of known structure are the same: equations, groups, sets, values, units."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from r1jax.tasks.computed import has_no_more_sums, is_worked_out
from r1jax.tasks.formulas import formula, same_equations, same_formulas, same_sets
from r1jax.tasks.structure import (
    ALL,
    Equation,
    Group,
    Matrix,
    Node,
    Region,
    Value,
    interval_of,
    read,
)
from r1jax.tasks.units import split_unit, units_agree
from r1jax.tasks.writing import TEXT, bare_words, compact, written

MAX_ITEMS = 50  # of a list or set

_BASE = re.compile(r"[0-9]_\{?(?:[0-9]|\\text)")  # 52_8, a number in another base
_RELATION = re.compile(r"\\[lg]e(?![A-Za-z])|[<>]")
_CLOCK = re.compile(r"([0-9]{1,2})(?::([0-9]{2}))?\s*([ap])\.?\s*m\.?", re.IGNORECASE)
_ASSIGNED = re.compile(
    r"\\?[A-Za-z]+(?:_(?:\w|\{[^{}]*\}))?'*(?:(?:\^\{-1\})?\((?:[^()]|\([^()]*\))*\))?"
    r"|\\vec\{\w+\}|\([^()=]*\)|\\angle ?[A-Z]+"
    r"|\|[^|]*\||[A-Z]\\c[au]p ?[A-Z]"
)
_LETTER = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")
_HAN = re.compile("[\u3400-\u9fff]")
_NO_NAME = re.compile(  # commands that name nothing
    r"\\(?:frac|sqrt|pi|infty|cdot|times|circ|text|pm|le|ge|ne|in|cup|mathbb|begin\{\w*\}"
    r"|end\{\w*\})(?![A-Za-z])"
)


@lru_cache(maxsize=2_000)
def variables_of(question: str) -> frozenset[str]:
    """Letters that stand alone in the question, in its prose not behind a number as units do."""
    question = re.sub(TEXT + r"\{[^{}]*\}", " ", question)
    inside = " ".join(re.findall(r"\$([^$]*)\$", question))
    outside = re.sub(r"\$[^$]*\$|[0-9]\s*[A-Za-z]+", "0", question)
    letter = r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z'])"
    alone = set(re.findall(r"(?<!0)(?<!0 )" + letter, outside)) - {"a", "A", "I"}
    return frozenset(alone | set(re.findall(letter, inside)))


@lru_cache(maxsize=20_000)
def literal(text: str) -> str:
    """`text` without what doesn't show, bases without braces: 52_8 of (52)_{8} and 52_{(8)}."""
    text = re.sub(r"^\(([0-9]+)\)(?=_)", r"\1", compact(bare_words(written(text))).rstrip("."))
    return re.sub(r"_\{?(?:\(([0-9]+)\)|([0-9]+))\}?", r"_\1\2", text)


@dataclass(frozen=True)
class Comparison:
    """Of two structures, as to a question."""

    variables: frozenset[str]  # letters that the question uses as such
    question: str  # compact
    computed: bool = True  # whether an answer may leave nothing to compute

    def same(self, gold: Node, answer: Node) -> bool:
        if isinstance(answer, Equation) and not isinstance(gold, Equation):
            return self._said(gold, answer)
        if isinstance(gold, Equation):
            return self._equation(gold, answer)
        gold, answer = _single(gold), _single(answer)
        if isinstance(gold, Region) or isinstance(answer, Region):
            return self._regions(gold, answer)
        if isinstance(gold, Matrix) or isinstance(answer, Matrix):
            return self._matrices(gold, answer)
        if isinstance(gold, Value) and isinstance(answer, Value):
            return self.values(gold.text, answer.text)
        if isinstance(gold, Group) and isinstance(answer, Group):
            return self._groups(gold, answer)
        if isinstance(gold, Value) and isinstance(answer, Group) and answer.kind != "tuple":
            return _EMPTY not in answer.items and all(
                self.same(gold, item) for item in answer.items
            )  # "5, 5"
        return False

    # -- equations -----------------------------------------------------------------------------

    def _said(self, gold: Node, answer: Equation) -> bool:
        """Every side of m+n = 4+5 = 9 is the reference, but for a name at one end.

        x = y = z = 1 is (1, 1, 1).
        """
        sides = list(answer.sides)
        if isinstance(gold, Group) and gold.kind == "tuple" and len(sides) == len(gold.items) + 1:
            value = _one(sides[-1])
            alike = all(self.same(item, value) for item in gold.items)
            return alike and all(map(self._is_name, sides[:-1]))
        if self._is_name(sides[0]):
            first = compact(sides[0])[:1]  # x_1 = x_2 = 3 is one value twice
            while len(sides) > 2 and re.fullmatch(rf"{re.escape(first)}_\w+", compact(sides[1])):
                sides = sides[1:]
            sides = sides[1:]
        elif self._is_name(sides[-1]):
            sides = sides[:-1][::-1]
        nodes = [_one(side) for side in sides]
        steps = replace(self, computed=False)  # before the last sign calculations may be left
        return self.same(gold, nodes[-1]) and all(steps.same(gold, node) for node in nodes[:-1])

    def _is_name(self, side: str) -> bool:
        r"""What the question asks for, or looks like a name: x, f(2), |AB|, m+n, not 2x or x^2."""
        side = _name(side)
        if not re.search(r"[A-Za-z\u3400-\u9fff]", _NO_NAME.sub("", side)):
            return False
        if re.fullmatch(r"\(\s*\\?[A-Za-z]\w*(?:\s*,\s*\\?[A-Za-z]\w*)+\s*\)", side):
            return True
        if (len(side) > 1 and side in self.question) or side.startswith(r"\frac{d}{d"):
            return True
        side = re.sub(r"\^\{-1\}(?=\()", "", side)  # of an inverse function
        if not re.search(r"^-|[0-9^]|\\(?:sqrt|pi)", re.sub(r"_(?:\w|\{[^{}]*\})", "", side)):
            return True  # nothing but letters: a/b, the product of vectors
        outside = re.sub(r"\([^()]*\)|\{[^{}]*\}|\|[^|]*\|", "()", side)
        terms = re.split(r"[-+]", outside)
        return all(
            term
            and not re.match(r"[0-9.]", term)
            and not re.search(r"[\^*/]|\\(?:cdot|times|pi)", term)
            for term in terms
        ) and not re.fullmatch(r"\(\)\(\)|\\(?:sqrt|frac)\(\).*", outside)

    def _equation(self, gold: Equation, answer: Node) -> bool:
        name, value = self._assigned(gold)
        if not isinstance(answer, Equation):
            return value is not None and self.same(_one(value), answer)
        other_name, other_value = self._assigned(answer)
        alike = name == other_name or other_name == _as_y(name) or name == _as_y(other_name)
        if value is not None and other_value is not None and alike:
            return self.same(_one(value), _one(other_value))
        if len(gold.sides) != 2 or len(answer.sides) != 2:
            return False
        if any(_is_words(side, self.variables) for side in gold.sides + answer.sides):
            return False
        first, second = gold.sides, answer.sides
        return same_equations((first[0], first[1]), (second[0], second[1]))

    def _assigned(self, equation: Equation) -> tuple[str, str | None]:
        """(name, the last value) of x = ... and f(x) = ...; value None for other equations."""
        first, last = _name(equation.sides[0]), _name(equation.sides[-1])
        if _ASSIGNED.fullmatch(first) and re.search("[A-Za-z]", first):
            return first, equation.sides[-1]
        if _ASSIGNED.fullmatch(last) and re.search("[A-Za-z]", last) and len(equation.sides) == 2:
            return last, equation.sides[0]
        return "", None

    # -- groups --------------------------------------------------------------------------------

    def _groups(self, gold: Group, answer: Group) -> bool:
        if max(len(gold.items), len(answer.items)) > MAX_ITEMS:
            return False
        if gold.kind == answer.kind == "tuple":
            alike = gold.brackets == answer.brackets or len(gold.items) != 2
            if not alike or len(gold.items) != len(answer.items):
                return False
            return all(map(self.same, gold.items, answer.items))
        if "tuple" in (gold.kind, answer.kind):
            brackets = gold.brackets + answer.brackets
            if brackets != "()" or len(gold.items) != len(answer.items):
                return False
            return all(map(self.same, self._by_name(gold), self._by_name(answer)))
        names = [[self._name_of(item) for item in group.items] for group in (gold, answer)]
        if all(names[0]) and all(names[1]) and sorted(names[0]) != sorted(names[1]):
            return False
        numbered = len({name.split("_")[0] for name in names[1]}) == 1  # x_1, x_2: any two roots
        ordered = not numbered or any(name in self.question for name in names[1])
        if ordered and all(names[1]) and len(set(names[1])) > 1 and not any(names[0]):
            return len(gold.items) == len(answer.items) and all(
                map(self.same, gold.items, answer.items)
            )
        return all(any(self.same(x, y) for y in answer.items) for x in gold.items) and all(
            any(self.same(x, y) for x in gold.items) for y in answer.items
        )

    def _by_name(self, group: Group) -> list[Node]:
        """y=2, x=1 in the order of the question's (x,y), or else of the alphabet, for (1,2)."""
        names = [self._name_of(item) for item in group.items]
        if not all(names) or len(set(names)) < len(names):
            return list(group.items)
        asked = (inside.split(",") for inside in re.findall(r"\(([^()]*)\)", self.question))
        order = next((x for x in asked if set(x) == set(names)), sorted(names, key=_letters_of))
        return [group.items[names.index(name)] for name in order]

    def _name_of(self, item: Node) -> str:
        return self._assigned(item)[0] if isinstance(item, Equation) else ""

    def _matrices(self, gold: Node, answer: Node) -> bool:
        if not isinstance(gold, Matrix) or not isinstance(answer, Matrix):
            return False
        compared = replace(self, computed=not answer.multiplied)
        return [len(row) for row in gold.rows] == [len(row) for row in answer.rows] and all(
            compared.same(x, y)
            for row, other in zip(gold.rows, answer.rows, strict=True)
            for x, y in zip(row, other, strict=True)
        )

    def _regions(self, gold: Node, answer: Node) -> bool:
        first, second = _as_region(gold), _as_region(answer)
        if first is None or second is None:
            texts = [getattr(node, "text", "") for node in (gold, answer)]
            solved = first and len(set(_LETTER.findall(texts[0]))) < 2  # x > 2: 2x > 4 is not
            return (
                not solved
                and all(_RELATION.search(text) for text in texts)
                and _same_inequality(*texts)
            )
        if first.variable and second.variable and first.variable != second.variable:
            return False
        return same_sets(first, second)

    # -- values --------------------------------------------------------------------------------

    def values(self, gold: str, answer: str) -> bool:
        """Whether two numbers, formulas or words are the same, with their units."""
        if literal(gold) == literal(answer):
            return True
        clocks = [_CLOCK.fullmatch(bare_words(text).strip()) for text in (gold, answer)]
        if any(clocks):
            return _same_time(gold, answer)
        (value, unit), (other, other_unit) = (
            split_unit(text, self.variables) for text in (gold, answer)
        )
        words = [_is_words(text, self.variables) for text in (value, other)]
        if all(words):
            return _words(gold) == _words(answer)
        if any(words) and not re.fullmatch("[A-Za-z]{2,4}", value if words[0] else other):
            return False  # but ab may be a product, if the other side is one
        if _BASE.search(gold + " " + answer):  # 52_8: to sympy the index is nothing
            return False
        if value.count(":") > 1 or other.count(":") > 1:
            return _same_ratio(value, other)
        if unit is None and other_unit is None and _RELATION.search(value + other):
            return _same_inequality(value, other)
        if not self._worked_out(value, other):
            return False
        if "%" in (unit, other_unit) and unit != other_unit:
            return _same_percent(value, unit, other, other_unit)
        return units_agree(unit, other_unit) and same_formulas(_bare(value), _bare(other))

    def _worked_out(self, gold: str, answer: str) -> bool:
        number = formula(_bare(gold))
        if not self.computed:
            return True
        if number is None or number.number is None:
            return has_no_more_sums(answer, gold)
        return is_worked_out(answer, gold) and not _names(answer, gold)


def _names(answer: str, gold: str) -> bool:
    """Whether a number's writing holds letters that are no constants: 7x^0."""
    letters = (re.sub(r"\\[A-Za-z]+", " ", _bare(text)) for text in (answer, gold))
    left, allowed = (set(re.findall("[A-Za-z]", text)) for text in letters)
    return bool(left - allowed - {"e", "i"})


def _bare(text: str) -> str:
    """A formula with its letters out of \\text{}, and degrees in it as numbers."""
    text = re.sub(r"\\text\s*\{\s*([A-Za-z])\s*\}", r"\1", text)
    return re.sub(r"([0-9.]+)\s*\^\s*\{?\\circ\s*\}?", r"\\frac{\1\\pi}{180}", text)


def _name(side: str) -> str:
    r"""As it is compared: y' for \frac{dy}{dx}."""
    return re.sub(r"\\frac\{d(\w)\}\{d\w\}", r"\1'", compact(side))


def _as_y(name: str) -> str:
    """y for f(x), y' for f'(x)."""
    return re.sub(r"^[fgh]('*)\(x\)$", r"y\1", name)


def _letters_of(name: str) -> str:
    return name.lstrip("\\")


def _one(text: str) -> Node:
    return read(text)[0]


_EMPTY = Value(r"\emptyset")


def _single(node: Node) -> Node:
    """What stands alone between brackets."""
    while isinstance(node, Group) and len(node.items) == 1 and node.items[0] != _EMPTY:
        node = node.items[0]
    return node


def _as_region(node: Node) -> Region | None:
    if isinstance(node, Region):
        return node
    interval = interval_of(node)
    if interval is not None:
        return Region(((interval,),), None)
    if node == Value("R"):
        return Region(((ALL,),), None)
    return None


def _is_words(text: str, variables: frozenset[str]) -> bool:
    r"""Whether it is said in words: \text{east}, no, 第一象限; not ab or 2xy."""
    if _HAN.search(text) or re.search(r"\\text\s*\{[^{}]*[A-Za-z]{2,}[^{}]*\}", text):
        return True
    outside = re.sub(r"\\[A-Za-z]+", " ", text)
    runs = [run for run in re.findall("[A-Za-z]{2,}", outside) if not set(run) <= variables]
    if not re.fullmatch(r"[A-Za-z\s'.-]*", text):
        runs = [run for run in runs if len(run) > 3]
    return any(re.search("[aeiouAEIOU]", run) or len(run) > 4 for run in runs)


def _words(text: str) -> str:
    text = re.sub(r"[\s$.,!'\"“”()]+|\\[ ,;]|(?<=\w)-", " ", bare_words(written(text))).strip()
    text = re.sub(r"\s+(?=[^A-Za-z])|(?<=[^A-Za-z])\s+", "", text).casefold()
    return re.sub(r"(?<=[a-z]{3})s\b", "", text)  # no solutions


def _same_time(gold: str, answer: str) -> bool:
    """2:15 p.m. and 2:15 PM; one of both may leave out which half of the day."""
    found = []
    for text in (gold, answer):
        text = bare_words(text).strip()
        match = _CLOCK.fullmatch(text) or re.fullmatch(r"([0-9]{1,2}):([0-9]{2})()", text)
        if not match:
            return False
        found.append((int(match[1]), int(match[2] or 0), match[3].lower()))
    (hour, minute, half), (other_hour, other_minute, other_half) = found
    halves = half == other_half or not half or not other_half
    return (hour, minute) == (other_hour, other_minute) and halves


def _same_inequality(gold: str, answer: str) -> bool:
    """x + y < 1 and 1 - x > y; those of one variable are regions already."""
    sides = []
    for text in (gold, answer):
        relations = _RELATION.findall(text)
        if len(relations) != 1:
            return False
        left, right = _RELATION.split(text)
        if relations[0] in (">", r"\ge"):
            left, right = right, left
        sides.append((left.strip(), right.strip(), relations[0] in ("<", ">")))
    (left, right, strict), (other_left, other_right, other_strict) = sides
    return strict == other_strict and same_equations(
        (left, right), (other_left, other_right), positive=True
    )


def _same_ratio(gold: str, answer: str) -> bool:
    parts, others = gold.split(":"), answer.split(":")
    return len(parts) == len(others) and all(
        same_formulas(rf"\frac{{{part}}}{{{parts[0]}}}", rf"\frac{{{other}}}{{{others[0]}}}")
        for part, other in zip(parts, others, strict=True)
    )


def _same_percent(gold: str, unit: str | None, answer: str, other_unit: str | None) -> bool:
    """50% for 50 and for 1/2; the units are different, one is %."""
    if unit and other_unit:
        return False
    is_fraction = re.search(r"\\frac|/", gold) and not unit  # 0.5% is no 1/2
    if not is_fraction and same_formulas(_bare(gold), _bare(answer)):
        return True
    hundredth = r"\frac{%s}{100}"
    gold, answer = (hundredth % gold, answer) if unit else (gold, hundredth % answer)
    return same_formulas(_bare(gold), _bare(answer))
