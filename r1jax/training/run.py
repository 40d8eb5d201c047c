"""What every training stage opens first: model, state, checkpoints, metrics, progress bar."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from r1jax.data.tokenizer import Tokenizer
from r1jax.files import TOKENIZER, absolute
from r1jax.machines.mesh import make_mesh
from r1jax.models.kernels import choose_kernel
from r1jax.models.transformer import Transformer
from r1jax.progress import Progress
from r1jax.training.metrics import MetricsWriter, ProfileConfig, Profiler, Timer, process_use
from r1jax.training.run_config import check_config
from r1jax.training.train_state import (
    OptimizerConfig,
    abstract_state,
    make_optimizer,
    make_schedule,
    new_state,
    state_shardings,
)
from r1jax.types import TrainState
from r1jax.weights.checkpoint import Checkpoints, write_model_json
from r1jax.weights.load import ModelSource, open_source


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
    def wandb_project(self) -> str | None: ...
    @property
    def profile(self) -> ProfileConfig: ...


@dataclass
class TrainingRun:
    """An open run; each step replaces `state`."""

    workdir: Any
    mesh: Mesh
    model: Transformer
    tokenizer: Tokenizer
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    state: TrainState
    state_shardings: TrainState
    start: int  # updates done before this process
    checkpoints: Checkpoints
    writer: MetricsWriter
    progress: Progress
    profiler: Profiler
    timer: Timer
    clocks: dict[str, float]  # further readings for the next line of timings
    ref_params: Any = None  # the frozen reference policy, where a stage has one

    def log(self, step: int, stage: str, metrics: Mapping[str, Any]) -> None:
        """One line of metrics, under `stage/`, with the timings since the last."""
        named = {f"{stage}/{name}": value for name, value in metrics.items()}
        clocks = self.timer.pop() | self.clocks
        self.clocks = {}
        timings = {f"{stage}/{name}": value for name, value in clocks.items()}
        self.writer.write(step, named, timings | process_use())
        self.progress.update(step, named | timings)

    def save(self, step: int) -> None:
        """A checkpoint of everything that the next step needs."""
        with self.timer("checkpoint"):
            self.checkpoints.save(step, _saved(self.state, self.ref_params))


def _saved(state: Any, ref_params: Any) -> dict[str, Any]:
    """The checkpoint's tree: `params` at its top, so that a workdir is a model."""
    tree = {"params": state.params, "opt_state": state.opt_state, "step": state.step}
    return tree if ref_params is None else tree | {"ref_params": ref_params}


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

    With `reference`, a copy of the initial parameters is kept as `ref_params`. `shared_prompts`:
    the stage packs completions behind one copy of their prompt.
    """
    path = absolute(workdir)
    mesh = make_mesh(config.mesh)
    source = open_source(config.model, path)
    kernel = choose_kernel(source.compute, mesh, shared_prompts)
    if mesh.devices.flat[0].platform != "cpu":  # that a CPU takes plain XLA is no news
        logging.info("attention over packed rows: %s", kernel)
    check_config(path, config_dict)
    model = source.transformer(mesh, kernel)
    schedule = make_schedule(config.optimizer, config.total_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    shardings = state_shardings(model, optimizer)
    checkpoints = Checkpoints(path)
    latest = checkpoints.latest_step()
    if latest is None:  # later these files are not touched: a kill could tear them
        if jax.process_index() == 0:
            write_model_json(path, source.fields)
            source.tokenizer.save(str(path / TOKENIZER))
        params = source.load(mesh, config.seed)
        ref_params = jax.tree.map(jnp.copy, params) if reference else None
        state = new_state(params, optimizer, shardings)
        del params
    else:
        abstract = abstract_state(model, optimizer, shardings)
        tree = _saved(abstract, abstract.params if reference else None)
        saved, _ = checkpoints.restore(latest, tree)
        ref_params = saved.pop("ref_params", None)
        state = TrainState(**saved)
        del saved
    with (
        MetricsWriter(
            path,
            -1 if latest is None else latest,
            wandb_project=config.wandb_project,
            config=config_dict.to_dict(),
        ) as writer,
        Progress(path.name, config.total_steps, latest or 0, shown) as progress,
    ):
        run = TrainingRun(
            workdir=path,
            mesh=mesh,
            model=model,
            tokenizer=source.tokenizer,
            optimizer=optimizer,
            schedule=schedule,
            state=state,
            state_shardings=shardings,
            start=latest or 0,
            checkpoints=checkpoints,
            writer=writer,
            progress=progress,
            profiler=Profiler(config.profile, path),
            timer=Timer(),
            clocks={},
            ref_params=ref_params,
        )
        del state, ref_params  # the run owns them: what a step donates must not live on here
        yield run
        run.profiler.close()
