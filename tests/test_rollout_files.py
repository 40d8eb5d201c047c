"""Rollouts on disk: a share of each process, read as one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from helpers import read_lines, rollout_row
from safetensors.numpy import load

from r1jax.config import DataError
from r1jax.rollout import files
from r1jax.rollout.files import is_written, read_rollouts, write_rollouts
from r1jax.types import Completion, Rollout


def rollout(prompt: int, sample: int, experts: bool = False) -> Rollout:
    rng = np.random.default_rng([prompt, sample])
    length = 1 + int(rng.integers(6))
    completion = Completion(
        prompt,
        sample,
        rng.integers(100, size=length).astype(np.int32),
        -rng.random(length).astype(np.float32),
        "stop" if sample else "length",
        rng.integers(8, size=(length, 3, 2)).astype(np.int16) if experts else None,
        drafts=sample,
    )
    return Rollout(
        f"q{prompt}",
        np.arange(1 + prompt, dtype=np.int32),
        completion,
        f"text {prompt} 計\ud800\n{sample}",
        reward=0.1 * sample,
        reward_breakdown={"accuracy": 0.1 * sample},
        failure="timeout" if sample == 2 else None,
        failure_message="late" if sample == 2 else None,
    )


def assert_equal(found: list[Rollout], expected: list[Rollout]) -> None:
    assert list(map(rollout_row, found)) == list(map(rollout_row, expected))
    for a, b in zip(found, expected, strict=True):
        for name, array in files._arrays(b).items():
            assert files._arrays(a)[name].dtype == array.dtype


def write_as(
    monkeypatch: pytest.MonkeyPatch, directory: epath.Path, rollouts: list[Rollout], processes: int
) -> None:
    """As so many processes would, the first one last: its mark is behind all others' files."""
    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: processes)
        patch.setattr(files, "wait_for_all", lambda name: None)
        files.delete_rollouts(directory)  # as the first one does before the others begin
        patch.setattr(files, "delete_rollouts", lambda directory: None)
        patch.setattr(files, "agreed", lambda work, *kinds: work())
        for process in reversed(range(processes)):
            patch.setattr(jax, "process_index", lambda process=process: process)
            assert not is_written(directory)
            write_rollouts(directory, rollouts)


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("experts", [False, True])
def test_what_any_number_of_processes_wrote_is_read_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int, experts: bool
) -> None:
    """Here the fourth has no questions."""
    directory = epath.Path(tmp_path / "000003")
    rollouts = [rollout(p, s, experts) for p in range(3) for s in range(4)]
    write_as(monkeypatch, directory, rollouts, processes)
    assert_equal(read_rollouts(directory), rollouts)
    first = read_lines(tmp_path / "000003/0.jsonl")
    assert {row["prompt_index"] % processes for row in first} == {0}
    assert (first[1]["text"], first[1]["reward"]) == ("text 0 計\ud800\n1", 0.1)
    assert "tokens" not in first[1]


def test_what_was_not_completed_is_written_anew_by_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = epath.Path(tmp_path / "000003")
    rollouts = [rollout(p, s) for p in range(4) for s in range(2)]
    write_as(monkeypatch, directory, [replace(r, reward=9.0) for r in rollouts], 4)
    (directory / files.COMPLETE).unlink()
    write_as(monkeypatch, directory, rollouts, 2)
    assert_equal(read_rollouts(directory), rollouts)


def test_one_that_cannot_write_leaves_no_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = epath.Path(tmp_path / "000003")
    write_rollouts(directory, [rollout(0, 0)])

    def fail(*_: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr(files, "write_atomic", fail)
    with pytest.raises(OSError, match="no space"):
        write_rollouts(directory, [rollout(0, 0)])
    assert not is_written(directory)
    with pytest.raises(DataError, match="000003 has no complete.json: its rollouts are not all"):
        read_rollouts(directory)


@pytest.mark.parametrize(("most", "bits"), [(255, 8), (256, 16)])
def test_experts_take_a_byte_where_they_can(tmp_path: Path, most: int, bits: int) -> None:
    directory = epath.Path(tmp_path / "000003")
    one = rollout(0, 0, experts=True)
    one.completion.experts[0, 0] = most, 0  # type: ignore[index]
    write_rollouts(directory, [one])
    columns = load((directory / "0.safetensors").read_bytes())
    assert columns["experts"].dtype == f"uint{bits}"
    assert_equal(read_rollouts(directory), [one])


def test_what_a_killed_run_left_goes(tmp_path: Path) -> None:
    directory = epath.Path(tmp_path) / "000003"
    write_rollouts(directory, [rollout(0, 0)])
    (directory / "complete.json.tmp-12").touch()
    (directory / "7.jsonl").touch()
    write_rollouts(directory, [rollout(0, 0)])
    assert {path.name for path in directory.iterdir()} == {
        "0.jsonl",
        "0.safetensors",
        "complete.json",
    }
