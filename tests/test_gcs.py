"""A model on gs://, against an emulator of that store on this machine."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from etils import epath
from test_hf import TINY, export

from r1jax.config import ConfigError
from r1jax.machines.mesh import make_mesh
from r1jax.stages.evaluate import model_step
from r1jax.weights.hf import open_checkpoint, save_hf
from r1jax.weights.load import open_model
from r1jax.weights.safetensors_file import SafetensorsFile


def upload(directory: Path, target: epath.Path) -> None:
    for file in directory.iterdir():
        (target / file.name).write_bytes(file.read_bytes())


@pytest.mark.parametrize("shard_bytes", [20_000, 10**9])
def test_a_model_is_read_from_a_bucket(
    tmp_path: Path, bucket: epath.Path, shard_bytes: int
) -> None:
    checkpoint_params = export(tmp_path / "plain")
    save_hf(tmp_path / "out", TINY, checkpoint_params, None, "float32", shard_bytes)
    upload(tmp_path / "out", bucket / "dir" / "model")
    there = str(bucket / "dir" / "model")
    jax.tree.map(
        np.testing.assert_array_equal, open_checkpoint(there).read_all(), checkpoint_params
    )
    mesh = make_mesh({"fsdp": 2, "tensor": 2, "data": -1})
    loaded = [open_model(path).load(mesh, 0) for path in (there, str(tmp_path / "out"))]
    jax.tree.map(np.testing.assert_array_equal, *loaded)
    assert model_step(there) == 0


def test_only_the_parts_that_are_asked_for_are_read(tmp_path: Path, bucket: epath.Path) -> None:
    export(tmp_path, replace(TINY, vocab_size=80_000))
    upload(tmp_path, bucket)
    file = SafetensorsFile(bucket / "model.safetensors")
    rows = file.read("model.embed_tokens.weight", (slice(70_000, 70_010),))
    here = SafetensorsFile(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(rows, here.read("model.embed_tokens.weight")[70_000:70_010])
    assert file._file.cache.total_requested_bytes < 8_000 < here.path.stat().length // 500


def test_what_is_not_there_is_said(bucket: epath.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"model gs://models/none does not exist"):
        open_model("gs://models/none")
    with pytest.raises(ConfigError, match=r"s3://models/m: of object stores only gs://"):
        open_model("s3://models/m")
    monkeypatch.setattr(type(bucket), "exists", Mock(side_effect=RuntimeError("no route")))
    with pytest.raises(ConfigError, match=r"gs://models/none cannot be reached: no route"):
        open_model("gs://models/none")
    monkeypatch.setattr("r1jax.files.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[gcs\]'"):
        open_model("gs://models/none")
