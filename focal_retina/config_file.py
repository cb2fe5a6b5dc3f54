"""Reading config files without executing them.

Detectron2 loads yaml with the unsafe loader, because its own ``Base-RetinaNet.yaml`` computes the
anchor sizes with ``!!python/object/apply:eval``. Here that one tag is evaluated as arithmetic
(numbers, lists, one comprehension over a list), and every other Python tag is refused.
"""

import ast
import difflib
import hashlib
import json
import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

_BASE_KEY = "_BASE_"
_EVAL_TAG = "tag:yaml.org,2002:python/object/apply:eval"
# Bounds far beyond any config, which keep a hostile file from eating the machine
_MOST_VALUES, _LONGEST_EXPRESSION = 100_000, 1_000
_LARGEST_NUMBER, _LARGEST_EXPONENT = 1e9, 64
_WRONG_TYPE = r"^Type mismatch \(<class '(.+?)'> vs. <class '(.+?)'>\).* key: (\S+)"  # of yacs

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def get_config_file(name: str) -> str:
    """Path of a config that ships with focal_retina, such as ``"quickstart/shapes.yaml"``; else a
    FileNotFoundError lists those that exist."""
    package = Path(__file__).resolve().parent
    # Installed, configs/ is package data. In a checkout it stands beside the package.
    root = next(d for d in (package / "configs", package.parent / "configs") if d.is_dir())
    if not (root / name).is_file():
        known = sorted(str(p.relative_to(root)) for p in root.rglob("*.yaml"))
        raise FileNotFoundError(f"focal_retina has no config {name!r}. It has: {', '.join(known)}")
    return str(root / name)


def with_values(cfg: CfgNode, values: Mapping[str, Any]) -> CfgNode:
    """A frozen copy of ``cfg`` with other values of some keys."""
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in values.items():
        *sections, name = key.split(".")
        setattr(reduce(getattr, sections, cfg), name, value)
    cfg.freeze()
    return cfg


def config_hash(cfg: CfgNode, *inputs: object) -> str:
    """sha256 of what decides a result: the config but for OUTPUT_DIR, and ``inputs``, values that
    json can hold."""
    cfg = with_values(cfg, {"OUTPUT_DIR": ""})
    return hashlib.sha256(json.dumps([cfg.dump(), *inputs]).encode()).hexdigest()


def merge_config_file(cfg: CfgNode, path: str, *, _chain: tuple[str, ...] = ()) -> None:
    """Merge the yaml at ``path`` into ``cfg``, after the files that its ``_BASE_`` names (a path or
    a list of paths, relative to it). Nothing in it is executed. A FileNotFoundError: it or a base
    does not exist; a ValueError: it is no yaml mapping, or has an unsafe tag, an old config
    version, a key that ``cfg`` does not have, or a value of the wrong type."""
    place = path if "://" in path else os.path.realpath(path)
    if place in _chain:
        circle = " -> ".join((*_chain, place))
        raise ValueError(f"{path}: {_BASE_KEY} files form a circle: {circle}")
    tree = _load_yaml(path)
    bases = tree.pop(_BASE_KEY, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not (isinstance(bases, list) and all(isinstance(x, str) and x for x in bases)):
        raise ValueError(f"{path}: {_BASE_KEY} is {bases!r}, not a path or a list of paths")
    for base in map(os.path.expanduser, bases):
        if not base.startswith("/") and "://" not in base:
            # Not by pathlib: the folder may be a PathManager URL, such as detectron2://
            base = f"{path.rpartition('/')[0] or '.'}/{base}"
        merge_config_file(cfg, base, _chain=(*_chain, place))
    if tree.get("VERSION", cfg.VERSION) != cfg.VERSION:
        version = f"config version {tree['VERSION']} is not {cfg.VERSION}"
        raise ValueError(f"{path}: {version}; convert it with Detectron2's config tools first")
    _merge_tree(cfg, tree, path)


def merge_options(cfg: CfgNode, opts: Sequence[Any]) -> None:
    """Merge ``KEY VALUE KEY VALUE …`` into ``cfg``. A ValueError: a key that ``cfg`` does not have,
    a value of the wrong type, or a key alone."""
    if len(opts) % 2:
        raise ValueError(f"KEY VALUE arguments come in pairs, and {opts[-1]} is left over")
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        tree = value
        for name in reversed(str(key).split(".")):
            tree = {name: tree}
        _merge_tree(cfg, tree, f"{key} {value}"[:100])


def _merge_tree(cfg: CfgNode, tree: Any, where: str) -> None:
    """Merge nested dicts; an error says ``where``, and has near names for an unknown key."""
    try:
        cfg.merge_from_other_cfg(CfgNode(_with_floats(tree, cfg)))
    except (KeyError, AssertionError, TypeError, AttributeError, ValueError, RecursionError) as e:
        problem = str(e.args[0] if e.args else e)
        if unknown := re.search(r"Non-existent config key: (\S+)", problem):
            problem = f"the config has no key {unknown[1]}{near_names(unknown[1], _keys_of(cfg))}"
        elif wrong := re.search(_WRONG_TYPE, problem, re.S):
            expected, given = ("section" if "CfgNode" in x else x for x in wrong.groups()[:2])
            problem = f"{wrong[3]} is of type {expected}, not {given}"
        raise ValueError(f"{where}: {problem}") from e


def near_names(name: str, known: Iterable[str]) -> str:
    """What a message adds to an unknown name; "" where none is near."""
    near = difflib.get_close_matches(name, list(known))
    return f" (near: {', '.join(near)})" if near else ""


def _keys_of(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        yield f"{prefix}{name}"
        if isinstance(value, CfgNode):
            yield from _keys_of(value, f"{prefix}{name}.")


def _with_floats(value: Any, default: Any) -> Any:
    """``value``, its whole numbers being floats where those of the config are."""
    if isinstance(default, CfgNode) and isinstance(value, dict):
        return {name: _with_floats(x, default.get(name)) for name, x in value.items()}
    is_whole = isinstance(default, float) and re.fullmatch(r"[+-]?\d+", str(value))
    return float(value) if is_whole else value


def _load_yaml(path: str) -> dict[str, Any]:
    if not PathManager.isfile(path):
        raise FileNotFoundError(f"config file {path} does not exist")
    try:
        with PathManager.open(path, "r") as f:
            loaded = yaml.load(f, Loader=_ConfigLoader)  # a SafeLoader
        _check_tree(loaded)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"{path}: not a config that can be read: {problem}") from error
    return loaded


def _check_tree(loaded: Any) -> None:
    """Refuse what no config holds: yaml can make a large tree of a few aliases."""
    if not isinstance(loaded, dict):
        raise ValueError(f"a config is a mapping of keys, and not of type {type(loaded).__name__}")
    found: list[Any] = [loaded]
    for count, node in enumerate(found):  # it grows on the way
        if count > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_VALUES} values")
        if isinstance(node, dict):
            if wrong := [key for key in node if not isinstance(key, str)]:
                raise ValueError(f"the key {wrong[0]!r} is not text")
            found += node.values()
        if isinstance(node, (list, tuple)):
            found += node


class _ConfigLoader(yaml.SafeLoader):
    """PyYAML's safe loader, and the arithmetic of Detectron2's zoo files."""


def _construct_arithmetic(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    try:
        (expression,) = loader.construct_sequence(node)
        if len(expression) > _LONGEST_EXPRESSION:
            raise ValueError(f"it has {len(expression)} characters")
        return _evaluate(ast.parse(expression, mode="eval").body, {})
    except (SyntaxError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        problem = f"not plain arithmetic over numbers and lists: {error}"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


_ConfigLoader.add_constructor(_EVAL_TAG, _construct_arithmetic)


def _evaluate(node: ast.expr, names: dict[str, Any]) -> Any:
    """Value of an expression of numbers, lists, ``+ - * / // **`` and one comprehension."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_evaluate(element, names) for element in node.elts]
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_number(node.operand, names))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _number(node.left, names), _number(node.right, names)
        if isinstance(node.op, ast.Pow) and abs(right) > _LARGEST_EXPONENT:
            raise ValueError(f"exponent {right} is beyond {_LARGEST_EXPONENT}")
        return _OPERATORS[type(node.op)](left, right)
    if isinstance(node, ast.ListComp) and len(node.generators) == 1 and not names:
        (loop,) = node.generators
        if isinstance(loop.target, ast.Name) and isinstance(loop.iter, ast.List) and not loop.ifs:
            items = _evaluate(loop.iter, names)
            return [_evaluate(node.elt, {loop.target.id: item}) for item in items]
    raise ValueError(f"{ast.unparse(node)!r} is not allowed")


def _number(node: ast.expr, names: dict[str, Any]) -> float:
    value = _evaluate(node, names)
    if not isinstance(value, (int, float)) or abs(value) > _LARGEST_NUMBER:
        raise ValueError(f"{ast.unparse(node)!r} is not a number up to {_LARGEST_NUMBER:g}")
    return value
