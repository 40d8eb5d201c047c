"""The SentencePiece tokenizer loses nothing, and suits the mini world."""

from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from experiments.mini.world.corpus import documents
from experiments.mini.world.problems import examples
from r1jax.config import ConfigError
from r1jax.data.chat import R1_ZERO_SHORT
from r1jax.data.spm import TAGS, train_sentencepiece

VOCAB_SIZE = 768


def texts(count: int = 5000) -> list[str]:
    return [document["text"] for document in documents(0, count)]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(train_sentencepiece(texts(), VOCAB_SIZE, tmp_path_factory.mktemp("spm")))


@pytest.fixture(scope="module")
def processor(model_path: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(model_path))


# U+2581 is how SentencePiece writes a space: the one character that does not come back.
ANYTHING = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))
LIKELY = st.text(
    st.sampled_from("\n\t  ，。：；、？！（）「」０９ab12+<>/答案　é😀\u0000\u00a0\ufb01")
)


@given(ANYTHING | LIKELY)
@example("  two  spaces \n\n and lines\r\n")
@example("全角：，。？！（）０１２、“”")
@example("<think> a </think><answer>14</answer> <0x41> <s></s> <pad>")
def test_nothing_is_lost(processor: sentencepiece.SentencePieceProcessor, text: str) -> None:
    ids = processor.encode(text)
    assert processor.decode(ids) == text
    assert not {0, 1, 2, 3} & set(ids)


def test_special_ids_and_tags(processor: sentencepiece.SentencePieceProcessor) -> None:
    ids = (processor.pad_id(), processor.unk_id(), processor.bos_id(), processor.eos_id())
    assert ids == (0, 1, 2, 3)
    assert processor.get_piece_size() == VOCAB_SIZE
    for symbol in ("\n", *TAGS):
        assert len(processor.encode(symbol)) == 1
        assert symbol in processor.encode(f"a {symbol}b", out_type=str)


def test_digits_stand_alone(processor: sentencepiece.SentencePieceProcessor) -> None:
    pieces = [processor.id_to_piece(index) for index in range(VOCAB_SIZE)]
    with_digits = [p for p in pieces if any(c.isdigit() for c in p) and not p.startswith("<0x")]
    assert sorted(with_digits) == list("0123456789")


def test_every_character_of_the_world_is_a_token(
    processor: sentencepiece.SentencePieceProcessor,
) -> None:
    characters = {character for text in texts() for character in text} - {"/"}  # only in tags
    assert sum("\u4e00" <= character <= "\u9fff" for character in characters) > 50
    in_bytes = [c for c in characters if any(map(processor.is_byte, processor.encode(c)))]
    assert not in_bytes


def test_prompts_are_short(processor: sentencepiece.SentencePieceProcessor) -> None:
    assert len(processor.encode(R1_ZERO_SHORT)) <= 40
    for example_ in examples(0, 500, "train"):
        prompt = R1_ZERO_SHORT.format(prompt=example_.question)
        assert len(processor.encode(prompt)) <= 80, prompt


def test_training_is_deterministic(model_path: Path, tmp_path: Path) -> None:
    again = train_sentencepiece(texts(), VOCAB_SIZE, tmp_path / "again")
    assert Path(again).read_bytes() == model_path.read_bytes()


def test_newline_and_tags_are_tokens_even_if_the_texts_have_none(tmp_path: Path) -> None:
    path = train_sentencepiece(["one line", "another line"] * 10, 280, tmp_path)
    trained = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for symbol in ("\n", *TAGS):
        (index,) = trained.encode(symbol)
        assert not trained.is_byte(index)


def test_vocab_size_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="vocab_size 100 "):
        train_sentencepiece(texts(200), 100, tmp_path)
    assert not list(tmp_path.iterdir())
