"""Rollouts on disk.

Those of an iteration of training, or of a portion of questions, are a directory. Each process has
written what it graded:

    0.jsonl          a line a completion: text, rewards, which question; to be read by people too
    0.safetensors    tokens, log-probabilities and experts of the same completions, end to end
    complete.json    behind all the others: how many completions each process has written
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from safetensors import SafetensorError
from safetensors.numpy import load, save

from r1jax.config import DataError
from r1jax.files import (
    absolute,
    read_bytes,
    read_jsonl,
    read_object,
    write_atomic,
    write_json,
    write_jsonl_atomic,
)
from r1jax.machines.hosts import agreed, wait_for_all
from r1jax.types import Completion, Rollout

COMPLETE = "complete.json"
DRAFTS = ("drafts", "right_drafts")  # of a completion; written where there were any
# The arrays of a rollout; experts where the model has some.
DTYPES = {
    "prompt_tokens": np.int32,
    "tokens": np.int32,
    "logprobs": np.float32,
    "experts": np.int16,
}


# -- a directory -----------------------------------------------------------------------------------


def process_of(prompt_index: int) -> int:
    """The process that grades and writes the completions of a question."""
    return prompt_index % jax.process_count()


def is_written(directory: epath.Path) -> bool:
    return (directory / COMPLETE).exists()


def write_rollouts(directory: epath.Path, rollouts: Sequence[Rollout]) -> None:
    """Every process must come here with all of them; they are written when it returns."""
    me = jax.process_index()
    shares: list[list[Rollout]] = [[] for _ in range(jax.process_count())]
    for rollout in rollouts:
        shares[process_of(rollout.completion.prompt_index)].append(rollout)
    if me == 0:
        delete_rollouts(directory)  # what a run that was killed has left of them
    wait_for_all("rollouts begun")
    agreed(lambda: _write_share(directory / str(me), shares[me]), OSError)
    if me == 0:
        write_json(directory / COMPLETE, {"completions": [len(share) for share in shares]})
    wait_for_all("rollouts complete")  # who looks for them finds them


def delete_rollouts(directory: epath.Path) -> None:
    """First what says that they are whole: a kill leaves a part, and none that looks complete."""
    (directory / COMPLETE).unlink(missing_ok=True)
    if directory.exists():
        directory.rmtree()


def read_rollouts(directory: epath.PathLike) -> list[Rollout]:
    """Those that so many processes as there were have written, sorted by (prompt, sample).

    DataError where they are not what was written.
    """
    directory = absolute(directory)
    if not is_written(directory):
        raise DataError(f"{directory} has no {COMPLETE}: its rollouts are not all written")
    counts = read_object(directory / COMPLETE).get("completions")
    if not isinstance(counts, list):
        raise DataError(f"{directory / COMPLETE} does not say how many completions there are")
    found = []
    for process, count in enumerate(counts):
        share = _read_share(directory / str(process)) if count else []
        if len(share) != count:
            raise DataError(f"{directory}/{process}.jsonl has {len(share)} of {count} rollouts")
        found += share
    return sorted(found, key=lambda r: (r.completion.prompt_index, r.completion.sample_index))


def _write_share(path: epath.Path, rollouts: Sequence[Rollout]) -> None:
    """PATH.jsonl and PATH.safetensors."""
    if not rollouts:
        return
    arrays = [_arrays(rollout) for rollout in rollouts]
    columns = {name: np.concatenate([of_one[name] for of_one in arrays]) for name in arrays[0]}
    if "experts" in columns:  # by far the most of it, and seldom more of them than a byte can say
        columns["experts"] = _narrowed(columns["experts"])
    write_atomic(path.with_suffix(".safetensors"), save(columns))
    rows = (
        _values(rollout)
        | {_length(name): len(of_one[name]) for name in ("prompt_tokens", "tokens")}
        for rollout, of_one in zip(rollouts, arrays, strict=True)
    )
    write_jsonl_atomic(path.with_suffix(".jsonl"), rows)


def _read_share(path: epath.Path) -> list[Rollout]:
    rows, file = read_jsonl(path.with_suffix(".jsonl")), path.with_suffix(".safetensors")
    try:
        columns = load(read_bytes(file))
        arrays = {name: _split(name, column, rows) for name, column in columns.items()}
        return [
            _rollout(row, {name: parts[i] for name, parts in arrays.items()})
            for i, row in enumerate(rows)
        ]
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        raise DataError(f"{file} is not what was written: {error!r}") from None


def _narrowed(numbers: np.ndarray) -> np.ndarray:
    """As the smallest integers that hold them."""
    ends = np.min_scalar_type(numbers.min()), np.min_scalar_type(numbers.max())
    return numbers.astype(np.result_type(*ends))


def _length(name: str) -> str:
    """What lines call the number of an array's values."""
    return "prompt_length" if name == "prompt_tokens" else "length"


def _split(name: str, column: np.ndarray, rows: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
    """Each completion's part of all their values."""
    ends = np.cumsum([row[_length(name)] for row in rows])
    if ends[-1] != len(column):
        raise ValueError(f"{len(column)} {name} for completions with {ends[-1]}")
    return np.split(column.astype(DTYPES[name], copy=False), ends[:-1])


def _values(rollout: Rollout) -> dict[str, Any]:
    """All but the arrays."""
    completion = rollout.completion
    return {
        "example_id": rollout.example_id,
        "prompt_index": completion.prompt_index,
        "sample_index": completion.sample_index,
        "text": rollout.text,
        "finish_reason": completion.finish_reason,
        "reward": rollout.reward,
        "reward_breakdown": dict(rollout.reward_breakdown),
        "failure": rollout.failure,
        "failure_message": rollout.failure_message,
        **({name: getattr(completion, name) for name in DRAFTS} if completion.drafts else {}),
    }


def _arrays(rollout: Rollout) -> dict[str, np.ndarray]:
    completion = rollout.completion
    return {
        "prompt_tokens": rollout.prompt_tokens,
        "tokens": completion.tokens,
        "logprobs": completion.logprobs,
        **({} if completion.experts is None else {"experts": completion.experts}),
    }


def _rollout(values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Rollout:
    completion = Completion(
        prompt_index=values["prompt_index"],
        sample_index=values["sample_index"],
        tokens=arrays["tokens"],
        logprobs=arrays["logprobs"],
        finish_reason=values["finish_reason"],
        experts=arrays.get("experts"),
        **{name: values[name] for name in DRAFTS if name in values},
    )
    return Rollout(
        example_id=values["example_id"],
        prompt_tokens=arrays["prompt_tokens"],
        completion=completion,
        text=values["text"],
        reward=values["reward"],
        reward_breakdown=values["reward_breakdown"],
        failure=values["failure"],
        failure_message=values.get("failure_message"),
    )
