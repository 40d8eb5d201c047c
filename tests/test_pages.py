"""Keys and values in pages: completions as in columns and in the naive loop, and the kernels."""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import CONFIG, SAMPLINGS, STOP, V3, assert_equal, generate, prompts_of

from r1jax.config import ConfigError
from r1jax.machines.mesh import make_mesh
from r1jax.models.config import ModelConfig
from r1jax.models.pages import KeyValuePages, LatentPages, Tables
from r1jax.models.transformer import Transformer
from r1jax.rollout.config import EngineConfig
from r1jax.rollout.engine import Engine
from r1jax.rollout.page_schedule import PageSchedule, PageSizes
from r1jax.rollout.sampling import SamplingConfig
from r1jax.rollout.store import Request

PAGED = EngineConfig(slots=4, chunk=3, prefill_batch=2, prefill_chunk=8, cache="pages", page=4)


@functools.cache
def paged(mesh: str = "", config: ModelConfig = CONFIG, **sizes: Any) -> Engine:
    """Drafts where the model has any."""
    axes = dict(item.split("=") for item in mesh.split())
    devices = make_mesh({axis: int(size) for axis, size in axes.items()}) if mesh else None
    how = replace(PAGED, speculative=config.mtp, **sizes)
    return Engine(Transformer(config, devices), STOP, how)


@settings(max_examples=6, deadline=None, derandomize=True, database=None)
@given(
    page=st.sampled_from([1, 4]),
    sampling=st.sampled_from(sorted(SAMPLINGS)),
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    group_size=st.integers(1, 3),
)
def test_equals_naive_loop(page: int, sampling: str, lengths: list[int], group_size: int) -> None:
    prompts = prompts_of(lengths)
    found = generate(paged(page=page), prompts, SAMPLINGS[sampling], group_size)
    for (p, _), completion in found.items():
        assert_equal(completion, prompts[p], SAMPLINGS[sampling])


@pytest.mark.parametrize(
    ("mesh", "config"),
    [
        ("", replace(V3, mtp=True)),
        ("", replace(CONFIG, mtp=True)),
        ("data=4 tensor=2", CONFIG),
        ("data=2 expert=2 tensor=2", replace(V3, mtp=True)),
    ],
)
def test_families_drafts_devices(mesh: str, config: ModelConfig) -> None:
    prompts = prompts_of([5, 30, 2, 1, 9])
    found = generate(paged(mesh, config, slots=8), prompts, SAMPLINGS["plain"], group_size=3)
    for (p, _), completion in found.items():
        assert_equal(completion, prompts[p], SAMPLINGS["plain"], config)


# -- where pages are scarce ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mesh", "config"), [("", CONFIG), ("data=2 tensor=2", replace(V3, mtp=True))]
)
def test_rows_wait_for_pages(
    mesh: str, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows go to the host and come back, into other pages, and go on as if nothing had been."""
    monkeypatch.setattr("r1jax.rollout.pages.page_bytes", lambda *_: 8_000)  # 131 of them
    devices = None
    if mesh:
        axes = {axis: int(size) for axis, size in (item.split("=") for item in mesh.split())}
        devices = make_mesh(axes, devices=jax.devices()[:4])
    sizes = replace(PAGED, slots=48, chunk=1, page=1, memory_mib=1, mean_tokens=1)
    how = replace(sizes, speculative=config.mtp)
    by = Engine(Transformer(config, devices), STOP, how)
    prompts = prompts_of([5, 9, 2, 1, 9, 12, 9, 9] if mesh else [9, 9, 2, 9])
    found = generate(by, prompts, SAMPLINGS["plain"], group_size=8)
    assert by.statistics.suspended > 2
    for (p, _), completion in found.items():
        assert_equal(completion, prompts[p], SAMPLINGS["plain"], config)


def test_not_even_one_row_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("r1jax.rollout.pages.page_bytes", lambda *_: 200_000)
    by = Engine(Transformer(CONFIG), STOP, replace(PAGED, slots=0, memory_mib=1))
    with pytest.raises(
        ConfigError, match="one row with its prompt needs 22 pages, or 5 MiB, more than the 1"
    ):
        generate(by, prompts_of([5, 30]), SAMPLINGS["plain"])


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_pages_are_one_rows_alone(data: st.DataObject) -> None:
    """At any lengths and ends every page is free, a prompt's or one row's, every row has pages for
    its next chunk, all rows end, and all pages are free then but for the last prompt's.
    """
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    group_size, limit = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 30))
    shards, slots = data.draw(st.sampled_from([(1, 1), (1, 5), (2, 4)]))
    sizes = PageSizes(data.draw(st.sampled_from([1, 3, 8])), step=4, width=1)
    prompts = [np.zeros(length, np.int32) for length in lengths]
    limits = [limit] * len(prompts)
    places = list(itertools.product(range(len(prompts)), range(group_size)))
    done = data.draw(st.sets(st.sampled_from(places), max_size=len(places) - 1))
    request = Request(prompts, limits, group_size, done, SamplingConfig(), jax.random.key(0))
    total = sizes.own(limit) + 2 * sizes.prompt(max(lengths)) + data.draw(st.integers(0, 20))
    work = PageSchedule(request, shards, slots, total, sizes)
    ended = 0
    for _ in range(2000):
        if not work.unfinished():
            break
        work.resume()
        work.refill()
        work.copies()
        while work.shrink():
            pass
        work.grow()
        tables = work.tables().reshape(shards, work.slots, -1)
        for shard in range(shards):
            owned = list(work._free[shard])
            owned += [page for pages in work._of_prompts[shard].values() for page in pages]
            for slot, row in enumerate(work.rows[shard]):
                if row is not None:
                    owned += row.pages
                    tokens = lengths[row.prompt_index] - 1 + min(row.count + 4, limit)
                    held = len(row.shared) + len(row.pages)
                    assert held >= sizes.pages(tokens)
                    assert tables[shard, slot, :held].tolist() == row.shared + row.pages
            assert sorted(owned) == list(range(total))
        for shard, slot, row in list(work.busy()):
            row.count = min(row.count + 4, limit)
            if row.count == limit or data.draw(st.integers(0, 5)) == 0:
                work.finish(shard, slot)
                ended += 1
    assert ended == len(places) - len(done) and not work.unfinished()


# -- kernels ---------------------------------------------------------------------------------------


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels for TPUs run on CPUs, slowly. (jax's own interpreter stumbles over the ragged kernel:
    a number that it takes for an array has no shape.)
    """
    from jax._src.literals import TypedInt
    from jax.experimental import pallas as pl

    monkeypatch.setattr(TypedInt, "shape", (), raising=False)
    monkeypatch.setattr(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))
    monkeypatch.setattr("r1jax.rollout.engine.has_kernel", lambda *_: True)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("kind", ["latents", "keys and values"])
def test_kernels(kind: str, length: int) -> None:
    """Like plain products, for rows of all lengths, among them one without new tokens."""
    random = np.random.default_rng(length)
    rows, width, pages, size = 5, 11, 60, 8
    tables = Tables(
        jnp.asarray(random.permutation(pages)[: rows * width].reshape(rows, width), jnp.int32),
        jnp.asarray([0, 3, 63, 40, 78], jnp.int32),
        jnp.asarray([99, 99, 99, 0, 99], jnp.int32),
    )

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    held: Any = LatentPages(normal(pages, size, 128).at[..., 12:].set(0), rank=8, width=12)
    q = normal(rows, length, 4, 12)
    if kind != "latents":
        held, q = KeyValuePages(normal(pages, size, 4, 128)), normal(rows, length, 6, 128)
    expected = held.attend(q, tables, 0.3, False)
    found = held.attend(q, tables, 0.3, True)
    live = np.array([True, True, True, False, True])
    np.testing.assert_allclose(found[live], expected[live], atol=2e-6)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("mesh", "config"),
    [
        ("", replace(CONFIG, head_dim=128, num_layers=1)),
        ("", replace(V3, mtp=True)),
        ("data=2 tensor=2", replace(CONFIG, head_dim=128, num_layers=1, mtp=True)),
    ],
)
def test_the_engine_with_kernels(mesh: str, config: ModelConfig) -> None:
    devices = None
    if mesh:
        axes = {axis: int(size) for axis, size in (item.split("=") for item in mesh.split())}
        devices = make_mesh(axes, devices=jax.devices()[:4])
    sampling = SamplingConfig(max_tokens=7)
    by = Engine(Transformer(config, devices), STOP, replace(PAGED, speculative=config.mtp, page=8))
    prompts = prompts_of([5, 30, 1])
    found = generate(by, prompts, sampling, group_size=2)
    for (p, _), completion in found.items():
        assert_equal(completion, prompts[p], sampling, config)
