"""What a run writes down: metrics, timings, samples, the progress bar and the profiler window.

A run that is killed and resumed must end with the same bytes in metrics.jsonl and samples.jsonl as
one that was not. So nothing that depends on the clock, on memory or on how often the process was
started may go there (it goes to timings.jsonl), nothing may be averaged over several steps in the
process' memory, and a stage writes a step's metrics BEFORE it saves that step's checkpoint: on
resume the lines after the checkpoint are dropped and written again.
"""

import json
import logging
import os
import resource
import secrets
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Self

import jax
from etils import epath

from r1jax.config import ConfigError, Count, DataError
from r1jax.files import (
    METRICS,
    PROFILE,
    SAMPLES,
    TENSORBOARD,
    TIMINGS,
    WANDB_ID,
    absolute,
    in_bucket,
    names_below,
    plain_number,
    write_atomic,
)
from r1jax.journal import Journal, count_lines, cut, drop_after

# ---- the writer ----


class MetricsWriter:
    """Writes metrics.jsonl, timings.jsonl and samples.jsonl, TensorBoard and, if asked, W&B.

    Only process 0 of several writes.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        step: int,
        *,
        wandb_project: str | None = None,
        config: Mapping[str, Any] | None = None,
        lines: Mapping[str, int] | None = None,
    ) -> None:
        """`step` is that of the restored checkpoint, -1 for none: what came later is dropped.

        Raises DataError where a file has fewer than the `lines` that the checkpoint knows of.
        """
        self.workdir = absolute(workdir)
        self._wandb: Any = None
        self._active = jax.process_index() == 0
        if not self._active:
            return
        for name in (METRICS, TIMINGS, SAMPLES):
            drop_after(self.workdir / name, step)
        for name, count in (lines or {}).items():
            if (found := count_lines(self.workdir / name)) < count:
                raise DataError(
                    f"{self.workdir / name} has {found} lines up to step {step}, but had {count}"
                    " when its checkpoint was saved; put them back, or delete that checkpoint to go"
                    " on from the one before"
                )
            if found > count:  # of that step, but behind the checkpoint
                cut(self.workdir / name, count)
        self._journals = {n: Journal(self.workdir / n) for n in (METRICS, TIMINGS, SAMPLES)}
        self._tensorboard = _TensorBoard(self.workdir / TENSORBOARD, step)
        if wandb_project:
            self._wandb, self._wandb_table = _wandb(wandb_project, self.workdir, config)

    def write(
        self,
        step: int,
        metrics: Mapping[str, Any],
        timings: Mapping[str, Any] | None = None,
    ) -> None:
        """Scalars by name; `metrics` deterministic ones only, clock readings in `timings`."""
        values = {name: plain_number(x) for name, x in jax.device_get(dict(metrics)).items()}
        clocks = {name: plain_number(x) for name, x in (timings or {}).items()}
        if self._active:
            self._journals[METRICS].write([{"step": step, **values}])
            self._journals[TIMINGS].write([{"step": step, **clocks}])
            self._mirror(step, {**values, **clocks})

    def sync(self) -> dict[str, int]:
        """What was written survives -> the lines of each file, which a checkpoint keeps."""
        if not self._active:
            return {}
        lines = {name: journal.sync() for name, journal in self._journals.items()}
        self._tensorboard.bring()
        return {name: lines[name] for name in (METRICS, SAMPLES)}

    def samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends completions with their rewards to samples.jsonl."""
        if not self._active:
            return
        rows = [{"step": step, **row} for row in rows]
        self._journals[SAMPLES].write(rows)
        if self._wandb is not None and rows:
            table = self._wandb_table(list(rows[0]), [list(map(_cell, x.values())) for x in rows])
            self._wandb.log({"samples": table}, step=step)

    def _mirror(self, step: int, values: Mapping[str, int | float | None]) -> None:
        finite = {name: x for name, x in values.items() if x is not None}
        for name, value in finite.items():
            self._tensorboard.writer.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(finite, step=step)

    def close(self) -> None:
        if not self._active:
            return
        with ExitStack() as ends:  # each, whatever another says
            for journal in self._journals.values():
                ends.callback(journal.close)
            ends.callback(self._tensorboard.close)
            if self._wandb is not None:
                ends.callback(self._wandb.finish)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _TensorBoard:
    """Its files grow, so those of a bucket are made here and brought there with each checkpoint."""

    def __init__(self, directory: epath.Path, step: int) -> None:
        logging.getLogger("tensorboardX").setLevel(logging.ERROR)
        # Where it finds PyTorch it imports it, for three seconds and no use.
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
        from tensorboardX import SummaryWriter

        if sys.modules["torch"] is None:
            del sys.modules["torch"]
        self._place = _Place(directory)
        self.writer = SummaryWriter(self._place.here, purge_step=step + 1)

    def bring(self) -> None:
        if self._place.is_elsewhere:
            self.writer.flush()
            self._place.bring()

    def close(self) -> None:
        self.writer.close()
        self._place.close()


class _Place:
    """A directory that a library writes which knows disks alone."""

    def __init__(self, directory: epath.Path) -> None:
        self._directory = directory
        self.is_elsewhere = in_bucket(directory)
        self.here = tempfile.mkdtemp() if self.is_elsewhere else os.fspath(directory)

    def bring(self) -> None:
        for name in names_below(epath.Path(self.here)) if self.is_elsewhere else ():
            write_atomic(self._directory / name, (epath.Path(self.here) / name).read_bytes())

    def close(self) -> None:
        self.bring()
        if self.is_elsewhere:
            epath.Path(self.here).rmtree()


def _wandb(project: str, workdir: epath.Path, config: Mapping[str, Any] | None) -> tuple[Any, Any]:
    """(the run, what makes a table)."""
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            "config.wandb_project is set but wandb is not installed: pip install 'r1jax[wandb]'"
        ) from None
    directory = None if in_bucket(workdir) else os.fspath(workdir)
    run = wandb.init(
        project=project,
        name=workdir.name,
        id=_wandb_id(workdir),  # so that a resumed run continues its curves
        resume="allow",
        dir=directory,
        config=dict(config or {}),
    )
    return run, wandb.Table


def _cell(value: Any) -> Any:
    """What a table of W&B may hold."""
    return value if isinstance(value, int | float | str) else json.dumps(value, ensure_ascii=False)


def _wandb_id(workdir: epath.Path) -> str:
    """Drawn at the run's first start: a new run at an old path is another one."""
    path = workdir / WANDB_ID
    if not path.exists():
        write_atomic(path, f"{secrets.token_hex(4)}\n".encode())
    return path.read_text().strip()


# ---- clocks and memory ----


class Timer:
    """Seconds by name: `with timer("rollout"): ...`, then `timer.pop()` once a step."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._popped = time.perf_counter()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            self._seconds[name] = self._seconds.get(name, 0.0) + elapsed

    def read(self, name: str) -> float:
        """Seconds of one name since the last pop."""
        return self._seconds.get(name, 0.0)

    def pop(self) -> dict[str, float]:
        """{"seconds/rollout": ..., "seconds/total": all the time} since the last call."""
        seconds, self._seconds = self._seconds, {}
        now = time.perf_counter()
        seconds["total"], self._popped = now - self._popped, now
        return {f"seconds/{name}": value for name, value in seconds.items()}


_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_compile_seconds: list[float] = []  # of every program of this process, cached ones too


def _count_compilation(event: str, duration_secs: float, **_: Any) -> None:
    if event == _COMPILE_EVENT:
        _compile_seconds.append(duration_secs)


jax.monitoring.register_event_duration_secs_listener(_count_compilation)


def process_use() -> dict[str, float]:
    """What the process has needed so far: programs compiled, seconds for that, peak memory in MiB.

    The memory is this process' and, where that counts, its first device's.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    result = {
        "compile/programs": len(_compile_seconds),
        "compile/seconds": sum(_compile_seconds),
        "memory/host_peak_mib": peak / (2**20 if sys.platform == "darwin" else 2**10),
    }
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        result["memory/device_peak_mib"] = stats["peak_bytes_in_use"] / 2**20
    return result


# ---- profiler ----


@dataclass(frozen=True)
class ProfileConfig:
    """Traces steps start_step .. start_step + num_steps - 1 into WORKDIR/profile."""

    start_step: Count = 10  # the first update that is traced
    num_steps: Count = 0  # 0 = no trace


class Profiler:
    """Call `step(n)` before step n, and `close()` at the end."""

    def __init__(self, config: ProfileConfig, workdir: epath.PathLike) -> None:
        self._config = config
        self._directory = absolute(workdir) / PROFILE
        self._place: _Place | None = None  # of a trace that is being made

    def step(self, step: int) -> None:
        start = self._config.start_step
        inside = start <= step < start + self._config.num_steps
        if inside and self._place is None:
            self._place = _Place(self._directory)
            jax.profiler.start_trace(self._place.here)
        elif not inside:
            self.close()

    def close(self) -> None:
        if self._place is not None:
            jax.profiler.stop_trace()
            self._place.close()
            self._place = None
