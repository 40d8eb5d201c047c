"""Configs: the users' errors, reading a config file, its sections as frozen dataclasses, sweeps.

A config is a Python file with `get_config(arg="") -> ConfigDict`; a stage turns each section into a
frozen dataclass with `section`, which is where an unknown key or a wrong type fails. The defaults
live in those dataclasses and nowhere else.
"""

import ast
import contextlib
import dataclasses
import difflib
import importlib
import importlib.util
import itertools
import math
import random
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from ml_collections import config_dict

T = TypeVar("T")
Overrides = dict[str, Any]  # {"dotted.key": value}, without the leading "config."


class UserError(Exception):
    """A mistake that the user can mend: commands print it as one sentence, without traceback."""


class ConfigError(UserError):
    """A wrong config, flag or argument."""


class DataError(UserError):
    """A wrong or missing input file."""


# ---- what numbers may be ----


@dataclasses.dataclass(frozen=True)
class Bounds:
    """`least` and `most` may be reached, `above` and `below` may not."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        said = {"at least": self.least, "above": self.above, "at most": self.most}
        said |= {"below": self.below}
        return " and ".join(f"{name} {x:g}" for name, x in said.items() if math.isfinite(x))


@dataclasses.dataclass(frozen=True, eq=False)
class OneOf:
    """The keys of a registry."""

    choices: Mapping[str, Any]


Count = Annotated[int, Bounds(least=0)]
Size = Annotated[int, Bounds(least=1)]
NotNegative = Annotated[float, Bounds(least=0)]
Positive = Annotated[float, Bounds(above=0)]
Share = Annotated[float, Bounds(least=0, most=1)]
Seed = Annotated[int, Bounds(least=0, most=2**32 - 1)]
Decay = Annotated[float, Bounds(least=0, below=1)]  # of a running mean


# ---- sections as dataclasses ----


def section(
    dataclass_type: type[T], config_section: Any, path: str = "config", default: T | None = None
) -> T:
    """Turns a ConfigDict (or dict) into `dataclass_type`; `path` is its name in messages.

    A key that is left out has the value of `default`, or else the field's own default; so a section
    that sets one key keeps what its parent prefers for the others. Fields may be bool, int, float,
    str, Literal, Optional, tuple, list, dict, Any and further dataclasses, numbers also Annotated
    with Bounds, texts with OneOf. Raises ConfigError for unknown and missing keys, wrong types and
    values that cannot be.
    """
    if isinstance(config_section, dataclass_type):
        return config_section
    if not isinstance(config_section, (config_dict.ConfigDict, Mapping)):
        raise _type_error(path, config_section, "a section of keys")
    fields = {f.name: f for f in dataclasses.fields(dataclass_type) if f.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(dataclass_type, include_extras=True)
    values = {}
    for key in config_section:
        if key not in fields:
            known = [*fields, *_inside(fields.values(), key)]
            raise ConfigError(_unknown_key(key, known, path))
        value, preferred = _get(config_section, key, path), _preferred(fields[key])
        if dataclasses.is_dataclass(preferred) and isinstance(value, config_dict.ConfigDict | dict):
            values[key] = section(type(preferred), value, f"{path}.{key}", preferred)
        else:
            values[key] = _convert(hints[key], value, f"{path}.{key}")
    for name, field in fields.items():
        if name in values:
            continue
        if default is not None:
            values[name] = getattr(default, name)
        elif _is_required(field):
            raise ConfigError(f"{path}.{name} is missing ({_describe(hints[name])} expected)")
    try:
        return dataclass_type(**values)
    except (ValueError, ConfigError) as error:  # raised by a __post_init__
        raise ConfigError(f"{path}: {error}") from error


def _get(config_section: Any, key: str, path: str) -> Any:
    try:
        return config_section[key]
    except config_dict.RequiredValueError:
        raise ConfigError(f"{path}.{key} must be set, it has no default") from None


def _preferred(field: dataclasses.Field[Any]) -> Any:
    """The field's default, None if it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _is_required(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _inside(fields: Iterable[dataclasses.Field[Any]], key: str) -> list[str]:
    """Where in the sections below a key stands: `sampling.max_tokens` for `max_tokens`."""
    sections = {field.name: _preferred(field) for field in fields}
    return [
        f"{name}.{key}" for name, value in sections.items() if key in getattr(value, "__dict__", {})
    ]


def _unknown_key(key: str, known: Sequence[str], path: str) -> str:
    inside = [name for name in known if name.endswith(f".{key}")]
    nearest = inside[:1] or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if nearest:
        hint = f"did you mean {path}.{nearest[0]}?"
    else:
        hint = f"known keys: {', '.join(sorted(known)) or 'none'}"
    return f"unknown key {path}.{key}; {hint} (a key that nobody reads fails)"


def _convert(hint: Any, value: Any, path: str) -> Any:
    """`value` as the type `hint`, or a ConfigError that names `path`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return _plain(value)
    if origin is Annotated:
        return _allowed(args[1], _convert(args[0], value, path), path)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, value, path)
    if origin is typing.Literal:
        check_choice(path, value, args)
        return value
    if origin in (tuple, list):
        return _convert_sequence(origin, args, value, path)
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        return _convert_dict(args, value, path)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return section(hint, value, path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is int):
        raise _type_error(path, value, _describe(hint))
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path} {value} must be a finite number")
    return value


def _allowed(values: Bounds | OneOf, value: Any, path: str) -> Any:
    if isinstance(values, OneOf):
        check_choice(path, value, values.choices)
    elif value not in values:
        raise ConfigError(f"{path} {value:g} must be {values}")
    return value


def _convert_union(args: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and types.NoneType in args:
        return None
    choices = [arg for arg in args if arg is not types.NoneType]
    if len(choices) == 1:
        return _convert(choices[0], value, path)
    exact = [arg for arg in choices if type(value) is arg]  # so that int | float keeps an int
    for choice in exact + choices:
        try:
            return _convert(choice, value, path)
        except ConfigError:
            continue
    raise _type_error(path, value, " or ".join(_describe(arg) for arg in args))


def _convert_sequence(origin: type, args: tuple[Any, ...], value: Any, path: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise _type_error(path, value, _describe(origin[args] if args else origin))  # type: ignore[index]
    if origin is list or (len(args) == 2 and args[1] is Ellipsis):
        hints = [args[0]] * len(value)
    else:
        hints = list(args)
    if len(hints) != len(value):
        raise ConfigError(f"{path} = {value!r} must have {len(hints)} items, not {len(value)}")
    items = zip(hints, value, strict=True)
    return origin(_convert(h, item, f"{path}[{i}]") for i, (h, item) in enumerate(items))


def _convert_dict(args: tuple[Any, ...], value: Any, path: str) -> dict[Any, Any]:
    if not isinstance(value, (config_dict.ConfigDict, Mapping)):
        raise _type_error(path, value, "a section of keys")
    names, hint = args or (Any, Any)
    return {  # {1300: ...} where the names are texts
        str(key) if names is str else key: _convert(hint, _get(value, key, path), f"{path}.{key}")
        for key in value
    }


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, config_dict.ConfigDict) else value


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    if hint is types.NoneType:
        return "None"
    if typing.get_origin(hint) is None and isinstance(hint, type):
        return hint.__name__
    return str(hint).replace("typing.", "")


def _type_error(path: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"{path} = {value!r} is {type(value).__name__}, expected {expected}")


# ---- checks that stages make at start-up ----


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """For instance `loss_agg 'mean' is not one of ...; did you mean 'token_mean'?`."""
    choices = list(choices)
    if value in choices:
        return
    nearest = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    names = ", ".join(repr(choice) for choice in choices)
    raise ConfigError(f"{name} {value!r} is not one of {names}{hint}")


# ---- config files and their arguments ----


def parse_args(arg: str, **defaults: Any) -> config_dict.ConfigDict:
    """The part after the colon of `--config FILE:arg`, as in big_vision.

    `parse_args("smoke,seed=1", smoke=False, seed=0)` gives smoke=True, seed=1. A bare word sets a
    bool; values take the type of their default.
    """
    values = dict(defaults)
    for item in filter(None, arg.split(",")):
        name, equals, text = item.partition("=")
        if name not in defaults:
            raise ConfigError(_unknown_argument(name, list(defaults)))
        values[name] = _parse_value(name, text if equals else "True", defaults[name])
    return config_dict.ConfigDict(values)


def _unknown_argument(name: str, known: Sequence[str]) -> str:
    names = ", ".join(sorted(known)) or "none"
    return f"unknown config argument {name!r} after the colon of --config; known: {names}"


def _parse_value(name: str, text: str, default: Any) -> Any:
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        value = text
    return value if default is None else _convert(type(default), value, f"config argument {name}")


def check_config_file(spec: str) -> None:
    file = spec.partition(":")[0]
    if not Path(file).is_file():
        raise ConfigError(f"config file {file} does not exist")


def load_module(spec: str) -> tuple[types.ModuleType, str]:
    """The Python file of `FILE.py[:arg]`, imported, and its argument."""
    file, _, arg = spec.partition(":")
    path = Path(file)
    check_config_file(spec)
    module_spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    if module_spec is None or module_spec.loader is None:
        raise ConfigError(f"config file {file} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    with _named(file):
        module_spec.loader.exec_module(module)
    return module, arg


@contextlib.contextmanager
def _named(file: str) -> Iterator[None]:
    """What a user's file raises becomes a ConfigError with its line."""
    try:
        yield
    except UserError:
        raise
    except SyntaxError as error:
        raise ConfigError(f"{error.filename or file}:{error.lineno}: {error.msg}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame.lineno for frame in frames if Path(frame.filename).name == Path(file).name]
        place = f"{file}:{own[-1]}" if own else file
        raise ConfigError(f"{place}: {type(error).__name__}: {error}") from error


def load_config(spec: str) -> config_dict.ConfigDict:
    """The config of `FILE.py[:arg]`, that is `get_config(arg)` of that file."""
    module, arg = load_module(spec)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"config file {spec.partition(':')[0]} has no get_config(arg='')")
    with _named(spec.partition(":")[0]):
        config = module.get_config(arg)
    if not isinstance(config, config_dict.ConfigDict):
        raise ConfigError(
            f"get_config of {spec.partition(':')[0]} gives {type(config).__name__}, expected a"
            " ConfigDict"
        )
    return config


def override(config: config_dict.ConfigDict, overrides: Overrides) -> None:
    """Sets the dotted keys in place; their sections must exist, a key may be one that the file
    leaves at its default.
    """
    for dotted, value in overrides.items():
        target, last = find_key(config, dotted, new=True)
        try:
            target[last] = value
        except TypeError as error:
            raise ConfigError(f"config.{dotted} = {value!r}: {error}") from error


def find_key(
    config: config_dict.ConfigDict, dotted: str, new: bool = False
) -> tuple[config_dict.ConfigDict, str]:
    """The section that holds the last part of a dotted key; ConfigError if there is none.

    A `new` key need not be there.
    """
    *parents, last = dotted.split(".")
    target, path = config, "config"
    for name in parents:
        target, path = _child(target, name, path), f"{path}.{name}"
    if not new or not isinstance(target, config_dict.ConfigDict):
        _child(target, last, path)
    return target, last


def _child(target: Any, name: str, path: str) -> Any:
    if not isinstance(target, config_dict.ConfigDict):
        raise ConfigError(f"{path} is not a section, so {path}.{name} cannot be set")
    if name not in target:
        raise ConfigError(_unknown_key(name, list(target), path))
    return target[name]


# ---- functions that a config names ----


def import_function(name: str, what: str) -> Callable[..., Any]:
    """`module:function` -> the function; `what` is its name in errors."""
    function = import_object(name, what)
    if not callable(function):
        raise ConfigError(f"{what} is of type {type(function).__name__}, not a function")
    return function


def import_object(name: str, what: str) -> Any:
    """What `module:name` stands for; `what` is its name in errors."""
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(f"{what} is not of the form module:function")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the user's module does while it is imported
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{what} cannot be imported: {reason}") from error


# ---- sweeps: what a config file's sweep() returns ----


def product(**lists: Iterable[Any]) -> list[Overrides]:
    """Every combination: `product(**{"grpo.kl_coef": [0.0, 0.001], "seed": [0, 1, 2]})`."""
    values = [list(items) for items in lists.values()]
    return [dict(zip(lists, choice, strict=True)) for choice in itertools.product(*values)]


def zip_(**lists: Iterable[Any]) -> list[Overrides]:
    """The i-th items together; all lists must be equally long."""
    values = {key: list(items) for key, items in lists.items()}
    if len({len(items) for items in values.values()}) > 1:
        lengths = ", ".join(f"{key} has {len(items)}" for key, items in values.items())
        raise ConfigError(f"zip_ needs lists of equal length: {lengths}")
    return [dict(zip(values, choice, strict=True)) for choice in zip(*values.values(), strict=True)]


def chain(*sweeps: Iterable[Overrides]) -> list[Overrides]:
    """One sweep after the other."""
    return list(itertools.chain(*sweeps))


Draw = Callable[[random.Random], Any]  # a value of a distribution


def draw(count: int, seed: int, /, **distributions: Draw | Sequence[Any]) -> list[Overrides]:
    """Random search: so many different runs, each with a value of every distribution; each item of
    a list is equally likely.

    `draw(20, 0, **{"optimizer.learning_rate": log_uniform(1e-6, 1e-4), "group_size": [8, 16]})`.
    A value depends on (seed, key, the draw's number) alone: more runs leave the others as they are.
    """

    def value(key: str, found: Draw | Sequence[Any], number: int) -> Any:
        rng = random.Random(f"{seed} {key} {number}")
        return found(rng) if callable(found) else rng.choice(found)

    runs: list[Overrides] = []
    for number in range(100 * count):
        run = {key: value(key, found, number) for key, found in distributions.items()}
        if run not in runs:
            runs.append(run)
        if len(runs) == count:
            return runs
    raise ConfigError(f"draw({count}, ...): its distributions have {len(runs)} different runs")


def uniform(low: float, high: float) -> Draw:
    """To three digits, so that runs have names that can be read."""
    if not low < high:
        raise ConfigError(f"uniform({low}, {high}): the first must be less than the second")
    return lambda rng: float(f"{rng.uniform(low, high):.3g}")


def log_uniform(low: float, high: float) -> Draw:
    """Uniform in the logarithm, to three digits."""
    if not 0 < low < high:
        raise ConfigError(f"log_uniform({low}, {high}): must be positive, the first less")
    return lambda rng: float(f"{math.exp(rng.uniform(math.log(low), math.log(high))):.3g}")
