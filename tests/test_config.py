"""Sections, config files and sweeps, and the sentences that users read."""

import math
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from ml_collections import config_dict

from r1jax.config import (
    ConfigError,
    Decay,
    OneOf,
    Positive,
    Seed,
    Size,
    chain,
    check_choice,
    draw,
    import_function,
    load_config,
    log_uniform,
    override,
    parse_args,
    product,
    section,
    uniform,
    zip_,
)


@dataclass(frozen=True)
class Optimizer:
    learning_rate: float
    schedule: Literal["constant", "cosine"] = "constant"
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass(frozen=True)
class Stage:
    optimizer: Optimizer
    group_size: int = 16
    kl_coef: float = 0.001
    name: str | None = None
    tags: tuple[str, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    mesh: dict[str, Any] = field(default_factory=dict)
    enabled: bool = False

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(f"group_size {self.group_size} must be at least 2")


def make(**values: Any) -> config_dict.ConfigDict:
    return config_dict.create(optimizer=dict(learning_rate=1), **values)


def message(config: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        section(Stage, config, "config.grpo")
    return str(caught.value)


def test_section_converts_nested_values() -> None:
    config = make(tags=["a", "b"], weights=dict(x=1), mesh=dict(a=dict(b=2)), name="run")
    stage = section(Stage, config)
    assert stage == Stage(
        Optimizer(1.0), name="run", tags=("a", "b"), weights={"x": 1.0}, mesh={"a": {"b": 2}}
    )
    assert isinstance(stage.optimizer.learning_rate, float)
    assert isinstance(stage.weights["x"], float)


def test_a_section_keeps_what_its_parent_prefers() -> None:
    @dataclass(frozen=True)
    class Sft:
        optimizer: Optimizer = field(default_factory=lambda: Optimizer(5e-5, "cosine"))

    one_key = section(Sft, {"optimizer": {"betas": [0.8, 0.9]}})
    assert one_key.optimizer == Optimizer(5e-5, "cosine", (0.8, 0.9))
    assert section(Sft, {"optimizer": {"schedule": "constant"}}).optimizer == Optimizer(5e-5)
    with pytest.raises(ConfigError, match="unknown key config.optimizer.beta"):
        section(Sft, {"optimizer": {"beta": 1}})


def test_unknown_key_names_the_nearest() -> None:
    assert message(make(kl_coeff=0.1)) == (
        "unknown key config.grpo.kl_coeff; did you mean config.grpo.kl_coef? "
        "(a key that nobody reads fails)"
    )
    config = make()
    config.optimizer.zzz = 1
    assert "unknown key config.grpo.optimizer.zzz; known keys: betas, learning" in message(config)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"group_size": 2.5}, "config.grpo.group_size = 2.5 is float, expected int"),
        ({"group_size": True}, "config.grpo.group_size = True is bool, expected int"),
        ({"kl_coef": "x"}, "config.grpo.kl_coef = 'x' is str, expected float"),
        ({"enabled": 1}, "config.grpo.enabled = 1 is int, expected bool"),
        ({"name": 3}, "config.grpo.name = 3 is int, expected str"),
        ({"tags": "ab"}, "config.grpo.tags = 'ab' is str, expected tuple[str, ...]"),
        ({"tags": ["a", 1]}, "config.grpo.tags[1] = 1 is int, expected str"),
        ({"weights": {"x": "y"}}, "config.grpo.weights.x = 'y' is str, expected float"),
        ({"group_size": 1}, "config.grpo: group_size 1 must be at least 2"),
    ],
)
def test_wrong_value(values: dict[str, Any], expected: str) -> None:
    assert message(make(**values)) == expected


def test_wrong_nested_values() -> None:
    config = make()
    config.optimizer.betas = (0.9,)
    assert "config.grpo.optimizer.betas = (0.9,) must have 2 items, not 1" in message(config)
    config = make()
    config.optimizer.schedule = "cosin"
    assert "'cosin' is not one of 'constant', 'cosine'; did you mean 'cosine'?" in message(config)
    assert "config.grpo.optimizer is missing" in message(config_dict.ConfigDict())
    assert "config.grpo.optimizer.learning_rate is missing (float expected)" in message(
        {"optimizer": {}}
    )
    assert "config.grpo = None is NoneType, expected a section" in message(None)


def test_placeholders() -> None:
    assert section(Stage, make(name=config_dict.placeholder(str))).name is None
    assert "config.grpo.name must be set" in message(
        make(name=config_dict.required_placeholder(str))
    )


def test_checks() -> None:
    with pytest.raises(ConfigError, match="did you mean 'grpo'"):
        check_choice("stage", "gpro", ["sft", "grpo"])


def test_parse_args() -> None:
    args = parse_args("smoke,seed=1,lr=2,name=1", smoke=False, seed=0, lr=0.5, name="x")
    assert args.to_dict() == {"smoke": True, "seed": 1, "lr": 2.0, "name": "1"}
    assert parse_args("", smoke=False).smoke is False
    with pytest.raises(ConfigError, match="unknown config argument 'smok'.*known: smoke"):
        parse_args("smok", smoke=False)
    with pytest.raises(ConfigError, match="config argument seed = 'x' is str, expected int"):
        parse_args("seed=x", seed=0)


def test_load_config(tmp_path: Path) -> None:
    file = tmp_path / "c.py"
    file.write_text(
        "from ml_collections import config_dict\n"
        "def get_config(arg=''):\n    return config_dict.create(arg=arg, g=dict(g=1))\n"
    )
    config = load_config(f"{file}:smoke,seed=1")
    assert config.arg == "smoke,seed=1"
    override(config, {"g.g": 2})
    assert config.g.g == 2
    override(config, {"g.left_out": 2})  # by the file: what it may be is known where it is read
    assert config.g.left_out == 2
    with pytest.raises(ConfigError, match=r"unknown key config.gg; did you mean config.g\?"):
        override(config, {"gg.g": 2})
    with pytest.raises(ConfigError, match="config.arg is not a section"):
        override(config, {"arg.x": 2})
    with pytest.raises(ConfigError, match=r"config\.g\.g = 'x'"):
        override(config, {"g.g": "x"})
    with pytest.raises(ConfigError, match="config file nowhere.py does not exist"):
        load_config("nowhere.py:smoke")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", r"config file .*c\.py has no get_config"),
        ("def get_config(arg=''):\n    return {}\n", "gives dict, expected a ConfigDict"),
        ("x = 1\ndef get_config(:\n", r"c\.py:2: invalid syntax"),
        ("\nimport no_such_module\n", r"c\.py:2: ModuleNotFoundError: No module named 'no_such"),
        ("def get_config(arg=''):\n    x = 1\n    return x.y\n", r"c\.py:3: AttributeError: 'int'"),
    ],
)
def test_config_files_that_cannot_be(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "c.py"
    file.write_text(text)
    with pytest.raises(ConfigError, match=expected):
        load_config(str(file))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"steps": -1}, "config.steps -1 must be at least 1"),
        ({"steps": 0}, "config.steps 0 must be at least 1"),
        ({"rate": math.nan}, "config.rate nan must be a finite number"),
        ({"rate": -math.inf}, "config.rate -inf must be a finite number"),
        ({"rate": 0}, "config.rate 0 must be above 0"),
        ({"decay": 1.0}, "config.decay 1 must be at least 0 and below 1"),
        ({"limit": 0}, "config.limit 0 must be at least 1"),
        ({"limit": "x"}, "config.limit = 'x' is str, expected int"),
        ({"seed": -1}, "config.seed -1 must be at least 0"),
        ({"seed": 10**30}, "config.seed 1e\\+30 must be at least 0 and at most 4.29"),
        ({"fruit": "appel"}, "config.fruit 'appel' is not one of .*did you mean 'apple'"),
        ({"at": {1300: "x"}}, "config.at.1300 = 'x' is str, expected int"),
    ],
)
def test_numbers_out_of_bounds(changes: dict[str, Any], expected: str) -> None:
    @dataclass(frozen=True)
    class Numbers:
        steps: Size = 1
        rate: Positive = 1.0
        decay: Decay = 0.5
        limit: Size | None = None
        seed: Seed = 0
        fruit: Annotated[str, OneOf({"apple": 1, "pear": 2})] = "pear"
        at: dict[str, int] = field(default_factory=dict)

    assert section(Numbers, {"at": {1300: 5}}).at == {"1300": 5}
    assert section(Numbers, {"decay": 0, "limit": None, "rate": 2}) == Numbers(1, 2.0, 0.0, None)
    with pytest.raises(ConfigError, match=expected):
        section(Numbers, changes)


def test_sweeps() -> None:
    assert product(a=[1, 2], b="xy") == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]
    assert zip_(a=[1, 2], b=iter([3, 4])) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert chain(product(a=[1]), zip_(b=[2])) == [{"a": 1}, {"b": 2}]
    with pytest.raises(ConfigError, match="a has 2, b has 1"):
        zip_(a=[1, 2], b=[1])


def test_draws() -> None:
    """From the distribution; others and more of them change none."""
    rates = {"optimizer.learning_rate": log_uniform(1e-6, 1e-2)}
    few, many = draw(3, 7, **rates), draw(400, 7, **rates, seed=[0, 1], clip=uniform(0.1, 0.3))
    assert [{key: run[key] for key in rates} for run in many[:3]] == few
    assert draw(3, 8, **rates) != few
    logarithms = sorted(math.log10(run["optimizer.learning_rate"]) for run in many)
    assert -6 <= logarithms[0] < -5.9
    assert -4.2 < logarithms[200] < -3.8
    assert -2.1 < logarithms[-1] <= -2
    assert 160 < sum(run["seed"] for run in many) < 240
    assert 0.19 < sum(run["clip"] for run in many) / 400 < 0.21
    assert all(float(f"{value:.3g}") == value for run in many for value in run.values())
    assert len({run["clip"] for run in draw(20, 1, clip=uniform(0.1, 0.13))}) == 20
    with pytest.raises(ConfigError, match=r"draw\(3, ...\): its distributions have 2 different"):
        draw(3, 0, seed=[0, 1])
    with pytest.raises(ConfigError, match=r"log_uniform\(0, 1\): must be positive"):
        log_uniform(0, 1)
    with pytest.raises(ConfigError, match=r"uniform\(2, 1\): the first must be less"):
        uniform(2, 1)


def test_imports_no_jax() -> None:
    code = "import sys, r1jax.config, r1jax.cli; assert not {'jax', 'flax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nocolon", "config.f = 'nocolon' is not of the form module:function"),
        (
            "no_such_module:f",
            "config.f = 'no_such_module:f' cannot be imported: ModuleNotFoundError",
        ),
        ("math:nothing", "config.f = 'math:nothing' cannot be imported: .*nothing"),
    ],
)
def test_a_function_that_is_not_there(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        import_function(name, f"config.f = {name!r}")


def test_import_function() -> None:
    assert import_function("os.path:join", "config.f") is __import__("os").path.join
