"""The stages by the name that `config.stage` calls them. Importing this imports none of them."""

import importlib
from collections.abc import Callable
from typing import Any, Protocol, cast

from ml_collections import ConfigDict

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


class Stage(Protocol):
    """What a module of this room offers. A new one needs a line in STAGES and nothing else.

    It may also have `check(config)`, which raises ConfigError for what is wrong in the config
    alone, and `planned(config, mesh, assumed, memory)` -> machines.planned.Iteration: what it runs
    on its devices, each with so many bytes of memory.
    """

    CONFIG: type[Any]  # the dataclass that its config becomes

    def describe(self, config: Any) -> str:
        """What the config asks for, in numbers."""

    def run(self, config_dict: Any, workdir: str) -> None:
        """Does all of it, from where the workdir is: the same call again goes on."""


def stage_of(config: Any, path: str = "config") -> Stage:
    """The module that runs this config."""
    if "stage" not in config:
        raise ConfigError(f"{path}.stage is missing, one of {', '.join(STAGES)}")
    check_choice(f"{path}.stage", config["stage"], STAGES)
    return cast(Stage, importlib.import_module(STAGES[config["stage"]]))


def checked(config: Any, path: str = "config") -> Any:
    """The config as its stage's dataclass, as far as it can be checked without its data."""
    module = stage_of(config, path)
    found = section(module.CONFIG, config, path)
    if hasattr(module, "check"):
        module.check(found)
    return found


Planner = Callable[..., Any]  # a stage's `planned`


def to_plan(config: Any) -> dict[str, tuple[Any, Planner]]:
    """The configs that run something on devices, and what plans each.

    Of a pipeline they have the names of its stages, a single stage has "".
    """
    configs = {"": config}
    if config.get("stage") == "pipeline":
        checked(config)
        configs = {str(name): _with_shapes(name, config.stages) for name in config.stages}
    found = {}
    for name, one in configs.items():
        module = stage_of(one, f"config.stages.{name}" if name else "config")
        if hasattr(module, "planned"):
            found[name] = one, cast(Planner, module.planned)
    if not found:
        raise ConfigError(f"config.stage {config.stage!r} runs nothing that can be planned")
    return found


def _with_shapes(name: str, stages: Any) -> Any:
    """A stage's config whose models, where other stages make them, are what those begin from."""
    config = ConfigDict(stages[name].to_dict())
    model = config.get("model")
    while isinstance(model, ConfigDict) and str(model.get("path", "")).startswith("@"):
        source = stages[model.path.removeprefix("@").partition("/")[0]].model.to_dict()
        override = source.get("override", {}) | model.to_dict().get("override", {})
        model = config.model = ConfigDict(source | {"override": override})
    for term in config.get("reward_models", {}).values():
        while term.path.startswith("@"):
            term.path = stages[term.path.removeprefix("@").partition("/")[0]].model.path
    return config
