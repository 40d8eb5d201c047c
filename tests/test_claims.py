"""Claims of the paper against metrics written by hand."""

import json
from pathlib import Path

import pytest
from helpers import write_lines

from r1jax.config import ConfigError, DataError, load_module
from r1jax.reports.claims import (
    Claim,
    Comparison,
    claims_page,
    curve,
    final,
    judge,
    minus,
    overall,
    verdict,
    write_claims,
)
from r1jax.reports.measured import read_runs, with_stages

CLAIMS = '''"""# What was claimed"""
from r1jax.reports.claims import Claim, Comparison, curve
from r1jax.reports.table import Table

def claims():
    two = [
        Comparison("x", (1.0, 2.0), curve("a/*/run", "x", "first"), curve("a/*/run", "x", "last")),
        Comparison("y", (0.5, 1.5), curve("a/*/run", "y", "first"), curve("a/*/run", "y", "last")),
    ]
    return [
        Claim("x rises", "Figure 1", "c.py", two[:1]),
        Claim("both rise", "Figure 2", "c.py", two, "A note."),
    ]

def tables(root):
    return [Table("more", "More", ["a"], [["one"]])]
'''


def seed(root: Path, name: str, x: tuple[float, float], y: tuple[float, float]) -> None:
    lines = [{"step": i, "x": a, "y": b} for i, (a, b) in enumerate(zip(x, y, strict=True))]
    write_lines(root / f"a/{name}/run/metrics.jsonl", lines)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    seed(tmp_path, "seed=0", (0.10, 0.30), (0.5, 0.4))
    seed(tmp_path, "seed=1", (0.12, 0.30), (0.5, 0.6))
    seed(tmp_path, "seed=2", (0.14, 0.30), (0.5, 0.5))
    return tmp_path


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([], "not measured"),
        ([1.0], "not measured"),
        ([1.0, 1.2, 0.9], "reproduced"),
        ([-1.0, -1.2, -0.9], "contrary"),
        ([1.0, 1.0, 1.0, 1.0, -0.1], "not reproduced"),  # one seed disagrees
        ([0.1, 3.0, 0.1], "not reproduced"),  # mean 1.07, twice its error 1.93
        ([0.0, 0.0, 0.0], "not reproduced"),
        ([2.0, 2.0], "reproduced"),
    ],
)
def test_verdicts(differences: list[float], expected: str) -> None:
    assert verdict(differences) == expected


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["reproduced", "reproduced"], "reproduced"),
        (["reproduced", "contrary"], "partly reproduced"),
        (["reproduced", "not measured"], "partly reproduced"),
        (["contrary", "not reproduced"], "not reproduced"),
        (["not measured"], "not measured"),
    ],
)
def test_a_claim_of_several_comparisons(verdicts: list[str], expected: str) -> None:
    assert overall(verdicts) == expected


def test_numbers_of_runs(root: Path) -> None:
    results = {"step": 0, "benchmarks": {"r": {"pass@1": 0.25}}}
    for name in ("seed=0", "seed=1"):
        path = root / f"a/{name}/eval/results.json"
        path.parent.mkdir()
        path.write_text(json.dumps(results))
    (root / "a/seed=3/run").mkdir(parents=True)  # has only begun
    at = with_stages(read_runs(root))
    first, last = (curve("a/*/run", "x", end)(at) for end in ("first", "last"))
    assert first == {"seed=0": 0.10, "seed=1": 0.12, "seed=2": 0.14}
    assert set(last.values()) == {0.30}
    assert final("a/*/eval", "r", "pass@1")(at) == {"seed=0": 0.25, "seed=1": 0.25}
    assert final("a/*/eval", "other", "pass@1")(at) == {}
    assert curve("b/*/run", "x", "first")(at) == curve("a/*/run", "z", "last")(at) == {}
    gain = minus(curve("a/*/run", "x", "last"), final("a/*/eval", "r", "pass@1"))(at)
    assert gain == {"seed=0": pytest.approx(0.05), "seed=1": pytest.approx(0.05)}


def test_the_page(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "claims.py"
    file.write_text(CLAIMS)
    path = write_claims(str(file), root, tmp_path / "out")
    assert Path(path) == tmp_path / "out/README.md"
    text = Path(path).read_text()
    assert text.startswith("# What was claimed\n\n### Verdicts: 1 reproduced, 1 partly reproduced")
    assert "| x rises | Figure 1 | reproduced |" in text
    assert "| both rise | Figure 2 | partly reproduced |" in text
    assert "| x | 1.0 → 2.0 | 12.0 ± 2.0 → 30.0 ± 0.0 | 3 | reproduced |" in text
    assert "| y | 0.5 → 1.5 | 50.0 ± 0.0 → 50.0 ± 10.0 | 3 | not reproduced |" in text
    assert text.index("A note.") < text.index("### More")


def test_what_was_not_measured() -> None:
    comparison = Comparison("x", (1.0, 2.0), curve("*", "x", "first"), curve("*", "x", "last"))
    line, found = judge(comparison, {})
    assert found == "not measured"
    assert line[:3] == ["x", "1.0 → 2.0", "-"]


def test_files_without_claims(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no.py"):
        claims_page("no.py", tmp_path)
    (tmp_path / "c.py").write_text("x = 1")
    with pytest.raises(DataError, match=r"c.py has no claims\(\)"):
        claims_page(str(tmp_path / "c.py"), tmp_path)


def test_the_claims_of_the_mini_world() -> None:
    """They load, and each has the paper's own direction in the paper's own numbers."""
    module, _ = load_module("experiments/mini/claims.py")
    found: list[Claim] = module.claims()
    assert len({claim.text for claim in found}) == len(found) >= 10
    for claim in found:
        assert Path(claim.config).exists()
        for comparison in claim.comparisons:
            assert comparison.paper[0] < comparison.paper[1], comparison.label
