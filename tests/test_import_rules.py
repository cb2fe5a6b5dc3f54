"""Who may import whom, read off the syntax trees: the rules of docs/design.md."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "focal_retina"
LIBRARIES = {
    "torch",
    "triton",
    "numba",
    "torchvision",
    "detectron2",
    "fvcore",
    "pycocotools",
    "cv2",
    "matplotlib",
    "ray",
    "hotcoco",
    "faster_coco_eval",
    "safetensors",
    "efficientnet_lite_pytorch",
    "onnx",
    "onnxruntime",
    "onnxscript",
}

# room -> what it may import of the package and of the libraries above. "*" means anything of that
# kind.
ROOMS = {
    "losses/kernels": {"torch", "triton", "numba", "losses/kernels"},
    "losses": {"torch", "torchvision", "fvcore", "losses", "losses/kernels"},
    "modeling": {
        "torch",
        "detectron2",
        "fvcore",
        "efficientnet_lite_pytorch",
        "modeling",
        "losses",
        "config",
    },
    "config": {"detectron2"},
    "config_file": {"detectron2"},
    "data": {"torch", "detectron2", "fvcore", "pycocotools", "cv2", "data"},
    "evaluation": {"torch", "detectron2", "pycocotools", "hotcoco", "evaluation"},
    "engine": {
        "torch",
        "detectron2",
        "fvcore",
        "safetensors",
        "engine",
        "data",
        "evaluation",
        "modeling",
        "config",
        "config_file",
    },
    "analysis": {"*"},
    "benchmark": {"*"},
    "sweep": {"*"},
    "interop": {"torch", "detectron2", "safetensors", "engine", "config", "config_file"},
    "export": {"*"},
}
NEVER = {
    "analysis": {"benchmark", "sweep", "export"},
    "benchmark": {"analysis", "sweep"},
    "sweep": {"benchmark", "export"},
    "export": {"analysis", "benchmark", "sweep"},
}  # nor does anybody import train_net or tools


def room_of(module: str) -> str:
    """Room of a dotted path below focal_retina: the longest one that is named above."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        room = "/".join(parts[:length])
        if room in ROOMS:
            return room
    return parts[0]


def imports_of(path: Path) -> set[str]:
    """Rooms and libraries that the file imports, wherever in it the import stands."""
    package = ("focal_retina", *path.relative_to(PACKAGE).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            targets = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            top, _, rest = target.partition(".")
            if top == "focal_retina" and rest:
                found.add(room_of(rest))
            elif top in LIBRARIES or top in ("tools", "train_net"):
                found.add(top)
    return found


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem in ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_keep_to_the_rules(path):
    room = room_of(".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    assert room in ROOMS, f"{path} is in no room: give it one here and in docs/design.md"
    imported = imports_of(path) - {room}
    assert not imported & {"tools", "train_net"}
    assert not imported & NEVER.get(room, set())
    if "*" not in ROOMS[room]:
        assert imported <= ROOMS[room], f"{path} may not import {sorted(imported - ROOMS[room])}"


def test_only_plots_import_matplotlib():
    importers = {p.parent for p in PACKAGE.rglob("*.py") if "matplotlib" in imports_of(p)}
    assert importers == {PACKAGE / "analysis" / "plots"}


def test_only_builders_see_cfg():
    """In the numeric rooms only ``from_config`` and ``build_*`` take a ``cfg``."""
    for path in [*PACKAGE.glob("losses/**/*.py"), *PACKAGE.glob("modeling/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and "cfg" in [a.arg for a in node.args.args]:
                assert node.name == "from_config" or node.name.startswith(("build_", "_")), (
                    f"{path}: {node.name}"
                )
