"""The rooms of the package: imports flow one way, and what needs no torch doesn't wait for it."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cifarlib"
GROUND = ["errors", "files", "words", "machine", "parts", "config"]  # each may use those before it
MAY_USE = {  # beside the ground floor and itself; the longest name that fits a module decides; None: everything
    "": [],  # such as models, runs, device
    "data": ["device"],
    "training": ["data", "models", "runs", "device"],
    "batch": ["runs", "data", "device"],  # what imports torch, in functions
    "results": ["runs"],
    "results.report": ["runs", "batch.launch"],
    "trained": ["data", "models", "runs", "training", "device"],
    "export": ["trained", "data", "models"],
    "notebook": None,
    "bench": None,
    "cli": None,  # in functions
    "__main__": ["cli"],
}
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
           for path in PACKAGE.rglob("*.py")}


def imports(module: str, nodes=None) -> set[str]:
    """What a module imports, in functions too: names of this package's modules, and of others with a leading colon."""
    path, found = MODULES[module], set()
    folder = path.relative_to(PACKAGE).parent.parts
    for node in nodes or ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {f":{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(f":{node.module}")
        elif isinstance(node, ast.ImportFrom):
            place = ".".join([*folder[:len(folder) + 1 - node.level], *filter(None, [node.module])])
            names = {f"{place}.{alias.name}".lstrip(".") for alias in node.names}
            found |= names & set(MODULES) | ({place} if names - set(MODULES) else set())
    return found


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_uses_only_the_rooms_below_its_own(module):
    used = {name for name in imports(module) if not name.startswith(":")}
    assert not any(within(name, ":cifarlib") for name in imports(module)), "own modules are imported by relative names"
    if module in GROUND:
        assert used <= set(GROUND[:GROUND.index(module)])
        return
    rule = max((room for room in MAY_USE if not room or within(module, room)), key=len)
    if MAY_USE[rule] is not None:
        allowed = [*GROUND, module.partition(".")[0], *MAY_USE[rule]]
        assert not {name for name in used if not any(within(name, room) for room in allowed)}


def test_no_module_imports_itself_by_way_of_others():
    graph = {module: [name for name in imports(module) if not name.startswith(":")] for module in MODULES}
    assert len([*graphlib.TopologicalSorter(graph).static_order()]) == len(MODULES)


def test_the_command_line_imports_what_a_command_needs_when_it_is_called():
    top = imports("cli", ast.parse(MODULES["cli"].read_text()).body)
    assert {name for name in top if not name.startswith(":")} <= {*GROUND, "batch.kernel"}


def test_rooms_without_torch():
    """Nor by way of others: torch takes seconds, and a command that only reads runs has no use for it."""
    rooms = (*GROUND, "data.cifar", "runs", "batch", "results", "cli")
    names = [name for name in MODULES if any(within(name, room) for room in rooms)]
    code = f"import sys, {', '.join(f'cifarlib.{name}' for name in names)}; sys.exit('torch' in sys.modules)"
    assert len(names) > 25 and subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent).returncode == 0


def test_the_doors_of_rooms_are_empty():
    doors = {path.parent.name for path in PACKAGE.glob("*/**/__init__.py") if path.read_text()}
    assert doors == {"models"}
