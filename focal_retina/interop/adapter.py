"""What a library's file states: a key map, a config, and what surrounds the tensors in a file; and
what Detectron2 has of these."""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor

from ..weight_reader import check_named_tensors
from .spec import BLOCKS, BOX, CLS, anchors_per_position, check_count, make_spec, set_anchors

Data = Mapping[str, Any]  # what is loaded from a file and saved to one
Tensors = dict[str, Tensor]

_COCO_IDS = [category["id"] for category in COCO_CATEGORIES if category["isthing"]]
_COCO_ROWS = 91  # of background, and of numbers 1 to 90, ten of which no category has


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A library's RetinaNet: what its weights are called, and what they mean.

    ``keys`` are templates of names (see :mod:`.spec`) to templates of the library's, of modules or
    of tensors. ``{i}`` and the like are numbers; ``{depth}``, ``{last3}`` (the last block's index
    of stage 3) to ``{last5}`` and ``{fpn_norm}`` come from the spec. What the library has no tensor
    for is left out.
    """

    name: str  # on the command line
    keys: Mapping[str, str]
    config: Mapping[str, Any]  # where its models differ from Detectron2's default config
    free: Sequence[str] = ()  # keys of which it can have any value
    place: str = ""  # the key of its tensors in what it saves; none: they are saved alone
    beside: Mapping[str, Any] = field(default_factory=dict)  # what it saves with them
    spare: str = "(?!)"  # what tensors that its detector does not run are called, a regex
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0)  # of its anchors, by default and in order
    whole_sizes: bool = False  # anchor sizes are cut to whole pixels
    sizes_vary_fastest: bool = False  # of its anchors; in Detectron2 the aspect ratios do
    # Row 0 of each anchor is unused; a model of COCO's 80 classes has 91 rows, COCO's numbers.
    has_background_row: bool = False
    has_fixed_mean: bool = False  # its pixel mean cannot be set

    def from_keys(self, keys: Iterable[str]) -> dict[str, str]:
        """The library's keys to our names, without keys that it does not have."""
        templates = {theirs: ours for ours, theirs in self.keys.items()}
        names = {key: _rename(key, templates, {}) for key in keys}
        return {key: name for key, name in names.items() if name is not None}

    def to_key(self, name: str, spec: CfgNode) -> str | None:
        """The library's key of one of our names; None: it has no such tensor."""
        if spec.MODEL.RETINANET.NORM and re.search(r"_subnet\.\d+\.bias$", name):
            return None  # Detectron2 alone has a bias before a norm
        depth = spec.MODEL.RESNETS.DEPTH
        fields = {f"last{3 + i}": str(count - 1) for i, count in enumerate(BLOCKS[depth])}
        fields |= {"depth": str(depth), "fpn_norm": spec.MODEL.FPN.NORM.lower()}
        return _rename(name, self.keys, fields)

    def unwrap(self, data: Data, spec: CfgNode) -> Data:
        """The tensors of what was loaded from a file. What else the file says is set in ``spec``;
        ValueError where it contradicts ``spec``."""
        inner = data.get(self.place or "model")
        tensors = inner if isinstance(inner, Mapping) else data
        check_named_tensors("the file", tensors)
        return tensors

    def wrap(self, tensors: Tensors, spec: CfgNode) -> dict[str, Any]:
        """What the library saves and loads, with the tensors in it."""
        return {self.place: tensors, **self.beside} if self.place else dict(tensors)

    def spec_of(
        self, num_classes: int = 80, num_anchors: int = 9, aspect_ratios: Sequence[float] = ()
    ) -> CfgNode:
        """What its weights mean, of K classes and A anchors a position; ValueError where that
        cannot be."""
        aspect_ratios = aspect_ratios or self.aspect_ratios
        count, rest = divmod(num_anchors, len(aspect_ratios))  # sizes an octave (paper section 4)
        if rest:
            ratios = f"{len(aspect_ratios)} aspect ratios; name those with --aspect-ratios"
            raise ValueError(f"{num_anchors} anchors are no multiple of {ratios}")
        spec = make_spec({**self.config, "MODEL.RETINANET.NUM_CLASSES": num_classes})
        scales = [4 * 2 ** (i / count) for i in range(count)]
        set_anchors(spec, scales, aspect_ratios)
        if self.whole_sizes:
            sizes = spec.MODEL.ANCHOR_GENERATOR.SIZES
            spec.MODEL.ANCHOR_GENERATOR.SIZES = [[float(int(x)) for x in level] for level in sizes]
        return spec

    def num_rows(self, num_classes: int, stated: int | None = None) -> int:
        """Classification rows of an anchor, unless a file stated them."""
        if not self.has_background_row:
            return num_classes
        return stated or (_COCO_ROWS if num_classes == len(_COCO_IDS) else num_classes + 1)

    def class_rows(self, num_rows: int, num_classes: int) -> list[int]:
        """The row, of an anchor's in the file, of each of Detectron2's K contiguous classes."""
        if self.has_background_row and num_rows == num_classes + 1:
            return list(range(1, num_rows))
        if self.has_background_row and (num_rows, num_classes) == (_COCO_ROWS, len(_COCO_IDS)):
            return list(_COCO_IDS)
        check_count("classes", num_rows, num_classes)
        return list(range(num_rows))

    def output_channels(self, spec: CfgNode, num_rows: int) -> dict[str, Tensor]:
        """Of each output, the library's channel for each of ours, whose aspect ratios vary fastest;
        an anchor has ``num_rows`` there."""
        anchors = torch.arange(anchors_per_position(spec))
        if self.sizes_vary_fastest:
            num_ratios = len(spec.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS[0])
            anchors = anchors.view(num_ratios, -1).t().flatten()
        rows = self.class_rows(num_rows, spec.MODEL.RETINANET.NUM_CLASSES)
        return {
            output: (anchors[:, None] * count + torch.tensor(used)).flatten()
            for output, used, count in ((CLS, rows, num_rows), (BOX, range(4), 4))
        }


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
            values = match.groupdict(default="")
            return renamed.format(**fields, **values) + values["parameter"]
    return None


@functools.cache
def _pattern(template: str) -> re.Pattern:
    parts = re.split(r"\{(\w+)\}", template)  # text, field, text, field, …, text
    parts[::2] = map(re.escape, parts[::2])
    parts[1::2] = [f"(?P<{x}>{'bn|gn' if x == 'fpn_norm' else '[0-9]+'})" for x in parts[1::2]]
    parameter = r"(?P<parameter>\.(weight|bias|running_mean|running_var))?"
    return re.compile("".join(parts) + parameter)


class Detectron2Adapter(Adapter):
    """Detectron2's own names, by way of which all others are converted. A subnet is an
    ``nn.Sequential`` of convolution, norm where there is one, and ReLU."""

    def from_keys(self, keys: Iterable[str]) -> dict[str, str]:
        keys = list(keys)
        step = 3 if any("_subnet.1." in key for key in keys) else 2

        def count(match: re.Match) -> str:
            conv, position = divmod(int(match[1]), step)
            return f"_subnet.{conv}." + ("norm." if position else "")

        return {key: re.sub(r"_subnet\.(\d+)\.", count, key) for key in keys}

    def to_key(self, name: str, spec: CfgNode) -> str | None:
        step = 3 if spec.MODEL.RETINANET.NORM else 2
        position = lambda x: f"_subnet.{step * int(x[1]) + bool(x[2])}."  # noqa: E731
        return re.sub(r"_subnet\.(\d+)\.(norm\.)?", position, name)


DETECTRON2 = Detectron2Adapter(
    name="detectron2",
    keys={},  # see from_keys and to_key
    config={},
    place="model",
    beside={"__author__": "focal_retina", "matching_heuristics": False},
    # Of the config, computed from it, and of the training alone
    spare=r"pixel_mean|pixel_std|anchor_generator\..*|loss_normalizer\..*",
)
