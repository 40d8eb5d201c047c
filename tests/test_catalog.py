"""The benchmarks: what each says of itself, and the table of r1jax/benchmarks/README.md."""

import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

import r1jax
from r1jax.benchmarks.catalog import KINDS, benchmark
from r1jax.benchmarks.protocol import BenchmarkConfig
from r1jax.config import ConfigError, section
from r1jax.data.datasets import finite_examples

PACKAGE = Path(r1jax.__file__).parent
SHARED = PACKAGE.parents[1] / "shared/data"
HEAD = "| name | benchmark | problems | k | R1 | source, licence | wording, grader | to bring |"


def table() -> str:
    """A line for each."""
    stages = json.loads((PACKAGE / "reports/paper.json").read_text())["stages"]
    lines = [HEAD, "|---|---|---:|---:|---:|---|---|---|"]
    for name, kind in KINDS.items():
        figures = stages["rows"].get(kind.title)
        r1 = figures[stages["columns"].index("R1")] if figures else "-"
        cells = [f"`{name}`", kind.title, kind.problems, kind.num_samples, r1]
        cells += [kind.source, kind.wording, kind.needs or "-"]
        lines.append(f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def test_the_readme_has_all_of_them() -> None:
    """Where this fails, the table that it wants is what `python tests/test_catalog.py` prints."""
    assert table() in (PACKAGE / "benchmarks/README.md").read_text()


@pytest.mark.parametrize("name", KINDS)
def test_its_problems_can_be_read(name: str) -> None:
    """As many as were published, each with a reference that its own grader takes for right."""
    kind = KINDS[name]
    if not (SHARED / kind.file).exists():
        pytest.skip("its file is not here")
    config = section(BenchmarkConfig, ConfigDict(benchmark(name, str(SHARED))), name)
    try:
        found = finite_examples(config.data, name)
    except ConfigError as error:
        if "pip install" not in str(error) and "nltk.downloader" not in str(error):
            raise
        pytest.skip(str(error))  # an extra that is not installed
    assert len(found) == kind.problems


def test_what_a_config_says_of_one() -> None:
    found = section(BenchmarkConfig, ConfigDict(benchmark("aime24", "/d", problems=3)), "b")
    assert (found.kind, found.num_samples, found.problems) == ("aime24", 64, 3)
    assert found.sampling.max_tokens == 32_768
    assert (found.sampling.temperature, found.sampling.top_p) == (0.6, 0.95)
    assert found.data.args["path"] == "/d/aime24/aime24.jsonl"
    with pytest.raises(ConfigError, match="'aime' is no benchmark; there are aime24,"):
        benchmark("aime", "/d")


if __name__ == "__main__":
    print(table())
