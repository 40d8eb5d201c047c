"""Which attention over packed rows runs where, and the kernels of others."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from r1jax.config import ConfigError
from r1jax.machines.mesh import spec_of
from r1jax.models.config import ModelConfig
from r1jax.models.packed_attention import ATTENTION, Span

SPLASH_BLOCK = 128  # lanes of a TPU; the kernel's blocks are multiples of it


def choose_kernel(config: ModelConfig, mesh: Mesh | None, shared_prompts: bool = False) -> str:
    """What attention over packed rows runs on this mesh: config.attention, "auto" resolved.

    The splash kernel compares segments and nothing else, so it cannot run rows in which completions
    share a prompt: "auto" then means xla, and "splash" is an error. cuDNN wants 16 bits.
    """
    platform = "cpu" if mesh is None else mesh.devices.flat[0].platform
    gpu = platform in ("gpu", "cuda")
    kernel = config.attention
    if kernel == "auto" and platform == "tpu" and not shared_prompts:
        return "splash"
    if kernel == "auto":
        return "cudnn" if gpu and config.dtype == "bfloat16" else "xla"
    if kernel == "splash" and shared_prompts:
        raise ConfigError(
            "attention 'splash' cannot run rows in which completions share a prompt: set"
            " config.share_prompts to False, or attention to 'xla'"
        )
    if (kernel == "splash" and platform != "tpu") or (kernel == "cudnn" and not gpu):
        wanted = "TPUs" if kernel == "splash" else "GPUs"
        raise ConfigError(f"attention {kernel!r} runs on {wanted}; the mesh is of {platform}s")
    return kernel


def attend_by_segments(
    q_BLHN: jax.Array,
    k_BKLN: jax.Array,
    v_BKLN: jax.Array,
    segment_ids_BL: jax.Array,
    mesh: Mesh | None,
    span: Span | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Causal attention within segments by the splash kernel for TPUs -> [B, L, H, N].

    It never holds the scores, and skips the blocks above the diagonal and, of a `span` without a
    prefix, those before the window. Each device runs it on its own rows and heads. `interpret` runs
    it on any platform, slowly.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # takes a second

    length = q_BLHN.shape[1]
    padded = -(-length // SPLASH_BLOCK) * SPLASH_BLOCK
    block = min(padded, SPLASH_BLOCK * (4 if padded % (4 * SPLASH_BLOCK) == 0 else 1))
    pad = padded - length
    visible: Any = splash.CausalMask((padded, padded))
    if span is not None and span.prefix == 0:
        visible = splash.LocalMask((padded, padded), (span.window - 1, 0), 0)

    def one_device(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
        mask = splash.MultiHeadMask([visible] * q.shape[1])
        sizes = splash.BlockSizes(*(block,) * 8)
        kernel = splash.make_splash_mha(
            mask,
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            residual_checkpoint_name=ATTENTION,
            interpret=interpret,
        )
        ids = splash.SegmentIds(q=segments, kv=segments)
        return jax.vmap(kernel)(q, k, v, ids)

    q_BHLN = q_BLHN.swapaxes(1, 2) * q_BLHN.shape[-1] ** -0.5
    q, k, v = (jnp.pad(x, [(0, 0), (0, 0), (0, pad), (0, 0)]) for x in (q_BHLN, k_BKLN, v_BKLN))
    segments = jnp.pad(segment_ids_BL, [(0, 0), (0, pad)])
    if mesh is not None and mesh.size > 1:
        heads, kv_heads, rows = (
            spec_of(("batch", "heads", None, None)),
            spec_of(("batch", "kv_heads", None, None)),
            spec_of(("batch", None)),
        )
        one_device = jax.shard_map(
            one_device,
            mesh=mesh,
            in_specs=(heads, kv_heads, kv_heads, rows),
            out_specs=heads,
            check_vma=False,
        )
    mixed_BHLN = one_device(q, k, v, segments)
    return mixed_BHLN[:, :, :length].swapaxes(1, 2).astype(v_BKLN.dtype)


def attend_by_cudnn(
    q_BLHN: jax.Array, k_BKLN: jax.Array, v_BKLN: jax.Array, mask_BLL: jax.Array
) -> jax.Array:
    """Masked attention by cuDNN's kernel for NVIDIA GPUs (bfloat16 or float16)."""
    return jax.nn.dot_product_attention(
        q_BLHN,
        k_BKLN.swapaxes(1, 2),
        v_BKLN.swapaxes(1, 2),
        mask=mask_BLL[:, None],
        implementation="cudnn",
    )
