"""Which attention over packed rows runs where, the kernels of others, and what they compute."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh, NamedSharding

from r1jax.config import ConfigError
from r1jax.machines.mesh import parts_of, spec_of
from r1jax.models.config import ModelConfig
from r1jax.models.grouped import MEGABLOX, choose_grouped
from r1jax.models.layouts import Compute
from r1jax.models.moe import ROOM, SPARE
from r1jax.models.packed_attention import Seen, SeenByShard, Span, packed_mask, see


def choose_kernel(
    config: ModelConfig, compute: Compute, mesh: Mesh | None, shared_prompts: bool = False
) -> str:
    """What attention over packed rows runs on this mesh: compute.attention, "auto" resolved.

    The splash kernel compares segments and nothing else, so it cannot run rows in which completions
    share a prompt: "auto" then means xla, and "splash" is an error. cuDNN wants 16 bits,
    values as wide as keys, which latent attention has not, and whole rows.
    """
    platform = "cpu" if mesh is None else mesh.devices.flat[0].platform
    gpu = platform in ("gpu", "cuda")
    kernel = compute.attention
    if kernel == "auto" and platform == "tpu" and not shared_prompts:
        return "splash"
    latent, split = config.latent is not None, parts_of("length", mesh) > 1
    if kernel == "auto":
        whole = not latent and not split
        return "cudnn" if gpu and compute.dtype == "bfloat16" and whole else "xla"
    if kernel == "cudnn" and latent:
        raise ConfigError("attention 'cudnn' cannot run latent attention: set it to 'xla'")
    if kernel == "cudnn" and split:
        raise ConfigError(
            "attention 'cudnn' cannot run rows that are split over devices: set"
            " config.mesh.context to 1, or attention to 'xla'"
        )
    if kernel == "splash" and shared_prompts:
        raise ConfigError(
            "attention 'splash' cannot run rows in which completions share a prompt: set"
            " config.share_prompts to False, or attention to 'xla'"
        )
    if (kernel == "splash" and platform != "tpu") or (kernel == "cudnn" and not gpu):
        wanted = "TPUs" if kernel == "splash" else "GPUs"
        raise ConfigError(f"attention {kernel!r} runs on {wanted}; the mesh is of {platform}s")
    return kernel


def see_packed(
    kernel: str,
    segment_ids_BL: jax.Array,
    completion_ids_BL: jax.Array | None,
    mesh: Mesh | None,
    span: Span | None,
) -> Seen:
    """What the queries of packed rows see, for the kernel of this name."""
    if kernel == "splash":
        return SeenBySplash(segment_ids_BL, mesh, span)
    mask_BLL = packed_mask(segment_ids_BL, completion_ids_BL)
    if kernel == "cudnn":
        return SeenByCudnn(mask_BLL)
    if parts_of("length", mesh) > 1:
        return SeenByShard(mask_BLL, mesh)
    return see(mask_BLL, span, mesh is None or mesh.size == 1)


@struct.dataclass
class SeenBySplash:
    """Causal attention within segments by the splash kernel for TPUs.

    It never holds the scores, and skips the blocks above the diagonal, those between segments and,
    of a `span` without a prefix, those before the window. Each device runs it on its own rows and
    heads, and on its own queries of them with all keys. `interpret` runs it on any platform,
    slowly.
    """

    segment_ids: jax.Array  # [B, L]
    mesh: Mesh | None = struct.field(pytree_node=False, default=None)
    span: Span | None = struct.field(pytree_node=False, default=None)
    interpret: bool = struct.field(pytree_node=False, default=False)

    def attend(
        self, q_BLHN: jax.Array, k_BKLN: jax.Array, v_BKLO: jax.Array, scale: float
    ) -> jax.Array:
        from r1jax.models.splash import (  # it takes a second
            SegmentIds,
            padded_length,
            splash_kernel,
            within_segments,
        )

        (_, length, heads, _), mesh = q_BLHN.shape, self.mesh
        parts = parts_of("length", mesh)
        padded = padded_length(length, parts)
        window = self.span.window if self.span is not None and self.span.prefix == 0 else None
        kernel = splash_kernel(
            padded, heads // parts_of("heads", mesh), window, parts, self.interpret
        )

        def one_device(kernel: Any, *given: jax.Array) -> jax.Array:
            def one_row(q: Any, k: Any, v: Any, of_queries: Any, of_keys: Any) -> jax.Array:
                row = within_segments(kernel, of_queries, of_keys)
                mixed: jax.Array = row(q, k, v, SegmentIds(of_queries, of_keys))
                return mixed

            return jax.vmap(one_row)(*given)

        q_BHLN, pad = q_BLHN.swapaxes(1, 2) * scale, padded - length
        q, k, v = (jnp.pad(x, [(0, 0), (0, 0), (0, pad), (0, 0)]) for x in (q_BHLN, k_BKLN, v_BKLO))
        segments = jnp.pad(self.segment_ids, [(0, 0), (0, pad)])
        if mesh is not None and mesh.size > 1:
            heads_spec, keys_spec, queries, keys = (
                spec_of(("batch", "heads", "length", None)),
                spec_of(("batch", "kv_heads", "keys", None)),
                spec_of(("batch", "length")),
                spec_of(("batch", "keys")),
            )
            of_kernel = kernel.manual_sharding_spec(NamedSharding(mesh, spec_of((None, "length"))))
            one_device = jax.shard_map(
                one_device,
                mesh=mesh,
                in_specs=(of_kernel, heads_spec, keys_spec, keys_spec, queries, keys),
                out_specs=heads_spec,
                check_vma=False,
            )
        mixed_BHLN = one_device(kernel, q, k, v, segments, segments)
        return mixed_BHLN[:, :, :length].swapaxes(1, 2).astype(v_BKLO.dtype)


@struct.dataclass
class SeenByCudnn:
    """Masked attention by cuDNN's kernel for NVIDIA GPUs (bfloat16 or float16)."""

    mask: jax.Array  # bool [B, L, L]

    def attend(
        self, q_BLHN: jax.Array, k_BKLN: jax.Array, v_BKLO: jax.Array, scale: float
    ) -> jax.Array:
        return jax.nn.dot_product_attention(
            q_BLHN,
            k_BKLN.swapaxes(1, 2),
            v_BKLO.swapaxes(1, 2),
            mask=self.mask[:, None],
            scale=scale,
            implementation="cudnn",
        )


# -- FLOPs of kernels, by the shapes of their operands: programs don't show their inside -----------


FLOATS = ("bf16", "f32")


def _grouped_flops(operands: Sequence[Any], outputs: Sequence[Any], parts: int) -> float:
    """Of rows with their experts' matrices [rows, columns], or of rows with rows, by expert."""
    rows = next(x for x in operands if x.dtype in FLOATS)
    share = 1 / 2 if rows.dims[0] == ROOM else 1 / min(parts, SPARE)
    return 2.0 * share * math.prod(rows.dims) * outputs[0].dims[-1]


def _splash_flops(products: str, seen: float) -> Callable[[Sequence[Any], Sequence[Any]], float]:
    """Of causal attention, or this share of it: `products` names the width that each of its
    products runs over, q for that of keys and v for that of values.
    """

    def flops(operands: Sequence[Any], _: Sequence[Any]) -> float:
        # [.., heads, tokens, width]; behind them segments and what the backward pass is given.
        q, k, v = [x.dims for x in operands if len(x.dims) > 2 and x.dtype in FLOATS][:3]
        widths = sum({"q": q[-1], "v": v[-1]}[name] for name in products)
        return 2.0 * seen * math.prod(q[:-2]) * q[-2] * k[-2] / 2 * widths

    return flops


def seen_share(lengths: Sequence[float], row: int) -> float:
    """Of the causal half of rows that are full of segments of these lengths, what splash's blocks
    within segments come to.
    """
    from r1jax.models.splash import block_of

    block = block_of(row)
    blocks = [length / block + 1 for length in lengths]  # that a segment lies in, in the mean
    seen = sum(number * (number + 1) / 2 for number in blocks) * block**2
    return min(seen / (sum(lengths) * row / 2), 1.0)


def kernel_flops(
    mesh: Mesh, seen: float = 1.0
) -> dict[str, Callable[[Sequence[Any], Sequence[Any]], float]]:
    """(operands, outputs) -> FLOPs of a kernel's call, by what its name begins with; `seen` is
    `seen_share` of the rows.
    """
    # There is room for all rows at each of few parts of the experts, where the mean is a part of
    # them; for SPARE times the mean at each of many; or, of very many rows, for twice the mean.
    grouped = functools.partial(_grouped_flops, parts=mesh.shape["expert"])
    return {
        "splash_mha_fwd": _splash_flops("qv", seen),  # scores, mixed values
        "splash_mha_dq": _splash_flops("qvq", seen),  # scores, gradients of weights, of queries
        "splash_mha_dkv": _splash_flops("qvvq", seen),  # scores, gradients of values, weights, keys
        "gmm": grouped,
        "tgmm": grouped,
    }


def grouped_kernels(config: ModelConfig, mesh: Mesh, *, backward: bool) -> tuple[str, ...]:
    """Names of the kernels that products with experts must show in a program."""
    if choose_grouped(mesh) != MEGABLOX or not any(stack.sparse for stack in config.stacks):
        return ()
    return ("gmm", "tgmm") if backward else ("gmm",)


def packed_kernels(
    config: ModelConfig, mesh: Mesh, kernel: str, *, backward: bool
) -> tuple[str, ...]:
    """Names of all that packed rows must show in a program, with attention of this kernel."""
    grouped = grouped_kernels(config, mesh, backward=backward)
    if kernel != "splash":
        return grouped
    more = ("splash_mha_dq", "splash_mha_dkv") if backward else ()
    return ("splash_mha_fwd", *more, *grouped)
