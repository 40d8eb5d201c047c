"""The numbers that tell one decoder family from another."""

from __future__ import annotations

from dataclasses import dataclass

from r1jax.config import ConfigError


@dataclass(frozen=True)
class ModelConfig:
    """A pre-norm decoder with RMSNorm, RoPE, grouped-query attention and a gated MLP.

    Llama: the defaults. Qwen2: `qkv_bias`. Qwen3: `qk_norm`.
    """

    vocab_size: int  # V
    embed_dim: int  # D
    num_layers: int
    num_heads: int  # H
    num_kv_heads: int  # K
    head_dim: int  # N
    ffn_dim: int  # F
    max_length: int = 2048  # the longest sequence the model is meant for, in tokens
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    tie_embeddings: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    scalar_head: bool = False  # a number per token beside the vocabulary: reward and value models

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads {self.num_heads} is not divisible by num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim {self.head_dim} is odd; RoPE needs an even one")
