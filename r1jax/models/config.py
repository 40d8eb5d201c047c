"""The numbers that tell one decoder family from another."""

from __future__ import annotations

from dataclasses import dataclass, fields

from r1jax.config import ConfigError


@dataclass(frozen=True)
class ModelConfig:
    """A pre-norm decoder with RMSNorm, RoPE, grouped-query attention and a gated MLP.

    Llama: the defaults. Qwen2: `qkv_bias`. Qwen3: `qk_norm`.
    """

    vocab_size: int  # V, tokens of the vocabulary
    embed_dim: int  # D, width of the residual stream
    num_layers: int  # decoder blocks
    num_heads: int  # H, of queries
    num_kv_heads: int  # K, of keys and values
    head_dim: int  # N, width of a head
    ffn_dim: int  # F, width of the MLP
    max_length: int = 2048  # the longest sequence the model is meant for, in tokens
    rope_theta: float = 10_000.0  # base of the rotary frequencies
    norm_eps: float = 1e-6  # of RMSNorm
    tie_embeddings: bool = True  # the head is the embedding, transposed
    qkv_bias: bool = False  # Qwen2
    qk_norm: bool = False  # RMSNorm of each head's queries and keys: Qwen3
    scalar_head: bool = False  # a number per token beside the vocabulary: reward and value models

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
                raise ConfigError(f"{field.name} {value} must be above 0")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads {self.num_heads} is not divisible by num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim {self.head_dim} is odd; RoPE needs an even one")
