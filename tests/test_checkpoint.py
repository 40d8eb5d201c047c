"""Checkpoints come back bit-identical, and nothing that was torn is taken for one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from ml_collections import config_dict

from r1jax.config import ConfigError, DataError
from r1jax.data.fingerprint import keep_rows
from r1jax.training.run_config import check_config
from r1jax.weights import checkpoint
from r1jax.weights.checkpoint import (
    CheckpointError,
    Checkpoints,
    load_params,
    model_root,
    write_model_json,
)


def make_state(step: int) -> dict[str, Any]:
    key = jax.random.fold_in(jax.random.key(0), step)
    params = {
        "embed": jax.random.normal(key, (16, 8)),
        "layers": {"kernel": jax.random.normal(key, (2, 8, 4), jnp.bfloat16)},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return {"params": params, "opt_state": optimizer.init(params), "step": jnp.int32(step)}


def abstract(state: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def save(workdir: Path, step: int, state: Any = None, max_to_keep: int = 2) -> None:
    """A complete checkpoint."""
    with Checkpoints(workdir, max_to_keep) as checkpoints:
        checkpoints.save(step, make_state(step) if state is None else state)


def newest(checkpoints: Checkpoints) -> int | None:
    """The step of the newest checkpoint that is whole."""
    found = checkpoints.restore_newest(abstract(make_state(0)))
    if found is None:
        return None
    step, state, _ = found
    assert_same(state, make_state(step))
    return step


def test_round_trip_and_max_to_keep(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, max_to_keep=2)
    assert checkpoints.latest_step() is None
    for step in (8, 9, 10):
        checkpoints.save(step, make_state(step), {"seen": [step]})
    assert Checkpoints(tmp_path).steps() == [9, 10]
    assert Checkpoints(tmp_path).latest_step() == 10
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["10", "9"]
    state, extra = Checkpoints(tmp_path).restore(9, abstract(make_state(0)))
    assert_same(state, make_state(9))
    assert extra == {"seen": [9]}


def test_restores_into_other_shardings(tmp_path: Path) -> None:
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    spread = NamedSharding(mesh, PartitionSpec("fsdp"))
    embed = jax.device_put(make_state(1)["params"]["embed"], spread)
    Checkpoints(tmp_path).save(1, {"embed": embed})
    for spec in (PartitionSpec(None, "fsdp"), PartitionSpec("fsdp"), PartitionSpec()):
        wanted = NamedSharding(mesh, spec)
        item = {"embed": jax.ShapeDtypeStruct(embed.shape, embed.dtype, sharding=wanted)}
        state, _ = Checkpoints(tmp_path).restore(1, item)
        assert state["embed"].sharding == wanted
        np.testing.assert_array_equal(state["embed"], embed)


def test_saved_state_survives_donation(tmp_path: Path) -> None:
    state = make_state(1)
    Checkpoints(tmp_path).save(1, state)
    jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(state)
    restored, _ = Checkpoints(tmp_path).restore(1, abstract(make_state(1)))
    assert_same(restored, make_state(1))


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_torn_save_is_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """It dies before extra.json, before the manifest, or before the old ones are deleted."""
    checkpoints = Checkpoints(tmp_path, max_to_keep=1)
    checkpoints.save(1, make_state(1))
    checkpoints.wait()
    left = [writes]

    def dying(function: Any) -> Any:
        def call(*args: Any) -> None:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            function(*args)

        return call

    monkeypatch.setattr(checkpoint, "write_json", dying(checkpoint.write_json))
    monkeypatch.setattr(checkpoint, "write_manifest", dying(checkpoint.write_manifest))
    monkeypatch.setattr(Checkpoints, "_delete_old", dying(Checkpoints._delete_old))
    checkpoints.save(2, make_state(2))
    with pytest.raises(KeyboardInterrupt):
        checkpoints.wait()
    monkeypatch.undo()

    again = Checkpoints(tmp_path, max_to_keep=1)
    latest = again.latest_step()
    assert latest == (2 if writes == 2 else 1)
    assert_same(again.restore(latest, abstract(make_state(0)))[0], make_state(latest))
    again.save(2, make_state(2))
    again.wait()
    assert os.listdir(tmp_path / "checkpoints") == ["2"]
    assert_same(again.restore(2, abstract(make_state(0)))[0], make_state(2))


def test_torn_delete_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, max_to_keep=1)
    checkpoints.save(1, make_state(1))
    checkpoints.wait()
    monkeypatch.setattr(checkpoint.epath.Path, "rmtree", lambda _: 1 / 0, raising=False)
    monkeypatch.setattr(type(checkpoints.directory), "rmtree", lambda _: 1 / 0)
    checkpoints.save(2, make_state(2))
    with pytest.raises(ZeroDivisionError):
        checkpoints.wait()
    assert checkpoints.steps() == [2]


@pytest.mark.slow
def test_killed_while_saving(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from test_checkpoint import *\n"
        "c = Checkpoints(sys.argv[1])\n"
        "while True:\n"
        "    step = (c.latest_step() or 0) + 1\n"
        "    c.save(step, make_state(step), {'step': step})\n"
    )
    random = np.random.default_rng(0)
    seen = 0
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", code, tmp_path, Path(__file__).parent])
        while (Checkpoints(tmp_path).latest_step() or 0) <= seen:
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(random.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        latest = Checkpoints(tmp_path).latest_step()
        assert latest is not None
        state, extra = Checkpoints(tmp_path).restore(latest, abstract(make_state(0)))
        assert_same(state, make_state(latest))
        assert extra == {"step": latest}
        seen = latest


def test_flipped_byte_is_noticed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    files = [path for path in (tmp_path / "checkpoints/1/state").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"is damaged: state/.*{largest.name}"):
        Checkpoints(tmp_path).restore(1, abstract(make_state(1)))
    with pytest.raises(CheckpointError, match="is damaged"):
        load_params(tmp_path)


def break_file(directory: Path, name: str) -> None:
    """The file, or the largest one of the state, is no longer what was written."""
    files = [path for path in directory.rglob("*") if path.is_file() and name in str(path)]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-3] + b"???")


@pytest.mark.parametrize("name", ["state/", "manifest.json", "extra.json"])
def test_a_damaged_one_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    checkpoints = Checkpoints(tmp_path, max_to_keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, make_state(step))
    checkpoints.wait()
    directory = tmp_path / "checkpoints"
    break_file(directory / "3", name)
    again = Checkpoints(tmp_path, max_to_keep=3)
    assert newest(again) == 2
    assert f"checkpoint {directory}/3 is damaged: {name}" in caplog.text
    assert sorted(os.listdir(directory)) == ["1", "2", "3.damaged"]
    again.save(3, make_state(3))
    again.wait()
    break_file(directory / "3", name)
    assert newest(Checkpoints(tmp_path)) == 2
    assert sorted(os.listdir(directory)) == ["1", "2", "3.damaged", "3.damaged1"]
    for step in (1, 2):
        break_file(directory / str(step), name)
    with pytest.raises(CheckpointError, match="no checkpoint in .* is whole"):
        newest(Checkpoints(tmp_path))
    assert newest(Checkpoints(tmp_path / "other")) is None


@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_what_lies_beside_belongs_to_it(tmp_path: Path, how: str) -> None:
    """A critic's checkpoints: where one is damaged, the policy's of that step is set aside too."""
    for step in (1, 2):
        for directory in (tmp_path / "critic", tmp_path):
            save(directory, step)
    last = tmp_path / "critic/checkpoints/2"
    shutil.rmtree(last) if how == "gone" else break_file(last, "state/")
    assert newest(Checkpoints(tmp_path, beside=lambda _: [tmp_path / "critic"])) == 1
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1", "2.damaged"]
    rest = ["1"] if how == "gone" else ["1", "2.damaged"]
    assert sorted(os.listdir(tmp_path / "critic/checkpoints")) == rest


def test_others_files_stay(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    for name in ("6.bak", "02", "²"):
        (directory / name).mkdir(parents=True)
        (directory / name / "manifest.json").write_text("{}")
    (directory / "notes.txt").write_text("mine")
    (directory / "9").write_text("mine")
    for step in (1, 2):
        save(tmp_path, step, max_to_keep=1)
    assert sorted(os.listdir(directory)) == ["02", "2", "6.bak", "9", "notes.txt", "²"]


def test_what_cannot_be_written(tmp_path: Path) -> None:
    """A full disk, here a file where a directory must be: the checkpoint before is kept."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1))
    checkpoints.wait()
    (tmp_path / "checkpoints/2").write_text("")
    with pytest.raises(CheckpointError, match=r"checkpoints/2 cannot be written: .*is kept"):
        checkpoints.save(2, make_state(2))
    assert newest(checkpoints) == 1


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=100)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        CheckpointError, match="it needs 0 MiB and the disk has 0 MiB left; the one"
    ):
        Checkpoints(tmp_path).save(1, make_state(1))
    assert not list((tmp_path / "checkpoints").iterdir())


def test_other_state_is_refused(tmp_path: Path) -> None:
    state = make_state(1)
    Checkpoints(tmp_path).save(1, state)
    other = abstract(state)
    other["params"]["embed"] = jax.ShapeDtypeStruct((16, 9), jnp.float32)
    other["params"]["head"] = other["params"]["layers"].pop("kernel")
    expected = (
        "of another state: it has no params/head; params/layers/kernel is not in the model; "
        r"params/embed is float32\[16,8\], not float32\[16,9\]"
    )
    with pytest.raises(CheckpointError, match=expected):
        Checkpoints(tmp_path).restore(1, other)
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        Checkpoints(tmp_path).restore(2, other)


def test_a_workdir_is_a_model(tmp_path: Path) -> None:
    for step in (1, 2):
        Checkpoints(tmp_path).save(step, make_state(step))
    write_model_json(tmp_path, {"num_layers": 2})
    for path, step in ((tmp_path, 2), (tmp_path / "checkpoints/1", 1)):
        assert_same(load_params(path), jax.device_get(make_state(step)["params"]))
        assert json.loads((model_root(path) / "model.json").read_text()) == {"num_layers": 2}
    with pytest.raises(ConfigError, match="is not a model of r1jax"):
        model_root(tmp_path / "none")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"config.data": {}}', '{"config.data": 5}'])
def test_what_a_run_wrote_down_is_damaged(tmp_path: Path, content: str) -> None:
    """One sentence with the file, whatever stands in it."""
    directory = epath.Path(tmp_path)
    (tmp_path / "rows.json").write_text(content)
    with pytest.raises(DataError, match=r"rows.json (is damaged|is not JSON|is a JSON list)"):
        keep_rows(directory, {"config.data": [{"a": 1}]}, {"config.data"})
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "metrics.jsonl").write_text("x")
    with pytest.raises((DataError, ConfigError), match=r"config.json is "):
        check_config(directory, config_dict.ConfigDict({"stage": "sft"}))


def test_changed_config_is_refused(tmp_path: Path) -> None:
    def config(**values: Any) -> config_dict.ConfigDict:
        return config_dict.create(grpo=dict(kl_coef=0.001), betas=(0.9, 0.95), seed=0, **values)

    check_config(tmp_path, config(log_every=1))
    (tmp_path / "wandb_id.txt").write_text("1234")
    check_config(tmp_path, config(other=1))  # nothing has run yet
    check_config(tmp_path, config(log_every=1))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    check_config(tmp_path, config(log_every=5, wandb_project="p", profile=dict(num_steps=1)))
    check_config(tmp_path, config(mesh=dict(data=2), engine=dict(slots=4), microbatch_rows=1))
    changed = config(top=1)
    changed.grpo.kl_coef = 0.01
    del changed.seed
    expected = r"\(added: top 1; removed: seed 0; changed: grpo.kl_coef 0.001 -> 0.01\)"
    with pytest.raises(ConfigError, match=expected):
        check_config(tmp_path, changed)
    with pytest.raises(ConfigError, match="must be JSON"):
        check_config(tmp_path, config(dtype=jnp.float32))


@pytest.mark.parametrize(
    ("old", "new", "unit", "right"),
    [(8, 12, 4, True), (8, 9, 1, True), (8, 12, 0, False), (6, 12, 4, False), (8, 4, 4, False)],
)
def test_a_run_may_be_prolonged(tmp_path: Path, old: int, new: int, unit: int, right: bool) -> None:
    """By whole iterations, and where the schedule of the learning rate is the same."""
    before, after = (config_dict.create(total_steps=steps) for steps in (old, new))
    check_config(tmp_path, before, unit)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    if right:
        check_config(tmp_path, after, unit)
        assert json.loads((tmp_path / "config.json").read_text())["total_steps"] == new
    else:
        with pytest.raises(ConfigError, match=f"changed: total_steps {old} -> {new}"):
            check_config(tmp_path, after, unit)


BIG = """
import dataclasses, sys
import jax
from r1jax.machines.mesh import make_mesh
from r1jax.models.config import ModelConfig
from r1jax.models.layouts import Compute
from r1jax.models.params import random_params
from r1jax.models.transformer import Transformer
from r1jax.weights.checkpoint import Checkpoints, write_model_json
from r1jax.weights.load import open_model

def peak():  # of this process; getrusage's is that of the one it was forked from, too
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

config = ModelConfig(
    vocab_size=32_000, embed_dim=1024, num_layers=8, num_heads=8, num_kv_heads=8, head_dim=128,
    ffn_dim=4096)
mesh = make_mesh({"fsdp": 2})
if sys.argv[2] == "write":
    write_model_json(sys.argv[1], dataclasses.asdict(config) | dataclasses.asdict(Compute()))
    params = random_params(Transformer(config, mesh), 0)
    with Checkpoints(sys.argv[1]) as checkpoints:
        checkpoints.save(1, {"params": params})
else:
    before = peak()
    params = jax.block_until_ready(open_model(sys.argv[1]).load(mesh, 0))
    print((peak() - before) / sum(x.nbytes for x in jax.tree.leaves(params)))
"""


@pytest.mark.slow
def test_a_host_reads_little_more_than_its_shards(tmp_path: Path) -> None:
    """A model of 640 MiB on two devices of this host: the peak, over the model's size."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}

    def run(what: str) -> str:
        command = [sys.executable, "-c", BIG, str(tmp_path), what]
        return subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True
        ).stdout

    run("write")
    assert 1 <= float(run("read")) < 1.6  # read as a whole first, it is 2
