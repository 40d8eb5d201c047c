"""What every training stage stands on: what is trained, and the run that trains it.

A Trainable is a model with its optimizer, a TrainingRun what a stage opens first: the Trainable,
the workdir, metrics, progress bar.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from absl import logging
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from r1jax.data.tokenizer import Tokenizer
from r1jax.files import CRITIC, MODEL_JSON, TOKENIZER, absolute
from r1jax.models.grouped import choose_grouped
from r1jax.models.kernels import choose_kernel
from r1jax.progress import Progress
from r1jax.training.balancing import RouterConfig, check_router
from r1jax.training.metrics import MetricsWriter, ProfileConfig, Profiler, Timer, process_use
from r1jax.training.provenance import note_start
from r1jax.training.run_config import check_config
from r1jax.training.skipped import Watch
from r1jax.training.train_state import (
    LossFn,
    OptimizerConfig,
    abstract_state,
    make_optimizer,
    make_schedule,
    make_step,
    new_state,
    state_shardings,
)
from r1jax.training.trained import joined, moved_part
from r1jax.types import Batch, TrainState
from r1jax.weights.checkpoint import Checkpoints, write_model_json
from r1jax.weights.load import ModelSource, OpenModel, open_source


def is_due(every: int, step: int, updates: int = 1) -> bool:
    """Whether a multiple of `every` lies among the last `updates` updates."""
    return bool(every) and step // every > (step - updates) // every


class StageConfig(Protocol):
    """What the stages' configs have in common."""

    @property
    def model(self) -> ModelSource: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...
    @property
    def total_steps(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def mesh(self) -> dict[str, int]: ...
    @property
    def microbatch_rows(self) -> int: ...
    @property
    def wandb_project(self) -> str | None: ...
    @property
    def profile(self) -> ProfileConfig: ...


class Trainable:
    """A model with its optimizer: what a step updates, and what a checkpoint holds.

    `begin` or `resume` it before anything else. The state is here and nowhere else, since a step
    donates it.
    """

    state: TrainState

    def __init__(
        self,
        opened: OpenModel,
        optimizer: OptimizerConfig,
        total_steps: int,
        mesh: Mesh,
        directory: epath.Path,
        shared_prompts: bool = False,
        beside: Sequence[epath.Path] = (),
    ) -> None:
        """Checkpoints lie in `directory`, those that belong to them `beside`. `shared_prompts`:
        rows hold completions behind one copy of their prompt.
        """
        self._opened, self._mesh = opened, mesh
        self.kernel = choose_kernel(opened.config, opened.compute, mesh, shared_prompts)
        self.model = opened.transformer(mesh, self.kernel)
        self._schedule = make_schedule(optimizer, total_steps)
        self._optimizer = make_optimizer(optimizer, self._schedule)
        self._shardings = state_shardings(self.model, self._optimizer)
        self._checkpoints = Checkpoints(directory, beside=beside)
        # Of the frozen reference policy, where there is one, what an update could have moved.
        self.ref_params: Any = None

    @property
    def params(self) -> Any:
        return self.state.params

    @property
    def reference(self) -> Any:
        """The parameters of the reference policy; what no update moves is shared with `params`."""
        return joined(self.params, self.ref_params)

    def latest_step(self) -> int | None:
        """Of the newest checkpoint."""
        return self._checkpoints.latest_step()

    def sound_step(self) -> int | None:
        """Of the newest checkpoint that is not damaged; those that are, are set aside."""
        return self._checkpoints.sound_step()

    def begin(self, seed: int, reference: bool = False) -> None:
        """From the model's own parameters, which with `reference` are its."""
        params = self._opened.load(self._mesh, seed)
        if reference:
            self.ref_params = _copy(moved_part(params))
        self.state = new_state(params, self._optimizer, self._shardings)

    def imagine(self, reference: bool = False) -> None:
        """In shapes alone, for who asks what a program would need."""
        self.state = abstract_state(self.model, self._optimizer, self._shardings)
        self.ref_params = moved_part(self.state.params) if reference else None

    def resume(self, step: int, reference: bool = False) -> dict[str, Any]:
        """From the checkpoint of that step -> what was saved beside the state."""
        abstract = abstract_state(self.model, self._optimizer, self._shardings)
        tree = _saved(abstract, moved_part(abstract.params) if reference else None)
        saved, beside = self._checkpoints.restore(step, tree)
        self.ref_params = saved.pop("ref_params", None)
        self.state = TrainState(**saved)
        return beside

    def make_step(self, loss_fn: LossFn, router: RouterConfig | None = None) -> jax.stages.Wrapped:
        """The jitted step of this loss, for `update`."""
        if router is not None:
            check_router(router, self.model.config)
        balanced = None if router is None else (self.model.config, router)
        return make_step(loss_fn, self._optimizer, self._schedule, self._shardings, balanced)

    def update(self, step: Any, batch: Batch, *frozen: Any) -> Mapping[str, Any]:
        """One step on the state -> metrics, on the device."""
        self.state, metrics = step(self.state, batch, *frozen)
        found: Mapping[str, Any] = metrics
        return found

    def renew_reference(self) -> None:
        """The reference policy becomes the current one."""
        self.ref_params = _copy(moved_part(self.params))

    def save(self, step: int, beside: Mapping[str, Any] | None = None) -> None:
        """A checkpoint of everything that the next step needs, and a JSON dict beside it."""
        self._checkpoints.save(step, _saved(self.state, self.ref_params), beside)


@jax.jit
def _copy(params: Any) -> Any:
    return jax.tree.map(jnp.copy, params)


def _saved(state: Any, ref_params: Any) -> dict[str, Any]:
    """The checkpoint's tree: `params` at its top, so that a workdir is a model."""
    tree = {"params": state.params, "opt_state": state.opt_state, "step": state.step}
    return tree if ref_params is None else tree | {"ref_params": ref_params}


@dataclass(frozen=True)
class TrainingRun:
    """An open run: what is trained, where, and what is written down of it."""

    workdir: epath.Path
    mesh: Mesh
    tokenizer: Tokenizer
    trained: Trainable
    start: int  # updates done before this process
    writer: MetricsWriter
    progress: Progress
    profiler: Profiler
    _watch: Watch
    timer: Timer = field(default_factory=Timer)
    _clocks: dict[str, float] = field(default_factory=dict)

    def note(self, readings: Mapping[str, float]) -> None:
        """Readings of clocks for the next line of timings, beside the timer's."""
        self._clocks.update(readings)

    def log(self, step: int, stage: str, metrics: Mapping[str, Any]) -> None:
        """One line of metrics, under `stage/`, with the timings since the last."""
        named = {f"{stage}/{name}": value for name, value in metrics.items()}
        clocks = self.timer.pop() | self._clocks
        self._clocks.clear()
        timings = {f"{stage}/{name}": value for name, value in clocks.items()}
        self.writer.write(step, named, timings | process_use())
        self.progress.update(step, named | timings)

    def watch(self, step: int, metrics: Mapping[str, Any], batch: Batch) -> None:
        """Looks whether the update before this one was skipped, so that no device is waited for."""
        self._watch.put(step, metrics, batch)

    def save(self, step: int) -> None:
        """A checkpoint, its time counted; every update before it was looked at."""
        self._watch.settle()
        with self.timer("checkpoint"):
            self.trained.save(step, {"lines": self.writer.sync()})


def _unit(config: StageConfig) -> int:
    """Updates that belong together, by which a run may be prolonged; 0 where that would have given
    other learning rates from the first update on.
    """
    critic = getattr(config, "critic", None)
    optimizers = [config.optimizer, *([critic.optimizer] if critic else [])]
    constant = all(optimizer.schedule == "constant" for optimizer in optimizers)
    return getattr(config, "updates_per_rollout", 1) if constant else 0


@contextmanager
def open_run(
    config: StageConfig,
    config_dict: ConfigDict,
    workdir: str,
    shown: Mapping[str, str],
    reference: bool = False,
    shared_prompts: bool = False,
) -> Iterator[TrainingRun]:
    """Starts a run, or resumes it from the newest checkpoint of the workdir.

    With `reference`, the initial parameters stay as the reference policy: a copy of all that an
    update can move, which with adapters is little.
    `shared_prompts`: the stage packs completions behind one copy of their prompt.
    """
    path = absolute(workdir)
    source = open_source(config.model, path)
    mesh = source.mesh(config.mesh, config.microbatch_rows)
    beside = [path / CRITIC] if getattr(config, "critic", None) else []
    trained = Trainable(
        source, config.optimizer, config.total_steps, mesh, path, shared_prompts, beside
    )
    if mesh.devices.flat[0].platform != "cpu":  # that a CPU takes plain XLA is no news
        logging.info("attention over packed rows: %s", trained.kernel)
        if source.config.experts is not None:
            logging.info("products with experts: %s", choose_grouped(mesh))
    check_config(path, config_dict, _unit(config))
    note_start(path, config)
    latest = trained.sound_step()
    if jax.process_index() == 0:  # what is there is not touched later: a kill could tear it
        if latest is None or not (path / MODEL_JSON).exists():
            write_model_json(path, source.fields)
        if latest is None or not (path / TOKENIZER).exists():
            source.tokenizer.save(str(path / TOKENIZER))
    if latest is None:
        trained.begin(config.seed, reference)
        about = {}
    else:
        about = {"lines": trained.resume(latest, reference).get("lines")}
    after = -1 if latest is None else latest
    about |= {"wandb_project": config.wandb_project, "config": config_dict.to_dict()}
    with (
        MetricsWriter(path, after, **about) as writer,
        Progress(path.name, config.total_steps, latest or 0, shown) as progress,
    ):
        profiler = Profiler(config.profile, path)
        watch = Watch(path, config.optimizer.max_skipped, trained.latest_step)
        yield TrainingRun(
            path, mesh, source.tokenizer, trained, latest or 0, writer, progress, profiler, watch
        )
        profiler.close()
