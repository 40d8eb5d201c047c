"""What the READMEs say: their examples run as printed, their links and commands exist."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ONE_DEVICE

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
ROOMS = ("experiments", "r1jax", "tpu_scripts")
PAGES = sorted([README, *(page for room in ROOMS for page in (ROOT / room).rglob("README.md"))])
EXAMPLES = re.findall(r"^```sh\n(.*?)^```$", README.read_text(encoding="utf-8"), re.M | re.S)
FLAGS = {"help", "helpfull"}  # of every command


def test_its_size() -> None:
    """It sells in ten seconds: what is longer stands where it is true."""
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    assert [line for line in lines if len(line) > 160] == []


def test_the_figure_is_small() -> None:
    assert (ROOT / "experiments/mini/r1_zero.png").stat().st_size <= 60_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_something(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in (link for link in links if not link.startswith("http")):
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page}: {link}"
        if heading:
            assert heading in headings(target), f"{page}: {link}"


def headings(page: Path) -> set[str]:
    """As GitHub names them in links."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_their_flags_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for name, rest in re.findall(r"python -m r1jax\.([a-z]\w*)([^`\n]*)", text):
        known = flags_of(name)
        used = set(re.findall(r"--(\w+)", rest))
        assert used <= known | FLAGS, f"{page}: r1jax.{name} has no {used - known - FLAGS}"
        for config in re.findall(r"--config[ =](\w[\w/]*/\w+\.py)", rest):
            assert (ROOT / config).exists(), f"{page}: {config}"


def test_the_table_of_commands() -> None:
    """Its lines begin with a command's name, and it has every command."""
    text = README.read_text(encoding="utf-8").partition("## Commands")[2].partition("## ")[0]
    table = dict(re.findall(r"^(\w+) +((?:--|NAME).*)$", text, re.M))
    commands = {p.stem for p in (ROOT / "r1jax").glob("*.py") if "__main__" in p.read_text()}
    assert set(table) == commands
    for name, line in table.items():
        assert set(re.findall(r"--(\w+)", line)) <= flags_of(name)


def flags_of(command: str) -> set[str]:
    """The flags that a command's source defines."""
    tree = ast.parse((ROOT / "r1jax" / f"{command}.py").read_text(encoding="utf-8"))
    return {name for node in ast.walk(tree) for name in defined_by(node)}


def defined_by(node: ast.AST) -> Iterator[str]:
    if not isinstance(node, ast.Call):
        return
    called = ast.unparse(node.func)
    if called == "define_config":
        yield "config"
    if called.startswith("flags.DEFINE") and isinstance(node.args[0], ast.Constant):
        yield str(node.args[0].value)
    yield from (
        keyword.value.value
        for keyword in node.keywords
        if keyword.arg == "name" and isinstance(keyword.value, ast.Constant)
    )


def test_its_bash_blocks() -> None:
    """.ci/run takes the second for the tests; the first installs and is the main command."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", README.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 2
    assert "r1jax.train --config experiments/mini/r1_zero.py" in blocks[0]
    assert "pytest --slow" in blocks[1]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_run_as_printed(tmp_path: Path, number: int) -> None:
    """In a directory that has of a clone only `experiments`; r1jax is installed."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    done = subprocess.run(
        ["bash", "-e", "-c", EXAMPLES[number]],
        cwd=tmp_path,
        env=os.environ
        | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": ONE_DEVICE,  # one device, as a newcomer has
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    wanted = re.findall(r"--(?:workdir|output) (\S+)", EXAMPLES[number])
    dry = re.findall(r"--workdir (\S+) --dry_run", EXAMPLES[number])
    assert len(wanted) >= 1
    for path in wanted:
        assert (tmp_path / path).exists() != (path in dry)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 2
