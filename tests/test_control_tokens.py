"""Which tokens are control tokens, which are tags that a model writes, and which end a text."""

import dataclasses
import io
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import sentencepiece
import tokenizers
from helpers import MODEL
from test_chat_templates import PLAIN, QWEN3_HYBRID, QWEN25, THOUGHTS, USER, write_tokenizer
from tokenizers import AddedToken

from r1jax.config import ConfigError, DataError
from r1jax.data.chat import render, render_prompt
from r1jax.data.spm import train_sentencepiece
from r1jax.data.tokenizer import Tokenizer
from r1jax.models.config import ModelConfig
from r1jax.models.params import abstract_params
from r1jax.models.transformer import Transformer
from r1jax.weights.hf import save_hf
from r1jax.weights.load import ModelSource, load_tokenizer, open_source

CONFIG = ModelConfig(vocab_size=400, **MODEL)  # type: ignore[arg-type]

TAGS = [
    *("<think>", "</think>", "<answer>", "</answer>", "<tool_call>", "</tool_call>"),
    *("[THINK]", "[/THINK]", "<|begin_of_thought|>", "<|end_of_solution|>", "<reasoning>"),
]
CONTROLS = ["[INST]", "[/INST]", "<start_of_turn>", "<|user|>", "<pad>", "<unk>", "<mask>"]


def with_special(directory: Path, *tokens: str) -> Tokenizer:
    """A tokenizer with these among its special tokens."""
    path = write_tokenizer(directory, None, "</s>") / "tokenizer.json"
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in tokens])
    values = json.loads(tokenizer.to_str())
    for token in values["added_tokens"]:
        token["special"] = token["special"] or token["content"] in tokens
    path.write_text(json.dumps(values))
    return load_tokenizer(directory)


@pytest.mark.parametrize("tag", TAGS)
def test_tags_that_a_model_writes_are_text(tmp_path: Path, tag: str) -> None:
    tokenizer = with_special(tmp_path, *TAGS, *CONTROLS)
    ids = tokenizer.encode(f"{tag}hm")
    assert len(ids) == 3
    assert tokenizer.decode(ids) == f"{tag}hm"
    assert tag not in tokenizer.control_tokens


@pytest.mark.parametrize("token", [*CONTROLS, "<s>", "</s>"])
def test_control_tokens_are_hidden(tmp_path: Path, token: str) -> None:
    tokenizer = with_special(tmp_path, *TAGS, *CONTROLS)
    token_id = tokenizer.control_tokens[token]
    assert tokenizer.decode([token_id, *tokenizer.encode("hm")]) == "hm"
    assert token_id not in tokenizer.encode(token)
    assert tokenizer.decode(tokenizer.encode(token)) == token


def test_a_lonely_think_is_text(tmp_path: Path) -> None:
    tokenizer = with_special(tmp_path, "<think>")
    assert tokenizer.decode(tokenizer.encode("<think>")) == "<think>"


def test_control_symbols_of_sentencepiece(tmp_path: Path) -> None:
    """<think> and <|user|> as control symbols: text gives neither, and decoding hides both."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["1 + 2 is 3", "and 4 + 5 is 9"] * 20), model_writer=model,
        vocab_size=285, byte_fallback=True, model_type="bpe", add_dummy_prefix=False,
        control_symbols=["<think>", "</think>", "<|user|>"], minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("<think>1 + 2</think>")
    assert tokenizer.decode(ids) == "<think>1 + 2</think>"
    assert ids[0] == sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).piece_to_id(
        "<think>"
    )
    assert "<|user|>" in tokenizer.control_tokens
    assert tokenizer.decode([tokenizer.control_tokens["<|user|>"]]) == ""
    tokenizer.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.model").read_bytes() == model.getvalue()


# ---- what ends a text ----

IM_END, ENDOFTEXT, EOT = 256 + 5, 256 + 11, 256 + 8  # ids by the order in CONTROL


def test_the_ids_here(tmp_path: Path) -> None:
    control = load_tokenizer(write_tokenizer(tmp_path, None, "</s>")).control_tokens
    assert [control[t] for t in ("<|im_end|>", "<|eot_id|>", "<|endoftext|>")] == [
        IM_END, EOT, control["<|endoftext|>"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        (None, None, [257]),
        ({"eos_token_id": 0}, None, [257, 0]),
        ({"eos_token_id": [0, 257]}, None, [257, 0]),
        ({"eos_token_id": None}, {"eos_token_id": 0}, [257, 0]),
        (None, {"eos_token_id": [IM_END, EOT]}, [257, IM_END, EOT]),
        ({"eos_token_id": EOT}, {"eos_token_id": [IM_END, 257]}, [257, EOT, IM_END]),
        ({"temperature": 1.0}, {"vocab_size": 3}, [257]),
    ],
)
def test_the_union_of_all_files(
    tmp_path: Path, generation: Any, config: Any, expected: list[int]
) -> None:
    write_tokenizer(tmp_path, None, "</s>")
    for name, values in (("generation_config.json", generation), ("config.json", config)):
        if values is not None:
            (tmp_path / name).write_text(json.dumps(values))
    tokenizer = load_tokenizer(tmp_path)
    assert list(tokenizer.stop_ids) == expected
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").stop_ids == tokenizer.stop_ids


@pytest.mark.parametrize("value", ["</s>", [257, "</s>"], 1.5, -1, True, {"a": 1}])
def test_stops_that_are_no_ids(tmp_path: Path, value: Any) -> None:
    write_tokenizer(tmp_path, None, "</s>")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(DataError, match=r"generation_config\.json: eos_token_id .* is neither"):
        load_tokenizer(tmp_path)


def source(directory: Path, **changes: Any) -> ModelSource:
    config = MODEL | {"vocab_size": 400}
    return ModelSource(config=config, tokenizer=str(directory), **changes)


def test_a_base_model_in_chat_form(tmp_path: Path) -> None:
    """Qwen2.5's base: its eos is not the token that ends a turn; the error names what would do."""
    write_tokenizer(tmp_path, QWEN25, "<|endoftext|>")
    with pytest.raises(ConfigError, match=r"set config.model.stop_tokens = \('<\|im_end\|>',\)"):
        render([USER, PLAIN], load_tokenizer(tmp_path), "chat")
    opened = open_source(source(tmp_path, stop_tokens=("<|im_end|>",)), tmp_path)
    tokenizer = opened.tokenizer
    assert (tokenizer.stop_ids, tokenizer.eos_id) == ((IM_END,), IM_END)
    tokens, mask = render([USER, PLAIN], tokenizer, "chat")
    assert [t for t, m in zip(tokens, mask, strict=True) if m][-1] == IM_END
    both = source(tmp_path, stop_tokens=("<|im_end|>", "<|endoftext|>"))
    tokenizer = open_source(both, tmp_path).tokenizer
    assert set(tokenizer.stop_ids) == {IM_END, tokenizer.eos_id}
    assert tokenizer.special_tokens["eos_token"] == "<|endoftext|>"
    with pytest.raises(DataError, match="lacks the special token '<|nope|>'"):
        _ = open_source(source(tmp_path, stop_tokens=("<|nope|>",)), tmp_path).tokenizer


@pytest.mark.parametrize("apart", [False, True])
def test_variables_of_the_template(tmp_path: Path, apart: bool) -> None:
    write_tokenizer(tmp_path / "hf", None if apart else QWEN3_HYBRID, "<|im_end|>")
    if apart:
        (tmp_path / "hf" / "chat_template.jinja").write_text(QWEN3_HYBRID)
    thinks = load_tokenizer(tmp_path / "hf")
    still = open_source(
        source(tmp_path / "hf", template_args={"enable_thinking": False}), tmp_path
    ).tokenizer
    still.save(tmp_path / "saved")
    for tokenizer in (still, load_tokenizer(tmp_path / "saved")):
        begin = tokenizer.decode(render_prompt([USER], thinks, "chat"))
        prompt = render_prompt([USER], tokenizer, "chat")
        assert tokenizer.decode(prompt) == f"{begin}<think>\n\n</think>\n\n"
        tokens, mask = render([USER, PLAIN], tokenizer, "chat")
        assert tokens[: len(prompt)] == prompt
        learnt = [t for t, m in zip(tokens, mask, strict=True) if m]
        assert tokenizer.decode(learnt) == "It is 4."
        with pytest.raises((ConfigError, DataError), match="thoughts"):
            render([USER, THOUGHTS], tokenizer, "chat")
    wrong = source(tmp_path / "hf", template_args={"enable_thinkng": False})
    with pytest.raises(ConfigError, match="no variable 'enable_thinkng'; it reads enable_thinking"):
        _ = open_source(wrong, tmp_path).tokenizer


# ---- exports ----


def exported(directory: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """{name: its JSON} of an export with a random model."""
    shapes = abstract_params(Transformer(CONFIG))
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
    save_hf(directory, CONFIG, params, tokenizer)
    return {path.name: json.loads(path.read_text()) for path in directory.glob("*.json")}


def test_an_export_stops_where_the_run_did(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "hf", QWEN25, "<|endoftext|>")
    (tmp_path / "hf" / "generation_config.json").write_text(
        json.dumps({"eos_token_id": ENDOFTEXT, "temperature": 0.7})
    )
    changes = {"stop_tokens": ("<|im_end|>",)}
    tokenizer = open_source(source(tmp_path / "hf", **changes), tmp_path).tokenizer
    files = exported(tmp_path / "a", tokenizer)
    assert files["generation_config.json"] == {"eos_token_id": [IM_END], "temperature": 0.7}
    assert files["config.json"]["eos_token_id"] == IM_END
    assert files["tokenizer_config.json"]["eos_token"] == "<|im_end|>"
    assert load_tokenizer(tmp_path / "a").stop_ids == (IM_END,)
    changes = {"stop_tokens": ("<|im_end|>", "<|eot_id|>")}
    tokenizer = open_source(source(tmp_path / "hf", **changes), tmp_path).tokenizer
    files = exported(tmp_path / "b", tokenizer)
    assert files["generation_config.json"]["eos_token_id"] == [IM_END, EOT]
    assert files["config.json"]["eos_token_id"] == [IM_END, EOT]


def test_an_export_without_a_generation_config(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "hf", QWEN25, "<|im_end|>")
    files = exported(tmp_path / "a", load_tokenizer(tmp_path / "hf"))
    assert files["generation_config.json"] == {"eos_token_id": [IM_END]}


TEXTS = ["What is 12 + 34?\n<think> 12 + 34 = 46 </think>", "计算：3 乘以 5，等于十五。"] * 20


@pytest.mark.parity
@pytest.mark.skipif(not find_spec("transformers"), reason="transformers")
@pytest.mark.parametrize("dummy", [False, True])
def test_a_sentencepiece_export_begins_as_in_training(tmp_path: Path, dummy: bool) -> None:
    from transformers import AutoTokenizer

    model = train_sentencepiece(TEXTS, 305, tmp_path / "ours")
    if dummy:
        from sentencepiece import sentencepiece_model_pb2 as pb2

        proto = pb2.ModelProto.FromString(model.read_bytes())  # type: ignore[attr-defined]
        proto.normalizer_spec.add_dummy_prefix = True
        model.write_bytes(proto.SerializeToString())
    ours = load_tokenizer(tmp_path / "ours")
    files = exported(tmp_path / "out", ours)
    assert files["tokenizer_config.json"]["add_bos_token"] is True
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("What is 12?\n<think> 3", "等于 3  5", "x"):
        assert theirs(text)["input_ids"] == ours.document(text)[:-1]
    assert theirs.eos_token_id == ours.eos_id
    again = load_tokenizer(tmp_path / "out")
    assert again.document("12 + 3") == ours.document("12 + 3")
    assert dataclasses.asdict(CONFIG)["vocab_size"] >= ours.vocab_size
