"""Log-probabilities of given tokens or texts under a model.

    python -m r1jax.score --model MODEL --input FILE.jsonl --output FILE.jsonl

MODEL is a workdir or checkpoint of r1jax, a Hugging Face directory or a .gguf file. Each line of
the input has {"tokens": [id, ...]}, which needs no tokenizer, or {"text": "..."}, which gets the
tokenizer's own ids (with its first token where it adds one). The output has a line for each, in
the same order: {"tokens", "logprobs"} with logprobs[i] = log p(tokens[i+1] | tokens[..i]), computed
in float32; so there is one fewer than tokens. It appears when all of it is there.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath

from r1jax.cli import run_command
from r1jax.config import ConfigError, DataError
from r1jax.data.packing import pack, sequence_group
from r1jax.data.tokenizer import Tokenizer
from r1jax.files import numbered_jsonl, write_jsonl_atomic
from r1jax.losses.logprobs import token_logprobs
from r1jax.machines.hosts import set_up_jax
from r1jax.machines.mesh import check_divisible, replicated
from r1jax.models.kernels import choose_kernel
from r1jax.progress import Progress
from r1jax.training.train_state import microbatch, on_mesh
from r1jax.types import Batch
from r1jax.weights.load import OpenModel, open_model

PACKED_AT_ONCE = 1024  # sequences; packing looks at all pairs of sequences and rows
ROUND = 128  # pack_length is the longest sequence rounded up to a multiple of this


def read_sequences(path: epath.PathLike, opened: OpenModel) -> list[list[int]]:
    """The tokens of each line; DataError with file and line for what cannot be scored."""
    config = opened.config
    sequences = []
    for number, row in numbered_jsonl(path):
        try:
            tokens = _tokens(row, lambda: opened.tokenizer, config.vocab_size)
        except DataError as error:
            raise DataError(f"{path}:{number}: {error}") from None
        if len(tokens) > config.max_length:
            raise DataError(
                f"{path}:{number}: {len(tokens)} tokens, more than the model's max_length"
                f" {config.max_length}"
            )
        sequences.append(tokens)
    return sequences


def _tokens(
    row: Mapping[str, Any], get_tokenizer: Callable[[], Tokenizer], vocab_size: int
) -> list[int]:
    if isinstance(row.get("text"), str) and "tokens" not in row:
        tokenizer = get_tokenizer()
        tokens = tokenizer.beginning(row["text"])
    elif isinstance(row.get("tokens"), list):
        tokens = row["tokens"]
    else:
        raise DataError(
            "a row needs the key tokens (a list of ids) or text (a string); it has"
            f" {', '.join(row) or 'no keys'}"
        )
    if not tokens:
        raise DataError("there are no tokens to score")
    wrong = [t for t in tokens if type(t) is not int or not 0 <= t < vocab_size]
    if wrong:
        raise DataError(
            f"token {wrong[0]!r} is not an id of the model; they are 0 to {vocab_size - 1}"
        )
    return tokens


def score(
    model: str,
    input_file: epath.PathLike,
    output: epath.PathLike,
    batch_rows: int = 0,
    pack_length: int = 0,
) -> None:
    """Reads the sequences, scores them, writes `output`. Raises DataError, ConfigError."""
    opened = open_model(model, {"dtype": "float32"})
    sequences = read_sequences(input_file, opened)
    longest = max(map(len, sequences))
    length = pack_length or -(-longest // ROUND) * ROUND
    if length < longest:
        raise ConfigError(f"--pack_length {length} is less than the longest sequence's {longest}")
    mesh = opened.mesh(rows=batch_rows)
    rows = batch_rows or mesh.size
    check_divisible((rows,), ("batch",), mesh, "--batch_rows")
    logprobs_of = _program(opened, mesh)
    params = opened.load(mesh, 0)
    results: list[dict[str, Any]] = []
    with Progress("scoring", len(sequences), 0, {}) as progress:
        for start in range(0, len(sequences), PACKED_AT_ONCE):
            chosen = sequences[start : start + PACKED_AT_ONCE]
            batch = pack([sequence_group(s, [1.0] * len(s)) for s in chosen], length, rows)
            logprobs_MBL = np.concatenate(
                [logprobs_of(params, part) for part in _parts(batch, mesh)]
            )
            values = sequence_logprobs(logprobs_MBL, batch)
            results += [_row(*pair) for pair in zip(chosen, values, strict=True)]
            progress.update(len(results), {})
    if jax.process_index() == 0:
        write_jsonl_atomic(output, results)


def _parts(batch: Batch, mesh: jax.sharding.Mesh) -> Iterator[Batch]:
    """The batch's microbatches, [1, B, L] each, on the devices: all of one shape."""
    # Without what depends on the number of sequences.
    whole = dataclasses.replace(batch, lengths=None, num_targets=None, microbatches=None)
    for i in range(batch.microbatches):
        part = jax.tree.map(lambda x, i=i: x[i : i + 1], whole)
        yield on_mesh(part, mesh)


def _program(opened: OpenModel, mesh: jax.sharding.Mesh) -> Callable[[Any, Batch], np.ndarray]:
    """(params, [1, B, L] batch) -> float32 [1, B, L], compiled once for a whole file."""
    model = opened.transformer(mesh, choose_kernel(opened.config, opened.compute, mesh))

    def logprobs(params: Any, batch: Batch) -> jax.Array:
        with jax.default_matmul_precision("highest"):  # accelerators round float32 otherwise
            return token_logprobs(model, params, microbatch(batch, 0))[0][None]

    program = jax.jit(logprobs, out_shardings=replicated(mesh))
    return lambda params, batch: np.asarray(program(params, batch))


def sequence_logprobs(logprobs_MBL: np.ndarray, batch: Batch) -> Iterator[np.ndarray]:
    """The packed sequences' log-probabilities in the order in which they were given.

    A sequence lies in one row in one piece, and its completion id is its number from 1; its first
    token follows nothing.
    """
    ids = np.asarray(batch.completion_ids).reshape(-1)
    order = np.argsort(ids, kind="stable")
    counts = np.bincount(ids)
    pieces = np.split(logprobs_MBL.reshape(-1)[order], np.cumsum(counts)[:-1])
    return (piece[1:] for piece in pieces[1:])


def _row(tokens: Sequence[int], logprobs: np.ndarray) -> dict[str, Any]:
    """float32 numbers in the shortest text that gives them back."""
    return {"tokens": list(tokens), "logprobs": [float(str(x)) for x in logprobs]}


def define_flags() -> None:
    flags.DEFINE_string("model", None, "Model to score with.", required=True)
    flags.DEFINE_string("input", None, "JSONL file of tokens or texts.", required=True)
    flags.DEFINE_string("output", None, "JSONL file to write.", required=True)
    rows = "Packed rows computed at once; 0 = one a device."
    flags.DEFINE_integer("batch_rows", 0, rows, lower_bound=0)
    length = "Tokens of a packed row; 0 = those of the longest sequence."
    flags.DEFINE_integer("pack_length", 0, length, lower_bound=0)


def main() -> None:
    f = flags.FLAGS
    set_up_jax()
    score(f.model, f.input, f.output, f.batch_rows, f.pack_length)
    print(f"wrote {f.output}")


if __name__ == "__main__":
    define_flags()
    run_command(main)
