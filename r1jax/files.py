"""Files: paths, JSON lines, atomic writes, and every name that lies in a workdir."""

from __future__ import annotations

import gzip
import json
import logging
import math
import os
import re
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from r1jax.config import ConfigError, DataError

# What lies in a workdir. Of a run:
CONFIG, MODEL_JSON, TOKENIZER, CHECKPOINTS = "config.json", "model.json", "tokenizer", "checkpoints"
EFFECTIVE_CONFIG, STARTS = "config_effective.json", "starts.jsonl"  # with defaults; a line a start
METRICS, TIMINGS, SAMPLES = "metrics.jsonl", "timings.jsonl", "samples.jsonl"
ROLLOUTS, EVALUATIONS, CRITIC = "rollouts", "evaluations", "critic"
UNFINISHED = "unfinished"  # of an iteration between two updates of which a run has stopped
SKIPPED_BATCHES = "skipped"  # of updates that were no numbers
TENSORBOARD, PROFILE, WANDB_ID = "tensorboard", "profile", "wandb_id.txt"
# Of an evaluation: what an unfinished one was asked for, and the end.
ASKED, RESULTS = "evaluation.json", "results.json"
# Of a data set: its rows, what is known on the way to them, and the end.
DATA, PAIRS, KEPT, CANDIDATES = "data.jsonl", "pairs.jsonl", "kept", "candidates.jsonl"
STATISTICS = "statistics.json"
# Of a pipeline, of each of its stages (written first, and last), of a sweep.
PIPELINE, DELETED = "pipeline.json", ".deleted"
STAGE_INPUTS, STAGE_COMPLETE = "stage_inputs.json", "stage_complete.json"
SWEEP = "sweep.json"
# Of whoever has the workdir, and what a command started by another prints.
LOCK, LOG = ".lock", "log.txt"


BUCKETS = "gs://"
PATIENCE, PAUSE = 600.0, 5.0  # seconds that a bucket may not answer, and between questions


def absolute(path: epath.PathLike) -> epath.Path:
    """An absolute path of this machine, or a place of Google's object store (gs://BUCKET/...)."""
    text = os.fspath(path)
    if not text:
        raise ConfigError("an empty path names no file or directory")
    if text.startswith(BUCKETS):
        return _in_bucket(text)
    if "://" in text:
        raise ConfigError(f"{text}: of object stores only gs:// is supported")
    return epath.Path(path).expanduser().absolute()


def on_disk(path: epath.PathLike) -> epath.Path:
    """As absolute, where only a disk will do."""
    if in_bucket(path):
        raise ConfigError(f"{os.fspath(path)} is on an object store, expected a path of this disk")
    return absolute(path)


def in_bucket(path: epath.PathLike) -> bool:
    """Whether it is a place of an object store, which has no directories: they are there as long as
    there is something in them. Objects cannot grow, and are replaced as a whole.
    """
    return os.fspath(path).startswith(BUCKETS)


def _in_bucket(text: str) -> epath.Path:
    if find_spec("gcsfs") is None:
        raise ConfigError(f"{text} is read and written with gcsfs: pip install -e '.[gcs]'")
    if not text.removeprefix(BUCKETS).strip("/"):
        raise ConfigError(f"{text} names no bucket, expected gs://BUCKET/DIRECTORY")
    if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):  # which not all libraries heed
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", emulator)
    # Else gcsfs asks for a bucket's kind, which needs a right of its own.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec

    for name in ("gcsfs", "fsspec"):  # they tell of every object
        logging.getLogger(name).setLevel(logging.CRITICAL)  # and, with tracebacks, of each new try
    # What others have written since must be seen; how epath makes a file system says nothing of it.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    return epath.Path(text)


def read_jsonl(path: epath.PathLike) -> list[dict[str, Any]]:
    """The objects of a JSONL file. DataError with file and line for whatever is wrong."""
    return [row for _, row in numbered_jsonl(path)]


def read_rows(path: str, *keys: str) -> list[Mapping[str, Any]]:
    """The rows of a JSONL file, each with these keys."""
    rows: list[Mapping[str, Any]] = list(read_jsonl(path))
    for number, row in enumerate(rows, start=1):
        if missing := [key for key in keys if key not in row]:
            raise DataError(f"{path}:{number} has no key {missing[0]!r}; it has {', '.join(row)}")
    return rows


def numbered_jsonl(path: epath.PathLike) -> list[tuple[int, dict[str, Any]]]:
    """As read_jsonl, each object with the number of its line."""
    return json_lines(path, read_data(path))


def read_data(path: epath.PathLike) -> bytes:
    """A file of rows, without a byte order mark, and unpacked where it is packed by gzip."""
    try:
        data = content_of(absolute(path))
        data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except IsADirectoryError:
        raise DataError(f"{path} is a directory, expected a file") from None
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"file {path} does not exist") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked: {error}") from None
    return data.removeprefix(b"\xef\xbb\xbf")


def content_of(path: epath.Path) -> bytes:
    """All of a file; of one that has grown in a bucket (journal.py) its segments, end to end."""
    try:
        return read_bytes(path)
    except (FileNotFoundError, IsADirectoryError):
        if not (parts := parts_of(path)):
            raise
    with ThreadPoolExecutor(8) as pool:
        return b"".join(pool.map(read_bytes, parts))


def read_bytes(path: epath.Path) -> bytes:
    """All of a file, or of an object by one question."""
    if not in_bucket(path):
        return path.read_bytes()
    system, name = _in_system(path)
    data: bytes = _patiently(lambda: system.cat_file(name))
    return data


def of_a_bucket(error: BaseException) -> bool:
    """Whether it is the network's, or what a bucket says."""
    known = type(error).__module__.partition(".")[0] in ("gcsfs", "google", "aiohttp", "requests")
    return known or (isinstance(error, OSError) and str(error).startswith("Forbidden"))


def _patiently(question: Callable[[], Any]) -> Any:
    """Asks again for PATIENCE seconds where the network is away, for longer than gcsfs does."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return question()
        except Exception as error:
            passes = of_a_bucket(error) or isinstance(error, ConnectionError | TimeoutError)
            refused = getattr(error, "code", 500) in (400, 401, 403, 404) or "Forbidden" in str(
                error
            )
            if not passes or refused or time.monotonic() > end:
                raise
            logging.warning("a bucket does not answer: %s", error)
            time.sleep(PAUSE)


def _in_system(path: epath.Path) -> tuple[Any, str]:
    """The file system that has a place of a bucket, and its name there."""
    import fsspec

    return fsspec.core.url_to_fs(os.fspath(path))


def parts_of(path: epath.Path) -> list[epath.Path]:
    """The file or, of a bucket's and of copies of it, its segments; [] where there is none."""
    if is_directory(path):
        return sorted(part for part in children(path) if re.fullmatch(r"\d{8}", part.name))
    return [path] if path.exists() else []


def is_directory(path: epath.Path) -> bool:
    """As path.is_dir(), which says no where a bucket does not answer."""
    if not in_bucket(path):
        return path.is_dir()
    system, name = _in_system(path)
    try:
        kind: str = _patiently(lambda: system.info(name))["type"]
    except FileNotFoundError:
        return False
    return kind == "directory"


def children(path: epath.Path) -> list[epath.Path]:
    """What lies in a directory but for hidden files, [] where there is none: one question to a
    bucket, where glob would ask for all that lies below.
    """
    try:
        return [child for child in path.iterdir() if not child.name.startswith(".")]
    except FileNotFoundError:
        return []


def names_below(directory: epath.Path) -> list[str]:
    """Of all files in it and its directories, relative to it."""
    if in_bucket(directory):  # one question for all of them
        system, root = _in_system(directory)
        return sorted(name.removeprefix(f"{root}/") for name in system.find(root))
    found = Path(directory).rglob("*")
    return sorted(str(path.relative_to(directory)) for path in found if path.is_file())


def json_lines(path: epath.PathLike, data: bytes) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a file's content, each with the number of its line."""
    numbered = enumerate(data.split(b"\n"), start=1)
    rows = [(number, parse_line(line, path, number)) for number, line in numbered if line.strip()]
    if not rows:
        raise DataError(f"{path} is empty, expected one JSON object a line")
    return rows


def parse_line(line: bytes, path: epath.PathLike, number: int) -> dict[str, Any]:
    """The object of one line; DataError with its place where it is none."""
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8, or far too deep
        raise DataError(
            f"{path}:{number} is not JSON: {error} (expected one object a line)"
        ) from None
    if not isinstance(row, dict):
        raise DataError(f"{path}:{number} is a JSON {type(row).__name__}, expected an object")
    return row


def write_jsonl_atomic(path: epath.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """The whole file or, if killed, the one that was there before."""
    write_atomic(path, b"".join(map(line_of, rows)))


def write_data(
    directory: epath.Path,
    name: str,
    rows: Iterable[Mapping[str, Any]],
    statistics: Mapping[str, Any],
) -> None:
    """A stage's data set: its rows, then statistics.json, whose presence says that it is whole."""
    write_jsonl_atomic(directory / name, rows)
    write_json(directory / STATISTICS, statistics)


def read_object(path: epath.PathLike) -> dict[str, Any]:
    """The object of a JSON file; DataError where it holds something else."""
    try:
        value = json.loads(content_of(absolute(path)))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} is a JSON {type(value).__name__}, expected an object")
    return value


def write_json(path: epath.PathLike, value: Any) -> None:
    """One JSON value, indented; atomically."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    write_atomic(path, (text + "\n").encode())


def write_atomic(path: epath.PathLike, data: bytes) -> None:
    """Writes a temporary file beside `path`, then puts it in its place. An object of a bucket is
    there as a whole or not at all.
    """
    path = absolute(path)
    if in_bucket(path):
        system, name = _in_system(path)
        _patiently(lambda: system.pipe_file(name, data))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{path.name}.tmp-{os.getpid()}"
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:  # a full disk is not to be filled
        temporary.unlink(missing_ok=True)
        raise


def line_of(row: Mapping[str, Any]) -> bytes:
    """One line. A lone surrogate becomes its JSON escape, since UTF-8 has none."""
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def read_metrics(workdir: epath.PathLike, name: str = METRICS) -> list[dict[str, Any]]:
    """One dict a step, in order; what was written as null comes back as nan."""
    return by_step(read_jsonl(absolute(workdir) / name))


def by_step(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the same step as one, in the steps' order; null is nan."""
    steps: dict[int, dict[str, Any]] = {}
    for row in rows:
        numbers = {key: math.nan if value is None else value for key, value in row.items()}
        steps.setdefault(row["step"], {}).update(numbers)
    return [steps[step] for step in sorted(steps)]


def plain_number(value: Any) -> int | float | None:
    """A JSON number: integers as they are, others as the shortest text that gives this float32."""
    array = np.asarray(value)
    if array.shape != ():
        raise ValueError(f"a metric must be a scalar, not of shape {array.shape}")
    if np.issubdtype(array.dtype, np.integer) or array.dtype == bool:
        return int(array)
    number = np.float32(array)
    return float(str(number)) if np.isfinite(number) else None
