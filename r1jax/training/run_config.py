"""The config of a run: written down at its first start, compared at every later one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from flax import traverse_util
from ml_collections import config_dict

from r1jax.config import ConfigError
from r1jax.data.fingerprint import ROWS
from r1jax.files import (
    CONFIG,
    LOCK,
    LOG,
    MODEL_JSON,
    STAGE_INPUTS,
    TENSORBOARD,
    TOKENIZER,
    absolute,
    write_json,
)

# What a start writes before there is anything to lose; a run with anything else has begun.
FIRST = (CONFIG, MODEL_JSON, TOKENIZER, TENSORBOARD, LOCK, LOG, STAGE_INPUTS, ROWS)
FREE_KEYS = ("wandb_project", "profile", "log_every")  # may change when a run is resumed


def check_config(workdir: epath.PathLike, config: config_dict.ConfigDict) -> None:
    """Writes config.json at the first start; later refuses a config that differs from it.

    A start that failed before its first rollout or step doesn't bind the next one.
    """
    path = absolute(workdir) / CONFIG
    new = jsonable(config)
    others = [file for file in path.parent.glob("*") if file.name not in FIRST]
    begun = path.exists() and any(map(_has_content, others))
    if begun and (differing := changes(json.loads(path.read_text()), new)):
        raise ConfigError(
            f"{path} is of a run with another config ({'; '.join(differing)}); "
            "take another --workdir, or the config of that run"
        )
    if jax.process_index() == 0:
        write_json(path, new)


def _has_content(path: epath.Path) -> bool:
    if path.is_dir():
        return any(path.iterdir())
    return path.exists() and path.stat().length > 0


def jsonable(config: config_dict.ConfigDict) -> dict[str, Any]:
    """The config as config.json holds it: tuples are lists."""
    try:
        return json.loads(json.dumps(config.to_dict()))
    except TypeError as error:
        raise ConfigError(f"config values must be JSON: {error}") from None


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    return traverse_util.flatten_dict(config, sep=".", keep_empty_nodes=True)


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two configs in JSON, in words; FREE_KEYS may differ."""
    before, after = _flat(dict(old)), _flat(dict(new))
    keys = [key for key in before | after if key.split(".")[0] not in FREE_KEYS]
    return [
        *(f"added: {key} {after[key]!r}" for key in keys if key not in before),
        *(f"removed: {key} {before[key]!r}" for key in keys if key not in after),
        *(
            f"changed: {key} {before[key]!r} -> {after[key]!r}"
            for key in keys
            if key in before and key in after and before[key] != after[key]
        ),
    ]
