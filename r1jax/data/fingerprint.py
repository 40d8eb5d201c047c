"""The rows of a run, so that a resumed one has the same: what they are in short, and how they
differ from those that it began with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from r1jax.config import ConfigError, DataError
from r1jax.files import read_object, write_json
from r1jax.machines.hosts import ask_first
from r1jax.types import Example

ROWS = "rows.json"
BLOCKS = 1_000  # at most so many checksums of a source
ENDLESS = 16  # rows of a source without end that are looked at

Source = Sequence[Any] | Callable[[int], Any]


def keep_rows(workdir: epath.Path, sources: Mapping[str, Source], used: Collection[str]) -> None:
    """Writes down in workdir/rows.json what the sources are, by their names in the config, beside
    others that it has.

    Those of which rows have been `used` must be what they were: ConfigError names the difference.
    """
    path = workdir / ROWS
    before = ask_first(lambda: read_object(path) if path.exists() else {})
    found = {name: fingerprint(rows) for name, rows in sources.items()}
    for name in before.keys() & found.keys() & set(used):
        try:
            difference = _difference(before[name], found[name])
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{path} is damaged: {name} is not what was written") from None
        if difference:
            raise ConfigError(
                f"{name}: {difference}; {workdir} began with other rows: take another"
                " --workdir, or the rows of that run"
            )
    found = before | found
    if found != before and jax.process_index() == 0:
        write_json(path, found)


def fingerprint(rows: Source) -> dict[str, Any]:
    """{"rows": their number (None without end), "sum" of their checksums in any order, "size" of
    a block of rows, "blocks": a checksum for each}."""
    chosen = [rows(i) for i in range(ENDLESS)] if callable(rows) else rows
    checksums = [_checksum(row) for row in chosen]
    size = max(-(-len(checksums) // BLOCKS), 1)
    blocks = [checksums[start : start + size] for start in range(0, len(checksums), size)]
    return {
        "rows": None if callable(rows) else len(rows),
        "sum": sum(int(checksum, 16) for checksum in checksums) % (1 << 64),
        "size": size,
        "blocks": [hashlib.sha256("".join(block).encode()).hexdigest()[:12] for block in blocks],
    }


def _checksum(row: Any) -> str:
    values = dataclasses.asdict(row) | {"where": ""} if isinstance(row, Example) else row
    text = json.dumps(values, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What is other, in words; "" for nothing."""
    if before["rows"] != now["rows"]:
        return f"{_count(before)} have become {_count(now)}"
    pairs = enumerate(zip(before["blocks"], now["blocks"], strict=True))
    other = next((i for i, (old, new) in pairs if old != new), None)
    if other is None:
        return ""
    size = before["size"]
    first, last = other * size + 1, (other + 1) * size
    place = f"row {first}" if size == 1 else f"one of the rows {first} to {last}"
    if before["sum"] == now["sum"]:
        return f"the rows stand in another order, from {place} on"
    return f"{place} is not what it was"


def _count(found: Mapping[str, Any]) -> str:
    return "rows without end" if found["rows"] is None else f"{found['rows']} rows"
