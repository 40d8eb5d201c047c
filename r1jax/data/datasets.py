"""Where rows come from: files, the Hugging Face hub, or pure functions of an index.

Row schemas: SFT reads `{"messages": [...]}`, of which the assistant's turns are learnt, or
`{"text": "..."}`. RL and evaluation read `{"prompt": "..." | "messages": [...], "answer": "...",
"task": "..."}`, other keys become metadata; the tasks are those of r1jax/tasks. Reward models read
`{"messages", "chosen", "rejected"}`. Rows of other shapes are read as these (formats.py). In a
config:

    config.data = {"path": "problems.jsonl"}  # or an array, .csv, .gz, .parquet
    config.data = {"hub": "openai/gsm8k", "args": {"name": "main"}, "split": "train"}  # r1jax[data]
    config.data = {"function": "my_module:rows", "args": {...}}  # a list, or a function of an index

Messages about a row begin with its place, `problems.jsonl:7`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from r1jax.config import (
    ConfigError,
    Count,
    DataError,
    Size,
    UserError,
    check_choice,
    import_function,
    section,
)
from r1jax.data.chat import checked_messages, refuse_json_text, says
from r1jax.data.files import rows_of_file, rows_of_hub
from r1jax.data.formats import FORMATS, METADATA, Use, read
from r1jax.files import numbered_jsonl
from r1jax.tasks import check_example
from r1jax.types import Example, Message

Row = Mapping[str, Any]
# Of a question's row, what others mean to be part of what is asked; everything else is metadata.
UNASKED = ("system", "system_prompt", "tools", "documents", "chat_template_kwargs")
T = TypeVar("T")


@dataclass(frozen=True)
class DataConfig:
    """Exactly one of a file, a data set of the hub, and a `module:function`."""

    path: str | None = None  # a JSON object a line, a JSON array, .csv, .tsv or .parquet; or .gz
    hub: str | None = None  # "openai/gsm8k": a data set of the Hugging Face hub
    split: str = "train"  # of it
    # module:function, called with `args`: a list of rows, or a function of a row's index (endless).
    # r1jax.data.datasets:mixed draws from several sources in fixed shares.
    function: str | None = None
    args: dict[str, Any] = field(default_factory=dict)  # of that function, or datasets.load_dataset
    format: str | None = None  # of the rows, a key of formats.FORMATS; None: what their keys tell
    keys: dict[str, str] = field(default_factory=dict)  # {a format's key: its name in the rows}
    metadata: tuple[str, ...] = ()  # keys of rows to be learnt, or compared, that nobody is to read
    limit: Size | None = None  # the first rows only


@dataclass(frozen=True)
class HeldOutConfig:
    """Rows like those of training, to measure on what was not trained on."""

    data: DataConfig | None = None
    every: Count = 0  # updates between two measurements; there is one before and one at the end


class FileRow(dict[str, Any]):
    """A row that knows where it stands, and what its source says of its format."""

    def __init__(
        self, values: Mapping[str, Any], where: str, data: DataConfig | None = None
    ) -> None:
        super().__init__(values)
        self.where = where  # "problems.jsonl:7"
        self.data = data or DataConfig(path=where.rpartition(":")[0])


def read_row(row: Row, use: Use, data: DataConfig | None = None) -> Row:
    """The row in our form, whatever its own; it is still one of a file where it was.

    `data` is the source's config, where the row doesn't know it.
    """
    if isinstance(row, FileRow):
        return FileRow(read(row, use, row.data), row.where, row.data)
    return read(row, use, data or DataConfig(function="..."))


def place_of(row: Row, index: int, source: str) -> str:
    """Where a row stands, for messages; `index` and `source` for those that are of no file."""
    return getattr(row, "where", "") or f"{source}, row {index + 1}"


@contextmanager
def errors_at(where: str) -> Iterator[None]:
    """UserErrors from inside begin with the place."""
    try:
        yield
    except UserError as error:
        if not where:
            raise
        raise type(error)(f"{where}: {error}") from error


def check_keys(row: Row, known: Collection[str], metadata: Collection[str] = ()) -> None:
    """DataError for a key that says something and that nobody reads."""
    for key, value in row.items():
        if not (key in known or key in METADATA or key in metadata) and says(value):
            raise DataError(
                f"nobody reads the key {key!r} of this row; leave it out, or name it in"
                f" config.data.metadata = ({key!r},) if it is not to be learnt"
            )


def rows_of(config: DataConfig, key: str) -> Sequence[Row] | Callable[[int], Row]:
    """The rows of a source: a sequence (finite), or a function of the index (unlimited)."""
    if sum(source is not None for source in (config.path, config.hub, config.function)) != 1:
        raise ConfigError(f"{key} needs exactly one of path and function (or hub)")
    if config.format is not None:
        check_choice(f"{key}.format", config.format, FORMATS)
    if config.path is not None:
        rows: Any = [FileRow(row, where, config) for where, row in rows_of_file(config.path)]
    elif config.hub is not None:
        found = rows_of_hub(config.hub, config.split, config.args)
        rows = [FileRow(row, where, config) for where, row in found]
    else:
        rows = _from_function(str(config.function), config.args, key)
    if config.limit is None:
        return rows
    if callable(rows):
        return [rows(i) for i in range(config.limit)]
    return [rows[i] for i in range(min(config.limit, len(rows)))]


def _from_function(name: str, args: Mapping[str, Any], key: str) -> Any:
    what = f"{key}.function = {name!r}"
    function = import_function(name, what)
    try:
        inspect.signature(function).bind(**args)
    except TypeError as error:
        raise ConfigError(f"{what} does not take {key}.args: {error}") from None
    rows = function(**args)
    if not callable(rows) and not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
        raise ConfigError(
            f"{what} gives {type(rows).__name__}, not a list of rows or a function of an index"
        )
    return rows


def stream(rows: Sequence[T] | Callable[[int], T], seed: int) -> Callable[[int], T]:
    """Row number i of an endless stream, a pure function of (seed, i).

    Finite sources are shuffled anew each epoch, every row once an epoch.
    """
    if callable(rows):
        return rows
    if not rows:
        raise DataError("the training data has no rows")
    count = len(rows)
    orders: dict[int, np.ndarray] = {}

    def row(index: int) -> T:
        epoch, place = divmod(index, count)
        if epoch not in orders:
            orders.clear()
            orders[epoch] = np.random.default_rng([seed, epoch]).permutation(count)
        return rows[orders[epoch][place]]

    return row


def mixed(parts: Mapping[str, Mapping[str, Any]], seed: int) -> Callable[[int], Any]:
    """Rows of several sources in fixed shares, for a config's `data.function`.

    `parts` maps names to DataConfigs with a further key `share`, a whole number: of every
    sum-of-shares rows in a row that many are the part's, spread as evenly as can be.
    """
    sources, shares = [], []
    for name, part in parts.items():
        share = part.get("share")
        if not isinstance(share, int) or share < 1:
            raise ConfigError(f"parts.{name}.share {share!r} must be a whole number above 0")
        config = section(
            DataConfig, {k: v for k, v in part.items() if k != "share"}, f"parts.{name}"
        )
        rows = rows_of(config, f"parts.{name}")
        if not callable(rows) and not rows:
            raise DataError(f"parts.{name} has no rows")
        sources.append(stream(rows, seed))
        shares.append(share)
    if not sources:
        raise ConfigError("parts is empty")
    cycle = _interleaved(shares)

    def row(index: int) -> Any:
        rounds, place = divmod(index, len(cycle))
        part = cycle[place]
        return sources[part](rounds * shares[part] + cycle[:place].count(part))

    return row


def _interleaved(shares: Sequence[int]) -> list[int]:
    """[3, 1] -> [0, 0, 1, 0]: each part `share` times, the one that lags most comes next."""
    total, counts, order = sum(shares), [0] * len(shares), []
    for place in range(1, total + 1):
        lags = [share * place / total - count for share, count in zip(shares, counts, strict=True)]
        part = lags.index(max(lags))
        counts[part] += 1
        order.append(part)
    return order


def last_turns(path: str) -> list[Row]:
    """Rows {"messages"} of a JSONL file with only the last question and its answer.

    What a model did behind demonstrations, to be learnt without them.
    """
    rows: list[Row] = []
    for number, row in numbered_jsonl(path):
        turns = row.get("messages") or []
        if [turn["role"] for turn in turns[-2:]] != ["user", "assistant"]:
            raise DataError(f"{path}:{number}: messages do not end with a question and its answer")
        rows.append(FileRow({**row, "messages": turns[-2:]}, f"{path}:{number}"))
    return rows


def messages_of(row: Row) -> list[Message]:
    """A row's conversation; a `prompt` is one message of the user's, or messages."""
    messages = row.get("messages") or row.get("prompt")
    if messages is None:
        raise DataError("the row has no messages and no prompt")
    if isinstance(messages, str):
        refuse_json_text(messages)
        messages = [{"role": "user", "content": messages}]
    return list(checked_messages(messages, "chat"))


def _check_messages(row: Row, where: str) -> None:
    """DataError where `messages_of` would give no conversation."""
    prompt, messages = row.get("prompt"), row.get("messages")
    if messages is None and prompt is None:
        raise DataError(f"{where}: key prompt (or messages) is missing; it has {', '.join(row)}")
    if messages is None and not isinstance(prompt, str | list):
        raise DataError(f"{where}: prompt {prompt!r} is not a text")
    if isinstance(prompt, str) and not prompt.strip():
        raise DataError(f"{where}: prompt is empty")
    if messages is not None and (not isinstance(messages, list | tuple) or not messages):
        raise DataError(f"{where}: messages {messages!r} is not a list of messages")
    for message in messages or (prompt if isinstance(prompt, list) else ()):
        parts = message if isinstance(message, Mapping) else {}
        if not parts.get("role") or parts.get("content") is None:
            raise DataError(f"{where}: message {message!r} has no role and content")
    with errors_at(where):
        if messages is not None and prompt is not None:
            raise DataError("both prompt and messages say what is asked; leave one out")
        if messages_of(row)[-1]["role"] == "assistant":
            raise DataError("what is asked ends with a message of the assistant")


def answer_text(answer: Any) -> str:
    """A row's answer as text; DataError for what no completion could say."""
    if isinstance(answer, bool) or (isinstance(answer, float) and not math.isfinite(answer)):
        raise DataError(f"answer {answer!r} is neither a text nor a number")
    return str(answer)


def refuse_unasked(row: Row, metadata: Collection[str] = ()) -> None:
    """DataError for a key of UNASKED that says something, but for those meant as metadata."""
    if unasked := [key for key in UNASKED if says(row.get(key)) and key not in metadata]:
        raise DataError(
            f"the key {unasked[0]!r} would not be asked; write it into messages, leave it out, or"
            f" name it in config.data.metadata = ({unasked[0]!r},)"
        )


def to_example(row: Row, index: int, source: str, data: DataConfig | None = None) -> Example:
    """An RL or evaluation row -> Example; `source` names the file in errors."""
    if isinstance(row, Example):
        return row
    if not isinstance(row, Mapping):
        raise DataError(f"{source}, row {index + 1} is {type(row).__name__}, expected an object")
    where = place_of(row, index, source)
    with errors_at(where):
        row = read_row(row, "rl", data)
    _check_messages(row, where)
    missing = [key for key in ("answer", "task") if row.get(key) is None]
    if missing:
        raise DataError(f"{where}: key {missing[0]} is missing; it has {', '.join(row)}")
    with errors_at(where):
        refuse_unasked(row, getattr(row, "data", data or DataConfig()).metadata)
        answer = answer_text(row["answer"])
    known = ("id", "prompt", "messages", "answer", "task")
    return Example(
        id=str(index if row.get("id") is None else row["id"]),
        messages=tuple(messages_of(row)),
        answer=answer,
        task=str(row["task"]),
        metadata={key: value for key, value in row.items() if key not in known},
        where=where,
    )


def check_located(example: Example) -> None:
    """DataError with the row's place for what no completion could get right."""
    with errors_at(example.where):
        check_example(example)


def examples_of(config: DataConfig, key: str) -> Sequence[Example] | Callable[[int], Example]:
    """Like rows_of, as Examples, each with an id of its own."""
    rows = rows_of(config, key)
    source = str(config.path or config.function)
    if callable(rows):
        return lambda index: to_example(rows(index), index, source, config)
    return _distinct([to_example(row, i, source, config) for i, row in enumerate(rows)])


def _distinct(examples: list[Example]) -> list[Example]:
    """DataError for an id that two of them have: what is kept under it would be of one alone."""
    places: dict[str, str] = {}
    for example in examples:
        if example.id in places:
            where = example.where or "a row"
            raise DataError(f"{where}: id {example.id} is that of {places[example.id]} already")
        places[example.id] = example.where or "another row"
    return examples


def finite_examples(config: DataConfig, key: str) -> list[Example]:
    """The examples of an evaluation set; an unlimited source needs `limit`."""
    examples = examples_of(config, key)
    if callable(examples):
        raise ConfigError(f"{key}.limit must be set: {config.function} has no end")
    if not examples:
        raise ConfigError(f"{key} has no examples (limit {config.limit})")
    return list(examples)
