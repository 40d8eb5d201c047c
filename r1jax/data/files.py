"""Rows out of files and the Hugging Face hub, each with the place where it stands."""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
from collections.abc import Mapping
from typing import Any

from r1jax.config import ConfigError, DataError
from r1jax.files import json_lines, read_data

DELIMITERS = {".csv": ",", ".tsv": "\t"}
MOST_CHARACTERS = 1 << 30  # of a cell
Placed = tuple[str, dict[str, Any]]  # ("problems.jsonl:7", its row)


def rows_of_file(path: str) -> list[Placed]:
    """The objects of a file: one a line, those of a JSON array, or the rows of a .parquet, .csv or
    .tsv file; all but .parquet may be packed by gzip.
    """
    if path.endswith(".parquet"):
        parquet = _extra("pyarrow.parquet", "a .parquet file")
        try:
            rows = parquet.read_table(path).to_pylist()
        except FileNotFoundError:
            raise DataError(f"file {path} does not exist") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        return _placed(path, rows)
    data = read_data(path)
    if (kind := os.path.splitext(path.removesuffix(".gz"))[1]) in DELIMITERS:
        return _table(path, data, DELIMITERS[kind])
    if data.lstrip().startswith(b"["):  # no line of objects begins so
        return _placed(path, _json_array(path, data))
    return [(f"{path}:{number}", row) for number, row in json_lines(path, data)]


def _json_array(path: str, data: bytes) -> list[dict[str, Any]]:
    """The objects of a file that is one JSON array."""
    try:
        values = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        place = f"{path}:{getattr(error, 'lineno', 1)}"
        raise DataError(f"{place} is not JSON: {error} (expected an array of objects)") from None
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise DataError(
                f"{path}, row {number} is a JSON {type(value).__name__}, expected an object"
            )
    return values


def _table(path: str, data: bytes, delimiter: str) -> list[Placed]:
    """The rows of a .csv or .tsv file by the names in its first line; empty cells are null."""
    csv.field_size_limit(MOST_CHARACTERS)
    try:
        lines = io.StringIO(data.decode("utf-8"), newline="")
        reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
        found = [(f"{path}:{reader.line_num}", row) for row in reader]
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from None
    if len(names := reader.fieldnames or ()) > len(set(names)):
        raise DataError(f"{path}:1 names a column twice: {', '.join(names)}")
    for place, row in found:
        if None in row or None in row.values():
            raise DataError(f"{place} has other cells than the first line names")
    if not found:
        raise DataError(f"{path} is empty, expected a line of names and one for each row")
    return [(place, {key: text or None for key, text in row.items()}) for place, row in found]


def rows_of_hub(name: str, split: str, args: Mapping[str, Any]) -> list[Placed]:
    """The rows of a data set of the Hugging Face hub; `args` are load_dataset's."""
    datasets = _extra("datasets", f"the data set {name} of the Hugging Face hub")
    try:
        rows = datasets.load_dataset(name, split=split, **args)
    except Exception as error:  # whatever the hub, the network and the files do
        raise DataError(f"the data set {name} (split {split!r}) cannot be read: {error}") from error
    return _placed(name, rows)


def _placed(source: str, rows: Any) -> list[Placed]:
    found = [(f"{source}, row {number}", dict(row)) for number, row in enumerate(rows, start=1)]
    if not found:
        raise DataError(f"{source} is empty")
    return found


def _extra(module: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise ConfigError(f'{what} needs {package}: pip install "r1jax[data]"') from None
