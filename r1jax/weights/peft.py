"""Adapters as a directory in PEFT's format, which `peft` and vLLM open beside the base."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from r1jax.config import ConfigError, check_choice
from r1jax.models.config import ModelConfig
from r1jax.models.lora import LORA_A, LORA_B, without_adapters
from r1jax.weights.hf import EXPORT_DTYPES
from r1jax.weights.layout import Parameter, parameters

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def save_peft(
    directory: str | os.PathLike[str],
    config: ModelConfig,
    params: Mapping[str, Any],
    dtype: str = "bfloat16",
) -> None:
    """`params` is the tree of scanned layers, numpy or addressable jax arrays; `dtype` one of
    EXPORT_DTYPES. ConfigError for a model that has no adapters, or has more that is trained.
    """
    check_choice("dtype", dtype, EXPORT_DTYPES)
    if config.lora is None:
        raise ConfigError("the model has no adapters; write it whole, with --format hf")
    if config.scalar_head:
        raise ConfigError("the model has a scalar head, for which PEFT's format has no place")
    tensors = dict(_tensors(config, params, EXPORT_DTYPES[dtype]))
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(_adapter_config(config), indent=2)
    (target / CONFIG).write_text(text + "\n", encoding="utf-8")


def _adapted(config: ModelConfig) -> list[Parameter]:
    """The matrices that have an adapter: those of layers, which lie stacked."""
    known = parameters(without_adapters(config)).values()
    return [each for each in known if each.stacked and each.name[-1] in config.adapted]


def _tensors(
    config: ModelConfig, params: Mapping[str, Any], dtype: np.dtype
) -> Iterator[tuple[str, np.ndarray]]:
    """By their names: A is [rank, in] there and B [out, rank], with axes merged as in the base."""
    flat = traverse_util.flatten_dict(dict(params))
    for parameter in _adapted(config):
        *layer, name = parameter.name
        a, b = (np.asarray(flat[(*layer, name + end)]) for end in (LORA_A, LORA_B))
        for index in parameter.matrices():
            module = "base_model.model." + parameter.file_name("hf", index).removesuffix(".weight")
            sides = a[index].reshape(-1, a.shape[-1]), b[index].reshape(a.shape[-1], -1)
            for side, matrix in zip("AB", sides, strict=True):
                yield f"{module}.lora_{side}.weight", np.ascontiguousarray(matrix.T.astype(dtype))


def _adapter_config(config: ModelConfig) -> dict[str, Any]:
    """PEFT adapts what has a name that ends with a target: these end so that nothing else does.

    Of a model with experts it takes modules named as an expert's for the experts (peft 0.21 with
    transformers 5), wherever they are, so they are targeted by their parameter.
    """
    assert config.lora is not None
    weights = {parameter.layout.hf for parameter in _adapted(config)}
    of_experts = {name for name in weights if config.experts and name.startswith("mlp.")}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,  # whoever opens it names the base
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "target_modules": sorted(name.removesuffix(".weight") for name in weights - of_experts),
        "target_parameters": sorted(of_experts) or None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
