"""The losses against numbers worked out by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.data.packing import completion_group, pack, sequence_group
from r1jax.losses.aggregation import AGGREGATIONS
from r1jax.losses.policy import GrpoLossConfig, clipped_surrogate, grpo_loss, kl_k3
from r1jax.losses.supervised import nll_loss
from r1jax.types import Batch

# -- GRPO by hand: 2 completions x 3 tokens, each behind one token of prompt ---------------------

MASK = np.array([[0, 1, 1, 1], [0, 1, 1, 1]], np.float32)
OLD = np.array([[-9.0, -1.0, -2.0, -0.5], [-9.0, -0.7, -3.0, -1.5]], np.float32)
ADVANTAGES = (2.0, -1.0)
NO_KL = GrpoLossConfig(clip_eps_low=0.2, clip_eps_high=0.2, kl_coef=0.0)

# What the clip does to each token for eps = 0.2, that is the interval [0.8, 1.2]:
#   A = 2:   1.5 -> min(3.0, 1.2 * 2) = 2.4, cut     1.1 -> 2.2     0.5 -> min(1.0, 1.6) = 1.0
#   A = -1:  1.5 -> min(-1.5, -1.2) = -1.5           0.9 -> -0.9    0.5 -> -0.8, cut
RATIOS = np.array([[1.5, 1.1, 0.5], [1.5, 0.9, 0.5]])


def make_batch(**values: Any) -> Batch:
    """Two rows of one completion each; keyword arguments are fields of Batch."""
    ids = np.array([[1] * 4, [2] * 4], np.int32)
    default = dict(
        tokens=np.zeros((2, 4), np.int32),
        positions=np.tile(np.arange(4, dtype=np.int32), (2, 1)),
        segment_ids=np.ones((2, 4), np.int32),
        completion_ids=ids,
        loss_mask=MASK,
        old_logprobs=OLD,
        advantages=np.array([0.0, *ADVANTAGES], np.float32),
        lengths=np.array([1.0, 3.0, 3.0], np.float32),
        num_targets=np.float32(6.0),
    )
    return jax.tree.map(jnp.asarray, Batch(**(default | values)))


def behind_prompt(values: Any, prompt: float = 0.0) -> np.ndarray:
    """[2, 3] -> [2, 4] with a column for the prompt's token."""
    return np.pad(np.asarray(values, np.float32), [(0, 0), (1, 0)], constant_values=prompt)


def logprobs_at(ratios: Any) -> jax.Array:
    """Log-probabilities whose ratio to OLD is `ratios` [2, 3]; the prompt's differ wildly."""
    return jnp.asarray(OLD + behind_prompt(np.log(ratios), prompt=5.0))


def loss_and_grad(
    logprobs_BL: jax.Array, batch: Batch, config: GrpoLossConfig, max_tokens: int = 8
) -> tuple[float, np.ndarray, dict[str, jax.Array]]:
    (loss, metrics), grad = jax.value_and_grad(grpo_loss, has_aux=True)(
        logprobs_BL, batch, config, max_tokens
    )
    return float(loss), np.asarray(grad), metrics


def test_grpo_with_clipping_on_both_sides() -> None:
    loss, grad, metrics = loss_and_grad(logprobs_at(RATIOS), make_batch(), NO_KL)
    # 1/2 [(2.4 + 2.2 + 1.0) / 3 + (-1.5 - 0.9 - 0.8) / 3] = 1/2 [5.6 - 3.2] / 3 = 0.4
    assert loss == pytest.approx(-0.4, abs=1e-6)
    # -1/6 ratio A where the clip does not bind, else 0; nothing for the prompt
    by_hand = [[0.0, 0.0, -2.2 / 6, -1.0 / 6], [0.0, 1.5 / 6, 0.9 / 6, 0.0]]
    np.testing.assert_allclose(grad, by_hand, atol=1e-6)
    assert float(metrics["ratio/clip_fraction"]) == pytest.approx(2 / 6)
    assert float(metrics["ratio/mean"]) == pytest.approx((1.5 + 1.1 + 0.5 + 1.5 + 0.9 + 0.5) / 6)
    assert float(metrics["loss"]) == loss
    # -log(1.5 * 1.1 * 0.5 * 1.5 * 0.9 * 0.5) / 6 = -log(0.556875) / 6
    assert float(metrics["kl/old_k1"]) == pytest.approx(-np.log(0.556875) / 6, abs=1e-6)


def test_the_two_sides_have_their_own_epsilon() -> None:
    high = GrpoLossConfig(clip_eps_low=0.2, clip_eps_high=0.6, kl_coef=0.0)  # [0.8, 1.6]
    loss, grad, _ = loss_and_grad(logprobs_at(RATIOS), make_batch(), high)
    assert loss == pytest.approx(-(3.0 + 2.2 + 1.0 - 1.5 - 0.9 - 0.8) / 6, abs=1e-6)
    assert grad[0, 1] == pytest.approx(-3.0 / 6)
    low = GrpoLossConfig(clip_eps_low=0.6, clip_eps_high=0.2, kl_coef=0.0)  # [0.4, 1.2]
    loss, grad, _ = loss_and_grad(logprobs_at(RATIOS), make_batch(), low)
    assert loss == pytest.approx(-(2.4 + 2.2 + 1.0 - 1.5 - 0.9 - 0.5) / 6, abs=1e-6)
    assert grad[1, 3] == pytest.approx(0.5 / 6)


def test_the_papers_epsilon_of_ten_cuts_only_good_completions() -> None:
    # [-9, 11]: a ratio is positive, so the lower side never acts.
    #   A = 2:   12 -> 11 * 2 = 22, cut    10 -> 20     0.01 -> 0.02
    #   A = -1:  12 -> -12 (min takes it)  100 -> -100  0.01 -> -0.01
    ratios = [[12.0, 10.0, 0.01], [12.0, 100.0, 0.01]]
    config = GrpoLossConfig(clip_eps_low=10.0, clip_eps_high=10.0, kl_coef=0.0)
    loss, grad, metrics = loss_and_grad(logprobs_at(ratios), make_batch(), config)
    assert loss == pytest.approx(-(22 + 20 + 0.02 - 12 - 100 - 0.01) / 6, rel=1e-5)
    by_hand = [[0, 0, -20 / 6, -0.02 / 6], [0, 12 / 6, 100 / 6, 0.01 / 6]]
    np.testing.assert_allclose(grad, by_hand, rtol=1e-4, atol=1e-7)
    assert float(metrics["ratio/clip_fraction"]) == pytest.approx(1 / 6)


def test_clipped_surrogate() -> None:
    ratio = jnp.array([0.5, 1.0, 3.0])
    up = clipped_surrogate(ratio, jnp.array(1.0), 0.2, 1.0)
    np.testing.assert_allclose(up, [0.5, 1.0, 2.0])
    down = clipped_surrogate(ratio, jnp.array(-1.0), 0.2, 1.0)
    np.testing.assert_allclose(down, [-0.8, -1.0, -3.0])
    np.testing.assert_array_equal(clipped_surrogate(ratio, jnp.array(0.0), 0.2, 1.0), 0.0)


def test_cispo_bounds_the_weight_and_keeps_the_token() -> None:
    config = GrpoLossConfig(0.2, 0.2, kl_coef=0.0, surrogate="cispo")
    loss, grad, metrics = loss_and_grad(logprobs_at(RATIOS), make_batch(), config)
    # weights in [0.8, 1.2]: 1.2 1.1 0.8 and 1.2 0.9 0.8; -(2 * 3.1 - 2.9) / 6
    assert loss == pytest.approx(-0.55, abs=1e-6)
    by_hand = [[0.0, -2.4, -2.2, -1.6], [0.0, 1.2, 0.9, 0.8]]  # weight times A, none is 0
    np.testing.assert_allclose(grad, np.array(by_hand) / 6, atol=1e-6)
    assert float(metrics["ratio/clip_fraction"]) == pytest.approx(4 / 6)


def test_gspo_has_one_ratio_a_completion() -> None:
    config = GrpoLossConfig(0.2, 0.2, kl_coef=0.0, ratio="sequence")
    loss, grad, _ = loss_and_grad(logprobs_at(RATIOS), make_batch(), config)
    # (1.5 * 1.1 * 0.5)^(1/3) = 0.825^(1/3) = 0.937888; (1.5 * 0.9 * 0.5)^(1/3) = 0.675^(1/3)
    one, two = 0.825 ** (1 / 3), 0.675 ** (1 / 3)
    assert loss == pytest.approx(-(2 * one - two) / 2, abs=1e-6)
    by_hand = behind_prompt([[-2 * one] * 3, [two] * 3]) / 6
    np.testing.assert_allclose(grad, by_hand, atol=1e-6)
    # [0.9, 1.1]: the second, 0.877 with A = -1, is cut as a whole
    narrow = GrpoLossConfig(0.1, 0.1, kl_coef=0.0, ratio="sequence")
    loss, grad, metrics = loss_and_grad(logprobs_at(RATIOS), make_batch(), narrow)
    assert loss == pytest.approx(-(2 * one - 0.9) / 2, abs=1e-6)
    np.testing.assert_allclose(grad[1], 0.0)
    assert float(metrics["ratio/clip_fraction"]) == pytest.approx(3 / 6)


# pi_ref / pi of each token; k3(2) = 2 - log 2 - 1, k3(1/2) = 1/2 + log 2 - 1, k3(1) = 0
REF_OVER_CURRENT = np.array([[2.0, 1.0, 0.5], [1.0, 2.0, 1.0]])
K3_TWO, K3_HALF = 0.3068528, 0.1931472


def test_grpo_with_the_kl_in_the_loss() -> None:
    logprobs_BL = logprobs_at(RATIOS)
    ref_BL = logprobs_BL + behind_prompt(np.log(REF_OVER_CURRENT), prompt=3.0)
    config = GrpoLossConfig(clip_eps_low=0.2, clip_eps_high=0.2, kl_coef=0.3)
    loss, grad, metrics = loss_and_grad(logprobs_BL, make_batch(ref_logprobs=ref_BL), config)
    kl = (2 * K3_TWO + K3_HALF) / 6
    assert float(metrics["kl/ref"]) == pytest.approx(kl, abs=1e-6)
    assert loss == pytest.approx(-0.4 + 0.3 * kl, abs=1e-6)
    # the policy's part as before, and 0.3 / 6 (1 - pi_ref / pi): not stopped where the clip binds
    policy = np.array([[0.0, -2.2, -1.0], [1.5, 0.9, 0.0]]) / 6
    kl_part = np.array([[-1.0, 0.0, 0.5], [0.0, -1.0, 0.0]]) * 0.3 / 6
    np.testing.assert_allclose(grad, behind_prompt(policy + kl_part), atol=1e-6)


def test_one_on_policy_update_has_deepseekmaths_gradient() -> None:
    # DeepSeekMath eq 21: GC = A + kl_coef (pi_ref / pi - 1), weighted 1/C 1/|o|
    logprobs_BL = jnp.asarray(OLD)
    ref_BL = OLD + behind_prompt(np.log(REF_OVER_CURRENT))
    batch = make_batch(old_logprobs=None, ref_logprobs=ref_BL)
    loss, grad, metrics = loss_and_grad(logprobs_BL, batch, GrpoLossConfig(kl_coef=0.3))
    coefficient = np.array([[2.0], [-1.0]]) + 0.3 * (REF_OVER_CURRENT - 1)
    np.testing.assert_allclose(grad, behind_prompt(-coefficient / 6), atol=1e-6)
    # the ratio is 1: -(3 * 2 - 3 * 1) / 6 + 0.3 kl
    assert loss == pytest.approx(-0.5 + 0.3 * (2 * K3_TWO + K3_HALF) / 6, abs=1e-6)
    assert float(metrics["ratio/mean"]) == pytest.approx(1.0)


def test_without_old_logprobs_the_policy_is_its_own_old_one() -> None:
    logprobs_BL = logprobs_at(RATIOS)
    loss, grad, _ = loss_and_grad(logprobs_BL, make_batch(old_logprobs=None), NO_KL)
    same = loss_and_grad(logprobs_BL, make_batch(old_logprobs=logprobs_BL), NO_KL)
    assert loss == same[0]
    np.testing.assert_array_equal(grad, same[1])


def test_importance_weighs_old_against_the_sampler() -> None:
    # pi_old / pi_sampler of the tokens: 1 4 0.5 | 1 1 3, cut at 2; the ratio is 1
    gap = behind_prompt(np.log([[1.0, 4.0, 0.5], [1.0, 1.0, 3.0]]), prompt=9.0)
    batch = make_batch(old_logprobs=None, sampler_logprobs=OLD - gap)
    config = GrpoLossConfig(kl_coef=0.0, importance_cap=2.0)
    loss, grad, metrics = loss_and_grad(jnp.asarray(OLD), batch, config)
    # A = 2: (1 + 2 + 0.5) 2 = 7; A = -1: -(1 + 1 + 2) = -4
    assert loss == pytest.approx(-(7 - 4) / 6, abs=1e-6)
    by_hand = behind_prompt([[-2.0, -4.0, -1.0], [1.0, 1.0, 2.0]]) / 6
    np.testing.assert_allclose(grad, by_hand, atol=1e-6)
    assert float(metrics["importance/mean"]) == pytest.approx(7.5 / 6, abs=1e-6)
    assert float(metrics["importance/truncated"]) == pytest.approx(2 / 6)


def test_drift_is_between_the_sampler_and_the_old_policy() -> None:
    off = behind_prompt([[0.1, -0.2, 0.0], [0.0, 0.0, 0.6]], prompt=7.0)
    batch = make_batch(sampler_logprobs=OLD + off)
    _, _, metrics = loss_and_grad(logprobs_at(RATIOS), batch, NO_KL)
    assert float(metrics["drift/logprob_mean_abs"]) == pytest.approx(0.9 / 6, abs=1e-6)
    assert float(metrics["drift/logprob_abs_max"]) == pytest.approx(0.6, abs=1e-6)


def test_entropy_is_averaged_over_the_tokens_that_count() -> None:
    entropy_BL = jnp.asarray(behind_prompt([[1.0, 2.0, 3.0], [0.0, 0.0, 6.0]], prompt=50.0))
    _, metrics = grpo_loss(logprobs_at(RATIOS), make_batch(), NO_KL, 8, entropy_BL)
    assert float(metrics["policy/entropy"]) == pytest.approx(2.0)


@pytest.mark.parametrize("log_ratio", [200.0, -200.0])
def test_an_overflowing_ratio_stays_finite(log_ratio: float) -> None:
    logprobs_BL = jnp.asarray(OLD + log_ratio)  # both signs of the advantage
    batch = make_batch(ref_logprobs=OLD)
    loss, grad, metrics = loss_and_grad(logprobs_BL, batch, GrpoLossConfig(kl_coef=0.1))
    assert np.isfinite(loss)
    assert np.isfinite(grad).all()
    assert all(np.isfinite(value) for value in metrics.values())


# -- k3 ------------------------------------------------------------------------------------------


def test_k3_value() -> None:
    ref_over_current = np.array([2.0, 0.5, 1.0])
    k3 = kl_k3(jnp.full(3, -4.0), jnp.asarray(-4.0 + np.log(ref_over_current), jnp.float32))
    np.testing.assert_allclose(k3, [K3_TWO, K3_HALF, 0.0], atol=1e-6)


def test_k3_gradient_is_one_minus_the_ratio() -> None:
    ref = jnp.asarray(np.log([2.0, 0.5, 1.0]), jnp.float32)
    grad = jax.grad(lambda x: kl_k3(x, ref).sum())(jnp.zeros(3))
    np.testing.assert_allclose(grad, [-1.0, 0.5, 0.0], atol=1e-6)


def test_k3_is_never_negative_and_precise_near_zero() -> None:
    log_ratio = jnp.linspace(-6.0, 6.0, 1001)
    assert float(kl_k3(jnp.zeros(1001), log_ratio).min()) >= 0.0
    # x^2 / 2 for small x: exp(x) - 1 - x in float32 would be all rounding
    assert float(kl_k3(jnp.array(0.0), jnp.array(1e-3))) == pytest.approx(0.5e-6, rel=2e-3)


# -- aggregations ----------------------------------------------------------------------------------


def uneven_batch() -> Batch:
    """Completion 1 has three tokens, completion 2 has one; old policy = current policy."""
    mask = np.array([[0, 1, 1, 1], [0, 1, 0, 0]], np.float32)
    ids = np.array([[1, 1, 1, 1], [2, 2, 0, 0]], np.int32)
    return make_batch(
        loss_mask=mask, completion_ids=ids, lengths=np.array([1.0, 3.0, 1.0]), num_targets=4.0
    )


BY_HAND = {
    "sequence_mean": [[0, 1 / 6, 1 / 6, 1 / 6], [0, 1 / 2, 0, 0]],  # 1/2 1/|o|
    "token_mean": [[0, 1 / 4, 1 / 4, 1 / 4], [0, 1 / 4, 0, 0]],  # 1 / (3 + 1)
    "constant": [[0, 1 / 16, 1 / 16, 1 / 16], [0, 1 / 16, 0, 0]],  # 1 / (2 * 8)
}


@pytest.mark.parametrize("name", BY_HAND)
def test_aggregation(name: str) -> None:
    batch = uneven_batch()
    np.testing.assert_allclose(AGGREGATIONS[name](batch, 8), BY_HAND[name], rtol=1e-6)
    config = GrpoLossConfig(kl_coef=0.0, loss_agg=name)
    loss, grad, _ = loss_and_grad(jnp.asarray(OLD), batch, config, max_tokens=8)
    policy = np.array(BY_HAND[name]) * np.array([[2.0], [-1.0]])  # ratio 1
    assert loss == pytest.approx(-policy.sum(), abs=1e-6)
    np.testing.assert_allclose(grad, -policy, atol=1e-6)


def test_every_aggregation_is_tested() -> None:
    assert set(BY_HAND) == set(AGGREGATIONS)


def test_metrics_are_means_over_tokens_whatever_the_aggregation() -> None:
    _, metrics = grpo_loss(
        jnp.asarray(OLD), uneven_batch(), GrpoLossConfig(loss_agg="constant"), 8, jnp.ones((2, 4))
    )
    assert float(metrics["policy/entropy"]) == pytest.approx(1.0)


# -- negative log-likelihood ---------------------------------------------------------------------


def test_nll_is_the_mean_over_targets() -> None:
    batch = uneven_batch()
    (loss, metrics), grad = jax.value_and_grad(nll_loss, has_aux=True)(jnp.asarray(OLD), batch)
    assert float(loss) == pytest.approx((1.0 + 2.0 + 0.5 + 0.7) / 4)
    assert float(metrics["loss"]) == float(loss)
    np.testing.assert_allclose(grad, [[0, -1 / 4, -1 / 4, -1 / 4], [0, -1 / 4, 0, 0]])


# -- which tokens count --------------------------------------------------------------------------

EOS = 3


def rows_only(batch: Batch) -> Batch:
    """The first microbatch, as arrays of JAX."""
    return jax.tree.map(lambda x: jnp.asarray(x[0] if x.ndim == 3 else x), batch)


def test_all_of_a_completion_with_its_eos_gets_gradient_and_nothing_else() -> None:
    prompt = np.array([5, 6, 7], np.int32)
    completions = [np.array([8, 9, EOS], np.int32), np.array([EOS], np.int32)]
    values = [np.zeros(3, np.float32), np.zeros(1, np.float32)]
    advantages = np.array([1.0, -1.0], np.float32)
    batch = rows_only(
        pack([completion_group(prompt, completions, values)], 12, 1, advantages=advantages)
    )
    # Whatever stands at prompt and padding must not leak in.
    garbage_BL = jnp.where(batch.loss_mask == 1, 0.0, -1e4)
    batch = batch.replace(old_logprobs=garbage_BL, ref_logprobs=-garbage_BL)
    _, grad, _ = loss_and_grad(jnp.zeros((1, 12)), batch, NO_KL)
    # row: 5 6 | 7 8 9 EOS | 7 EOS | padding
    by_hand = [0, 0, 0, -1 / 6, -1 / 6, -1 / 6, 0, 1 / 2, 0, 0, 0, 0]
    np.testing.assert_allclose(grad[0], by_hand, rtol=1e-6)
    assert batch.tokens[0, jnp.array([5, 7])].tolist() == [EOS, EOS]


def test_a_loss_mask_chooses_the_targets_of_sft() -> None:
    batch = rows_only(pack([sequence_group([5, 6, 7, EOS], [1, 0, 1, 1])], 6, 1))
    grad = jax.grad(lambda x: nll_loss(x, batch)[0])(jnp.zeros((1, 6)))
    np.testing.assert_allclose(grad[0], [0, 0, -1 / 2, -1 / 2, 0, 0])  # the first has no past
