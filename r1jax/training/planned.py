"""What a training stage would open and run, in shapes alone: for `python -m r1jax.plan`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from r1jax.config import ConfigError
from r1jax.losses.logprobs import HEAD_CHUNKS, chunk_columns
from r1jax.machines.planned import Assumed, Planned, bytes_of, with_shardings
from r1jax.models.config import ModelConfig
from r1jax.models.kernels import kernel_flops, packed_kernels, seen_share
from r1jax.models.params import model_flops
from r1jax.training.frozen import FrozenConfig
from r1jax.training.optimizers import OptimizerConfig
from r1jax.training.run import Trainable
from r1jax.training.train_state import MICROBATCHES, batch_shardings
from r1jax.types import Batch
from r1jax.weights.load import OpenModel

PER_COMPLETION = ("advantages", "labels", "lengths")


def imagined(
    opened: OpenModel,
    optimizer: OptimizerConfig,
    total_steps: int,
    mesh: Mesh,
    shared_prompts: bool = False,
    reference: FrozenConfig | None = None,
) -> Trainable:
    """A Trainable whose state is shapes."""
    nowhere = epath.Path("/nonexistent")
    trained = Trainable(opened, optimizer, total_steps, mesh, nowhere, shared_prompts)
    trained.imagine(reference)
    return trained


def state_bytes(trained: Trainable) -> dict[str, float]:
    """On a device, of all that stays between two programs, by kind."""
    held = {
        "parameters": bytes_of(trained.params),
        "moments": bytes_of(trained.state.opt_state),
    }
    if trained.ref_params is not None:
        held["reference"] = bytes_of(trained.ref_params)
    return held


def abstract_batch(
    shape: tuple[int, int, int], completions: int, mesh: Mesh, *more: str, model: ModelConfig
) -> Batch:
    """M x B rows of L tokens with so many completions; `more` are the stage's own float fields.

    A field "experts" is there for models that have some.
    """
    whole = jax.ShapeDtypeStruct(shape, jnp.int32)
    numbers = jax.ShapeDtypeStruct(shape, jnp.float32)
    per_completion = jax.ShapeDtypeStruct((completions + 1,), jnp.float32)
    fields: dict[str, Any] = {
        name: per_completion if name in PER_COMPLETION else numbers
        for name in ("loss_mask", "lengths", *more)
        if name != "experts"
    }
    if "experts" in more and model.experts is not None:
        sparse = model.num_layers - len(model.experts.dense_layers)
        taken = (*shape, sparse, model.experts.top_k)
        fields["experts"] = jax.ShapeDtypeStruct(taken, jnp.int16)
    batch = Batch(
        tokens=whole,
        positions=whole,
        segment_ids=whole,
        completion_ids=whole,
        num_targets=jax.ShapeDtypeStruct((), jnp.float32),
        microbatches=jax.ShapeDtypeStruct((), jnp.int32),
        **fields,
    )
    found: Batch = with_shardings(batch, batch_shardings(batch, mesh))
    return found


def kernels_of(trained: Trainable, *, backward: bool) -> tuple[str, ...]:
    """Names of the kernels that a program of the trained model must show."""
    model = trained.model
    assert model.mesh is not None, "a plan is made for a mesh"
    return packed_kernels(model.config, model.mesh, trained.kernel, backward=backward)


class Packed(Protocol):
    """What configs of supervised stages say of their rows."""

    @property
    def pack_length(self) -> int: ...
    @property
    def microbatch_rows(self) -> int: ...


def supervised(
    trained: Trainable,
    step: jax.stages.Wrapped,
    assumed: Assumed,
    config: Packed,
    completions: int,
    logits_chunk: int | None = None,
    more: Sequence[str] = (),
) -> tuple[Planned, str]:
    """An update on so many texts, packed; and what was assumed.

    `logits_chunk` is the config's where the loss is of words; `more` are fields of its batches.
    """
    pack_length, microbatch_rows = config.pack_length, config.microbatch_rows
    mesh, model = trained.model.mesh, trained.model.config
    assert mesh is not None, "a plan is made for a mesh"
    mean = min(assumed.completion or pack_length // 4, pack_length)
    tokens = completions * mean
    used = -(-tokens // (pack_length // mean * mean))
    microbatches = -(-used // microbatch_rows)
    shape = 1 << (microbatches - 1).bit_length(), microbatch_rows, pack_length
    batch = abstract_batch(shape, completions, mesh, *more, model=model)
    loops = {MICROBATCHES: float(microbatches)}
    if logits_chunk is not None:
        columns = chunk_columns(logits_chunk, microbatch_rows, pack_length, mesh)
        loops[HEAD_CHUNKS] = -(-tokens // (microbatches * microbatch_rows * columns))
    held = state_bytes(trained) | {"batch": bytes_of(batch)}
    program = Planned(
        "update",
        lambda: step.lower(trained.state, batch),
        1,
        held,
        loops=loops,
        kernels=kernels_of(trained, backward=True),
        model_flops=model_flops(model, tokens, mean, 3),
        formulas=kernel_flops(mesh, seen_share([mean], pack_length)),
    )
    return program, (
        f"an update has {tokens:,} tokens in {completions:,} texts of {mean:,}, in {used:,} rows"
        f" of {pack_length:,}: {microbatches} microbatches of {microbatch_rows}"
    )


def updates_of(total_steps: int, epochs: float, batch_size: int, assumed: Assumed) -> int:
    """What the config says, or what so many rows of data come to."""
    if not (total_steps or assumed.rows):
        raise ConfigError("the config counts epochs: --rows says how many rows its data have")
    return total_steps or math.ceil(epochs * assumed.rows / batch_size)
