import json
from dataclasses import asdict, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from helpers import save_model
from safetensors.numpy import load_file, save_file

from r1jax.config import ConfigError, DataError
from r1jax.machines.mesh import make_mesh
from r1jax.models.config import ModelConfig
from r1jax.models.layouts import Compute, unstack_layers
from r1jax.models.transformer import Transformer, head_weights
from r1jax.weights.checkpoint import write_model_json
from r1jax.weights.hf import open_checkpoint, save_hf
from r1jax.weights.hf_config import config_from_hf
from r1jax.weights.layout import parameters
from r1jax.weights.load import open_model
from r1jax.weights.safetensors_file import SafetensorsFile

TINY = ModelConfig(
    vocab_size=40, embed_dim=16, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6, ffn_dim=20
)
FAMILIES = {
    "llama": replace(TINY, rope_theta=500.0, tie_embeddings=False),
    "qwen2": replace(TINY, qkv_bias=True),
    "qwen3": replace(TINY, qk_norm=True, norm_eps=1e-5, tie_embeddings=False),
}


def random_params(config: ModelConfig, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    flat = {
        name: rng.normal(size=parameter.shape).astype(np.float32)
        for name, parameter in parameters(config).items()
    }
    return traverse_util.unflatten_dict(flat)


def export(directory: Path, config: ModelConfig = TINY, dtype: str = "float32") -> dict:
    params = random_params(config)
    save_hf(directory, config, params, None, dtype)
    return params


def edit_tensors(directory: Path, **changes: np.ndarray | None) -> None:
    """Sets (or with None drops) tensors; __ stands for a dot."""
    tensors = load_file(directory / "model.safetensors")
    for name, value in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if value is not None:
            tensors[name.replace("__", ".")] = value
    save_file(tensors, directory / "model.safetensors")


def edit_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_is_read_back(tmp_path: Path, family: str) -> None:
    params = export(tmp_path, FAMILIES[family])
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == FAMILIES[family]
    jax.tree.map(np.testing.assert_array_equal, checkpoint.read_all(), params)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == family


def test_layout_in_the_file(tmp_path: Path) -> None:
    """Row h * N + n of q_proj holds what the model multiplies into head h, dimension n."""
    params = export(tmp_path, FAMILIES["qwen2"])
    layers, tensors = params["layers"], load_file(tmp_path / "model.safetensors")
    q = tensors["model.layers.1.self_attn.q_proj.weight"]
    assert q[2 * 6 + 5, 7] == layers["query"][1, 7, 2, 5]
    assert tensors["model.layers.1.self_attn.k_proj.bias"][6 + 4] == layers["key_bias"][1, 1, 4]
    o = tensors["model.layers.2.self_attn.o_proj.weight"]
    assert o[3, 3 * 6 + 1] == layers["output"][2, 3, 1, 3]
    assert tensors["model.layers.0.mlp.down_proj.weight"][5, 19] == layers["down"][0, 19, 5]
    assert tensors["model.layers.0.mlp.gate_proj.weight"][19, 5] == layers["gate"][0, 5, 19]
    assert tensors["model.embed_tokens.weight"][39, 3] == params["embedding"][39, 3]
    assert "lm_head.weight" not in tensors


def test_bfloat16_and_jax_arrays(tmp_path: Path) -> None:
    params = jax.tree.map(jnp.asarray, random_params(TINY))
    save_hf(tmp_path, TINY, params, None)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)
    read = open_checkpoint(tmp_path).read_all()
    jax.tree.map(np.testing.assert_array_equal, read, rounded)
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(read))
    tensors = load_file(tmp_path / "model.safetensors")
    assert all(x.dtype == ml_dtypes.bfloat16 for x in tensors.values())


def test_a_model_with_its_layers_apart(tmp_path: Path) -> None:
    """scan_layers=False: read from a file of stacked ones, and back."""
    params, mesh = export(tmp_path / "hf"), make_mesh({"tensor": 2, "data": -1})
    apart = open_model(str(tmp_path / "hf"), {"scan_layers": False}).load(mesh, 0)
    jax.tree.map(np.testing.assert_array_equal, apart, unstack_layers(params, TINY))
    save_model(tmp_path / "ours", apart, asdict(TINY) | {"scan_layers": False})
    again = open_model(str(tmp_path / "ours")).load(mesh, 0)
    jax.tree.map(np.testing.assert_array_equal, again, apart)
    stacked = open_model(str(tmp_path / "ours"), {"scan_layers": True}).load(mesh, 0)
    jax.tree.map(np.testing.assert_array_equal, stacked, params)


def test_what_a_model_is_and_how_it_is_computed_are_set_together(tmp_path: Path) -> None:
    """By an override, and by model.json, which has the keys of both; a wrong one is refused."""
    export(tmp_path / "hf")
    opened = open_model(str(tmp_path / "hf"), {"dtype": "bfloat16", "max_length": 77})
    assert opened.config == replace(TINY, max_length=77)
    assert opened.compute == Compute(dtype="bfloat16")
    earlier = {"fused": False, "weights_left": False}  # keys that are no more
    write_model_json(tmp_path, opened.fields | earlier)
    again = open_model(str(tmp_path), {"remat": "dots", "attention": "xla"})
    assert again.config == opened.config
    assert again.compute == Compute("bfloat16", "dots", "xla")
    with pytest.raises(ConfigError, match=r"unknown key config.model.override.dtyp; did you mean"):
        open_model(str(tmp_path / "hf"), {"dtyp": "bfloat16"})


INDICES = {
    ("embedding",): [(slice(8, 24), slice(4, 12)), (slice(None), slice(0, 8))],
    ("head",): [(slice(4, 12), slice(8, 24))],
    ("final_norm",): [(slice(3, 9),)],
    ("layers", "query"): [
        (slice(1, 3), slice(4, 8), slice(1, 3), slice(None)),
        (slice(0, 3, None), slice(None, 8), slice(2, None), slice(2, 5)),
    ],
    ("layers", "output"): [(slice(None), slice(1, 2), slice(1, 4), slice(4, 16))],
    ("layers", "value_bias"): [(slice(2, 3), slice(1, 2), slice(None))],
    ("layers", "down"): [(slice(None), slice(5, 10), slice(8, 16))],
}


def test_read_slice_is_a_slice_of_read(tmp_path: Path) -> None:
    config = replace(FAMILIES["qwen2"], tie_embeddings=False)
    export(tmp_path, config)
    checkpoint = open_checkpoint(tmp_path)
    for name, indices in INDICES.items():
        for index in indices:
            wanted = checkpoint.read(name)[index]
            np.testing.assert_array_equal(checkpoint.read_slice(name, index), wanted)


def test_read_slice_fetches_only_the_slice(tmp_path: Path) -> None:
    export(tmp_path)
    checkpoint, fetched = open_checkpoint(tmp_path), []

    def fetch(name: str, index: list[slice]) -> np.ndarray:
        values = checkpoint.fetch(name, index)
        fetched.append((name, values.shape))
        return values

    index = (slice(1, 2), slice(0, 8), slice(2, 4), slice(None))
    replace(checkpoint, fetch=fetch).read_slice(("layers", "query"), index)
    assert fetched == [("model.layers.1.self_attn.q_proj.weight", (2 * 6, 8))]


def test_sharded_files(tmp_path: Path) -> None:
    params = export(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file_name, part in parts.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file_name)
    weight_map = {name: file_name for file_name, part in parts.items() for name in part}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    jax.tree.map(np.testing.assert_array_equal, open_checkpoint(tmp_path).read_all(), params)

    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(DataError, match="model-2"):
        open_checkpoint(tmp_path)


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    export(tmp_path)
    save_file({"model.norm.weight": np.ones(16, np.float32)}, tmp_path / "more.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {"a": "whole.safetensors", "b": "more.safetensors"}})
    )
    open_checkpoint(tmp_path)  # a stale index, as transformers sees it
    (tmp_path / "model.safetensors").rename(tmp_path / "whole.safetensors")
    with pytest.raises(DataError, match=r"model\.norm\.weight is set twice"):
        open_checkpoint(tmp_path)
    index.write_text("{}")
    with pytest.raises(DataError, match=r"index\.json has no weight_map"):
        open_checkpoint(tmp_path)
    index.unlink()
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(DataError, match=r"pytorch_model\.bin but no model\.safetensors.*save_pret"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", r"config\.json is a JSON list, expected an object"),
        ('{"model_type": "llama", "num_attention_heads": 0}', "num_attention_heads 0 must be"),
        ("[" * 100_000, r"config\.json is not JSON"),
    ],
)
def test_a_config_json_that_cannot_be(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises((ConfigError, DataError), match=expected):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__norm__weight": None}, r"lacks model\.norm\.weight"),
        (
            {"model__layers__0__mlp__up_proj__bias": np.ones(20, np.float32)},
            r"not ask for: model\.layers\.0\.mlp\.up_proj\.bias",
        ),
        ({"model__norm__weight": np.ones(15, np.float32)}, r"shape \(15,\).*\(16,\)"),
        ({"model__norm__weight": np.ones(16, np.int8)}, "is I8"),
        ({"lm_head__weight": np.ones((40, 16), np.float32)}, "lm_head.weight differs"),
    ],
)
def test_tensors_that_do_not_fit(
    tmp_path: Path, changes: dict[str, np.ndarray | None], message: str
) -> None:
    export(tmp_path)
    edit_tensors(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        open_checkpoint(tmp_path)


def test_harmless_extras(tmp_path: Path) -> None:
    """A stored copy of a tied head, and the buffer that old Llama files carry."""
    params = export(tmp_path)
    inv_freq = {"model__layers__0__self_attn__rotary_emb__inv_freq": np.ones(3, np.float32)}
    edit_tensors(tmp_path, lm_head__weight=params["embedding"], **inv_freq)
    assert "head" not in open_checkpoint(tmp_path).read_all()


def float8(directory: Path, name: str, matrix: np.ndarray, side: int) -> np.ndarray:
    """Stores the matrix in blocks of float8 with a scale each -> what that stands for."""
    rows, columns = matrix.shape
    scales = np.empty((-(-rows // side), -(-columns // side)), np.float32)
    stored = np.empty(matrix.shape, ml_dtypes.float8_e4m3fn)
    meant = np.empty(matrix.shape, np.float32)
    for i, j in np.ndindex(*scales.shape):
        block = np.s_[i * side : (i + 1) * side, j * side : (j + 1) * side]
        scales[i, j] = np.abs(matrix[block]).max() / 448
        stored[block] = (matrix[block] / scales[i, j]).astype(stored.dtype)
        meant[block] = stored[block].astype(np.float32) * scales[i, j]
    path = directory / "model.safetensors"
    tensors = {name: stored_as(x) for name, x in load_file(path).items()}
    tensors |= {name: stored_as(stored), f"{name}_scale_inv": stored_as(scales)}
    write_safetensors(path, tensors)
    return meant


def stored_as(x: np.ndarray) -> tuple[str, np.ndarray]:
    kinds = {"float8_e4m3fn": "F8_E4M3", "float32": "F32", "bfloat16": "BF16"}
    return kinds[x.dtype.name], np.ascontiguousarray(x)


def write_safetensors(path: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> None:
    """By hand: numpy has no float8 for the library."""
    header, end = {}, 0
    for name, (kind, x) in tensors.items():
        header[name] = {"dtype": kind, "shape": x.shape, "data_offsets": [end, end + x.nbytes]}
        end += x.nbytes
    text = json.dumps(header).encode()
    content = b"".join(x.tobytes() for _, x in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)


def test_float8_in_blocks(tmp_path: Path) -> None:
    """As DeepSeek-V3 is released; blocks at the edges are smaller. Parts of it are read alone."""
    params = export(tmp_path)
    edit_config(tmp_path, quantization_config={"quant_method": "fp8", "weight_block_size": [8, 8]})
    name = "model.layers.1.mlp.up_proj.weight"  # [20, 16]
    meant = float8(tmp_path, name, params["layers"]["up"][1].T, side=8)
    checkpoint = open_checkpoint(tmp_path)
    up = checkpoint.read(("layers", "up"))
    np.testing.assert_array_equal(up[1], meant.T)
    np.testing.assert_array_equal(up[0], params["layers"]["up"][0])
    assert 0 < np.abs(up[1] - params["layers"]["up"][1]).max() < 0.15
    part = (slice(1, 2), slice(3, 11), slice(9, 18))
    np.testing.assert_array_equal(checkpoint.read_slice(("layers", "up"), part), up[part])


@pytest.mark.parametrize(
    ("quantization", "change", "message"),
    [
        ({"quant_method": "fp8"}, {}, "quantization_config .*weight_block_size"),
        ({"quant_method": "awq", "weight_block_size": [8, 8]}, {}, "only float8 weights in blocks"),
        (
            {"quant_method": "fp8", "weight_block_size": [8, 4]},
            {},
            r"up_proj.weight_scale_inv has shape \(3, 2\), blocks of \[8, 4\] ask for \(3, 4\)",
        ),
        (
            {"quant_method": "fp8", "weight_block_size": [8, 8]},
            {"model.norm.weight_scale_inv": ("F32", np.ones(2, np.float32))},
            "tensor model.norm.weight has scales without float8",
        ),
    ],
)
def test_float8_that_does_not_fit(
    tmp_path: Path, quantization: dict[str, object], change: dict, message: str
) -> None:
    params = export(tmp_path)
    edit_config(tmp_path, quantization_config=quantization)
    float8(tmp_path, "model.layers.1.mlp.up_proj.weight", params["layers"]["up"][1].T, side=8)
    path = tmp_path / "model.safetensors"
    file = SafetensorsFile(path)
    tensors = {name: (t.dtype, file.read(name)) for name, t in file.tensors.items()}
    write_safetensors(path, tensors | change)
    with pytest.raises((ConfigError, DataError), match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma3"}, "model_type 'gemma3'"),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 8.0}},
            "dynamic.* linear, llama3, yarn",
        ),
        ({"rope_scaling": {"type": "linear"}}, r"rope_scaling\.factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, r"factor 0\.5 must be at least 1"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4, "truncate": False}}, "truncate"),
        ({"rope_scaling": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": None}, "hidden_size is missing"),
    ],
)
def test_configs_that_are_not_supported(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    export(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message):
        open_checkpoint(tmp_path)


def test_both_spellings_of_rope(tmp_path: Path) -> None:
    export(tmp_path)
    edit_config(tmp_path, rope_theta=None, rope_scaling={"rope_type": "default"})
    assert config_from_hf(tmp_path).rope_theta == 10_000.0
    edit_config(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 7e4})
    assert config_from_hf(tmp_path).rope_theta == 7e4


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neither a \.gguf file nor"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json is not JSON"):
        open_checkpoint(tmp_path)
    export(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x08")
    with pytest.raises(DataError, match="cannot be read"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"neither model\.safetensors nor"):
        open_checkpoint(tmp_path)


def test_export_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    params = random_params(TINY)
    with pytest.raises(ConfigError, match="dtype 'float8'"):
        save_hf(tmp_path, TINY, params, None, "float8")
    with pytest.raises(ConfigError, match=r"disagree about layers\.query_norm"):
        both = params["layers"] | {"query_norm": np.ones((3, 6))}
        save_hf(tmp_path, TINY, params | {"layers": both}, None)
    with pytest.raises(ConfigError, match="embedding is"):
        save_hf(tmp_path, TINY, params | {"embedding": np.ones((4, 4))}, None)
    with pytest.raises(ConfigError, match="a qwen2 has qk_norm False, not True"):
        save_hf(tmp_path, replace(TINY, qkv_bias=True, qk_norm=True), params, None)
    with pytest.raises(ConfigError, match="embed_dim 16 divisible by num_heads 3"):
        save_hf(tmp_path, replace(TINY, num_heads=3, num_kv_heads=1), params, None)
    assert not list(tmp_path.iterdir())


# ---- against transformers ----


def our_logprobs(config: ModelConfig, params: dict, tokens: np.ndarray) -> np.ndarray:
    """float32 [B, L, V]"""
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    variables = {"params": jax.tree.map(jnp.asarray, params)}
    with jax.default_matmul_precision("highest"):
        output = Transformer(config).apply(
            variables, tokens, positions, np.ones_like(tokens), np.zeros_like(tokens)
        )
        logits = output.hidden @ head_weights(variables["params"])
    return np.asarray(jax.nn.log_softmax(logits, axis=-1))


def their_logprobs(directory: Path, tokens: np.ndarray) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens).long()).logits
    return torch.log_softmax(logits, dim=-1).numpy()


@pytest.mark.parity
@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_of_transformers(tmp_path: Path, family: str, tie: bool) -> None:
    """A model that transformers made and saved, read by us."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, vocab_size=99, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, intermediate_size=96, initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": 3e4}, tie_word_embeddings=tie,
        rms_norm_eps=1e-5,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # norms and biases too, which would be 1 and 0
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    tokens = np.random.default_rng(0).integers(0, 99, (2, 50)).astype(np.int32)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config.tie_embeddings == tie
    ours = our_logprobs(checkpoint.config, checkpoint.read_all(), tokens)
    difference = np.abs(ours - their_logprobs(tmp_path, tokens)).max()
    print(f"{family}, tied {tie}: largest difference of logprobs {difference:.1e}")
    assert difference < 1e-4


@pytest.mark.parity
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_opens_what_we_save(tmp_path: Path, family: str) -> None:
    config = FAMILIES[family]
    params = jax.tree.map(lambda x: 0.3 * x, random_params(config))
    save_hf(tmp_path, config, params, None, "float32")
    tokens = np.random.default_rng(0).integers(0, 40, (2, 30)).astype(np.int32)
    ours, theirs = our_logprobs(config, params, tokens), their_logprobs(tmp_path, tokens)
    assert np.abs(ours - theirs).max() < 1e-4
