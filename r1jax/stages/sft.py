"""Supervised next-token training: pretraining the mini base, cold start, distillation on traces.

A step takes `batch_size` rows of an endless stream that is a pure function of (seed, index), packs
them into as many microbatches as they need, and updates once on all of them. So the state of the
data is the step itself, and a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from r1jax.config import ConfigError, Count, DataError, Positive, Share, Size, section
from r1jax.data.chat import render
from r1jax.data.datasets import DataConfig, Row, rows_of, stream
from r1jax.data.packing import Group, pack, padding_share, rounded_up, sequence_group
from r1jax.data.tokenizer import Tokenizer
from r1jax.losses.aggregation import Metrics, token_mean
from r1jax.losses.logprobs import teacher_kl, token_loss
from r1jax.losses.supervised import nll_loss
from r1jax.machines.mesh import check_divisible
from r1jax.models.kernels import choose_kernel
from r1jax.models.transformer import Transformer
from r1jax.training.metrics import ProfileConfig
from r1jax.training.run import TrainingRun, is_due, open_run
from r1jax.training.train_state import OptimizerConfig, on_mesh
from r1jax.types import Batch
from r1jax.weights.load import ModelSource, open_source

Rows = Sequence[Row] | Callable[[int], Row]


@dataclass(frozen=True)
class TeacherConfig:
    """Distillation on a teacher's logits (`distill`), beside or instead of the text (`sft`)."""

    model: ModelSource  # with the student's tokenizer
    weight: Share = 1.0  # of KL(teacher || student); the negative log-likelihood has the rest
    temperature: Positive = 1.0  # of both


@dataclass(frozen=True)
class SftConfig:
    """The paper: batch 128, length 32,768, cosine 5e-5 -> 5e-6, 2 to 3 epochs."""

    stage: str  # "sft"
    model: ModelSource
    data: DataConfig
    epochs: Positive = 2.0  # of finite data
    total_steps: Count = 0  # updates; 0 = as many as `epochs` of the rows have
    batch_size: Size = 128  # sequences of an update
    pack_length: Size = 32_768  # tokens of a packed row
    microbatch_rows: Size = 8  # packed rows in memory at once
    template: str = "chat"  # for rows with messages: a key of data.chat.TEMPLATES
    overlong: Literal["error", "truncate", "drop"] = "error"  # rows longer than pack_length
    teacher: TeacherConfig | None = None
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=5e-5, schedule="cosine")
    )
    seed: int = 0  # of the order of rows, of a fresh model
    # Devices along "data", "fsdp" and "tensor"; one may be -1: what is left.
    mesh: dict[str, int] = field(default_factory=lambda: {"fsdp": -1})
    checkpoint_every: Count = 200  # updates
    log_every: Size = 1  # updates between two lines of metrics.jsonl
    logits_chunk: Size = 128  # positions whose logits exist at once
    wandb_project: str | None = None  # Weights & Biases, beside metrics.jsonl and TensorBoard
    profile: ProfileConfig = field(default_factory=ProfileConfig)


CONFIG = SftConfig


def describe(config: SftConfig) -> str:
    """What the config asks for, in numbers."""
    many = f"{config.total_steps} updates" if config.total_steps else f"{config.epochs:g} epochs"
    return f"{many}, {config.batch_size} rows an update"


def run(config_dict: ConfigDict, workdir: str) -> None:
    """Trains to total_steps, from the newest checkpoint of the workdir if it has one."""
    config = section(SftConfig, config_dict)
    rows = checked_rows(config.data)
    config = dataclasses.replace(config, total_steps=steps_of(config, rows))
    with open_run(config, config_dict, workdir, shown={"sft/loss": "loss"}) as stage:
        check_divisible((config.microbatch_rows,), ("batch",), stage.mesh, "microbatch_rows")
        teacher, frozen = open_teacher(config, stage)
        trained = stage.trained
        step_fn = trained.make_step(
            make_loss(trained.model, config.logits_chunk, config.teacher, teacher)
        )
        data = _batches(config, stage, rows, start=stage.start)
        for step in range(stage.start + 1, config.total_steps + 1):
            stage.profiler.step(step)
            with stage.timer("data"):
                batch = next(data)
                packed = _pack_metrics(batch)
                batch = on_mesh(batch, stage.mesh)
            with stage.timer("update"):
                metrics = trained.update(step_fn, batch, *frozen)
            stage.watch(step, metrics, batch)
            if step % config.log_every == 0 or step == config.total_steps:
                with stage.timer("update"):  # the device is waited for here
                    metrics = jax.device_get(metrics)
                stage.log(step, "sft", metrics | packed)
            if is_due(config.checkpoint_every, step) or step == config.total_steps:
                stage.save(step)


def make_loss(
    model: Transformer,
    chunk: int,
    config: TeacherConfig | None = None,
    teacher: Transformer | None = None,
) -> Callable[..., tuple[jax.Array, Metrics]]:
    """loss_fn(params, microbatch[, the teacher's params]) for make_step."""

    def of_tokens(logprobs_BL: jax.Array, _: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        return nll_loss(logprobs_BL, batch)

    def loss_fn(params: Any, batch: Batch, *frozen: Any) -> tuple[jax.Array, Metrics]:
        nll, metrics = token_loss(model, params, batch, of_tokens, chunk=chunk)
        if config is None or teacher is None:
            return nll, metrics
        kl_BL = teacher_kl(model, params, teacher, frozen[0], batch, config.temperature, chunk)
        kl = jnp.sum(token_mean(batch, 0) * kl_BL)
        loss = config.weight * kl + (1.0 - config.weight) * nll
        return loss, {"loss": loss, "nll": nll, "teacher_kl": kl}

    return loss_fn


def open_teacher(
    config: SftConfig, stage: TrainingRun
) -> tuple[Transformer | None, tuple[Any, ...]]:
    """(the teacher, its parameters as step_fn takes them); (None, ()) without one."""
    if config.teacher is None:
        return None, ()
    opened = open_source(config.teacher.model, stage.workdir / "teacher")
    size, wanted = opened.config.vocab_size, stage.trained.model.config.vocab_size
    if size != wanted:
        raise ConfigError(
            f"config.teacher.model has a vocabulary of {size} tokens, the student one of {wanted}:"
            " logits are distilled between models with the same tokenizer"
        )
    teacher = opened.transformer(stage.mesh, choose_kernel(opened.compute, stage.mesh))
    return teacher, (opened.load(stage.mesh, config.seed),)


def tokenize(
    row: Row, tokenizer: Tokenizer, template: str
) -> tuple[Sequence[int], Sequence[float]]:
    """A row -> (tokens, loss_mask): text counts whole, of a chat only the assistant's turns."""
    if "text" in row:
        tokens = tokenizer.document(row["text"])
        return tokens, [1.0] * len(tokens)
    if "messages" in row:
        tokens, mask = render(row["messages"], tokenizer, template)
        return tokens, [float(value) for value in mask]
    raise DataError(_needs(row))


def _batches(config: SftConfig, stage: TrainingRun, rows: Rows, start: int) -> Iterator[Batch]:
    """The packed batch of step start + 1, start + 2, ..."""
    row = stream(rows, config.seed)
    for step in range(start, config.total_steps):
        indices = range(step * config.batch_size, (step + 1) * config.batch_size)
        groups = [group for i in indices for group in _groups(row(i), stage.tokenizer, config)]
        if not groups:
            raise DataError(
                f"every row of update {step + 1} is longer than config.pack_length"
                f" {config.pack_length} and dropped"
            )
        batch = pack(groups, config.pack_length, config.microbatch_rows)
        yield rounded_up(batch, config.batch_size)


def steps_of(config: SftConfig, rows: Rows) -> int:
    """The updates that the config asks for, by number or by epochs."""
    if config.total_steps:
        return config.total_steps
    if callable(rows):
        raise ConfigError(f"config.total_steps must be set: {config.data.function} has no end")
    return math.ceil(config.epochs * len(rows) / config.batch_size)


def checked_rows(config: DataConfig) -> Rows:
    """The rows of the source; those of a file are all looked at before the first update."""
    rows = rows_of(config, "config.data")
    for number, row in enumerate([] if callable(rows) else rows, start=1):
        if not row.keys() & {"text", "messages"}:
            source = config.path or config.function
            raise DataError(f"{source}, row {number}: {_needs(row)}")
    return rows


def _needs(row: Row) -> str:
    return f"an SFT row needs the key messages or text; it has {', '.join(row)}"


def _groups(row: Row, tokenizer: Tokenizer, config: SftConfig) -> list[Group]:
    """The row as one group to pack, or none where it is dropped."""
    tokens, mask = tokenize(row, tokenizer, config.template)
    if len(tokens) > config.pack_length:
        if config.overlong == "error":
            raise ConfigError(
                f"a row has {len(tokens)} tokens, more than config.pack_length"
                f" {config.pack_length}; raise it, or set config.overlong to truncate or drop"
            )
        if config.overlong == "drop":
            return []
    return [sequence_group(tokens[: config.pack_length], mask[: config.pack_length])]


def _pack_metrics(batch: Batch) -> dict[str, float]:
    return {
        "data/tokens": int((batch.segment_ids > 0).sum()),
        "data/targets": int(batch.num_targets),
        "data/padding_share": padding_share(batch),
    }
