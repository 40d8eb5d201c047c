"""Several processes with some devices each, as on hosts, against one process with all of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath
from helpers import ONE_DEVICE, metrics_by_step, read_lines

from r1jax.config import DataError
from r1jax.machines import hosts
from r1jax.machines.peers import LOST
from r1jax.machines.preemption import STOPPED
from r1jax.rollout.files import read_rollouts
from r1jax.types import Rollout
from r1jax.weights.checkpoint import Checkpoints

ROOT = Path(__file__).parents[1]
GRPO = """
from helpers import grpo_config

def get_config(arg=""):
    rewards = {{"helpers:ascii_share": 1.0, "helpers:process": 0.0}}
    return grpo_config(
        {tokenizer!r}, rewards=rewards, rollouts_ahead=1, loss={{"importance_cap": 2.0}}
    )
"""
# Every stage that runs on several processes, of a model with experts, each on another's files.
PIPELINE = """
from helpers import grpo_config, sft_config
from ml_collections import ConfigDict

def get_config(arg=""):
    problems = {{"function": "experiments.mini.world.problems:problems",
                 "args": {{"seed": 1, "split": "test", "levels": [1], "count": 6}}}}
    asked = {{"data": problems, "template": "plain", "max_prompt_tokens": 48, "num_samples": 4,
              "sampling": {{"max_tokens": 8}}}}
    engine = {{"slots": 16, "chunk": 8, "bucket": 64, "prefill_batch": 4}}
    base = sft_config({tokenizer!r}, total_steps=2, checkpoint_every=1, mesh={{"fsdp": -1}})
    base.model.config.experts = {{
        "num_experts": 4, "top_k": 2, "ffn_dim": 8, "score": "sigmoid", "bias": True}}
    pairs = {{"path": "pairs.jsonl"}}
    reward = {{"stage": "reward_model", "model": {{"path": "@base"}}, "data": pairs,
               "held_out": {{"data": pairs}}, "template": "plain", "batch_size": 8,
               "total_steps": 2, "pack_length": 64, "checkpoint_every": 1}}
    learned = {{"path": "@reward", "weight": 0.5, "reads": "response", "template": "plain"}}
    zero = grpo_config({tokenizer!r}, mesh={{"data": 2, "fsdp": 2}}, router_replay=True,
        reward_models={{"learned": learned}},
        evaluation={{"every": 2, "curve": {{"few": asked}}}})
    zero.model = ConfigDict({{"path": "@base"}})
    kept = {{"stage": "rejection", "model": {{"path": "@zero"}}, "portion": 3, "per_prompt": 2,
             "minimum": {{"helpers:ascii_share": 0.5}}, "engine": engine, **asked}}
    again = sft_config({tokenizer!r}, total_steps=2, checkpoint_every=1, template="plain",
        data={{"path": "@kept/data.jsonl"}}, overlong="drop")
    again.model = ConfigDict({{"path": "@zero"}})
    tested = {{"stage": "evaluate", "model": "@again", "benchmarks": {{"few": asked}},
               "engine": engine}}
    found = ConfigDict({{"stage": "pipeline"}})
    stages = dict(base=base, reward=reward, zero=zero, kept=kept, again=again, tested=tested)
    found.stages = ConfigDict(stages, sort_keys=False)
    return found
"""


class Launch:
    """`python -m r1jax.train --config=config.py` as so many processes, with devices each."""

    def __init__(self, directory: Path, workdir: str, processes: int, devices: int) -> None:
        self.directory, self.workdir = directory, directory / workdir
        several = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}"}
        several["JAX_NUM_PROCESSES"] = str(processes)
        environment = os.environ | {
            "XLA_FLAGS": f"{ONE_DEVICE} --xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            **(several if processes > 1 else {}),
        }
        command = [sys.executable, "-m", "r1jax.train", "--config=config.py"]
        self.processes = []
        for i in range(processes):
            with open(directory / f"{workdir}-{i}.log", "wb") as log:
                self.processes.append(
                    subprocess.Popen(
                        [*command, f"--workdir={workdir}"],
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        cwd=directory,
                        env=environment | {"JAX_PROCESS_ID": str(i)},
                    )
                )

    def finish(self) -> Path:
        finish(self.directory, *self.processes)
        return self.workdir

    def wait_for(self, moment: Callable[[Path], bool]) -> None:
        for _ in range(600_000):
            if moment(self.workdir):
                break
            assert not any(process.poll() for process in self.processes)
            time.sleep(0.001)
        assert all(process.poll() is None for process in self.processes), "it ended before"

    def stop(self, moment: Callable[[Path], bool], process: int) -> None:
        """Sends SIGTERM to one of them, which ends all."""
        self.wait_for(moment)
        self.processes[process].send_signal(signal.SIGTERM)
        codes = [process.wait(timeout=600) for process in self.processes]
        assert codes == [STOPPED] * len(codes)

    def lose(self, moment: Callable[[Path], bool], victim: int) -> None:
        """Kills one of them, which ends all."""
        self.wait_for(moment)
        self.processes[victim].kill()
        for i, process in enumerate(self.processes):
            code = process.wait(timeout=60)
            log = (self.directory / f"{self.workdir.name}-{i}.log").read_text()
            assert i == victim or code == LOST, log
            assert i == victim or f"error: process {victim} ({socket.gethostname()}) is gone" in log

    def kill(self, moment: Callable[[Path], bool]) -> None:
        """Ends all of them at once by SIGKILL."""
        try:
            self.wait_for(moment)
        finally:
            for process in self.processes:
                process.kill()
            for process in self.processes:
                process.wait()


def finish(directory: Path, *processes: subprocess.Popen[bytes]) -> None:
    try:
        codes = [process.wait(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    logs = "\n".join(path.read_text() for path in sorted(directory.glob("*.log")))
    assert not any(codes), f"{codes}\n{logs}"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


SAVES = """
import os, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from r1jax.machines import hosts
from r1jax.machines.hosts import set_up_jax
from r1jax.weights import checkpoint
from r1jax.weights.checkpoint import CheckpointError, Checkpoints
set_up_jax()
me, told = jax.process_index(), []
hosts.PART = 64  # bytes: a long text goes in several parts, the short one's process beside it
texts = ["計" * 3, "\\ud800 \\n" * 50]
print("all", me, hosts.of_all({"text": texts[me]}) == [{"text": t} for t in texts], flush=True)
mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(AxisType.Auto,))
split, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (("fsdp",), ()))
def make(step):
    value = np.arange(40.0, dtype=np.float32).reshape(4, 10) + step
    def one(sharding):
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
    return {"split": one(split), "whole": one(whole)}
def add(s):
    return {name: x + 1 for name, x in s.items()}
step = jax.jit(add, donate_argnums=0, out_shardings={"split": split, "whole": whole})
state = make(0)
abstract = {
    n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for n, x in state.items()}
def newest():
    return Checkpoints(sys.argv[1]).restore_newest(abstract)[0]
with Checkpoints(sys.argv[1]) as checkpoints:
    for number in range(3):
        checkpoints.save(number, state, {"step": number})
        state = step(state)  # while it is written: what the main threads do is in step
found, extra = checkpoints.restore(2, abstract)
for name, x in make(2).items():
    for a, b in zip(found[name].addressable_shards, x.addressable_shards):
        np.testing.assert_array_equal(a.data, b.data)
print("restored", me, extra["step"], checkpoints.steps(), flush=True)
if me == 0:  # of a file of the second one
    import json
    directory = checkpoints.directory / "2"
    own = [set(json.loads((directory / f"files.{i}.json").read_text())) for i in range(2)]
    assert not own[0] & own[1]
    assert {"state/split/0.0"} <= own[0] and {"state/split/1.0"} <= own[1]
    file = directory / "state/split/1.0"
    file.write_bytes(b"?" + file.read_bytes()[1:])
try:
    checkpoints.restore(2, abstract)
except CheckpointError as error:
    print("damaged", me, "state/split/1.0" in str(error), newest(), flush=True)
def fail(*_):
    if me == 1:
        raise OSError("no space on the second one")
checkpoint.write_list = fail
try:
    with checkpoints:
        checkpoints.save(5, state)
except CheckpointError as error:
    print("told", me, "no space on the second one" in str(error), checkpoints.steps(), flush=True)
"""


def test_each_process_writes_and_checks_its_own_files(tmp_path: Path) -> None:
    """And an error of one is one of both."""
    several = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    processes: list[subprocess.Popen[bytes]] = []
    for i in range(2):
        environment = {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT), "JAX_PROCESS_ID": str(i)}
        with open(tmp_path / f"{i}.log", "wb") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", SAVES.replace("flush=True", "file=sys.stderr"), "work"],
                    stderr=log,
                    cwd=tmp_path,
                    env=os.environ | environment | several,
                )
            )
    finish(tmp_path, *processes)
    for i in range(2):
        lines = (tmp_path / f"{i}.log").read_text().splitlines()
        assert f"all {i} True" in lines
        assert f"restored {i} 2 [1, 2]" in lines
        assert f"damaged {i} True 1" in lines
        assert f"told {i} True [1]" in lines


def exists(name: str) -> Callable[[Path], bool]:
    return lambda workdir: (workdir / name).exists()


def contains(name: str, text: str) -> Callable[[Path], bool]:
    return lambda workdir: (workdir / name).exists() and text in (workdir / name).read_text()


def assert_same_metrics(found: Path, expected: Path) -> None:
    """Up to the rounding of sums over devices."""
    one, other = metrics_by_step(expected), metrics_by_step(found)
    assert list(one) == list(other)
    for step in one:
        assert one[step].keys() == other[step].keys()
        for name in one[step].keys() - {"grpo/reward/helpers:process"}:
            np.testing.assert_allclose(
                other[step][name], one[step][name], rtol=1e-4, atol=1e-5, err_msg=name
            )


def assert_same_rollouts(found: Path, expected: Path) -> list[Rollout]:
    names = sorted(path.name for path in (expected / "rollouts").iterdir())
    assert sorted(path.name for path in (found / "rollouts").iterdir()) == names
    rollouts = []
    for name in names:
        one, other = (read_rollouts(epath.Path(w) / "rollouts" / name) for w in (expected, found))
        for a, b in zip(one, other, strict=True):
            assert (a.example_id, a.text) == (b.example_id, b.text)
            assert a.completion.tokens.tolist() == b.completion.tokens.tolist()
            assert a.completion.finish_reason == b.completion.finish_reason
            np.testing.assert_allclose(a.completion.logprobs, b.completion.logprobs, atol=1e-5)
            parts = [dict(r.reward_breakdown) | {"helpers:process": 0.0} for r in (a, b)]
            assert parts[0] == pytest.approx(parts[1], abs=1e-5)
        rollouts += other
    return rollouts


@pytest.mark.parametrize(
    ("mine", "others", "expected"),
    [
        (None, None, None),
        (None, [1, "no room"], OSError("no room")),
        (OSError("here"), None, OSError("here")),
        (DataError("here"), [1, "no room"], DataError("here")),
    ],
)
def test_an_error_of_one_process_is_one_of_all(
    monkeypatch: pytest.MonkeyPatch,
    mine: Exception | None,
    others: list[Any] | None,
    expected: Exception | None,
) -> None:
    def work() -> int:
        if mine:
            raise mine
        return 5

    monkeypatch.setattr(hosts, "of_all", lambda problem: [problem, others])
    if expected is None:
        assert hosts.agreed(work, DataError, OSError) == 5
    else:
        with pytest.raises(type(expected), match=str(expected)):
            hosts.agreed(work, DataError, OSError)


@pytest.mark.slow
def test_four_processes_and_then_two_are_one(tokenizer_dir: str, tmp_path: Path) -> None:
    """Of GRPO with a rollout ahead and a reward that every process grades differently: that of the
    process whose question it is counts on all. Ended by the death of one, it goes on with what the
    four have written.
    """
    (tmp_path / "config.py").write_text(GRPO.format(tokenizer=tokenizer_dir))
    one = Launch(tmp_path, "one", 1, 8).finish()
    written = "rollouts/000001/complete.json"
    Launch(tmp_path, "several", 4, 2).lose(exists(written), victim=2)
    several = Launch(tmp_path, "several", 2, 4).finish()
    assert len(json.loads((several / written).read_text())["completions"]) == 4
    assert_same_metrics(several, one)
    for rollout in assert_same_rollouts(several, one):
        completion = rollout.completion
        expected = 0.1 * (completion.prompt_index % 4) * (len(completion.tokens) % 3)
        assert rollout.reward_breakdown["helpers:process"] == pytest.approx(expected)


@pytest.mark.slow
def test_a_pipeline_of_two_processes(tokenizer_dir: str, tmp_path: Path) -> None:
    """Killed and stopped in three of its stages, it is that of one process."""
    (tmp_path / "config.py").write_text(PIPELINE.format(tokenizer=tokenizer_dir))
    pairs = [{"prompt": f"{i}?", "chosen": f"{i}!", "rejected": "no" * (1 + i)} for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    one = Launch(tmp_path, "one", 1, 4).finish()
    Launch(tmp_path, "two", 2, 2).kill(exists("reward/checkpoints/1/manifest.json"))
    # Between the two updates of a rollout, and while the next stage samples.
    Launch(tmp_path, "two", 2, 2).stop(contains("zero/metrics.jsonl", '"step": 3,'), process=1)
    assert Checkpoints(tmp_path / "two/zero").latest_step() in (3, 4)
    Launch(tmp_path, "two", 2, 2).stop(exists("kept/rollouts/000001"), process=0)
    two = Launch(tmp_path, "two", 2, 2).finish()
    for name in ("base", "reward", "zero", "again"):
        assert_same_metrics(two / name, one / name)
    for name in ("zero", "kept"):
        assert_same_rollouts(two / name, one / name)
    for name in ("kept/data.jsonl", "kept/statistics.json"):
        assert (two / name).read_bytes() == (one / name).read_bytes()
    answers = [[(r["text"], r["reward"]) for r in read_lines(w / "tested/few.jsonl")]
               for w in (one, two)]  # fmt: skip
    assert answers[0] == answers[1]
