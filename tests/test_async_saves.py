"""Saves behind the run: the values of before the next step, whole or not at all, errors told."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from r1jax.weights import checkpoint, chunks
from r1jax.weights.checkpoint import CheckpointError, Checkpoints, load_params
from r1jax.weights.manifest import leaves_of, specs_of

ROOT = Path(__file__).parents[1]


def spread(mesh_shape: tuple[int, ...], *specs: PartitionSpec) -> list[NamedSharding]:
    names = ("data", "fsdp")[: len(mesh_shape)]
    devices = jax.devices()[: int(np.prod(mesh_shape))]
    mesh = jax.make_mesh(
        mesh_shape, names, axis_types=(AxisType.Auto,) * len(names), devices=devices
    )
    return [NamedSharding(mesh, spec) for spec in specs]


def test_a_save_holds_the_values_of_before_the_donated_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written before several steps have run on donated arrays: they do not wait."""
    may_write = threading.Event()
    complete = Checkpoints._complete

    def late(*args: Any) -> None:
        may_write.wait()
        complete(*args)

    monkeypatch.setattr(Checkpoints, "_complete", late)
    (sharding,) = spread((8,), PartitionSpec("data"))
    state = {"split": jax.device_put(jnp.ones((64, 4096)), sharding), "one": jnp.ones(1_000_000)}
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        for _ in range(3):
            state = jax.block_until_ready(step(state))
        assert not (tmp_path / "checkpoints/1/manifest.json").exists()
        may_write.set()
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    found, _ = Checkpoints(tmp_path).restore(1, wanted)
    assert all(np.all(x == 1) for x in found.values())
    assert all(np.all(x == 4) for x in state.values())


def test_what_orbax_reads_is_not_the_donated_array() -> None:
    """Else XLA would let the next step wait until it is written."""
    array = jnp.ones(100_000)
    copy = checkpoint._off_device({"a": array})["a"]
    assert copy.unsafe_buffer_pointer() != array.unsafe_buffer_pointer()


@pytest.mark.parametrize("error", [OSError("No space left on device"), ValueError("Disk full\nx")])
@pytest.mark.parametrize("when", ["next save", "end", "failing end"])
def test_a_failed_write_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    when: str,
) -> None:
    """With the same words, at the next save or at the end; an error of the run counts more."""

    def fail(*_: Any) -> None:
        raise error

    reason = str(error).splitlines()[0]
    said = rf"checkpoints/2 cannot be written: {reason}; the one before is kept"
    state = {"a": jnp.ones(8)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    checkpoints.wait()
    monkeypatch.setattr(checkpoint, "write_list", fail)
    if when == "failing end":
        with pytest.raises(ZeroDivisionError), checkpoints:
            checkpoints.save(2, state)
            raise ZeroDivisionError
        assert f"cannot be written: {reason}" in caplog.text
    elif when == "end":
        with pytest.raises(CheckpointError, match=said), checkpoints:
            checkpoints.save(2, state)
    else:
        checkpoints.save(2, state)
        with pytest.raises(CheckpointError, match=said):
            checkpoints.save(3, state)
    monkeypatch.undo()
    assert Checkpoints(tmp_path).steps() == [1]


def test_then_is_called_when_it_is_complete(tmp_path: Path) -> None:
    """What deletes what an earlier checkpoint needs must not come before the manifest."""
    seen: list[bool] = []
    manifest = tmp_path / "checkpoints/1/manifest.json"
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": jnp.ones(8)}, then=lambda: seen.append(manifest.exists()))
    assert seen == [True]


def test_none_without_what_lies_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the critic's save failed, the policy has no checkpoint of that step either."""
    critic = Checkpoints(tmp_path / "critic")
    policy = Checkpoints(tmp_path, beside=lambda _: [tmp_path / "critic"])
    state = {"a": jnp.ones(8)}
    for checkpoints in (critic, policy):
        checkpoints.save(1, state)
    critic.wait()

    def fail(*_: Any) -> None:
        raise OSError("broken")

    monkeypatch.setattr(critic, "_complete", fail)
    critic.save(2, state)
    policy.save(2, state)
    with pytest.raises(CheckpointError, match=r"critic/checkpoints/2 is not complete"):
        policy.wait()
    with pytest.raises(CheckpointError, match="broken"):
        critic.wait()
    assert policy.steps() == [1]


@pytest.mark.parametrize("spec", [(), ("data",), (None, "fsdp"), ("fsdp", "data")])
@pytest.mark.parametrize("chunk", [1 << 25, 64])
def test_restored_on_another_mesh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: Any, chunk: int
) -> None:
    """Bit by bit, whatever the chunks are; each device reads the files that hold its part."""
    monkeypatch.setattr(checkpoint, "CHUNK_BYTES", chunk)
    saved, wanted = (
        spread((2, 4), PartitionSpec("fsdp", "data"))[0],
        spread((4, 2), PartitionSpec(*spec))[0],
    )
    value = np.arange(32 * 24, dtype=np.float32).reshape(32, 24)
    state = {"w": jax.device_put(value, saved), "host": value[:3], "step": jnp.int32(7)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": state})
    abstract = {
        "w": jax.ShapeDtypeStruct(value.shape, jnp.bfloat16, sharding=wanted),
        "host": jax.ShapeDtypeStruct((3, 24), np.float32),
        "step": jax.ShapeDtypeStruct((), np.int32),
    }
    found = load_params(tmp_path, abstract)
    assert found["w"].sharding == wanted and found["w"].dtype == jnp.bfloat16  # as asked for
    np.testing.assert_array_equal(found["w"], value.astype(jnp.bfloat16))
    np.testing.assert_array_equal(found["host"], value[:3])
    assert found["step"] == 7


def test_only_what_is_read_is_looked_at(tmp_path: Path) -> None:
    """A damaged moment is no matter to who loads the model, nor a part that no device has."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": {"w": jnp.ones((8, 8))}, "mu": jnp.ones((8, 8))})
    for name, file in (("mu", "mu/0.0"), ("params/w", "params.w/0.0")):
        path = tmp_path / "checkpoints/1/state" / file
        data = bytearray(path.read_bytes())
        data[9] ^= 1
        path.write_bytes(data)
        if name == "mu":
            assert np.all(load_params(tmp_path)["w"] == 1)
    with pytest.raises(CheckpointError, match=r"is damaged: state/params\.w/0\.0 is not"):
        load_params(tmp_path)


def test_a_checkpoint_of_an_earlier_version(tmp_path: Path) -> None:
    """Arrays in databases, one manifest with the checksums of all files."""
    state = {"params": {"w": jnp.arange(24.0).reshape(4, 6)}, "step": jnp.int32(3)}
    directory = tmp_path / "checkpoints/3"
    directory.mkdir(parents=True)
    handler = ocp.PyTreeCheckpointHandler(use_compression=False)
    ocp.Checkpointer(handler).save(directory / "state", args=ocp.args.PyTreeSave(state))
    (directory / "extra.json").write_text('{"seen": 1}')
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    files = {str(path.relative_to(directory)): zlib.crc32(path.read_bytes()) for path in paths}
    manifest = {"leaves": specs_of(leaves_of(state)), "files": files}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    step, found, extra = Checkpoints(tmp_path).restore_newest(abstract) or (0, {}, {})
    assert (step, extra) == (3, {"seen": 1})
    jax.tree.map(np.testing.assert_array_equal, found, state)
    np.testing.assert_array_equal(load_params(tmp_path)["w"], state["params"]["w"])
    largest = max((p for p in paths if "ocdbt" in str(p)), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match=f"is damaged: state/.*{largest.name}"):
        load_params(tmp_path)


def test_boxes() -> None:
    """Parts of an array that lie across chunks, one of which juts out."""
    value = np.arange(7 * 5).reshape(7, 5)
    padded = np.zeros((8, 6), value.dtype)
    padded[:7, :5] = value

    def fetch(name: str) -> np.ndarray:
        i, j = map(int, name.split("."))
        return padded[2 * i : 2 * i + 2, 3 * j : 3 * j + 3]

    for index in [(), (slice(1, 6),), (slice(2, 4), slice(3, 5)), (slice(0, 2), slice(0, 3))]:
        box = chunks.box_of(value.shape, index)
        found = chunks.read_box(box, (2, 3), value.dtype, fetch)
        np.testing.assert_array_equal(found, value[index])


RUN = """
import sys
import jax, jax.numpy as jnp
from r1jax.weights.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
step = jax.jit(lambda s: {"w": s["w"] * 1.01 + 1, "step": s["step"] + 1}, donate_argnums=0)
state = {"w": jnp.ones((500, 1000)), "step": jnp.int32(0)}
found = checkpoints.restore_newest(jax.eval_shape(lambda: state))
number, state, _ = found or (0, state, {})
print("begins", number, flush=True)
with checkpoints:
    while number < int(sys.argv[2]):
        state = step(state)
        number += 1
        checkpoints.save(number, state, {"step": number})
        print(number, flush=True)
"""


def test_killed_at_any_moment_after_save_returned(tmp_path: Path) -> None:
    """The older checkpoint or the new one, whole; the end is that of a run that was not killed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    rng = random.Random(0)

    def start(workdir: Path, steps: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", RUN, str(workdir), str(steps)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    returned = 0
    for kill in range(3):
        process = start(tmp_path / "killed", 1000)
        assert process.stdout is not None
        begins = int(process.stdout.readline().split()[1])
        assert returned - 1 <= begins <= returned, "a checkpoint was lost"
        returned = [int(process.stdout.readline()) for _ in range(2 + kill)][-1]
        time.sleep(rng.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
        returned = max([returned, *map(int, rest.split())])
    end = returned + 1
    for name in ("killed", "whole"):
        process = start(tmp_path / name, end)
        process.communicate()
        assert process.returncode == 0
    ends = [load_params_of(tmp_path / name, end) for name in ("killed", "whole")]
    assert ends[0].tobytes() == ends[1].tobytes()


def load_params_of(workdir: Path, step: int) -> np.ndarray:
    abstract = {
        "w": jax.ShapeDtypeStruct((500, 1000), np.float32),
        "step": jax.ShapeDtypeStruct((), np.int32),
    }
    state, extra = Checkpoints(workdir).restore(step, abstract)
    assert extra == {"step": step} and state["step"] == step
    return np.asarray(state["w"])
