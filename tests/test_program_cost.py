"""FLOPs, bytes and collectives of compiled programs, against counts by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from r1jax.machines.mesh import make_mesh
from r1jax.machines.program_cost import Cost, cost_of

N = 64


def cost(function: Any, *shapes: Any, loops: Any = None, mesh: Any = None) -> Cost:
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    text = jax.jit(function).lower(*shapes).compile().as_text()
    return cost_of(text, mesh, loops)


def square(*dims: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def test_products_in_loops_are_multiplied_out() -> None:
    def scanned(x: jax.Array, weights: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    assert cost(scanned, square(8, N), square(5, N, N)).flops == 5 * 2 * 8 * N * N

    def nested(x: jax.Array, weights: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 3, lambda _, x: scanned(x, weights), x)

    assert cost(nested, square(8, N), square(5, N, N)).flops == 15 * 2 * 8 * N * N


def test_loops_whose_length_is_a_value() -> None:
    def repeated(x: jax.Array, w: jax.Array, times: jax.Array) -> jax.Array:
        with jax.named_scope("rounds"):
            return jax.lax.fori_loop(0, times, lambda _, x: jnp.tanh(x @ w), x)

    shapes = square(8, N), square(N, N), jax.ShapeDtypeStruct((), jnp.int32)
    assert cost(repeated, *shapes, loops={"rounds": 7}).flops == 7 * 2 * 8 * N * N
    once = cost(repeated, *shapes)
    assert once.flops == 2 * 8 * N * N
    assert len(once.unknown_loops) == 1


def test_branches() -> None:
    """The dearest one, or the one that is said to be usual."""

    def either(x: jax.Array, flag: jax.Array) -> jax.Array:
        with jax.named_scope("twice"):
            return jax.lax.cond(flag, lambda x: x @ x, lambda x: x @ x @ x, x)

    given = square(N, N), jax.ShapeDtypeStruct((), bool)
    assert cost(either, *given).flops == 2 * 2 * N**3
    assert cost(either, *given, loops={"twice": 1}).flops == 2 * N**3


def test_gradients_cost_twice_as_much_again() -> None:
    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(jnp.sin(x @ w) @ w))

    # Forward two products; backward two for the weights and one for the first one's output.
    assert cost(jax.grad(loss), square(N, N), square(8, N)).flops == 5 * 2 * 8 * N * N


def test_batched_products() -> None:
    def scores(q: jax.Array, k: jax.Array) -> jax.Array:
        return jnp.einsum("bhqd,bhkd->bhqk", q, k)

    assert cost(scores, square(2, 3, 8, 16), square(2, 3, 32, 16)).flops == 2 * 6 * 8 * 32 * 16


def test_bytes_of_a_plain_product() -> None:
    found = cost(lambda x, w: x @ w, square(256, 128), square(128, 512)).bytes
    assert found == pytest.approx(4 * (256 * 128 + 128 * 512 + 256 * 512), rel=0.01)


def test_a_slice_is_not_the_whole() -> None:
    def one_row(table: jax.Array, index: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(table, (index, 0), (1, N)) * 2.0

    index = jax.ShapeDtypeStruct((), jnp.int32)
    assert cost(one_row, square(10_000, N), index).bytes < 10 * 4 * N


def test_what_is_put_in_place_is_not_the_whole() -> None:
    def put(table: jax.Array, rows: jax.Array, new: jax.Array) -> jax.Array:
        return table.at[rows].set(new, mode="drop")

    rows = jax.ShapeDtypeStruct((5,), jnp.int32)
    lowered = jax.jit(put, donate_argnums=0).lower(square(10_000, N), rows, square(5, N))
    text = lowered.compile().as_text()
    assert cost_of(text, make_mesh()).bytes < 5 * 10 * 4 * N


@pytest.mark.parametrize(
    ("kind", "axes", "sent"),
    [
        ("all-gather", ("fsdp",), 1 / 2),  # a device sends the half that it has
        ("all-gather", ("fsdp", "tensor"), 3 / 4),  # its quarter, and on two others
        ("all-reduce", ("tensor",), 1),  # a half for the sums, a half of the sums
        ("reduce-scatter", ("data",), 1 / 2),
    ],
)
def test_collectives_by_axis(kind: str, axes: tuple[str, ...], sent: float) -> None:
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, jax.devices())

    def one(x: jax.Array) -> jax.Array:
        if kind == "all-gather":
            return jax.lax.all_gather(x, axes, tiled=True)
        if kind == "all-reduce":
            return jax.lax.psum(x, axes)
        return jax.lax.psum_scatter(x, axes, tiled=True)

    spec = PartitionSpec(axes if kind == "all-gather" else None)
    out = PartitionSpec(axes if kind == "reduce-scatter" else None)
    function = jax.shard_map(one, mesh=mesh, in_specs=spec, out_specs=out, check_vma=False)
    shape = jax.ShapeDtypeStruct((2 * N, N), jnp.float32, sharding=NamedSharding(mesh, spec))
    found = cost(function, shape, mesh=mesh)
    key = kind, ",".join(axes)
    assert set(found.collectives) == {key}
    assert found.collectives[key] == 4 * 2 * N * N * sent
    assert found.calls[key] == 1


def test_collectives_in_loops() -> None:
    mesh = make_mesh({"fsdp": 2, "tensor": 4}, jax.devices())

    def step(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, _: (jax.lax.psum(x, "tensor") / 3, None), x, None, 6)[0]

    spec = PartitionSpec()
    function = jax.shard_map(step, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    found = cost(function, square(N, N), mesh=mesh)
    assert found.calls == {("all-reduce", "tensor"): 6}
    assert found.collective_bytes == 6 * 2 * 4 * N * N * 3 / 4


# -- as the TPU's compiler writes it ---------------------------------------------------------------

ADD = """%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}
"""
SCATTERED = """%all-reduce-scatter (p: f32[64,64], i: s32[]) -> f32[8,64] {
  %p = f32[64,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %all-reduce = f32[64,64]{1,0} all-reduce(%p), channel_id=1, replica_groups=[1,8]<=[8]
  ROOT %slice = f32[8,64]{1,0} dynamic-slice(%all-reduce, %i, %zero), dynamic_slice_sizes={8,64}
}
ENTRY %main (x: f32[64,64], i: s32[]) -> f32[8,64] {
  %x = f32[64,64]{1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  ROOT %fusion = f32[8,64]{1,0} fusion(%x, %i.1), kind=kCustom, calls=%all-reduce-scatter
}
"""
GATHER = (
    "all-gather(%p), channel_id=2, replica_groups=[1,8]<=[8], dimensions={0},"
    " use_global_device_ids=true"
)
BESIDE = f"""%begin (p: f32[8,64]) -> (f32[8,64], f32[64,64]) {{
  %p = f32[8,64]{{1,0}} parameter(0)
  %all-gather.1 = f32[64,64]{{1,0}} {GATHER}
  ROOT %start = (f32[8,64]{{1,0}}, f32[64,64]{{1,0}}) custom-call(%p, %all-gather.1), \
custom_call_target="AsyncCollectiveStart"
}}
%beside (p: f32[8,64], q: f32[64,64]) -> (f32[64,64], f32[64,64]) {{
  %p = f32[8,64]{{1,0}} parameter(0)
  %q = f32[64,64]{{1,0}} parameter(1)
  %dot = f32[64,64]{{1,0}} dot(%q, %q), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  %all-gather.2 = f32[64,64]{{1,0}} {GATHER}
  ROOT %both = (f32[64,64]{{1,0}}, f32[64,64]{{1,0}}) tuple(%dot, %all-gather.2)
}}
%end (p: f32[8,64], q: f32[64,64]) -> f32[64,64] {{
  %p = f32[8,64]{{1,0}} parameter(0)
  %q = f32[64,64]{{1,0}} parameter(1)
  %all-gather.3 = f32[64,64]{{1,0}} {GATHER}
  ROOT %done = f32[64,64]{{1,0}} custom-call(%q, %all-gather.3), \
custom_call_target="AsyncCollectiveDone"
}}
ENTRY %main (x: f32[8,64], y: f32[64,64]) -> f32[64,64] {{
  %x = f32[8,64]{{1,0}} parameter(0)
  %y = f32[64,64]{{1,0}} parameter(1)
  %one = (f32[8,64]{{1,0}}, f32[64,64]{{1,0}}) fusion(%x), kind=kCustom, calls=%begin
  %two = (f32[64,64]{{1,0}}, f32[64,64]{{1,0}}) fusion(%x, %y), kind=kOutput, calls=%beside
  ROOT %three = f32[64,64]{{1,0}} fusion(%x, %y), kind=kCustom, calls=%end
}}
"""


@pytest.mark.parametrize(
    ("text", "kind", "sent"),
    [(ADD + SCATTERED, "reduce-scatter", 64 * 64 * 4 * 7 / 8), (BESIDE, "all-gather", 8 * 256 * 7)],
)
def test_collectives_in_fusions(text: str, kind: str, sent: float) -> None:
    found = cost_of(text, make_mesh({"fsdp": 8}))
    assert found.collectives == {(kind, "fsdp"): sent}
    assert found.calls == {(kind, "fsdp"): 1}


@pytest.mark.parametrize(("step", "trips"), [(1, 8), (2, 4), (3, 3)])
def test_loops_that_count_in_steps(step: int, trips: int) -> None:
    text = f"""%body (p: (s32[], f32[64,64])) -> (s32[], f32[64,64]) {{
  %p = (s32[], f32[64,64]{{1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[64,64]{{1,0}} get-tuple-element(%p), index=1
  %step = s32[] constant({step})
  %next = s32[] add(%i, %step)
  %dot = f32[64,64]{{1,0}} dot(%x, %x), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  ROOT %out = (s32[], f32[64,64]{{1,0}}) tuple(%next, %dot)
}}
%cond (p: (s32[], f32[64,64])) -> pred[] {{
  %p = (s32[], f32[64,64]{{1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %most = s32[] constant(8)
  ROOT %less = pred[] compare(%i, %most), direction=LT
}}
ENTRY %main (x: f32[64,64]) -> f32[64,64] {{
  %x = f32[64,64]{{1,0}} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[64,64]{{1,0}}) tuple(%zero, %x)
  %loop = (s32[], f32[64,64]{{1,0}}) while(%start), condition=%cond, body=%body
  ROOT %end = f32[64,64]{{1,0}} get-tuple-element(%loop), index=1
}}
"""
    assert cost_of(text, make_mesh({"fsdp": 8})).flops == trips * 2 * N**3


HANDED_ON = f"""%piece (p: f32[8,64], g: f32[64,64], q: f32[64,64]) -> \
(f32[64,64], f32[8,64], f32[64,64]) {{
  %p = f32[8,64]{{1,0}} parameter(0)
  %g = f32[64,64]{{1,0}} parameter(1)
  %q = f32[64,64]{{1,0}} parameter(2)
  %dot = f32[64,64]{{1,0}} dot(%q, %q), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  %all-gather.2 = f32[64,64]{{1,0}} {GATHER}
  ROOT %all = (f32[64,64]{{1,0}}, f32[8,64]{{1,0}}, f32[64,64]{{1,0}}) \\
tuple(%dot, %p, %all-gather.2)
}}
ENTRY %main (x: f32[8,64], y: f32[64,64], z: f32[64,64]) -> f32[64,64] {{
  %x = f32[8,64]{{1,0}} parameter(0)
  %y = f32[64,64]{{1,0}} parameter(1)
  %z = f32[64,64]{{1,0}} parameter(2)
  ROOT %fusion = (f32[64,64]{{1,0}}, f32[8,64]{{1,0}}, f32[64,64]{{1,0}}) fusion(%x, %y, %z), \
kind=kOutput, output_to_operand_aliasing={{{{1}}: (0, {{}}), {{2}}: (1, {{}})}}, calls=%piece
}}
"""


def test_what_a_piece_of_a_collective_hands_on_is_not_moved() -> None:
    """The product beside it alone reads and writes."""
    mesh = make_mesh({"fsdp": 8}, jax.devices())
    assert cost_of(HANDED_ON, mesh).bytes == 2 * 64 * 64 * 4
