"""The splash kernel's mask: as a dense one says, and walked once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models.kernels import SeenBySplash, seen_share
from r1jax.models.packed_attention import Span
from r1jax.models.splash import (
    _block_sizes,
    _Causal,
    padded_length,
    splash_kernel,
    within_segments,
)


@pytest.mark.parametrize("window", [None, 1, 64, 65, 200, 1000])
def test_blocks_of_the_mask(window: int | None) -> None:
    """Those on a diagonal, those that are seen whole, and not at all."""
    length, block = 512, 64
    distance = np.arange(length)[:, None] - np.arange(length)
    dense = (distance >= 0) & (distance < (window or length))
    mask, kinds = _Causal((length, length), window), set()
    for row in range(0, length, block):
        for column in range(0, length, block):
            place = slice(row, row + block), slice(column, column + block)
            np.testing.assert_array_equal(mask[place], dense[place])
            kinds.add((bool(dense[place].all()), bool(dense[place].any())))
    assert (False, False) in kinds and (False, True) in kinds


@pytest.mark.parametrize(
    ("length", "padded", "block"),
    [(1, 128, 128), (300, 384, 128), (1536, 1536, 512), (33_792, 33_792, 1024)],
)
def test_blocks_are_as_wide_as_divides_a_row(length: int, padded: int, block: int) -> None:
    assert padded_length(length) == padded
    sizes = _block_sizes(padded)
    assert (sizes.block_q, sizes.block_kv) == (block, block)
    assert sizes.block_kv_compute == min(block, 512)


def test_a_mask_is_walked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever programs take it: two here, with gradients."""
    walked = []
    look = _Causal.__getitem__

    def counted(mask: Any, index: Any) -> np.ndarray:
        walked.append(index)
        return look(mask, index)

    monkeypatch.setattr(_Causal, "__getitem__", counted)
    splash_kernel.cache_clear()
    segments = jnp.ones((1, 384), jnp.int32)

    def loss(times: float, *qkv: jax.Array) -> jax.Array:
        return jnp.sum(SeenBySplash(segments, None, Span(0, 77), True).attend(*qkv, times))

    q, k = jnp.ones((1, 384, 2, 64)), jnp.ones((1, 2, 384, 64))
    seen = []
    for times in (1.0, 2.0):
        jax.jit(jax.grad(lambda *a, times=times: loss(times, *a), (0, 1, 2))).lower(q, k, k)
        seen.append(len(walked))
    assert seen[0] == seen[1] > 0


def test_a_long_mask_is_walked_in_the_time_of_its_diagonal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inside = []
    look = _Causal.__mro__[1].__getitem__  # type: ignore[attr-defined]

    def counted(mask: Any, index: Any) -> Any:
        inside.append(index)
        return look(mask, index)

    monkeypatch.setattr(_Causal.__mro__[1], "__getitem__", counted)
    kernel = splash_kernel(33_792, 3, None)
    assert 33 <= len(inside) <= 8 * 33  # blocks on the diagonal; the square has 33 x 33
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(kernel))


def test_blocks_between_segments_are_left_out() -> None:
    """Five blocks of 128: segments of 80, 80, 240 and 80 tokens, and padding, which is one too."""
    segments = jnp.repeat(jnp.array([1, 2, 3, 3, 3, 4, 0, 0]), 640 // 8)
    kernel = within_segments(splash_kernel(640, 2, None), segments, segments)
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 1, 1]]
    for info in (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info):
        np.testing.assert_array_equal(np.asarray(info.block_mask[0]) > 0, expected)


def test_what_is_seen_of_rows() -> None:
    """Segments of four blocks lie in five, of which 15 are looked at, of rows of sixteen."""
    assert seen_share([4096.0] * 3, 16_384) == 15 * 1024**2 / (4096 * 16_384 / 2)
    assert seen_share([16_384.0], 16_384) == 1
