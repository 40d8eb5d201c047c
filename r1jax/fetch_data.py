"""Downloads the benchmarks' data from where it is published, each file checked by its hash.

    python -m r1jax.fetch_data NAME[,NAME...]|all --data DIR [--overwrite]
    python -m r1jax.fetch_data --list

NAME is a benchmark or a directory of the data (gsm8k, mgsm_zh, math_train); --list has them all,
with their licences, which are the user's to keep. A file that is there with the right hash stays;
one with another is left alone unless --overwrite says otherwise. Nothing but the whole, checked
file ever has its name; the same command goes on where the last was stopped. DIR may be on gs://.
Beside the files of a benchmark, SOURCE.json says where they are from.

Environment: https_proxy and no_proxy; HF_TOKEN, which only huggingface.co is shown; R1JAX_MIRROR,
a server that has https://HOST/PATH as $R1JAX_MIRROR/HOST/PATH.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from absl import flags
from etils import epath

from r1jax.benchmarks.catalog import KINDS
from r1jax.benchmarks.sources import SOURCES, TO_BRING, Source, sources_of
from r1jax.cli import run_command
from r1jax.config import ConfigError, DataError, UserError
from r1jax.data.download import download
from r1jax.files import absolute, content_of, line_of, read_object, write_atomic, write_json

RECORD = "SOURCE.json"
Get = Callable[[str], bytes]


class Wrong(DataError):
    """A file that is there, and is not the one that is known."""


def fetch(source: Source, data: str, get: Get, overwrite: bool = False) -> str:
    """Sees to it that DATA/source.file is there, and says in a sentence how it came there.

    `get` has the content of a URL. UserError where the file cannot be had or would replace another.
    """
    path = absolute(f"{data}/{source.file}")
    there, known = sha256_of(path), source.sha256 or recorded(path)
    if there and there == known:
        return "is there" if source.sha256 else "is there, as it was recorded"
    if there and not overwrite:
        expected = f"not {known}" if known else f"and no {RECORD} that says where it is from"
        raise Wrong(f"{path} is there with the sha256 {there}, {expected}; --overwrite replaces it")
    content, rows = converted(source, [get(url) for url in source.urls])
    found = hashlib.sha256(content).hexdigest()
    if source.sha256 and found != source.sha256:
        raise Wrong(
            f"{source.file} has the sha256 {found}, expected {source.sha256}: the original at"
            f" {', '.join(source.urls) or 'its generator'} is not what it was; nothing is written"
        )
    try:
        write_atomic(path, content)
        record(path, source, found, rows)
    except OSError as error:
        if not error.errno:
            raise
        raise DataError(f"{path} cannot be written: {error.strerror}") from None
    if source.sha256:
        return f"{rows:,} rows, sha256 as known"
    return f"{rows:,} rows, unpinned: its sha256 {found} is in {RECORD}, nobody vouches for it"


def converted(source: Source, originals: Sequence[bytes]) -> tuple[bytes, int]:
    """The file's content, and its number of rows."""
    try:
        rows = source.convert(originals)
        lines = rows.splitlines(True) if isinstance(rows, bytes) else [*map(line_of, rows)]
    except UserError:
        raise
    except Exception as error:  # whatever a stranger's bytes do to csv, zip, json and parquet
        raise DataError(
            f"{source.file}: what {', '.join(source.urls)} gave is not what it was:"
            f" {type(error).__name__} {error}"
        ) from error
    if not lines:
        raise DataError(f"{source.file}: {', '.join(source.urls)} gave no rows")
    return b"".join(lines), len(lines) - isinstance(rows, bytes)  # a table names its columns


def sha256_of(path: epath.Path) -> str:
    """ "" where there is no file."""
    try:
        return hashlib.sha256(content_of(path)).hexdigest()
    except FileNotFoundError:
        return ""


def recorded(path: epath.Path) -> str:
    """The hash that SOURCE.json has of it, or ""."""
    return str(_record_of(path).get(path.name, {}).get("sha256", ""))


def _record_of(path: epath.Path) -> dict[str, Any]:
    try:
        return read_object(path.parent / RECORD)
    except FileNotFoundError:
        return {}


def record(path: epath.Path, source: Source, sha256: str, rows: int) -> None:
    """Writes down in SOURCE.json where a file is from."""
    said = {
        "from": source.origin,
        "urls": list(source.urls),
        "licence": source.licence,
        "rows": rows,
        "sha256": sha256,
        "pinned": bool(source.sha256),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(path.parent / RECORD, _record_of(path) | {path.name: said})


class Line:
    """How far a download is: a line that is written over on a terminal, else one in ten seconds."""

    def __init__(self, url: str) -> None:
        self._title = f"  {urlsplit(url).netloc} {url.rpartition('/')[2]}"
        self._terminal, self._last = sys.stdout.isatty(), time.monotonic()

    def __call__(self, done: int, size: int) -> None:
        now = time.monotonic()
        if now - self._last < (0.2 if self._terminal else 10.0) and done != size:
            return
        self._last = now
        of = f" of {size / 1e6:.1f}" if size else ""
        if self._terminal:
            print(f"\r{self._title} {done / 1e6:.1f}{of} MB\033[K", end="", flush=True)
        elif done != size:
            print(f"{self._title} {done / 1e6:.1f}{of} MB", flush=True)

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal:
            print("\r\033[K", end="", flush=True)


@cache
def _downloaded(url: str) -> bytes:
    """Once a run: some files have an original in common."""
    with Line(url) as line:
        return download(url, line)


def fetch_all(names: Sequence[str], data: str, overwrite: bool) -> None:
    """All files of these benchmarks; those that cannot be had do not keep the others away."""
    asked = list(dict.fromkeys(source for name in names for source in sources_of(name)))
    failed = []
    for source in asked:
        print(f"{source.file}: {source.origin}; licence: {source.licence}", flush=True)
        try:
            print(f"{source.file}: {fetch(source, data, _downloaded, overwrite)}", flush=True)
        except UserError as error:
            failed.append(str(error))
            print(f"{source.file}: not fetched", flush=True)
    if failed:
        told = "\n  ".join(dict.fromkeys(failed))
        raise DataError(f"{len(failed)} of {len(asked)} files are not fetched:\n  {told}")
    print(f"{data} has them: {len(asked)} files")
    for name in names:
        if name in KINDS and KINDS[name].needs:
            print(f"{name} needs besides: {KINDS[name].needs}")


def listing() -> str:
    """The table of --list."""
    heads = ("name", "file", "rows", "licence", "source")
    lines = [heads] + [
        (name, s.file, f"{s.rows:,}" if s.rows else "?", s.licence, s.origin + _unpinned(s))
        for name, files in SOURCES.items()
        for s in files
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    brought = [f"{name}: {what}" for name, what in TO_BRING.items()]
    return "\n".join([*table, "", "To be brought by the user:", *brought])


def _unpinned(source: Source) -> str:
    return "" if source.sha256 else " (unpinned)"


def define_flags() -> None:
    flags.DEFINE_string("data", None, "Directory of all data, a directory a benchmark in it.")
    flags.DEFINE_bool("list", False, "Prints what there is, with its licence, and ends.")
    flags.DEFINE_bool("overwrite", False, "Replaces files that are there with another hash.")


def main(arguments: Sequence[str]) -> None:
    f = flags.FLAGS
    if f.list:
        print(listing())
        return
    names = [name for argument in arguments for name in argument.split(",") if name]
    if not names:
        raise ConfigError("no benchmark named: fetch_data NAME,... or all; --list has their names")
    if not f.data:
        raise ConfigError("--data DIR is missing: where the data is to be")
    fetch_all(list(SOURCES) if names == ["all"] else names, f.data, f.overwrite)


if __name__ == "__main__":
    define_flags()
    run_command(main, arguments=True)
