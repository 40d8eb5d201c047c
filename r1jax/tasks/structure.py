r"""What an answer is made of: values, lists and sets of them, pairs, matrices, equations, regions.

Only brackets, separators and relations are read here; the formulas between them stay text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

from r1jax.tasks.writing import thousands, written


@dataclass(frozen=True)
class Value:
    """A number, a formula or words."""

    text: str


@dataclass(frozen=True)
class Equation:
    sides: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Of a list and a set the order doesn't matter; a tuple keeps its brackets."""

    kind: Literal["list", "set", "tuple"]
    items: tuple[Node, ...]
    brackets: str = ""


@dataclass(frozen=True)
class Matrix:
    rows: tuple[tuple[Node, ...], ...]
    multiplied: bool = False  # its cells are products with what stood before it


@dataclass(frozen=True)
class Interval:
    left: str
    right: str
    brackets: str


@dataclass(frozen=True)
class Region:
    """Numbers in any of some intersections, each of intervals and excluded values."""

    parts: tuple[tuple[Interval | str, ...], ...]
    variable: str | None
    text: str = field(default="", compare=False)


Node = Value | Equation | Group | Matrix | Region

_BRACKET = re.compile(
    r"\\begin\{[a-zA-Z*]+\}|\\end\{[a-zA-Z*]+\}|\\[{}]|\\langle(?![a-z])|\\rangle(?![a-z])|\\\\"
    r"|\\[A-Za-z]+|\\.|[()\[\]{}]|\|"
)
_OPENING = ("(", "[", "{", r"\{", r"\langle")
_CLOSING = (")", "]", "}", r"\}", r"\rangle")
_OR = (
    r"\\text\s*\{\s*,?\s*(?:or|或|或者)\s*\}|(?<![A-Za-z\\])or(?![A-Za-z])"
    r"|\\(?:or|lor|vee)(?![A-Za-z])|或者?"
)
_AND = (
    r"\\text\s*\{\s*,?\s*(?:and|和|且|与)\s*\}|(?<![A-Za-z\\])and(?![A-Za-z])"
    r"|[和且与、]|\\land(?![A-Za-z])"
)
_SEPARATOR = re.compile(rf"[,;]?\s*(?:{_OR}|{_AND})|[,;]")
_OR_ONLY = re.compile(rf"[,;]?\s*(?:{_OR})")
_AND_ONLY = re.compile(rf"[,;]?\s*(?:{_AND})|[,;]")
_RELATION = re.compile(r"\\(?:le|ge|ne|in)(?![A-Za-z])|[<>]")
_EQUALS = re.compile(r"(?<![<>!:])=")
_CUP = re.compile(r"\\(?:cup|bigcup)(?![A-Za-z])")
_VARIABLE = re.compile(r"\\?[A-Za-z]+(?:_(?:[0-9A-Za-z]|\{[0-9A-Za-z]+\}))?")
_POINT = re.compile(r"([A-Z](?:_[0-9])?'?)\s*(\(.*[0-9].*,.*\))")  # P(3, 2)
_TUPLE = re.compile(r"\(\s*[A-Za-z]\w*(?:\s*,\s*[A-Za-z]\w*)+\s*\)")
_SET = re.compile(r"\\?\{(.*?)(?:\\mid(?![A-Za-z])|\||:)(.*)\\?\}", re.DOTALL)
_MATRIX = re.compile(
    r"([^&]*?)(?:\\cdot|\\times)?\s*\\begin\{([pbB]?(?:small)?matrix)\}(.*)\\end\{\2\}", re.DOTALL
)
_ALL_REALS = re.compile(
    r"\\math(?:bb|bf) ?\{?R\}?|\\R"
    r"|(?:\\text\s*\{)?\s*(?:all real numbers|all reals|全体实数|一切实数)\s*\}?",
    re.IGNORECASE,
)
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", r"\ne": r"\ne"}
ALL = Interval(r"-\infty", r"\infty", "()")


def split(text: str, separator: re.Pattern[str]) -> list[str]:
    """The parts between separators that stand outside of all brackets."""
    parts, start, depth, at = [], 0, 0, 0
    while at < len(text):
        if depth == 0 and (match := separator.match(text, at)) and match.end() > at:
            parts.append(text[start : match.start()].strip())
            start = at = match.end()
            continue
        token = _BRACKET.match(text, at)
        if token:
            opens = token[0] in _OPENING or token[0].startswith(r"\begin")
            closes = token[0] in _CLOSING or token[0].startswith(r"\end")
            depth = max(depth + opens - closes, 0)
        # A separator may begin inside a command's name only as the command itself.
        at = token.end() if token else at + 1
    return [*parts, text[start:].strip()]


def read(text: str) -> list[Node]:
    """How an answer as a whole may be read: mostly one way, two for "100,200"."""
    text = written(text)
    words = re.fullmatch(r"\\text\s*\{([^{}]*)\}", text)
    if words and (_SEPARATOR.search(words[1]) or re.match(r"\s*[-$]?[0-9]|.*=", words[1])):
        text = words[1].strip()
    joined = thousands(text)
    return [_node(joined), *([_node(text)] if joined != text else [])]


@lru_cache(maxsize=20_000)
def _node(text: str) -> Node:
    text = text.strip().rstrip(".,;").strip()
    text = re.sub(r"\\langle(?![a-z])", "(", re.sub(r"\\rangle(?![a-z])", ")", text))
    region = _region(_without_bars(text))
    if region is not None:
        return replace(region, text=text)
    variable, members = _belongs(text)
    if variable and _bracketed(members):
        return _node(members)
    parts = [item for part in split(text, _SEPARATOR) for item in _plus_minus(part)]
    if len(parts) > 1 and all(parts):
        return Group("list", tuple(_node(part) for part in parts))
    sides = split(text, _EQUALS)
    if len(sides) > 1 and all(sides):
        return Equation(tuple(sides))
    if match := _MATRIX.fullmatch(text):
        factor = match[1].strip()
        rows = [row.split("&") for row in re.split(r"\\\\", match[3]) if row.strip()]
        cells = (tuple(_cell(factor, cell) for cell in row) for row in rows)
        return Matrix(tuple(cells), bool(factor))
    point = _POINT.fullmatch(text)
    if point and _bracketed(point[2]):
        return Equation((point[1], point[2]))
    return _bracketed(text) or Value(text)


def _cell(factor: str, cell: str) -> Node:
    if factor == "-":
        return Value(f"-({cell.strip()})")
    return Value(rf"({factor}) \cdot ({cell.strip()})") if factor else _node(cell)


def _bracketed(text: str) -> Node | None:
    opening = r"\{" if text.startswith(r"\{") else text[:1]
    closing = r"\}" if text.endswith(r"\}") else text[-1:]
    if opening not in _OPENING or closing not in _CLOSING or not _encloses(text):
        return None
    inside = text[len(opening) : len(text) - len(closing)]
    items = split(inside, _SEPARATOR)
    if not all(items):
        return None
    if len(items) == 1 and "{" not in opening + closing:
        items = _plus_minus(items[0])
    if "{" in opening and "}" in closing:
        expanded = [item for part in items for item in _plus_minus(part)]
        return Group("set", tuple(_node(item) for item in expanded))
    return Group("tuple", tuple(_node(item) for item in items), opening + closing)


def _encloses(text: str) -> bool:
    """Whether the first bracket is closed by the last."""
    depth = 0
    for token in _BRACKET.finditer(text):
        opens = token[0] in _OPENING or token[0].startswith(r"\begin")
        closes = token[0] in _CLOSING or token[0].startswith(r"\end")
        depth += opens - closes
        if depth == 0:
            return token.end() == len(text)
    return False


def _plus_minus(text: str) -> list[str]:
    """Both values of 1 \\pm \\sqrt{2}."""
    bracketed = text[:1] in "([" or text[:2] == r"\{"
    if text.count(r"\pm") != 1 or r"\pmod" in text or (bracketed and _encloses(text)):
        return [text]
    upper = re.sub(r"\\mp(?![A-Za-z])", "-", re.sub(r"\\pm(?![A-Za-z])", "+", text))
    lower = re.sub(r"\\mp(?![A-Za-z])", "+", re.sub(r"\\pm(?![A-Za-z])", "-", text))
    return [re.sub(r"(^|=)\s*\+\s*", r"\1", upper), lower]


# -- regions: intervals, inequalities, sets by a condition -----------------------------------------


def _without_bars(text: str) -> str:
    r"""|x| < 3 as -3 < x < 3, and |x| > 3 as x < -3 or x > 3."""
    match = re.fullmatch(r"\|\s*(\\?[A-Za-z]+)\s*\|\s*(<|>|\\le|\\ge)\s*([^<>|]*)", text)
    if not match or _RELATION.search(match[3]):
        return text
    name, relation, bound = match.groups()
    if relation in ("<", r"\le"):
        return f"-({bound}) {relation} {name} {relation} {bound}"
    return rf"{name} {_FLIPPED[relation]} -({bound}) \text{{or}} {name} {relation} {bound}"


def _region(text: str) -> Region | None:
    """Of one variable, or None: a lone pair of brackets may be a point, and is no region here."""
    if len(sides := split(text, _EQUALS)) == 2 and not _RELATION.search(sides[0]):
        inner = _region(sides[1])  # A = (1, 2]
        if inner or len(split(text, _OR_ONLY)) == 1:
            named = re.fullmatch(r"[A-Z]|[A-Z] ?\\cup.*|D_f", sides[0])
            return inner if inner and named else None
    variable, text = _belongs(text)
    if match := _SET.fullmatch(text):
        name = _belongs(match[1].strip())[0] or match[1].strip()
        found = _conditions(match[2].strip().removesuffix("\\").strip())
        if found and _VARIABLE.fullmatch(name) and found.variable in (None, name):
            return Region(found.parts, None)
        return None
    pieces = split(text, _CUP)
    if _ALL_REALS.fullmatch(text):
        return Region(((ALL,),), variable)
    node = _bracketed(text)
    is_set = isinstance(node, Group) and node.kind == "set"  # x \in \{1, 2\} is no region
    if len(pieces) > 1 or (variable and not is_set) or r"\setminus" in text:
        parts = [part for piece in pieces for part in _parts(piece)]
        return Region(tuple(parts), variable) if all(parts) else None
    return _conditions(text) if _RELATION.search(text) else None


def _belongs(text: str) -> tuple[str | None, str]:
    r"""(x, the set) of x \in the set."""
    sides = split(text, re.compile(r"\\in(?![A-Za-z])"))
    if len(sides) == 2 and (_VARIABLE.fullmatch(sides[0]) or _TUPLE.fullmatch(sides[0])):
        return sides[0], sides[1]
    return None, text


def _parts(text: str) -> list[tuple[Interval | str, ...]]:
    r"""What one side of a \cup is: an interval, or single values; [()] if it is neither."""
    node = _bracketed(text)
    if isinstance(node, Group) and node.kind == "set":
        values = [item.text for item in node.items if isinstance(item, Value)]
        return [(Interval(value, value, "[]"),) for value in values] or [()]
    return [_piece(text) or ()]


def _piece(text: str) -> tuple[Interval | str, ...] | None:
    whole, *without = re.split(r"\\(?:setminus|backslash)(?![A-Za-z])", text)
    excluded = [item for part in without for item in split(part.strip().strip("\\{}"), _SEPARATOR)]
    if _ALL_REALS.fullmatch(whole.strip()) or whole.strip() == "R":
        return (ALL, *excluded)
    interval = interval_of(_bracketed(whole.strip()))
    return None if interval is None else (interval, *excluded)


def interval_of(node: Node | None) -> Interval | None:
    """A tuple of two values as an interval."""
    if isinstance(node, Group) and node.kind == "tuple" and len(node.items) == 2:
        left, right = node.items
        if isinstance(left, Value) and isinstance(right, Value):
            return Interval(left.text, right.text, node.brackets)
    return None


def _conditions(text: str) -> Region | None:
    parts: list[tuple[Interval | str, ...]] = []
    variables = set()
    for alternative in split(text, _OR_ONLY):
        conditions: list[Interval | str] = []
        for condition in split(alternative, _AND_ONLY):
            found = _condition(condition)
            if found is None:
                return None
            variables.add(found[0])
            conditions.append(found[1])
        parts.append(tuple(conditions))
    return Region(tuple(parts), variables.pop()) if len(variables) == 1 else None


def _condition(text: str) -> tuple[str, Interval | str] | None:
    r"""(variable, interval or excluded value) of x > 3, 1 < x \le 2, x \ne 0, x = 5."""
    variable, rest = _belongs(text)
    if variable:
        piece = _piece(rest)
        return (variable, piece[0]) if piece and len(piece) == 1 else None
    sides = split(text, _EQUALS)
    if len(sides) == 2 and _VARIABLE.fullmatch(sides[0]) and not _RELATION.search(sides[1]):
        return sides[0], Interval(sides[1], sides[1], "[]")
    operators = [match[0] for match in _RELATION.finditer(text)]
    parts = [part.strip() for part in _RELATION.split(text)]
    if r"\in" in operators or not all(parts) or "=" in text:
        return None
    if len(parts) == 2:
        if _VARIABLE.fullmatch(parts[1]) and not _VARIABLE.fullmatch(parts[0]):
            parts, operators = parts[::-1], [_FLIPPED[operators[0]]]
        if not _VARIABLE.fullmatch(parts[0]) or parts[0].startswith(r"\inf"):
            return None
        if operators[0] == r"\ne":
            return parts[0], parts[1]
        closed = operators[0] in (r"\le", r"\ge")
        if operators[0] in ("<", r"\le"):
            return parts[0], Interval(r"-\infty", parts[1], "(" + (")", "]")[closed])
        return parts[0], Interval(parts[1], r"\infty", ("(", "[")[closed] + ")")
    if len(parts) != 3 or not _VARIABLE.fullmatch(parts[1]):
        return None
    if set(operators) <= {">", r"\ge"}:
        parts, operators = parts[::-1], [_FLIPPED[operator] for operator in operators[::-1]]
    if not set(operators) <= {"<", r"\le"}:
        return None
    brackets = ("(", "[")[operators[0] == r"\le"] + (")", "]")[operators[1] == r"\le"]
    return parts[1], Interval(parts[0], parts[2], brackets)
