"""What a workdir says of its own making."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from etils import epath
from helpers import grpo_config, read_lines

from r1jax.config import section
from r1jax.stages.grpo_config import GrpoConfig
from r1jax.training import provenance
from r1jax.training.provenance import note_start


def test_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = section(GrpoConfig, grpo_config("tokenizer"))
    monkeypatch.setattr("sys.orig_argv", ["python", "-m", "r1jax.train", "--config=a b.py"])
    for _ in range(2):
        note_start(epath.Path(tmp_path), config)
    first, _ = read_lines(tmp_path / "starts.jsonl")
    assert first["command"] == "python -m r1jax.train '--config=a b.py'"
    assert first["devices"] == "8 x cpu"
    assert re.fullmatch(r"[\d.]+", first["versions"]["jax"])
    assert first["time"].endswith("+00:00")
    values = json.loads((tmp_path / "config_effective.json").read_text())
    assert values["loss"]["kl_coef"] == config.loss.kl_coef
    assert values["optimizer"]["b2"] == 0.95  # a default


def test_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package"
    package.mkdir()
    monkeypatch.setattr(provenance.r1jax, "__path__", [str(package)])
    assert provenance._commit() == {"commit": None, "clean": None}

    def git(*command: str) -> None:
        name = "-c", "user.name=a", "-c", "user.email=a@b"
        subprocess.run(["git", "-C", str(tmp_path), *name, *command], check=True)

    (package / "a.py").write_text("1")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")
    found = provenance._commit()
    assert re.fullmatch("[0-9a-f]{40}", found["commit"]) and found["clean"]
    (package / "b.py").write_text("untracked")
    assert provenance._commit()["clean"]
    (package / "a.py").write_text("2")
    assert not provenance._commit()["clean"]
