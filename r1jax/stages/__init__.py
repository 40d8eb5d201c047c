"""The stages by the name that `config.stage` calls them. Importing this imports none of them."""

import importlib
import types
from typing import Any

from r1jax.config import ConfigError, check_choice, section

STAGES = {
    "sft": "r1jax.stages.sft",
    "grpo": "r1jax.stages.grpo",
    "preferences": "r1jax.stages.preferences",
    "reward_model": "r1jax.stages.reward_model",
    "rejection": "r1jax.stages.rejection",
    "mixture": "r1jax.stages.mixture",
    "evaluate": "r1jax.stages.evaluate",
    "pipeline": "r1jax.stages.pipeline",
}


def stage_of(config: Any, path: str = "config") -> types.ModuleType:
    """The module that runs this config: it has CONFIG, a dataclass, and run(config, workdir).

    It may have check(config), which raises ConfigError for what is wrong in the config alone.
    """
    if "stage" not in config:
        raise ConfigError(f"{path}.stage is missing, one of {', '.join(STAGES)}")
    check_choice(f"{path}.stage", config["stage"], STAGES)
    return importlib.import_module(STAGES[config["stage"]])


def checked(config: Any, path: str = "config") -> Any:
    """The config as its stage's dataclass, as far as it can be checked without its data."""
    module = stage_of(config, path)
    found = section(module.CONFIG, config, path)
    if hasattr(module, "check"):
        module.check(found)
    return found
