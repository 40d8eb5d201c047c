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
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
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
    _line,
    absolute,
    append_samples,
    count_lines,
    drop_after,
    plain_number,
    write_atomic,
)

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
        self._tensorboard = None
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self.workdir.mkdir(parents=True, exist_ok=True)
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
                kept = (self.workdir / name).read_bytes().splitlines(keepends=True)[:count]
                write_atomic(self.workdir / name, b"".join(kept))
        self._metrics = (self.workdir / METRICS).open("ab")
        self._timings = (self.workdir / TIMINGS).open("ab")
        self._tensorboard = _tensorboard(self.workdir, step)
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
            _append(self._metrics, {"step": step, **values})
            _append(self._timings, {"step": step, **clocks})
            self._mirror(step, {**values, **clocks})

    def sync(self) -> dict[str, int]:
        """What was written is on the disk -> the lines of each file, which a checkpoint keeps."""
        if self._active:
            for name in (METRICS, TIMINGS, SAMPLES):
                if (path := self.workdir / name).exists():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
        return {name: count_lines(self.workdir / name) for name in (METRICS, SAMPLES)}

    def samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends completions with their rewards to samples.jsonl."""
        if not self._active:
            return
        rows = [{"step": step, **row} for row in rows]
        append_samples(self.workdir / SAMPLES, rows)
        if self._wandb is not None and rows:
            table = self._wandb_table(list(rows[0]), [list(map(_cell, x.values())) for x in rows])
            self._wandb.log({"samples": table}, step=step)

    def _mirror(self, step: int, values: Mapping[str, int | float | None]) -> None:
        finite = {name: x for name, x in values.items() if x is not None}
        if self._tensorboard is not None:
            for name, value in finite.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(finite, step=step)

    def close(self) -> None:
        if not self._active:
            return
        self._metrics.close()
        self._timings.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _append(file: Any, row: Mapping[str, Any]) -> None:
    file.write(_line(row))
    file.flush()


def _tensorboard(workdir: epath.Path, step: int) -> Any:
    logging.getLogger("tensorboardX").setLevel(logging.ERROR)
    # Where it finds PyTorch it imports it, for three seconds and no use.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    from tensorboardX import SummaryWriter

    if sys.modules["torch"] is None:
        del sys.modules["torch"]
    return SummaryWriter(os.fspath(workdir / TENSORBOARD), purge_step=step + 1)


def _wandb(project: str, workdir: epath.Path, config: Mapping[str, Any] | None) -> tuple[Any, Any]:
    """(the run, what makes a table)."""
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            "config.wandb_project is set but wandb is not installed: pip install 'r1jax[wandb]'"
        ) from None
    directory = os.fspath(workdir)
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
        self._running = False

    def step(self, step: int) -> None:
        start = self._config.start_step
        inside = start <= step < start + self._config.num_steps
        if inside and not self._running:
            jax.profiler.start_trace(os.fspath(self._directory))
            self._running = True
        elif not inside:
            self.close()

    def close(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
