"""Attention of packed rows in blocks of queries. The kernels for TPUs and GPUs: test_kernels.py."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models import packed_attention
from r1jax.models.packed_attention import Span, packed_mask, see


def softmax_attention(q_BLHN: Any, k_BKLN: Any, v_BKLN: Any, mask_BLL: Any) -> Any:
    """Attention as its formula has it, all scores at once."""
    group = q_BLHN.shape[2] // k_BKLN.shape[1]
    k_BHLN, v_BHLN = (jnp.repeat(x, group, axis=1).astype(jnp.float32) for x in (k_BKLN, v_BKLN))
    scores = jnp.einsum("blhn,bhtn->bhlt", q_BLHN.astype(jnp.float32), k_BHLN)
    scores = jnp.where(mask_BLL[:, None], scores / q_BLHN.shape[-1] ** 0.5, -1e30)
    return jnp.einsum("bhlt,bhtn->blhn", jax.nn.softmax(scores, axis=-1), v_BHLN)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("span", [None, Span(5, 6), Span(0, 6), Span(8, 3)])
@pytest.mark.parametrize(("length", "limits"), [(20, (64, 16)), (23, (4, 16)), (21, (4, 3))])
def test_blocks_of_queries_are_one_attention(
    monkeypatch: pytest.MonkeyPatch,
    length: int,
    limits: tuple[int, int],
    span: Span | None,
    dtype: Any,
) -> None:
    """Values and gradients, with two queries to a kv head, values narrower than keys, rows of
    other segments; the last token of a row is padding."""
    monkeypatch.setattr(packed_attention, "MIN_BLOCK", limits[0])
    monkeypatch.setattr(packed_attention, "MAX_BLOCKS", limits[1])
    rng = np.random.default_rng(0)
    q_BLHN = jnp.asarray(rng.normal(size=(2, length, 4, 8)), dtype)
    k_BKLN, v_BKLN = (jnp.asarray(rng.normal(size=(2, 2, length, n)), dtype) for n in (8, 6))
    mixed_grad = jnp.asarray(rng.normal(size=(2, length, 4, 6)), dtype).at[:, -1].set(0)
    rows, columns = np.mgrid[:length, :length]
    mask = np.broadcast_to(columns <= rows, (2, length, length)).copy()
    for row, begins in enumerate([(0, 9), (0, 3, 16)]):
        begin = np.array([max(b for b in begins if b <= i) for i in range(length)])[:, None]
        mask[row] &= columns >= begin
        if span:
            mask[row] &= (columns < begin + span.prefix) | (columns > rows - span.window)
    mask[:, -1] = False

    def outcome(attend: Any) -> Any:
        def loss(*qkv: jax.Array) -> Any:
            mixed = attend(*qkv, jnp.asarray(mask)).astype(jnp.float32)
            return jnp.sum(mixed * mixed_grad), mixed[:, :-1]

        grad = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
        grads, mixed = jax.jit(grad)(q_BLHN, k_BKLN, v_BKLN)
        return [x.astype(jnp.float32) for x in (mixed, *grads)]

    atol = 1e-5 if dtype == jnp.float32 else 0.05
    for found, expected in zip(
        outcome(lambda *a: see(a[3], span).attend(*a[:3], 8**-0.5)),
        outcome(softmax_attention),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, atol=atol)
        assert float(jnp.abs(expected).max()) > 0.3


def test_a_block_takes_the_nearest_window_that_shows_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """All in every row; padding, at the end of the first, looks nowhere."""
    monkeypatch.setattr(packed_attention, "MIN_BLOCK", 4)
    segments, pieces = np.zeros((2, 40), np.int32), np.zeros((2, 40), np.int32)
    for row, lengths in enumerate([(16, 7), (9, 13, 8, 6)]):
        segments[row, : 2 + sum(lengths)] = 1
        ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)
        pieces[row, 2 : 2 + len(ids)] = ids
    mask = packed_mask(jnp.asarray(segments), jnp.asarray(pieces))
    blocks = packed_attention._blocks(40, Span(2, 16), one_device=True)
    assert [block.times for block in blocks] == [1] * 5 + [5]

    widths = [[b.start + 1 - b.window for b in block.choices] for block in blocks[3:]]
    assert widths == [[13], [5, 9, 17], [5, 9, 16]]
    seen = see(mask, Span(2, 16), one_device=True)
    assert [list(chosen) for chosen in seen.windows] == [[0]] * 4 + [[2], [2, 1, 0, 0, 0]]
    rng = np.random.default_rng(0)
    qkv = [jnp.asarray(rng.normal(size=(2, 40, heads, 8)), jnp.float32) for heads in (4, 2, 2)]
    qkv[1:] = [x.swapaxes(1, 2) for x in qkv[1:]]

    def outcome(attend: Any) -> Any:
        def loss(*qkv: jax.Array) -> Any:
            mixed = attend(*qkv)
            return jnp.sum(mixed**2), mixed

        grads, mixed = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*qkv)
        return [mixed, *grads]

    found = outcome(lambda *qkv: seen.attend(*qkv, 8**-0.5))
    expecteds = outcome(lambda *qkv: softmax_attention(*qkv, mask))
    for one, expected in zip(found, expecteds, strict=True):
        np.testing.assert_allclose(one, expected, atol=1e-5)
