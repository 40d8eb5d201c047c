"""How far a command is, on the terminal."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import jax
import rich.progress


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

    def say(self, text: str) -> None:
        """Some lines above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        elif jax.process_index() == 0:
            print(text, flush=True)

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
        known = [(label, value) for label, value in known if value or label != "failures"]
        return "".join(f"  {label} {_brief(float(value))}" for label, value in known)

    def _eta(self, step: int, now: float) -> str:
        if self._first is None or step <= self._first[0]:
            return ""
        each = max(now - self._first[1], 1e-9) / (step - self._first[0])
        seconds = int(each * (self._total - step))
        return f"  {3600 / each:,.0f}/h  {seconds // 60}:{seconds % 60:02d} left"

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _brief(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
