"""generate and score: they agree with each other and with the model, and refuse bad input."""

import dataclasses
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import MODEL, read_lines, save_model

from r1jax.config import ConfigError, DataError
from r1jax.data.spm import train_sentencepiece
from r1jax.export import export
from r1jax.generate import How, generate, read_prompts
from r1jax.machines.mesh import make_mesh
from r1jax.models.config import ModelConfig
from r1jax.models.layouts import unstack_layers
from r1jax.models.params import random_params
from r1jax.models.transformer import Transformer, forward, head_weights
from r1jax.rollout.sampling import SamplingConfig
from r1jax.score import read_sequences, score
from r1jax.weights.load import OpenModel, load_tokenizer, open_model

CONFIG = ModelConfig(vocab_size=305, **MODEL)  # type: ignore[arg-type]
TEXTS = ["What is 12 + 34?\n<think> 12 + 34 = 46 </think>", "计算：3 乘以 5，等于十五。"] * 20
SAMPLING = SamplingConfig(max_tokens=40)  # more than a chunk of the engine
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def params() -> Any:
    """Sharp enough that another token's probability would be seen."""
    small = random_params(Transformer(CONFIG, make_mesh(devices=jax.devices()[:1])), 0)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x if path[-1].key.endswith("norm") else x * 15, small
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, params: Any) -> Path:
    directory = tmp_path_factory.mktemp("model")
    save_model(directory, params, dataclasses.asdict(CONFIG))
    train_sentencepiece(TEXTS, 305, directory / "tokenizer")
    return directory


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def test_score_gives_the_probabilities_that_generate_drew_from(model: Path, tmp_path: Path) -> None:
    long = "3 + 5 " * 9  # leaves little room: its completions end before the other prompt's
    messages = [{"role": "user", "content": long}]
    prompts = write(
        tmp_path / "p.jsonl", {"prompt": "12 + 34 = ", "level": 3}, {"messages": messages}
    )
    generate(str(model), prompts, tmp_path / "g.jsonl", SAMPLING, How(num_samples=4, slots=8))
    rows = read_lines(tmp_path / "g.jsonl")
    places = [(row["prompt_index"], row["sample_index"]) for row in rows]
    assert places == [(p, s) for p in range(2) for s in range(4)]
    assert [row.get("level") for row in rows] == [3] * 4 + [None] * 4
    assert rows[4]["messages"] == messages
    assert len({tuple(row["tokens"]) for row in rows}) > 1

    tokenizer = load_tokenizer(model / "tokenizer")
    heads = [[*tokenizer.prefix, *tokenizer.encode(text)] for text in ("12 + 34 = ", long)]
    whole = [heads[row["prompt_index"]] + row["tokens"] for row in rows]
    score(str(model), write(tmp_path / "t.jsonl", *({"tokens": t} for t in whole)), tmp_path / "s")
    for row, scored in zip(rows, read_lines(tmp_path / "s"), strict=True):
        assert row["text"] == tokenizer.decode(row["tokens"])
        assert row["finish_reason"] in ("stop", "length")
        assert scored["tokens"] == heads[row["prompt_index"]] + row["tokens"]
        new = scored["logprobs"][len(heads[row["prompt_index"]]) - 1 :]
        np.testing.assert_allclose(new, row["logprobs"], atol=1e-4)


@jax.jit
def plain_logits(params: Any, tokens: jax.Array) -> jax.Array:
    """[L, V] by the plain forward pass of one sequence, unpacked."""
    ones, positions = jnp.ones_like(tokens), jnp.arange(len(tokens))
    output = forward(
        Transformer(CONFIG), params, tokens[None], positions[None], ones[None], ones[None]
    )
    return output.hidden[0] @ head_weights(params)


def one_by_one(params: Any, tokens: list[int]) -> np.ndarray:
    """log p(tokens[i + 1] | tokens[..i]); what stands behind a sequence doesn't matter to it."""
    padded = jnp.asarray(tokens + [0] * (64 - len(tokens)))
    logprobs = jax.nn.log_softmax(plain_logits(params, padded))
    return np.asarray(logprobs)[np.arange(len(tokens) - 1), tokens[1:]]


def test_drafts_change_no_completion(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = dataclasses.replace(CONFIG, mtp=True)
    params = random_params(Transformer(config, make_mesh(devices=jax.devices()[:1])), 0)
    save_model(tmp_path / "model", params, dataclasses.asdict(config))
    train_sentencepiece(TEXTS, 305, tmp_path / "model" / "tokenizer")
    prompts = write(tmp_path / "p.jsonl", {"prompt": "12 + 34 = "}, {"prompt": "3"})
    found = []
    for drafts in (False, True):
        how = How(num_samples=2, slots=4, speculative=drafts)
        with caplog.at_level(logging.INFO):
            generate(str(tmp_path / "model"), prompts, tmp_path / "g.jsonl", SAMPLING, how)
        found.append([row["tokens"] for row in read_lines(tmp_path / "g.jsonl")])
    assert found[0] == found[1]
    assert sum("drafts: " in line for line in caplog.messages) == 1


def test_score_of_packed_sequences_in_input_order(model: Path, params: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.integers(4, 305, n).tolist() for n in (3, 40, 1, 64, 17, 20)]
    rows = [{"tokens": s} for s in sequences] + [{"text": "12 + 34"}]
    file = write(tmp_path / "in.jsonl", *rows)
    score(str(model), file, tmp_path / "out.jsonl", pack_length=64)
    tokenizer = load_tokenizer(model / "tokenizer")
    expected = [*sequences, [*tokenizer.prefix, *tokenizer.encode("12 + 34")]]
    found = read_lines(tmp_path / "out.jsonl")
    assert [row["tokens"] for row in found] == expected
    for row in found:
        np.testing.assert_allclose(row["logprobs"], one_by_one(params, row["tokens"]), atol=1e-4)


def test_tokens_need_no_tokenizer(params: Any, tmp_path: Path) -> None:
    save_model(tmp_path / "bare", params, dataclasses.asdict(CONFIG))
    opened = open_model(str(tmp_path / "bare"))
    assert read_sequences(write(tmp_path / "a", {"tokens": [5, 6]}), opened) == [[5, 6]]
    with pytest.raises(DataError, match=r"b:2: tokenizer .* does not exist"):
        read_sequences(write(tmp_path / "b", {"tokens": [5]}, {"text": "12"}), opened)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tokens": [4, 305]}, "token 305 is not an id of the model; they are 0 to 304"),
        ({"tokens": [-1]}, "token -1 is not an id"),
        ({"tokens": [True]}, "token True is not an id"),
        ({"tokens": []}, "there are no tokens to score"),
        ({"tokens": "12"}, "a row needs the key tokens .* or text .*; it has tokens"),
        ({"txt": "12"}, "a row needs the key tokens .* or text .*; it has txt"),
        ({"tokens": [4] * 65}, "65 tokens, more than the model's max_length 64"),
        ("{", "is not JSON"),
    ],
)
def test_what_cannot_be_scored(model: Path, tmp_path: Path, row: Any, said: str) -> None:
    file = write(tmp_path / "in.jsonl", {"tokens": [4, 5]}, "", row)
    with pytest.raises(DataError, match=rf"in\.jsonl:3:? {said}"):
        read_sequences(file, open_model(str(model)))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "12 " * 80}, "the prompt has .* tokens; the model's max_length 64 allows 1"),
        ({"prompt": 12}, "needs the key prompt .*; it has prompt"),
        ({"messages": ["12"]}, "a message is a text, not an object"),
        ({"prompt": ""}, "a message of the user is empty"),
        ({"prompt": "1", "system": "Be brief."}, "the key 'system' would not be asked"),
        ({"messages": [{"role": "robot", "content": "1"}]}, "a message's role is 'robot'"),
        ({}, "needs the key prompt .*; it has no keys"),
    ],
)
def test_what_cannot_be_a_prompt(model: Path, tmp_path: Path, row: Any, said: str) -> None:
    file = write(tmp_path / "p.jsonl", "", {"prompt": "1"}, row)
    opened = open_model(str(model))
    with pytest.raises(DataError, match=rf"p\.jsonl:3: .*{said}"):
        read_prompts(file, opened.tokenizer, "plain", opened.config.max_length)


def test_pack_length_must_hold_the_longest(model: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", {"tokens": [4] * 9})
    with pytest.raises(ConfigError, match="--pack_length 8 is less than the longest sequence's 9"):
        score(str(model), file, tmp_path / "out.jsonl", pack_length=8)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ({"mtp": True}, r"it wants mtp\.attention_norm, which .* has not got"),
        ({"ffn_dim": 48}, r"it makes layers\.down \[\d+, 48, \d+\], which is \[\d+, \d+, \d+\]"),
    ],
)
def test_another_model_than_the_workdir_has(model: Path, override: Any, said: str) -> None:
    opened = open_model(str(model), override)
    with pytest.raises(ConfigError, match=rf"config\.model\.override: {said}"):
        opened.load(opened.mesh(), 0)


def test_layers_apart_and_back(model: Path, params: Any, tmp_path: Path) -> None:
    """A workdir with a parameter for each layer, and the same model with stacked ones."""
    apart = open_model(str(model), {"scan_layers": False})
    found = apart.load(apart.mesh(), 0)
    jax.tree.map(np.testing.assert_array_equal, found, unstack_layers(params, CONFIG))
    save_model(tmp_path, found, apart.fields)
    again = open_model(str(tmp_path), {"scan_layers": True})
    jax.tree.map(np.testing.assert_array_equal, again.load(again.mesh(), 0), params)


def test_export_and_back(model: Path, params: Any, tmp_path: Path) -> None:
    export(str(model), tmp_path / "hf", "float32")
    opened: OpenModel = open_model(str(tmp_path / "hf"))
    assert opened.tokenizer.encode("12 + 34") == load_tokenizer(model / "tokenizer").encode(
        "12 + 34"
    )
    loaded = opened.load(make_mesh(devices=jax.devices()[:1]), 0)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    with pytest.raises(ConfigError, match="exists and is not an empty directory"):
        export(str(model), tmp_path / "hf")


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (
            ["generate", "--model=no", "--prompts=p", "--output=o"],
            2,
            "error: model no does not exist",
        ),
        (["score", "--model={model}", "--input=p", "--output=o"], 2, "error: p:2 is not JSON"),
        (["score", "--model=no", "--inptu=p", "--output=o"], 1, "Did you mean: input"),
        (["export", "--model=no", "--output=o"], 2, "error: model no does not exist"),
    ],
)
def test_commands(model: Path, tmp_path: Path, args: list[str], code: int, said: str) -> None:
    write(tmp_path / "p", {"tokens": [4, 5]}, "{'tokens'")
    name, *rest = (arg.format(model=model) for arg in args)
    done = subprocess.run(
        [sys.executable, "-m", f"r1jax.{name}", *rest],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "o").exists()
