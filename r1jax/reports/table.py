"""A table of numbers with their spread, as Markdown, CSV, LaTeX and on a terminal."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import rich.box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

MISSING = "-"
_IN_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "→": r"$\to$",
}


@dataclass(frozen=True)
class Cell:
    """A number with its spread, or nothing."""

    value: float | None
    spread: float | None = None
    digits: int = 1
    mark: str = ""  # behind it, of which the table's note says what it means

    @property
    def text(self) -> str:
        said = f"{self.number}{self._spread_text} {self.mark}".rstrip()
        return MISSING if _absent(self.value) else said

    @property
    def number(self) -> str:
        return MISSING if _absent(self.value) else f"{self.value:,.{self.digits}f}"

    @property
    def _spread_text(self) -> str:
        return "" if _absent(self.spread) else f" ± {self.spread:,.{self.digits}f}"


def _absent(value: float | None) -> bool:
    return value is None or math.isnan(value)


@dataclass(frozen=True)
class Table:
    """Rows of texts and cells under a header."""

    name: str  # of its files
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    note: str = ""


def text_of(cell: str | Cell) -> str:
    return cell if isinstance(cell, str) else cell.text


def to_markdown(table: Table) -> str:
    rows = [table.header, *([text_of(cell) for cell in row] for row in table.rows)]
    numbers = number_columns(table)
    rule = ["---:" if i in numbers else "---" for i in range(len(table.header))]
    lines = [rows[0], rule, *rows[1:]]
    body = "".join(f"| {' | '.join(c.replace('|', chr(92) + '|') for c in r)} |\n" for r in lines)
    return f"### {table.title}\n\n{body}" + (f"\n{table.note}\n" if table.note else "")


def to_csv(table: Table) -> str:
    """Numbers, their spreads and, where there are any, their marks in columns of their own."""
    numbers = number_columns(table)
    marked = {
        i for r in table.rows for i, cell in enumerate(r) if isinstance(cell, Cell) and cell.mark
    }
    names = [
        [n, f"{n} ±", *([f"{n} mark"] if i in marked else [])] if i in numbers else [n]
        for i, n in enumerate(table.header)
    ]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([name for pair in names for name in pair])
    for row in table.rows:
        values = [_csv_values(cell, i in numbers, i in marked) for i, cell in enumerate(row)]
        writer.writerow([value for pair in values for value in pair])
    return out.getvalue()


def _csv_values(cell: str | Cell, is_number: bool, has_mark: bool) -> list[str]:
    if isinstance(cell, str):
        return [cell, *[MISSING] * (is_number + has_mark)]
    values = [_plain(cell.value, cell.digits), _plain(cell.spread, cell.digits)]
    return [*values, *([cell.mark] if has_mark else [])]


def _plain(value: float | None, digits: int) -> str:
    return MISSING if value is None or math.isnan(value) else f"{value:.{digits}f}"


def to_latex(table: Table) -> str:
    """A tabular for the package booktabs."""
    numbers = number_columns(table)
    columns = "".join("r" if i in numbers else "l" for i in range(len(table.header)))
    lines = [" & ".join(map(_latex, table.header)) + r" \\", r"\midrule"]
    lines += [" & ".join(_latex(text_of(cell)) for cell in row) + r" \\" for row in table.rows]
    body = "\n".join(lines)
    caption = f"% {table.title}. {table.note}".replace("\n", " ").rstrip()
    return (
        f"{caption}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{body}\n\\bottomrule\n"
        "\\end{tabular}\n"
    )


def _latex(text: str) -> str:
    if text == MISSING:
        return "--"
    return "".join(_IN_LATEX.get(character, character) for character in text)


def number_columns(table: Table) -> set[int]:
    return {i for row in table.rows for i, cell in enumerate(row) if isinstance(cell, Cell)}


def print_rich(table: Table) -> None:
    """A table on the terminal, or 100 columns wide in a file."""
    numbers = number_columns(table)
    shown = RichTable(
        title=escape(table.title),
        caption=escape(table.note),
        box=rich.box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for i, name in enumerate(table.header):
        shown.add_column(escape(name), justify="right" if i in numbers else "left")
    for row in table.rows:
        shown.add_row(*(escape(text_of(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else 100).print(shown)
