"""Updates that are no numbers: counted, their batches kept, the run ended by a sentence."""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from r1jax.training.skipped import NonFiniteError, Watch
from r1jax.types import Batch

SOUND = {"loss": 1.0, "optimizer/grad_norm": 2.0, "optimizer/learning_rate": 3.0}
SKIPPED = SOUND | {"loss": math.nan, "optimizer/skipped": 1}


def batch(step: int) -> Batch:
    return Batch(*(np.full((1, 2), step) for _ in range(5)))


def watched(tmp_path: Path, rows: list[dict[str, Any]], latest: int | None = None) -> Watch:
    watch = Watch(epath.Path(tmp_path), 3, lambda: latest)
    for step, metrics in enumerate(rows, start=1):
        watch.put(step, {"optimizer/skipped": 0} | metrics, batch(step))
    watch.settle()
    return watch


def test_so_many_in_a_row_end_the_run(tmp_path: Path) -> None:
    rows = [SOUND, SKIPPED, SKIPPED, SOUND, SKIPPED, SKIPPED, SKIPPED]
    with pytest.raises(NonFiniteError) as error:
        watched(tmp_path, rows, latest=4)
    assert str(error.value) == (
        "3 updates in a row were no numbers, the last at step 7 (loss nan, grad_norm 2); the likely"
        " cause is a learning rate that is too high (3); the batches are in"
        f" {tmp_path}/skipped, the newest checkpoint, of step 4, is from before"
    )
    kept = sorted((tmp_path / "skipped").iterdir())
    assert [path.stem for path in kept] == ["000002", "000003", "000005", "000006", "000007"]
    with np.load(kept[-1]) as arrays:
        assert arrays["tokens"].tolist() == [[7, 7]]
        assert "advantages" not in arrays  # the batch had none


def test_a_run_that_was_never_sound(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="the model's parameters, or the rows.*no checkpoint"):
        watched(tmp_path, [SKIPPED] * 3)


def test_the_last_update_is_looked_at_before_a_save(tmp_path: Path) -> None:
    watch = watched(tmp_path, [SOUND, SKIPPED, SKIPPED])
    watch.put(4, {"critic/optimizer/skipped": 1}, batch(4))
    with pytest.raises(NonFiniteError):
        watch.settle()


@pytest.mark.parametrize(("loss", "said"), [(1.0, 1), (0.0, 0)])
def test_a_gradient_of_zero_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, loss: float, said: int
) -> None:
    """But not where there is nothing to learn: all completions of each group earned the same."""
    with caplog.at_level(logging.WARNING, "absl"):
        watched(tmp_path, [SOUND | {"loss": loss, "optimizer/grad_norm": 0.0}] * 3)
    assert len([r for r in caplog.records if "exactly 0" in r.getMessage()]) == said
