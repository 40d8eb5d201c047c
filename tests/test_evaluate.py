"""evaluate: results of each benchmark, finished ones are not repeated, other questions refused."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from helpers import MODEL, grpo_config, read_lines, save_model
from ml_collections import ConfigDict

from r1jax.benchmarks.protocol import Benchmark
from r1jax.config import ConfigError, DataError
from r1jax.data.spm import train_sentencepiece
from r1jax.evaluate import read_config
from r1jax.machines.mesh import make_mesh
from r1jax.models.config import ModelConfig
from r1jax.models.params import random_params
from r1jax.models.transformer import Transformer
from r1jax.stages import evaluate

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
    sizes = []
    run = Benchmark.run
    monkeypatch.setattr(
        Benchmark, "run", lambda b, *args: (sizes.append(b.config.prefix), run(b, *args))[1]
    )
    assert evaluate.evaluate(asked, tmp_path) == whole
    assert sizes == ["2 \n"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files

    kept = files["two.jsonl"]
    for data, said in (
        (b"".join(kept.splitlines(keepends=True)[:4]), "has 4 of 6 completions; delete it"),
        (b"{}\n" * 6, "is not what was written .*; delete it"),
        (b"", "is empty"),
    ):
        (tmp_path / "two.jsonl").write_bytes(data)
        with pytest.raises(DataError, match=f"two.jsonl {said}"):
            evaluate.evaluate(asked, tmp_path)
    (tmp_path / "two.jsonl").write_bytes(kept)

    other = asked_of(model, seed=1)
    with pytest.raises(ConfigError, match="holds an evaluation with another seed; take another"):
        evaluate.evaluate(other, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


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
