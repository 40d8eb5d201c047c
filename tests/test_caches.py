"""Each kind of cache against a naive one, by its protocol: written, attended to, resized."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models.caches import LayerCache, RowCache, SharedPrefix, attend_shared, merge
from r1jax.models.config import ModelConfig
from r1jax.models.lane_cache import LaneCache
from r1jax.models.layouts import Compute

ROWS, HEADS, KV_HEADS = 4, 6, 2
KINDS: dict[str, type[RowCache]] = {"plain": LayerCache, "lanes": LaneCache}


class Naive:
    """What stood in each column, in numpy, and attention to it head by head."""

    def __init__(self, columns: int, head_dim: int) -> None:
        self.keys = np.zeros((ROWS, columns, KV_HEADS, head_dim))
        self.values = np.zeros_like(self.keys)

    def attend(self, query: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[B, 1, H, N], [B, 1, T] -> mixed [B, 1, H, N], log denominators [B, 1, H]."""
        mixed, lse = np.zeros(query.shape), np.zeros(query.shape[:3])
        for row in range(len(query)):
            for head in range(HEADS):
                kv_head, seen = head // (HEADS // KV_HEADS), mask[row, 0]
                scores = self.keys[row, seen, kv_head] @ query[row, 0, head]
                weights = np.exp(scores / np.sqrt(query.shape[-1]))
                mixed[row, 0, head] = weights @ self.values[row, seen, kv_head] / weights.sum()
                lse[row, 0, head] = np.log(weights.sum())
        return mixed, lse


def filled(kind: str, columns: int, head_dim: int) -> tuple[RowCache, Naive]:
    """A cache with a token in every column, written in a ring that began at the last but one."""
    rng = np.random.default_rng(0)
    config = ModelConfig(8, 8, 1, HEADS, KV_HEADS, head_dim, 8)
    cache = KINDS[kind].zeros(config, Compute(), ROWS, columns)
    naive = Naive(columns, head_dim)
    assert cache.columns == columns
    write = jax.jit(lambda cache, *new: cache.write(*new))
    for step in range(columns):
        column = (columns - 2 + step) % columns
        new = [rng.normal(size=(ROWS, 1, KV_HEADS, head_dim)) for _ in range(2)]
        naive.keys[:, column], naive.values[:, column] = new[0][:, 0], new[1][:, 0]
        cache = write(cache, jnp.int32(column), *(jnp.asarray(x, jnp.float32) for x in new))
    return cache, naive


def check(cache: RowCache, naive: Naive, written: Any = True) -> None:
    """One query a row, which see one, some and all of the columns that are written."""
    rows, columns = naive.keys.shape[:2]
    query = np.random.default_rng(1).normal(size=(rows, 1, HEADS, naive.keys.shape[-1]))
    mask = np.arange(columns) <= np.linspace(0, columns, rows).astype(int)[:, None, None]
    mask = (mask & written) | (np.arange(columns) == 0)
    found = jax.jit(lambda cache, *a: cache.attend(*a))(
        cache, jnp.float32(query), mask, query.shape[-1] ** -0.5
    )
    for one, expected in zip(found, naive.attend(query, mask), strict=True):
        np.testing.assert_allclose(one, expected, atol=1e-5)


@pytest.mark.parametrize("columns", [32, 5])
@pytest.mark.parametrize("head_dim", [64, 24])
@pytest.mark.parametrize("kind", KINDS)
def test_written_and_attended_to(kind: str, columns: int, head_dim: int) -> None:
    check(*filled(kind, columns, head_dim))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("keep", "columns"), [([2, 0, 3], 6), ([3, 1], 16), ([0, 1, 2, 3], 16)])
def test_resized(kind: str, keep: list[int], columns: int) -> None:
    """Fewer rows; more columns: new ones from column 2 on, before what stood there."""
    cache, naive = filled(kind, 6, 8)
    found = cache.resized(jnp.array([keep]), jnp.int32(2), columns)
    assert found.columns == columns and type(found) is type(cache)
    zeros = np.zeros((len(keep), columns - 6, KV_HEADS, 8))
    for name in ("keys", "values"):
        held = getattr(naive, name)[keep]
        setattr(naive, name, np.concatenate([held[:, :2], zeros, held[:, 2:]], axis=1))
    check(found, naive, (np.arange(columns) < 2) | (np.arange(columns) >= columns - 4))


def test_rows_that_share_prompts() -> None:
    """Two shards of two prompts; a row sees as much as its own prompt has, merged with its own."""
    cache, naive = filled("plain", 6, 8)
    lengths, reads = np.array([6, 2, 3, 1]), np.array([1, 0, 1, 2, 2, 3])  # prompt; row -> prompt
    prefix = SharedPrefix(
        layers=(cache,),
        lengths=jnp.asarray(lengths).reshape(2, 2),
        members=jnp.array([[[1, 3], [0, 2]], [[0, 1], [2, 3]]]),  # rows of the shard; 3 = nobody
        places=jnp.array([[2, 0, 3], [0, 1, 2]]),
    )
    query = np.random.default_rng(1).normal(size=(6, 1, HEADS, 8))
    readers = Naive(6, 8)
    readers.keys, readers.values = naive.keys[reads], naive.values[reads]
    seen = np.arange(6) < lengths[reads][:, None, None]
    whole = readers.attend(query, seen)
    shared = attend_shared(jnp.float32(query), cache, prefix, 8**-0.5)
    for one, expected in zip(shared, whole, strict=True):
        np.testing.assert_allclose(one, expected, atol=1e-5)

    first = np.arange(6) < 1  # of two parts of what a row sees; row 5 sees but one column
    parts = [readers.attend(query[:5], (seen & part)[:5]) for part in (first, ~first)]
    one, two = ([jnp.float32(x) for x in part] for part in parts)
    np.testing.assert_allclose(merge((*one,), (*two,)), whole[0][:5], atol=1e-5)


def test_who_sees_nothing_weighs_nothing() -> None:
    """A row's own columns before its first token, merged with what it sees elsewhere."""
    cache, _ = filled("plain", 6, 8)
    query = jnp.ones((ROWS, 1, HEADS, 8))
    blind, seeing = (
        cache.attend(query, jnp.full((ROWS, 1, 6), see), 8**-0.5) for see in (False, True)
    )
    np.testing.assert_array_equal(merge(blind, seeing), seeing[0])


def test_sums_over_lanes_stay_apart() -> None:
    """XLA must not fuse them with what stands around them: that takes twice as long and longer."""
    config = ModelConfig(8, 8, 1, 3, 1, 64, 8)
    cache = LaneCache.zeros(config, Compute(), 2, 64)
    args: Any = cache, jnp.ones((2, 1, 3, 64)), jnp.ones((2, 1, 64), bool), 1.0
    compiled = jax.jit(LaneCache.attend).lower(*args).compile().as_text()
    assert compiled is not None
    assert compiled.count("to_apply=%_parts_of_sums") == 2  # over keys, over values
