"""The configs of r1/ and distill/ say the paper's numbers, as paper_configs.json has them."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from ml_collections import ConfigDict

from experiments.r1 import pipeline
from r1jax.config import ConfigError, load_config
from r1jax.data.datasets import DataConfig, check_located, finite_examples, messages_of
from r1jax.judges.preferences import MIN_DELTA
from r1jax.machines.cpu import quick_compile
from r1jax.machines.mesh import MESH_AXES, check_divisible
from r1jax.models.params import param_axes
from r1jax.models.transformer import Transformer
from r1jax.models.zoo import MODELS
from r1jax.stages import checked, reward_model, sft, stage_of

ROOT = Path(__file__).parents[1]
PAPER = json.loads((Path(__file__).parent / "paper_configs.json").read_text())
ROWS = range(PAPER["rows"]["sft_set_total"])
CONFIGS = PAPER["configs"]
NUMBERS = [(name, key) for name, known in CONFIGS.items() for key in known if key != "printed_in"]
FILES = [*sorted(ROOT.glob("experiments/r1/*.py")), *sorted(ROOT.glob("experiments/distill/*.py"))]
SPECS = [
    *(str(path) for path in FILES if "def get_config(" in path.read_text()),
    *(str(ROOT / name) for name in CONFIGS if ":" in name),
]
DERIVED = {
    "outputs an update": lambda c: c.prompts_per_update * c.group_size,
    "outputs a rollout": lambda c: c.prompts_per_update * c.group_size * c.updates_per_rollout,
    "rollouts": lambda c: c.total_steps / c.updates_per_rollout,
    "last learning rate": lambda c: c.optimizer.learning_rate * c.optimizer.final_ratio,
    "steps on the SFT set": lambda c: sft.steps_of(c, ROWS),
    "full steps an epoch": lambda c: len(ROWS) // c.batch_size,
    "last steps with general prompts": lambda c: c.total_steps - int(max(c.data_at, key=int)),
    "least difference of verdicts": lambda c: MIN_DELTA,
}


def number(config: Any, key: str) -> Any:
    """The value of a dotted key (of a dataclass, or of a dict in it), or one made of several."""
    if key in DERIVED:
        return DERIVED[key](config)
    for name in key.split("."):
        config = config[name] if isinstance(config, Mapping) else getattr(config, name)
    return config


@pytest.mark.parametrize(("name", "key"), NUMBERS)
def test_number(name: str, key: str) -> None:
    config = checked(load_config(str(ROOT / name)))
    expected = CONFIGS[name][key]
    close = isinstance(expected, float)
    assert number(config, key) == (pytest.approx(expected, rel=1e-12) if close else expected)


def test_another_number_is_seen() -> None:
    """The comparison reads what the stage would."""
    spec = str(ROOT / "experiments/r1/dev3.py")
    config = load_config(spec)
    config.batch_size, config.optimizer.learning_rate = 64, 1e-4
    assert number(checked(config), "steps on the SFT set") == 25_149
    assert number(checked(config), "last learning rate") == pytest.approx(1e-5)


def test_table_5_adds_up() -> None:
    assert sum(PAPER["rows"]["sft_set"].values()) == PAPER["rows"]["sft_set_total"]


@pytest.mark.parametrize(("kind", "updates"), [("helpful", 258), ("safety", 415)])
def test_an_epoch_of_a_reward_model(kind: str, updates: int) -> None:
    """What reward_model.py's docstring says."""
    config = checked(load_config(str(ROOT / f"experiments/r1/reward_model.py:kind={kind}")))
    assert math.ceil(config.epochs * PAPER["rows"][kind] / config.batch_size) == updates


@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize("spec", SPECS)
def test_config_is_its_stages(spec: str, smoke: bool) -> None:
    """Every key is one that the stage reads, and every argument is taken; no model is there."""
    separator = "," if ":" in spec else ":"
    asked = f"{spec}{separator}seed=3{',smoke' if smoke else ''}"
    config = load_config(asked)
    assert config.stage == "pipeline" or config.seed == 3
    stages = config.stages.values() if config.stage == "pipeline" else [config]
    for stage in stages:
        found = checked(stage)
        assert any(character.isdigit() for character in stage_of(stage).describe(found))
        if smoke and "mesh" in stage:
            assert dict(stage.mesh) == {"data": -1}


@pytest.mark.parametrize("spec", SPECS)
def test_mesh_splits_rows(spec: str) -> None:
    """Packed rows are split evenly over the shards of a batch, those of reward models too."""
    config = load_config(spec)
    stages = config.stages.values() if config.stage == "pipeline" else [config]
    for stage in stages:
        mesh = stage.get("mesh", {})
        shards = math.prod(size for axis, size in mesh.items() if axis != "tensor")
        judges = stage.get("reward_models", ConfigDict()).values()
        for section in (stage, *judges):
            assert section.get("microbatch_rows", shards) % shards == 0


@pytest.mark.parametrize(
    ("spec", "model", "chips"),
    [
        ("r1/r1_zero.py", "deepseek-v3", 256),
        ("distill/distill.py:model=qwen-1.5b", "qwen2.5-math-1.5b", 8),
        ("distill/distill.py:model=qwen-7b", "qwen2.5-math-7b", 8),
        ("distill/distill.py:model=qwen-14b", "qwen2.5-14b", 16),
        ("distill/distill.py:model=qwen-32b", "qwen2.5-32b", 64),
        ("distill/distill.py:model=llama-8b", "llama-3.1-8b", 8),
        ("distill/distill.py:model=llama-70b", "llama-3.3-70b", 128),
        ("distill/qwen25_32b_zero.py", "qwen2.5-32b", 64),
        ("distill/qwen2_math_7b_zero.py", "qwen2.5-math-7b", 8),  # Qwen2-Math-7B's shape
    ],
)
def test_mesh_splits_parameters(spec: str, model: str, chips: int) -> None:
    """Evenly, those of the paper's model of the full size."""
    sizes = load_config(str(ROOT / "experiments" / spec)).mesh.to_dict()
    assert math.prod(sizes.values()) == chips
    mesh = SimpleNamespace(shape=dict.fromkeys(MESH_AXES, 1) | sizes)
    shape = replace(MODELS[model], mtp=MODELS[model].latent is not None)
    shapes, axes = param_axes(Transformer(shape))
    names = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
    for leaf, axis in zip(jax.tree.leaves(shapes), names, strict=True):
        check_divisible(leaf.shape, axis, mesh, model)


def test_pipeline_is_the_files_configs() -> None:
    """A stage of the pipeline differs from its own file's config in where things lie alone."""
    config = pipeline.get_config("")
    for name, file in [("zero", "r1_zero"), ("dev2", "dev2"), ("dev3", "dev3"), ("r1", "r1")]:
        alone = load_config(str(ROOT / f"experiments/r1/{file}.py")).to_json()
        within = config.stages[name].to_json().replace("@", "runs/r1/")
        assert json.loads(within) == json.loads(alone)


def test_arguments() -> None:
    spec = str(ROOT / "experiments/r1/r1.py:model=M,data=D,helpful=H,safety=S")
    config = load_config(spec)
    assert config.model.path == "M"
    assert config.data.path == "D/reasoning.jsonl"
    assert [term.path for term in config.reward_models.values()] == ["H", "S"]
    file = ROOT / "experiments/r1/preferences.py"
    judge = checked(load_config(f"{file}:v3=http://host:8000/v1")).judge
    assert (judge.endpoint, judge.path) == ("http://host:8000/v1", None)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("distill/distill.py:model=qwen-3b", "model 'qwen-3b' is not one of 'qwen-1.5b'"),
        ("r1/reward_model.py:kind=helpfull", "did you mean 'helpful'?"),
        ("r1/r1_zero.py:modell=M", "unknown config argument 'modell'"),
    ],
)
def test_wrong_argument(spec: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(str(ROOT / "experiments" / spec))


def rows_shown() -> list[tuple[str, str]]:
    """(the file, its row) of experiments/r1/README.md's table."""
    text = (ROOT / "experiments/r1/README.md").read_text()
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.endswith("}` |")]
    return [(row[0].strip("`"), row[-1].strip("`")) for row in cells]


@pytest.mark.parametrize(("file", "row"), rows_shown())
def test_shown_rows_are_read(file: str, row: str, tmp_path: Path) -> None:
    """By the stage that reads such a file."""
    data = DataConfig(path=str(tmp_path / "rows.jsonl"))
    (tmp_path / "rows.jsonl").write_text(row + "\n")
    if file == "general_sft.jsonl":
        assert sft.checked_rows(data)
    elif file == "labels.jsonl":
        assert reward_model.checked_rows(data, "pointwise", "config.data")
    elif file == "prompts.jsonl":
        assert messages_of(json.loads(row))
    else:
        [example] = finite_examples(data, "config.data")
        check_located(example)


def test_rows_are_shown() -> None:
    assert len(rows_shown()) == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["r1/r1_zero.py:smoke", "r1/rejection.py:smoke", "distill/distill.py:smoke"]
)
def test_smoke(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a random model of the family to a model, or rows."""
    monkeypatch.chdir(ROOT)
    config = load_config(f"experiments/{name}")
    with quick_compile(True):
        stage_of(config).run(config, str(tmp_path))
    made = "data.jsonl" if config.stage == "rejection" else "checkpoints"
    assert (tmp_path / made).exists()
