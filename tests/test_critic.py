"""PPO: advantages by hand, the value loss, values of the state before a token, exact resume."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import MODEL, grpo_config, metrics_by_step

from r1jax.losses.advantages import token_advantages, whitened
from r1jax.losses.logprobs import token_values
from r1jax.losses.policy import GrpoLossConfig, grpo_loss
from r1jax.losses.scalar import value_loss
from r1jax.machines.mesh import make_mesh
from r1jax.models.config import ModelConfig
from r1jax.models.params import random_params
from r1jax.models.transformer import Transformer
from r1jax.stages import grpo
from r1jax.types import Batch

# A row with two tokens of prompt, completion 1 (its copy of the prompt's last token, then three
# tokens), completion 2 (two tokens), one of padding.
IDS = np.array([[0, 0, 1, 1, 1, 1, 2, 2, 2, 0]], np.int32)
MASK = np.array([[0, 0, 0, 1, 1, 1, 0, 1, 1, 0]], np.float32)
VALUES = np.array([[9, 9, 9, 0.5, 0.25, 1.0, 9, 0.0, 2.0, 9]], np.float32)
REWARDS = np.array([0.0, 1.0, 3.0], np.float32)


def batch(**values: Any) -> Batch:
    default = {
        "tokens": IDS, "positions": IDS, "segment_ids": IDS, "completion_ids": IDS,
        "loss_mask": MASK, "lengths": np.array([1.0, 3.0, 2.0], np.float32),
        "num_targets": np.float32(5.0),
    }  # fmt: skip
    return jax.tree.map(jnp.asarray, Batch(**(default | values)))


def advantages(discount: float, gae_lambda: float, penalties: Any = 0.0) -> np.ndarray:
    cost = jnp.broadcast_to(jnp.asarray(penalties, jnp.float32), VALUES.shape)
    found = token_advantages(
        jnp.asarray(VALUES), batch(), jnp.asarray(REWARDS), cost, discount, gae_lambda
    )
    return np.asarray(found)


def test_lambda_one_is_the_reward_less_the_value() -> None:
    expected = [[0, 0, 0, 0.5, 0.75, 0.0, 0, 3.0, 1.0, 0]]
    np.testing.assert_allclose(advantages(1.0, 1.0), expected, atol=1e-6)


def test_lambda_zero_is_one_step() -> None:
    # V(next) - V, and the reward less the value at the end
    expected = [[0, 0, 0, -0.25, 0.75, 0.0, 0, 2.0, 1.0, 0]]
    np.testing.assert_allclose(advantages(1.0, 0.0), expected, atol=1e-6)


def test_discount_and_lambda_and_penalties() -> None:
    # completion 2, discount 0.5, lambda 0.5, a penalty of 0.1 a token:
    #   last: 3 - 0.1 - 2 = 0.9; first: -0.1 + 0.5 * 2 - 0 + 0.25 * 0.9 = 1.125
    found = advantages(0.5, 0.5, 0.1)
    np.testing.assert_allclose(found[0, 7:9], [1.125, 0.9], atol=1e-6)
    # completion 1: 1 - 0.1 - 1 = -0.1; -0.1 + 0.5 - 0.25 - 0.025 = 0.125;
    #   -0.1 + 0.125 - 0.5 + 0.03125 = -0.44375
    np.testing.assert_allclose(found[0, 3:6], [-0.44375, 0.125, -0.1], atol=1e-6)


def test_whitened() -> None:
    found = np.asarray(whitened(jnp.asarray(VALUES), jnp.asarray(MASK)))[MASK > 0]
    assert found.mean() == pytest.approx(0.0, abs=1e-6)
    assert found.std() == pytest.approx(1.0, abs=1e-5)


def test_value_loss_by_hand() -> None:
    above = np.array([[0, 0, 0, 1, 2, 0, 0, -1, 0, 0]])
    returns = np.where(MASK > 0, VALUES + above, 1e9).astype(np.float32)
    (loss, metrics), grad = jax.value_and_grad(value_loss, has_aux=True)(
        jnp.asarray(VALUES), batch(returns=returns)
    )
    assert float(loss) == pytest.approx(0.5 * (1 + 4 + 1) / 5)
    assert float(metrics["value_mean"]) == pytest.approx((0.5 + 0.25 + 1.0 + 0.0 + 2.0) / 5)
    np.testing.assert_allclose(grad[0], np.array([0, 0, 0, -1, -2, 0, 0, 1, 0, 0]) / 5, atol=1e-6)


def test_token_advantages_replace_the_groups() -> None:
    logprobs = jnp.full(MASK.shape, -1.0)
    own = np.where(MASK > 0, np.arange(10), 1e9).astype(np.float32)
    given = batch(token_advantages=own, advantages=np.array([0.0, 7.0, 7.0], np.float32))
    config = GrpoLossConfig(kl_coef=0.0, loss_agg="token_mean")
    loss, _ = grpo_loss(logprobs, given, config, 8)
    assert float(loss) == pytest.approx(-(3 + 4 + 5 + 7 + 8) / 5)


def test_a_tokens_value_does_not_know_it() -> None:
    """Changing token 5 changes the values of the states behind it, not the one before it."""
    config = ModelConfig(vocab_size=32, scalar_head=True, **MODEL)  # type: ignore[arg-type]
    model = Transformer(config, make_mesh(devices=jax.devices()[:1]))
    params = random_params(model, 0)
    params = params | {"scalar_head": jnp.ones_like(params["scalar_head"])}
    tokens = np.arange(1, 9, dtype=np.int32)[None]
    one = np.ones_like(tokens)
    places = np.arange(8, dtype=np.int32)[None]
    given = batch(tokens=tokens, positions=places, segment_ids=one, completion_ids=one)
    other = dataclasses.replace(given, tokens=given.tokens.at[0, 5].set(20))
    first, second = (np.asarray(token_values(model, params, b))[0] for b in (given, other))
    np.testing.assert_array_equal(first[:6], second[:6])
    assert np.abs(first[6:] - second[6:]).min() > 1e-6
    assert first[0] == 0.0


@pytest.mark.usefixtures("one_device")
def test_ppo_resumes_exactly(
    tokenizer_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two minibatches a rollout, a KL in the reward; gone on from update 2 it ends the same."""
    shared: list[bool] = []
    monkeypatch.setattr(
        "r1jax.training.run.choose_kernel",
        lambda config, compute, mesh, prompts: shared.append(prompts) or "xla",
    )
    critic = {"gae_lambda": 0.95, "kl_coef": 0.01, "optimizer": {"learning_rate": 1e-2}}
    config = grpo_config(tokenizer_dir, critic=critic, loss={"kl_coef": 0.0})
    grpo.run(config, str(tmp_path))
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    steps = metrics_by_step(tmp_path)
    assert all(np.isfinite(steps[s]["grpo/critic/loss"]) for s in (1, 2, 3, 4))
    assert steps[1]["grpo/critic/loss"] != steps[2]["grpo/critic/loss"]
    assert shared and all(shared)  # its rows are the policy's, with shared prompts
    for directory in ("checkpoints", "critic/checkpoints"):
        assert sorted(p.name for p in (tmp_path / directory).iterdir()) == ["2", "4"]
        shutil.rmtree(tmp_path / directory / "4")
    grpo.run(config, str(tmp_path))
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
