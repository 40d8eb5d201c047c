"""Puzzles: sorted lists, countdown (reach a target with each number once), knights and knaves."""

from __future__ import annotations

import ast
import operator
import re
from fractions import Fraction
from typing import TYPE_CHECKING

from r1jax.config import DataError
from r1jax.tasks.writing import plain, to_ascii

if TYPE_CHECKING:
    from r1jax.types import Example

MAX_EXPRESSION = 200  # characters
MAX_ROLES = 5_000  # characters
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_INT = r"[+-]?[0-9]+"
_LIST = re.compile(rf"(?<![0-9]){_INT}(?:\s*[,、]\s*{_INT})+")
_SEPARATOR = re.compile(r"\s*[,、;]\s*|\s+")
_BRACKETS = ("[]", "()", "{}")
# "Amelia is a knight", "Amelia: knave", "Amelia is not a knave"; not "is a knight or a knave"
_ROLE = re.compile(
    r"(?<![^\W\d_])([^\W\d_]{1,40}+)(?:\s{1,9}is\s|:|\s{0,9}=)\s{0,9}(not\s)?(?:(?:an?|the)\s)?"
    r"(?i:(knight|knave))(?![a-z])(?![,\s]{0,9}(?:or\b|and/or|if\b|unless\b|\?|/))"
)
_HEDGED = re.compile(
    r"\b(?:or|either|if|unless|maybe|perhaps|possibly|probably|doubt|wrong|incorrect|opposite)\b|[?/]"
    r"|\b(?:false|untrue|not\s(?:true|the\scase))\s+that\b|\bnot\s+\w+\s+is\b",
    re.IGNORECASE,
)
_ARITHMETIC = re.compile(r"[0-9+\-*/() ]+")


def integers(text: str) -> list[int] | None:
    """The list of integers that `text` is as a whole, with or without brackets, or None."""
    text = plain(text).replace(r"\{", "{").replace(r"\}", "}")
    if text[:1] + text[-1:] in _BRACKETS:
        text = text[1:-1].strip()
    items = _SEPARATOR.split(text)
    if not all(re.fullmatch(_INT, item) and len(item) < 1_000 for item in items):
        return None
    return [int(item) for item in items]


def last_list(text: str) -> str | None:
    """The last comma-separated list of integers anywhere."""
    matches = _LIST.findall(to_ascii(text))
    return matches[-1] if matches else None


def same_list(example: Example, answer: str) -> bool:
    found = integers(answer)
    return found is not None and found == integers(example.answer)


def _signs(text: str) -> str:
    for sign, plain_sign in ((r"\times", "*"), (r"\cdot", "*"), (r"\div", "/")):
        text = text.replace(sign, plain_sign)
    return to_ascii(text).translate(str.maketrans("×·÷", "**/"))


def last_expression(text: str) -> str | None:
    """The last run of digits, operators and brackets anywhere that has an operator."""
    runs = (run.strip() for run in _ARITHMETIC.findall(_signs(text)))
    expressions = [run for run in runs if re.search(r"[0-9)]\s*[-+*/]\s*[-(0-9]", run)]
    return expressions[-1] if expressions else None


def solves_countdown(example: Example, answer: str) -> bool:
    """Whether `answer` reaches metadata["target"] with each of metadata["numbers"] exactly once.

    Only + - * / ( ) and integers, in exact fractions; "= target" may follow.
    """
    numbers, target = example.metadata["numbers"], example.metadata["target"]
    return _worked_out(answer) == (target, sorted(numbers))


def same_expression(first: str, second: str) -> bool:
    """Whether two expressions make the same value of the same numbers (votes for cons@k)."""
    return _worked_out(first) == _worked_out(second) is not None


def _worked_out(answer: str) -> tuple[Fraction, list[int]] | None:
    """(value, the numbers it is made of, sorted), or None where it is no expression or its
    "= result" is not its value."""
    expression, equals, result = _signs(plain(answer)).partition("=")
    if len(expression) > MAX_EXPRESSION or not _ARITHMETIC.fullmatch(expression):
        return None
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
        value = _evaluate(tree)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None
    if equals and result.strip() != str(value):
        return None
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return value, sorted(node.value for node in nodes if isinstance(node.value, int))


def _evaluate(node: ast.AST) -> Fraction:
    """Exact value of a parsed expression; raises ValueError for anything but + - * / and ints."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_evaluate(node.left), _evaluate(node.right))
    raise ValueError(f"{type(node).__name__} is not allowed")


def _unmarked(text: str) -> str:
    """Without the marks of Markdown and LaTeX."""
    return re.sub(r"[*$\\{}]|\\?text", "", text)


def roles(text: str) -> dict[str, bool] | None:
    """{name: is a knight} of all statements in `text`; None if there are none or two disagree, or
    it leaves something open ("a knight or a knave")."""
    found: dict[str, bool] = {}
    if _HEDGED.search(text):
        return None
    for name, negated, role in _ROLE.findall(_unmarked(text)):
        knight = (role.lower() == "knight") != bool(negated)
        if found.setdefault(name.casefold(), knight) != knight:
            return None
    return found or None


def last_roles(text: str) -> str | None:
    """The last statements about different people anywhere, in their order."""
    found: dict[str, str] = {}
    for match in reversed(list(_ROLE.finditer(_unmarked(text)))):
        if match[1].casefold() in found:
            break
        found[match[1].casefold()] = match[0]
    return ", ".join(reversed(found.values())) or None


def same_roles(example: Example, answer: str) -> bool:
    """Whether the answer says of exactly the reference's people what the reference says."""
    return len(answer) <= MAX_ROLES and roles(answer) == roles(example.answer) is not None


def check_countdown(example: Example) -> None:
    """DataError without integers `numbers` and `target` in the metadata."""
    numbers, target = (example.metadata.get(key) for key in ("numbers", "target"))
    if not isinstance(target, int) or not isinstance(numbers, list | tuple):
        raise DataError(f"example {example.id}: countdown needs integers numbers and target")
    if not all(isinstance(number, int) for number in numbers):
        raise DataError(f"example {example.id}: numbers {numbers!r} are not all integers")
