"""Where the program stands in a text: blocks between fences, and which of them answers."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache

MAX_CLOSINGS = 8  # fences that are tried as the end of one block

# An opening one may stand behind a tag or the mark of a list: <answer>```python, 1. ```python
_OPENING = re.compile(
    r"(?:[ \t]*+(?:(?:[-*+]|[0-9]{1,3}[.)])[ \t]*+)?|.*>)(`{3,}+|~{3,}+)[ \t]*+([^`\n]*)"
)
_CLOSING = re.compile(r"[ \t]*+(`{3,}+|~{3,}+)(?!\s*+\w)")
_READS = re.compile(r"\b(?:raw_)?input\s*\(|\bstdin\b|\bopen\(\s*0|\bfileinput\b")
_DEFINES = re.compile(r"^(?:async\s+)?(?:def|class)\s+(\w+)", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    language: str  # the first word behind the opening fence, in lower case
    code: str


def blocks(text: str) -> list[Block]:
    """All closed blocks. Of Python the end is the first fence where what is before it parses: one
    in a docstring is part of the program."""
    lines, found, at = text.split("\n"), [], 0
    absent: set[str] = set()  # fences that nothing closes from here on
    while at < len(lines):
        marked = "```" in lines[at] or "~~~" in lines[at]
        opening = _OPENING.fullmatch(lines[at]) if marked else None
        at += 1
        if not opening or opening[1] in absent:
            continue
        language = (opening[2].split() or [""])[0].lower()
        ends = _closings(lines, at, opening[1])
        if not ends:
            absent.add(opening[1])
            continue
        codes = [_dedented(lines[at:end]) for end in ends]
        end, code = ends[0], codes[0]
        if is_python(language):
            whole = [(e, c) for e, c in zip(ends, codes, strict=True) if _tree(c)]
            if not whole and any(map(_OPENING.fullmatch, lines[at:end])):
                continue  # it was never closed, and another one begins
            end, code = whole[0] if whole else (end, code)
        found.append(Block(language, code))
        at = end + 1
    return found


def _closings(lines: list[str], start: int, fence: str) -> list[int]:
    """Lines that may close a block; its first one, and further ones up to the next opening."""
    ends: list[int] = []
    for number in range(start, len(lines)):
        match = _CLOSING.match(lines[number])
        if match and match[1][0] == fence[0] and len(match[1]) >= len(fence):
            ends.append(number)
        if len(ends) == MAX_CLOSINGS:
            break
    return ends


def _dedented(lines: list[str]) -> str:
    return textwrap.dedent("\n".join(lines) + "\n") if lines else ""


def is_python(language: str) -> bool:
    """Blocks that name no language are taken for Python."""
    return language == "" or language.startswith("py")


@lru_cache(maxsize=256)
def _tree(code: str) -> ast.Module | None:
    """None for what does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def program_of(text: str, names: Collection[str] = (), reads: bool | None = None) -> str | None:
    """The block that answers, None if there is none.

    Of the blocks marked as Python (of all without a language, where none is marked) the last that
    defines one of `names`, or that reads input if it should; where nothing is known of that, the
    last that defines a function or class or reads input. If none does, the last.
    """
    python = [block for block in blocks(text) if is_python(block.language)]
    marked = [block.code for block in python if block.language]
    codes = marked or [block.code for block in python]
    tests: list[Callable[[str], bool]] = []
    if names:
        tests.append(lambda code: bool(defined(code) & set(names)))
    elif reads:
        tests.append(lambda code: bool(_READS.search(code)))
    if not names and reads is None:
        tests.append(lambda code: bool(_DEFINES.search(code) or _READS.search(code)))
    for answers in tests:
        for code in reversed(codes):
            if answers(code):
                return code
    return codes[-1] if codes else None


def defined(code: str) -> set[str]:
    """The names that a program defines at its top."""
    tree = _tree(code)
    if tree is None:
        return set(_DEFINES.findall(code))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
    for node in tree.body:
        if isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def asked_names(code: str) -> set[str]:
    """The names that test code uses and does not define itself."""
    tree = _tree(code)
    if tree is None:
        return set()
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    used = {node.id for node in names if isinstance(node.ctx, ast.Load)}
    stored = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    parameters = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    return used - stored - parameters - defined(code)


def declared(code: str) -> set[str]:
    """The names that test code says are the program's, by `global` outside of functions."""
    tree = _tree(code)
    nodes = [] if tree is None else [node for node in tree.body if isinstance(node, ast.Global)]
    return {name for node in nodes for name in node.names}
