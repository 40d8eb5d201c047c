"""AdamW, Adafactor and Muon: against optax's own, by their state, on eight devices, resumed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from helpers import sft_config
from test_sharding import EIGHT, EIGHT_WITH_EXPERTS, OPTIMIZER, TINY, V3, OneStep

from r1jax.config import ConfigError
from r1jax.models.config import Experts, Lora, ModelConfig
from r1jax.models.moe import ROUTER_BIAS
from r1jax.models.params import param_axes
from r1jax.models.transformer import Transformer
from r1jax.models.zoo import MODELS
from r1jax.stages import sft
from r1jax.training.optimizers import (
    TABLES,
    OptimizerConfig,
    by_chance,
    make_optimizer,
    make_schedule,
    matrix_axes,
)
from r1jax.weights.checkpoint import Checkpoints

RNG = np.random.default_rng(0)
CONFIG = OptimizerConfig(learning_rate=0.1, clip_norm=1e9)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def updates_of(config: OptimizerConfig, params: Any, grads: list[Any]) -> tuple[list[Any], Any]:
    """The updates that these gradients make one after the other, and the state behind them."""
    return updates_by(make_optimizer(config, make_schedule(config, 10)), params, grads)


def updates_by(optimizer: Any, params: Any, grads: list[Any]) -> tuple[list[Any], Any]:
    state, found = optimizer.init(params), []
    for grad in grads:
        updates, state = optimizer.update(grad, state, params)
        found.append(updates)
    return found, state


def stacked(**more: Any) -> Any:
    """Two layers' parameters, and the embedding."""
    layers = {
        "query": normal(2, 130, 4, 40), "output": normal(2, 4, 40, 130), "gate": normal(2, 130, 8),
        "attention_norm": normal(2, 130), "query_bias": normal(2, 4, 40),
    }  # fmt: skip
    return {"embedding": normal(140, 130), "layers": layers | more}


def matrices(tree: Any, layer: int) -> dict[str, jax.Array]:
    """A layer's matrices, with two axes each."""
    sides = {"query": (130, 160), "output": (160, 130), "gate": (130, 8)}
    return {name: tree["layers"][name][layer].reshape(size) for name, size in sides.items()}


def like(params: Any, count: int) -> list[Any]:
    return [jax.tree.map(lambda x: normal(*x.shape), params) for _ in range(count)]


# -- against optax's -------------------------------------------------------------------------------


def test_the_default_is_optax_adamw_to_the_bit() -> None:
    config, params = replace(CONFIG, weight_decay=0.3, clip_norm=1.0), stacked()
    grads = like(params, 3)
    decayed = {"embedding": True, "layers": dict.fromkeys(params["layers"], True)}
    decayed["layers"] |= {"attention_norm": False, "query_bias": False}
    adamw = optax.adamw(0.1, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.3, mask=decayed)
    reference = optax.chain(optax.clip_by_global_norm(1.0), adamw)
    expected = updates_by(reference, params, grads)[0]
    for one, two in zip(updates_of(config, params, grads)[0], expected, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize(
    ("kind", "reference"),
    [
        ("adafactor", optax.adafactor(0.1, multiply_by_parameter_scale=False)),
        ("muon", optax.contrib.muon(0.1, consistent_rms=0.2)),
    ],
)
def test_a_layers_matrix_is_moved_as_by_itself(kind: str, reference: Any) -> None:
    params = stacked()
    grads = like(params, 3)
    found, _ = updates_of(replace(CONFIG, kind=kind), params, grads)
    for layer in range(2):
        alone = [matrices(grad, layer) for grad in grads]
        expected, _ = updates_by(reference, matrices(params, layer), alone)
        for one, two in zip(found, expected, strict=True):
            jax.tree.map(
                lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-5),
                matrices(one, layer),
                two,
            )


def test_muon_leaves_the_rest_to_adamw() -> None:
    params = stacked(router=normal(2, 130, 8))
    grads = like(params, 2)
    rest = {"embedding": 0, "attention_norm": 0, "query_bias": 0, "router": 0}
    by_muon, _ = updates_of(replace(CONFIG, kind="muon", weight_decay=0.3), params, grads)
    by_adamw, _ = updates_of(replace(CONFIG, weight_decay=0.3), params, grads)
    for one, two in zip(by_muon, by_adamw, strict=True):
        same = {
            name
            for name in (*params["layers"], "embedding")
            if (one | one["layers"])[name].tolist() == (two | two["layers"])[name].tolist()
        }
        assert same == set(rest)


def test_adafactor_keeps_rows_and_columns() -> None:
    params = stacked()
    _, state = updates_of(replace(CONFIG, kind="adafactor"), params, like(params, 1))
    means = jax.tree.map(jnp.shape, state[1][0].means)
    assert means["embedding"] == ((140, 1), (1, 130))
    layers = means["layers"]
    assert layers["query"] == ((2, 130, 1, 1), (2, 1, 4, 40))
    assert layers["output"] == ((2, 4, 40, 1), (2, 1, 1, 130))
    assert layers["gate"] == ((2, 130, 8),)  # 8 columns: there is little to save
    assert layers["attention_norm"] == ((2, 130),)


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "muon"])
def test_decay_and_clipping(kind: str) -> None:
    params = stacked()
    zeros = jax.tree.map(jnp.zeros_like, params)
    (updates,), _ = updates_of(replace(CONFIG, kind=kind, weight_decay=0.5), params, [zeros])
    for name, x in params["layers"].items():
        expected = -0.1 * 0.5 * x * (name not in ("attention_norm", "query_bias"))
        np.testing.assert_allclose(updates["layers"][name], expected, rtol=1e-6, atol=1e-30)
    # Clipped to a millionth, Adam's eps counts: a gradient of 1e-9 among 1e-8.
    small = replace(CONFIG, kind=kind, clip_norm=1e-6, eps=1e-3)
    (clipped,), _ = updates_of(small, params, like(params, 1))
    if kind != "adafactor":  # whose first step is of the gradient's sign alone
        assert float(jnp.abs(clipped["embedding"]).max()) < 1e-4


# -- which matrices --------------------------------------------------------------------------------

TOLD_APART = {"scalar_head", "scalar_bias", ROUTER_BIAS, *TABLES}


@pytest.mark.parametrize(
    "model",
    [
        *(MODELS[name] for name in ("qwen2.5-math-7b", "llama-3.1-8b", "deepseek-v2-lite")),
        replace(MODELS["deepseek-v3"], mtp=1, scalar_head=True),
        replace(MODELS["qwen2.5-14b"], qk_norm=True, lora=Lora(rank=4)),
    ],
)
def test_every_parameter_is_told_apart(model: ModelConfig) -> None:
    shapes, names = param_axes(Transformer(model))

    def check(path: Any, shape: Any, axes: tuple[str, ...]) -> None:
        name = path[-1].key
        found = matrix_axes(name)
        if found is None:
            assert name in TOLD_APART or name.endswith(("norm", "bias")), name
            return
        lead = axes[: shape.ndim - len(found[0]) - len(found[1])]
        assert set(lead) <= {"layers", "expert"}, name
        assert sorted((*found[0], *found[1])) == list(range(len(lead) - shape.ndim, 0))

    jax.tree_util.tree_map_with_path(check, shapes, names)


# -- moments in bfloat16 ---------------------------------------------------------------------------


def test_by_chance_is_right_in_the_mean() -> None:
    x = jnp.full(100_000, 1.001, jnp.float32)  # between 1 and 1.0078125
    found = by_chance(x, jax.random.key(0)).astype(jnp.float32)
    assert set(np.unique(found)) == {1.0, 1.0078125}
    assert float(found.mean()) == pytest.approx(1.001, abs=1e-4)
    exact = jnp.array([0.0, 1.0, 0.5, 3e38, jnp.inf, 2.0**-130], jnp.float32)
    exact = exact.astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(by_chance(exact, jax.random.key(1)).astype(jnp.float32), exact)


def test_squares_in_bfloat16_do_not_stall() -> None:
    """Behind large gradients come small ones: with b2 = 0.999 the mean falls by 0.1 % an update."""
    config = replace(CONFIG, b2=0.999, moments="bfloat16")
    params = {"gate": jnp.zeros((64, 64))}
    grads = [{"gate": jnp.full((64, 64), x)} for x in [1.0] + 500 * [0.0]]
    optimizer = make_optimizer(config, make_schedule(config, 10))

    def one(state: Any, grad: Any) -> tuple[Any, None]:
        return optimizer.update(grad, state, params)[1], None

    stack = jax.tree.map(lambda *x: jnp.stack(x), *grads)
    state = jax.jit(lambda state: jax.lax.scan(one, state, stack)[0])(optimizer.init(params))
    adam = state[1][0]
    assert {x.dtype for x in jax.tree.leaves((adam.mu, adam.nu))} == {jnp.dtype(jnp.bfloat16)}
    right = 1e-3 * 0.999**500
    assert float(adam.nu["gate"].astype(jnp.float32).mean()) == pytest.approx(right, rel=0.01)
    nearest = jnp.bfloat16(1e-3)
    assert jnp.bfloat16(jnp.float32(nearest) * 0.999) == nearest  # which would have stayed


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_moments_in_bfloat16_give_almost_the_same_updates(kind: str) -> None:
    params = stacked()
    grads = like(params, 4)
    exact, _ = updates_of(replace(CONFIG, kind=kind), params, grads)
    half, state = updates_of(replace(CONFIG, kind=kind, moments="bfloat16"), params, grads)
    again, _ = updates_of(replace(CONFIG, kind=kind, moments="bfloat16"), params, grads)
    jax.tree.map(np.testing.assert_array_equal, half, again)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-2), half, exact)
    sizes = [x.nbytes for x in jax.tree.leaves(state) if x.ndim > 1]
    assert sum(sizes) <= 4 * sum(x.size for x in jax.tree.leaves(params))


def test_adafactor_has_no_moments_in_bfloat16() -> None:
    with pytest.raises(ConfigError, match="optimizer.moments 'bfloat16' is for kind 'adamw' or"):
        OptimizerConfig(kind="adafactor", moments="bfloat16")


# -- eight devices, a resumed run ------------------------------------------------------------------

LARGE = replace(TINY, embed_dim=128, num_heads=8, num_kv_heads=8, head_dim=16, ffn_dim=128)
MIXED = replace(LARGE, experts=Experts(num_experts=4, top_k=2, ffn_dim=128, bias=True))
CASES = {
    "adafactor": ({"kind": "adafactor"}, MIXED, EIGHT_WITH_EXPERTS),
    "muon": ({"kind": "muon"}, V3, EIGHT_WITH_EXPERTS),
    "muon and adapters": ({"kind": "muon"}, replace(TINY, lora=Lora(rank=2)), EIGHT),
    "bfloat16": ({"moments": "bfloat16"}, TINY, EIGHT),
}


@pytest.mark.parametrize("case", CASES)
def test_eight_devices_are_one(case: str) -> None:
    changes, config, axes = CASES[case]
    optimizer = replace(OPTIMIZER, learning_rate=1e-3, **changes)
    eight = OneStep("sft", config, axes, 8, optimizer)
    one = OneStep("sft", config, {"fsdp": 1}, 1, optimizer)
    half = changes.get("moments") == "bfloat16"

    def check(x: Any, y: Any) -> None:
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-2 if half else 1e-3)

    jax.tree.map(check, jax.device_get(eight.state), jax.device_get(one.state))
    whole = sum(x.size for x in jax.tree.leaves(one.state.opt_state))
    here = sum(x.addressable_shards[0].data.size for x in jax.tree.leaves(eight.state.opt_state))
    assert here < whole / 1.9  # of an adapter one side is split


@pytest.mark.parametrize(
    "changes", [{"kind": "adafactor"}, {"kind": "muon", "moments": "bfloat16"}], ids=str
)
def test_a_resumed_run_has_the_same_bits(
    changes: dict[str, str], tokenizer_dir: str, tmp_path: Path
) -> None:
    def run(name: str, steps: int) -> Any:
        config = sft_config(tokenizer_dir, total_steps=steps, checkpoint_every=2)
        config.optimizer.update({"schedule": "constant", **changes})
        sft.run(config, str(tmp_path / name))
        return ocp.PyTreeCheckpointer().restore(
            Checkpoints(tmp_path / name).directory / f"{steps}" / "state"
        )

    whole = run("whole", 4)
    run("parts", 2)
    jax.tree.map(np.testing.assert_array_equal, run("parts", 4), whole)
