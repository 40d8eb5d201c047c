"""The mesh, the table of axes, and eight devices against one."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from test_transformer import make_params

from r1jax.config import ConfigError
from r1jax.data.packing import completion_group, pack, sequence_group
from r1jax.losses.aggregation import Metrics
from r1jax.losses.logprobs import token_loss
from r1jax.losses.policy import GrpoLossConfig, grpo_loss
from r1jax.machines.mesh import (
    RULES,
    check_divisible,
    check_split,
    constrain,
    make_mesh,
    parts_of,
    replicated,
    rollout_mesh,
    spec_of,
    to_global,
)
from r1jax.models.config import Experts, LatentAttention, ModelConfig
from r1jax.models.moe import ROUTER_BIAS
from r1jax.models.params import param_axes, param_shardings, random_params
from r1jax.models.transformer import Transformer
from r1jax.stages import sft
from r1jax.training.optimizers import OptimizerConfig, make_optimizer, make_schedule
from r1jax.training.train_state import (
    abstract_state,
    make_step,
    new_state,
    on_mesh,
    state_shardings,
)
from r1jax.training.trained import trained_part
from r1jax.types import Batch

# -- mesh ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        (None, (1, 8, 1, 1, 1)),
        ({"fsdp": -1}, (1, 8, 1, 1, 1)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 2, 1, 1, 2)),
        ({"data": -1, "tensor": 4}, (2, 1, 1, 1, 4)),
        ({"fsdp": 2, "expert": -1}, (1, 2, 1, 4, 1)),
        ({"context": -1, "tensor": 2}, (1, 1, 4, 1, 2)),
    ],
)
def test_make_mesh(axes: dict[str, int] | None, shape: tuple[int, ...]) -> None:
    mesh = make_mesh(axes)
    names = "data", "fsdp", "context", "expert", "tensor"
    assert tuple(mesh.shape.items()) == tuple(zip(names, shape, strict=True))


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"data": 3, "fsdp": -1}, "8 devices are not divisible by 3"),
        ({"data": 0, "fsdp": -1}, "8 devices are not divisible by 0"),
        ({"data": 2, "fsdp": 2}, "needs 4 devices, there are 8"),
        ({"data": -1, "fsdp": -1}, "only one axis may be -1, not data and fsdp"),
        ({"model": 2}, "no axis 'model'; axes are data, fsdp, context, expert, tensor"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(axes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_mesh(axes)


# -- the table -----------------------------------------------------------------------------------


def test_spec_of() -> None:
    rows = ("data", "fsdp", "expert")
    assert spec_of(("batch", "keys", "embed_act")) == PartitionSpec(rows, None, None)
    stream = PartitionSpec(rows, ("context", "tensor"), None)
    assert spec_of(("batch", "stream", "embed_act")) == stream
    embed = ("fsdp", "context", "expert")
    assert spec_of(("vocab", "embed")) == PartitionSpec(("tensor",), embed)
    split = PartitionSpec(("expert",), ("fsdp", "context"), ("tensor",))
    assert spec_of(("expert", "expert_embed", "ffn")) == split
    assert spec_of((None, "heads")) == PartitionSpec(None, ("tensor",))


def test_an_unknown_axis_is_an_error_and_not_replicated() -> None:
    with pytest.raises(ValueError, match="no sharding rule for logical axis 'embedd'"):
        spec_of(("vocab", "embedd"))
    with pytest.raises(ValueError, match="'lenght'"):  # checked without a mesh too
        constrain(jnp.zeros((2, 3)), None, "batch", "lenght")


@pytest.mark.parametrize("names", [("heads", "ffn"), ("batch", "embed")])
def test_two_axes_on_one_mesh_axis_are_an_error(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="two axes of .* map to mesh axis"):
        spec_of(names)


def test_constrain_splits_an_array() -> None:
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    x = jax.jit(lambda: constrain(jnp.zeros((8, 3, 4)), mesh, "batch", "length", "vocab"))()
    assert x.addressable_shards[0].data.shape == (2, 3, 2)


def test_check_divisible() -> None:
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    check_divisible((8, 3), ("batch", "length"), mesh, "microbatch_rows")
    with pytest.raises(
        ConfigError, match=r"microbatch_rows: batch 6 is not divisible by 4 devices .*data x fsdp"
    ):
        check_divisible((6,), ("batch",), mesh, "microbatch_rows")


@pytest.mark.parametrize(
    ("rows", "lengths", "message"),
    [
        (6, [16], "config.microbatch_rows: batch 6 is not divisible by 4 devices .*data x fsdp"),
        (4, [16, 15], r"config.pack_length: length 15 is not divisible by 2 devices .*context\)"),
    ],
)
def test_rows_that_cannot_be_split(rows: int, lengths: list[int], message: str) -> None:
    mesh = make_mesh({"data": 2, "fsdp": 2, "context": 2})
    check_split(4, [16, 18], mesh)
    with pytest.raises(ConfigError, match=message):
        check_split(rows, lengths, mesh)


def test_rollouts_have_context_as_more_rows() -> None:
    """And more experts apart; on the same devices in the same order: parameters stay."""
    mesh = make_mesh({"data": 2, "context": 2, "tensor": 2})
    found = rollout_mesh(mesh)
    assert found is not None
    assert dict(found.shape) == {"data": 2, "fsdp": 2, "context": 1, "expert": 1, "tensor": 2}
    assert list(found.devices.flat) == list(mesh.devices.flat)
    for here, there in zip(
        jax.tree.leaves(param_shardings(Transformer(TINY, mesh))),
        jax.tree.leaves(param_shardings(Transformer(TINY, found))),
        strict=True,
    ):
        assert here.is_equivalent_to(there, 4)
    spread = rollout_mesh(make_mesh({"fsdp": 2, "expert": 2, "tensor": 2}), experts=8)
    assert spread is not None
    assert dict(spread.shape) == {"data": 1, "fsdp": 1, "context": 1, "expert": 4, "tensor": 2}
    whole = make_mesh(EIGHT)
    assert rollout_mesh(whole) is rollout_mesh(whole, experts=3) is whole
    assert rollout_mesh(None) is None


def test_to_global_and_back() -> None:
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    host = {"rows": np.arange(24).reshape(1, 8, 3), "all": np.arange(3.0)}
    spec = jax.NamedSharding(mesh, spec_of((None, "batch", None)))
    arrays = to_global(host, {"rows": spec, "all": replicated(mesh)})
    assert arrays["rows"].addressable_shards[0].data.shape == (1, 2, 3)
    assert arrays["all"].is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(arrays), host)


# -- eight devices == one --------------------------------------------------------------------------

TINY = ModelConfig(
    vocab_size=64, embed_dim=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, ffn_dim=32,
    tie_embeddings=False,
)  # fmt: skip
# A large eps: Adam's first update is the sign of the gradient, which says nothing near zero.
OPTIMIZER = OptimizerConfig(learning_rate=0.1, eps=1e-2, weight_decay=0.1)
ROWS, LENGTH, CHUNK = 4, 16, 8
EIGHT = {"data": 2, "fsdp": 2, "tensor": 2}
# DeepSeek-V3's shape: a dense layer, then experts, which are split over an axis of their own.
V3 = replace(
    TINY, num_layers=3, num_kv_heads=4, head_dim=12,
    latent=LatentAttention(kv_rank=8, nope_dim=8, rope_dim=4, value_dim=6, q_rank=8),
    experts=Experts(
        num_experts=8, top_k=2, ffn_dim=16, num_shared=1, dense_layers=(0,), score="sigmoid",
        bias=True, normalize=True, scale=2.5, groups=4, top_groups=2,
    ),
)  # fmt: skip
EIGHT_WITH_EXPERTS = {"fsdp": 2, "expert": 2, "tensor": 2}


def sft_batch() -> Batch:
    rng = np.random.default_rng(0)
    groups = [sequence_group(rng.integers(1, 64, n), [1.0] * n) for n in rng.integers(3, 14, 9)]
    return pack(groups, LENGTH, ROWS, max_microbatches=2)


def grpo_batch() -> Batch:
    rng = np.random.default_rng(1)
    groups = []
    for _ in range(3):
        completions = [rng.integers(1, 64, n) for n in rng.integers(2, 8, 4)]
        logprobs = [-4 + 0.1 * rng.normal(size=len(tokens)) for tokens in completions]
        groups.append(completion_group(rng.integers(1, 64, 4), completions, logprobs))
    batch = pack(groups, LENGTH, ROWS, 2, advantages=rng.normal(size=12))
    old = batch.sampler_logprobs * batch.loss_mask
    return batch.replace(old_logprobs=old, ref_logprobs=old - 0.1 * batch.loss_mask)


LossFn = Callable[[Any, Batch], tuple[jax.Array, Metrics]]


def sft_loss(model: Transformer) -> LossFn:
    return sft.make_loss(model, CHUNK)


def grpo_loss_of(model: Transformer) -> LossFn:
    def of_tokens(logprobs_BL: Any, entropy_BL: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
        return grpo_loss(logprobs_BL, batch, GrpoLossConfig(kl_coef=0.1), 8, entropy_BL)

    return lambda params, batch: token_loss(model, params, batch, of_tokens, chunk=CHUNK)


STAGES = {"sft": (sft_loss, sft_batch), "grpo": (grpo_loss_of, grpo_batch)}


class OneStep:
    """A stage's step on a mesh: its program, and the state and metrics after one update."""

    def __init__(
        self,
        stage: str,
        config: ModelConfig,
        axes: dict[str, int],
        devices: int,
        how: OptimizerConfig = OPTIMIZER,
    ) -> None:
        mesh = make_mesh(axes, jax.devices()[:devices])
        make_loss, make_batch = STAGES[stage]
        schedule = make_schedule(how, 10)
        self.program_mesh, self.config = mesh, config
        model = Transformer(config, mesh)
        optimizer = make_optimizer(how, schedule)
        self.shardings = state_shardings(model, optimizer)
        self.abstract = abstract_state(model, optimizer, self.shardings)
        step = make_step(make_loss(model), optimizer, schedule, self.shardings)
        self.params = jax.tree.map(np.asarray, make_params(config))
        params = to_global(self.params, self.shardings.params)
        batch = make_batch().replace(microbatches=np.int32(2))  # the second may be empty
        self.batch = on_mesh(batch, mesh)
        self.start = new_state(params, optimizer, self.shardings)
        self.program = step.lower(self.start, self.batch).compile()
        copy = jax.tree.map(jnp.copy, self.start)  # the step eats its state
        self.state, metrics = self.program(copy, self.batch)
        self.metrics = jax.device_get(metrics)

    def collectives(self) -> set[str]:
        names = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
        return set(re.findall(rf"\b({names})(?:-start)?\(", self.program.as_text()))

    def largest_array(self) -> int:
        shapes = re.findall(r"f32\[([\d,]+)\]", self.program.as_text())
        return max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes)


CASES = {
    "sft": ("sft", TINY, EIGHT),
    "grpo": ("grpo", TINY, EIGHT),
    "experts": ("sft", V3, EIGHT_WITH_EXPERTS),
    "context": ("grpo", TINY, {"fsdp": 2, "context": 4}),
    "context and tensor": ("sft", TINY, {"fsdp": 2, "context": 2, "tensor": 2}),
    "context and experts": ("sft", V3, {"context": 2, "expert": 2, "tensor": 2}),
}


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest) -> tuple[OneStep, OneStep]:
    """The same step on eight devices and on one."""
    stage, config, axes = CASES[request.param]
    return OneStep(stage, config, axes, 8), OneStep(stage, config, {"fsdp": 1}, 1)


def assert_close(first: Any, second: Any) -> None:
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-5),
        jax.device_get(first),
        jax.device_get(second),
    )


def test_eight_devices_are_one(pair: tuple[OneStep, OneStep]) -> None:
    eight, one = pair
    assert_close(eight.metrics, one.metrics)
    assert_close(eight.state, one.state)
    moved = jax.tree.map(
        lambda x, y: np.abs(x - y).max(), jax.device_get(eight.state.params), one.params
    )
    still = {path[-1].key for path, x in jax.tree_util.tree_leaves_with_path(moved) if x < 1e-3}
    assert still <= {ROUTER_BIAS}  # every parameter took part
    assert int(eight.state.step) == 1


def test_every_array_is_split_as_the_table_says(pair: tuple[OneStep, OneStep]) -> None:
    eight, _ = pair
    shapes, axes = param_axes(Transformer(eight.config))
    sizes = eight.program_mesh.shape
    split = {name: math.prod(sizes[axis] for axis in axes) for name, axes in RULES.items()}

    def check(path: Any, shape: Any, names: tuple[str, ...], value: jax.Array) -> None:
        local = tuple(n // split.get(name, 1) for n, name in zip(shape.shape, names, strict=True))
        for shard in value.addressable_shards:
            assert shard.data.shape == local, jax.tree_util.keystr(path)

    for state in (eight.start, eight.state):  # before the update and after
        jax.tree_util.tree_map_with_path(check, shapes, axes, state.params)
        adam = state.opt_state[1][0]
        for moments in (adam.mu, adam.nu):  # a router's bias has none
            parts = trained_part(shapes), trained_part(axes)
            jax.tree_util.tree_map_with_path(check, *parts, moments)
    local = 2, ROWS // split["batch"], LENGTH
    for leaf in jax.tree.leaves(eight.batch):
        assert leaf.ndim < 3 or leaf.addressable_shards[0].data.shape == local
    total = sum(leaf.size for leaf in jax.tree.leaves(eight.state.params))
    local = sum(
        leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(eight.state.params)
    )
    assert local < total / 3.8  # all but the norms over fsdp x tensor


def test_rows_are_split_along_their_length(pair: tuple[OneStep, OneStep]) -> None:
    """What a layer hands on, of which the backward pass keeps one a layer."""
    eight, _ = pair
    split = parts_of("stream", eight.program_mesh)
    rows, embed = ROWS // parts_of("batch", eight.program_mesh), eight.config.embed_dim
    text = eight.program.as_text()
    assert f"f32[{rows},{LENGTH // split},{embed}]" in text
    layers = {len(stack.layers) for stack in eight.config.stacks}
    kept = [rf"f32\[{n},{rows},{{}},{embed}\]" for n in layers if n > 1]
    assert all(re.search(one.format(LENGTH // split), text) for one in kept)


def test_the_program_is_split_too(pair: tuple[OneStep, OneStep]) -> None:
    eight, one = pair
    # parameters are gathered over fsdp, gradients summed over the batch, activations over tensor
    assert "all-gather" in eight.collectives()
    assert eight.collectives() & {"all-reduce", "reduce-scatter"}
    assert one.collectives() == set()
    # no device holds all rows' logits or attention, or a whole parameter it does not need
    assert eight.largest_array() <= one.largest_array() / 2


def test_abstract_state_is_that_of_the_state(pair: tuple[OneStep, OneStep]) -> None:
    eight, _ = pair

    def check(shape: jax.ShapeDtypeStruct, value: jax.Array) -> None:
        assert (shape.shape, shape.dtype) == (value.shape, value.dtype)
        assert shape.sharding.is_equivalent_to(value.sharding, value.ndim)

    for state in (eight.start, eight.state):
        jax.tree.map(check, eight.abstract, state)


@pytest.mark.slow
def test_fresh_parameters_do_not_depend_on_the_mesh() -> None:
    one = random_params(Transformer(TINY, make_mesh(None, jax.devices()[:1])), 0)
    eight = random_params(Transformer(TINY, make_mesh(EIGHT)), 0)
    assert eight["embedding"].addressable_shards[0].data.shape == (32, 8)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(eight), jax.device_get(one))


# -- what does not divide ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"vocab_size": 63},
            "parameter embedding: vocab 63 is not divisible by 2 devices .*tensor",
        ),
        ({"embed_dim": 15}, "embed 15 is not divisible by 2 devices .*fsdp"),
        ({"num_kv_heads": 1}, r"parameter layers\.key: kv_heads 1 is not divisible by 2 devices"),
    ],
)
def test_a_parameter_that_does_not_divide_is_refused(change: dict[str, int], message: str) -> None:
    config = replace(TINY, **change)
    with pytest.raises(ConfigError, match=message):
        param_shardings(Transformer(config, make_mesh(EIGHT)))
