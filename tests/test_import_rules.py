"""Who may import whom, read off the syntax trees: the floors of docs/design.md."""

import ast
import sys
from pathlib import Path

import pytest
from helpers import ROOT

PACKAGE = ROOT / "focal_retina"

# A room imports itself and lower floors, nothing else of the package.
FLOORS = [
    {"files", "drawing", "weight_reader", "config", "config_file", "losses"},
    {"modeling", "data", "evaluation"},
    {"dataset_check"},
    {"engine"},
    {"figures", "deploy", "interop"},
    {"sweep"},
    {"commands"},
    {"__main__"},
]
# What the losses need besides the standard library, so that they can be lifted out.
LOSSES_NEED = {"torch", "numba", "numpy", "triton", "torchvision", "fvcore"}
OUTSIDE = {"tools", "train_net", "benchmarks", "tests"}

FILES = sorted(x for x in PACKAGE.rglob("*.py") if x != PACKAGE / "__init__.py")


def floor_of(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def imports_of(path: Path) -> tuple[set[str], set[str]]:
    """Rooms of the package and top-level modules that a file imports, wherever in it."""
    package = path.relative_to(PACKAGE.parent).parent.parts
    rooms, modules = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1] if node.level else ())
            names = [".".join(filter(None, [base, node.module, x.name])) for x in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top != "focal_retina":
                modules.add(top)
            elif rest and not rest.isupper():  # a constant of the package itself
                rooms.add(rest.partition(".")[0])
    return rooms, modules


@pytest.mark.parametrize("path", FILES, ids=lambda x: str(x.relative_to(PACKAGE)))
def test_a_room_imports_lower_floors_alone(path):
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    rooms, modules = imports_of(path)
    assert not modules & OUTSIDE
    upward = {x for x in rooms - {room} if floor_of(x) >= floor_of(room)}
    assert not upward, f"{path} may not import {sorted(upward)}"
    if room == "losses":
        assert modules <= LOSSES_NEED | sys.stdlib_module_names
