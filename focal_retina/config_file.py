"""Reading config files without executing them.

Detectron2 loads yaml with the unsafe loader, because its own ``Base-RetinaNet.yaml`` computes the
anchor sizes with ``!!python/object/apply:eval``. Here that one tag is evaluated as arithmetic
(numbers, lists, comprehensions over lists), and every other Python tag is refused.
"""

import ast
import hashlib
import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

_BASE_KEY = "_BASE_"
_EVAL_TAG = "tag:yaml.org,2002:python/object/apply:eval"
_LARGEST_EXPONENT = 64  # enough for any anchor size; keeps `9 ** 9 ** 9` from eating the machine

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def get_config_file(name: str) -> str:
    """Path of a config that ships with focal_retina, such as ``"quickstart/shapes.yaml"``.

    Raises:
        FileNotFoundError: no such config; the message lists those that exist.
    """
    package = Path(__file__).resolve().parent
    # Installed: configs/ is package data. In a checkout (and an editable install) it stands beside
    # the package.
    root = next(d for d in (package / "configs", package.parent / "configs") if d.is_dir())
    path = root / name
    if not path.is_file():
        known = sorted(str(p.relative_to(root)) for p in root.rglob("*.yaml"))
        raise FileNotFoundError(f"focal_retina has no config {name!r}. It has: {', '.join(known)}")
    return str(path)


def config_hash(cfg: CfgNode, *inputs: object) -> str:
    """sha256 of what decides a result: the config but for OUTPUT_DIR, and ``inputs``, values that
    json can hold."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = ""
    return hashlib.sha256(json.dumps([cfg.dump(), *inputs]).encode()).hexdigest()


def merge_config_file(cfg: CfgNode, path: str) -> None:
    """Merge the yaml at ``path`` (and its ``_BASE_`` files) into ``cfg``, without executing any of
    it.

    Raises:
        FileNotFoundError: the file or one of its bases does not exist.
        ValueError: not a yaml mapping, an unsafe tag, a value of the wrong type, or an old config
            version.
        KeyError: a key that ``cfg`` does not have.
    """
    loaded = load_yaml_with_base(path)
    version = loaded.get("VERSION", cfg.VERSION)
    if version != cfg.VERSION:
        raise ValueError(
            f"{path}: config version {version} is not {cfg.VERSION}; "
            "convert it with Detectron2's config tools first"
        )
    cfg.merge_from_other_cfg(CfgNode(loaded))


def load_yaml_with_base(path: str) -> dict[str, Any]:
    """Load one yaml and what its ``_BASE_`` (a path, or a list of paths, relative to the file)
    names.

    Later files win over earlier ones, and the file itself wins over its bases, as in Detectron2.
    """
    return _load_with_base(path, chain=())


def _load_with_base(path: str, chain: tuple[str, ...]) -> dict[str, Any]:
    if path in chain:
        raise ValueError(f"{path}: {_BASE_KEY} files form a circle: {' -> '.join((*chain, path))}")
    own = _load_yaml(path)
    bases = own.pop(_BASE_KEY, [])
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        _merge_into(merged, _load_with_base(_resolve(base, path), (*chain, path)), base)
    _merge_into(merged, own, path)
    return merged


def _resolve(base: str, path: str) -> str:
    if base.startswith("~"):
        return str(Path(base).expanduser())
    if base.startswith("/") or "://" in base:
        return base
    # Not resolved: a path may be a PathManager URL, such as detectron2://
    return f"{path.rpartition('/')[0] or '.'}/{base}"


def _merge_into(target: dict[str, Any], source: dict[str, Any], path: str) -> None:
    for key, value in source.items():
        if isinstance(value, dict) and key in target:
            if not isinstance(target[key], dict):
                raise ValueError(f"{path}: {key} is a section here and a value in the base config")
            _merge_into(target[key], value, path)
        else:
            target[key] = value


def _load_yaml(path: str) -> dict[str, Any]:
    if not PathManager.isfile(path):
        raise FileNotFoundError(f"config file {path} does not exist")
    with PathManager.open(path, "r") as f:
        try:
            loaded = yaml.load(f, Loader=_ConfigLoader)  # a SafeLoader
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path}: not a config that can be read: {' '.join(str(error).split())}"
            ) from error
    if not isinstance(loaded, dict):
        raise ValueError(
            f"{path}: a config is a mapping of keys, this file holds {type(loaded).__name__}"
        )
    return loaded


class _ConfigLoader(yaml.SafeLoader):
    """PyYAML's safe loader, and the arithmetic of Detectron2's zoo files."""


def _construct_arithmetic(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    if not isinstance(node, yaml.SequenceNode):
        raise yaml.constructor.ConstructorError(
            None, None, "expected one expression in a list", node.start_mark
        )
    arguments = loader.construct_sequence(node)
    if len(arguments) != 1 or not isinstance(arguments[0], str):
        raise yaml.constructor.ConstructorError(
            None, None, "expected one expression in a list", node.start_mark
        )
    try:
        return _evaluate(ast.parse(arguments[0], mode="eval").body, {})
    except (SyntaxError, TypeError, ValueError, ArithmeticError) as error:
        problem = f"{arguments[0]!r} is not plain arithmetic over numbers and lists: {error}"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


_ConfigLoader.add_constructor(_EVAL_TAG, _construct_arithmetic)


def _evaluate(node: ast.expr, names: dict[str, Any]) -> Any:
    """Value of an expression of numbers, lists, ``+ - * / // **`` and comprehensions over lists."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_evaluate(element, names) for element in node.elts]
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_evaluate_number(node.operand, names))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _evaluate_number(node.left, names), _evaluate_number(node.right, names)
        if isinstance(node.op, ast.Pow) and abs(right) > _LARGEST_EXPONENT:
            raise ValueError(f"exponent {right} is beyond {_LARGEST_EXPONENT}")
        return _BINARY[type(node.op)](left, right)
    if isinstance(node, ast.ListComp) and len(node.generators) == 1:
        (loop,) = node.generators
        if isinstance(loop.target, ast.Name) and not loop.ifs and not loop.is_async:
            items = _evaluate(loop.iter, names)
            return [_evaluate(node.elt, {**names, loop.target.id: item}) for item in items]
    raise ValueError(f"{ast.unparse(node)!r} is not allowed")


def _evaluate_number(node: ast.expr, names: dict[str, Any]) -> float:
    value = _evaluate(node, names)
    if not isinstance(value, (int, float)):
        raise TypeError(f"{ast.unparse(node)!r} is not a number")
    return value
