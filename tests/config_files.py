"""The yaml files of configs/, for the tests of them."""

from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from focal_retina import add_focal_retina_config, merge_config_file

CONFIGS = Path(__file__).parents[1] / "configs"
SWEEPS = sorted((CONFIGS / "sweeps").glob("*.yaml"))
MODELS = sorted(set(CONFIGS.rglob("*.yaml")) - set(SWEEPS))


def name_of(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def load(path: Path | str) -> CfgNode:
    """The config of a file of configs/, its device the CPU."""
    cfg = get_cfg()
    add_focal_retina_config(cfg)
    merge_config_file(cfg, str(CONFIGS / path))
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def header(path: Path) -> list[str]:
    """Lines of the comment that the file starts with, without the number sign and one space."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].removeprefix(" "))
    return lines


def commands(path: Path) -> list[list[str]]:
    """Commands of the header, as words; a line that ends in a backslash goes on in the next."""
    text = "\n".join(header(path)).replace("\\\n", " ")
    return [line.split() for line in text.splitlines() if line.strip().startswith("./run ")]


def differences(cfg: CfgNode, base: CfgNode, prefix: str = "") -> dict[str, object]:
    """Keys in which ``cfg`` differs from ``base``, with its values."""
    changed: dict[str, object] = {}
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            changed |= differences(value, base[key], f"{prefix}{key}.")
        elif value != base[key]:
            changed[f"{prefix}{key}"] = value
    return changed
