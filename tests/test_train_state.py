"""The optimizer's pieces by hand; accumulated microbatches against one big batch."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_transformer import make_params

from r1jax.config import ConfigError
from r1jax.data.packing import completion_group, pack, sequence_group
from r1jax.losses.aggregation import AGGREGATIONS, Metrics
from r1jax.losses.logprobs import token_logprobs
from r1jax.losses.policy import GrpoLossConfig, grpo_loss
from r1jax.losses.supervised import nll_loss
from r1jax.machines.mesh import make_mesh, replicated
from r1jax.models.config import ModelConfig
from r1jax.models.params import param_axes
from r1jax.models.transformer import Transformer
from r1jax.training.optimizers import OptimizerConfig, make_optimizer, make_schedule
from r1jax.training.train_state import make_step
from r1jax.types import Batch, TrainState

# -- schedules -----------------------------------------------------------------------------------


def rates(steps: list[int], total: int = 10, **values: Any) -> list[float]:
    schedule = make_schedule(OptimizerConfig(learning_rate=1.0, **values), total)
    return [float(schedule(step)) for step in steps]


def test_warmup_moves_from_the_first_step() -> None:
    # (step + 1) / 4, then constant
    by_hand = [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert rates([0, 1, 2, 3, 4, 9], warmup_steps=4) == pytest.approx(by_hand)
    assert rates([0, 1, 9], warmup_steps=1) == pytest.approx([1.0, 1.0, 1.0])
    assert rates([0, 9]) == [1.0, 1.0]


def test_cosine_to_the_final_ratio() -> None:
    # 0.2 + 0.8 (1 + cos(pi t / 8)) / 2 for t = step - 2
    by_hand = [0.5, 1.0, 1.0, 0.2 + 0.4 * (1 + 2**-0.5), 0.6, 0.2, 0.2]
    found = rates([0, 1, 2, 4, 6, 10, 50], schedule="cosine", final_ratio=0.2, warmup_steps=2)
    assert found == pytest.approx(by_hand)


def test_linear_to_the_final_ratio() -> None:
    by_hand = [1.0, 0.9, 0.5, 0.0, 0.0]
    assert rates([0, 1, 5, 10, 11], schedule="linear", final_ratio=0.0) == pytest.approx(by_hand)


def test_a_warmup_longer_than_the_run() -> None:
    assert rates([0, 9], warmup_steps=20, schedule="cosine") == pytest.approx([1 / 20, 10 / 20])


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="optimizer.schedule 'cosin' is not one of 'constant', 'cosine', 'linear'"
    ):
        rates([0], schedule="cosin")


# -- the optimizer by hand -------------------------------------------------------------------------


def one_update(config: OptimizerConfig, params: Any, grads: Any) -> tuple[Any, Any]:
    """(updates, Adam's state) after the first step."""
    optimizer = make_optimizer(config, make_schedule(config, 10))
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    return updates, state[1][0]


def test_first_step_of_adam() -> None:
    # corrected for their bias both moments are the gradient's own: -lr g / (|g| + eps)
    config = OptimizerConfig(learning_rate=0.1, eps=0.5)
    grads = {"a": jnp.array([[0.5, -0.25, 0.0]])}
    updates, _ = one_update(config, {"a": jnp.ones((1, 3))}, grads)
    np.testing.assert_allclose(updates["a"], [[-0.05, 0.1 / 3, 0.0]], rtol=1e-5)


def test_gradients_are_clipped_by_their_global_norm() -> None:
    # the norm is 5; the first moment is (1 - b1) times what is left
    params = {"a": jnp.zeros((1, 1)), "b": jnp.zeros((1, 1))}
    grads = {"a": jnp.array([[3.0]]), "b": jnp.array([[-4.0]])}
    _, adam = one_update(OptimizerConfig(b1=0.9, clip_norm=1.0), params, grads)
    assert float(adam.mu["a"][0, 0]) == pytest.approx(0.1 * 3 / 5)
    assert float(adam.mu["b"][0, 0]) == pytest.approx(0.1 * -4 / 5)
    _, adam = one_update(OptimizerConfig(b1=0.9, clip_norm=6.0), params, grads)
    assert float(adam.mu["a"][0, 0]) == pytest.approx(0.1 * 3)


def test_weight_decay_is_for_matrices() -> None:
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5)
    model = replace(TINY, qkv_bias=True, qk_norm=True, tie_embeddings=False)
    params = jax.tree.map(
        lambda _: jnp.ones((1, 2)), param_axes(Transformer(model))[0]
    )  # the name decides
    updates, _ = one_update(config, params, jax.tree.map(jnp.zeros_like, params))
    decayed = {"embedding", "head", "query", "key", "value", "output", "gate", "up", "down"}
    flat = updates | updates["layers"]
    assert {n for n, x in flat.items() if n != "layers" and (x != 0).any()} == decayed
    np.testing.assert_allclose(flat["gate"], -0.1 * 0.5, rtol=1e-6)


# -- accumulation == big batch -------------------------------------------------------------------

TINY = ModelConfig(
    vocab_size=32, embed_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, ffn_dim=16
)
# A large eps: Adam's first update is the sign of the gradient, which says nothing near zero.
OPTIMIZER = OptimizerConfig(learning_rate=0.1, eps=1e-2, warmup_steps=2)
LossFn = Callable[[Any, Batch], tuple[jax.Array, Metrics]]


def make_state(loss_fn: LossFn, params: Any) -> tuple[jax.stages.Wrapped, TrainState]:
    """A stage's step on one device, and the state it begins with."""
    schedule = make_schedule(OPTIMIZER, 10)
    optimizer = make_optimizer(OPTIMIZER, schedule)
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    here = replicated(make_mesh(None, jax.devices()[:1]))
    state = jax.device_put(state, here)
    return make_step(loss_fn, optimizer, schedule, jax.tree.map(lambda _: here, state)), state


def update(step: jax.stages.Wrapped, state: TrainState, batch: Batch) -> tuple[TrainState, Any]:
    """One step on a copy of the state, which the step eats."""
    batch = jax.tree.map(jnp.asarray, batch)
    new, metrics = step(jax.tree.map(jnp.copy, state), batch)
    return jax.device_get(new), jax.device_get(metrics)


def assert_close(first: Any, second: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), first, second)


def transformer_nll(params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
    return nll_loss(token_logprobs(Transformer(TINY), params, batch, chunk=8)[0], batch)


def bigram_params() -> Any:
    """A model that compiles in no time: logits of the next token by token."""
    table_VV = np.random.default_rng(2).normal(size=(32, 32))
    return {"table": jnp.asarray(table_VV, jnp.float32)}


def bigram_grpo(aggregation: str, params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
    logprobs_BLV = jax.nn.log_softmax(params["table"])[batch.tokens[:, :-1]]
    chosen = jnp.take_along_axis(logprobs_BLV, batch.tokens[:, 1:, None], axis=-1)[..., 0]
    logprobs_BL = jnp.pad(chosen, [(0, 0), (1, 0)])
    config = GrpoLossConfig(kl_coef=0.1, loss_agg=aggregation)
    return grpo_loss(logprobs_BL, batch, config, 8, entropy_BL=-logprobs_BL)


def sft_batch(rows: int) -> Batch:
    rng = np.random.default_rng(0)
    groups = [sequence_group(rng.integers(1, 32, n), [1.0] * n) for n in (16, 16, 9, 5, 14, 2)]
    batch = pack(groups, 16, rows)
    assert batch.microbatches * rows == 4
    return batch


def grpo_batch(rows: int, max_microbatches: int | None = None) -> Batch:
    rng = np.random.default_rng(1)
    groups = []
    for _ in range(2):
        completions = [rng.integers(1, 32, n) for n in (2, 9, 4, 6)]
        logprobs = [-3 + 0.5 * rng.normal(size=len(tokens)) for tokens in completions]
        groups.append(completion_group(rng.integers(1, 32, 5), completions, logprobs))
    batch = pack(groups, 17, rows, max_microbatches, advantages=rng.normal(size=8))
    assert batch.microbatches * rows == 4
    old = batch.sampler_logprobs + 0.1 * batch.loss_mask
    return batch.replace(old_logprobs=old, ref_logprobs=batch.sampler_logprobs)


def test_accumulated_is_one_big_batch() -> None:
    step, state = make_state(transformer_nll, make_params(TINY))
    expected, metrics = update(step, state, sft_batch(rows=4))
    found, found_metrics = update(step, state, sft_batch(rows=1))
    assert_close(found, expected)
    assert_close(found_metrics, metrics)
    moved = jax.tree.map(
        lambda x, y: np.abs(x - y).max(), found.params, jax.device_get(state.params)
    )
    assert min(jax.tree.leaves(moved)) > 1e-3


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_accumulated_grpo_is_one_big_batch(aggregation: str) -> None:
    step, state = make_state(partial(bigram_grpo, aggregation), bigram_params())
    expected, metrics = update(step, state, grpo_batch(rows=4))
    found, found_metrics = update(step, state, grpo_batch(rows=1))
    assert_close(found, expected)
    assert_close(found_metrics, metrics)  # sums of shares, and a maximum for drift's
    assert found_metrics["drift/logprob_abs_max"] > found_metrics["drift/logprob_mean_abs"] > 0.01
    assert np.abs(found.params["table"] - jax.device_get(state.params)["table"]).max() > 1e-3


@pytest.fixture(scope="module")
def bigram() -> Any:
    """(step, state, batch of four microbatches of one row, (state, metrics) after the update)."""
    step, state = make_state(partial(bigram_grpo, "sequence_mean"), bigram_params())
    batch = grpo_batch(rows=1)
    return step, state, batch, update(step, state, batch)


def test_the_number_of_microbatches_is_a_value(bigram: Any) -> None:
    _, _, _, (four, _) = bigram
    step, state = make_state(partial(bigram_grpo, "sequence_mean"), bigram_params())
    batch = jax.tree.map(np.array, grpo_batch(rows=1, max_microbatches=6))
    batch.loss_mask[4:] = np.nan  # what stands in those not used must not matter
    found, metrics = update(step, state, batch)
    assert_close(found, four)
    part, _ = update(step, state, batch.replace(microbatches=np.int32(2)))
    assert np.abs(part.params["table"] - four.params["table"]).max() > 1e-3
    assert np.isfinite(metrics["loss"])
    assert step._cache_size() == 1


def test_metrics_of_a_step(bigram: Any) -> None:
    step, state, batch, (after, metrics) = bigram
    # a warm-up of two steps: half the learning rate in the first
    assert metrics["optimizer/learning_rate"] == pytest.approx(0.05)
    _, second = update(step, jax.device_put(after, state.step.sharding), batch)
    assert second["optimizer/learning_rate"] == pytest.approx(0.1)
    assert second["loss"] < metrics["loss"]
    assert int(after.step) == 1
    rows = jax.tree.map(lambda x: jnp.asarray(x[0] if x.ndim == 3 else x), grpo_batch(rows=4))
    grad_of = jax.jit(jax.grad(lambda params: bigram_grpo("sequence_mean", params, rows)[0]))
    norm = float(np.linalg.norm(grad_of(state.params)["table"]))
    assert metrics["optimizer/grad_norm"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_that_is_no_number_is_skipped(bigram: Any, bad: float) -> None:
    """Parameters and moments stay, also in the one after it."""
    step, state, batch, (sound, metrics) = bigram
    poor = batch.replace(advantages=np.append(batch.advantages[:-1], np.float32(bad)))
    after, found = update(step, state, poor)
    assert (metrics["optimizer/skipped"], found["optimizer/skipped"]) == (0, 1)
    assert not np.isfinite(found["loss"] + found["optimizer/grad_norm"])
    assert int(after.step) == 1
    assert_close((after.params, after.opt_state), (state.params, state.opt_state))
    later, _ = update(step, jax.device_put(after, state.step.sharding), batch)
    assert_close(later.params, sound.params)


def test_the_state_is_donated(bigram: Any) -> None:
    step, state, batch, _ = bigram
    eaten, batch = jax.tree.map(jnp.copy, state), jax.tree.map(jnp.asarray, batch)
    step(eaten, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((eaten.params, eaten.opt_state)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(batch))
