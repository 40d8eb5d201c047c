"""Checkpoints of others: Hugging Face directories (read and written) and GGUF files (read).

Both kinds of file keep a matrix per layer, rows first; we keep one stacked array per kind. LAYOUT
says for each of our parameters where it lies in the file and how its axes are merged there.

Shape legend: V vocabulary, D model, H heads, K kv heads, N head dim, F ffn.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from r1jax.config import ConfigError, DataError, check_choice
from r1jax.files import read_object
from r1jax.models.config import ModelConfig
from r1jax.weights.gguf import GGUFFile

if TYPE_CHECKING:
    from r1jax.data.tokenizer import Tokenizer

Name = tuple[str, ...]  # path in the parameter tree: ("embedding",), ("layers", "query")

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
EXPORT_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
READABLE_DTYPES = ("F64", "F32", "F16", "BF16")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Layout:
    """One parameter, here and in the files; merged axes of the file stand together."""

    axes: str  # ours, "DHN"
    file_axes: tuple[str, ...]  # the file's, ("HN", "D")
    hf: str
    gguf: str


LAYOUT: dict[Name, Layout] = {
    ("embedding",): Layout("VD", ("V", "D"), "model.embed_tokens.weight", "token_embd.weight"),
    ("final_norm",): Layout("D", ("D",), "model.norm.weight", "output_norm.weight"),
    ("head",): Layout("DV", ("V", "D"), "lm_head.weight", "output.weight"),
} | {
    ("layers", name): Layout(axes, file_axes, f"model.layers.{{}}.{hf}", f"blk.{{}}.{gguf}")
    for name, axes, file_axes, hf, gguf in [
        ("attention_norm", "D", ("D",), "input_layernorm.weight", "attn_norm.weight"),
        ("query", "DHN", ("HN", "D"), "self_attn.q_proj.weight", "attn_q.weight"),
        ("key", "DKN", ("KN", "D"), "self_attn.k_proj.weight", "attn_k.weight"),
        ("value", "DKN", ("KN", "D"), "self_attn.v_proj.weight", "attn_v.weight"),
        ("query_bias", "HN", ("HN",), "self_attn.q_proj.bias", "attn_q.bias"),
        ("key_bias", "KN", ("KN",), "self_attn.k_proj.bias", "attn_k.bias"),
        ("value_bias", "KN", ("KN",), "self_attn.v_proj.bias", "attn_v.bias"),
        ("query_norm", "N", ("N",), "self_attn.q_norm.weight", "attn_q_norm.weight"),
        ("key_norm", "N", ("N",), "self_attn.k_norm.weight", "attn_k_norm.weight"),
        ("output", "HND", ("D", "HN"), "self_attn.o_proj.weight", "attn_output.weight"),
        ("ffn_norm", "D", ("D",), "post_attention_layernorm.weight", "ffn_norm.weight"),
        ("gate", "DF", ("F", "D"), "mlp.gate_proj.weight", "ffn_gate.weight"),
        ("up", "DF", ("F", "D"), "mlp.up_proj.weight", "ffn_up.weight"),
        ("down", "FD", ("D", "F"), "mlp.down_proj.weight", "ffn_down.weight"),
    ]
}


def parameter_names(config: ModelConfig) -> tuple[Name, ...]:
    """The parameters that a model with this config has."""
    absent = set()
    if config.tie_embeddings:
        absent.add("head")
    if not config.qkv_bias:
        absent |= {"query_bias", "key_bias", "value_bias"}
    if not config.qk_norm:
        absent |= {"query_norm", "key_norm"}
    return tuple(name for name in LAYOUT if name[-1] not in absent)


def parameter_shape(config: ModelConfig, name: Name) -> tuple[int, ...]:
    """The shape of our (stacked) parameter."""
    sizes = _sizes(config)
    stack = (config.num_layers,) if name[0] == "layers" else ()
    return stack + tuple(sizes[axis] for axis in LAYOUT[name].axes)


def _sizes(config: ModelConfig) -> dict[str, int]:
    return {
        "V": config.vocab_size, "D": config.embed_dim, "H": config.num_heads,
        "K": config.num_kv_heads, "N": config.head_dim, "F": config.ffn_dim,
    }  # fmt: skip


def _file_shape(layout: Layout, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(math.prod(sizes[axis] for axis in merged) for merged in layout.file_axes)


# ---- reading ----


@dataclass(frozen=True)
class Checkpoint:
    """A model's config and its parameters, read from the files when they are asked for."""

    config: ModelConfig
    fetch: Callable[[str, Sequence[slice]], np.ndarray]  # (tensor of the file, slices) -> float32
    file_names: Mapping[Name, str]  # with {} for the layer

    def read(self, name: Name) -> np.ndarray:
        """The whole parameter, float32, layers stacked."""
        return self.read_slice(name, ())

    def read_slice(self, name: Name, index: Sequence[slice]) -> np.ndarray:
        """parameter[index], reading little more than it; `index` as make_array_from_callback's."""
        shape = parameter_shape(self.config, name)
        full = [slice(*s.indices(n)) for s, n in zip(index, shape, strict=False)]
        full += [slice(0, n) for n in shape[len(full) :]]
        if name[0] != "layers":
            return self._read_matrix(name, self.file_names[name], full)
        out = np.empty([len(range(n)[s]) for s, n in zip(full, shape, strict=True)], np.float32)
        for place, layer in enumerate(range(shape[0])[full[0]]):
            out[place] = self._read_matrix(name, self.file_names[name].format(layer), full[1:])
        return out

    def read_all(self) -> dict[str, Any]:
        """The whole parameter tree as float32 numpy arrays."""
        params: dict[str, Any] = {"layers": {}}
        for name in parameter_names(self.config):
            parent = params["layers"] if name[0] == "layers" else params
            parent[name[-1]] = self.read(name)
        return params

    def _read_matrix(self, name: Name, file_name: str, index: Sequence[slice]) -> np.ndarray:
        layout, sizes = LAYOUT[name], _sizes(self.config)
        wanted = dict(zip(layout.axes, index, strict=True))
        file_index, split_shape, inner_index = [], [], []
        for merged in layout.file_axes:
            outer, inner = merged[0], merged[1:]
            stride = math.prod(sizes[axis] for axis in inner)
            s = wanted[outer]
            file_index.append(slice(s.start * stride, s.stop * stride))
            split_shape += [s.stop - s.start] + [sizes[axis] for axis in inner]
            inner_index += [slice(None)] + [wanted[axis] for axis in inner]
        values = self.fetch(file_name, file_index).reshape(split_shape)[tuple(inner_index)]
        order = "".join(layout.file_axes)
        return values.transpose([order.index(axis) for axis in layout.axes])


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """A Hugging Face directory or a .gguf file.

    Raises ConfigError for a model that is not supported, DataError for files that do not hold
    exactly the tensors that the config asks for.
    """
    if Path(path).suffix == ".gguf":
        return _open_gguf(Path(path))
    if not (Path(path) / "config.json").is_file():
        raise ConfigError(f"{path} is neither a .gguf file nor a directory with a config.json")
    return _open_hf(Path(path))


def _open_gguf(path: Path) -> Checkpoint:
    file = GGUFFile(path)
    names = {name: LAYOUT[name].gguf for name in parameter_names(file.config)}
    _check_tensors(file.config, names, file.shapes, str(path))
    return Checkpoint(file.config, file.fetch, names)


def _open_hf(directory: Path) -> Checkpoint:
    config = config_from_hf(directory)
    files = _Safetensors(directory)
    if config.tie_embeddings:
        files.drop_copy("lm_head.weight", "model.embed_tokens.weight")
    names = {name: LAYOUT[name].hf for name in parameter_names(config)}
    _check_tensors(config, names, files.shapes, str(directory))
    return Checkpoint(config, files.fetch, names)


def _check_tensors(
    config: ModelConfig,
    file_names: Mapping[Name, str],
    shapes: Mapping[str, tuple[int, ...]],
    source: str,
) -> None:
    """The strict table: each expected tensor is there in its shape, and no other."""
    expected: dict[str, tuple[int, ...]] = {}
    for name, pattern in file_names.items():
        shape = _file_shape(LAYOUT[name], _sizes(config))
        layers = range(config.num_layers) if name[0] == "layers" else range(1)
        expected |= {pattern.format(layer): shape for layer in layers}
    _refuse("lacks", expected.keys() - shapes.keys(), source)
    _refuse(
        "has a tensor that the config does not ask for:", shapes.keys() - expected.keys(), source
    )
    for tensor, shape in expected.items():
        if shapes[tensor] != shape:
            raise DataError(
                f"{source}: tensor {tensor} has shape {shapes[tensor]}, the config asks for {shape}"
            )


def _refuse(problem: str, names: Iterable[str], source: str) -> None:
    if names := sorted(names):
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise DataError(f"{source} {problem} {names[0]}{more}")


class _Safetensors:
    """All safetensors files of a directory as one: `shapes`, `fetch`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, Any] = {}
        for file_name in _weight_files(directory):
            self._add(file_name)

    def _add(self, file_name: str) -> None:
        try:
            file = safe_open(self.directory / file_name, framework="np")
        except (SafetensorError, OSError) as error:
            raise DataError(f"{self.directory / file_name} cannot be read: {error}") from error
        for name in file.keys():  # noqa: SIM118 (not a dict)
            if name in self._files:
                raise DataError(
                    f"{self.directory}: tensor {name} is set twice, again in {file_name}"
                )
            if name.endswith(".rotary_emb.inv_freq"):
                continue  # derived from rope_theta; old Llama files carry it
            self._files[name] = file
            view = file.get_slice(name)
            self.shapes[name] = tuple(view.get_shape())
            if view.get_dtype() not in READABLE_DTYPES:
                raise DataError(
                    f"{self.directory}: tensor {name} is {view.get_dtype()}, not one of "
                    + ", ".join(READABLE_DTYPES)
                )

    def fetch(self, name: str, index: Sequence[slice]) -> np.ndarray:
        return self._files[name].get_slice(name)[tuple(index)].astype(np.float32)

    def drop_copy(self, name: str, original: str) -> None:
        """Forgets `name` if it equals the tensor that it is tied to; else it is set twice."""
        if name not in self._files or original not in self._files:
            return
        if not np.array_equal(
            self._files[name].get_tensor(name), self._files[original].get_tensor(original)
        ):
            raise DataError(
                f"{self.directory}: {name} differs from {original} although tie_word_embeddings is"
                " true in config.json"
            )
        del self._files[name], self.shapes[name]


def _weight_files(directory: Path) -> list[str]:
    """As transformers has it, a whole file counts before an index that lies beside it."""
    if (directory / WEIGHTS).is_file():
        return [WEIGHTS]
    if (directory / INDEX).is_file():
        files = read_object(directory / INDEX).get("weight_map")
        if not isinstance(files, dict) or not files:
            raise DataError(f"{directory / INDEX} has no weight_map of tensors to files")
        return sorted(set(files.values()))
    if found := sorted(path.name for path in directory.glob("pytorch_model*.bin*")):
        raise DataError(
            f"{directory} has {found[0]} but no {WEIGHTS}; write that with transformers:"
            ' AutoModelForCausalLM.from_pretrained("in").save_pretrained("out")'
        )
    raise DataError(f"{directory} has neither {WEIGHTS} nor {INDEX}")


# ---- config.json ----


def config_from_hf(directory: str | os.PathLike[str]) -> ModelConfig:
    """config.json -> ModelConfig; raises ConfigError for what the model cannot express."""
    path = Path(directory) / "config.json"
    values = read_object(path)
    family = values.get("model_type")
    if family not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ConfigError(f"{path}: model_type {family!r} is not supported (it can be {known})")
    _check_supported(values, path)

    def required(key: str) -> int:
        value = values.get(key)
        if value is None:
            raise ConfigError(f"{path}: key {key} is missing")
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{path}: {key} {value!r} must be a whole number above 0")
        return value

    heads, embed_dim = required("num_attention_heads"), required("hidden_size")
    default_head_dim = 128 if family == "qwen3" else embed_dim // heads  # transformers' defaults
    rope = values.get("rope_parameters") or {}
    return ModelConfig(
        vocab_size=required("vocab_size"),
        embed_dim=embed_dim,
        num_layers=required("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=values.get("num_key_value_heads") or heads,
        head_dim=values.get("head_dim") or default_head_dim,
        ffn_dim=required("intermediate_size"),
        max_length=values.get("max_position_embeddings", ModelConfig.max_length),
        rope_theta=float(rope.get("rope_theta") or values.get("rope_theta") or 10_000.0),
        norm_eps=values.get("rms_norm_eps", 1e-6),
        tie_embeddings=values.get("tie_word_embeddings", False),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
    )


def _check_supported(values: Mapping[str, Any], path: Path) -> None:
    for key in ("rope_scaling", "rope_parameters"):
        rope = values.get(key) or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise ConfigError(f"{path}: {key} {rope} is not supported, only plain RoPE is")
    only = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
            "use_sliding_window": False, "quantization_config": None}  # fmt: skip
    for key, value in only.items():
        if values.get(key, value) != value:
            raise ConfigError(f"{path}: {key} {values[key]!r} is not supported, only {value!r} is")


# ---- writing ----


def save_hf(
    directory: str | os.PathLike[str],
    config: ModelConfig,
    params: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    dtype: str = "bfloat16",
) -> None:
    """Writes what `transformers` and vLLM open: config.json, model.safetensors, tokenizer files.

    `params` is the stacked tree, numpy or addressable jax arrays; `dtype` one of EXPORT_DTYPES.
    """
    check_choice("dtype", dtype, EXPORT_DTYPES)
    hf_config = _hf_config(config, tokenizer, dtype)
    tensors = _export(config, params, EXPORT_DTYPES[dtype])
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    config_path, weights_path = target / "config.json.partial", target / f"{WEIGHTS}.partial"
    config_path.write_text(json.dumps(hf_config, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, weights_path, metadata={"format": "pt"})  # transformers asks for "format"
    shutil.copymode(config_path, weights_path)  # save_file makes it the owner's alone
    weights_path.replace(target / WEIGHTS)
    for name, content in (tokenizer.exported() if tokenizer else {}).items():
        (target / name).write_bytes(content)
    config_path.replace(target / "config.json")  # last: now the directory is a checkpoint


def _export(
    config: ModelConfig, params: Mapping[str, Any], dtype: np.dtype[Any]
) -> dict[str, np.ndarray]:
    """The file's tensors by their names there."""
    flat: dict[Name, Any] = {(k,): v for k, v in params.items() if k != "layers"}
    flat |= {("layers", k): v for k, v in params["layers"].items()}
    names = parameter_names(config)
    if set(flat) != set(names):
        difference = sorted(".".join(name) for name in set(flat) ^ set(names))
        raise ConfigError(f"params and config disagree about {', '.join(difference)}")
    tensors = {}
    for name in names:
        value, shape = np.asarray(flat[name]), parameter_shape(config, name)
        if value.shape != shape:
            raise ConfigError(f"parameter {'.'.join(name)} is {value.shape}, not {shape}")
        for layer, matrix in enumerate(value if name[0] == "layers" else value[None]):
            tensors[LAYOUT[name].hf.format(layer)] = _to_file(config, name, matrix).astype(dtype)
    return tensors


def _to_file(config: ModelConfig, name: Name, matrix: np.ndarray) -> np.ndarray:
    """Our axes -> the file's, contiguous (save_file writes the buffer as it lies)."""
    layout = LAYOUT[name]
    order = [layout.axes.index(axis) for axis in "".join(layout.file_axes)]
    values = matrix.transpose(order).reshape(_file_shape(layout, _sizes(config)))
    return np.ascontiguousarray(values)


def _hf_config(config: ModelConfig, tokenizer: Tokenizer | None, dtype: str) -> dict[str, Any]:
    family = _family(config)
    values = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "max_position_embeddings": config.max_length,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "torch_dtype": dtype,
    }
    if tokenizer is not None:
        ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
        values |= {f"{role}_token_id": token for role, token in ids.items()}
        if len(tokenizer.stop_ids) > 1:
            values["eos_token_id"] = list(tokenizer.stop_ids)
    return values


def _family(config: ModelConfig) -> str:
    if config.qkv_bias and config.qk_norm:
        raise ConfigError("no Hugging Face family has both qkv_bias and qk_norm")
    family = "qwen2" if config.qkv_bias else "qwen3" if config.qk_norm else "llama"
    if family == "llama" and config.embed_dim % config.num_heads:
        raise ConfigError(
            f"a Hugging Face Llama needs embed_dim {config.embed_dim} divisible by num_heads"
            f" {config.num_heads}"
        )
    return family
