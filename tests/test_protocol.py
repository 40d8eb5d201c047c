"""Benchmarks: the statistics of graded completions, prefixes, and the files they leave."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from r1jax.benchmarks.protocol import (
    Benchmark,
    BenchmarkConfig,
    open_graders,
    read_results,
    write_results,
)
from r1jax.benchmarks.respondents import OwnModel
from r1jax.benchmarks.samples import read_samples
from r1jax.config import ConfigError, DataError
from r1jax.data.datasets import DataConfig
from r1jax.data.tokenizer import Tokenizer
from r1jax.rewards.pool import GraderConfig
from r1jax.rollout.sampler import Sampler
from r1jax.rollout.sampling import SamplingConfig
from r1jax.types import Completion, Example
from r1jax.weights.load import load_tokenizer

RIGHT, WRONG = "<answer>7</answer>", "<answer>8</answer>"
LENIENT = "Wait, I think it is 7"
LANGUAGES = ("en", "zh")
FORMAT = " <think> so </think> <answer> 7 </answer>"


class FakeEngine:
    """Says what it is told, last one first; the limit cuts completions that do not end."""

    mesh = None

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[Sequence[str]]) -> None:
        self.tokenizer, self.texts = tokenizer, texts
        self.prompts: list[list[int]] = []

    def generate(
        self, _params: Any, prompts: Any, _sampling: Any, _key: Any, group_size: int, *_: Any
    ) -> Iterator[Completion]:
        self.prompts = [prompt.tolist() for prompt in prompts]
        for p, texts in reversed(list(enumerate(self.texts))):
            assert len(texts) == group_size
            for g, text in enumerate(texts):
                cut = text.endswith("...")
                tokens = self.tokenizer.encode(text) + [self.tokenizer.eos_id] * (not cut)
                logprobs = np.full(len(tokens), -0.1, np.float32)
                reason = "length" if cut else "stop"
                yield Completion(p, g, np.array(tokens), logprobs, reason)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir: str) -> Tokenizer:
    return load_tokenizer(tokenizer_dir)


def examples(count: int) -> list[Example]:
    """Every answer is 7; levels 1, 2, 1, ... in English, Chinese, English, ..."""
    return [
        Example(
            id=f"e{i}",
            messages=({"role": "user", "content": f"{i}+{7 - i}=?"},),
            answer="7",
            task="integer",
            metadata={"level": 1 + i % 2, "language": LANGUAGES[i % 2]},
        )
        for i in range(count)
    ]


def config(k: int, count: int = 1, **changes: Any) -> BenchmarkConfig:
    data = DataConfig(function="test_protocol:examples", args={"count": count})
    sampling = SamplingConfig(max_tokens=64)
    return BenchmarkConfig(data, num_samples=k, template="plain", sampling=sampling, **changes)


def ran(config: BenchmarkConfig, texts: Any, tokenizer: Tokenizer) -> Any:
    """(scores, samples, the engine's prompts) of a benchmark whose completions are these texts."""
    engine: Any = FakeEngine(tokenizer, texts)
    benchmark = Benchmark(config, "b", tokenizer, 2048)
    model = OwnModel(Sampler(engine, tokenizer), None, 0)
    with open_graders(GraderConfig(), [benchmark]) as graders:
        samples = benchmark.graded(model.answers(benchmark, set()), graders)
    return benchmark.scores(samples), samples, engine.prompts


def test_metrics_by_hand(tokenizer: Tokenizer) -> None:
    """Strict 3/4, 0 and 1/4 of four samples; votes 7, 8 and a draw of 7 with 8."""
    texts = [
        [RIGHT, RIGHT, WRONG, RIGHT],
        [WRONG, WRONG, LENIENT, "..."],
        [RIGHT, WRONG, "...", FORMAT.replace("7", "9") + "..."],
    ]
    metrics, rollouts, _ = ran(config(4, 3), texts, tokenizer)
    assert metrics["problems"], metrics["samples"] == (3, 4)
    assert metrics["pass@1"] == pytest.approx(1 / 3)
    # values 3/4, 0, 1/4: variance (5/12)^2 + (1/3)^2 + (1/12)^2 = 42/144, over 2, over 3
    assert metrics["pass@1_se"] == pytest.approx((42 / 144 / 2 / 3) ** 0.5)
    assert metrics["pass@2"] == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert metrics["pass@4"] == pytest.approx(2 / 3)
    assert metrics["cons@4"] == pytest.approx((1 + 0 + 1 / 3) / 3)
    assert metrics["lenient_pass@1"] == pytest.approx((3 / 4 + 1 / 4 + 1 / 4) / 3)
    assert metrics["pass@1/level/1"] == pytest.approx((3 / 4 + 1 / 4) / 2)
    assert metrics["pass@1/level/2"] == 0
    assert metrics["pass@1/language/zh"] == 0
    assert metrics["lenient_pass@1/language/zh"] == 1 / 4
    assert metrics["truncated"] == pytest.approx(3 / 12)
    assert metrics["failures"] == 0
    assert metrics["reflective_words"] > 0
    assert metrics["length"] == pytest.approx(np.mean([r.length for r in rollouts]))
    assert [r.text for r in rollouts] == [text for group in texts for text in group]


def test_one_sample_has_no_vote(tokenizer: Tokenizer) -> None:
    metrics, *_ = ran(config(1, 2), [[RIGHT], [FORMAT]], tokenizer)
    assert metrics["pass@1"] == 1
    assert metrics["format"] == 0.5
    assert not [name for name in metrics if "cons@" in name or "pass@2" in name]


def test_prefix_belongs_to_the_completion(tokenizer: Tokenizer) -> None:
    """The model continues it, the grader reads it; it may differ by language."""
    prefix = {"en": " <think> Step", "zh": " <think> 一步"}
    texts = [[" </think> <answer> 7 </answer>"]] * 2
    metrics, rollouts, prompts = ran(config(1, 2, prefix=prefix), texts, tokenizer)
    for i, language in enumerate(LANGUAGES):
        question = tokenizer.encode(examples(2)[i].question)
        start = tokenizer.encode(prefix[language])
        assert prompts[i] == [*tokenizer.prefix, *question, *start]
        assert rollouts[i].text == prefix[language] + " </think> <answer> 7 </answer>"
    assert metrics["format"] == metrics["pass@1"] == 1


def test_results_survive_their_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    metrics, rollouts, _ = ran(config(2), [[RIGHT, "…\n\u2028..."]], tokenizer)
    assert np.isnan(metrics["pass@1_se"])  # of one problem
    directory = epath.Path(tmp_path / "000003")
    assert read_results(directory) is None
    about = {"step": 3, "model": "m", "seed": 0}
    benchmark = Benchmark(config(2), "b", tokenizer, 2048)
    write_results(directory, {"b": metrics}, {"b": benchmark}, {"b": rollouts}, about)
    results = read_results(directory)
    assert results is not None
    assert {key: results[key] for key in about} == about
    assert results["benchmarks"]["b"]["pass@1"] == 0.5
    assert results["benchmarks"]["b"]["pass@1_se"] is None
    path = directory / "b.jsonl"
    assert read_samples(path, benchmark.examples, 2) == rollouts
    row = json.loads(path.read_text().split("\n")[0])
    assert (row["question"], row["answer"]) == ("0+7=?", "7")


def test_results_are_written_last(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """results.json says that an evaluation is complete: killed before it, there is none."""

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    metrics, rollouts, _ = ran(config(1), [[RIGHT]], tokenizer)
    directory = epath.Path(tmp_path)
    monkeypatch.setattr("r1jax.benchmarks.samples.write_jsonl_atomic", killed)
    benchmark = Benchmark(config(1), "b", tokenizer, 2048)
    with pytest.raises(KeyboardInterrupt):
        write_results(directory, {"b": metrics}, {"b": benchmark}, {"b": rollouts}, {})
    assert read_results(directory) is None


def test_prompt_too_long(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"example e0: its prompt has \d+ tokens, more than"):
        Benchmark(config(1, max_prompt_tokens=2), "k", tokenizer, 2048)


def test_wrong_benchmarks(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"k: max_prompt_tokens 1024 \+ .* max_length 64"):
        Benchmark(config(1), "k", tokenizer, 64)
    endless = DataConfig(
        function="experiments.mini.world.problems:problems",
        args={"seed": 0, "split": "test", "levels": [1]},
    )
    with pytest.raises(ConfigError, match=r"k.data.limit must be set"):
        Benchmark(BenchmarkConfig(endless), "k", tokenizer, 65_536)
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "1+1", "answer": "two", "task": "integer"}\n')
    with pytest.raises(DataError, match="example 0: 'two' is no integer answer"):
        Benchmark(BenchmarkConfig(DataConfig(path=str(path))), "k", tokenizer, 65_536)
