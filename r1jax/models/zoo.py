"""The paper's models by name.

The R1-Distill models have the shapes of the models that they were trained from; of those that tie
the head to the embedding they do not.
"""

from __future__ import annotations

from dataclasses import replace

from r1jax.models.config import Experts, LatentAttention, ModelConfig, RopeScaling

_QWEN2 = ModelConfig(
    vocab_size=152_064, embed_dim=3584, num_layers=28, num_heads=28, num_kv_heads=4, head_dim=128,
    ffn_dim=18_944, max_length=131_072, rope_theta=1e6, norm_eps=1e-6, tie_embeddings=False,
    qkv_bias=True,
)  # fmt: skip
_QWEN25_MATH_1_5B = replace(
    _QWEN2, vocab_size=151_936, embed_dim=1536, num_heads=12, num_kv_heads=2, ffn_dim=8960,
    max_length=4096, rope_theta=1e4, tie_embeddings=True,
)  # fmt: skip
_QWEN25_14B = replace(
    _QWEN2, embed_dim=5120, num_layers=48, num_heads=40, num_kv_heads=8, ffn_dim=13_824,
    norm_eps=1e-5,
)  # fmt: skip
_QWEN25_32B = replace(_QWEN25_14B, num_layers=64, ffn_dim=27_648)
_LLAMA31_8B = ModelConfig(
    vocab_size=128_256, embed_dim=4096, num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128,
    ffn_dim=14_336, max_length=131_072, rope_theta=5e5, norm_eps=1e-5, tie_embeddings=False,
    rope_scaling=RopeScaling("llama3", factor=8.0, original_length=8192),
)  # fmt: skip
_LLAMA33_70B = replace(_LLAMA31_8B, embed_dim=8192, num_layers=80, num_heads=64, ffn_dim=28_672)
_DEEPSEEK_V2_LITE = ModelConfig(
    vocab_size=102_400, embed_dim=2048, num_layers=27, num_heads=16, num_kv_heads=16, head_dim=192,
    ffn_dim=10_944, max_length=163_840, rope_theta=1e4, norm_eps=1e-6, tie_embeddings=False,
    rope_scaling=RopeScaling(
        "yarn", factor=40.0, original_length=4096, mscale=0.707, mscale_all_dim=0.707
    ),
    latent=LatentAttention(kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128),
    experts=Experts(num_experts=64, top_k=6, ffn_dim=1408, num_shared=2, dense_layers=(0,)),
)  # fmt: skip
_DEEPSEEK_V3 = replace(
    _DEEPSEEK_V2_LITE, vocab_size=129_280, embed_dim=7168, num_layers=61, num_heads=128,
    num_kv_heads=128, ffn_dim=18_432,
    rope_scaling=RopeScaling(
        "yarn", factor=40.0, original_length=4096, mscale=1.0, mscale_all_dim=1.0
    ),
    latent=LatentAttention(kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128, q_rank=1536),
    experts=Experts(
        num_experts=256, top_k=8, ffn_dim=2048, num_shared=1, dense_layers=(0, 1, 2),
        score="sigmoid", bias=True, normalize=True, scale=2.5, groups=8, top_groups=4,
    ),
)  # fmt: skip


MODELS: dict[str, ModelConfig] = {
    "qwen2.5-math-1.5b": _QWEN25_MATH_1_5B,
    "qwen2.5-math-7b": replace(_QWEN2, max_length=4096, rope_theta=1e4),
    "qwen2.5-14b": _QWEN25_14B,
    "qwen2.5-32b": _QWEN25_32B,
    "llama-3.1-8b": _LLAMA31_8B,
    "llama-3.3-70b": _LLAMA33_70B,
    "r1-distill-qwen-1.5b": replace(_QWEN25_MATH_1_5B, max_length=131_072, tie_embeddings=False),
    "r1-distill-qwen-7b": replace(_QWEN2, rope_theta=1e4),
    "r1-distill-qwen-14b": _QWEN25_14B,
    "r1-distill-qwen-32b": _QWEN25_32B,
    "r1-distill-llama-8b": _LLAMA31_8B,
    "r1-distill-llama-70b": _LLAMA33_70B,
    "deepseek-v2-lite": _DEEPSEEK_V2_LITE,
    "deepseek-v3": _DEEPSEEK_V3,
    "deepseek-r1": _DEEPSEEK_V3,
}
