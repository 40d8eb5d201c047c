"""Reward models: the helpful one from pairs, the safety one from labels (R1 eq 5 and 6).

A scalar head on any model of ours reads a conversation that ends with a response; its value at the
last token is the reward. The paper does not print the losses: here Bradley-Terry for pairs
(`kind="pairwise"`) and binary cross-entropy for labels (`kind="pointwise"`). The helpful model
reads the final summary only, the safety model the whole response, thoughts and all (`reads`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from r1jax.benchmarks.estimators import mean_and_standard_error
from r1jax.config import ConfigError, Count, DataError, Positive, Seed, Size, section
from r1jax.data.chat import Template
from r1jax.data.datasets import (
    DataConfig,
    FileRow,
    HeldOutConfig,
    Row,
    check_keys,
    errors_at,
    messages_of,
    place_of,
    read_row,
    rows_of,
    stream,
)
from r1jax.data.fingerprint import keep_rows
from r1jax.data.formats import UnpairedError, is_transcript
from r1jax.data.packing import Group, Piece, padding_share
from r1jax.data.tokenizer import Tokenizer
from r1jax.judges.reward_model import Labelled, Scorer, pack_labelled, size_of, to_group
from r1jax.losses.aggregation import Metrics
from r1jax.losses.logprobs import token_scalars
from r1jax.losses.scalar import pairwise_loss, pointwise_loss
from r1jax.machines.mesh import check_split
from r1jax.machines.planned import Assumed, Iteration
from r1jax.models.transformer import Transformer
from r1jax.training.metrics import ProfileConfig
from r1jax.training.optimizers import OptimizerConfig
from r1jax.training.planned import imagined, supervised, updates_of
from r1jax.training.run import TrainingRun, is_due, open_run
from r1jax.training.train_state import on_mesh
from r1jax.types import Batch
from r1jax.weights.load import ModelSource, open_known, open_shapes

LOSSES = {"pairwise": pairwise_loss, "pointwise": pointwise_loss}


@dataclass(frozen=True)
class RewardModelConfig:
    """The paper: batch 256, learning rate 6e-6, one epoch, length 8,192, for both."""

    stage: str  # "reward_model"
    model: ModelSource
    # Rows {"messages" | "prompt", "chosen", "rejected"}; pointwise also {..., "response", "label"},
    # and there a chosen response has label 1 (safe) and a rejected one 0.
    data: DataConfig
    kind: Literal["pairwise", "pointwise"] = "pairwise"  # Bradley-Terry, or safe or not
    reads: Literal["summary", "response"] = "summary"  # what stands behind the thoughts, or all
    epochs: Positive = 1.0  # of finite data
    total_steps: Count = 0  # updates; 0 = as many as `epochs` of the rows have
    batch_size: Size = 256  # rows of an update
    pack_length: Size = 8192  # tokens of a packed row; a pair (or a response) must fit
    microbatch_rows: Size = 8  # packed rows in memory at once
    template: Template = "chat"  # a key of data.chat.TEMPLATES
    overlong: Literal["error", "drop"] = "error"  # rows that don't fit
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=6e-6))
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    seed: Seed = 0  # of the order of rows, of the head
    # Devices along "data", "fsdp", "context", "expert" and "tensor"; one may be -1: what is left.
    mesh: dict[str, int] = field(default_factory=lambda: {"fsdp": -1})
    checkpoint_every: Count = 100  # updates
    wandb_project: str | None = None  # Weights & Biases, beside metrics.jsonl and TensorBoard
    profile: ProfileConfig = field(default_factory=ProfileConfig)


CONFIG = RewardModelConfig


def describe(config: RewardModelConfig) -> str:
    """What the config asks for, in numbers."""
    many = f"{config.total_steps} updates" if config.total_steps else f"{config.epochs:g} epochs"
    return f"{many}, {config.batch_size} rows an update"


def planned(config: RewardModelConfig, mesh: Mesh, assumed: Assumed, memory: float) -> Iteration:
    """An update, in shapes alone (see r1jax.stages)."""
    check_split(config.microbatch_rows, [config.pack_length], mesh)
    steps = updates_of(config.total_steps, config.epochs, config.batch_size, assumed)
    opened = open_shapes(with_scalar_head(config.model))
    trained = imagined(opened, config.optimizer, steps, mesh, shared_prompts=True)
    update, note = supervised(
        trained,
        trained.make_step(make_loss(trained.model, config.kind)),
        assumed,
        config,
        config.batch_size * (2 if config.kind == "pairwise" else 1),
        more=("labels",),
    )
    return Iteration([update], steps, [note])


def run(config_dict: ConfigDict, workdir: str) -> None:
    """Trains, from the newest checkpoint of the workdir if it has one."""
    config = section(RewardModelConfig, config_dict)
    rows = checked_rows(config.data, config.kind, "config.data")
    held_out = config.held_out.data
    held_out_rows = checked_rows(held_out, config.kind, "config.held_out.data") if held_out else []
    config = dataclasses.replace(
        config,
        total_steps=config.total_steps or math.ceil(config.epochs * len(rows) / config.batch_size),
        model=with_scalar_head(config.model),
    )
    shown = {
        "reward_model/loss": "loss",
        "reward_model/accuracy": "accuracy",
        "eval/reward_model/accuracy": "held-out pairs",
        "eval/reward_model/label_accuracy": "held-out labels",
    }

    def fitting(tokenizer: Tokenizer, limit: int) -> tuple[list[Labelled], list[Labelled]]:
        key = "config.held_out.data"
        return (
            _fitting(rows, tokenizer, config, "config.data", limit),
            _fitting(held_out_rows, tokenizer, config, key, limit),
        )

    opened, found = open_known(config.model), None
    if opened is not None:  # what is wrong is said before the model is loaded
        found = fitting(opened.tokenizer, opened.config.max_length)
    with open_run(config, config_dict, workdir, shown, shared_prompts=True) as stage:
        check_split(config.microbatch_rows, [config.pack_length], stage.mesh)
        sources = {"config.data": rows, "config.held_out.data": held_out_rows}
        keep_rows(stage.workdir, sources, sources if stage.start else ())
        trained = stage.trained
        limit = trained.model.config.max_length
        groups, held_out_groups = found or fitting(stage.tokenizer, limit)
        measure = Scorer(trained.model, stage.mesh, config.microbatch_rows)
        step_fn = trained.make_step(make_loss(trained.model, config.kind))
        if stage.start == 0:
            _measure(config, stage, measure, held_out_groups, 0)
        for step in range(stage.start + 1, config.total_steps + 1):
            stage.profiler.step(step)
            with stage.timer("data"):
                batch = _batch(config, groups, step)
                packing = {"data/padding_share": padding_share(batch)}
                batch = on_mesh(batch, stage.mesh)
            with stage.timer("update"):
                metrics = jax.device_get(trained.update(step_fn, batch))
            stage.log(step, "reward_model", metrics | packing)
            stage.watch(step, metrics, batch)
            every, last = config.held_out.every, step == config.total_steps
            if last or (every and step % every == 0):
                _measure(config, stage, measure, held_out_groups, step)
            if last or is_due(config.checkpoint_every, step):
                stage.save(step)
            stage.stop_if_asked(step)
    print(f"model and metrics are in {stage.workdir}")


def with_scalar_head(source: ModelSource) -> ModelSource:
    return dataclasses.replace(source, override=source.override | {"scalar_head": True})


def make_loss(model: Transformer, kind: str) -> Callable[[Any, Batch], tuple[jax.Array, Metrics]]:
    """loss_fn(params, microbatch) for make_step."""

    def loss_fn(params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
        return LOSSES[kind](token_scalars(model, params, batch), batch)

    return loss_fn


# -- rows ------------------------------------------------------------------------------------------


def checked_rows(config: DataConfig, kind: str, key: str) -> Sequence[Row]:
    """The rows of a finite source, each looked at."""
    rows = rows_of(config, key)
    if callable(rows):
        raise ConfigError(f"{key}.limit must be set: {config.function} has no end")
    if not rows:
        raise ConfigError(f"{key} has no rows")
    found, unpaired = [], 0
    for index, row in enumerate(rows):
        with errors_at(place_of(row, index, str(config.path or config.function))):
            try:
                found.append(_checked_row(row, kind, config))
            except UnpairedError:
                unpaired += 1
    if unpaired:
        logging.warning(
            "%s: %d of %d rows are left out: their two sides are the same, or answer different"
            " messages", key, unpaired, len(rows),
        )  # fmt: skip
    if not found:
        raise DataError(f"{key}: no row is a pair of different answers to the same messages")
    return found


def _checked_row(row: Row, kind: str, config: DataConfig) -> Row:
    """In our form: {"messages", "chosen", "rejected"}, or {..., "response", "label"}."""
    if not isinstance(row, Mapping):
        raise DataError(f"the row is {type(row).__name__}, expected an object")
    single = kind == "pointwise" and "response" in row
    needed = ("response", "label") if single else ("chosen", "rejected")
    missing = [name for name in needed if row.get(name) is None]
    alone = single or (isinstance(row.get("chosen"), str) and not is_transcript(row))
    if alone and not any(row.get(name) for name in ("messages", "prompt", "conversations")):
        missing.insert(0, "messages (or prompt)")
    if missing:
        raise DataError(f"a {kind} row needs the key {missing[0]}; it has {', '.join(row)}")
    if not single:
        row = read_row(row, "pairs", config)
    elif row["label"] not in (0, 1):
        raise DataError(f"label {row['label']!r} is neither 0 (unsafe) nor 1 (safe)")
    if isinstance(row, FileRow):
        check_keys(row, ("messages", "prompt", *needed), config.metadata)
    messages_of(row)  # says what is wrong with them
    for name in needed[:1] if single else needed:
        if not isinstance(row[name], str):
            raise DataError(f"{name} is {type(row[name]).__name__}, not a string")
    return row


def _fitting(
    rows: Sequence[Row], tokenizer: Tokenizer, config: RewardModelConfig, key: str, longest: int
) -> list[Labelled]:
    """The rows in tokens; those that don't fit are an error or dropped, and so are those with a
    conversation of more than `longest` tokens.
    """
    found, same = [], 0
    for number, row in enumerate(rows, start=1):
        if config.kind == "pointwise" and "response" in row:
            responses, labels = [row["response"]], [float(row["label"])]
        else:
            responses, labels = [row["chosen"], row["rejected"]], [1.0, 0.0]
        where = place_of(row, number - 1, key)
        with errors_at(where):
            group = to_group(messages_of(row), responses, tokenizer, config.template, config.reads)
        reason = _too_long(group, config.pack_length, longest)
        if len(responses) == 2 and _read_the_same(*group.pieces):
            same += 1
        elif not reason:
            found.append(Labelled(group, tuple(labels)))
        elif config.overlong == "error":
            raise ConfigError(f"{where} has {reason}; raise it, or set config.overlong to drop")
    if same:
        logging.warning(
            "%s: %d of %d rows are left out: their two sides read the same (config.reads = %r)",
            key, same, len(rows), config.reads,
        )  # fmt: skip
    if rows and not found:
        raise ConfigError(
            f"{key}: no row fits in config.pack_length {config.pack_length} and has two sides that"
            " differ"
        )
    if lost := len(rows) - same - len(found):
        logging.warning("%s: %d of %d rows are too long and dropped", key, lost, len(rows))
    return found


def _read_the_same(first: Piece, second: Piece) -> bool:
    return np.array_equal(first.tokens, second.tokens)


def _too_long(group: Group, pack_length: int, longest: int) -> str:
    """Why a row does not fit, "" where it does."""
    if size_of(group) > pack_length:
        return f"{size_of(group)} tokens, more than config.pack_length {pack_length}"
    length = len(group.prefix) + max(len(piece.tokens) for piece in group.pieces)
    return (
        f"{length} tokens, more than the model's max_length {longest}" if length > longest else ""
    )


def _batch(config: RewardModelConfig, rows: Sequence[Labelled], step: int) -> Batch:
    """The packed batch of an update: a pure function of (seed, step)."""
    row = stream(rows, config.seed)
    chosen = [row(i) for i in range((step - 1) * config.batch_size, step * config.batch_size)]
    return pack_labelled(chosen, config.pack_length, config.microbatch_rows)


def held_out_metrics(scores: np.ndarray, rows: Sequence[Labelled], kind: str) -> dict[str, float]:
    """Accuracy with its standard error over rows: of labels for a pointwise model, of pairs (a tie
    is half right) where the rows are pairs."""
    metrics: dict[str, float] = {"rows": len(rows)}
    if kind == "pointwise":
        labels = np.array([label for row in rows for label in row.labels])
        right = np.split((scores > 0) == (labels > 0.5), np.cumsum([len(r.labels) for r in rows]))
        metrics |= _accuracy("label_accuracy", np.array([r.mean() for r in right[:-1]]))
    if all(len(row.labels) == 2 for row in rows):
        margins = scores[0::2] - scores[1::2]
        metrics |= _accuracy("accuracy", (margins > 0) + 0.5 * (margins == 0))
        metrics["margin"] = float(margins.mean())
    return metrics


def _accuracy(name: str, right: np.ndarray) -> dict[str, float]:
    mean, error = mean_and_standard_error(right.astype(float).tolist())
    return {name: mean, f"{name}_se": error}


def _measure(
    config: RewardModelConfig,
    stage: TrainingRun,
    scorer: Scorer,
    rows: Sequence[Labelled],
    step: int,
) -> None:
    """Held-out accuracy, as metrics of that step."""
    if not rows:
        return
    with stage.timer("evaluation"):
        scores = scorer(stage.trained.params, [row.group for row in rows])
    metrics = held_out_metrics(scores, rows, config.kind)
    stage.log(step, "eval", {f"reward_model/{name}": value for name, value in metrics.items()})
