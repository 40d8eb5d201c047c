"""The sampler: frequencies, filters, temperature 0, and the numbers it must never pick."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.config import ConfigError
from r1jax.rollout.sampling import BLOCK, SamplingConfig, kept, row_keys, uniforms
from r1jax.rollout.sampling import sample as sample_eagerly

PROBS = np.array([0.4, 0.05, 0.3, 0.15, 0.1])
BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))

sample = jax.jit(sample_eagerly, static_argnums=2)


@jax.jit
def number(key: jax.Array, prompts: jax.Array, samples: jax.Array, at: jax.Array) -> jax.Array:
    return uniforms(row_keys(key, prompts, samples), at)


def tokens_left(probs: np.ndarray, **filters: float) -> list[int]:
    """Tokens that the filters leave."""
    with np.errstate(divide="ignore"):
        logits = jnp.asarray(np.log(probs)[None], jnp.float32)
    left = kept(logits, SamplingConfig(**filters))  # type: ignore[arg-type]
    return np.flatnonzero(left[0]).tolist()


@pytest.mark.parametrize("vocab", [5, BLOCK, BLOCK + 1, 3 * BLOCK - 7])
def test_frequencies_are_probabilities(vocab: int) -> None:
    """Evenly spaced uniform numbers must hit every token as often as its probability says."""
    logits = np.random.default_rng(vocab).normal(0, 2, vocab).astype(np.float32)
    count = 20_000
    numbers = (np.arange(count, dtype=np.float32) + 0.5) / count
    rows = jnp.broadcast_to(jnp.asarray(logits), (count, vocab))
    tokens, logprobs = sample(rows, jnp.asarray(numbers), SamplingConfig(temperature=0.7))
    expected = np.asarray(jax.nn.log_softmax(logits / 0.7))
    counts = np.bincount(tokens, minlength=vocab)
    # An interval holds its length's share of the numbers, up to one at each end.
    np.testing.assert_array_less(np.abs(counts - count * np.exp(expected)), 2)
    np.testing.assert_allclose(logprobs, expected[np.asarray(tokens)], atol=1e-5)


def test_random_frequencies() -> None:
    """Chi-square of tokens drawn with the engine's own keys (99.9 % bound for 4 degrees)."""
    count = 5000
    numbers = number(
        jax.random.key(1), jnp.arange(count), jnp.zeros(count, jnp.int32), jnp.full(count, 7)
    )
    rows = jnp.broadcast_to(jnp.log(jnp.asarray(PROBS, jnp.float32)), (count, 5))
    tokens, _ = sample(rows, numbers, SamplingConfig())
    expected = count * PROBS
    chi_square = np.sum((np.bincount(tokens, minlength=5) - expected) ** 2 / expected)
    assert chi_square < 18.5


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 1}, [0]),
        ({"top_k": 3}, [0, 2, 3]),
        ({"top_k": 9}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.39}, [0]),
        ({"top_p": 0.41}, [0, 2]),  # the first token alone does not reach 0.41
        ({"top_p": 0.69}, [0, 2]),
        ({"top_p": 0.84}, [0, 2, 3]),
        ({"min_p": 0.37}, [0, 2, 3]),  # at least 0.37 x 0.4 = 0.148
        ({"min_p": 0.38}, [0, 2]),
        ({"top_k": 2, "top_p": 0.58}, [0, 2]),  # of what is left, 0.4 / 0.7 is 0.571
        ({"top_k": 2, "top_p": 0.56}, [0]),
        ({"top_p": 0.84, "min_p": 0.4}, [0, 2]),
    ],
)
def test_filters(filters: dict[str, float], expected: list[int]) -> None:
    assert tokens_left(PROBS, **filters) == expected


def test_ties_go_to_the_first_tokens() -> None:
    """Exactly k, also among equals."""
    assert tokens_left(np.array([0.1, 0.3, 0.3, 0.3]), top_k=2) == [1, 2]
    assert tokens_left(np.array([0.25, 0.25, 0.25, 0.25]), top_p=0.4) == [0, 1]


def test_filters_are_by_row() -> None:
    logits = jnp.log(jnp.asarray(np.stack([PROBS, PROBS[::-1]]), jnp.float32))
    left = np.asarray(kept(logits, SamplingConfig(top_k=2)))
    assert [np.flatnonzero(row).tolist() for row in left] == [[0, 2], [2, 4]]


@pytest.mark.parametrize("filters", [{"top_k": 2}, {"top_p": 0.6}, {"min_p": 0.5}])
def test_logprobs_are_unfiltered(filters: dict[str, float]) -> None:
    logits = jnp.log(jnp.asarray(PROBS, jnp.float32))[None].repeat(2, axis=0)
    config = SamplingConfig(**filters)  # type: ignore[arg-type]
    tokens, logprobs = sample(logits, jnp.asarray([0.0, BELOW_ONE]), config)
    assert tokens.tolist() == [0, 2]
    np.testing.assert_allclose(np.exp(logprobs), [0.4, 0.3], rtol=1e-5)


def test_temperature_zero_is_argmax() -> None:
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(50, 300)), jnp.float32)
    numbers = jnp.linspace(0, BELOW_ONE, 50)
    tokens, logprobs = sample(logits, numbers, SamplingConfig(temperature=0))
    np.testing.assert_array_equal(tokens, logits.argmax(axis=-1))
    expected = jax.nn.log_softmax(logits).max(axis=-1)  # as at temperature 1
    np.testing.assert_allclose(logprobs, expected, atol=1e-5)


@pytest.mark.parametrize("vocab", [5, BLOCK, 2 * BLOCK + 3])
def test_never_a_token_without_probability(vocab: int) -> None:
    """At either end of [0, 1) and between: not the masked ones, not the last block's padding."""
    rng = np.random.default_rng(vocab)
    logits = rng.normal(0, 3, (64, vocab)).astype(np.float32)
    logits[rng.random((64, vocab)) < 0.6] = -np.inf
    logits[:32, -vocab // 3 :] = -np.inf
    logits[:, vocab // 2] = 0.0
    for number in (0.0, 0.5, 1 - 1e-6, float(BELOW_ONE)):
        numbers = jnp.full(64, number, jnp.float32)
        tokens, logprobs = sample(jnp.asarray(logits), numbers, SamplingConfig())
        assert np.isfinite(np.asarray(logprobs)).all()
        if number == BELOW_ONE:
            last = [np.flatnonzero(np.isfinite(row))[-1] for row in logits]
            chances = np.exp(logits - logits.max(axis=1, keepdims=True))
            likely = chances[np.arange(64), last] / chances.sum(axis=1) > 1e-6
            np.testing.assert_array_equal(np.asarray(tokens)[likely], np.array(last)[likely])


def test_keys_are_apart() -> None:
    """Another prompt, sample, position or seed is another number; the same are the same."""
    places = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    numbers = [
        float(number(jax.random.key(s), jnp.array([p]), jnp.array([g]), jnp.array([t]))[0])
        for s, p, g, t in places * 2
    ]
    assert len(set(numbers)) == len(places)
    assert numbers[:5] == numbers[5:]


@pytest.mark.parametrize(
    "wrong",
    [{"max_tokens": 0}, {"temperature": -0.1}, {"top_k": -1}, {"top_p": 0.0}, {"min_p": 1.5}],
)
def test_wrong_settings(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"{name} .* must be"):
        SamplingConfig(**wrong)  # type: ignore[arg-type]


def test_filtered() -> None:
    assert not SamplingConfig(temperature=0.5).filtered
    for filters in ({"temperature": 0.0}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}):
        assert SamplingConfig(**filters).filtered  # type: ignore[arg-type]
