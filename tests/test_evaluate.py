"""evaluate: results of each benchmark, finished ones are not repeated, other questions refused."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from helpers import MODEL, grpo_config, read_lines, save_model
from ml_collections import ConfigDict

from r1jax.benchmarks.protocol import Benchmark, BenchmarkConfig, open_benchmarks
from r1jax.benchmarks.respondents import OwnModel
from r1jax.config import ConfigError, DataError
from r1jax.data.datasets import DataConfig
from r1jax.data.spm import train_sentencepiece
from r1jax.evaluate import asked_for, read_config
from r1jax.machines.mesh import make_mesh
from r1jax.models.config import ModelConfig
from r1jax.models.params import random_params
from r1jax.models.transformer import Transformer
from r1jax.stages import evaluate
from r1jax.types import Sample

CONFIG = ModelConfig(vocab_size=305, **MODEL)  # type: ignore[arg-type]
TEXTS = ["What is 12 + 34?\n<think> 12 + 34 = 46 </think>", "计算：3 乘以 5，等于十五。"] * 20
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("model")
    params = random_params(Transformer(CONFIG, make_mesh(devices=jax.devices()[:1])), 0)
    save_model(directory, params, dataclasses.asdict(CONFIG))
    train_sentencepiece(TEXTS, 305, directory / "tokenizer")
    rows = [{"prompt": f"{i} + 1 = ", "answer": str(i + 1), "task": "integer"} for i in range(3)]
    (directory / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(directory)


def benchmark(model: str, **changes: Any) -> dict[str, Any]:
    return {
        "data": {"path": f"{model}/sums.jsonl"},
        "num_samples": 2,
        "template": "plain",
        "max_prompt_tokens": 32,
        "sampling": {"max_tokens": 4},
    } | changes


def config(model: str, **changes: Any) -> ConfigDict:
    values: dict[str, Any] = {
        # "2" begins every completion of the second: the last of three sums is ... 1 + 1
        "benchmarks": {"free": benchmark(model), "two": benchmark(model, prefix="2 \n")},
        "engine": {"slots": 8, "chunk": 4, "bucket": 64},
    }
    return ConfigDict(values | changes)


def asked_of(model: str, **changes: Any) -> evaluate.EvaluateConfig:
    return dataclasses.replace(read_config(config(model, **changes)), model=model)


def test_only_what_is_missing_is_run_again(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asked_of(model)
    whole = evaluate.evaluate(asked, tmp_path)
    assert list(whole) == ["free", "two"]
    assert whole["two"]["problems"] == 3
    assert whole["two"]["samples"] == 2
    assert len(read_lines(tmp_path / "two.jsonl")) == 6
    saved = json.loads((tmp_path / "results.json").read_text())
    assert (saved["step"], saved["seed"]) == (0, 0)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    (tmp_path / "two.jsonl").unlink()
    (tmp_path / "results.json").unlink()
    asked_of_model = []
    answers = OwnModel.answers

    def watched(model: OwnModel, benchmark: Benchmark, done: Any) -> Iterator[Sample]:
        for sample in answers(model, benchmark, done):
            asked_of_model.append(benchmark.config.prefix)
            yield sample

    monkeypatch.setattr(OwnModel, "answers", watched)
    assert evaluate.evaluate(asked, tmp_path) == whole
    assert asked_of_model == ["2 \n"] * 6
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files

    kept = files["two.jsonl"]
    for data, said in (
        (b"".join(kept.splitlines(keepends=True)[:4]), "has 4 of 6 completions; delete it"),
        (b"{}\n" * 6, "is not what was written .*; delete it"),
        (b"\n".join(kept.splitlines()[::-1]), r": the completion '2' \(2, 1\) is not of this"),
        (b"", "is empty"),
    ):
        (tmp_path / "two.jsonl").write_bytes(data)
        with pytest.raises(DataError, match=f"two.jsonl ?{said}"):
            evaluate.evaluate(asked, tmp_path)
    (tmp_path / "two.jsonl").write_bytes(kept)

    other = asked_of(model, seed=1)
    with pytest.raises(ConfigError, match="holds an evaluation with another seed; take another"):
        evaluate.evaluate(other, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [1, 5, 6, 7, 11])
def test_what_was_sampled_is_not_sampled_again(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Killed at any completion: the same results, each completion asked for once."""
    asked = asked_of(model)
    evaluate.evaluate(asked, tmp_path / "whole")
    answers, count = OwnModel.answers, 0

    def watched(model: OwnModel, benchmark: Benchmark, done: Any) -> Iterator[Sample]:
        nonlocal count
        for sample in answers(model, benchmark, done):
            count += 1
            yield sample
            if count == after:
                raise Killed

    monkeypatch.setattr(OwnModel, "answers", watched)
    with pytest.raises(Killed):
        evaluate.evaluate(asked, tmp_path / "killed")
    (partial,) = (tmp_path / "killed").glob("*.partial.jsonl")
    assert len(read_lines(partial)) == (after - 1) % 6 + 1
    with partial.open("a") as file:
        file.write('{"example_id": "0", "te')  # as a dying process leaves a line
    evaluate.evaluate(asked, tmp_path / "killed")
    assert count == 12
    files = [
        {p.name: p.read_bytes() for p in (tmp_path / d).iterdir()} for d in ("whole", "killed")
    ]
    assert files[0] == files[1]


def test_benchmarks_are_added(model: str, tmp_path: Path) -> None:
    """One after the other in one workdir is as both at once; `problems` takes some of each."""
    both = asked_of(model)
    whole = evaluate.evaluate(both, tmp_path / "both")
    for name in ("free", "two"):
        one = dataclasses.replace(both, benchmarks={name: both.benchmarks[name]})
        assert evaluate.evaluate(one, tmp_path / "one") == {name: whole[name]}
    files = [json.loads((tmp_path / d / "results.json").read_text()) for d in ("both", "one")]
    assert files[0] == files[1]
    other = asked_of(model, benchmarks={"two": benchmark(model, prefix="2 \n", num_samples=3)})
    with pytest.raises(ConfigError, match="another benchmarks.two.num_samples; take"):
        evaluate.evaluate(other, tmp_path / "one")

    some = asked_of(model, benchmarks={"two": benchmark(model, prefix="2 \n", problems=2)})
    assert evaluate.evaluate(some, tmp_path / "some")["two"]["problems"] == 2
    assert {row["example_id"] for row in read_lines(tmp_path / "some/two.jsonl")} == {"0", "1"}


def test_regrade(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mended reference and other rewards, without the model; other problems are refused."""
    data, work = tmp_path / "sums.jsonl", tmp_path / "w"

    def asked(answer: str, **changes: Any) -> evaluate.EvaluateConfig:
        rows = [{"prompt": "1 + 1 = ", "answer": answer, "task": "integer"}] * 2
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        one = benchmark(model, data={"path": str(data)}, prefix="<answer>2</answer>", **changes)
        return asked_of(model, benchmarks={"two": one})

    with pytest.raises(ConfigError, match="has no evaluation whose"):
        evaluate.regrade(asked("2"), work)
    assert evaluate.evaluate(asked("3"), work)["two"]["pass@1"] == 0
    texts = [row["text"] for row in read_lines(work / "two.jsonl")]
    monkeypatch.setattr(evaluate, "open_model", None)
    assert evaluate.regrade(asked("2"), work)["two"]["pass@1"] == 1
    found = evaluate.regrade(asked("2", rewards={"accuracy": 1.0, "r1_format": 0.0}), work)["two"]
    assert found["pass@1"] == 1 and "r1_format" in found and "format" not in found
    rows = read_lines(work / "two.jsonl")
    assert [row["text"] for row in rows] == texts
    assert all(row["answer"] == "2" and "r1_format" in row["reward_breakdown"] for row in rows)
    assert json.loads((work / "results.json").read_text())["benchmarks"]["two"]["pass@1"] == 1
    with pytest.raises(ConfigError, match="another benchmarks.two.num_samples; take"):
        evaluate.regrade(asked("2", num_samples=1), work)


def test_cut_completions_may_be_wrong(model: str, tmp_path: Path) -> None:
    """All of these are cut after 4 tokens; the prefix has answered."""
    for said, right in (("graded", 1.0), ("wrong", 0.0)):
        one = benchmark(model, prefix="<answer>1</answer>", problems=1, truncated=said)
        found = evaluate.evaluate(asked_of(model, benchmarks={"b": one}), tmp_path / said)["b"]
        assert (found["truncated"], found["pass@1"], found["lenient_pass@1"]) == (1, right, right)


def test_flags_choose(model: str) -> None:
    flags = {"problems": 2, "max_tokens": 3, "template": "plain"}
    found = asked_for(config(model), ["two"], None, dict(flags))
    assert list(found.benchmarks) == ["two"]
    one = found.benchmarks["two"]
    assert (one.problems, one.sampling.max_tokens, one.num_samples) == (2, 3, 2)
    named = asked_for(None, ["math500", "aime24"], "/data", {})
    assert named.benchmarks["aime24"].num_samples == 64
    assert named.benchmarks["math500"].data.args["path"] == "/data/math500/math500.jsonl"
    for wrong, said in (
        ((config(model), ["three"], None), "the config has no 'three'; it has free, two"),
        ((config(model), [], "/data"), "--data is for --benchmarks"),
        ((None, ["aime24"], None), "wants --config, or --benchmarks and --data"),
        ((None, ["aime2024"], "/data"), "'aime2024' is no benchmark; there are aime24,"),
    ):
        with pytest.raises(ConfigError, match=said):
            asked_for(*wrong, {})


def test_a_benchmark_that_does_not_fit(model: str, tmp_path: Path) -> None:
    long = benchmark(model, sampling={"max_tokens": 33})
    asked = asked_of(model, benchmarks={"long": long})
    with pytest.raises(ConfigError, match=r"config.benchmarks.long: .* max_length 64"):
        evaluate.evaluate(asked, tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_the_config_of_a_training_run_will_do() -> None:
    section = {"every": 5, "curve": {"c": benchmark("m")}, "benchmarks": {"b": benchmark("m")}}
    training = grpo_config("t", evaluation=section | {"seed": 3})
    found = read_config(training)
    assert list(found.benchmarks) == ["b"]
    assert (found.seed, found.engine.slots, found.mesh) == (3, 16, {"data": -1})


def test_mistakes_in_the_config() -> None:
    with pytest.raises(ConfigError, match="unknown key config.benchmark; did you mean"):
        read_config(ConfigDict({"benchmark": {}}))
    with pytest.raises(ConfigError, match="the config has no benchmarks"):
        read_config(ConfigDict({"benchmarks": {}}))
    for name in ("a/b", "a.partial", "a.verdicts"):
        with pytest.raises(ConfigError, match=f"'{name}' cannot be the name of a benchmark's"):
            open_benchmarks({name: BenchmarkConfig(DataConfig())}, "config.benchmarks", None, 0)
    wrong = {"a": benchmark("m", num_sample=1)}
    with pytest.raises(ConfigError, match=r"unknown key config\.benchmarks\.a\.num_sample"):
        read_config(ConfigDict({"benchmarks": wrong}))


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    text = "from ml_collections import ConfigDict\ndef get_config(arg=''):\n    return ConfigDict("
    (tmp_path / "c.py").write_text(
        text + "{'benchmarks': {'a': {'data': {'path': 'no.jsonl'}}}})\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "r1jax.evaluate", "--model=no", "--config=c.py", "--workdir=w"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: model no does not exist")
    assert done.stderr.count("\n") == 1
