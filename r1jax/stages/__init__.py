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

    Of a pipeline they have the names of its stages, a single stage has "". An evaluation of a model
    that begins fresh in the same pipeline is left out.
    """
    configs = {"": config}
    if config.get("stage") == "pipeline":
        checked(config)
        configs = {str(name): _with_shapes(name, config.stages) for name in config.stages}
    found = {}
    for name, one in configs.items():
        module = stage_of(one, f"config.stages.{name}" if name else "config")
        if hasattr(module, "planned") and not _is_made_here(one.get("model")):
            found[name] = one, cast(Planner, module.planned)
    if not found:
        raise ConfigError(f"config.stage {config.stage!r} runs nothing that can be planned")
    return found


def _is_made_here(path: Any) -> bool:
    return isinstance(path, str) and path.startswith("@")


def _with_shapes(name: str, stages: Any) -> Any:
    """A stage's config whose models, where other stages make them, are what those begin from."""
    config = ConfigDict(stages[name].to_dict())

    def begun(model: Any) -> dict[str, Any]:
        """A section `model`, its path followed to where it begins."""
        found: dict[str, Any] = dict(model)
        while _is_made_here(found.get("path")):
            source = stages[found["path"].removeprefix("@").partition("/")[0]].model.to_dict()
            found = source | {"override": source.get("override", {}) | found.get("override", {})}
        return found

    if isinstance(config.get("model"), ConfigDict):
        config.model = ConfigDict(begun(config.model.to_dict()))
    elif _is_made_here(config.get("model")):  # an evaluation's
        found = begun({"path": config.model, "override": dict(config.get("override", {}))})
        config.model = found.get("path") or config.model
        config.override = found["override"]
    asking = [config, *config.get("benchmarks", {}).values()]
    terms = [term for each in asking for term in each.get("reward_models", {}).values()]
    chats = [config[key] for key in ("judge", "writer", "policy") if config.get(key)]
    for one in (*terms, *chats):
        if one.get("path"):
            one.path = begun({"path": one.path}).get("path") or one.path
    return config
