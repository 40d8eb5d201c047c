"""What every training stage stands on: what is trained, and the run that trains it.

A Trainable is a model with its optimizer, a TrainingRun what a stage opens first: the Trainable,
the workdir, metrics, progress bar.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
from absl import logging
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from r1jax.data.tokenizer import Tokenizer
from r1jax.files import CRITIC, MODEL_JSON, TOKENIZER, UNFINISHED, absolute
from r1jax.machines.compiler import VARIABLE
from r1jax.machines.preemption import Stopped, stop_if_asked
from r1jax.models.grouped import choose_grouped
from r1jax.models.kernels import choose_kernel
from r1jax.progress import Progress
from r1jax.training.balancing import RouterConfig, check_router
from r1jax.training.frozen import FrozenConfig, check_memory, fetched, kept, kept_shapes
from r1jax.training.metrics import MetricsWriter, ProfileConfig, Profiler, Timer, process_use
from r1jax.training.optimizers import OptimizerConfig, make_optimizer, make_schedule
from r1jax.training.provenance import note_start
from r1jax.training.run_config import check_config
from r1jax.training.skipped import Watch
from r1jax.training.train_state import LossFn, abstract_state, make_step, new_state, state_shardings
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
        beside: Callable[[int], Sequence[epath.Path]] = lambda step: (),
    ) -> None:
        """Checkpoints lie in `directory`, those that belong to that of a step `beside`.
        `shared_prompts`: rows hold completions behind one copy of their prompt.
        """
        self._opened, self._mesh = opened, mesh
        self.kernel = choose_kernel(opened.config, opened.compute, mesh, shared_prompts)
        self.model = opened.transformer(mesh, self.kernel)
        self._schedule = make_schedule(optimizer, total_steps)
        self._optimizer = make_optimizer(optimizer, self._schedule)
        self._shardings = state_shardings(self.model, self._optimizer)
        self._checkpoints = Checkpoints(directory, beside=beside)
        # Of the frozen reference policy, where there is one, what an update could have moved, as
        # its config has it kept.
        self.ref_params: Any = None
        self._reference = FrozenConfig()

    @property
    def params(self) -> Any:
        return self.state.params

    @property
    def reference(self) -> Any:
        """The parameters of the reference policy, on the devices; what no update moves is shared
        with `params`.
        """
        return joined(self.params, fetched(self.ref_params, self._reference, self._mesh))

    def latest_step(self) -> int | None:
        """Of the newest checkpoint."""
        return self._checkpoints.latest_step()

    @property
    def saves(self) -> Checkpoints:
        """A context at whose end all that was saved is complete."""
        return self._checkpoints

    def begin(self, seed: int, reference: FrozenConfig | None = None) -> None:
        """From the model's own parameters, which are the reference's too where there is one."""
        params = self._opened.load(self._mesh, seed)
        if reference is not None:
            self._reference = reference
            self.ref_params = kept(moved_part(params), reference)
        self.state = new_state(params, self._optimizer, self._shardings)

    def imagine(self, reference: FrozenConfig | None = None) -> None:
        """In shapes alone, for who asks what a program would need."""
        self.state = abstract_state(self.model, self._optimizer, self._shardings)
        if reference is not None:
            self.ref_params = kept_shapes(moved_part(self.state.params), reference)

    def resume(self, step: int) -> None:
        """From the checkpoint of that step."""
        saved, _ = self._checkpoints.restore(step, self._abstract())
        self._take(saved)

    def resume_newest(
        self, reference: FrozenConfig | None = None
    ) -> tuple[int, dict[str, Any]] | None:
        """From the newest checkpoint that is not damaged -> its step, and what was saved beside the
        state; None where there is none. Those that are damaged are set aside.
        """
        found = self._checkpoints.restore_newest(self._abstract(reference))
        if found is None:
            return None
        step, saved, beside = found
        self._take(saved, reference)
        return step, beside

    def _abstract(self, reference: FrozenConfig | None = None) -> dict[str, Any]:
        self.imagine(reference)
        return _saved(self.state, self.ref_params)

    def _take(self, saved: dict[str, Any], reference: FrozenConfig | None = None) -> None:
        if reference is not None:
            self._reference = reference
            self.ref_params = kept(saved.pop("ref_params"), reference)
        self.state = TrainState(**saved)

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
        self.ref_params = kept(moved_part(self.params), self._reference)

    def save(
        self,
        step: int,
        extra: Mapping[str, Any] | None = None,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Begins a checkpoint of everything that the next step needs, and of `extra`, a JSON dict;
        `then` is called when it is complete.
        """
        ref_params = self.ref_params
        if ref_params is not None:
            ref_params = fetched(ref_params, self._reference, self._mesh)
        self._checkpoints.save(step, _saved(self.state, ref_params), extra, then)


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
    restored: Mapping[str, Any]  # what was saved beside the state that it begins with
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

    def save(
        self,
        step: int,
        extra: Mapping[str, Any] | None = None,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Begins a checkpoint, the time that it takes from the run counted; every update before it
        was looked at. `extra` is what the run finds as `restored`. `then` is called when it is
        complete: what deletes what a run that goes on from an earlier one would need.
        """
        self._watch.settle()
        with self.timer("checkpoint"):
            self.trained.save(step, {"lines": self.writer.sync()} | dict(extra or {}), then)

    def is_saved(self, step: int) -> bool:
        """Whether all updates up to this one are in a checkpoint, or there are none."""
        return step == (self.trained.latest_step() or 0)

    def stop_if_asked(self, step: int) -> None:
        """Raises Stopped where a signal asks for it, when this update is in a checkpoint."""
        try:
            stop_if_asked()
        except Stopped:
            if not self.is_saved(step):
                self.save(step)
            raise


def _unit(config: StageConfig) -> int:
    """Updates that belong together, by which a run may be prolonged; 0 where that would have given
    other learning rates from the first update on.
    """
    critic = getattr(config, "critic", None)
    optimizers = [config.optimizer, *([critic.optimizer] if critic else [])]
    constant = all(optimizer.schedule == "constant" for optimizer in optimizers)
    return getattr(config, "updates_per_rollout", 1) if constant else 0


def _beside(config: StageConfig, path: epath.Path, step: int) -> list[epath.Path]:
    """Where a checkpoint of this step has parts of its own."""
    within = step % getattr(config, "updates_per_rollout", 1) and step < config.total_steps
    critic = getattr(config, "critic", None)
    return [*([path / CRITIC] if critic else []), *([path / UNFINISHED] if within else [])]


@contextmanager
def open_run(
    config: StageConfig,
    config_dict: ConfigDict,
    workdir: str,
    shown: Mapping[str, str],
    reference: FrozenConfig | None = None,
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
    if reference is not None:
        check_memory(reference, mesh, "reference")
    trained = Trainable(
        source,
        config.optimizer,
        config.total_steps,
        mesh,
        path,
        shared_prompts,
        functools.partial(_beside, config, path),
    )
    if mesh.devices.flat[0].platform != "cpu":  # that a CPU takes plain XLA is no news
        logging.info("attention over packed rows: %s", trained.kernel)
        if source.config.experts is not None:
            logging.info("products with experts: %s", choose_grouped(mesh))
    if mesh.devices.flat[0].platform == "tpu":
        logging.info("options of the TPU's compiler: %s", os.environ.get(VARIABLE, ""))
    check_config(path, config_dict, _unit(config))
    note_start(path, config)
    found = trained.resume_newest(reference)
    if jax.process_index() == 0:  # what is there is not touched later: a kill could tear it
        if found is None or not (path / MODEL_JSON).exists():
            write_model_json(path, source.fields)
        if found is None or not (path / TOKENIZER).exists():
            source.tokenizer.save(str(path / TOKENIZER))
    if found is None:
        trained.begin(config.seed, reference)
    latest, beside_state = found or (0, {})
    about = {"wandb_project": config.wandb_project, "config": config_dict.to_dict()}
    about |= {"lines": beside_state.get("lines")}
    with (
        MetricsWriter(path, -1 if found is None else latest, **about) as writer,
        Progress(path.name, config.total_steps, latest, shown) as progress,
        trained.saves,
        closing(Profiler(config.profile, path)) as profiler,
    ):
        watch = Watch(path, config.optimizer.max_skipped, trained.latest_step)
        yield TrainingRun(
            path,
            mesh,
            source.tokenizer,
            trained,
            latest,
            beside_state,
            writer,
            progress,
            profiler,
            watch,
        )
