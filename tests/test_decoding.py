"""Speculative decoding: drafts of multi-token prediction change no completion."""

import itertools
from collections import Counter
from dataclasses import replace

import jax
import numpy as np
import pytest
from scipy.stats import chi2
from test_engine import (
    CONFIG,
    SAMPLINGS,
    STOP,
    V3,
    assert_equal,
    engine,
    generate,
    params,
    prompts_of,
)

from r1jax.config import ConfigError
from r1jax.models.config import ModelConfig
from r1jax.models.transformer import Transformer, forward, head_weights
from r1jax.rollout.config import EngineConfig
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampling import SamplingConfig


@pytest.mark.parametrize(
    ("config", "mesh", "sampling"),
    [
        (V3, "", "greedy"),
        (V3, "data=2 expert=2 tensor=2", "plain"),
        (CONFIG, "", "cold"),
    ],
)
def test_drafts_change_nothing(config: ModelConfig, mesh: str, sampling: str) -> None:
    """Speculative decoding: the naive loop's completions, with right drafts and with wrong ones."""
    config = replace(config, mtp=True)
    prompts = prompts_of([5, 30, 2, 1, 9, 9, 9, 9])
    by = engine(8, 4, 8, 2, mesh, config)
    found = generate(by, prompts, SAMPLINGS[sampling], group_size=2)
    for (p, _), completion in found.items():
        assert_equal(completion, prompts[p], SAMPLINGS[sampling], config)
    did = by.statistics
    assert 0 < did.right_drafts < did.drafts < did.row_steps < did.tokens
    assert did.tokens <= did.row_steps + did.right_drafts <= did.tokens + len(found)


def test_drafts_keep_the_distribution() -> None:
    """Chi-square of 6,000 completions of three tokens against their exact probabilities."""
    config = replace(V3, mtp=True, vocab_size=5)
    given = params(config)
    by = Engine(Transformer(config), (), EngineConfig(500, 4, 8, 1, speculative=True))
    prompt = np.array([1, 2, 0], np.int32)
    sampling = SamplingConfig(max_tokens=3, temperature=1.5)
    counts: Counter[tuple[int, ...]] = Counter()
    for completion in by.generate(given, [prompt], sampling, jax.random.key(1), 6000):
        counts[tuple(completion.tokens.tolist())] += 1
    assert by.statistics.right_drafts > 500
    outcomes = np.asarray(list(itertools.product(range(5), repeat=3)), np.int32)
    rows = np.concatenate([np.tile(prompt, (len(outcomes), 1)), outcomes], axis=1)
    places = np.tile(np.arange(6), (len(rows), 1))
    output = forward(Transformer(config), given, rows, places, np.ones_like(rows))
    logits = output.hidden[:, 2:5] @ head_weights(given) / sampling.temperature
    logprobs = np.take_along_axis(jax.nn.log_softmax(logits), outcomes[..., None], axis=2)
    exact = 6000 * np.exp(logprobs.sum(axis=(1, 2)))
    expected = dict(zip(map(tuple, outcomes.tolist()), exact, strict=True))
    assert sum(expected.values()) == pytest.approx(6000, rel=1e-4)
    pairs = [(counts[tokens], mean) for tokens, mean in expected.items() if mean >= 5]
    pairs.append(tuple(6000 - sum(column) for column in zip(*pairs, strict=True)))  # the others
    statistic = sum((count - mean) ** 2 / mean for count, mean in pairs)
    assert len(pairs) > 20 and statistic < chi2.ppf(0.999, len(pairs) - 1)


def test_drafts_need_multi_token_prediction() -> None:
    with pytest.raises(ConfigError, match="no multi-token prediction"):
        Engine(Transformer(CONFIG), STOP, EngineConfig(speculative=True))
    with pytest.raises(ConfigError, match="engine.bucket 9 must be even"):
        sizes = EngineConfig(bucket=9, speculative=True)
        Engine(Transformer(replace(CONFIG, mtp=True)), STOP, sizes)
