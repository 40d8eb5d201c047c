"""Products of rows with their experts' matrices: a loop and megablox against ragged_dot."""

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from r1jax.machines.mesh import make_mesh
from r1jax.models import moe
from r1jax.models.config import Experts, ModelConfig
from r1jax.models.grouped import BLOCKS, MEGABLOX, _Tiling, choose_grouped, group, grouped_matmul
from r1jax.models.kernels import grouped_kernels, kernel_flops
from r1jax.models.moe import ROOM, Across, run_experts

INNER, COLUMNS = 24, 40


def shared_out(*counts: int, nobody: int = 0) -> np.ndarray:
    """The expert of each row, mixed; `nobody` rows belong to experts elsewhere."""
    experts = np.repeat(np.arange(len(counts)), counts)
    rows = np.concatenate([experts, np.resize([-1, len(counts), 99], nobody)])
    return np.random.default_rng(0).permutation(rows)


CASES = {
    "uneven": shared_out(3, 190, 1, 62),
    "empty": shared_out(0, 100, 0, 0, 30, 0),
    "all to the last": shared_out(0, 0, 70),
    "fewer than the rows": shared_out(20, 0, 150, nobody=200),
    "no tile's multiple": shared_out(129, 127, 1),
    "none at all": shared_out(0, 0, nobody=9),
    "one row": shared_out(0, 1),
}


def by_ragged_dot(x_AD: jax.Array, w_EDF: jax.Array, expert_A: np.ndarray) -> jax.Array:
    """[A, F], zeros where there is no expert here."""
    here = (expert_A >= 0) & (expert_A < len(w_EDF))
    order = np.argsort(np.where(here, expert_A, len(w_EDF)), kind="stable")[: here.sum()]
    sizes = jnp.asarray(np.bincount(expert_A[here], minlength=len(w_EDF)), jnp.int32)
    found = jax.lax.ragged_dot(x_AD[order], w_EDF, sizes)
    return jnp.zeros((len(expert_A), w_EDF.shape[2])).at[order].set(found)


@pytest.mark.parametrize("kernel", [BLOCKS, MEGABLOX])
@pytest.mark.parametrize("case", CASES)
def test_it_is_ragged_dot(case: str, kernel: str) -> None:
    """Values and gradients; what megablox leaves unwritten is NaN in its interpreter."""
    expert_A = CASES[case]
    experts = max(int(expert_A[expert_A < 99].max(initial=0)) + 1, 2)
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (len(expert_A), INNER))
    into = jax.random.normal(keys[1], (experts, INNER, COLUMNS))
    out = jax.random.normal(keys[2], (experts, COLUMNS, INNER))
    target = jax.random.normal(keys[3], x.shape)

    def here(x: jax.Array, into: jax.Array, out: jax.Array) -> jax.Array:
        groups = replace(group(jnp.asarray(expert_A), experts, kernel), interpret=True)
        hidden = jax.nn.silu(grouped_matmul(groups.spread(x), into, groups))
        found = grouped_matmul(hidden, out, groups)
        assert found.shape[0] == groups.rows
        return groups.combine(found, len(expert_A))

    def expected(x: jax.Array, into: jax.Array, out: jax.Array) -> jax.Array:
        hidden = jax.nn.silu(by_ragged_dot(x, into, expert_A))
        return by_ragged_dot(hidden, out, expert_A)

    def both(function: Any) -> Any:
        def loss(*given: jax.Array) -> Any:
            return jnp.sum(function(*given) * target), function(*given)

        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(x, into, out)

    for one, other in zip(
        jax.tree.leaves(both(here)), jax.tree.leaves(both(expected)), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("mean", "rows", "tile"), [(1, 100, 128), (600, 4096, 256), (10_000, 4096, 512)]
)
def test_tiles_suit_the_rows_of_an_expert(mean: int, rows: int, tile: int) -> None:
    groups = group(jnp.zeros(rows, jnp.int32), 4, MEGABLOX, mean)
    assert groups.tile == tile
    assert groups.rows == -(-rows // tile) * tile


@pytest.mark.parametrize(
    ("itemsize", "inner", "columns", "tile"),
    [
        (2, 7168, 2048, (1024, 1024)),
        (2, 1536, 64, (768, 64)),
        (2, 1408, 1100, (1024, 1024)),  # 704 is no multiple of 128
        (4, 7168, 1536, (512, 512)),
    ],
)
def test_tiles(itemsize: int, inner: int, columns: int, tile: tuple[int, int]) -> None:
    assert _Tiling(256, itemsize)(9, inner, columns) == (256, *tile)


@dataclass
class Shape:
    dtype: str
    dims: tuple[int, ...]


def test_flops_of_the_kernels() -> None:
    """For the rows of a fourth of the experts, of which there is room for all."""
    formulas = kernel_flops(make_mesh({"expert": 4, "fsdp": 2}, jax.devices()))
    scalars = [Shape("s32", (9,))] * 5
    rows, matrices, out = (
        Shape("bf16", (512, 64)),
        Shape("bf16", (8, 64, 96)),
        Shape("bf16", (512, 96)),
    )
    products = 2 * 512 * 64 * 96 / 4
    assert formulas["gmm"]([*scalars, rows, matrices], [out]) == products
    assert formulas["gmm"]([*scalars, out, matrices], [rows]) == products
    assert formulas["tgmm"]([*scalars, rows, out], [matrices]) == products
    limited, out = Shape("bf16", (ROOM, 64)), Shape("bf16", (ROOM, 96))
    assert formulas["gmm"]([*scalars, limited, matrices], [out]) == ROOM * 64 * 96


class FakeTpus:
    class Device:
        platform = "tpu"

    devices = np.array([Device()])


def test_the_mesh_chooses() -> None:
    here, tpus = make_mesh(devices=jax.devices()[:1]), FakeTpus()
    dense = ModelConfig(
        vocab_size=8, embed_dim=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, ffn_dim=8
    )
    sparse = replace(dense, experts=Experts(4, 2, 8))
    assert (choose_grouped(None), choose_grouped(here)) == (BLOCKS, BLOCKS)
    assert choose_grouped(tpus) == MEGABLOX  # type: ignore[arg-type]
    assert grouped_kernels(sparse, here, backward=True) == ()
    assert grouped_kernels(dense, tpus, backward=True) == ()  # type: ignore[arg-type]
    assert grouped_kernels(sparse, tpus, backward=True) == ("gmm", "tgmm")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("crowd", "kernel", "room", "parts"),
    [(0, BLOCKS, 128, 4), (150, MEGABLOX, 128, 4), (0, BLOCKS, ROOM, 32), (300, BLOCKS, ROOM, 32)],
    ids=["even", "all to one", "few of many parts", "all to one of many parts"],
)
def test_some_tokens_at_a_time(
    crowd: int, kernel: str, room: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for a part of the rows, or for fewer than come: values and gradients of all."""
    grouped = functools.partial(replace, interpret=True)
    monkeypatch.setattr("r1jax.models.moe.group", lambda *args: grouped(group(*args)))
    keys = jax.random.split(jax.random.key(0), 7)
    tokens, width, ffn, experts, held, top_k = 301, 16, 24, 4 * parts, 4, 2
    taken = jax.random.randint(keys[0], (1, tokens, top_k), 0, experts)
    taken = taken.at[:, :crowd].set(jnp.array([1, 2]))
    weights = jax.random.uniform(keys[1], taken.shape)
    x, target = (jax.random.normal(key, (1, tokens, width)) for key in keys[2:4])
    gate, up = (jax.random.normal(key, (held, width, ffn)) for key in keys[4:6])
    down = jax.random.normal(keys[6], (held, ffn, width))

    def both(room: int) -> Any:
        def loss(*given: jax.Array) -> Any:
            x, weights, *matrices = given
            how = {"kernel": kernel, "experts": experts, "room": room}
            found = run_experts(x, weights, taken, *matrices, **how)
            return jnp.sum(found * target), found

        run = jax.value_and_grad(loss, (0, 1, 2, 3, 4), has_aux=True)
        return jax.jit(run)(x, weights, gate, up, down)

    limited = jax.tree.leaves(both(room))
    monkeypatch.setattr(moe, "SPARE", parts)
    for one, other in zip(limited, jax.tree.leaves(both(ROOM)), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-2, rtol=1e-3)


@pytest.mark.parametrize("split", [True, False], ids=["length over tensor", "whole rows"])
@pytest.mark.parametrize("crowd", [0, 13], ids=["even", "all to one"])
def test_tokens_of_eight_devices_in_pieces(split: bool, crowd: int) -> None:
    """Values and gradients are one device's; so many devices' tokens come together at a time that
    no array is as long as all of them, and no sum is whole on every device.
    """
    mesh = make_mesh({"expert": 4, "tensor": 2}, jax.devices())
    rows, length, width, ffn, experts, top_k = 4, 30, 16, 24, 8, 2
    keys = jax.random.split(jax.random.key(0), 7)
    taken = jax.random.randint(keys[0], (rows, length, top_k), 0, experts)
    taken = taken.at[:, :crowd].set(jnp.array([4, 5]))
    weights = jax.random.uniform(keys[1], taken.shape)
    x, target = (jax.random.normal(key, (rows, length, width)) for key in keys[2:4])
    gate, up = (jax.random.normal(key, (experts, width, ffn)) for key in keys[4:6])
    down = jax.random.normal(keys[6], (experts, ffn, width))
    run = functools.partial(run_experts, kernel=BLOCKS, experts=experts, room=64)
    own = PartitionSpec("expert", "tensor" if split else None)
    into, out = PartitionSpec("expert", None, "tensor"), PartitionSpec("expert", "tensor")
    axes = (("expert", "tensor"), (), 8) if split else (("expert",), ("tensor",), 4)
    here = jax.shard_map(
        functools.partial(run, across=Across(*axes)),
        mesh=mesh,
        in_specs=(own, own, own, into, into, out),
        out_specs=own,
        check_vma=False,
    )

    def both(function: Any) -> Any:
        def loss(x: jax.Array, weights: jax.Array, *matrices: jax.Array) -> Any:
            found = function(x, weights, taken, *matrices)
            return jnp.sum(found * target), found

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3, 4), has_aux=True))

    given = x, weights, gate, up, down
    one, eight = both(functools.partial(run, room=ROOM)), both(here)
    for found, expected in zip(
        jax.tree.leaves(eight(*given)), jax.tree.leaves(one(*given)), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=2e-3, rtol=1e-4)
    program = eight.lower(*given).compile().as_text()
    assert "all-gather" in program and "reduce-scatter" in program
    assert f"f32[{rows * length},{width}]" not in program
