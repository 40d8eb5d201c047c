"""`train --help_config`: all fields of all stages, with what the source says of them."""

import importlib
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest

from r1jax.config_help import entries, help_of
from r1jax.stages import STAGES


@dataclass(frozen=True)
class Part:
    """A part.

    What stands in further paragraphs is not shown.
    """

    size: int = 1  # of the part
    # Two lines,
    # above.
    name: str | None = None


@dataclass(frozen=True)
class Whole:
    """All of it."""

    parts: dict[str, Part]
    best: Part | None = None  # one of them
    big: Part = field(default_factory=lambda: Part(size=9))
    free: dict[str, Any] = field(  # keys of anything a part has
        default_factory=dict, metadata={"keys": Part}
    )
    mute: int = 0


def test_meanings_come_from_the_source() -> None:
    assert help_of(Whole).splitlines() == [
        "All of it.",
        "",
        "config.parts: dict[str, Part], required  # A part.",
        "config.parts.NAME.size: int = 1  # of the part",
        "config.parts.NAME.name: str | None = None  # Two lines, above.",
        "config.best: Part | None = None  # one of them. A part. Its fields: those of"
        " config.parts.NAME.",
        "config.big: Part  # A part.",
        "config.big.size: int = 9  # of the part",
        "config.big.name: str | None = None  # Two lines, above.",
        "config.free: dict[str, Any] = {}",
        "      # keys of anything a part has. A part. Its fields: those of config.parts.NAME.",
        "config.mute: int = 0  # ",
    ]


@pytest.mark.parametrize("stage", STAGES)
def test_every_field_of_every_stage_has_a_meaning(stage: str) -> None:
    found = list(entries(importlib.import_module(STAGES[stage]).CONFIG))
    assert found[0].path == "config.stage" or stage == "evaluate"
    assert [entry.path for entry in found if not entry.meaning] == []


def test_the_command() -> None:
    """Without the flags that every other use of it needs; a nested section's default is its own."""
    done = train("--help_config", "grpo")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "config.total_steps: int (at least 1) = 10400  # optimizer updates" in lines
    assert any(
        line.startswith("config.critic.optimizer.learning_rate: float (at least 0) = 1e-05")
        for line in lines
    )
    assert any(line.startswith("config.model.config.num_layers: int, required") for line in lines)


def test_an_unknown_stage() -> None:
    done = train("--help_config=grp")
    known = ", ".join(map(repr, STAGES))
    expected = f"error: --help_config 'grp' is not one of {known}; did you mean 'grpo'?\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


def train(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "r1jax.train", *args]
    return subprocess.run(command, capture_output=True, text=True)
