"""Group-relative advantages against values worked out by hand."""

import numpy as np
import pytest

from r1jax.losses.advantages import batch_normalised, decoupled_advantages, group_advantages


def test_right_and_wrong_in_equal_parts() -> None:
    # mean 1/2, population std 1/2
    advantages_BG = group_advantages(np.array([[1, 0, 0, 1]]), std_eps=0.0)
    np.testing.assert_allclose(advantages_BG, [[1, -1, -1, 1]])
    assert advantages_BG.dtype == np.float32


def test_std_is_the_populations() -> None:
    # mean 1/4, variance (9/16 + 3 * 1/16) / 4 = 3/16, 0.75 / sqrt(3/16) = sqrt(3), the others a
    # third of it below zero (the sample's std, 1/2, would give 1.5 and -0.5)
    advantages_BG = group_advantages(np.array([[1, 0, 0, 0]]), std_eps=0.0)
    third = 3**0.5 / 3
    np.testing.assert_allclose(advantages_BG, [[3**0.5, -third, -third, -third]], rtol=1e-6)


def test_std_eps_is_added_to_the_std() -> None:
    # 0.5 / (0.5 + 0.5)
    advantages_BG = group_advantages(np.array([[1, 0]]), std_eps=0.5)
    np.testing.assert_allclose(advantages_BG, [[0.5, -0.5]])


def test_without_scale_only_the_mean_is_taken_off() -> None:
    advantages_BG = group_advantages(np.array([[2.0, 0.0, 1.0, 1.0]]), scale=False)
    np.testing.assert_allclose(advantages_BG, [[1, -1, 0, 0]])


def test_groups_do_not_see_each_other() -> None:
    both = group_advantages(np.array([[1, 0, 0, 1], [30, 10, 10, 10]]))
    alone = [group_advantages(np.array([row])) for row in ([1, 0, 0, 1], [30, 10, 10, 10])]
    np.testing.assert_array_equal(both, np.concatenate(alone))
    np.testing.assert_allclose(both.sum(axis=1), 0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3])  # 0.1 and 1/3: the mean is rounded
@pytest.mark.parametrize("std_eps", [1e-6, 0.0])
def test_a_group_without_variance_gives_exact_zeros(reward: float, std_eps: float) -> None:
    rewards_BG = np.array([[reward] * 3, [0.0, 1.0, 0.0]])
    advantages_BG = group_advantages(rewards_BG, std_eps)
    assert advantages_BG[0].tolist() == [0.0, 0.0, 0.0]
    assert (advantages_BG[1] != 0).all()


def test_each_reward_is_normalised_before_the_sum() -> None:
    # Summed first, the second and third completions are worth the same (1); apart, the rare second
    # reward weighs more: [1, 1, 0, 0] -> +-1, [1, 0, 1, 0] the same, but [0, 0, 0, 1] -> sqrt(3).
    parts_PBG = np.array([[[1.0, 1, 0, 0]], [[0.0, 0, 0, 1]]])
    third = 3**0.5 / 3
    found_BG = decoupled_advantages(parts_PBG, [1.0, 2.0], std_eps=0.0)
    expected = [[1 - 2 * third, 1 - 2 * third, -1 - 2 * third, -1 + 2 * 3**0.5]]
    np.testing.assert_allclose(found_BG, expected, rtol=1e-6)
    assert found_BG.dtype == np.float32
    one_BG = decoupled_advantages(parts_PBG[:1], [1.0])
    np.testing.assert_array_equal(one_BG, group_advantages(parts_PBG[0]))


def test_over_the_batch() -> None:
    # std of [3, -3, 1, -1] is sqrt(5)
    found_BG = batch_normalised(np.array([[3.0, -3.0], [1.0, -1.0]]), std_eps=0.0)
    np.testing.assert_allclose(found_BG, np.array([[3, -3], [1, -1]]) / 5**0.5, rtol=1e-6)
    assert batch_normalised(np.zeros((2, 2))).tolist() == [[0, 0], [0, 0]]
