"""Every family against transformers: log-probabilities, greedy tokens, gradients, exports.

Tiny random models in odd shapes; none has a tokenizer.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.machines.mesh import make_mesh
from r1jax.models.transformer import Transformer, forward, head_weights
from r1jax.rollout.config import EngineConfig
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampling import SamplingConfig
from r1jax.weights.hf import open_checkpoint, save_hf
from r1jax.weights.load import open_model

VOCAB = 97
PLAIN = {"rope_type": "default", "rope_theta": 3e4}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e4, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32,
    "beta_fast": 4.0, "beta_slow": 1.0,
}  # fmt: skip
BOTH_MSCALES = {"mscale": 1.0, "mscale_all_dim": 0.8}
MOE = {
    "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "head_dim": 20,
    "hidden_size": 48,
}  # fmt: skip
MLA = {
    "num_key_value_heads": 4, "kv_lora_rank": 24, "q_lora_rank": 20, "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8, "v_head_dim": 10, "n_routed_experts": 8, "num_experts_per_tok": 3,
    "n_shared_experts": 1, "moe_intermediate_size": 24, "first_k_dense_replace": 1, "n_group": 4,
    "topk_group": 2, "routed_scaling_factor": 2.5, "rope_parameters": YARN | BOTH_MSCALES,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama 3.1": ("llama", {"rope_parameters": LLAMA3, "num_key_value_heads": 4}),
    "llama linear": ("llama", {"rope_parameters": PLAIN | {"rope_type": "linear", "factor": 3.0}}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "qwen2 yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 24, "num_key_value_heads": 1}),
    "qwen3-moe": ("qwen3_moe", MOE),
    "qwen3-moe normed": ("qwen3_moe", MOE | {"norm_topk_prob": True, "mlp_only_layers": [1]}),
    "qwen3-moe sparse step": ("qwen3_moe", MOE | {"decoder_sparse_step": 2, "num_experts": 5}),
    "deepseek-v2": ("deepseek_v2", MLA | {"topk_method": "group_limited_greedy"}),
    "deepseek-v2-lite": (
        "deepseek_v2",
        MLA | {"q_lora_rank": None, "n_shared_experts": 2, "routed_scaling_factor": 1.0,
               "rope_parameters": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}},
    ),
    "deepseek-v3": ("deepseek_v3", MLA),
    "deepseek-v3 no dense": ("deepseek_v3", MLA | {"first_k_dense_replace": 0, "n_group": 1,
                                                   "topk_group": 1, "norm_topk_prob": False}),
    "deepseek-v3 all dense": ("deepseek_v3", MLA | {"first_k_dense_replace": 3,
                                                    "q_lora_rank": None}),
    "deepseek-v3 halves": ("deepseek_v3", MLA | {"rope_interleave": False, "qk_rope_head_dim": 6,
                                                 "rope_parameters": PLAIN}),
}  # fmt: skip
pytestmark = pytest.mark.parity


def made_by_transformers(directory: Path, case: str, biased: float = 0.0) -> Any:
    """Saved there, its config.json as older releases have it; with the router's bias moved."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    family, more = CASES[case]
    torch.manual_seed(0)
    given = {
        "vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 56, "initializer_range": 0.2,
        "rope_parameters": PLAIN, "tie_word_embeddings": False, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128,
    } | more  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **given))
    with torch.no_grad():  # norms and biases too, which would be 1 and 0
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(biased + 0.3 * torch.randn_like(buffer))
    model.save_pretrained(directory)
    return model.eval()


def their_logprobs(model: Any, tokens: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        logits = model(torch.from_numpy(tokens).long()).logits
    return torch.log_softmax(logits, dim=-1).numpy()


def our_logits(model: Transformer, params: Any, tokens: Any) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    with jax.default_matmul_precision("highest"):
        output = forward(model, params, tokens, positions, jnp.ones_like(tokens))
        return output.hidden @ head_weights(params)


def our_logprobs(directory: Path, tokens: np.ndarray) -> np.ndarray:
    checkpoint = open_checkpoint(directory)
    params = jax.tree.map(jnp.asarray, checkpoint.read_all())
    return np.asarray(
        jax.nn.log_softmax(our_logits(Transformer(checkpoint.config), params, tokens))
    )


def random_tokens(rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB, (rows, length)).astype(np.int32)


@pytest.mark.parametrize("biased", [0.0, -3.0])
@pytest.mark.parametrize("case", CASES)
def test_logprobs(tmp_path: Path, case: str, biased: float) -> None:
    """Also beyond the original length of scaled RoPE, and where biased scores are negative."""
    if biased and "v3" not in case:
        pytest.skip("no bias")
    model, tokens = made_by_transformers(tmp_path, case, biased), random_tokens(2, 90)
    difference = np.abs(our_logprobs(tmp_path, tokens) - their_logprobs(model, tokens)).max()
    print(f"{case}: largest difference of logprobs {difference:.1e}")
    assert difference < 2e-4


@pytest.mark.parametrize(
    "case",
    ["llama 3.1", "qwen2 yarn", "qwen3-moe normed", "deepseek-v2-lite", "deepseek-v3",
     "deepseek-v3 halves"],
)  # fmt: skip
def test_greedy(tmp_path: Path, case: str) -> None:
    """64 tokens of the engine, through its caches, are those of transformers."""
    import torch

    model, prompts = made_by_transformers(tmp_path, case), random_tokens(2, 9)
    with torch.no_grad():
        tokens = torch.from_numpy(prompts).long()
        generated = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=64,
            eos_token_id=None, pad_token_id=0,
        ).numpy()[:, 9:]  # fmt: skip
    opened = open_model(str(tmp_path))
    mesh = make_mesh(devices=jax.devices()[:1])
    engine = Engine(
        opened.transformer(mesh), [], EngineConfig(bucket=32, chunk=32, compile_ahead=False)
    )
    sampling = SamplingConfig(max_tokens=64, temperature=0.0)
    found = engine.generate(opened.load(mesh, 0), list(prompts), sampling, jax.random.key(0))
    ours = {completion.prompt_index: completion.tokens for completion in found}
    np.testing.assert_array_equal(np.stack([ours[0], ours[1]]), generated)


@pytest.mark.parametrize("case", ["llama 3.1", "qwen3-moe normed", "deepseek-v3"])
def test_gradients(tmp_path: Path, case: str) -> None:
    """Of the NLL, for every parameter."""
    import torch

    model, tokens = made_by_transformers(tmp_path, case), random_tokens(2, 40)
    given = torch.from_numpy(tokens).long()
    model(given, labels=given).loss.backward()
    checkpoint = open_checkpoint(tmp_path)
    ours = Transformer(checkpoint.config)

    def loss(params: Any) -> jax.Array:
        logprobs = jax.nn.log_softmax(our_logits(ours, params, tokens))[:, :-1]
        return -jnp.mean(jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=2))

    grads = jax.grad(loss)(jax.tree.map(jnp.asarray, checkpoint.read_all()))
    save_hf(tmp_path / "grads", checkpoint.config, jax.tree.map(np.asarray, grads), None, "float32")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.zero_()
    model.save_pretrained(tmp_path / "theirs")
    theirs = open_checkpoint(tmp_path / "theirs").read_all()
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(theirs), strict=True):
        scale = max(np.abs(other).max(), 1e-6)
        assert np.abs(one - other).max() < 1e-4 * scale


@pytest.mark.parametrize("case", CASES)
def test_exports(tmp_path: Path, case: str) -> None:
    """Read, written and read again: the same to the bit; transformers opens it and agrees."""
    from transformers import AutoModelForCausalLM

    model, tokens = made_by_transformers(tmp_path / "in", case), random_tokens(2, 90)
    checkpoint = open_checkpoint(tmp_path / "in")
    params = checkpoint.read_all()
    save_hf(tmp_path / "out", checkpoint.config, params, None, "float32", shard_bytes=60_000)
    files = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(files.values())) > 1
    again = open_checkpoint(tmp_path / "out")
    assert again.config == checkpoint.config
    jax.tree.map(np.testing.assert_array_equal, again.read_all(), params)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    difference = their_logprobs(theirs, tokens) - their_logprobs(model, tokens)
    assert np.abs(difference).max() < 1e-5


def with_mtp(directory: Path, model: Any) -> Any:
    """transformers' module with random weights, which join the directory's as DeepSeek has them."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers.modeling_layers import MtpModel

    torch.manual_seed(1)
    mtp = MtpModel(model, 1).eval()
    renamed = {"post_norm": "shared_head.norm", "mtp_block.": ""}
    tensors = load_file(directory / "model.safetensors")
    prefix = f"model.layers.{model.config.num_hidden_layers}."
    with torch.no_grad():
        layer = mtp.layers[0]
        for name, value in [*layer.named_parameters(), *layer.named_buffers()]:
            value.copy_(0.2 * torch.randn_like(value) + ("norm" in name))
            for theirs, released in renamed.items():
                name = name.replace(theirs, released)
            if name == "mlp.experts.gate_up_proj":
                both = zip(("gate", "up"), value.chunk(2, dim=1), strict=True)
                parts = {f"{kind}_proj": matrices for kind, matrices in both}
            elif name == "mlp.experts.down_proj":
                parts = {"down_proj": value}
            else:
                tensors[prefix + name] = value.detach().clone()
                continue
            for kind, matrices in parts.items():
                for i, matrix in enumerate(matrices):
                    tensors[f"{prefix}mlp.experts.{i}.{kind}.weight"] = matrix.clone()
    tensors[prefix + "embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors[prefix + "shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return mtp


@pytest.mark.parametrize("case", ["deepseek-v3", "deepseek-v3 halves"])
def test_multi_token_prediction(tmp_path: Path, case: str) -> None:
    """What is said of the token after the next, and of the next as before."""
    import torch

    model, tokens = made_by_transformers(tmp_path, case), random_tokens(2, 60)
    mtp = with_mtp(tmp_path, model)
    with torch.no_grad():
        given = torch.from_numpy(tokens).long()
        hidden = model.model(given).last_hidden_state[:, :-1]
        positions = torch.arange(1, 60)[None]
        ahead = mtp.forward_layer(0, hidden, positions, None, input_ids=given[:, 1:])
        theirs = torch.log_softmax(model.lm_head(ahead), dim=-1).numpy()
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config.mtp
    params = jax.tree.map(jnp.asarray, checkpoint.read_all())
    positions = jnp.broadcast_to(jnp.arange(60), tokens.shape)
    segments = jnp.ones_like(tokens)
    ours = Transformer(checkpoint.config)
    output = forward(ours, params, tokens, positions, segments, ahead=True)
    assert output.ahead is not None
    logprobs = jax.nn.log_softmax(output.ahead @ head_weights(params))
    assert np.abs(np.asarray(logprobs)[:, :-1] - theirs).max() < 2e-4
    without = forward(ours, params, tokens, positions, segments)
    np.testing.assert_array_equal(output.hidden, without.hidden)
    assert np.abs(our_logprobs(tmp_path, tokens) - their_logprobs(model, tokens)).max() < 2e-4
    save_hf(tmp_path / "out", checkpoint.config, checkpoint.read_all(), None, "float32")
    again = open_checkpoint(tmp_path / "out")
    assert again.config == checkpoint.config
    jax.tree.map(np.testing.assert_array_equal, again.read_all(), checkpoint.read_all())
