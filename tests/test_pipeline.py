"""Pipelines: the order, what is run again, what is refused, restarts; the mini pipeline whole."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import pytest
from etils import epath
from helpers import ONE_DEVICE
from ml_collections import ConfigDict

from r1jax.config import ConfigError, load_config
from r1jax.stages import STAGES, pipeline

ROOT = Path(__file__).parents[1]
RUNS: list[str] = []  # workdirs of fake stages, as they ran
QUICK: list[bool] = []  # whether programs were compiled quickly in them


@dataclass(frozen=True)
class FakeConfig:
    stage: str
    number: int = 0
    model: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    fails: bool = False


def run_fake(config: ConfigDict, workdir: str) -> None:
    RUNS.append(Path(workdir).name)
    QUICK.append(jax.config.read("jax_disable_most_optimizations"))
    Path(workdir).mkdir(parents=True, exist_ok=True)
    if config.get("fails"):
        raise ConfigError("it fails")
    (Path(workdir) / "seen.json").write_text(json.dumps(config.to_dict()))


@pytest.fixture(autouse=True)
def fake_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("fake_stage_of_test_pipeline")
    module.CONFIG, module.run = FakeConfig, run_fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(STAGES, "fake", module.__name__)
    RUNS.clear()
    QUICK.clear()


def config(**stages: dict[str, Any]) -> ConfigDict:
    inner = {name: {"stage": "fake"} | values for name, values in stages.items()}
    found = ConfigDict({"stage": "pipeline"})
    found.stages = ConfigDict(inner, sort_keys=False)
    return found


def abc(**changes: Any) -> ConfigDict:
    """c reads b, b reads a, d reads nothing."""
    return config(
        c={"data": {"paths": ["x", "@b/data.jsonl"]}},
        b={"model": "@a"},
        a=changes,
        d={"number": 4},
    )


# -- the plan --------------------------------------------------------------------------------------


def test_stages_come_after_what_they_read() -> None:
    steps = pipeline.ordered(abc(), epath.Path("/w"))
    assert [(step.name, step.reads) for step in steps] == [
        ("a", ()),
        ("b", ("a",)),
        ("c", ("b",)),
        ("d", ()),
    ]
    resolved = pipeline.resolved(steps[2], epath.Path("/w"))
    assert resolved.data.paths == ["x", "/w/b/data.jsonl"]
    assert pipeline.resolved(steps[1], epath.Path("/w")).model == "/w/a"


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ({}, "config.stages is empty"),
        ({"a": {"model": "@z"}}, "config.stages.a refers to @z, which is none of a"),
        ({"a": {"model": "@b"}, "b": {"model": "@a/x"}}, "a, b wait for each other"),
        ({"a": {"model": "@a"}}, "a wait for each other"),
        ({"a": {"nubmer": 1}}, r"unknown key config.stages.a.nubmer; did you mean config.stages.a"),
        ({"a": {"stage": "fke"}}, r"config.stages.a.stage 'fke' is not one of .*; did you mean"),
        ({"a/b": {}}, "a stage's name is that of a directory"),
        ({"a": {"stage": "pipeline", "stages": {}}}, "cannot be a stage of a pipeline"),
    ],
)
def test_mistakes_in_the_plan(stages: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=expected):
        pipeline.run(config(**stages), str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()
    assert RUNS == []


# -- running it ------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_programs_of_stages_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a process has many mappings, a compiled program is dropped behind its stage."""
    assert 0 < pipeline.mapped_share() < 1
    double = jax.jit(lambda x: 2 * x)
    double(1.0)
    monkeypatch.setattr(pipeline, "mapped_share", lambda: 0.1)
    pipeline.run(abc(), str(tmp_path / "few"))
    assert double._cache_size() == 1
    monkeypatch.setattr(pipeline, "mapped_share", lambda: 0.5)
    pipeline.run(abc(), str(tmp_path / "many"))
    assert double._cache_size() == 0


def test_what_is_complete_is_not_run_again(tmp_path: Path) -> None:
    pipeline.run(abc(), str(tmp_path))
    assert RUNS == ["a", "b", "c", "d"]
    assert json.loads((tmp_path / "b/seen.json").read_text())["model"] == str(tmp_path / "a")
    overview = json.loads((tmp_path / "pipeline.json").read_text())["stages"]
    assert [(n, s["reads"], s["complete"]) for n, s in overview.items()] == [
        ("a", [], True),
        ("b", ["a"], True),
        ("c", ["b"], True),
        ("d", [], True),
    ]
    assert (tmp_path / "figures/pipeline.png").stat().st_size > 1000
    pipeline.run(abc(), str(tmp_path))
    assert RUNS == ["a", "b", "c", "d"]


def test_an_interrupted_stage_is_run_again_and_may_change(tmp_path: Path) -> None:
    broken = abc()
    broken.stages.b.fails = True
    with pytest.raises(ConfigError, match=r"stage b: it fails \(--restart_from=b begins it anew"):
        pipeline.run(broken, str(tmp_path))
    overview = json.loads((tmp_path / "pipeline.json").read_text())["stages"]
    assert [s["complete"] for s in overview.values()] == [True, False, False, False]
    pipeline.run(abc(), str(tmp_path))
    assert RUNS == ["a", "b", "b", "c", "d"]


def test_a_changed_config_is_refused_with_what_differs(tmp_path: Path) -> None:
    pipeline.run(abc(number=1), str(tmp_path))
    with pytest.raises(ConfigError, match=r"stage a .* \(changed: number 1 -> 2\); .*from=a"):
        pipeline.run(abc(number=2), str(tmp_path))
    assert RUNS == ["a", "b", "c", "d"]
    more = abc(number=1)
    more.stages.e = ConfigDict({"stage": "fake", "model": "@c"})
    pipeline.run(more, str(tmp_path))  # a further stage is no change
    assert RUNS == ["a", "b", "c", "d", "e"]


def test_restart_deletes_what_was_made_from_it(tmp_path: Path) -> None:
    pipeline.run(abc(number=1), str(tmp_path))
    changed = abc(number=1)
    changed.stages.b.number = 7
    pipeline.restart(changed, str(tmp_path), "b")
    assert sorted(p.name for p in tmp_path.iterdir() if (p / "seen.json").exists()) == ["a", "d"]
    pipeline.run(changed, str(tmp_path))
    assert RUNS == ["a", "b", "c", "d", "b", "c"]
    with pytest.raises(ConfigError, match="--restart_from 'bb' is not one of 'a', 'b', 'c', 'd'"):
        pipeline.restart(changed, str(tmp_path), "bb")


def test_a_stage_made_from_another_input_is_refused(tmp_path: Path) -> None:
    pipeline.run(abc(), str(tmp_path))
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(ConfigError, match="stage b was made from another a than the one in"):
        pipeline.run(abc(), str(tmp_path))
    pipeline.restart(abc(), str(tmp_path), "b")
    pipeline.run(abc(), str(tmp_path))
    assert RUNS == ["a", "b", "c", "d", "a", "b", "c"]


def test_a_stage_that_began_with_another_input_is_refused(tmp_path: Path) -> None:
    """What a restart leaves that is killed between two deletions."""
    broken = abc()
    broken.stages.b.fails = True
    with pytest.raises(ConfigError, match="stage b: it fails"):
        pipeline.run(broken, str(tmp_path))
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(ConfigError, match="stage b was made from another a .*restart_from=b"):
        pipeline.run(abc(), str(tmp_path))
    pipeline.restart(abc(), str(tmp_path), "b")
    pipeline.run(abc(), str(tmp_path))
    assert RUNS == ["a", "b", "a", "b", "c", "d"]


def test_a_restart_deletes_readers_first_and_each_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.run(abc(), str(tmp_path))
    deleted: list[str] = []

    def killed(path: epath.Path) -> None:
        deleted.append(path.name.partition("-")[0])
        if len(deleted) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(epath.Path(tmp_path)), "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            pipeline.restart(abc(), str(tmp_path), "a")
    assert deleted == ["c", "b"]
    assert sorted(p.name for p in tmp_path.iterdir() if (p / "seen.json").exists()) == ["a", "d"]
    pipeline.run(abc(), str(tmp_path))
    assert RUNS == ["a", "b", "c", "d", "b", "c"]
    assert not (tmp_path / ".deleted").exists()


def test_a_wrong_value_in_a_late_stage_is_found_first(tmp_path: Path) -> None:
    late = {"stage": "grpo", "model": {"path": "@a"}, "data": {"path": "x"}}
    for values, expected in (
        ({"loss": {"loss_agg": "token_men"}}, "stage late: config.loss.loss_agg 'token_men'"),
        (
            {"optimizer": {"schedule": "cos"}},
            "stage late: .*optimizer.schedule 'cos' is not one of",
        ),
        ({"rewards": {"acuracy": 1.0}}, "stage late: reward 'acuracy'"),
    ):
        with pytest.raises(ConfigError, match=expected):
            pipeline.run(config(a={}, late=late | values), str(tmp_path / "w"))
    assert RUNS == []


@pytest.fixture
def thorough_compiler() -> Iterator[None]:
    """As commands have it, unlike tests (conftest.py)."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.usefixtures("thorough_compiler")
@pytest.mark.parametrize("fails", [False, True])
def test_quick_compile_holds_for_the_stages_of_this_pipeline(tmp_path: Path, fails: bool) -> None:
    found = config(a={"fails": fails})
    found.quick_compile = True
    with pytest.raises(ConfigError) if fails else contextlib.nullcontext():
        pipeline.run(found, str(tmp_path))
    pipeline.run(config(a={}), str(tmp_path / "other"))
    assert QUICK == [True, False]


# -- the mini pipeline -----------------------------------------------------------------------------


def test_mini_config_loads_with_every_argument() -> None:
    for arg in ("", "smoke", "short", "seed=3"):
        found = load_config(f"{ROOT}/experiments/mini/r1.py:{arg}")
        names = [step.name for step in pipeline.ordered(found, epath.Path("/w"))]
        wanted = ["zero", "cold_start", "dev1", "dev2", "reasoning", "sft_set", "dev3", "r1"]
        assert [name for name in names if name in wanted] == wanted


# Those that R1 itself needs.
R1_ALONE = """
from ml_collections import ConfigDict
from experiments.mini import r1

def get_config(arg=""):
    config = r1.get_config("smoke")
    for name in set(config.stages) - {names}:
        del config.stages[name]
    return config
"""
STAGES_OF_R1 = {
    *("helpful", "safety", "judge", "zero", "cold_start", "dev1", "dev2"),
    *("reasoning", "sft_set", "dev3", "r1", "eval_r1"),
}


def train(workdir: Path) -> subprocess.Popen[bytes]:
    """The smoke pipeline as a command, on one device."""
    (workdir.parent / "config.py").write_text(R1_ALONE.format(names=STAGES_OF_R1))
    flags = [f"--config={workdir.parent}/config.py", f"--workdir={workdir}"]
    return subprocess.Popen(
        [sys.executable, "-m", "r1jax.train", *flags],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ONE_DEVICE},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
def test_killed_pipeline_ends_as_the_uninterrupted_one(tmp_path: Path) -> None:
    """SIGKILL at three random moments; every table and every completion is the same."""
    whole = train(tmp_path / "whole")
    assert whole.wait() == 0, whole.stderr and whole.stderr.read().decode()
    rng = random.Random(0)
    for stages in (1, 4, 8):  # that are complete when the moment comes near
        process = train(tmp_path / "killed")
        while len(list((tmp_path / "killed").glob("*/stage_complete.json"))) < stages:
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(rng.uniform(0, 6))
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = train(tmp_path / "killed")
    assert process.wait() == 0, process.stderr and process.stderr.read().decode()
    names = [
        path.relative_to(tmp_path / "whole")
        for pattern in ("tables/*", "eval_*/*.jsonl", "*/data.jsonl", "*/metrics.jsonl")
        for path in (tmp_path / "whole").glob(pattern)
    ]
    assert len(names) > 25
    different = [
        str(name)
        for name in names
        if (tmp_path / "whole" / name).read_bytes() != (tmp_path / "killed" / name).read_bytes()
    ]
    assert different == []
