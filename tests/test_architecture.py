"""Imports point one way; graders and configs load without JAX."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import r1jax
from r1jax.stages import STAGES

PACKAGE = Path(r1jax.__file__).parent

# The rooms, bottom first: a file imports from its own room and from those before it. Commands
# (modules with a `__main__` block) stand above everything.
ROOMS = [
    *("types", "config", "config_help", "files", "journal", "progress"),
    *("machines", "tasks", "data", "models", "rewards"),
    *("losses", "rollout", "weights"),
    *("training", "reports", "judges", "benchmarks"),
    *("stages", "cli"),
]
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}


def imports_of(path: Path) -> set[str]:
    """The modules of r1jax that a file imports when it runs, at the top or inside functions."""
    found = set()
    for node in runtime_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert not isinstance(node, ast.ImportFrom), f"{path}: relative import"
            continue
        found |= {module for name in names if (module := known_module(name))}
    return found


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING:`."""
    yield node
    is_typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    for child in () if is_typing else ast.iter_child_nodes(node):
        yield from runtime_nodes(child)


def known_module(name: str) -> str | None:
    """`r1jax.losses.nll_loss` -> `losses`; None outside r1jax."""
    parts = name.split(".")
    if parts[0] != "r1jax":
        return None
    ends = range(len(parts), 1, -1)
    return next((m for end in ends if (m := ".".join(parts[1:end])) in MODULES), None)


def is_command(module: str) -> bool:
    return '__name__ == "__main__"' in MODULES[module].read_text(encoding="utf-8")


def rank_of(module: str) -> int:
    """The place of its room in ROOMS; a new room needs one, a new file in a room does not."""
    if is_command(module):
        return len(ROOMS)
    room = module.partition(".")[0]
    assert room in ROOMS, f"r1jax/{room} has no place: give it one in ROOMS"
    return ROOMS.index(room)


IMPORTS = {module: imports_of(path) - {module} for module, path in MODULES.items()}


def test_the_reader_of_imports_sees_something() -> None:
    assert {"losses.policy", "data.packing", "training.run"} <= IMPORTS["stages.grpo_updates"]
    assert "types" not in IMPORTS["tasks.math_task"]  # under TYPE_CHECKING only


@pytest.mark.parametrize("module", MODULES)
def test_no_import_runs_upwards(module: str) -> None:
    wrong = {name for name in IMPORTS[module] if rank_of(name) > rank_of(module)}
    assert not wrong, f"r1jax.{module} must not import {', '.join(sorted(wrong))}"


def test_no_module_imports_itself_by_a_detour() -> None:
    open_modules, done = [], set()

    def visit(module: str) -> None:
        assert module not in open_modules, f"circle: {' -> '.join([*open_modules, module])}"
        if module in done:
            return
        open_modules.append(module)
        for name in sorted(IMPORTS[module]):
            visit(name)
        done.add(open_modules.pop())

    for module in MODULES:
        visit(module)


def test_stages_do_not_import_each_other() -> None:
    stages = {module.removeprefix("r1jax.") for module in STAGES.values()}
    assert "stages.grpo" in stages
    for module, names in IMPORTS.items():
        if module.startswith("stages."):
            assert not names & stages, f"{module} imports {names & stages}"


def test_nobody_imports_a_command() -> None:
    for module, names in IMPORTS.items():
        wrong = {name for name in names if is_command(name)}
        assert not wrong, f"r1jax.{module} imports the command {', '.join(sorted(wrong))}"


def test_every_room_is_there() -> None:
    assert {module.partition(".")[0] for module in MODULES if not is_command(module)} == {*ROOMS}


def test_the_package_itself_is_empty() -> None:
    assert (PACKAGE / "__init__.py").read_text(encoding="utf-8").strip() == ""


def test_graders_world_and_config_load_without_jax() -> None:
    rooms = {m for m in MODULES if m.split(".")[0] in ("rewards", "tasks")}
    names = [f"r1jax.{name}" for name in [*sorted(rooms), "config"]]
    imports = "; ".join(f"import {name}" for name in [*names, "experiments.mini.world.problems"])
    code = f"import sys; {imports}; print(sorted({{'jax', 'jaxlib', 'flax'}} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
