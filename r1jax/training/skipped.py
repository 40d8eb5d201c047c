"""Updates that were skipped because their loss or gradient is no number: counted, kept, ended."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from r1jax.config import UserError
from r1jax.files import SKIPPED_BATCHES, write_atomic
from r1jax.training.train_state import SKIPPED
from r1jax.types import Batch


class NonFiniteError(UserError):
    """Losses or gradients are not numbers any more."""


class Watch:
    """Looks at every update of a run, each when the next one has begun."""

    def __init__(
        self, workdir: epath.Path, most: int, latest_step: Callable[[], int | None]
    ) -> None:
        """`most` skipped updates in a row end the run; `latest_step` is the newest checkpoint's."""
        self._directory, self._most = workdir / SKIPPED_BATCHES, most
        self._latest_step = latest_step
        self._pending: tuple[int, Mapping[str, Any], Batch] | None = None
        self._in_a_row = 0
        self._still = False  # said that nothing is learnt

    def put(self, step: int, metrics: Mapping[str, Any], batch: Batch) -> None:
        """An update that was begun: its metrics and its batch, on the device."""
        before, self._pending = self._pending, (step, metrics, batch)
        if before is not None:
            self._look(*before)

    def settle(self) -> None:
        """Looks at the last one too."""
        before, self._pending = self._pending, None
        if before is not None:
            self._look(*before)

    def _look(self, step: int, metrics: Mapping[str, Any], batch: Batch) -> None:
        found = {
            name: float(jax.device_get(value))
            for name, value in metrics.items()
            if name.endswith((SKIPPED, "loss", "optimizer/grad_norm", "optimizer/learning_rate"))
        }
        skipped = any(value for name, value in found.items() if name.endswith(SKIPPED))
        self._in_a_row = self._in_a_row + 1 if skipped else 0
        if skipped:
            self._keep(step, batch)
            logging.warning("update %d is skipped: %s", step, _said(found))
        elif not self._still and found.get("optimizer/grad_norm") == 0 != found.get("loss"):
            self._still = True
            logging.warning(
                "the gradient of update %d is exactly 0, so nothing is learnt; a learning rate of"
                " %g may have driven the model there",
                *(step, found["optimizer/learning_rate"]),
            )
        if self._in_a_row >= self._most:
            raise NonFiniteError(self._ending(step, found))

    def _keep(self, step: int, batch: Batch) -> None:
        """The batch as STEP.npz: an array for each field that it has."""
        leaves = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
        leaves = {name: x for name, x in leaves.items() if x is not None}
        if jax.process_count() > 1:
            leaves = multihost_utils.process_allgather(leaves, tiled=True)
        if jax.process_index() == 0:
            file = io.BytesIO()
            np.savez_compressed(file, **jax.device_get(leaves))
            write_atomic(self._directory / f"{step:06d}.npz", file.getvalue())

    def _ending(self, step: int, found: Mapping[str, float]) -> str:
        latest = self._latest_step()
        cause = f"a learning rate that is too high ({found.get('optimizer/learning_rate', 0):g})"
        if latest is None and step == self._in_a_row:
            cause = "the model's parameters, or the rows, since not one update was sound"
        saved = "there is no checkpoint yet"
        if latest is not None:
            saved = f"the newest checkpoint, of step {latest}, is from before"
        return (
            f"{self._in_a_row} updates in a row were no numbers, the last at step {step}"
            f" ({_said(found)}); the likely cause is {cause}; the batches are in"
            f" {self._directory}, {saved}"
        )


def _said(found: Mapping[str, float]) -> str:
    names = (name for name in found if name.endswith(("loss", "grad_norm")))
    return ", ".join(f"{name.removeprefix('optimizer/')} {found[name]:g}" for name in names)
