"""Any task of reasoning-gym (the extra `gym`): its own scorer decides, and only a 1.0 counts.

An example of task "gym" has in its metadata the `dataset`'s name and the `entry` it made. Some of
its scorers call `eval` on the answer; there only answers that are plain arithmetic or plain data
are let through. Sympy's time is limited as in math_task.
"""

from __future__ import annotations

import ast
from functools import cache
from typing import TYPE_CHECKING, Any

from r1jax.config import ConfigError, DataError
from r1jax.tasks.formulas import OutOfTime, time_limit
from r1jax.tasks.math_task import TOO_BIG

if TYPE_CHECKING:
    from r1jax.types import Example

MAX_ANSWER = 10_000  # characters
TIME_LIMIT = 3.0  # seconds of processor time
# Scorers of reasoning-gym 0.1 that evaluate the answer.
EVALUATED = {
    "binary_matrix",
    "countdown",
    "intermediate_integration",
    "n_queens",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
    "spiral_matrix",
    "string_insertion",
}
FUNCTIONS = {"Abs", "acos", "asin", "atan", "cos", "cosh", "exp", "log", "sin", "sinh", "sqrt"}
FUNCTIONS |= {"tan", "tanh"}
_PLAIN = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.BinOp, ast.UnaryOp, ast.operator,
    ast.unaryop, ast.List, ast.Tuple, ast.Call,
)  # fmt: skip


def gym() -> Any:
    try:
        import reasoning_gym
    except ImportError:
        raise ConfigError('task "gym" needs reasoning-gym: pip install "r1jax[gym]"') from None
    return reasoning_gym


@cache
def _scorer(dataset: str) -> Any:
    return gym().get_score_answer_fn(dataset)


def check_gym(example: Example) -> None:
    """Raises DataError unless the entry is one of a known dataset's."""
    dataset, entry = (example.metadata.get(key) for key in ("dataset", "entry"))
    known = gym().factory.DATASETS
    if dataset not in known:
        raise DataError(f"example {example.id}: {dataset!r} is no dataset of reasoning-gym")
    if not isinstance(entry, dict) or not {"question", "answer", "metadata"} <= set(entry):
        raise DataError(f"example {example.id}: entry needs question, answer and metadata")


def last_line(text: str) -> str | None:
    """The last line with something on it."""
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else None


def solves_gym(example: Example, answer: str) -> bool:
    """Whether the dataset's own scorer gives exactly 1."""
    dataset = example.metadata["dataset"]
    answer = answer.strip()
    if not answer or len(answer) > MAX_ANSWER:
        return False
    if dataset in EVALUATED and not is_plain(answer):
        return False
    try:
        with time_limit(TIME_LIMIT):
            return bool(_scorer(dataset)(answer=answer, entry=example.metadata["entry"]) == 1.0)
    except OutOfTime:
        return False
    except Exception:  # theirs, on an answer that they did not expect
        return False


def is_plain(answer: str) -> bool:
    """Whether evaluating it can do nothing but compute: numbers, names, + - * / **, lists, sin.

    Nor may it compute for ever: no towers of exponents, no multiples of lists.
    """
    if TOO_BIG.search(answer):
        return False
    try:
        tree = ast.parse(answer, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return all(char.isalnum() or char in " \n.,_-#" for char in answer) and "__" not in answer
    nodes = list(ast.walk(tree))
    listed = any(isinstance(x, ast.List | ast.Tuple) or _is_text(x) for x in nodes)
    if listed and any(isinstance(x, ast.BinOp) for x in nodes):
        return False
    for node in nodes:
        if not isinstance(node, _PLAIN):
            return False
        if isinstance(node, ast.Call) and not (
            isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS and not node.keywords
        ):
            return False
        if isinstance(node, ast.Name) and "__" in node.id:
            return False
    return True


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
