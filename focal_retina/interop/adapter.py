"""What a library's file states: a key map, a config, and what surrounds the tensors in a file; and
its output channels.

Shapes: K classes, A anchors a position. A classification output has A x rows channels, a box output
A x 4; there may be more rows than classes.
"""

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor

from .spec import BLOCKS, OUTPUTS, STRIDES, anchors_per_position, make_spec

Data = Mapping[str, Any]  # what is loaded from a file and saved to one
Tensors = dict[str, Tensor]

_CLS, _BOX = OUTPUTS.values()
_COCO_IDS = [category["id"] for category in COCO_CATEGORIES if category["isthing"]]
_COCO_ROWS = 91  # rows 0, and 1 to 90 for category numbers, eleven of which nothing has
_UNUSED_LOGIT = -math.log(0.99 / 0.01)  # as untrained: a score of .01 (paper section 3.3)
# What stands for a field of a template; every other field is a number.
_FIELDS = {"parameter": "weight|bias|running_mean|running_var", "fpn_norm": "bn|gn"}


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A library's RetinaNet: what its weights are called, and what they mean.

    ``keys`` are templates of names (see :mod:`.spec`) to templates of the library's. ``{i}`` is a
    number; ``{parameter}`` and ``{fpn_norm}`` a word; ``{depth}``, ``{last3}`` (the last block's
    index of stage 3) to ``{last5}`` and ``{fpn_norm}`` come from the spec. What the library has no
    tensor for is left out.
    """

    name: str  # on the command line
    keys: Mapping[str, str]
    config: Mapping[str, Any]  # where its models differ from Detectron2's default config
    choices: Mapping[str, tuple] = field(default_factory=dict)
    """Other values of keys that it can have; none: any."""
    needs_config: bool = False  # the weights' meaning stands in a config file, not in `config`
    whole_sizes: bool = False  # anchor sizes are cut to whole pixels
    sizes_vary_fastest: bool = False  # of its anchors; in Detectron2 the aspect ratios do
    has_background_row: bool = False
    """Classes are numbered from 1, and row 0 of each anchor is unused; a model of COCO's 80 has 91
    rows, COCO's category numbers."""
    has_fixed_mean: bool = False  # its pixel mean cannot be set
    has_bias_before_norm: bool = False  # in the subnets
    spare: Mapping[str, str] = field(default_factory=dict)
    """Prefixes of tensors that its detector does not run, and what they are."""

    def from_keys(self, keys: Iterable[str]) -> dict[str, str]:
        """The library's keys to our names, without keys that it does not have."""
        templates = {theirs: ours for ours, theirs in self.keys.items()}
        names = {key: _rename(key, templates, {}) for key in keys}
        return {key: name for key, name in names.items() if name is not None}

    def to_key(self, name: str, spec: CfgNode) -> str | None:
        """The library's key of one of our names; None: it has no such tensor."""
        is_before_norm = spec.MODEL.RETINANET.NORM and re.search(r"_subnet\.\d+\.bias$", name)
        if is_before_norm and not self.has_bias_before_norm:
            return None
        depth = spec.MODEL.RESNETS.DEPTH
        fields = {f"last{stage}": str(BLOCKS[depth][stage - 2] - 1) for stage in (3, 4, 5)}
        fields |= {"depth": str(depth), "fpn_norm": spec.MODEL.FPN.NORM.lower()}
        return _rename(name, self.keys, fields)

    def unwrap(self, data: Data, spec: CfgNode) -> Data:
        """The tensors of what was loaded from a file. What else the file says is set in ``spec``;
        ValueError where it contradicts ``spec``."""
        return inner(data, "model")

    def wrap(self, tensors: Tensors, spec: CfgNode) -> dict[str, Any]:
        """What the library saves and loads, with the tensors in it."""
        return dict(tensors)

    def spec_of(self, num_classes: int, num_anchors: int, ratios: Sequence[float]) -> CfgNode:
        """What its weights mean, of K classes and A anchors a position; ValueError where that
        cannot be."""
        if self.needs_config:
            raise ValueError(f"weights of {self.name} need the model's config (--config-file)")
        if min(ratios) <= 0:
            raise ValueError(f"aspect ratios {tuple(ratios)} are not all positive")
        if num_anchors % len(ratios):
            raise ValueError(
                f"{num_anchors} anchors are no multiple of {len(ratios)} aspect ratios; name those "
                "with --aspect-ratios"
            )
        count = num_anchors // len(ratios)  # sizes an octave (paper section 4)
        sizes = [[4 * stride * 2 ** (i / count) for i in range(count)] for stride in STRIDES]
        if self.whole_sizes:
            sizes = [[float(int(size)) for size in level] for level in sizes]
        spec = make_spec(self.config)
        spec.MODEL.RETINANET.NUM_CLASSES = num_classes
        spec.MODEL.ANCHOR_GENERATOR.SIZES = sizes
        spec.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [list(ratios)]
        return spec


def inner(data: Data, key: str) -> Data:
    """The tensors: under ``key`` in a checkpoint, else the dict itself."""
    value = data.get(key)
    return value if isinstance(value, Mapping) else data


def check_count(what: str, found: float | None, stated: int, option: str) -> None:
    """Compare a count that a file may show with that of the spec."""
    if found not in (None, stated):
        raise ValueError(
            f"{what.format(found)}, and not the {stated} that are stated ({option}, or the config)"
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


def fpn_keys(lateral: str, output: str, *, conv: str, norm: str) -> dict[str, str]:
    """Modules of an FPN whose levels are counted from 0, each a convolution and maybe a norm."""
    keys = {}
    for i in range(3):
        for ours, theirs in (("lateral", lateral), ("output", output)):
            keys[f"backbone.fpn_{ours}{i + 3}"] = f"{theirs}.{i}.{conv}"
            keys[f"backbone.fpn_{ours}{i + 3}.norm"] = f"{theirs}.{i}.{norm}"
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


def read_head(ours: Tensors, source: Adapter, spec: CfgNode) -> tuple[int, list[int]]:
    """Change the outputs to Detectron2's classes and order of anchors; return the source's
    classification rows of an anchor, and which of them the K classes are."""
    num_anchors, num_classes = anchors_per_position(spec), spec.MODEL.RETINANET.NUM_CLASSES
    num_rows = count_rows(len(ours[f"{_CLS}.bias"]), len(ours[f"{_BOX}.bias"]), num_anchors)
    rows = class_rows(num_rows, num_classes, has_background_row=source.has_background_row)
    for output, used, count in ((_CLS, rows, num_rows), (_BOX, range(4), 4)):
        channels = channels_of(spec, used, count, sizes_vary_fastest=source.sizes_vary_fastest)
        for name in (f"{output}.weight", f"{output}.bias"):
            ours[name] = ours[name][channels]
    return num_rows, rows


def write_head(ours: Tensors, target: Adapter, spec: CfgNode, num_rows: int | None) -> int:
    """The inverse of :func:`read_head`; a row of no class always scores .01.

    Takes and returns the target's classification rows of an anchor; None: as it has them for K.
    """
    has_background, num_classes = target.has_background_row, spec.MODEL.RETINANET.NUM_CLASSES
    if not has_background:
        num_rows = num_classes
    elif num_rows is None:
        num_rows = _COCO_ROWS if num_classes == len(_COCO_IDS) else num_classes + 1
    rows = class_rows(num_rows, num_classes, has_background_row=has_background)
    for output, used, count in ((_CLS, rows, num_rows), (_BOX, range(4), 4)):
        channels = channels_of(spec, used, count, sizes_vary_fastest=target.sizes_vary_fastest)
        for name, unused in ((f"{output}.weight", 0.0), (f"{output}.bias", _UNUSED_LOGIT)):
            shape = (anchors_per_position(spec) * count, *ours[name].shape[1:])
            written = ours[name].new_full(shape, unused)
            written[channels] = ours[name]
            ours[name] = written
    return num_rows


def count_rows(num_cls_channels: int, num_box_channels: int, num_anchors: int) -> int:
    """Classification rows of an anchor. The box output tells A; the product alone does not, as 720
    is 9 x 80 and 12 x 60.
    """
    what = f"the box output has {num_box_channels} channels, which is {{:g}} anchors a position"
    check_count(what, num_box_channels / 4, num_anchors, "--num-anchors")
    if num_cls_channels % num_anchors:
        raise ValueError(
            f"the classification output has {num_cls_channels} channels, which is no multiple of "
            f"{num_anchors} anchors"
        )
    return num_cls_channels // num_anchors


def class_rows(num_rows: int, num_classes: int, *, has_background_row: bool) -> list[int]:
    """The row, of an anchor's in the file, of each of Detectron2's K contiguous classes.

    Row 0 may be a background that nothing is assigned to (torchvision).
    """
    if has_background_row and num_rows == num_classes + 1:
        return list(range(1, num_rows))
    if has_background_row and (num_rows, num_classes) == (_COCO_ROWS, len(_COCO_IDS)):
        return list(_COCO_IDS)
    check_count("the file has {} classes an anchor", num_rows, num_classes, "--num-classes")
    return list(range(num_rows))


def channels_of(
    spec: CfgNode, rows: Sequence[int], num_rows: int, *, sizes_vary_fastest: bool
) -> Tensor:
    """A library's channel (A x len(rows),) for each of ours, whose aspect ratios vary fastest;
    ``rows`` are those of an anchor's ``num_rows`` that we have, in our order."""
    order = torch.arange(anchors_per_position(spec))
    if sizes_vary_fastest:
        order = order.view(len(spec.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS[0]), -1).t().flatten()
    return (order[:, None] * num_rows + torch.tensor(rows)).flatten()
