"""Supervised next-token training: pretraining the mini base, cold start, distillation on traces.

A step takes `batch_size` rows of an endless stream that is a pure function of (seed, index), packs
them into as many microbatches as they need, and updates once on all of them. So the state of the
data is the step itself, and a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from r1jax.config import (
    ConfigError,
    Count,
    DataError,
    NotNegative,
    Positive,
    Seed,
    Share,
    Size,
    section,
)
from r1jax.data.chat import (
    Template,
    control_token_in,
    learnt_messages,
    render,
    rendered_document,
    template_variables,
    texts_in,
)
from r1jax.data.datasets import (
    DataConfig,
    FileRow,
    HeldOutConfig,
    Row,
    check_keys,
    errors_at,
    place_of,
    read_row,
    rows_of,
    stream,
)
from r1jax.data.fingerprint import keep_rows
from r1jax.data.packing import Group, pack, padding_share, rounded_up, sequence_group
from r1jax.data.tokenizer import Tokenizer
from r1jax.files import absolute
from r1jax.losses.aggregation import Metrics, token_mean
from r1jax.losses.logprobs import teacher_kl, token_loss
from r1jax.losses.supervised import ahead_loss, token_nll
from r1jax.machines.mesh import check_split
from r1jax.machines.planned import Assumed, Iteration
from r1jax.models.kernels import choose_kernel
from r1jax.models.transformer import Transformer
from r1jax.reports.write import write_report
from r1jax.training.balancing import RouterConfig
from r1jax.training.metrics import ProfileConfig
from r1jax.training.optimizers import OptimizerConfig
from r1jax.training.planned import imagined, supervised, updates_of
from r1jax.training.run import TrainingRun, is_due, open_run
from r1jax.training.train_state import microbatch, on_mesh
from r1jax.types import Batch
from r1jax.weights.load import ModelSource, open_known, open_shapes, open_source

SHOWN = {"sft/loss": "loss", "eval/held_out/nll": "held out"}
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
    template: Template = "chat"  # for rows with messages: a key of data.chat.TEMPLATES
    overlong: Literal["error", "truncate", "drop"] = "error"  # rows longer than pack_length
    # Control tokens written out in a `text` (<|im_start|>user ...): those tokens, or plain text.
    control_tokens: bool = False
    teacher: TeacherConfig | None = None
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=5e-5, schedule="cosine")
    )
    router: RouterConfig = field(default_factory=RouterConfig)
    # lambda: weight of multi-token prediction, for a model that has it. DeepSeek-V3: 0.3, then 0.1;
    # at 0 no gradient reaches that block, but weight decay does.
    mtp_coef: NotNegative = 0.0
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    seed: Seed = 0  # of the order of rows, of a fresh model
    # Devices along "data", "fsdp", "context", "expert" and "tensor"; one may be -1: what is left.
    mesh: dict[str, int] = field(default_factory=lambda: {"fsdp": -1})
    checkpoint_every: Count = 200  # updates
    log_every: Size = 1  # updates between two lines of metrics.jsonl
    logits_chunk: Count = 0  # of a row, tokens whose logits exist at once; 0 = by platform
    wandb_project: str | None = None  # Weights & Biases, beside metrics.jsonl and TensorBoard
    profile: ProfileConfig = field(default_factory=ProfileConfig)


CONFIG = SftConfig


def describe(config: SftConfig) -> str:
    """What the config asks for, in numbers."""
    many = f"{config.total_steps} updates" if config.total_steps else f"{config.epochs:g} epochs"
    return f"{many}, {config.batch_size} rows an update"


def planned(config: SftConfig, mesh: Mesh, assumed: Assumed, memory: float) -> Iteration:
    """An update, in shapes alone (see r1jax.stages)."""
    if config.teacher is not None:
        raise ConfigError("config.teacher: distillation on logits is not planned")
    check_split(config.microbatch_rows, [config.pack_length], mesh)
    steps = updates_of(config.total_steps, config.epochs, config.batch_size, assumed)
    trained = imagined(open_shapes(config.model), config.optimizer, steps, mesh)
    loss_fn = make_loss(trained.model, config.logits_chunk, mtp_coef=config.mtp_coef)
    update, note = supervised(
        trained,
        trained.make_step(loss_fn, config.router),
        assumed,
        config,
        config.batch_size,
        config.logits_chunk,
    )
    return Iteration([update], steps, [note])


def run(config_dict: ConfigDict, workdir: str) -> None:
    """Trains to total_steps, from the newest checkpoint of the workdir if it has one."""
    config = section(SftConfig, config_dict)
    rows = checked_rows(config.data)
    config = dataclasses.replace(config, total_steps=steps_of(config, rows))
    opened = open_known(config.model)
    asked = held_out_of(config)
    if opened is not None:  # what is wrong is said before the model is loaded
        check_rows(config, rows, opened.tokenizer, opened.config.max_length)
        if asked is not None:
            check_held_out(*asked, opened.tokenizer)
    with open_run(config, config_dict, workdir, SHOWN) as stage:
        if opened is None:
            check_rows(config, rows, stage.tokenizer, stage.trained.model.config.max_length)
            if asked is not None:
                check_held_out(*asked, stage.tokenizer)
        keep_rows(stage.workdir, {"config.data": rows}, {"config.data"} if stage.start else ())
        check_split(config.microbatch_rows, [config.pack_length], stage.mesh)
        teacher, frozen = open_teacher(config, stage)
        trained = stage.trained
        loss_fn = make_loss(
            trained.model, config.logits_chunk, config.teacher, teacher, config.mtp_coef
        )
        step_fn = trained.make_step(loss_fn, config.router)
        held_out = HeldOut(asked, stage)
        if stage.start == 0:
            held_out.measure(0)
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
            if is_due(config.held_out.every, step) or step == config.total_steps:
                held_out.measure(step)
            if is_due(config.checkpoint_every, step) or step == config.total_steps:
                stage.save(step)
            stage.stop_if_asked(step)
    if jax.process_index() == 0:
        for path in write_report([workdir], workdir):
            print(f"wrote {path}")
        print(f"model and metrics are in {absolute(workdir)}")


def held_out_of(config: SftConfig) -> tuple[SftConfig, Sequence[Row]] | None:
    """The config with the held-out data as its data, and those rows; None where there are none."""
    if config.held_out.data is None:
        return None
    config = dataclasses.replace(config, data=config.held_out.data)
    rows = checked_rows(config.data, "config.held_out.data")
    if callable(rows):
        raise ConfigError(f"config.held_out.data.limit must be set: {config.data.function}")
    return config, rows


def check_held_out(config: SftConfig, rows: Sequence[Row], tokenizer: Tokenizer) -> None:
    check_rows(config, rows, tokenizer, config.pack_length, "config.held_out.data")


class HeldOut:
    """The loss on rows that are not trained on, where the config names any."""

    def __init__(self, asked: tuple[SftConfig, Sequence[Row]] | None, stage: TrainingRun) -> None:
        """`asked` is what held_out_of gives."""
        self._stage = stage
        self._batch: Batch | None = None
        if asked is None:
            return
        config, rows = asked
        fitted = (_fitted(row, i, stage.tokenizer, config)[0] for i, row in enumerate(rows))
        groups = [group for group in fitted if group is not None]
        packed = pack(groups, config.pack_length, config.microbatch_rows)
        self._batch = on_mesh(packed, stage.mesh)
        loss_fn = make_loss(stage.trained.model, config.logits_chunk)

        def nll(params: Any, batch: Batch) -> jax.Array:
            def add(index: Any, total: jax.Array) -> jax.Array:
                return total + loss_fn(params, microbatch(batch, index))[0]

            return jax.lax.fori_loop(0, batch.microbatches, add, jnp.float32(0))

        self._nll = jax.jit(nll)

    def measure(self, step: int) -> None:
        """Nats per target token, as a metric of that step."""
        if self._batch is None:
            return
        with self._stage.timer("evaluation"):
            nll = jax.device_get(self._nll(self._stage.trained.params, self._batch))
        self._stage.log(step, "eval", {"held_out/nll": nll})


def make_loss(
    model: Transformer,
    chunk: int,
    config: TeacherConfig | None = None,
    teacher: Transformer | None = None,
    mtp_coef: float = 0.0,
) -> Callable[..., tuple[jax.Array, Metrics]]:
    """loss_fn(params, microbatch[, the teacher's params]) for make_step."""

    ahead = ahead_loss(mtp_coef, model.config)

    def loss_fn(params: Any, batch: Batch, *frozen: Any) -> tuple[jax.Array, Metrics]:
        nll, metrics = token_loss(model, params, batch, token_nll, chunk=chunk, ahead=ahead)
        if config is None or teacher is None:
            return nll, metrics | {"loss": nll}
        kl_BL = teacher_kl(model, params, teacher, frozen[0], batch, config.temperature, chunk)
        kl = jnp.sum(token_mean(batch, 0) * kl_BL)
        loss = config.weight * kl + (1.0 - config.weight) * nll
        return loss, metrics | {"loss": loss, "nll": nll, "teacher_kl": kl}

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
    kernel = choose_kernel(opened.config, opened.compute, stage.mesh)
    teacher = opened.transformer(stage.mesh, kernel)
    return teacher, (opened.load(stage.mesh, config.seed),)


def tokenize(
    row: Row,
    tokenizer: Tokenizer,
    template: str,
    metadata: Collection[str] = (),
    control_tokens: bool = False,
) -> tuple[Sequence[int], Sequence[float]]:
    """A row -> (tokens, loss_mask): text counts whole, of a chat only the assistant's turns.

    DataError for a row that says something that nobody reads; `metadata` are keys that nobody is
    to read.
    """
    text, messages = row.get("text"), row.get("messages")
    if text is not None and messages is not None:
        raise DataError("an SFT row has text or messages, and this one both; leave one out")
    if text is None and messages is None:
        raise DataError(_needs(row))
    if messages is None:
        check_keys(row, ("text", "messages"), metadata)
        if not isinstance(text, str):
            raise DataError(f"text is {type(text).__name__}, not a string")
        tokens = rendered_document(text, tokenizer) if control_tokens else tokenizer.document(text)
        return tokens, [float(bool(text.strip()))] * len(tokens)
    variables = _variables(row, tokenizer) if template == "chat" else {}
    check_keys(row, {"text", "messages", "chat_template_kwargs", *variables}, metadata)
    tokens, mask = render(learnt_messages(messages, template), tokenizer, template, variables)
    return tokens, [float(value) for value in mask]


def _variables(row: Row, tokenizer: Tokenizer) -> dict[str, Any]:
    """What a row says to the chat template beside its messages: tools, and what it names itself."""
    known: Collection[str] = template_variables(tokenizer)
    more = row.get("chat_template_kwargs") or {}
    if not isinstance(more, Mapping):
        raise DataError(f"chat_template_kwargs is {type(more).__name__}, not an object")
    for name in more:
        if name not in known:
            raise DataError(f"chat_template_kwargs: the chat template reads no variable {name!r}")
    found = {name: row[name] for name in row if name in known and row[name] is not None}
    found |= more
    for name in found.keys() & {"tools", "documents"}:
        if not isinstance(found[name], list | tuple) or isinstance(found[name], str):
            raise DataError(f"{name} is {type(found[name]).__name__}, not a list of objects")
    return found


def _batches(config: SftConfig, stage: TrainingRun, rows: Rows, start: int) -> Iterator[Batch]:
    """The packed batch of step start + 1, start + 2, ..."""
    row = stream(rows, config.seed)
    for step in range(start, config.total_steps):
        indices = range(step * config.batch_size, (step + 1) * config.batch_size)
        fitted = [_fitted(row(i), i, stage.tokenizer, config) for i in indices]
        groups = [group for group, _ in fitted if group is not None]
        if not groups:
            fates = _said(Counter(fate for _, fate in fitted))
            raise DataError(f"nothing is learnt in update {step + 1}: of its rows, {fates}")
        batch = pack(groups, config.pack_length, config.microbatch_rows)
        yield rounded_up(batch, config.batch_size)


def steps_of(config: SftConfig, rows: Rows) -> int:
    """The updates that the config asks for, by number or by epochs."""
    if config.total_steps:
        return config.total_steps
    if callable(rows):
        raise ConfigError(f"config.total_steps must be set: {config.data.function} has no end")
    return math.ceil(config.epochs * len(rows) / config.batch_size)


def checked_rows(config: DataConfig, key: str = "config.data") -> Rows:
    """The rows of the source; of those that have an end, each has something to learn."""
    rows = rows_of(config, key)
    for index, row in enumerate([] if callable(rows) else rows):
        if not isinstance(row, Mapping):
            raise DataError(f"{_place(row, index, config)}: {_needs(row)}")
        with errors_at(_place(row, index, config)):
            read_row(row, "sft", config)
    return rows


def check_rows(
    config: SftConfig,
    rows: Rows,
    tokenizer: Tokenizer,
    max_length: int,
    key: str = "config.data",
) -> None:
    """Looks at every row of a source with an end, before the first update.

    DataError with its place for a row that cannot be learnt; what is cut or left out is counted.
    """
    if config.pack_length > max_length:
        raise ConfigError(
            f"config.pack_length {config.pack_length} is more than the model's max_length"
            f" {max_length}; set config.pack_length to it, or config.model.override.max_length"
        )
    if callable(rows):
        return
    fates = Counter(_fitted(row, index, tokenizer, config)[1] for index, row in enumerate(rows))
    for fate, count in fates.items():
        if fate != WHOLE:
            logging.warning("%s: %d of %d rows %s", key, count, len(rows), fate)
    if not config.control_tokens:
        _warn_of_control_tokens(config, rows, tokenizer)
    if not fates[WHOLE] + fates[CUT]:
        raise DataError(f"{key}: no row is learnt from; of {len(rows)}, {_said(fates)}")


def _warn_of_control_tokens(config: SftConfig, rows: Sequence[Row], tokenizer: Tokenizer) -> None:
    """Says that rows hold what looks like control tokens and is learnt as plain text."""
    found = [
        (isinstance(row.get("text"), str), token, _place(row, i, config.data))
        for i, row in enumerate(rows)
        if (token := control_token_in(" ".join(texts_in(dict(row))), tokenizer))
    ]
    for are_texts, kind, advice in (
        (True, "texts", "config.control_tokens = True makes them the tokens that they name"),
        (False, "conversations", "leave them out, since the template writes them itself"),
    ):
        these = [(token, place) for is_text, token, place in found if is_text == are_texts]
        if these:
            logging.warning(
                "config.data: %d of %d %s hold control tokens (%s in %s), which are learnt as plain"
                " text; %s", len(these), len(rows), kind, *these[0], advice,
            )  # fmt: skip


def _said(fates: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {fate}" for fate, count in fates.items())


def _place(row: Row, index: int, data: DataConfig) -> str:
    return place_of(row, index, str(data.path or data.function))


def _needs(row: Any) -> str:
    has = ", ".join(row) if isinstance(row, Mapping) else f"no keys, it is {type(row).__name__}"
    return f"an SFT row needs the key messages or text; it has {has}"


WHOLE, CUT = "are learnt as they are", "are cut at config.pack_length"
LONG, EMPTY = "are longer than config.pack_length and dropped", "have nothing to learn that fits"


def _fitted(
    row: Row, index: int, tokenizer: Tokenizer, config: SftConfig
) -> tuple[Group | None, str]:
    """(the row as one group to pack, None where it is left out; what became of it)."""
    where = _place(row, index, config.data)
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: {_needs(row)}")
    with errors_at(where):
        row = read_row(row, "sft", config.data)
        a_program = not isinstance(row, FileRow) and row.get("text") is not None
        # A program may say of its documents what they are.
        metadata = row if a_program else ()
        tokens, mask = tokenize(row, tokenizer, config.template, metadata, config.control_tokens)
    size, limit = len(tokens), config.pack_length
    if size > limit and config.overlong == "error":
        raise ConfigError(
            f"{where}: a row has {size} tokens, more than config.pack_length {limit}; raise it, or"
            " set config.overlong to truncate or drop"
        )
    if size > limit and config.overlong == "drop":
        return None, LONG
    if not any(mask[1:limit]):  # the first token follows nothing
        return None, EMPTY
    return sequence_group(tokens[:limit], mask[:limit]), CUT if size > limit else WHOLE


def _pack_metrics(batch: Batch) -> dict[str, float]:
    return {
        "data/tokens": int((batch.segment_ids > 0).sum()),
        "data/targets": int(batch.num_targets),
        "data/padding_share": padding_share(batch),
    }
