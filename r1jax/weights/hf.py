"""Checkpoints of others: Hugging Face directories (read and written) and GGUF files (read).

Where a parameter lies in those files says layout.py, what config.json says hf_config.py.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from etils import epath
from flax import traverse_util
from safetensors.numpy import save_file

from r1jax.config import ConfigError, DataError, check_choice
from r1jax.files import absolute, on_disk, read_object
from r1jax.models.config import ModelConfig
from r1jax.models.moe import ROUTER_BIAS
from r1jax.weights.gguf import GGUFFile
from r1jax.weights.hf_config import config_from_hf, hf_config
from r1jax.weights.layout import Name, Parameter, parameters
from r1jax.weights.safetensors_file import DTYPES, SafetensorsFile

if TYPE_CHECKING:
    from r1jax.data.tokenizer import Tokenizer

EXPORT_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SCALES = "_scale_inv"  # behind the name of a float8 tensor: what its blocks are multiplied by
SHARD_BYTES = 5_000_000_000  # of an exported file, at most


# ---- reading ----


@dataclass(frozen=True)
class Checkpoint:
    """A model's config and its parameters, read from the files when they are asked for."""

    config: ModelConfig
    kind: str  # of files: hf, gguf
    fetch: Callable[[str, Sequence[slice]], np.ndarray]  # (tensor of the file, slices) -> float32

    def read(self, name: Name) -> np.ndarray:
        """The whole parameter, float32, layers stacked."""
        return self.read_slice(name, ())

    def read_slice(self, name: Name, index: Sequence[slice]) -> np.ndarray:
        """parameter[index], reading little more than it; `index` as make_array_from_callback's."""
        parameter = parameters(self.config)[name]
        shape, lead = parameter.shape, parameter.lead
        full = [slice(*s.indices(n)) for s, n in zip(index, shape, strict=False)]
        full += [slice(0, n) for n in shape[len(full) :]]
        out = np.empty([len(range(n)[s]) for s, n in zip(full, shape, strict=True)], np.float32)
        for place in np.ndindex(*out.shape[:lead]):
            at = tuple(s.start + i for s, i in zip(full, place, strict=False))
            out[place] = self._read_matrix(parameter, at, full[lead:])
        return out

    def read_all(self) -> dict[str, Any]:
        """The whole parameter tree as float32 numpy arrays."""
        found = {name: self.read(name) for name in parameters(self.config)}
        tree: dict[str, Any] = traverse_util.unflatten_dict(found)
        return tree

    def _read_matrix(
        self, parameter: Parameter, at: tuple[int, ...], index: Sequence[slice]
    ) -> np.ndarray:
        sizes, file_axes = parameter.sizes, parameter.layout.file_axes
        wanted = dict(zip(parameter.axes, index, strict=True))
        file_index, split_shape, inner_index = [], [], []
        for merged in file_axes:
            outer, inner = merged[0], merged[1:]
            stride = math.prod(sizes[axis] for axis in inner)
            s = wanted[outer]
            file_index.append(slice(s.start * stride, s.stop * stride))
            split_shape += [s.stop - s.start] + [sizes[axis] for axis in inner]
            inner_index += [slice(None)] + [wanted[axis] for axis in inner]
        values = self.fetch(parameter.file_name(self.kind, at), file_index)
        values = values.reshape(split_shape)[tuple(inner_index)]
        order = "".join(file_axes)
        return values.transpose([order.index(axis) for axis in parameter.axes])


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """A Hugging Face directory or a .gguf file.

    Raises ConfigError for a model that is not supported, DataError for files that do not hold
    exactly the tensors that the config asks for.
    """
    if epath.Path(path).suffix == ".gguf":
        file = GGUFFile(Path(on_disk(path)))
        _check_tensors(file.config, "gguf", file.shapes, str(path))
        return Checkpoint(file.config, "gguf", file.fetch)
    directory = absolute(path)
    if not (directory / "config.json").is_file():
        raise ConfigError(f"{path} is neither a .gguf file nor a directory with a config.json")
    config = config_from_hf(directory)
    files = _Safetensors(directory)
    if config.mtp:  # transformers says so of models that it saves without
        layer = f"model.layers.{config.num_layers}"
        config = replace(config, mtp=f"{layer}.eh_proj.weight" in files.shapes)
        head = "model.embed_tokens.weight" if config.tie_embeddings else "lm_head.weight"
        files.drop_copy(f"{layer}.embed_tokens.weight", "model.embed_tokens.weight")
        files.drop_copy(f"{layer}.shared_head.head.weight", head)
    if config.tie_embeddings:
        files.drop_copy("lm_head.weight", "model.embed_tokens.weight")
    _check_tensors(config, "hf", files.shapes, str(directory))
    return Checkpoint(config, "hf", files.fetch)


def _check_tensors(
    config: ModelConfig, kind: str, shapes: Mapping[str, tuple[int, ...]], source: str
) -> None:
    """The strict table: each expected tensor is there in its shape, and no other."""
    expected = {
        parameter.file_name(kind, index): parameter.file_shape
        for parameter in parameters(config).values()
        for index in parameter.matrices()
    }
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

    def __init__(self, directory: epath.Path) -> None:
        self.directory = directory
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, SafetensorsFile] = {}
        for file_name in _weight_files(directory):
            self._add(file_name)
        self._blocks = self._check_scales()

    def _add(self, file_name: str) -> None:
        file = SafetensorsFile(self.directory / file_name)
        for name, tensor in file.tensors.items():
            if name in self._files:
                raise DataError(
                    f"{self.directory}: tensor {name} is set twice, again in {file_name}"
                )
            if name.endswith(".rotary_emb.inv_freq"):
                continue  # derived from rope_theta; old Llama files carry it
            if tensor.dtype not in DTYPES:
                raise DataError(
                    f"{self.directory}: tensor {name} is {tensor.dtype}, not one of "
                    + ", ".join(DTYPES)
                )
            self._files[name] = file
            if not name.endswith(SCALES):
                self.shapes[name] = tensor.shape

    def _check_scales(self) -> tuple[int, ...]:
        """The sides of the blocks that share a scale, where there are float8 tensors (V3)."""
        is_float8 = {n for n in self.shapes if self._files[n].tensors[n].dtype == "F8_E4M3"}
        scaled = {name.removesuffix(SCALES) for name in self._files if name.endswith(SCALES)}
        for name in sorted(is_float8 ^ scaled):
            has, lacks = ("float8", "its scales") if name in is_float8 else ("scales", "float8")
            raise DataError(f"{self.directory}: tensor {name} has {has} without {lacks}")
        said = read_object(self.directory / "config.json").get("quantization_config")
        if said is None and not is_float8:
            return ()
        said = said if isinstance(said, dict) else {}
        sides = said.get("weight_block_size")
        if said.get("quant_method") != "fp8" or not isinstance(sides, list) or len(sides) != 2:
            raise ConfigError(
                f"{self.directory / 'config.json'}: quantization_config {said} is not supported,"
                " only float8 weights in blocks are: quant_method fp8 with a weight_block_size"
            )
        for name in sorted(is_float8):
            wanted = tuple(-(-n // side) for n, side in zip(self.shapes[name], sides, strict=True))
            found = self._files[name + SCALES].tensors[name + SCALES].shape
            if found != wanted:
                raise DataError(
                    f"{self.directory}: tensor {name}{SCALES} has shape {found}, blocks of"
                    f" {sides} ask for {wanted}"
                )
        return tuple(sides)

    def fetch(self, name: str, index: Sequence[slice]) -> np.ndarray:
        values = self._files[name].read(name, index).astype(np.float32)
        if (scales := self._files.get(name + SCALES)) is None:
            return values
        return values * self._scales(scales, name + SCALES, index)

    def _scales(self, file: SafetensorsFile, name: str, index: Sequence[slice]) -> np.ndarray:
        """Of every number in [index]."""
        blocks = [
            slice(s.start // side, -(-s.stop // side))
            for s, side in zip(index, self._blocks, strict=True)
        ]
        scales = file.read(name, blocks).astype(np.float32)
        for axis, (s, side) in enumerate(zip(index, self._blocks, strict=True)):
            first = s.start // side * side
            scales = scales.repeat(side, axis).take(range(s.start - first, s.stop - first), axis)
        return scales

    def drop_copy(self, name: str, original: str) -> None:
        """Forgets `name` if it equals the tensor that it is tied to; else it is set twice."""
        if name not in self._files or original not in self._files:
            return
        if not np.array_equal(self._files[name].read(name), self._files[original].read(original)):
            raise DataError(
                f"{self.directory}: {name} differs from {original} although tie_word_embeddings is"
                " true in config.json"
            )
        del self._files[name], self.shapes[name]


def _weight_files(directory: epath.Path) -> list[str]:
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


# ---- writing ----


def save_hf(
    directory: str | os.PathLike[str],
    config: ModelConfig,
    params: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    dtype: str = "bfloat16",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes what `transformers` and vLLM open: config.json, safetensors, tokenizer files.

    `params` is the tree of scanned layers, numpy or addressable jax arrays; `dtype` one of
    EXPORT_DTYPES. Files have at most `shard_bytes`, but for a tensor that is larger by itself.
    """
    check_choice("dtype", dtype, EXPORT_DTYPES)
    values = hf_config(config, tokenizer, dtype)
    flat = _checked(config, params)
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    config_path = target / "config.json.partial"
    config_path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    shards = _shards(config, EXPORT_DTYPES[dtype], shard_bytes)
    for i, shard in enumerate(shards):
        tensors = {name: _tensor(flat, *place) for name, place in shard.items()}
        path = target / (_shard_name(i, len(shards)) + ".partial")
        save_file(tensors, path, metadata={"format": "pt"})  # transformers asks for "format"
        shutil.copymode(config_path, path)  # save_file makes it the owner's alone
        path.replace(path.with_suffix(""))
    if len(shards) > 1:
        _write_index(target / INDEX, shards)
    for name, content in (tokenizer.exported() if tokenizer else {}).items():
        (target / name).write_bytes(content)
    config_path.replace(target / "config.json")  # last: now the directory is a checkpoint


Place = tuple[Parameter, tuple[int, ...], np.dtype]  # where a tensor of the file stands with us


def _checked(config: ModelConfig, params: Mapping[str, Any]) -> dict[Name, Any]:
    """The parameters by name, exactly those of the config."""
    flat: dict[Name, Any] = traverse_util.flatten_dict(dict(params))
    wanted = parameters(config)
    if set(flat) != set(wanted):
        difference = sorted(".".join(name) for name in set(flat) ^ set(wanted))
        raise ConfigError(f"params and config disagree about {', '.join(difference)}")
    for name, parameter in wanted.items():
        if flat[name].shape != parameter.shape:
            raise ConfigError(
                f"parameter {'.'.join(name)} is {flat[name].shape}, not {parameter.shape}"
            )
    return flat


def _shards(config: ModelConfig, dtype: np.dtype, shard_bytes: int) -> list[dict[str, Place]]:
    """All tensors, by the file that they go to, layer by layer."""
    places = [
        (parameter.layer(index), parameter, index)
        for parameter in parameters(config).values()
        for index in parameter.matrices()
    ]
    shards: list[dict[str, Place]] = [{}]
    held = 0
    for _, parameter, index in sorted(places, key=lambda place: place[0]):
        is_bias = parameter.name[-1] == ROUTER_BIAS  # whose smallest steps count
        kept = np.dtype(np.float32) if is_bias else dtype
        size = math.prod(parameter.file_shape) * kept.itemsize
        if shards[-1] and held + size > shard_bytes:
            shards.append({})
            held = 0
        shards[-1][parameter.file_name("hf", index)] = parameter, index, kept
        held += size
    return shards


def _tensor(
    flat: Mapping[Name, Any], parameter: Parameter, index: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    matrix = np.asarray(flat[parameter.name][index])
    return parameter.to_file(matrix).astype(dtype)


def _shard_name(index: int, count: int) -> str:
    return WEIGHTS if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _write_index(path: Path, shards: Sequence[Mapping[str, Place]]) -> None:
    weight_map = {
        name: _shard_name(i, len(shards)) for i, shard in enumerate(shards) for name in shard
    }
    total = sum(
        math.prod(parameter.file_shape) * kept.itemsize
        for shard in shards
        for parameter, _, kept in shard.values()
    )
    values = {"metadata": {"total_size": total}, "weight_map": weight_map}
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
