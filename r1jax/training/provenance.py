"""Where a run comes from: what it was started with, on what, and every value of its config."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
from etils import epath

import r1jax
from r1jax.files import EFFECTIVE_CONFIG, STARTS, write_json
from r1jax.journal import append_lines

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def note_start(workdir: epath.Path, config: Any) -> None:
    """Writes the config with its defaults, and appends a line about this start of the run."""
    if jax.process_index() != 0:
        return
    write_json(workdir / EFFECTIVE_CONFIG, dataclasses.asdict(config))
    append_lines(workdir / STARTS, [_start()])


def _start() -> dict[str, Any]:
    devices = jax.devices()
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        **_commit(),
        "versions": {"python": platform.python_version()} | _versions(),
        "host": platform.node(),
        "platform": platform.platform(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "processes": jax.process_count(),
    }


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def _commit() -> dict[str, Any]:
    """{"commit", "clean"} of the repository that r1jax was imported from; None outside of one.

    Clean: no file of the commit is another.
    """
    place = Path(r1jax.__path__[0])

    def git(*command: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(place), *command], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "clean": None if commit is None else changed == ""}
