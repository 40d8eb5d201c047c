"""The router by hand, its balance, and experts that are given."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import grpo_config
from test_transformer import make_params

from r1jax.config import ConfigError, section
from r1jax.data.packing import pack, sequence_group
from r1jax.losses.router import BALANCE, LOAD, moved_bias, read_metrics, routing_metrics
from r1jax.machines.mesh import make_mesh
from r1jax.models.config import Experts, ModelConfig
from r1jax.models.layouts import unstack_layers
from r1jax.models.moe import ROUTER_BIAS, choose, sequence_balance
from r1jax.models.transformer import Transformer, forward
from r1jax.stages import sft
from r1jax.stages.grpo_config import GrpoConfig, chosen
from r1jax.stages.grpo_updates import make_loss
from r1jax.training.balancing import RouterConfig, check_router
from r1jax.training.optimizers import OptimizerConfig, make_optimizer, make_schedule
from r1jax.training.train_state import make_step, microbatch, new_state, on_mesh, state_shardings

TINY = ModelConfig(
    vocab_size=31, embed_dim=16, num_layers=3, num_heads=2, num_kv_heads=2, head_dim=8, ffn_dim=24,
    experts=Experts(
        num_experts=8, top_k=2, ffn_dim=8, num_shared=1, dense_layers=(1,), score="sigmoid",
        bias=True, normalize=True,
    ),
)  # fmt: skip


def args_of(rows: int, length: int) -> tuple[jax.Array, ...]:
    tokens = jax.random.randint(jax.random.key(0), (rows, length), 0, 31)
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    return tokens, positions, jnp.ones_like(tokens)


# -- choice ----------------------------------------------------------------------------------------

SCORES = [0.9, 0.1, 0.5, 0.6, 0.8, 0.0, 0.7, 0.2]  # of four groups of two


@pytest.mark.parametrize(
    ("groups", "top_groups", "score", "expected"),
    [
        (1, 1, "sigmoid", {0, 4, 6}),
        # sums of the best two: 1.0, 1.1, 0.8, 0.9
        (4, 2, "sigmoid", {0, 3, 2}),
        # the best: 0.9, 0.6, 0.8, 0.7
        (4, 2, "softmax", {0, 4, 1}),
    ],
)
def test_who_is_chosen(groups: int, top_groups: int, score: Any, expected: set[int]) -> None:
    experts = Experts(8, 3, 4, score=score, groups=groups, top_groups=top_groups)
    assert set(np.asarray(choose(jnp.asarray(SCORES)[None, None], experts))[0, 0]) == expected


def test_negative_scores_of_the_best_groups_are_above_all_others() -> None:
    experts = Experts(4, 2, 4, score="sigmoid", groups=2, top_groups=1)
    biased = jnp.array([-3.0, -2.0, -0.1, -9.0])[None, None]  # groups: -5 and -9.1
    assert set(np.asarray(choose(biased, experts))[0, 0]) == {0, 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 3}, "num_experts 8 is not divisible by groups 3"),
        ({"groups": 4, "top_groups": 5}, "top_groups 5 is above groups 4"),
        ({"groups": 8, "top_groups": 1}, "top_k 2 is above the 1 experts to choose from"),
    ],
)
def test_experts_that_cannot_be(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Experts(8, 2, 4, **changes)


def test_experts_that_are_given_are_taken() -> None:
    """In every layer that has any; with the model's own choice nothing changes."""
    model, params, args = Transformer(TINY), make_params(TINY), args_of(2, 12)
    own = forward(model, params, *args)
    assert own.routing is not None and own.routing.experts.shape == (2, 2, 12, 2)
    assert own.routing.compared is None
    again = forward(model.clone(replay=True), params, *args, recorded_SBLk=own.routing.experts)
    np.testing.assert_array_equal(again.hidden, own.hidden)
    assert again.routing is not None and again.routing.differing is not None
    assert again.routing.differing.sum() == 0 and again.routing.compared.sum() == 2 * 2 * 12 * 2
    for layer in (0, 1):
        others = own.routing.experts.at[layer].set((own.routing.experts[layer] + 1) % 8)
        other = forward(model.clone(replay=True), params, *args, recorded_SBLk=others)
        np.testing.assert_array_equal(other.routing.experts, others)  # type: ignore[union-attr]
        assert float(jnp.abs(other.hidden - own.hidden).max()) > 1e-2
    apart = model.clone(compute=replace(model.compute, scan_layers=False), replay=True)
    layers = unstack_layers(params, TINY)
    unrolled = forward(apart, layers, *args, recorded_SBLk=others)
    np.testing.assert_allclose(unrolled.hidden, other.hidden, atol=1e-5)


def test_experts_are_compared_where_they_are_known() -> None:
    """Half of the tokens; of the first layer's, one expert of two is another one."""
    model, params, args = Transformer(TINY), make_params(TINY), args_of(2, 12)
    own = forward(model, params, *args)
    assert own.routing is not None
    recorded = own.routing.experts.at[:, 1].set(-1)
    other = [next(e for e in range(8) if e not in pair) for pair in recorded[0, 0].tolist()]
    recorded = recorded.at[0, 0, :, 1].set(jnp.array(other))
    for replay in (False, True):
        found = forward(model.clone(replay=replay), params, *args, recorded_SBLk=recorded)
        routing: Any = found.routing
        assert (int(routing.compared.sum()), int(routing.differing[0])) == (2 * 12 * 2, 12)
        same = np.array_equal(found.hidden, own.hidden)
        assert same is not replay
        np.testing.assert_array_equal(found.hidden[1], own.hidden[1])
    assert replay and int(routing.differing[1]) >= 0
    read = read_metrics(routing_metrics(routing), jnp.array(24))
    differing = routing.differing.sum() / (2 * 12 * 2)
    assert float(read["router/disagreement"]) == pytest.approx(float(differing))


# -- balance ---------------------------------------------------------------------------------------


def test_sequence_balance_by_hand() -> None:
    """V3 eq 17 to 20 for a row of two tokens and padding, and one of one token; E = 2, k = 1."""
    scores = jnp.array([[[0.6, 0.2], [0.3, 0.3], [0.9, 0.0]], [[0.1, 0.4], [0, 1], [0, 1]]])
    hits = jnp.array([[[1, 0], [1, 0], [0, 0]], [[0, 1], [0, 0], [0, 0]]], jnp.float32)
    counted = jnp.array([[True, True, False], [True, False, False]])
    # row 0: f = 2/2 (2, 0), P = ((0.75 + 0.5) / 2, ...) -> 2 * 0.625, times its 2 tokens
    # row 1: f = (0, 2), P = (0.2, 0.8) -> 1.6, times 1
    expected = 2 * (2 * 0.625) + 1.6
    assert float(sequence_balance(scores, hits, counted, 1)) == pytest.approx(expected)


def test_the_bias_moves_against_the_load() -> None:
    load = jnp.array([[5.0, 1.0, 3.0, 3.0]])
    moved = moved_bias(jnp.full((1, 4), 0.5), load, 0.1)
    np.testing.assert_allclose(moved, [[0.4, 0.6, 0.5, 0.5]])


def test_padding_takes_no_expert() -> None:
    tokens, positions, segments = args_of(2, 12)
    segments = segments.at[:, 8:].set(0)
    output = forward(Transformer(TINY), make_params(TINY), tokens, positions, segments)
    assert output.routing is not None
    np.testing.assert_array_equal(output.routing.load_E.sum(axis=1), [2 * 8 * 2] * 2)


def skewed() -> Any:
    """All tokens want experts 0 and 1."""
    params = make_params(TINY)
    for stack in ("layers_0_0", "layers_2_2"):
        params[stack][ROUTER_BIAS] = jnp.zeros_like(params[stack][ROUTER_BIAS]).at[:, :2].set(0.4)
    return params


def train(
    config: ModelConfig,
    before: Any,
    router: RouterConfig,
    updates: int,
    learning_rate: float,
    mtp_coef: float = 0.0,
) -> tuple[Any, list[Any]]:
    """(parameters after, metrics of each update) on the same random rows."""
    mesh = make_mesh(devices=jax.devices()[:1])
    adam = OptimizerConfig(learning_rate=learning_rate, weight_decay=0.1)
    schedule, model = make_schedule(adam, updates), Transformer(config, mesh)
    optimizer = make_optimizer(adam, schedule)
    shardings = state_shardings(model, optimizer)
    loss_fn = sft.make_loss(model, 16, mtp_coef=mtp_coef)
    step = make_step(loss_fn, optimizer, schedule, shardings, (config, router))
    rng = np.random.default_rng(0)
    groups = [sequence_group(rng.integers(1, 31, 30), [1.0] * 30) for _ in range(8)]
    batch = on_mesh(pack(groups, 32, 4), mesh)
    state, found = new_state(jax.device_put(jax.device_get(before)), optimizer, shardings), []
    moments = jax.tree_util.tree_leaves_with_path(state.opt_state)
    assert not any(ROUTER_BIAS in jax.tree_util.keystr(path) for path, _ in moments)
    for _ in range(updates):
        state, metrics = step(state, batch)
        found.append(jax.device_get(metrics))
    return jax.device_get(state.params), found


def test_the_bias_evens_a_skewed_load() -> None:
    _, found = train(TINY, skewed(), RouterConfig(bias_step=0.02), 60, learning_rate=1e-5)
    assert found[0]["router/load_max"] > 3.5  # 4 is all to two of eight
    assert found[-1]["router/load_max"] < 1.35
    assert found[-1]["router/unused_share"] == 0


def test_no_gradient_moves_the_bias() -> None:
    before = skewed()
    after, found = train(TINY, before, RouterConfig(), 2, learning_rate=0.1)
    for stack in ("layers_0_0", "layers_2_2"):
        np.testing.assert_array_equal(after[stack][ROUTER_BIAS], before[stack][ROUTER_BIAS])
        assert np.abs(after[stack]["router"] - before[stack]["router"]).max() > 1e-2
    assert found[0]["router/balance"] > 1.0


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_rl_counts_the_load(ratio: str) -> None:
    """Whatever the ratio is of: every token of the batch, in each layer with experts."""
    asked = grpo_config("unread", loss={"ratio": ratio}, sampling={"max_tokens": 16})
    config = chosen(section(GrpoConfig, asked), "cpu")
    rng, params = np.random.default_rng(0), make_params(TINY)
    groups = [sequence_group(rng.integers(1, 31, 12), [0.0] * 4 + [1.0] * 8) for _ in range(4)]
    batch = microbatch(pack(groups, 32, 2, advantages=np.ones(4, np.float32)), 0)
    loss_fn = make_loss(config, Transformer(TINY))
    _, metrics = jax.jit(loss_fn)(params, batch)
    np.testing.assert_array_equal(metrics[LOAD].sum(axis=1), 2 * 48)
    assert float(metrics[BALANCE]) > 0


def test_the_balance_loss_evens_it_too() -> None:
    """Through the gradients of the router alone."""
    _, without = train(TINY, skewed(), RouterConfig(), 25, 0.02)
    _, found = train(TINY, skewed(), RouterConfig(balance_coef=0.3), 25, 0.02)
    assert found[-1]["router/balance"] < without[-1]["router/balance"] - 0.1


@pytest.mark.parametrize(
    ("config", "router", "message"),
    [
        (replace(TINY, experts=None), {"balance_coef": 1e-4}, "balance_coef is for a model with"),
        (
            replace(TINY, experts=None),
            {"bias_step": 1e-3},
            "bias_step is for a model whose experts",
        ),
        (
            replace(TINY, experts=Experts(8, 2, 4)),
            {"bias_step": 1e-3},
            "whose experts have a bias",
        ),
    ],
)
def test_what_cannot_be_evened(config: ModelConfig, router: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_router(RouterConfig(**router), config)
    check_router(RouterConfig(), config)
