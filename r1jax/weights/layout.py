"""Where each of our parameters lies in the files of others, and how its axes are merged there.

Those files keep a matrix per layer, and per expert, rows first; we keep one stacked array per kind.

Shape legend: V vocabulary, D model, B two of them, H heads, K kv heads, N head dim, O of a value,
F ffn, E experts (a tensor of the file each), X experts too (side by side); C and R latent vectors.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from r1jax.models.config import ModelConfig
from r1jax.models.moe import ROUTER_BIAS
from r1jax.models.mtp import MTP
from r1jax.models.params import abstract_params
from r1jax.models.transformer import Transformer

Name = tuple[str, ...]  # path in the parameter tree: ("embedding",), ("layers", "query")


@dataclass(frozen=True)
class Layout:
    """One parameter, here and in the files; merged axes of the file stand together."""

    axes: str  # ours, without the stack of layers: "DHN"
    file_axes: tuple[str, ...]  # the file's: ("HN", "D")
    hf: str  # name in Hugging Face directories, with {layer} and {expert}
    gguf: str = ""  # and in GGUF files


TOP = {
    "embedding": Layout("VD", ("V", "D"), "model.embed_tokens.weight", "token_embd.weight"),
    "final_norm": Layout("D", ("D",), "model.norm.weight", "output_norm.weight"),
    "head": Layout("DV", ("V", "D"), "lm_head.weight", "output.weight"),
}
OF_LAYERS = {
    name: Layout(axes, tuple(file_axes.split()), hf, gguf)
    for name, axes, file_axes, hf, gguf in [
        ("attention_norm", "D", "D", "input_layernorm.weight", "attn_norm.weight"),
        ("query", "DHN", "HN D", "self_attn.q_proj.weight", "attn_q.weight"),
        ("key", "DKN", "KN D", "self_attn.k_proj.weight", "attn_k.weight"),
        ("value", "DKN", "KN D", "self_attn.v_proj.weight", "attn_v.weight"),
        ("query_bias", "HN", "HN", "self_attn.q_proj.bias", "attn_q.bias"),
        ("key_bias", "KN", "KN", "self_attn.k_proj.bias", "attn_k.bias"),
        ("value_bias", "KN", "KN", "self_attn.v_proj.bias", "attn_v.bias"),
        ("query_norm", "N", "N", "self_attn.q_norm.weight", "attn_q_norm.weight"),
        ("key_norm", "N", "N", "self_attn.k_norm.weight", "attn_k_norm.weight"),
        ("query_down", "DR", "R D", "self_attn.q_a_proj.weight", ""),
        ("query_latent_norm", "R", "R", "self_attn.q_a_layernorm.weight", ""),
        ("query_up", "RHN", "HN R", "self_attn.q_b_proj.weight", ""),
        ("kv_down", "DC", "C D", "self_attn.kv_a_proj_with_mqa.weight", ""),
        ("kv_latent_norm", "C", "C", "self_attn.kv_a_layernorm.weight", ""),
        ("kv_up", "CHN", "HN C", "self_attn.kv_b_proj.weight", ""),
        ("output", "HOD", "D HO", "self_attn.o_proj.weight", "attn_output.weight"),
        ("ffn_norm", "D", "D", "post_attention_layernorm.weight", "ffn_norm.weight"),
        ("gate", "DF", "F D", "mlp.gate_proj.weight", "ffn_gate.weight"),
        ("up", "DF", "F D", "mlp.up_proj.weight", "ffn_up.weight"),
        ("down", "FD", "D F", "mlp.down_proj.weight", "ffn_down.weight"),
        ("router", "DX", "X D", "mlp.gate.weight", ""),
        (ROUTER_BIAS, "X", "X", "mlp.gate.e_score_correction_bias", ""),
        ("expert_gate", "EDF", "F D", "mlp.experts.{expert}.gate_proj.weight", ""),
        ("expert_up", "EDF", "F D", "mlp.experts.{expert}.up_proj.weight", ""),
        ("expert_down", "EFD", "D F", "mlp.experts.{expert}.down_proj.weight", ""),
        ("shared_gate", "DF", "F D", "mlp.shared_experts.gate_proj.weight", ""),
        ("shared_up", "DF", "F D", "mlp.shared_experts.up_proj.weight", ""),
        ("shared_down", "FD", "D F", "mlp.shared_experts.down_proj.weight", ""),
        ("embedding_norm", "D", "D", "enorm.weight", ""),
        ("hidden_norm", "D", "D", "hnorm.weight", ""),
        ("combine", "BD", "D B", "eh_proj.weight", ""),
        ("mtp_norm", "D", "D", "shared_head.norm.weight", ""),
    ]
}


@dataclass(frozen=True)
class Parameter:
    """One of a model's parameters, in the tree of scanned layers."""

    name: Name
    shape: tuple[int, ...]
    layout: Layout
    layers: range | None  # of the file that it is of; None = it is of no layer
    stacked: bool  # those layers lie along its first axis

    @property
    def lead(self) -> int:
        """Axes in front, for every index of which the file has a tensor."""
        return self.stacked + self.layout.axes.startswith("E")

    @property
    def axes(self) -> str:
        """Of each of the file's tensors, in our order."""
        return self.layout.axes.removeprefix("E")

    def matrices(self) -> Iterator[tuple[int, ...]]:
        """All indices of the leading axes."""
        return itertools.product(*map(range, self.shape[: self.lead]))

    def file_name(self, kind: str, index: tuple[int, ...]) -> str:
        """Of the tensor with this index of the leading axes, in files of kind `hf` or `gguf`."""
        pattern: str = getattr(self.layout, kind)
        if self.layers is None:
            return pattern
        where = {"layer": self.layer(index), "expert": index[-1] if index else 0}
        return (LAYER_PREFIX[kind] + pattern).format(**where)

    def layer(self, index: tuple[int, ...]) -> int:
        """The file's number for it; -1 = it is of no layer."""
        if self.layers is None:
            return -1
        return self.layers[index[0] if self.stacked else 0]

    @functools.cached_property
    def sizes(self) -> dict[str, int]:
        """Of the axes of a tensor of the file."""
        return dict(zip(self.axes, self.shape[self.lead :], strict=True))

    @property
    def file_shape(self) -> tuple[int, ...]:
        return tuple(
            math.prod(self.sizes[axis] for axis in merged) for merged in self.layout.file_axes
        )

    def to_file(self, matrix: np.ndarray) -> np.ndarray:
        """Our axes -> the file's, contiguous (save_file writes the buffer as it lies)."""
        order = [self.axes.index(axis) for axis in "".join(self.layout.file_axes)]
        return np.ascontiguousarray(matrix.transpose(order).reshape(self.file_shape))


LAYER_PREFIX = {"hf": "model.layers.{layer}.", "gguf": "blk.{layer}."}


def parameters(config: ModelConfig) -> dict[Name, Parameter]:
    """All that files hold of a model with this config."""
    return dict(_parameters(config))


@functools.lru_cache(maxsize=8)
def _parameters(config: ModelConfig) -> tuple[tuple[Name, Parameter], ...]:
    shapes = abstract_params(Transformer(config))
    layers = {stack.name: stack.layers for stack in config.stacks}
    layers[MTP] = range(config.num_layers, config.num_layers + 1)  # as released files have it

    def one(path: Any, shape: Any) -> Parameter:
        name = tuple(key.key for key in path)
        layout = OF_LAYERS[name[-1]] if name[0] in layers else TOP[name[-1]]
        stacked = name[0] in layers and name[0] != MTP
        return Parameter(name, shape.shape, layout, layers.get(name[0]), stacked)

    found = jax.tree_util.tree_leaves_with_path(shapes)
    return tuple((p.name, p) for p in (one(path, shape) for path, shape in found))
