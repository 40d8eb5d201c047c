"""Multi-token prediction: its loss by hand, and that it learns."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_moe import TINY, train
from test_transformer import make_params

from r1jax.data.packing import completion_group, pack, sequence_group
from r1jax.losses.logprobs import AheadLoss, token_loss
from r1jax.losses.supervised import nll_loss
from r1jax.models.moe import ROUTER_BIAS
from r1jax.models.transformer import Output, Transformer, forward
from r1jax.training.balancing import RouterConfig
from r1jax.training.train_state import microbatch
from r1jax.types import Batch

V3 = replace(TINY, mtp=True)


class Bigrams:
    """What it says of the next token, and of the one after it, depends on the token alone."""

    mesh = replay = None

    def apply(
        self, variables: Any, tokens_BL: Any, *_: Any, ahead: bool = False, **__: Any
    ) -> Output:
        params = variables["params"]
        further = params["further"][tokens_BL] if ahead else None
        return Output(hidden=params["embedding"][tokens_BL], ahead=further)


def nll(logprobs_BL: jax.Array, _: jax.Array, batch: Batch) -> Any:
    return nll_loss(logprobs_BL, batch)


def test_loss_by_hand() -> None:
    """V3 eq 24 and 25: sequences of four and three tokens in one row, of which five are targets."""
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=(5, 5)).astype(np.float32) for name in ("embedding", "further")}
    groups = [sequence_group([1, 2, 3, 4], [0, 1, 1, 1]), sequence_group([2, 0, 3], [0, 1, 1])]
    packed = pack(groups, 8, 1)
    batch = jax.tree.map(lambda x: x[0] if np.ndim(x) == 3 else x, packed)

    def logprob(table: str, at: int, of: int) -> float:
        return float(jax.nn.log_softmax(params[table][at] @ params["embedding"].T)[of])

    following = [(1, 2), (2, 3), (3, 4), (2, 0), (0, 3)]
    second = [(1, 3), (2, 4), (2, 3)]  # the token after the next
    one = -sum(logprob("embedding", *pair) for pair in following) / 5
    two = -sum(logprob("further", *pair) for pair in second) / 5
    model: Any = Bigrams()
    given = jax.tree.map(jnp.asarray, params)
    found, metrics = token_loss(model, given, batch, nll, chunk=3, ahead=AheadLoss(0.3, nll))
    assert float(metrics["mtp_loss"]) == pytest.approx(two, rel=1e-5)
    assert float(found) == pytest.approx(one + 0.3 * two, rel=1e-5)
    without, metrics = token_loss(model, given, batch, nll, chunk=3)
    assert float(without) == pytest.approx(one, rel=1e-5) and "mtp_loss" not in metrics


def test_a_sequence_does_not_see_its_neighbours() -> None:
    """What is said ahead in a packed row is what is said of the sequence alone."""
    model, params = Transformer(V3), make_params(V3)
    tokens = np.random.default_rng(0).integers(0, 31, (1, 12)).astype(np.int32)
    positions = np.array([[*range(7), *range(5)]], np.int32)
    segments = np.array([[1] * 7 + [2] * 5], np.int32)
    packed = forward(model, params, tokens, positions, segments, ahead=True)
    alone = forward(model, params, tokens[:, :7], positions[:, :7], segments[:, :7], ahead=True)
    assert packed.ahead is not None and alone.ahead is not None
    np.testing.assert_allclose(packed.ahead[:, :6], alone.ahead[:, :6], atol=1e-5)
    assert packed.routing is not None
    assert packed.routing.load_E.shape == (3, 8)  # of two layers, and of multi-token prediction


def test_prompts_may_be_shared() -> None:
    """The loss on completions behind one copy of their prompt is that of rows with a copy each."""
    model, params, rng = Transformer(V3), make_params(V3), np.random.default_rng(1)
    prompt = rng.integers(1, 31, 5)
    completions = [rng.integers(1, 31, length) for length in (4, 1, 6)]
    zeros = [np.zeros(len(tokens), np.float32) for tokens in completions]
    group = completion_group(prompt, completions, zeros)
    found = []
    for share in (True, False):
        packed = pack([group], 32, 2, share_prompts=share)
        batch = microbatch(jax.tree.map(jnp.asarray, packed), 0)
        _, metrics = token_loss(model, params, batch, nll, chunk=8, ahead=AheadLoss(1.0, nll))
        found.append(float(metrics["mtp_loss"]))
    assert found[0] == pytest.approx(found[1], rel=1e-5) and found[0] > 0


def test_it_may_learn_alone() -> None:
    """Its gradient is then the same for itself, and none for the rest of the model."""
    model, params = Transformer(V3), make_params(V3)
    tokens = np.random.default_rng(2).integers(1, 31, 9).tolist()
    packed = pack([sequence_group(tokens, [0, *[1] * 8])], 9, 1)
    batch = microbatch(jax.tree.map(jnp.asarray, packed), 0)

    def gradient(ahead: AheadLoss | None) -> Any:
        return jax.grad(lambda p: token_loss(model, p, batch, nll, chunk=4, ahead=ahead)[0])(params)

    without, alone, together = (
        gradient(ahead) for ahead in (None, AheadLoss(0.5, nll, alone=True), AheadLoss(0.5, nll))
    )
    own = alone.pop("mtp")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), own, together["mtp"])
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(own)) > 1e-3
    without.pop("mtp")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), alone, without)
    gap = jnp.abs(together["embedding"] - without["embedding"]).max()
    assert float(gap) > 1e-4


def test_it_learns_and_its_router_is_evened() -> None:
    before = make_params(V3)
    after, found = train(V3, before, RouterConfig(bias_step=0.01), 40, 0.01, mtp_coef=0.3)
    assert found[-1]["mtp_loss"] < 0.8 * found[0]["mtp_loss"]
    assert found[-1]["loss"] > found[-1]["mtp_loss"] * 0.3
    assert np.abs(after["mtp"][ROUTER_BIAS] - before["mtp"][ROUTER_BIAS]).max() > 0.05
