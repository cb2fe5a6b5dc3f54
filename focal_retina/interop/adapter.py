"""What a library's file states: a key map, a spec, and what surrounds the tensors in its files."""

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from .architecture import Architecture
from .spec import STRIDES, ModelSpec

Data = Mapping[str, Any]  # what is loaded from a file and saved to one
Tensors = dict[str, Tensor]

# What stands for a field of a template; every other field is a number.
_FIELDS = {"parameter": "weight|bias|running_mean|running_var", "fpn_norm": "bn|gn"}


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A library's RetinaNet: what its weights are called, and what they mean.

    Attributes:
        name: on the command line.
        keys: templates of names (see :mod:`.architecture`) to templates of the library's. ``{i}``
            is a number; ``{parameter}`` and ``{fpn_norm}`` a word; ``{depth}``, ``{last3}`` (the
            last block's index of stage 3) to ``{last5}`` and ``{fpn_norm}`` come from the
            architecture. What the library has no tensor for is left out.
        spec: what its weights mean by the library's defaults.
        is_configurable: a config says what the weights mean, and ``spec`` does not.
        whole_sizes: anchor sizes are cut to whole pixels.
        sizes_vary_fastest: in the order of its anchors; in Detectron2's the aspect ratios do.
        has_background_row: its classes are numbered from 1, and row 0 of each anchor is unused; a
            model of COCO's 80 has 91 rows, COCO's category numbers.
        has_fixed_mean: its pixel mean cannot be set.
        has_bias_before_norm: in the subnets.
        head_norms, fpn_norms, num_convs: the architectures that it can have; None: any number.
        spare: prefixes of tensors that its detector does not run, and what they are.
    """

    name: str
    keys: Mapping[str, str]
    spec: ModelSpec
    is_configurable: bool = False
    whole_sizes: bool = False
    sizes_vary_fastest: bool = False
    has_background_row: bool = False
    has_fixed_mean: bool = False
    has_bias_before_norm: bool = False
    head_norms: tuple[str, ...] = ("",)
    fpn_norms: tuple[str, ...] = ("",)
    num_convs: int | None = None
    spare: Mapping[str, str] = field(default_factory=dict)

    def from_keys(self, keys: Iterable[str]) -> dict[str, str]:
        """The library's keys to our names, without keys that it does not have."""
        templates = {theirs: ours for ours, theirs in self.keys.items()}
        names = {key: _rename(key, templates, {}) for key in keys}
        return {key: name for key, name in names.items() if name is not None}

    def to_key(self, name: str, architecture: Architecture) -> str | None:
        """The library's key of one of our names; None: it has no such tensor."""
        is_before_norm = architecture.head_norm and re.search(r"_subnet\.\d+\.bias$", name)
        if is_before_norm and not self.has_bias_before_norm:
            return None
        fields = {f"last{stage}": str(architecture.last_block(stage)) for stage in (3, 4, 5)}
        fields |= {"depth": str(architecture.depth), "fpn_norm": architecture.fpn_norm.lower()}
        return _rename(name, self.keys, fields)

    def unwrap(self, data: Data, spec: ModelSpec) -> tuple[Data, ModelSpec]:
        """The tensors of what was loaded from a file, and the spec with what else the file says.

        Raises:
            ValueError: the file says otherwise than ``spec``.
        """
        return inner(data, "model"), spec

    def wrap(self, tensors: Tensors, spec: ModelSpec, architecture: Architecture) -> Data:
        """What the library saves and loads, with the tensors in it."""
        return tensors

    def spec_of(self, num_classes: int, num_anchors: int, ratios: tuple[float, ...]) -> ModelSpec:
        """What its weights mean, of K classes and A anchors a position.

        Raises:
            ValueError: the anchors are no multiple of the aspect ratios, or those not positive; or
                the meaning stands in a config.
        """
        if self.is_configurable:
            raise ValueError(f"weights of {self.name} need the model's config (--config-file)")
        if min(ratios) <= 0:
            raise ValueError(f"aspect ratios {ratios} are not all positive")
        if num_anchors % len(ratios):
            raise ValueError(
                f"{num_anchors} anchors are no multiple of {len(ratios)} aspect ratios; name those "
                "with --aspect-ratios"
            )
        count = num_anchors // len(ratios)  # sizes an octave (paper section 4)
        sizes = [[4 * stride * 2 ** (i / count) for i in range(count)] for stride in STRIDES]
        if self.whole_sizes:
            sizes = [[float(int(size)) for size in level] for level in sizes]
        anchors = replace(self.spec.anchors, sizes=tuple(map(tuple, sizes)), ratios=ratios)
        return replace(self.spec, num_classes=num_classes, anchors=anchors)


def inner(data: Data, key: str) -> Data:
    """The tensors: under ``key`` in a checkpoint, else the dict itself."""
    value = data.get(key)
    return value if isinstance(value, Mapping) else data


def check_count(what: str, found: int | None, stated: int, option: str) -> None:
    """Compare a count that a file may state with that of the spec."""
    if found not in (None, stated):
        raise ValueError(
            f"the file is of {found} {what}, and not the {stated} that are stated ({option}, or "
            "the config)"
        )


def of_modules(keys: Mapping[str, str]) -> dict[str, str]:
    """Templates of modules to those of their tensors."""
    return {f"{ours}.{{parameter}}": f"{theirs}.{{parameter}}" for ours, theirs in keys.items()}


def resnet_keys(prefix: str) -> dict[str, str]:
    """Modules of ``torchvision.models.ResNet``, whose names mmdetection and ODTK have too."""
    ours = "backbone.bottom_up"
    keys = {f"{ours}.stem.conv1": f"{prefix}.conv1", f"{ours}.stem.conv1.norm": f"{prefix}.bn1"}
    for stage in (2, 3, 4, 5):
        block, layer = f"{ours}.res{stage}.{{block}}", f"{prefix}.layer{stage - 1}.{{block}}"
        keys |= {
            f"{block}.conv{{i}}": f"{layer}.conv{{i}}",
            f"{block}.conv{{i}}.norm": f"{layer}.bn{{i}}",
            f"{block}.shortcut": f"{layer}.downsample.0",
            f"{block}.shortcut.norm": f"{layer}.downsample.1",
        }
    return keys


def _rename(name: str, templates: Mapping[str, str], fields: Mapping[str, str]) -> str | None:
    for template, renamed in templates.items():
        if match := _pattern(template).fullmatch(name):
            return renamed.format(**fields, **match.groupdict())
    return None


@functools.cache
def _pattern(template: str) -> re.Pattern:
    parts = re.split(r"\{(\w+)\}", template)  # text, field, text, field, …, text
    parts[::2] = map(re.escape, parts[::2])
    parts[1::2] = [f"(?P<{name}>{_FIELDS.get(name, '[0-9]+')})" for name in parts[1::2]]
    return re.compile("".join(parts))
