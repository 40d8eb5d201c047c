"""What a model says of packed tokens: log-probabilities under a chunked head, and scalars.

Shape legend: B rows, L tokens in P parts of l, D model, V vocabulary, N chunks of C columns. What
the losses make of it: policy.py, supervised.py, scalar.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from r1jax.losses.aggregation import Metrics, add_partial, sum_partial
from r1jax.losses.router import routing_metrics
from r1jax.machines.mesh import MESH_AXES, RULES, constrain, parts_of, spec_of
from r1jax.models.transformer import Output, Transformer, forward, head_weights
from r1jax.types import Batch

HEAD_CHUNKS = "head_chunks"  # the name, in programs, of the loop over a microbatch's chunks
CPU_CHUNK = 128  # columns
ROWS_OF_LOGITS = 1024  # tokens that the head of an accelerator is applied to at once
# (log-probabilities [B, C], entropies [B, C], batch of these tokens) -> (partial sum, metrics)
TokenLoss = Callable[[jax.Array, jax.Array, Batch], tuple[jax.Array, Metrics]]


def token_logprobs(
    model: Transformer, params: Any, batch: Batch, temperature: float = 1.0, chunk: int = 0
) -> tuple[jax.Array, jax.Array]:
    """(log-probabilities, entropies) of the targets [B, L] under log_softmax(logits / temperature).

    Entry l is log p(tokens[l] | the tokens before it), 0 where the loss mask is 0. The head is
    applied to `chunk` positions at a time, on every device to its own, and recomputed in the
    backward pass: no [B, L, V] array exists. The entropies carry no gradient.
    """
    hidden_BLD = _hidden(model, params, batch)
    return _logprobs(hidden_BLD, params, batch, temperature, chunk, model.mesh)


def whole_loss(
    model: Transformer,
    params: Any,
    batch: Batch,
    loss: TokenLoss,
    temperature: float = 1.0,
    chunk: int = 0,
) -> tuple[jax.Array, Metrics]:
    """`loss` of `token_logprobs`, for a loss that is no sum over tokens; metrics as token_loss."""
    output = _output(model, params, batch)
    how = temperature, chunk, model.mesh
    found, metrics = loss(*_logprobs(output.hidden, params, batch, *how), batch)
    return found, metrics | routing_metrics(output.routing)


def _logprobs(
    hidden_BLD: jax.Array,
    params: Any,
    batch: Batch,
    temperature: float,
    chunk: int,
    mesh: Mesh | None,
) -> tuple[jax.Array, jax.Array]:
    """As token_logprobs has it."""
    head_DV = head_weights(params).astype(hidden_BLD.dtype)

    def of_chunk(
        head_DV: jax.Array, h_BCD: jax.Array, tokens_BC: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        logits_BCV = _logits(h_BCD, head_DV, temperature)
        logprobs_BC, entropy_BC = _of_targets(logits_BCV, tokens_BC)[:2]
        return logprobs_BC, jax.lax.stop_gradient(entropy_BC)

    targets_BL = jnp.roll(batch.tokens, -1, axis=1)  # hidden l predicts token l + 1
    given = head_DV, (hidden_BLD, targets_BL)
    logprobs_BL, entropy_BL = _of_chunks(of_chunk, *given, batch, chunk, mesh)
    return logprobs_BL, entropy_BL


def _hidden(model: Transformer, params: Any, batch: Batch) -> jax.Array:
    return _output(model, params, batch).hidden


def _output(model: Transformer, params: Any, batch: Batch, **how: bool) -> Output:
    place = (batch.tokens, batch.positions, batch.segment_ids, batch.completion_ids)
    recorded = None
    if model.replay is not None and batch.experts is not None:
        recorded = jnp.moveaxis(jnp.roll(batch.experts, -1, axis=1), 2, 0).astype(jnp.int32)
    return forward(model, params, *place, recorded_SBLk=recorded, **how)


def _of_chunks(
    function: Callable[..., Any],
    heads: Any,
    arrays: Any,
    batch: Batch,
    chunk: int,
    mesh: Mesh | None,
) -> Any:
    """`function` of the heads and `chunk` columns of the arrays [B, L, ...] at a time -> [B, L].

    Its outcomes are float32 [B, C]. It is skipped for chunks that predict no target, is recomputed
    in the backward pass, and 0 stands wherever there is no target.
    """
    order_BPl = _targets_first(batch, mesh)
    mask_BL = batch.loss_mask > 0
    rows, length = mask_BL.shape
    columns = chunk_columns(chunk, rows, length, mesh)
    chunks = _chunks((jnp.roll(mask_BL, -1, axis=1), *arrays), order_BPl, columns, mesh)

    def all_of(heads: Any, chunks: Any) -> Any:
        @jax.checkpoint
        def one(_: None, x: Any) -> tuple[None, Any]:
            mask_BC, *args = x
            zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(function, heads, *args))
            wanted = jnp.any(mask_BC)
            return None, jax.lax.cond(wanted, function, lambda *_: zeros, heads, *args)

        return jax.lax.scan(one, None, chunks)[1]

    if _is_split(mesh):
        specs = jax.tree.map(lambda _: PartitionSpec(), heads), _chunk_specs(chunks)
        all_of = jax.shard_map(
            all_of, mesh=mesh, in_specs=specs, out_specs=OF_CHUNKS, check_vma=False
        )
    found = all_of(heads, chunks)
    back_BPl = jnp.argsort(order_BPl, axis=2)
    parts = back_BPl.shape[1]

    def in_place(x_NBC: jax.Array) -> jax.Array:
        x_NBPc = x_NBC.reshape(*x_NBC.shape[:2], parts, -1)
        x_BPl = jnp.moveaxis(x_NBPc, 0, 2).reshape(rows, parts, -1)
        x_BPl = jnp.take_along_axis(x_BPl, back_BPl, axis=2)  # at the column that predicts
        x_BL = x_BPl.reshape(rows, -1)[:, :length]
        return jnp.where(mask_BL, jnp.roll(x_BL, 1, axis=1), 0.0)

    return jax.tree.map(in_place, found)


def _targets_first(batch: Batch, mesh: Mesh | None) -> jax.Array:
    """The columns of each part of a row [B, P, l], those in front whose next token is a target.

    So columns that the head is not needed for come together: prompts, padding, ends.
    """
    targets_BPl = _in_parts(jnp.roll(batch.loss_mask, -1, axis=1), mesh)
    return jnp.argsort(targets_BPl == 0, axis=2, stable=True)


def _in_parts(x_BL: jax.Array, mesh: Mesh | None) -> jax.Array:
    """[B, L, ...] -> [B, P, l, ...]: what lies on each device anyway, padded with zeros."""
    parts = parts_of("stream", mesh)
    x_BL = _padded(x_BL, 1, parts)
    x_BPl = x_BL.reshape(x_BL.shape[0], parts, -1, *x_BL.shape[2:])
    return constrain(x_BPl, mesh, "batch", "stream", *(None,) * (x_BPl.ndim - 2))


def _padded(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """With zeros behind it, up to a multiple."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths)


def _chunks(tree: Any, order_BPl: jax.Array, chunk: int, mesh: Mesh | None) -> Any:
    """Leaves [B, L, ...] -> [N, B, chunk, ...]: columns in this order, padded with zeros.

    Every part of the rows has as many columns in each chunk.
    """
    rows, parts, _ = order_BPl.shape

    def one(x_BL: jax.Array) -> jax.Array:
        in_order = jax.vmap(jax.vmap(lambda x_l, order_l: x_l[order_l]))
        x_BPl = _padded(in_order(_in_parts(x_BL, mesh), order_BPl), 2, chunk // parts)
        rest = x_BPl.shape[3:]
        x_BPNc = x_BPl.reshape(rows, parts, -1, chunk // parts, *rest)
        return jnp.moveaxis(x_BPNc, 2, 0).reshape(-1, rows, chunk, *rest)

    return jax.tree.map(one, tree)


# The head on several devices: each has its own rows (the batch's axes) and its own part of their
# columns, to which it applies the whole head, gathered once. So nothing is sent within the loop
# over chunks, where a head that is split would send sums of every chunk.
OF_CHUNKS = spec_of((None, "batch", "stream"))


def _is_split(mesh: Mesh | None) -> bool:
    return mesh is not None and mesh.size > 1


def chunk_columns(chunk: int, rows: int, length: int, mesh: Mesh | None) -> int:
    """Of a chunk of so many rows, on all devices together: `chunk` on each, if there are so many.

    0 is what the platform wants: each chunk reads and writes the head and its gradient, which is
    little for a CPU, whose caches want few logits, and most of the traffic of an accelerator.
    """
    parts, split = parts_of("stream", mesh), parts_of("batch", mesh)
    if not chunk and (mesh is None or mesh.devices.flat[0].platform == "cpu"):
        chunk = CPU_CHUNK
    chunk = chunk or max(ROWS_OF_LOGITS * split // rows, CPU_CHUNK)
    return min(chunk, -(-length // parts)) * parts


def _chunk_specs(tree: Any) -> Any:
    """Of leaves [N, B, C, ...], and of others, which every device has whole."""
    return jax.tree.map(lambda x: OF_CHUNKS if x.ndim >= 3 else PartitionSpec(), tree)


def _logits(h_BCD: jax.Array, head_DV: jax.Array, temperature: Any) -> jax.Array:
    logits = jnp.einsum("bcd,dv->bcv", h_BCD, head_DV, preferred_element_type=jnp.float32)
    return logits / temperature


def _of_targets(
    logits_BCV: jax.Array, targets_BC: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(log-probabilities, entropies, logs of the denominator), each [B, C]."""
    top_BC1 = logits_BCV.max(axis=-1, keepdims=True)
    weights_BCV = jnp.exp(logits_BCV - top_BC1)
    total_BC = weights_BCV.sum(axis=-1)
    lse_BC = top_BC1[..., 0] + jnp.log(total_BC)
    entropy_BC = lse_BC - jnp.sum(weights_BCV * logits_BCV, axis=-1) / total_BC
    chosen_BC = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)[..., 0]
    return chosen_BC - lse_BC, entropy_BC, lse_BC


@dataclass(frozen=True)
class AheadLoss:
    """What multi-token prediction adds to a loss (V3 eq 24, 25)."""

    coef: float  # lambda
    loss: TokenLoss
    alone: bool = False  # its gradient reaches the parameters of multi-token prediction only


def token_loss(
    model: Transformer,
    params: Any,
    batch: Batch,
    loss: TokenLoss,
    temperature: float = 1.0,
    chunk: int = 0,
    ahead: AheadLoss | None = None,
) -> tuple[jax.Array, Metrics]:
    """`loss` of `token_logprobs`, for a loss that is a sum over tokens, to be differentiated.

    A chunk's logits are made once: its loss and the gradients of hidden states and head are taken
    while they exist, where autodiff of `token_logprobs` would make them again.
    """
    alone = ahead is not None and ahead.alone
    output = _output(model, params, batch, ahead=ahead is not None, alone=alone)
    batch = replace(batch, experts=None)  # chunks have no use for them
    how = temperature, chunk, model.mesh
    found, metrics = _loss_of_hidden(output.hidden, batch, params, loss, *how)
    metrics = metrics | routing_metrics(output.routing)
    if ahead is None or output.ahead is None:
        return found, metrics
    # What is said at token l of token l + 2, as if it were said at token l + 1.
    is_one_BL = batch.completion_ids == jnp.roll(batch.completion_ids, 2, axis=1)
    later = replace(batch, loss_mask=batch.loss_mask * (is_one_BL & (batch.positions >= 2)))
    given = jax.lax.stop_gradient(params) if alone else params
    second, _ = _loss_of_hidden(jnp.roll(output.ahead, 1, axis=1), later, given, ahead.loss, *how)
    return found + ahead.coef * second, metrics | {"mtp_loss": second}


def _loss_of_hidden(
    hidden_BLD: jax.Array,
    batch: Batch,
    params: Any,
    loss: TokenLoss,
    temperature: float,
    chunk: int,
    mesh: Any,
) -> tuple[jax.Array, Metrics]:
    head_DV = head_weights(params).astype(hidden_BLD.dtype)
    order_BPl = _targets_first(batch, mesh)
    rows, length = batch.loss_mask.shape
    chunk = chunk_columns(chunk, rows, length, mesh)
    # What is aligned to targets goes to the tokens that predict them; entry 0 is no target.
    predicted = jax.tree.map(
        lambda x: _chunks(jnp.roll(x, -1, axis=1), order_BPl, chunk, mesh) if x.ndim == 2 else x,
        batch,
    )
    hidden_NBCD = _chunks(hidden_BLD, order_BPl, chunk, mesh)
    return _head_loss(hidden_NBCD, head_DV, predicted, temperature, loss, mesh)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _head_loss(
    hidden_NBCD: jax.Array,
    head_DV: jax.Array,
    batch: Batch,
    temperature: Any,
    loss: TokenLoss,
    mesh: Any,
) -> tuple[jax.Array, Metrics]:
    """(loss, metrics) of a batch whose token-level leaves are [N, B, C], a chunk at a time.

    The chunks that predict a target come first.
    """
    return _head_loss_forward(hidden_NBCD, head_DV, batch, temperature, loss, mesh)[0]


def _head_loss_forward(
    hidden_NBCD: jax.Array,
    head_DV: jax.Array,
    batch: Batch,
    temperature: Any,
    loss: TokenLoss,
    mesh: Mesh | None,
) -> tuple[tuple[jax.Array, Metrics], tuple[jax.Array, jax.Array]]:
    given = hidden_NBCD, head_DV, batch, temperature
    if not _is_split(mesh):
        return _head_loss_here(*given, loss=loss)
    whole, head = PartitionSpec(), spec_of(("embed", "vocab"))
    embed, vocab = RULES["embed"], RULES["vocab"]
    others = tuple(axis for axis in MESH_AXES if axis not in (*embed, *vocab))

    def one_device(*given: Any) -> Any:
        result, (hidden_grad_NBCD, head_grad_DV) = _head_loss_here(*given, loss=loss)
        head_grad_DV = jax.lax.psum_scatter(head_grad_DV, embed, scatter_dimension=0, tiled=True)
        head_grad_DV = jax.lax.psum_scatter(head_grad_DV, vocab, scatter_dimension=1, tiled=True)
        grads = hidden_grad_NBCD, jax.lax.psum(head_grad_DV, others)
        return sum_partial(result, MESH_AXES), grads

    return jax.shard_map(
        one_device,
        mesh=mesh,
        in_specs=(OF_CHUNKS, whole, _chunk_specs(batch), whole),
        out_specs=(whole, (OF_CHUNKS, head)),
        check_vma=False,
    )(*given)


def _head_loss_here(
    hidden_NBCD: jax.Array, head_DV: jax.Array, batch: Batch, temperature: Any, *, loss: TokenLoss
) -> tuple[tuple[jax.Array, Metrics], tuple[jax.Array, jax.Array]]:
    """On one device: its rows and columns, the whole head."""

    def chunk_of(index: Any) -> Batch:
        return jax.tree.map(lambda x: x[index] if x.ndim == 3 else x, batch)

    def one(index: Any, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_grad_NBCD, head_grad_DV, total = carry
        h_BCD, part = hidden_NBCD[index], chunk_of(index)
        logits_BCV = _logits(h_BCD, head_DV, temperature)
        logprobs_BC, entropy_BC, lse_BC = _of_targets(logits_BCV, part.tokens)
        found, weights_BC = jax.value_and_grad(loss, has_aux=True)(logprobs_BC, entropy_BC, part)
        hit_BCV = part.tokens[..., None] == jnp.arange(head_DV.shape[1])
        grad_BCV = hit_BCV - jnp.exp(logits_BCV - lse_BC[..., None])
        grad_BCV = (grad_BCV * (weights_BC / temperature)[..., None]).astype(head_DV.dtype)
        h_grad_BCD = jnp.einsum("bcv,dv->bcd", grad_BCV, head_DV)
        head_grad_DV += jnp.einsum(
            "bcd,bcv->dv", h_BCD, grad_BCV, preferred_element_type=jnp.float32
        )
        return (
            hidden_grad_NBCD.at[index].set(h_grad_BCD),
            head_grad_DV,
            add_partial(total, found),
        )

    first = chunk_of(0)
    float_BC = jax.ShapeDtypeStruct(first.tokens.shape, jnp.float32)
    start = jax.tree.map(jnp.zeros_like, jax.eval_shape(loss, float_BC, float_BC, first))
    with_targets = jnp.sum(jnp.any(batch.loss_mask > 0, axis=(1, 2)))
    zeros = jnp.zeros_like(hidden_NBCD), jnp.zeros(head_DV.shape, jnp.float32), start
    with jax.named_scope(HEAD_CHUNKS):
        hidden_grad_NBCD, head_grad_DV, result = jax.lax.fori_loop(0, with_targets, one, zeros)
    return result, (hidden_grad_NBCD, head_grad_DV.astype(head_DV.dtype))


def _head_loss_backward(
    loss: TokenLoss, mesh: Any, saved: tuple[jax.Array, jax.Array], gradients: tuple[Any, Metrics]
) -> tuple[jax.Array, jax.Array, None, None]:
    hidden_grad_NBCD, head_grad_DV = saved
    weight = gradients[0]  # of the loss; metrics carry no gradient
    head_grad_DV = (weight * head_grad_DV).astype(head_grad_DV.dtype)
    # Without the barrier libtpu 0.0.42.1 fails on meshes along `fsdp` alone: it would move the sum
    # over devices behind this product and out of the loop over microbatches.
    head_grad_DV = jax.lax.optimization_barrier(head_grad_DV)
    return (weight * hidden_grad_NBCD).astype(hidden_grad_NBCD.dtype), head_grad_DV, None, None


_head_loss.defvjp(_head_loss_forward, _head_loss_backward)


def teacher_kl(
    model: Transformer,
    params: Any,
    teacher: Transformer,
    teacher_params: Any,
    batch: Batch,
    temperature: float = 1.0,
    chunk: int = 0,
) -> jax.Array:
    """KL(teacher || student) of the targets' distributions [B, L]; 0 where the loss mask is 0.

    Both are softmax(logits / temperature); no gradient reaches the teacher, and logits exist for
    `chunk` positions at a time.
    """
    hidden_BLD = _hidden(model, params, batch)
    teachers_BLD = jax.lax.stop_gradient(_hidden(teacher, teacher_params, batch))
    head_DV = head_weights(params).astype(hidden_BLD.dtype)
    teachers_head_DV = jax.lax.stop_gradient(head_weights(teacher_params))
    teachers_head_DV = teachers_head_DV.astype(teachers_BLD.dtype)

    def of_chunk(
        heads: tuple[jax.Array, jax.Array], h_BCD: jax.Array, teachers_BCD: jax.Array
    ) -> jax.Array:
        logits_BCV = _logits(h_BCD, heads[0], temperature)
        teachers_BCV = _logits(teachers_BCD, heads[1], temperature)
        wanted_BCV = jax.nn.log_softmax(teachers_BCV)
        gap_BCV = wanted_BCV - jax.nn.log_softmax(logits_BCV)
        return jnp.sum(jnp.exp(wanted_BCV) * gap_BCV, axis=-1)

    given = (head_DV, teachers_head_DV), (hidden_BLD, teachers_BLD)
    kl_BL: jax.Array = _of_chunks(of_chunk, *given, batch, chunk, model.mesh)
    return kl_BL


def token_scalars(model: Transformer, params: Any, batch: Batch) -> jax.Array:
    """The scalar head's value at every token, float32 [B, L]."""
    hidden_BLD = _hidden(model, params, batch).astype(jnp.float32)
    return hidden_BLD @ params["scalar_head"] + params["scalar_bias"]


def token_values(model: Transformer, params: Any, batch: Batch) -> jax.Array:
    """The scalar head's value of the state before each token, float32 [B, L]; 0 at a row's first.

    Aligned to targets, as log-probabilities are.
    """
    return jnp.roll(token_scalars(model, params, batch), 1, axis=1).at[:, 0].set(0.0)
