"""A Hugging Face config.json <-> ModelConfig."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from etils import epath

from r1jax.config import ConfigError, section
from r1jax.files import read_object
from r1jax.models.config import Experts, LatentAttention, ModelConfig, RopeScaling

if TYPE_CHECKING:
    from r1jax.data.tokenizer import Tokenizer

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
}
LATENT = ("deepseek_v2", "deepseek_v3")
QK_NORM = ("qwen3", "qwen3_moe")
# Values that would change the forward pass in a way that ModelConfig cannot say.
ONLY = {
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "use_sliding_window": False,
    "moe_layer_freq": 1,
}  # fmt: skip
ROPE_KEYS = {  # of ours in theirs
    "factor": "factor",
    "original_length": "original_max_position_embeddings",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "attention_factor": "attention_factor",
}
ROPE_FIELDS = {  # that a kind of scaling reads
    "linear": ("factor",),
    "llama3": ("factor", "original_length", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "original_length", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
             "attention_factor"),
}  # fmt: skip


# ---- reading ----


def config_from_hf(directory: epath.PathLike) -> ModelConfig:
    """Raises ConfigError for what the model cannot express."""
    path = epath.Path(directory) / "config.json"
    return config_from_values(read_object(path), str(path))


def config_from_values(values: Mapping[str, Any], path: str) -> ModelConfig:
    """The same of what stands in a config.json."""
    family = values.get("model_type")
    if family not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ConfigError(f"{path}: model_type {family!r} is not supported (it can be {known})")
    for key, value in ONLY.items():
        if values.get(key, value) not in (value, None):
            raise ConfigError(f"{path}: {key} {values[key]!r} is not supported, only {value!r} is")
    keys = _Keys(values, path)
    heads, embed_dim = keys.size("num_attention_heads"), keys.size("hidden_size")
    latent = _latent(keys) if family in LATENT else None
    if latent is not None:
        head_dim, kv_heads = latent.nope_dim + latent.rope_dim, heads
    else:
        # What transformers takes where a file says nothing.
        default = 128 if family == "qwen3" else embed_dim // heads
        head_dim, kv_heads = keys.get("head_dim") or default, keys.get("num_key_value_heads")
    layers, scaling = keys.size("num_hidden_layers"), _rope_scaling(values, path)
    return ModelConfig(
        vocab_size=keys.size("vocab_size"),
        embed_dim=embed_dim,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads or heads,
        head_dim=head_dim,
        ffn_dim=keys.size("intermediate_size"),
        max_length=keys.get("max_position_embeddings", ModelConfig.max_length),
        rope_theta=float(_rope(values).get("rope_theta") or values.get("rope_theta") or 10_000.0),
        norm_eps=keys.get("rms_norm_eps", 1e-6),
        tie_embeddings=keys.get("tie_word_embeddings", False),
        qkv_bias=family == "qwen2",
        qk_norm=family in QK_NORM,
        rope_scaling=scaling,
        latent=latent,
        experts=_EXPERTS[family](keys, layers) if family in _EXPERTS else None,
        mtp=family == "deepseek_v3" and keys.size("num_nextn_predict_layers", 0, 0) > 0,
    )


@dataclasses.dataclass(frozen=True)
class _Keys:
    """A config.json, and its name in messages."""

    values: Mapping[str, Any]
    path: str

    def get(self, key: str, default: Any = None) -> Any:
        """null is as good as nothing."""
        value = self.values.get(key)
        return default if value is None else value

    def size(self, key: str, least: int = 1, default: int | None = None) -> int:
        """A whole number, required where there is no default."""
        value = self.get(key, default)
        if value is None:
            raise ConfigError(f"{self.path}: key {key} is missing")
        if not isinstance(value, int) or value < least:
            raise ConfigError(
                f"{self.path}: {key} {value!r} must be a whole number above {least - 1}"
            )
        return value

    def only(self, **wanted: Any) -> None:
        """Refuses other values."""
        for key, value in wanted.items():
            if self.get(key, value) != value:
                raise ConfigError(
                    f"{self.path}: {key} {self.values[key]!r} is not supported, only {value!r} is"
                )


def _latent(keys: _Keys) -> LatentAttention:
    return LatentAttention(
        kv_rank=keys.size("kv_lora_rank"),
        nope_dim=keys.size("qk_nope_head_dim"),
        rope_dim=keys.size("qk_rope_head_dim"),
        value_dim=keys.size("v_head_dim"),
        q_rank=keys.size("q_lora_rank", least=0, default=0),
        interleaved=keys.get("rope_interleave", True),
    )


def _deepseek_experts(keys: _Keys, layers: int) -> Experts | None:
    v3 = keys.get("model_type") == "deepseek_v3"
    dense = keys.size("first_k_dense_replace", least=0, default=3 if v3 else 0)
    if keys.get("n_routed_experts") is None or dense >= layers:
        return None
    keys.only(scoring_func="sigmoid" if v3 else "softmax")
    method = keys.get("topk_method", "noaux_tc" if v3 else "greedy")
    if method not in ("noaux_tc",) if v3 else method not in ("greedy", "group_limited_greedy"):
        raise ConfigError(f"{keys.path}: topk_method {method!r} is not supported")
    if not v3:  # V2 has the key but no releases, nor transformers, that read it
        keys.only(norm_topk_prob=False)
    grouped = v3 or method == "group_limited_greedy"
    return Experts(
        num_experts=keys.size("n_routed_experts"),
        top_k=keys.size("num_experts_per_tok"),
        ffn_dim=keys.size("moe_intermediate_size"),
        num_shared=keys.size("n_shared_experts", least=0, default=0),
        dense_layers=tuple(range(dense)),
        score="sigmoid" if v3 else "softmax",
        bias=v3,
        normalize=v3 and keys.get("norm_topk_prob", True),
        scale=float(keys.get("routed_scaling_factor", 1.0)),
        groups=keys.size("n_group", default=1) if grouped else 1,
        top_groups=keys.size("topk_group", default=1) if grouped else 1,
    )


def _qwen3_experts(keys: _Keys, layers: int) -> Experts | None:
    step = keys.size("decoder_sparse_step", default=1)
    plain = set(keys.get("mlp_only_layers", []))
    dense = tuple(i for i in range(layers) if i in plain or (i + 1) % step)
    if len(dense) == layers:
        return None
    return Experts(
        num_experts=keys.size("num_experts", default=keys.get("num_local_experts")),
        top_k=keys.size("num_experts_per_tok"),
        ffn_dim=keys.size("moe_intermediate_size"),
        dense_layers=dense,
        normalize=keys.get("norm_topk_prob", False),
    )


_EXPERTS = {
    "qwen3_moe": _qwen3_experts,
    "deepseek_v2": _deepseek_experts,
    "deepseek_v3": _deepseek_experts,
}


def _rope(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Both of the keys for it: transformers 5 calls it rope_parameters."""
    found: Mapping[str, Any] = (values.get("rope_scaling") or {}) | (
        values.get("rope_parameters") or {}
    )
    return found


def _rope_scaling(values: Mapping[str, Any], path: str) -> RopeScaling | None:
    rope = _rope(values)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default" and rope.get("partial_rotary_factor", 1.0) == 1.0:
        return None
    wanted = {"partial_rotary_factor": 1.0, "truncate": True}
    if kind not in ROPE_FIELDS or any(rope.get(key, v) != v for key, v in wanted.items()):
        raise ConfigError(
            f"{path}: RoPE {dict(rope)} is not supported; scaling can be {', '.join(ROPE_FIELDS)}"
        )
    longest = values.get("max_position_embeddings", ModelConfig.max_length)
    found = {name: rope.get(ROPE_KEYS[name]) for name in ROPE_FIELDS[kind]}
    if found["factor"] is None and found.get("original_length"):
        found["factor"] = longest / found["original_length"]
    if "original_length" in found and found["original_length"] is None:
        found["original_length"] = longest
    kept = {name: value for name, value in found.items() if value is not None}
    return section(RopeScaling, {"kind": kind} | kept, f"{path}: rope_scaling")


# ---- writing ----


def hf_config(config: ModelConfig, tokenizer: Tokenizer | None, dtype: str) -> dict[str, Any]:
    """What stands in the config.json; raises ConfigError for a model of no family."""
    family = _family(config)
    values: dict[str, Any] = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "intermediate_size": config.ffn_dim,
        "max_position_embeddings": config.max_length,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "torch_dtype": dtype,
    }
    if config.rope_scaling is not None:
        values["rope_scaling"] = _written_rope(config.rope_scaling)
    if config.latent is None:
        values["head_dim"] = config.head_dim
    else:
        values |= _written_latent(config.latent, family)
    if family in LATENT:
        values |= _written_deepseek(config, family)
    elif config.experts is not None:
        values |= _written_qwen3(config.experts)
    _check_expressible(config, values)
    if tokenizer is not None:
        ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
        values |= {f"{role}_token_id": token for role, token in ids.items()}
        if len(tokenizer.stop_ids) > 1:
            values["eos_token_id"] = list(tokenizer.stop_ids)
    return values


def _family(config: ModelConfig) -> str:
    if config.latent is not None:
        is_v2 = config.experts is not None and config.experts.score == "softmax"
        return "deepseek_v2" if is_v2 else "deepseek_v3"
    if config.experts is not None:
        return "qwen3_moe"
    return "qwen2" if config.qkv_bias else "qwen3" if config.qk_norm else "llama"


def _check_expressible(config: ModelConfig, values: Mapping[str, Any]) -> None:
    """Whoever reads the values must find this very model."""
    family = values["model_type"]
    found = dataclasses.asdict(config_from_values(values, "the export"))
    for name, value in dataclasses.asdict(config).items():
        if found[name] != value:
            raise ConfigError(
                f"no Hugging Face family says all of this model: a {family} has {name}"
                f" {found[name]}, not {value}"
            )
    if family in ("llama", "deepseek_v2") and config.embed_dim % config.num_heads:
        raise ConfigError(
            f"a Hugging Face {family} needs embed_dim {config.embed_dim} divisible by num_heads"
            f" {config.num_heads}"
        )


def _written_rope(scaling: RopeScaling) -> dict[str, Any]:
    read = {ROPE_KEYS[name]: getattr(scaling, name) for name in ROPE_FIELDS[scaling.kind]}
    left_out = {"mscale": 0.0, "mscale_all_dim": 0.0, "attention_factor": None}
    read = {key: value for key, value in read.items() if value != left_out.get(key, ...)}
    return {"rope_type": scaling.kind, "type": scaling.kind} | read


def _written_latent(latent: LatentAttention, family: str) -> dict[str, Any]:
    values = {
        "kv_lora_rank": latent.kv_rank,
        "q_lora_rank": latent.q_rank or None,
        "qk_nope_head_dim": latent.nope_dim,
        "qk_rope_head_dim": latent.rope_dim,
        "v_head_dim": latent.value_dim,
    }
    return values | ({"rope_interleave": latent.interleaved} if family == "deepseek_v3" else {})


def _written_deepseek(config: ModelConfig, family: str) -> dict[str, Any]:
    experts = config.experts
    v3 = family == "deepseek_v3"
    mtp = {"num_nextn_predict_layers": int(config.mtp)} if v3 else {}
    if experts is None:
        return mtp | {"first_k_dense_replace": config.num_layers}
    values = mtp | {
        "n_routed_experts": experts.num_experts,
        "num_experts_per_tok": experts.top_k,
        "moe_intermediate_size": experts.ffn_dim,
        "n_shared_experts": experts.num_shared,
        "first_k_dense_replace": len(experts.dense_layers),
        "moe_layer_freq": 1,
        "scoring_func": experts.score,
        "topk_method": "noaux_tc",
        "norm_topk_prob": experts.normalize,
        "routed_scaling_factor": experts.scale,
        "n_group": experts.groups,
        "topk_group": experts.top_groups,
    }
    if not v3:
        values["topk_method"] = "group_limited_greedy" if experts.groups > 1 else "greedy"
    return values


def _written_qwen3(experts: Experts) -> dict[str, Any]:
    return {
        "num_experts": experts.num_experts,
        "num_experts_per_tok": experts.top_k,
        "moe_intermediate_size": experts.ffn_dim,
        "norm_topk_prob": experts.normalize,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(experts.dense_layers),
    }
