"""The config of a run: written down at its first start, compared at every later one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath
from flax import traverse_util
from ml_collections import config_dict

from r1jax.config import ConfigError
from r1jax.data.fingerprint import ROWS
from r1jax.files import (
    CONFIG,
    EFFECTIVE_CONFIG,
    LOCK,
    LOG,
    MODEL_JSON,
    STAGE_INPUTS,
    STARTS,
    TENSORBOARD,
    TOKENIZER,
    WANDB_ID,
    absolute,
    children,
    is_directory,
    read_object,
    write_json,
)
from r1jax.machines.hosts import ask_first

# What a start writes before there is anything to lose; a run with anything else has begun.
FIRST = (
    CONFIG,
    MODEL_JSON,
    TOKENIZER,
    TENSORBOARD,
    LOCK,
    LOG,
    STAGE_INPUTS,
    EFFECTIVE_CONFIG,
    STARTS,
    WANDB_ID,
    ROWS,
)
# What may change when a run is resumed, since no result depends on it: what is logged and kept, and
# how it is computed, which changes rounding alone.
FREE_KEYS = (
    *("wandb_project", "profile", "log_every", "checkpoint_every", "keep_rollouts", "show_every"),
    *("mesh", "engine", "graders", "microbatch_rows", "logits_chunk", "optimizer.max_skipped"),
    "reference.offload",
)
LONGER = ("total_steps", "epochs")  # may become larger, where the learning rate is constant


def check_config(workdir: epath.PathLike, config: config_dict.ConfigDict, unit: int = 0) -> None:
    """Writes config.json at the first start; later refuses a config that gives other results.

    A start that failed before its first rollout or step doesn't bind the next one. `unit`: a run
    of a multiple of so many updates may be given more of them; 0 = none may.
    """
    path = absolute(workdir) / CONFIG
    new = jsonable(config)
    old = ask_first(lambda: _begun_with(path))
    if old is not None:
        if differing := changes(old, new, (*FREE_KEYS, *_longer(old, new, unit))):
            raise ConfigError(
                f"{path} is of a run with another config ({'; '.join(differing)}); "
                "take another --workdir, or the config of that run"
            )
        if differing := changes(old, new, free=()):
            logging.info("goes on with another config: %s", "; ".join(differing))
    if jax.process_index() == 0:
        write_json(path, new)


def _begun_with(path: epath.Path) -> dict[str, Any] | None:
    """The config of a run that has begun."""
    others = [file for file in children(path.parent) if file.name not in FIRST]
    return read_object(path) if path.exists() and any(map(_has_content, others)) else None


def _has_content(path: epath.Path) -> bool:
    if is_directory(path):
        return any(children(path))
    return path.exists() and path.stat().length > 0


def jsonable(config: config_dict.ConfigDict) -> dict[str, Any]:
    """The config as config.json holds it: tuples are lists."""
    try:
        return json.loads(json.dumps(config.to_dict()))
    except TypeError as error:
        raise ConfigError(f"config values must be JSON: {error}") from None


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    return traverse_util.flatten_dict(config, sep=".", keep_empty_nodes=True)


def _longer(old: Mapping[str, Any], new: Mapping[str, Any], unit: int) -> list[str]:
    """The keys of LONGER by which the new run begins with all that the old one did."""
    whole = {"total_steps": unit and old.get("total_steps", 0) % unit == 0, "epochs": unit > 0}
    return [key for key in LONGER if whole[key] and 0 < old.get(key, 0) < new.get(key, 0)]


def changes(
    old: Mapping[str, Any], new: Mapping[str, Any], free: Sequence[str] = FREE_KEYS
) -> list[str]:
    """What differs between two configs in JSON, in words; keys and sections in `free` may."""
    before, after = _flat(dict(old)), _flat(dict(new))
    keys = [key for key in before | after if not f"{key}.".startswith(tuple(f"{k}." for k in free))]
    return [
        *(f"added: {key} {after[key]!r}" for key in keys if key not in before),
        *(f"removed: {key} {before[key]!r}" for key in keys if key not in after),
        *(
            f"changed: {key} {before[key]!r} -> {after[key]!r}"
            for key in keys
            if key in before and key in after and before[key] != after[key]
        ),
    ]
