"""Stop strings across token borders, found in chunks of any size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.config import ConfigError
from r1jax.data.tokenizer import Tokenizer
from r1jax.rollout.sampling import SamplingConfig
from r1jax.rollout.stop_strings import stop_check
from r1jax.weights.load import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir: str) -> Tokenizer:
    return load_tokenizer(tokenizer_dir)


def kept_in_chunks(tokenizer: Tokenizer, tokens: list[int], stop: list[str], chunk: int) -> int:
    """What a row of the engine keeps when it is asked after every chunk."""
    check = stop_check(tokenizer, stop)
    assert check is not None
    for seen in range(0, len(tokens), chunk):
        if kept := check(np.asarray(tokens[: seen + chunk]), seen):
            return kept
    return 0


def first_with(tokenizer: Tokenizer, tokens: list[int], stop: list[str]) -> int:
    """The definition: the fewest tokens whose text has a stop string."""
    for length in range(1, len(tokens) + 1):
        if any(string in tokenizer.decode(tokens[:length]) for string in stop):
            return length
    return 0


TEXT = (
    "Let me see: 12 + 30 = 42. Wait, 等一下, 是 42。\nThe answer is 42.</answer> And so on 🙂 ok."
)


@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
@pytest.mark.parametrize(
    "stop", ["</answer>", ".</ans", "一下", "下, 是", "\nThe", "🙂", " 42. W", "Let", " ok.", "no"]
)
def test_a_stop_string(tokenizer: Tokenizer, stop: str, chunk: int) -> None:
    tokens = tokenizer.encode(TEXT)
    kept = kept_in_chunks(tokenizer, tokens, [stop], chunk)
    assert kept == first_with(tokenizer, tokens, [stop])
    assert bool(kept) == (stop in TEXT)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    text=st.text(alphabet="ab 1<>/是\n🙂", max_size=60),
    stop=st.lists(
        st.text(alphabet="ab 1<>/是\n🙂", min_size=1, max_size=5), min_size=1, max_size=3
    ),
    chunk=st.integers(1, 9),
)
def test_any_stop_string(tokenizer: Tokenizer, text: str, stop: list[str], chunk: int) -> None:
    tokens = tokenizer.encode(text)
    found = kept_in_chunks(tokenizer, tokens, stop, chunk)
    assert found == first_with(tokenizer, tokens, stop)


def test_nothing_stops() -> None:
    assert stop_check(None, ()) is None  # type: ignore[arg-type]


def test_an_empty_string_is_an_error() -> None:
    with pytest.raises(ConfigError, match="stop .* must be made of texts that are not empty"):
        SamplingConfig(stop=("a", ""))
