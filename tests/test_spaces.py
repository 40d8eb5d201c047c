"""Tokenizers that put a space before a text: only where a sequence begins, never in its middle."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from test_chat_templates import LLAMA2, MISTRAL, QWEN25
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from r1jax.data.chat import render, render_prompt
from r1jax.data.tokenizer import Tokenizer
from r1jax.stages import sft
from r1jax.weights.load import load_tokenizer

CONTROL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CHARACTERS = "▁ab24+?[]INST/<>think\nuserasitlmYoprhedq.,|:_="
WORDS = ["▁a", "▁2", "▁4", "▁[", "▁+", "▁I", "▁Y"]
KINDS = ("first", "always", "llama2", "gpt2")


def write(directory: Path, kind: str, template: str | None = None) -> Tokenizer:
    """Characters and words with a space before them, as Mistral, Llama 2 and others cut text."""
    pieces = [*dict.fromkeys(CHARACTERS)]
    merges = [("▁", word[1]) for word in WORDS]
    if kind == "gpt2":
        pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
        merges = [("Ġ", word[1]) for word in WORDS]
    vocab = {p: i for i, p in enumerate(["<unk>", *pieces, *("".join(pair) for pair in merges)])}
    made = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    if kind in ("first", "always"):
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind)
        made.decoder = decoders.Metaspace(prepend_scheme=kind)
    elif kind == "gpt2":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
        made.decoder = decoders.ByteLevel()
    else:
        parts = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        made.normalizer = normalizers.Sequence(parts)
        steps = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        made.decoder = decoders.Sequence(steps)
    made.add_special_tokens([AddedToken(token, normalized=False) for token in CONTROL])
    directory.mkdir(parents=True, exist_ok=True)
    made.save(str(directory / "tokenizer.json"))
    config = {
        "bos_token": "<s>", "eos_token": "</s>", "chat_template": template, "add_bos_token": True,
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(directory)


def messages(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": content}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", ["4", " 4", "  4 a", "<think>a</think> 4", "\n4"])
def test_a_completion_is_learnt_as_it_stands(tmp_path: Path, kind: str, content: str) -> None:
    tokenizer = write(tmp_path, kind)
    tokens, mask = render(messages(content), tokenizer, "plain")
    learnt = [t for t, m in zip(tokens, mask, strict=True) if m]
    assert tokenizer.decode(learnt) == content
    assert learnt[:-1] == tokenizer.encode(content)
    prompt = render_prompt(messages(content)[:1], tokenizer, "plain")
    assert tokens[: len(prompt)] == prompt
    assert tokenizer.decode(prompt) == " 2 + 2?"  # a sequence begins with a space


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["4", " 4", "a  b", " ", "\n a"])
def test_decoding_gives_the_text_back(tmp_path: Path, kind: str, text: str) -> None:
    tokenizer = write(tmp_path, kind)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("kind", "template"),
    [("first", MISTRAL), ("first", QWEN25), ("always", LLAMA2), ("llama2", LLAMA2)],
)
def test_prompts_as_transformers_has_them(tmp_path: Path, kind: str, template: str) -> None:
    auto = pytest.importorskip("transformers").AutoTokenizer
    ours, theirs = write(tmp_path, kind, template), auto.from_pretrained(tmp_path)
    conversation = messages("4")
    for asked in (conversation[:1], [*conversation, {"role": "user", "content": "a"}]):
        expected = theirs.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
        assert render_prompt(asked, ours, "chat") == expected
    if template != QWEN25:
        tokens, mask = render(conversation, ours, "chat")
        assert tokens == theirs.apply_chat_template(conversation)["input_ids"]
        learnt = [t for t, m in zip(tokens, mask, strict=True) if m]
        assert ours.decode(learnt).strip() == "4"
        assert ours.decode(learnt).startswith(" 4")  # as these templates write it


def test_sentencepiece(tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a 4 b 2", "2 + 2? 4"] * 30), model_writer=model, vocab_size=272,
        byte_fallback=True, model_type="bpe", normalization_rule_name="identity",
        remove_extra_whitespaces=False, user_defined_symbols=["<think>"], minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    tokenizer = load_tokenizer(tmp_path)
    plain = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    for content in ("4", " 4", "a 4", "<think>a"):
        tokens, mask = render(messages(content), tokenizer, "plain")
        learnt = [t for t, m in zip(tokens, mask, strict=True) if m]
        assert tokenizer.decode(learnt) == content
    assert tokenizer.document("a 4")[1:-1] == plain.encode("a 4")


# ---- texts with written-out control tokens ----

CHAT = "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"


def test_written_control_tokens_become_tokens_where_the_config_says_so(tmp_path: Path) -> None:
    tokenizer = write(tmp_path, "first")
    control = tokenizer.control_tokens
    plain, _ = sft.tokenize({"text": CHAT}, tokenizer, "chat")
    assert not {control["<|im_start|>"], control["<|im_end|>"]} & set(plain)
    tokens, mask = sft.tokenize({"text": CHAT}, tokenizer, "chat", control_tokens=True)
    assert set(mask) == {1.0}
    assert [t for t in tokens if t in control.values()] == [
        control[t] for t in ("<s>", "<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>",
                             "</s>")
    ]  # fmt: skip
    begun = f"<s>{CHAT}</s>"
    tokens, _ = sft.tokenize({"text": begun}, tokenizer, "chat", control_tokens=True)
    assert [tokens.count(control[token]) for token in ("<s>", "</s>")] == [1, 1]


@pytest.mark.parametrize("control_tokens", [False, True])
def test_they_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, control_tokens: bool
) -> None:
    write(tmp_path / "tokenizer", "first")
    rows = [{"text": "a"}, {"text": CHAT}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config: dict[str, Any] = {
        "stage": "sft", "data": {"path": str(path)}, "pack_length": 128,
        "control_tokens": control_tokens, "model": {"config": {}},
    }  # fmt: skip
    found = sft.section(sft.SftConfig, config)
    with caplog.at_level("WARNING", logger="absl"):
        sft.check_rows(found, rows, load_tokenizer(tmp_path / "tokenizer"), 128)
    warned = "1 of 2 texts hold control tokens (<|im_start|> in" in caplog.text
    assert warned != control_tokens
