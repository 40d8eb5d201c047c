"""Log-probabilities and the loss on them, a chunk at a time, against the dense formulas."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_transformer import make_params

from r1jax.losses.logprobs import chunk_columns, teacher_kl, token_logprobs, token_loss
from r1jax.losses.policy import GrpoLossConfig, grpo_loss
from r1jax.losses.supervised import nll_loss
from r1jax.machines.mesh import MESH_AXES
from r1jax.models.config import ModelConfig
from r1jax.models.transformer import Output, Transformer, forward, head_weights
from r1jax.types import Batch


class Bigram:
    """Stands for a Transformer where what comes before the head does not matter."""

    mesh = replay = None

    def apply(self, variables: Any, tokens_BL: jax.Array, *_: Any, **__: Any) -> Output:
        return Output(hidden=jnp.take(variables["params"]["embedding"], tokens_BL, axis=0))


def random_batch(rows: int, length: int, vocab_size: int) -> Batch:
    """One segment a row, of its tokens some, never the first, targets."""
    tokens = jax.random.randint(jax.random.key(1), (rows, length), 0, vocab_size)
    positions = jnp.tile(jnp.arange(length), (rows, 1))
    chosen = jax.random.bernoulli(jax.random.key(2), 0.6, tokens.shape)
    mask = (chosen & (positions > 0)).astype(jnp.float32)
    return Batch(
        tokens=tokens,
        positions=positions,
        segment_ids=jnp.ones_like(tokens),
        completion_ids=jnp.ones_like(tokens),
        loss_mask=mask,
        lengths=jnp.array([1.0, mask.sum()]),
    )


def dense_logprobs(
    model: Any, params: Any, batch: Batch, temperature: Any
) -> tuple[jax.Array, jax.Array]:
    """The formula on all logits at once, for targets."""
    hidden_BLD = forward(model, params, batch.tokens, batch.positions, batch.segment_ids).hidden
    logprobs_BLV = jax.nn.log_softmax(hidden_BLD @ head_weights(params) / temperature)
    chosen = jnp.take_along_axis(logprobs_BLV[:, :-1], batch.tokens[:, 1:, None], axis=-1)
    entropy = -jnp.sum(jnp.exp(logprobs_BLV) * logprobs_BLV, axis=-1)[:, :-1]
    pad = [(0, 0), (1, 0)]
    return tuple(jnp.pad(x, pad) * batch.loss_mask for x in (chosen[..., 0], entropy))


@pytest.mark.parametrize("chunk", [1, 5, 128])
@pytest.mark.parametrize(
    "config",
    [
        GrpoLossConfig(kl_coef=0.0),
        GrpoLossConfig(kl_coef=0.1, loss_agg="token_mean", importance_cap=1.01),
        GrpoLossConfig(kl_coef=0.1, surrogate="cispo", clip_eps_low=0.01, clip_eps_high=0.01),
    ],
)
def test_token_loss_is_the_loss_of_token_logprobs(config: GrpoLossConfig, chunk: int) -> None:
    """Value, every metric and the gradients of both matrices, also of a multiple of the loss."""
    rng = np.random.default_rng(0)
    params = {
        "embedding": jnp.asarray(rng.normal(size=(37, 8)), jnp.float32),
        "head": jnp.asarray(rng.normal(size=(8, 37)), jnp.float32),
    }
    batch = random_batch(2, 13, 37)
    ids = jnp.repeat(jnp.arange(1, 3), 13).reshape(2, 13)
    logprobs_BL, _ = token_logprobs(Bigram(), params, batch, 0.7)
    near = [logprobs_BL + jnp.asarray(rng.normal(size=(2, 13)) / 50, jnp.float32) for _ in "osr"]
    batch = batch.replace(
        completion_ids=ids,
        lengths=jnp.append(1.0, batch.loss_mask.sum(axis=1)),
        advantages=jnp.array([0.0, 1.5, -0.5]),
        num_targets=batch.loss_mask.sum(),
        old_logprobs=near[0],
        sampler_logprobs=near[1],
        ref_logprobs=near[2] if config.kl_coef else None,
    )

    def of_tokens(logprobs_BL: Any, entropy_BL: Any, batch: Batch) -> Any:
        return grpo_loss(logprobs_BL, batch, config, 16, entropy_BL)

    def expected(params: Any) -> Any:
        loss, metrics = of_tokens(*token_logprobs(Bigram(), params, batch, 0.7), batch)
        return 3 * loss, metrics

    def found(params: Any) -> Any:
        loss, metrics = token_loss(Bigram(), params, batch, of_tokens, 0.7, chunk)
        return 3 * loss, metrics

    one, two = (jax.jit(jax.value_and_grad(f, has_aux=True))(params) for f in (found, expected))
    assert len(two[0][1]) >= 7
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), one, two)
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(two[1])) > 0.01


def test_token_logprobs_is_the_dense_log_softmax() -> None:
    batch = random_batch(2, 13, 37)
    rng = np.random.default_rng(0)
    params = {
        "embedding": jnp.asarray(rng.normal(size=(37, 8)), jnp.float32),
        "head": jnp.asarray(rng.normal(size=(8, 37)), jnp.float32),
    }
    weights_BL = jax.random.normal(jax.random.key(2), (2, 13))

    @jax.jit
    def dense(params: Any, temperature: Any) -> Any:
        def loss(params: Any) -> Any:
            logprobs_BL, entropy_BL = dense_logprobs(Bigram(), params, batch, temperature)
            return jnp.sum(weights_BL * logprobs_BL), (logprobs_BL, entropy_BL)

        return jax.grad(loss, has_aux=True)(params)

    def chunked(chunk: int) -> Any:
        def loss(params: Any, temperature: Any) -> Any:
            logprobs_BL, entropy_BL = token_logprobs(Bigram(), params, batch, temperature, chunk)
            # the entropy is a metric: it must not show in the gradient
            total = jnp.sum(weights_BL * logprobs_BL) + jnp.sum(entropy_BL)
            return total, (logprobs_BL, entropy_BL)

        return jax.jit(jax.grad(loss, has_aux=True))

    for chunk in (1, 5, 128):
        program = chunked(chunk)
        for temperature in (1.0, 0.6):
            expected = dense(params, temperature)
            result = program(params, temperature)
            jax.tree.map(
                lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5, rtol=1e-4),
                result,
                expected,
            )
    assert float(jnp.std(result[1][0])) > 0.5  # far from uniform, or the temperature hides


def test_the_head_is_applied_to_columns_before_targets_alone() -> None:
    """Other hidden states are not numbers; one would spoil what its chunk gives to the head."""
    rng = np.random.default_rng(0)
    params = {
        "embedding": jnp.asarray(rng.normal(size=(37, 8)), jnp.float32).at[36].set(jnp.nan),
        "head": jnp.asarray(rng.normal(size=(8, 37)), jnp.float32),
    }
    batch = random_batch(2, 9, 36)
    mask = jnp.array([[0, 1, 1, 0, 0, 1, 0, 0, 1], [0, 0, 0, 1, 1, 0, 1, 1, 0]], jnp.float32)
    before = jnp.roll(mask, -1, axis=1) > 0
    batch = batch.replace(tokens=jnp.where(before, batch.tokens, 36), loss_mask=mask)

    def of_tokens(logprobs_BL: Any, entropy_BL: Any, batch: Batch) -> Any:
        return nll_loss(logprobs_BL, batch)

    for chunk in (1, 2, 4):  # a row has four targets
        logprobs, entropy = token_logprobs(Bigram(), params, batch, chunk=chunk)
        kl = teacher_kl(Bigram(), params, Bigram(), params, batch, chunk=chunk)
        grads = jax.grad(lambda p, c=chunk: token_loss(Bigram(), p, batch, of_tokens, chunk=c)[0])(
            params
        )
        for x in (logprobs, entropy, kl, *grads.values()):
            assert jnp.isfinite(x).all()
        assert (jnp.abs(logprobs) > 0).sum() == 8


def test_teacher_kl_is_the_dense_kl() -> None:
    """The value, its gradient (student less teacher probabilities), nothing for the teacher."""
    batch = random_batch(2, 13, 37)
    rng = np.random.default_rng(0)
    student, teacher = (
        {
            "embedding": jnp.asarray(rng.normal(size=(37, 8)), jnp.float32),
            "head": jnp.asarray(rng.normal(size=(8, 37)), jnp.float32),
        }
        for _ in range(2)
    )

    def dense(params: Any, teacher_params: Any, temperature: float) -> jax.Array:
        def logprobs(p: Any) -> jax.Array:
            logits = p["embedding"][batch.tokens] @ p["head"]
            return jax.nn.log_softmax(logits / temperature)[:, :-1]

        wanted = jax.lax.stop_gradient(logprobs(teacher_params))
        kl = jnp.sum(jnp.exp(wanted) * (wanted - logprobs(params)), axis=-1)
        return jnp.pad(kl, [(0, 0), (1, 0)]) * batch.loss_mask

    weights = jax.random.normal(jax.random.key(2), (2, 13))
    for chunk, temperature in ((1, 1.0), (5, 0.6), (128, 2.0)):

        def ours(p: Any, q: Any, chunk: int = chunk, temperature: float = temperature) -> jax.Array:
            return teacher_kl(Bigram(), p, Bigram(), q, batch, temperature, chunk)

        expected = dense(student, teacher, temperature)
        np.testing.assert_allclose(ours(student, teacher), expected, atol=1e-5, rtol=1e-4)
        found = jax.grad(lambda p, f=ours: jnp.sum(weights * f(p, teacher)))(student)
        wanted = jax.grad(lambda p, t=temperature: jnp.sum(weights * dense(p, teacher, t)))(student)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5, rtol=1e-4), found, wanted
        )
    none = jax.grad(lambda q: jnp.sum(ours(student, q)))(teacher)
    assert not any(np.any(x) for x in jax.tree.leaves(none))
    np.testing.assert_allclose(ours(student, student), 0.0, atol=1e-6)
    assert float(expected[batch.loss_mask > 0].min()) > 0.01


def avals_of(jaxpr: Any) -> Iterator[Any]:
    """Every intermediate of a program, those of its loops and branches too."""
    for equation in jaxpr.eqns:
        yield from (var.aval for var in equation.outvars)
        inner = jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr)
        for value in inner:
            if is_jaxpr(value):
                yield from avals_of(value)


def is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns")


def test_no_array_over_rows_length_and_vocabulary_exists() -> None:
    # A vocabulary that makes this larger than every other array: attention has 2 * 2 * 16 * 16
    # entries a layer.
    config = ModelConfig(222, 16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, ffn_dim=32)
    model, params = Transformer(config), make_params(config)
    batch = random_batch(2, 16, 222)
    everything = 2 * 16 * 222

    def chunked(params: Any) -> jax.Array:
        return jnp.sum(token_logprobs(model, params, batch, chunk=4)[0])

    def dense(params: Any) -> jax.Array:
        return jnp.sum(dense_logprobs(model, params, batch, 1.0)[0])

    def largest(function: Any) -> int:
        jaxpr = jax.make_jaxpr(jax.value_and_grad(function))(params)
        return max(getattr(aval, "size", 0) for aval in avals_of(jaxpr))

    assert largest(dense) >= everything  # the walk would see it
    assert largest(chunked) < everything


@pytest.mark.parametrize(
    ("platform", "axes", "rows", "length", "columns"),
    [
        ("cpu", {"data": 4, "tensor": 2}, 8, 4096, 256),  # 128 on each device
        ("cpu", {"data": 8}, 8, 100, 100),  # there are no more
        ("tpu", {"data": 8}, 8, 4096, 1024),  # a row on each device
        ("tpu", {"data": 2, "tensor": 4}, 8, 4096, 1024),  # four rows, 256 columns of each
        ("tpu", {"fsdp": 8}, 512, 4096, 128),
    ],
)
def test_columns_of_a_chunk(
    platform: str, axes: dict[str, int], rows: int, length: int, columns: int
) -> None:
    class Device:
        pass

    class OnDevices:
        shape = dict.fromkeys(MESH_AXES, 1) | axes
        devices = np.array([Device()])

    Device.platform = platform  # type: ignore[attr-defined]
    mesh: Any = OnDevices()
    assert chunk_columns(0, rows, length, mesh) == columns
    assert chunk_columns(7, rows, length, mesh) == 7 * OnDevices.shape["tensor"]
