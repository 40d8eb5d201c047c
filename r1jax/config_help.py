"""What a config may say: every field of its dataclass, with type, default and meaning.

A field's meaning is the comment behind it in the source, or else the one above it; a section's is
also the first paragraph of its dataclass's docstring. A dict whose values are sections is written
with NAME for its keys; `metadata={"keys": Dataclass}` says whose fields a plain dict's keys are.
"""

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

WIDTH = 100


@dataclasses.dataclass(frozen=True)
class Entry:
    """One field, by its dotted path from the config."""

    path: str
    type: str  # as the source writes it, a number's with its bounds
    default: str  # "" = a section, whose fields have the defaults
    meaning: str

    def __str__(self) -> str:
        """Like the source's line; what does not fit beside it goes below."""
        head = f"{self.path}: {self.type}{self.default}"
        line = f"{head}  # {self.meaning}"
        if len(line) <= WIDTH:
            return line
        return f"{head}\n{textwrap.fill(self.meaning, WIDTH, **_BELOW)}"


_BELOW: Any = {"initial_indent": "      # ", "subsequent_indent": "      # "}


def help_of(config: type) -> str:
    """All of it as text."""
    return "\n".join([_paragraph(config), "", *map(str, entries(config))])


def entries(
    config: type, path: str = "config", values: Any = None, seen: dict[Any, str] | None = None
) -> Iterator[Entry]:
    """The fields in the source's order, each section's behind it.

    `values` is an instance that has the defaults, where they are not the fields' own. A section
    that came before, with the same defaults, is named instead of repeated.
    """
    seen = {} if seen is None else seen
    written, hints = _written(config), typing.get_type_hints(config)
    bounded = typing.get_type_hints(config, include_extras=True)
    for field in dataclasses.fields(config):
        if not field.init:
            continue
        annotation, meaning = written[field.name]
        annotation = _bounded(bounded[field.name]) or annotation
        default = getattr(values, field.name) if values is not None else _default(field)
        inner, many = _section_in(hints[field.name], field)
        if inner is None:
            yield Entry(f"{path}.{field.name}", annotation, _shown(default), meaning)
            continue
        place = f"{path}.{field.name}.NAME" if many else f"{path}.{field.name}"
        own = default if isinstance(default, inner) else None
        meaning = ". ".join(filter(None, [meaning, _paragraph(inner)]))
        known = seen.setdefault((inner, repr(own)), place)
        if known != place:
            meaning += f" Its fields: those of {known}."
        yield Entry(f"{path}.{field.name}", annotation, "" if own else _shown(default), meaning)
        if known == place:
            yield from entries(inner, place, own, seen)


def _bounded(hint: Any) -> str:
    """A number's type with its bounds; "" where it has none."""
    if typing.get_origin(hint) is Annotated:
        of, bounds = typing.get_args(hint)
        return f"{of.__name__} ({bounds})"
    optional = types.NoneType in typing.get_args(hint)
    inner = next(filter(None, map(_bounded, typing.get_args(hint) if optional else ())), "")
    return inner and f"{inner} | None"


def _section_in(hint: Any, field: dataclasses.Field[Any]) -> tuple[type | None, bool]:
    """(the dataclass that the field's value or values are, whether they have names)."""
    if "keys" in field.metadata:
        return field.metadata["keys"], False
    if typing.get_origin(hint) is dict:
        _, hint = typing.get_args(hint)
        return (hint if _is_section(hint) else None), True
    return next(filter(_is_section, [hint, *typing.get_args(hint)]), None), False


def _is_section(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _shown(default: Any) -> str:
    return ", required" if default is dataclasses.MISSING else f" = {default!r}"


def _paragraph(config: type) -> str:
    return " ".join(inspect.getdoc(config).partition("\n\n")[0].split())  # type: ignore[union-attr]


def _written(config: type) -> dict[str, tuple[str, str]]:
    """{field: (its annotation, its comment)} as the source has them."""
    found: dict[str, tuple[str, str]] = {}
    for part in filter(dataclasses.is_dataclass, config.__mro__):
        found = _written_in(part) | found
    return found


def _written_in(config: type) -> dict[str, tuple[str, str]]:
    """Those of one class, without what it inherits."""
    source = textwrap.dedent(inspect.getsource(config))
    comments, alone = _comments(source)
    found = {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        behind = [comments[line] for line in lines if line in comments]
        first = node.lineno
        while first - 1 in alone:
            first -= 1
        above = [comments[line] for line in range(first, node.lineno)]
        found[node.target.id] = ast.unparse(node.annotation), " ".join(behind or above)
    return found


def _comments(source: str) -> tuple[dict[int, str], set[int]]:
    """({line: its comment}, the lines that have nothing else)."""
    comments, alone = {}, set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    return comments, alone
