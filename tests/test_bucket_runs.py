"""Runs whose workdir is on gs://, against an emulator: the bits of those on a disk."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from helpers import ONE_DEVICE, grpo_config

from r1jax import files
from r1jax.config import ConfigError
from r1jax.files import LOCK, LOG, absolute, content_of, names_below, read_metrics, write_atomic
from r1jax.journal import Journal, append_lines, count_lines, cut, drop_after
from r1jax.machines import lease, program_cache
from r1jax.machines.processes import Processes, lock_workdir
from r1jax.reports.runs import read_run
from r1jax.stages import grpo, pipeline
from r1jax.training.metrics import MetricsWriter
from r1jax.weights.checkpoint import Checkpoints, load_params

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("r1jax.journal.PAUSE", 0.05)
    monkeypatch.setattr(lease, "BEAT", 0.1)
    monkeypatch.setattr(lease, "EXPIRY", 1.0)


# ---- files that grow ----


def lines(path: epath.Path) -> list[int]:
    return [json.loads(line)["step"] for line in content_of(path).splitlines()]


def test_a_file_grows_by_segments(bucket: epath.Path) -> None:
    path = bucket / "run" / "metrics.jsonl"
    assert count_lines(path) == 0
    with Journal(path) as journal:
        journal.write([{"step": 1}])
        journal.write([{"step": 2}])
        assert journal.sync() == 2
        journal.write([{"step": 3}])
        wait_until(lambda: lines(path) == [1, 2, 3])  # without being asked
        journal.write([{"step": 4}])
    assert lines(path) == [1, 2, 3, 4]
    assert [part.name for part in sorted(path.iterdir())] == ["00000000", "00000001"]
    append_lines(path, [{"step": 5}])
    assert count_lines(path) == 5 and read_metrics(bucket / "run")[4] == {"step": 5}


def wait_until(holds: Any) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("step", [0, 1, 2, 3, 4])
def test_lines_are_dropped_across_segments(bucket: epath.Path, step: int) -> None:
    path = bucket / "metrics.jsonl"
    for first in (1, 3):
        append_lines(path, [{"step": first}, {"step": first + 1}])
    drop_after(path, step)
    assert count_lines(path) == step
    append_lines(path, [{"step": step + 1}])
    assert lines(path) == list(range(1, step + 2))
    cut(path, 1)
    assert lines(path) == [1]


def test_what_a_bucket_refuses_is_tried_again(
    bucket: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, refused = bucket / "metrics.jsonl", threading.Event()

    def write(target: epath.Path, data: bytes) -> None:
        if not refused.is_set():
            refused.set()
            raise OSError("no route")
        write_atomic(target, data)

    monkeypatch.setattr("r1jax.journal.write_atomic", write)
    with Journal(path) as journal:
        journal.write([{"step": 1}])
        assert refused.wait(10)
        journal.sync()
        assert lines(path) == [1]


def test_a_file_that_was_copied_from_a_disk_grows(bucket: epath.Path) -> None:
    write_atomic(bucket / "metrics.jsonl", b'{"step": 1}\n')
    append_lines(bucket / "metrics.jsonl", [{"step": 2}])
    assert lines(bucket / "metrics.jsonl") == [1, 2]


def test_a_bucket_that_does_not_answer_is_not_empty(
    bucket: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is asked for a while."""
    asked: list[str] = []

    def info(name: str) -> Any:
        asked.append(name)
        raise TimeoutError("no route")

    with Checkpoints(bucket / "run") as checkpoints:
        checkpoints.save(1, {"w": np.zeros(2)})
    monkeypatch.setattr(files, "_in_system", lambda _: (SimpleNamespace(info=info), "1"))
    monkeypatch.setattr(files, "PAUSE", 0.05)
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    with pytest.raises(TimeoutError):
        Checkpoints(bucket / "run").steps()
    assert len(asked) > 1


# ---- one writer ----


def test_a_workdir_in_use_is_refused_and_free_again(bucket: epath.Path) -> None:
    wrong = f"gs://models/run is in use by process {os.getpid()}"
    with lock_workdir(bucket / "run"):
        with pytest.raises(ConfigError, match=wrong), lock_workdir(bucket / "run"):
            pass
        time.sleep(0.3)
    assert not (bucket / "run" / LOCK).exists()
    with lock_workdir(bucket / "run"):
        pass


def held(bucket: epath.Path, **changes: Any) -> lease.Holder:
    values = {"token": "other", "process": 1, "host": "elsewhere", "boot": "another"} | changes
    (bucket / LOCK).write_text(json.dumps(values))
    return lease.Holder(**values)


def test_of_a_process_that_died_elsewhere_nothing_is_heard(
    bucket: epath.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held(bucket)
    began = time.monotonic()
    with lock_workdir(bucket):
        assert time.monotonic() - began > lease.EXPIRY
    assert "in use by process 1 of elsewhere" in capsys.readouterr().out


def test_of_one_that_died_here_it_is_known(
    bucket: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "EXPIRY", 100.0)
    dead = subprocess.Popen(["true"])
    time.sleep(0.2)  # ended, and not waited for
    held(bucket, process=dead.pid, host=os.uname().nodename, boot=lease._boot())
    with lock_workdir(bucket):
        pass
    dead.wait()


def test_who_loses_it_writes_no_more(bucket: epath.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(lease.os, "_exit", lambda _: ended.set())
    with lock_workdir(bucket):
        held(bucket)
        assert ended.wait(10)
    assert json.loads((bucket / LOCK).read_text())["token"] == "other"  # it is not ours to delete


def test_at_the_end_nobody_is_said_to_have_taken_it(
    bucket: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread is asking while what it asks for is given back."""
    ended, asks, answered = [], threading.Event(), threading.Event()
    monkeypatch.setattr(lease.os, "_exit", ended.append)
    read = lease._Object.read

    def slow(store: Any) -> Any:
        if threading.current_thread().name == "lease":
            asks.set()
            time.sleep(0.5)
            answered.set()
        return read(store)

    with lock_workdir(bucket):
        monkeypatch.setattr(lease._Object, "read", slow)
        assert asks.wait(10)
    assert answered.wait(10)
    time.sleep(0.3)
    assert ended == []


def test_of_two_who_take_it_at_once_the_store_refuses_one(
    bucket: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The emulator heeds no generations: what is asked of the store is looked at."""
    from google.cloud.storage import Blob

    asked: list[Any] = []
    upload = Blob.upload_from_string

    def write(blob: Any, data: str, **flags: Any) -> None:
        asked.append(flags["if_generation_match"])
        upload(blob, data, **flags)

    monkeypatch.setattr(Blob, "upload_from_string", write)
    monkeypatch.setattr(lease, "BEAT", 100.0)
    store = lease._Object(bucket / LOCK)
    with lock_workdir(bucket):
        pass
    held(bucket, process=2**30, host=os.uname().nodename, boot=lease._boot())
    generation = store.read()[1]
    with lock_workdir(bucket):
        pass
    assert asked == [0, generation]


def test_a_bucket_that_is_not_there_is_said(bucket: epath.Path) -> None:
    wrong = "gs://nobodys/run cannot be written: 404"
    with pytest.raises(ConfigError, match=wrong), lock_workdir("gs://nobodys/run"):
        pass
    with pytest.raises(ConfigError, match="gs:// names no bucket"):
        absolute("gs://")


# ---- runs ----


class _Killed(BaseException):
    pass


@pytest.mark.slow
def test_a_killed_run_ends_with_the_bits_of_one_on_a_disk(
    bucket: epath.Path,
    tmp_path: Path,
    tokenizer_dir: str,
    one_device: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = grpo_config(tokenizer_dir, total_steps=4, checkpoint_every=2)
    grpo.run(config, str(tmp_path / "run"))
    write, here = MetricsWriter.write, str(bucket / "run")

    def dies(self: MetricsWriter, step: int, *values: Any) -> None:
        write(self, step, *values)
        if step == 3:
            raise _Killed

    monkeypatch.setattr(MetricsWriter, "write", dies)
    with pytest.raises(_Killed):
        grpo.run(config, here)
    monkeypatch.setattr(MetricsWriter, "write", write)
    grpo.run(config, here)
    for name in ("metrics.jsonl", "samples.jsonl"):
        there = content_of(bucket / "run" / name)
        assert there == (tmp_path / "run" / name).read_bytes()
    jax.tree.map(np.testing.assert_array_equal, load_params(here), load_params(tmp_path / "run"))
    found, local = (read_run(path) for path in (here, tmp_path / "run"))
    assert found.metrics == local.metrics and len(found.timings) == 4
    assert (bucket / "run" / "report.html").exists()

    copied = tmp_path / "copied"  # as `gcloud storage cp -r` does: it is read, and goes on
    for name in names_below(bucket / "run"):
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        (copied / name).write_bytes((bucket / "run" / name).read_bytes())
    assert (copied / "metrics.jsonl").is_dir()
    assert read_run(copied).metrics == local.metrics
    grpo.run(grpo_config(tokenizer_dir, total_steps=6, checkpoint_every=2), str(copied))
    assert (copied / "metrics.jsonl").is_file()
    assert [row["step"] for row in read_metrics(copied)] == [1, 2, 3, 4, 5, 6]


def test_a_damaged_checkpoint_is_set_aside(
    bucket: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def move(system: Any, source: str, target: str) -> None:
        await system._cp_file(source, target)
        await system._rm_file(source)

    # The emulator cannot move objects; so does gcsfs too, when it has tried for half a minute.
    monkeypatch.setattr("gcsfs.GCSFileSystem._mv_file", move)
    state = {"params": {"w": np.arange(6, dtype=np.float32)}}
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    with Checkpoints(bucket / "run") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state)
    (bucket / "run/checkpoints/2/state/params.w/0").write_bytes(b"\0" * 24)
    found = Checkpoints(bucket / "run").restore_newest(wanted)
    assert found is not None and found[0] == 1
    np.testing.assert_array_equal(found[1]["params"]["w"], state["params"]["w"])
    assert Checkpoints(bucket / "run").steps() == [1]
    assert (bucket / "run/checkpoints/2.damaged/state/params.w/0").exists()


def test_old_checkpoints_go(bucket: epath.Path) -> None:
    with Checkpoints(bucket / "run", max_to_keep=2) as checkpoints:
        for step in range(4):
            checkpoints.save(step, {"w": np.zeros(2)})
    assert Checkpoints(bucket / "run").steps() == [2, 3]
    assert {name.split("/")[0] for name in names_below(bucket / "run/checkpoints")} == {"2", "3"}


def test_a_stage_that_was_being_deleted_is_gone(
    bucket: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at any object of it."""
    stage = bucket / "run" / "base"
    for name in ("stage_complete.json", "checkpoints/1/manifest.json", "metrics.jsonl/00000000"):
        (stage / name).write_text("{}")
    remove = type(stage).rmtree
    calls = iter([False, True])

    def rmtree(path: epath.Path) -> None:
        if next(calls, False):
            raise _Killed
        remove(path)

    monkeypatch.setattr(type(stage), "rmtree", rmtree)
    with pytest.raises(_Killed):
        pipeline._delete(stage)
    assert (stage / ".deleted").exists()
    pipeline._delete(stage)
    assert not stage.exists() and names_below(bucket / "run") == []


# ---- beside runs ----


def test_compiled_programs_are_shared(
    bucket: epath.Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for machine in ("a", "b"):
        monkeypatch.setattr(program_cache, "HERE", tmp_path / machine / "xla")
        here = Path(program_cache.program_cache("gs://models/programs"))
        assert (here / "jit_f-cache").exists() == (machine == "b")
        (here / "jit_f-cache").write_bytes(b"program")
        (here / "jit_f-atime").write_bytes(b"now")
        program_cache.end_sharing()
    assert names_below(bucket / "programs") == ["jit_f-cache"]
    program_cache.program_cache("gs://models/programs")  # of a run that is killed
    (here / "jit_g-cache").write_bytes(b"program")
    program_cache.program_cache("gs://models/programs")
    program_cache.end_sharing()
    assert names_below(bucket / "programs") == ["jit_f-cache", "jit_g-cache"]
    assert program_cache.program_cache("/tmp/x") == "/tmp/x"


def test_what_commands_print_is_brought_to_the_bucket(bucket: epath.Path) -> None:
    for word in ("one", "two"):
        with Processes(1) as processes:
            processes.start("run", ["echo", word], bucket / "run")
            processes.wait()
    assert (bucket / "run" / LOG).read_text() == "one\ntwo\n"


@pytest.mark.slow
def test_commands(bucket: epath.Path, tmp_path: Path, tokenizer_dir: str) -> None:
    """SIGKILL, the same command again, tables; the programs of both in the bucket."""
    (tmp_path / "config.py").write_text(
        "from helpers import sft_config\n"
        "def get_config(arg=''):\n"
        f"    return sft_config({tokenizer_dir!r}, total_steps=60, checkpoint_every=15)\n"
    )
    env = os.environ | {
        "XLA_FLAGS": ONE_DEVICE,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "R1JAX_COMPILATION_CACHE": "gs://models/programs",
        "HOME": str(tmp_path),
    }
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    train = [sys.executable, "-m", "r1jax.train", "--config=config.py", "--workdir=gs://models/run"]
    process = subprocess.Popen(train, cwd=tmp_path, env=env, stdout=subprocess.PIPE)
    wait_until_slowly(lambda: any((bucket / "run/checkpoints").glob("*/manifest.json")))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    subprocess.run(train, cwd=tmp_path, env=env, check=True, stdout=subprocess.PIPE, timeout=300)
    assert [row["step"] for row in read_metrics("gs://models/run")] == list(range(1, 61))
    assert not (bucket / "run" / LOCK).exists()
    assert any(name.endswith("-cache") for name in names_below(bucket / "programs"))
    tables = "r1jax.tables", "--workdirs=gs://models/run", "--output=gs://models/report"
    subprocess.run(
        [sys.executable, "-m", *tables], cwd=tmp_path, env=env, check=True, stdout=subprocess.PIPE
    )
    assert (bucket / "report/report.md").read_text().startswith("# run")


def wait_until_slowly(holds: Any) -> None:
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture(autouse=True)
def no_sharing() -> Iterator[None]:
    yield
    program_cache.end_sharing()
