"""SIGTERM: a run saves its last update and leaves; the same command ends with the same bits."""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import grpo_config, metrics_by_step, sft_config
from test_grpo import BENCHMARK
from test_resume import SFT, Command, assert_same, last_arrays, logged

from r1jax.config import DataError
from r1jax.machines import preemption
from r1jax.machines.preemption import STOPPED, Stopped
from r1jax.stages import stage_of
from r1jax.weights.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("one_device")


class Signal(preemption._Listener):
    """It comes before the call of this number."""

    def __init__(self, at: float) -> None:
        super().__init__()
        self.seen = 0
        self.calls = self._counted(at)  # type: ignore[assignment]

    def _counted(self, at: float) -> Iterator[int]:
        for self.seen in itertools.count():
            self.asked = self.seen >= at
            yield self.seen


def run(
    config: Any, workdir: Path, monkeypatch: pytest.MonkeyPatch, at: float = float("inf")
) -> Signal:
    """Runs it until it is asked to stop."""
    signal_ = Signal(at)
    monkeypatch.setattr(preemption, "_listener", signal_)
    stage: Any = stage_of(config)
    getattr(stage, "train", stage.run)(config, str(workdir))  # without tables and figures
    return signal_


def test_grpo_stopped_anywhere(
    tokenizer_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it samples, between updates, while it measures; several times in one run."""

    def config() -> Any:
        evaluation = {"every": 3, "curve": {"few": BENCHMARK}}
        return grpo_config(
            tokenizer_dir,
            total_steps=7,
            updates_per_rollout=3,
            prompts_per_update=1,
            ref_every=3,
            checkpoint_every=0,
            evaluation=evaluation,
            keep_rollouts=0,
        )

    calls = run(config(), tmp_path / "whole", monkeypatch).seen
    moments, within, stops = random.Random(0), 0, 0
    while stops < 20:
        try:
            run(config(), tmp_path / "stopped", monkeypatch, moments.randrange(1, calls // 3))
            break
        except Stopped:
            stops += 1
            step = Checkpoints(tmp_path / "stopped").latest_step() or 0
            within += step % 3 > 0
            lines = metrics_by_step(tmp_path / "stopped")
            assert max((s for s in lines if "grpo/loss" in lines[s]), default=0) == step
    assert within > 1 and stops > 3
    assert_same(tmp_path / "stopped", tmp_path / "whole")
    left = {path.name for path in (tmp_path / "stopped/unfinished/checkpoints").iterdir()}
    assert left <= {path.name for path in (tmp_path / "stopped/checkpoints").iterdir()}


def test_ppo_and_rollouts_ahead(
    tokenizer_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the critic said, and what was sampled before the updates, is kept."""

    def config() -> Any:
        return grpo_config(
            tokenizer_dir,
            total_steps=4,
            critic={},
            rollouts_ahead=1,
            checkpoint_every=0,
            loss={"importance_cap": 2.0},
        )

    calls = run(config(), tmp_path / "whole", monkeypatch).seen
    for at, step in ((calls - 3, 1), (calls, 3)):  # before the second update of each rollout
        workdir = tmp_path / f"{step}"
        with pytest.raises(Stopped):
            run(config(), workdir, monkeypatch, at)
        assert Checkpoints(workdir).latest_step() == step
        run(config(), workdir, monkeypatch)
        assert_same(workdir, tmp_path / "whole")
        critics = [last_arrays(found / "critic") for found in (workdir, tmp_path / "whole")]
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, *critics)))


def test_behind_a_damaged_checkpoint_is_another(
    tokenizer_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A point of the curve is measured once, too, however often the run stops before it."""

    def config() -> Any:
        evaluation = {"every": 1, "curve": {"few": BENCHMARK}}
        return grpo_config(
            tokenizer_dir, total_steps=3, updates_per_rollout=3, prompts_per_update=1,
            checkpoint_every=0, evaluation=evaluation,
        )  # fmt: skip

    calls = run(config(), tmp_path / "whole", monkeypatch).seen
    workdir = tmp_path / "run"
    with pytest.raises(Stopped):  # while it measures what update 1 has brought
        run(config(), workdir, monkeypatch, calls - 4)
    assert Checkpoints(workdir).latest_step() == 1
    with pytest.raises(Stopped):  # behind that point, before update 2
        run(config(), workdir, monkeypatch, 2)
    with pytest.raises(Stopped):
        run(config(), workdir, monkeypatch, 4)
    assert Checkpoints(workdir).steps() == [1, 2]
    (workdir / "checkpoints/2/state/step/.zarray").write_text("damaged")
    run(config(), workdir, monkeypatch)
    assert_same(workdir, tmp_path / "whole")


def test_stopped_between_a_rollout_and_its_update(
    tokenizer_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = grpo_config(
        tokenizer_dir,
        total_steps=2,
        updates_per_rollout=1,
        prompts_per_update=1,
        checkpoint_every=0,
    )
    calls = run(config, tmp_path / "whole", monkeypatch).seen
    with pytest.raises(Stopped):
        run(config, tmp_path / "run", monkeypatch, calls)
    run(config, tmp_path / "run", monkeypatch)
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_rollouts_of_an_unfinished_iteration_are_needed(
    tokenizer_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = grpo_config(tokenizer_dir, total_steps=2, checkpoint_every=0)
    calls = run(config, tmp_path / "whole", monkeypatch).seen
    with pytest.raises(Stopped):  # before the last update
        run(config, tmp_path / "run", monkeypatch, calls)
    assert Checkpoints(tmp_path / "run").latest_step() == 1
    (tmp_path / "run/rollouts/000000/complete.json").unlink()
    with pytest.raises(DataError, match=r"delete .*run/checkpoints/1 to go on"):
        run(config, tmp_path / "run", monkeypatch)


def test_sft_stopped_behind_every_update(
    tokenizer_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config() -> Any:
        return sft_config(tokenizer_dir, total_steps=4, checkpoint_every=0, log_every=2)

    run(config(), tmp_path / "whole", monkeypatch)
    for step in (1, 2, 3):
        with pytest.raises(Stopped):
            run(config(), tmp_path / "stopped", monkeypatch, 0)
        assert Checkpoints(tmp_path / "stopped").latest_step() == step
    run(config(), tmp_path / "stopped", monkeypatch)
    assert_same(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.slow
def test_the_signal_ends_the_command(tokenizer_dir: str, tmp_path: Path) -> None:
    """With its exit code and a sentence, before there is anything to save, too."""
    command = Command(tmp_path, SFT.format(tokenizer=tokenizer_dir, steps=400))
    workdir = tmp_path / "run"
    for moment, least in (((workdir / "tokenizer").exists, 0), (logged(workdir, 10), 10)):
        process = command.start(workdir)
        while not moment():
            assert process.poll() is None
        process.terminate()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == STOPPED, errors.decode()
        last = errors.decode().splitlines()[-1]
        assert last == "stopped by SIGTERM; the same command goes on from the last checkpoint"
        assert (Checkpoints(workdir).latest_step() or 0) >= least
