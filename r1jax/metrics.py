"""What a run writes down: metrics, timings, samples, the progress bar and the profiler window.

A run that is killed and resumed must end with the same bytes in metrics.jsonl and samples.jsonl as
one that was not. So nothing that depends on the clock, on memory or on how often the process was
started may go there (it goes to timings.jsonl), nothing may be averaged over several steps in the
process' memory, and a stage writes a step's metrics BEFORE it saves that step's checkpoint: on
resume the lines after the checkpoint are dropped and written again.
"""

import json
import logging
import math
import os
import resource
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import jax
import numpy as np
import rich.progress
from etils import epath

from r1jax.config import ConfigError, DataError, UserError

METRICS, TIMINGS, SAMPLES = "metrics.jsonl", "timings.jsonl", "samples.jsonl"
STATISTICS = "statistics.json"
STOP_WORDS = ("loss", "grad")  # a non-finite metric with one of these in its name ends the run


class NonFiniteError(UserError):
    """A loss or gradient is not a number any more."""


def absolute(path: epath.PathLike) -> epath.Path:
    """An absolute path, local or remote (gs://)."""
    return epath.Path(path).expanduser().absolute()


# ---- JSON lines ----


def read_jsonl(path: epath.PathLike) -> list[dict[str, Any]]:
    """The objects of a JSONL file. DataError with file and line for whatever is wrong."""
    return [row for _, row in numbered_jsonl(path)]


def read_rows(path: str, *keys: str) -> list[Mapping[str, Any]]:
    """The rows of a JSONL file, each with these keys."""
    rows: list[Mapping[str, Any]] = list(read_jsonl(path))
    for number, row in enumerate(rows, start=1):
        if missing := [key for key in keys if key not in row]:
            raise DataError(f"{path}:{number} has no key {missing[0]!r}; it has {', '.join(row)}")
    return rows


def numbered_jsonl(path: epath.PathLike) -> list[tuple[int, dict[str, Any]]]:
    """As read_jsonl, each object with the number of its line."""
    try:
        data = epath.Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise DataError(f"file {path} does not exist") from None
    numbered = enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1)
    rows = [(number, _parse_line(line, path, number)) for number, line in numbered if line.strip()]
    if not rows:
        raise DataError(f"{path} is empty, expected one JSON object a line")
    return rows


def _parse_line(line: bytes, path: epath.PathLike, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise DataError(f"{path}:{number} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{path}:{number} is a JSON {type(row).__name__}, expected an object")
    return row


def write_jsonl_atomic(path: epath.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """The whole file or, if killed, the one that was there before."""
    write_atomic(path, b"".join(_line(row) for row in rows))


def write_data(
    directory: epath.Path,
    name: str,
    rows: Iterable[Mapping[str, Any]],
    statistics: Mapping[str, Any],
) -> None:
    """A stage's data set: its rows, then statistics.json, whose presence says that it is whole."""
    write_jsonl_atomic(directory / name, rows)
    text = json.dumps(statistics, indent=1, ensure_ascii=False)
    write_atomic(directory / STATISTICS, (text + "\n").encode())


def append_samples(path: epath.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends rows; each has its "step", by which a resumed run drops those it writes again."""
    data = b"".join(_line({"step": row["step"], **row}) for row in rows)
    with absolute(path).open("ab") as file:
        file.write(data)


def write_atomic(path: epath.PathLike, data: bytes) -> None:
    """Writes a temporary file beside `path`, then puts it in its place."""
    path = absolute(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{path.name}.tmp-{os.getpid()}"
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        if "://" not in os.fspath(path):
            os.fsync(file.fileno())
    temporary.replace(path)


def _line(row: Mapping[str, Any]) -> bytes:
    """One line. A lone surrogate becomes its JSON escape, since UTF-8 has none."""
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def drop_after(path: epath.PathLike, step: int) -> None:
    """Drops the lines whose "step" is later than `step`, and a torn last line."""
    path = absolute(path)
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")
    torn = lines.pop()  # empty after a whole line, else what a dying process left
    kept = [x for i, x in enumerate(lines, start=1) if _parse_line(x, path, i)["step"] <= step]
    if torn or len(kept) < len(lines):
        write_atomic(path, b"".join(line + b"\n" for line in kept))


def read_metrics(workdir: epath.PathLike, name: str = METRICS) -> list[dict[str, Any]]:
    """One dict a step, in order; what was written as null comes back as nan."""
    by_step: dict[int, dict[str, Any]] = {}
    for row in read_jsonl(absolute(workdir) / name):
        row = {key: math.nan if value is None else value for key, value in row.items()}
        by_step.setdefault(row["step"], {}).update(row)
    return [by_step[step] for step in sorted(by_step)]


# ---- the writer ----


def plain_number(value: Any) -> int | float | None:
    """A JSON number: integers as they are, others as the shortest text that gives this float32."""
    array = np.asarray(value)
    if array.shape != ():
        raise ValueError(f"a metric must be a scalar, not of shape {array.shape}")
    if np.issubdtype(array.dtype, np.integer) or array.dtype == bool:
        return int(array)
    number = np.float32(array)
    return float(str(number)) if np.isfinite(number) else None


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
    ) -> None:
        """`step` is that of the restored checkpoint, -1 for none: what came later is dropped."""
        self.workdir = absolute(workdir)
        self._wandb = None
        self._tensorboard = None
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self.workdir.mkdir(parents=True, exist_ok=True)
        for name in (METRICS, TIMINGS, SAMPLES):
            drop_after(self.workdir / name, step)
        self._metrics = (self.workdir / METRICS).open("ab")
        self._timings = (self.workdir / TIMINGS).open("ab")
        self._tensorboard = _tensorboard(self.workdir, step)
        if wandb_project:
            self._wandb = _wandb(wandb_project, self.workdir, config)

    def write(
        self, step: int, metrics: Mapping[str, Any], timings: Mapping[str, Any] | None = None
    ) -> None:
        """Scalars by name; `metrics` deterministic ones only, clock readings in `timings`.

        Raises NonFiniteError, with the line written, when a loss or gradient is not finite.
        """
        values = {name: plain_number(x) for name, x in jax.device_get(dict(metrics)).items()}
        clocks = {name: plain_number(x) for name, x in (timings or {}).items()}
        if self._active:
            _append(self._metrics, {"step": step, **values})
            _append(self._timings, {"step": step, **clocks})
            self._mirror(step, {**values, **clocks})
        bad = [name for name, x in values.items() if x is None and _stops(name)]
        if bad:
            raise NonFiniteError(f"{', '.join(bad)} not finite at step {step}, so the run stops")

    def samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends completions with their rewards to samples.jsonl."""
        if self._active:
            append_samples(self.workdir / SAMPLES, [{"step": step, **row} for row in rows])

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


def _stops(name: str) -> bool:
    return any(word in name for word in STOP_WORDS)


def _tensorboard(workdir: epath.Path, step: int) -> Any:
    logging.getLogger("tensorboardX").setLevel(logging.ERROR)
    from tensorboardX import SummaryWriter

    return SummaryWriter(os.fspath(workdir / "tensorboard"), purge_step=step + 1)


def _wandb(project: str, workdir: epath.Path, config: Mapping[str, Any] | None) -> Any:
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            "config.wandb_project is set but wandb is not installed: pip install 'r1jax[wandb]'"
        ) from None
    directory = os.fspath(workdir)
    return wandb.init(
        project=project,
        name=workdir.name,
        id=f"{zlib.crc32(directory.encode()):08x}",  # so that a resumed run continues its curves
        resume="allow",
        dir=directory,
        config=dict(config or {}),
    )


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


# ---- progress ----


class Progress:
    """A progress bar on a terminal; elsewhere a plain line at most every `seconds`.

    `shown` maps a metric's name to its label, for instance {"grpo/reward/mean": "reward"}.
    """

    def __init__(
        self, title: str, total: int, step: int, shown: Mapping[str, str], seconds: float = 10.0
    ) -> None:
        self._title, self._total, self._shown, self._seconds = title, total, shown, seconds
        self._first: tuple[int, float] | None = None  # where the rate is counted from
        self._printed = -math.inf
        self._bar = None
        if sys.stdout.isatty() and jax.process_index() == 0:
            columns: list[str | rich.progress.ProgressColumn] = [
                "{task.description}",
                rich.progress.BarColumn(),
                "{task.fields[text]}",
            ]
            self._bar = rich.progress.Progress(*columns)
            self._task = self._bar.add_task(title, total=total, completed=step, text="compiling")

    def update(self, step: int, values: Mapping[str, Any]) -> None:
        """Shows that `step` steps are done; values may hold more than is shown."""
        now = time.monotonic()
        text = f"{step}/{self._total}{self._text(values)}{self._eta(step, now)}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        elif jax.process_index() == 0 and self._is_due(step, now):
            self._printed = now
            print(f"{self._title} {text}", flush=True)
        if self._first is None:  # the first step compiles: it doesn't count for the rate
            self._first = (step, now)

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """A second bar for work inside a step: `advance(done)` moves it."""
        if self._bar is not None:
            bar, task = self._bar, self._bar.add_task(title, total=total, text="")
            yield lambda done: bar.update(task, completed=done, text=f"{done}/{total}")
            bar.remove_task(task)
            return
        lines = Progress(title, total, 0, {}, self._seconds)
        yield lambda done: lines.update(done, {})

    def _is_due(self, step: int, now: float) -> bool:
        return now - self._printed >= self._seconds or step == self._total

    def _text(self, values: Mapping[str, Any]) -> str:
        known = [(label, values[name]) for name, label in self._shown.items() if name in values]
        return "".join(f"  {label} {_brief(float(value))}" for label, value in known)

    def _eta(self, step: int, now: float) -> str:
        if self._first is None or step <= self._first[0]:
            return ""
        seconds = (now - self._first[1]) / (step - self._first[0]) * (self._total - step)
        return f"  {int(seconds) // 60}:{int(seconds) % 60:02d} left"

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _brief(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


# ---- profiler ----


@dataclass(frozen=True)
class ProfileConfig:
    """Traces steps start_step .. start_step + num_steps - 1 into WORKDIR/profile."""

    start_step: int = 10
    num_steps: int = 0  # 0 = no trace


class Profiler:
    """Call `step(n)` before step n, and `close()` at the end."""

    def __init__(self, config: ProfileConfig, workdir: epath.PathLike) -> None:
        self._config = config
        self._directory = absolute(workdir) / "profile"
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
