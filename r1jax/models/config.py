"""The numbers that tell one decoder family from another."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from r1jax.config import Bounds, ConfigError, Count, NotNegative, Positive, Size


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched, for sequences longer than those of pretraining."""

    kind: Literal["linear", "llama3", "yarn"]  # by whose formula
    factor: Annotated[float, Bounds(least=1)]  # how much longer
    original_length: Size = 1  # of pretraining's sequences, in tokens; nothing to `linear`
    low_freq_factor: Positive = (
        1.0  # llama3: waves longer than original_length / this are stretched
    )
    high_freq_factor: Positive = 4.0  # and those shorter than original_length / this are not
    beta_fast: Positive = 32.0  # yarn: what turns more often than this in original_length stays
    beta_slow: Positive = 1.0  # and what turns less often than this is stretched whole
    mscale: NotNegative = 0.0  # yarn: what grows with the logarithm of the factor (`scaled_by`)
    mscale_all_dim: NotNegative = 0.0  # the same, in the scores of latent attention
    # yarn, of sines and cosines; None is the YaRN paper's, by the factor and the two above.
    attention_factor: Positive | None = None

    def __post_init__(self) -> None:
        if self.kind == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ConfigError(
                f"low_freq_factor {self.low_freq_factor} must be below high_freq_factor"
                f" {self.high_freq_factor}"
            )

    def scaled_by(self, mscale: float) -> float:
        """0.1 mscale ln(factor) + 1: the YaRN paper's 1 / sqrt(t)."""
        return 0.1 * mscale * math.log(self.factor) + 1.0

    @property
    def amplitude(self) -> float:
        """Of sines and cosines."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self.scaled_by(self.mscale) / self.scaled_by(self.mscale_all_dim)
        return self.scaled_by(1.0)


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, section 2.1): keys and values of all heads come
    from one latent vector a token, and one rotated key is shared by all heads.
    """

    kv_rank: Size  # C, width of the latent vector
    nope_dim: Size  # of a head's query and key, the part without a position
    rope_dim: Size  # P, and the part with one
    value_dim: Size  # O, of a head's value
    q_rank: Count = 0  # R, of the queries' own latent vector; 0 = queries straight from x
    interleaved: bool = True  # neighbouring dimensions turn together, not those half a width apart


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in the place of the MLP (DeepSeekMoE; Qwen3-MoE)."""

    num_experts: Size  # E, routed
    top_k: Size  # routed experts of a token
    ffn_dim: Size  # F, width of one
    num_shared: Count = 0  # that every token sees: one MLP, that many times as wide
    dense_layers: tuple[int, ...] = ()  # which layers have a plain MLP instead
    score: Literal["softmax", "sigmoid"] = "softmax"  # of router logits
    bias: bool = False  # added to the scores when experts are chosen, not to their weights (V3)
    normalize: bool = False  # the weights of the chosen experts sum to 1
    scale: Positive = 1.0  # and are multiplied by this
    groups: Size = 1  # of experts; a token chooses among the best `top_groups` of them
    top_groups: Size = 1  # how many of them

    def __post_init__(self) -> None:
        if self.num_experts % self.groups:
            raise ConfigError(
                f"num_experts {self.num_experts} is not divisible by groups {self.groups}"
            )
        if self.top_groups > self.groups:
            raise ConfigError(f"top_groups {self.top_groups} is above groups {self.groups}")
        if self.top_k > (most := self.top_groups * (self.num_experts // self.groups)):
            raise ConfigError(f"top_k {self.top_k} is above the {most} experts to choose from")


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (Hu et al. 2021), which are trained instead of the model's matrices."""

    rank: Size = 16  # r, columns of A and rows of B
    alpha: Positive = 32.0  # what an adapter adds is multiplied by alpha / rank
    # The matrices that have one: query, key, ...; where none is named, all of the attention and of
    # the plain MLP.
    targets: tuple[str, ...] = ()

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class Stack:
    """Layers of one kind behind each other, whose parameters lie stacked."""

    name: str  # of their parameters
    layers: range
    sparse: bool  # experts instead of a plain MLP


@dataclass(frozen=True)
class ModelConfig:
    """A pre-norm decoder with RMSNorm, RoPE, grouped-query attention and a gated MLP.

    Llama: the defaults. Qwen2: `qkv_bias`. Qwen3: `qk_norm`. Qwen3-MoE: `experts` besides.
    DeepSeek-V2, V3 and R1: `latent` and `experts`; the latter two also `mtp`. With `lora`, adapters
    stand beside the matrices of its layers.
    """

    vocab_size: int  # V, tokens of the vocabulary
    embed_dim: int  # D, width of the residual stream
    num_layers: int  # decoder blocks
    num_heads: int  # H, of queries
    num_kv_heads: int  # K, of keys and values
    head_dim: int  # N, width of a head (with `latent`, of its queries and keys)
    ffn_dim: int  # F, width of the MLP
    max_length: int = 2048  # the longest sequence the model is meant for, in tokens
    rope_theta: float = 10_000.0  # base of the rotary frequencies
    norm_eps: float = 1e-6  # of RMSNorm
    tie_embeddings: bool = True  # the head is the embedding, transposed
    qkv_bias: bool = False  # Qwen2
    qk_norm: bool = False  # RMSNorm of each head's queries and keys: Qwen3
    scalar_head: bool = False  # a number per token beside the vocabulary: reward and value models
    rope_scaling: RopeScaling | None = None
    latent: LatentAttention | None = None
    experts: Experts | None = None
    mtp: bool = False  # multi-token prediction: a further block that predicts the token after next
    lora: Lora | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
                raise ConfigError(f"{field.name} {value} must be above 0")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads {self.num_heads} is not divisible by num_kv_heads {self.num_kv_heads}"
            )
        if self.rope_dim % 2:
            name = "latent.rope_dim" if self.latent else "head_dim"
            raise ConfigError(f"{name} {self.rope_dim} is odd; RoPE needs an even one")
        if self.latent is not None:
            self._check_latent(self.latent)
        if self.experts and any(i >= self.num_layers for i in self.experts.dense_layers):
            raise ConfigError(
                f"experts.dense_layers {list(self.experts.dense_layers)} must be below num_layers"
                f" {self.num_layers}"
            )
        for name in self.lora.targets if self.lora else ():
            if name not in self.projected:
                raise ConfigError(
                    f"lora.targets: {name!r} is no matrix of this model that an adapter can stand"
                    f" beside; those are {', '.join(self.projected)}"
                )

    def _check_latent(self, latent: LatentAttention) -> None:
        if self.head_dim != (both := latent.nope_dim + latent.rope_dim):
            raise ConfigError(f"head_dim {self.head_dim} must be nope_dim + rope_dim = {both}")
        if self.num_kv_heads != self.num_heads:
            raise ConfigError(
                f"num_kv_heads {self.num_kv_heads} must be num_heads {self.num_heads}: latent"
                " attention has no groups"
            )
        if self.qkv_bias or self.qk_norm:
            raise ConfigError("latent attention has neither qkv_bias nor qk_norm")

    @property
    def rope_dim(self) -> int:
        """How much of a head is rotated by its position."""
        return self.latent.rope_dim if self.latent else self.head_dim

    @property
    def value_dim(self) -> int:
        """O, width of a head's value"""
        return self.latent.value_dim if self.latent else self.head_dim

    @property
    def score_scale(self) -> float:
        """What products of queries and keys are multiplied by before the softmax."""
        stretched = self.rope_scaling
        if self.latent and stretched and stretched.mscale_all_dim:
            return self.head_dim**-0.5 * stretched.scaled_by(stretched.mscale_all_dim) ** 2
        return self.head_dim**-0.5

    @property
    def projected(self) -> tuple[str, ...]:
        """The matrices that layers multiply by with `Layer.project`: those adapters can be of."""
        names = ["query", "key", "value"]
        if self.latent:
            names = ["query_down", "query_up"] if self.latent.q_rank else ["query"]
            names.append("kv_down")
        mlp, sparse = ["gate", "up", "down"], {stack.sparse for stack in self.stacks}
        shared = self.experts is not None and self.experts.num_shared > 0
        names += ["output", *(mlp if False in sparse else ())]
        names += [f"shared_{name}" for name in mlp] if shared and True in sparse else []
        return tuple(names)

    @property
    def adapted(self) -> tuple[str, ...]:
        """The matrices that have an adapter."""
        if self.lora is None:
            return ()
        plain = tuple(name for name in self.projected if not name.startswith("shared_"))
        return self.lora.targets or plain

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """The layers in order, those of one kind together."""
        dense = set(range(self.num_layers) if self.experts is None else self.experts.dense_layers)
        found: list[Stack] = []
        for i in range(self.num_layers):
            sparse = i not in dense
            if found and found[-1].sparse == sparse:
                start = found.pop().layers.start
            else:
                start = i
            found.append(Stack(f"layers_{start}_{i}", range(start, i + 1), sparse))
        if len(found) == 1:
            return (Stack("layers", found[0].layers, found[0].sparse),)
        return tuple(found)
