"""Keys and values in pages: completions as in columns and in the naive loop, and the kernels."""

import functools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import (
    CONFIG,
    SAMPLINGS,
    STOP,
    V3,
    assert_equal,
    generate,
    prompts_of,
)

from r1jax.machines.mesh import make_mesh
from r1jax.models.config import ModelConfig
from r1jax.models.transformer import Transformer
from r1jax.rollout.config import EngineConfig
from r1jax.rollout.engine import Engine

PAGED = EngineConfig(slots=4, chunk=3, prefill_batch=2, prefill_chunk=8, cache="pages", page=4)


@functools.cache
def paged(mesh: str = "", config: ModelConfig = CONFIG, **sizes: Any) -> Engine:
    """Drafts where the model has any."""
    axes = dict(item.split("=") for item in mesh.split())
    devices = make_mesh({axis: int(size) for axis, size in axes.items()}) if mesh else None
    how = replace(PAGED, speculative=config.mtp, **sizes)
    return Engine(Transformer(config, devices), STOP, how)


@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(
    page=st.sampled_from([1, 4, 64]),
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
        ("", V3),
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
