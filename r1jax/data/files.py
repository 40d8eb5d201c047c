"""Rows out of files and the Hugging Face hub, each with the place where it stands."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from typing import Any

from r1jax.config import ConfigError, DataError
from r1jax.files import absolute, numbered_jsonl

Placed = tuple[str, dict[str, Any]]  # ("problems.jsonl:7", its row)


def rows_of_file(path: str) -> list[Placed]:
    """The objects of a file: one a line, those of a JSON array, or those of a .parquet file."""
    if path.endswith(".parquet"):
        parquet = _extra("pyarrow.parquet", "a .parquet file")
        try:
            rows = parquet.read_table(path).to_pylist()
        except FileNotFoundError:
            raise DataError(f"file {path} does not exist") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        return _placed(path, rows)
    if (array := _json_array(path)) is not None:
        return _placed(path, array)
    return [(f"{path}:{number}", row) for number, row in numbered_jsonl(path)]


def _json_array(path: str) -> list[dict[str, Any]] | None:
    """The objects of a file that is one JSON array; None for any other."""
    file = absolute(path)
    data = file.read_bytes() if file.is_file() else b""
    if not data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        return None
    try:
        values = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return values if all(isinstance(value, dict) for value in values) else None


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
