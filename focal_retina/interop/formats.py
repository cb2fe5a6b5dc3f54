"""The libraries whose RetinaNet weights can be read and written, a :class:`WeightFormat` each."""

import itertools
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from . import layouts
from .architecture import BLOCKS, Architecture
from .structure import STRIDES, AnchorSettings, Pixels, Structure

_IMAGENET_RGB = Pixels("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_CAFFE_BGR = Pixels("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
_DETECTRON_BGR = Pixels("BGR", (102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0))

Metadata = dict[str, Any]


def _octave_sizes(num_sizes: int, rounding: Callable[[float], float] = float) -> tuple:
    """Sizes 4 strides x 2^(i / num_sizes) per level (paper section 4)."""
    return tuple(
        tuple(float(rounding(4 * stride * 2 ** (i / num_sizes))) for i in range(num_sizes))
        for stride in STRIDES
    )


def _inner(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The tensors: under ``key`` in a checkpoint, else the dict itself."""
    inner = data.get(key)
    return inner if isinstance(inner, Mapping) else data


def _unwrap_plain(data: Mapping[str, Any]) -> tuple[Mapping[str, Any], Metadata]:
    return _inner(data, "model"), {}


def _wrap_plain(tensors: dict[str, Tensor], structure: Structure, depth: int) -> dict[str, Any]:
    return dict(tensors)


@dataclass(frozen=True, kw_only=True)
class WeightFormat:
    """A library's RetinaNet: what its weights are called, and what they mean.

    Attributes:
        name: on the command line.
        keys: Detectron2's names to the library's, of an architecture.
        pixels: what its first convolution takes; None: what the config says.
        generator, offset: ``MODEL.ANCHOR_GENERATOR`` that gives its anchors.
        sizes: anchor sizes per level, of the number of sizes a level.
        sizes_vary_fastest: in the order of its anchors; in Detectron2's the aspect ratios do.
        stride_in_1x1, p6_from, p7_relu: see :class:`Structure`.
        has_background_row: its classes are numbered from 1, and row 0 of each anchor is unused; a
            model of COCO's 80 has 91 rows, COCO's category numbers.
        has_fixed_mean: its pixel mean cannot be set.
        head_norms, fpn_norms, num_convs: the :class:`Architecture` that it can have.
        spare: prefixes of tensors that its detector does not run, and what they are.
        unwrap: what is loaded from a file to the named tensors and ``num_classes``, ``ratios`` and
            ``scales`` where it tells them.
        wrap: named tensors, structure and depth to what is saved.
    """

    name: str
    keys: Callable[[Architecture], dict[str, str]]
    pixels: Pixels | None
    generator: str = "DefaultAnchorGenerator"
    offset: float = 0.0
    sizes: Callable[[int], tuple[tuple[float, ...], ...]] = _octave_sizes
    sizes_vary_fastest: bool = False
    stride_in_1x1: bool = False
    p6_from: str = "res5"
    p7_relu: bool = True
    has_background_row: bool = False
    has_fixed_mean: bool = False
    head_norms: tuple[str, ...] = ("",)
    fpn_norms: tuple[str, ...] = ("",)
    num_convs: tuple[int, ...] = (4, 1, 2, 3, 5, 6)
    spare: Mapping[str, str] = field(default_factory=dict)
    unwrap: Callable[[Mapping[str, Any]], tuple[Mapping[str, Any], Metadata]] = _unwrap_plain
    wrap: Callable[[dict[str, Tensor], Structure, int], dict[str, Any]] = _wrap_plain

    @property
    def is_configurable(self) -> bool:
        """Whether a config says what the weights mean, as Detectron2's does."""
        return self.pixels is None

    def find_architecture(self, names: Set[str]) -> Architecture:
        """The variant whose tensors are most nearly those of a file."""
        variants = itertools.starmap(
            Architecture,
            itertools.product(BLOCKS, self.num_convs, self.head_norms, self.fpn_norms),
        )
        return min(variants, key=lambda variant: len(set(self.keys(variant).values()) ^ names))

    def structure(self, num_classes: int, num_anchors: int, ratios: tuple[float, ...]) -> Structure:
        """What its weights mean by the library's defaults.

        Raises:
            ValueError: the anchors are no multiple of the aspect ratios, or those not positive; or
                the meaning stands in a config.
        """
        if self.pixels is None:
            raise ValueError(f"weights of {self.name} need the model's config (--config-file)")
        if min(ratios) <= 0:
            raise ValueError(f"aspect ratios {ratios} are not all positive")
        if num_anchors % len(ratios):
            raise ValueError(
                f"{num_anchors} anchors are no multiple of {len(ratios)} aspect ratios; name those "
                "with --aspect-ratios"
            )
        return Structure(
            num_classes=num_classes,
            anchors=AnchorSettings(
                self.generator, self.sizes(num_anchors // len(ratios)), ratios, self.offset
            ),
            pixels=self.pixels,
            stride_in_1x1=self.stride_in_1x1,
            p6_from=self.p6_from,
            p7_relu=self.p7_relu,
        )


def _wrap_detectron2(tensors: dict[str, Tensor], structure: Structure, depth: int) -> dict:
    return {"model": tensors, "__author__": "focal_retina", "matching_heuristics": False}


def _unwrap_torchvision(data: Mapping[str, Any]) -> tuple[Mapping[str, Any], Metadata]:
    """The published v1 weights are of before each convolution and its ReLU were one module."""
    tensors = dict(_inner(data, "model"))  # its reference training script saves {"model": …}
    for old, new in layouts.legacy_torchvision_keys().items():
        if old in tensors:
            tensors[new] = tensors.pop(old)
    return tensors, {}


_TORCHVISION: dict[str, Any] = {
    "keys": layouts.torchvision_keys,
    "pixels": _IMAGENET_RGB,
    "generator": "TorchvisionAnchorGenerator",
    "sizes": lambda num_sizes: _octave_sizes(num_sizes, int),
    "sizes_vary_fastest": True,
    "has_background_row": True,
    "fpn_norms": ("", "BN", "GN"),
    "num_convs": (4,),
    "unwrap": _unwrap_torchvision,
}


def _unwrap_mmdet(data: Mapping[str, Any]) -> tuple[Mapping[str, Any], Metadata]:
    meta = data.get("meta") or {}
    dataset = meta.get("dataset_meta") or meta  # 3.x or 2.x
    classes = dataset.get("CLASSES") or dataset.get("classes")
    return _inner(data, "state_dict"), {"num_classes": len(classes)} if classes else {}


def _wrap_mmdet(tensors: dict[str, Tensor], structure: Structure, depth: int) -> dict:
    return {"meta": {}, "state_dict": tensors}


_MMDET: dict[str, Any] = {
    "keys": layouts.mmdet_keys,
    "sizes_vary_fastest": True,
    "p7_relu": False,
    "head_norms": ("", "GN"),
    "fpn_norms": ("", "BN", "GN"),
    "unwrap": _unwrap_mmdet,
    "wrap": _wrap_mmdet,
}


def _unwrap_detectron(data: Mapping[str, Any]) -> tuple[Mapping[str, Any], Metadata]:
    blobs = _inner(data, "blobs").items()
    return {name: blob for name, blob in blobs if not name.endswith("_momentum")}, {}


def _wrap_detectron(tensors: dict[str, Tensor], structure: Structure, depth: int) -> dict:
    return {"blobs": tensors}


def _unwrap_odtk(data: Mapping[str, Any]) -> tuple[Mapping[str, Any], Metadata]:
    if "angles" in data:
        raise ValueError("it detects rotated boxes, which RetinaNet of Detectron2 does not")
    metadata = {"num_classes": data.get("classes")}
    metadata |= {name: tuple(data[name]) for name in ("ratios", "scales") if name in data}
    return _inner(data, "state_dict"), metadata


def _wrap_odtk(tensors: dict[str, Tensor], structure: Structure, depth: int) -> dict:
    return {
        "backbone": [f"ResNet{depth}FPN"],
        "classes": structure.num_classes,
        "state_dict": tensors,
        "ratios": list(structure.anchors.ratios),
        "scales": [size / STRIDES[0] for size in structure.anchors.sizes[0]],
    }


_ODTK: dict[str, Any] = {
    "keys": layouts.odtk_keys,
    "pixels": _IMAGENET_RGB,
    "has_fixed_mean": True,
    "num_convs": (4,),
    "spare": {
        f"backbones.ResNet{depth}FPN.features.fc.": "the ImageNet classifier" for depth in BLOCKS
    },
    "unwrap": _unwrap_odtk,
    "wrap": _wrap_odtk,
}

_FORMATS = (
    WeightFormat(
        name="detectron2",
        keys=layouts.detectron2_keys,
        pixels=None,
        head_norms=("", "GN"),
        fpn_norms=("", "GN", "BN"),
        spare={
            "pixel_mean": "in the config",
            "pixel_std": "in the config",
            "anchor_generator.": "computed from the config",
            "loss_normalizer.": "of the training alone",
        },
        wrap=_wrap_detectron2,
    ),
    WeightFormat(name="torchvision-v1", p6_from="p5", **_TORCHVISION),
    WeightFormat(name="torchvision-v2", p6_from="res5", head_norms=("GN",), **_TORCHVISION),
    WeightFormat(name="mmdet", pixels=_IMAGENET_RGB, **_MMDET),
    WeightFormat(name="mmdet-caffe", pixels=_CAFFE_BGR, stride_in_1x1=True, **_MMDET),
    WeightFormat(
        name="detectron",
        keys=layouts.caffe2_keys,
        pixels=_DETECTRON_BGR,
        generator="DetectronAnchorGenerator",
        offset=0.5,
        stride_in_1x1=True,
        spare={  # Detectron keeps what it does not use of the ImageNet weights
            "fc1000_": "the ImageNet classifier",
            "conv1_b": "the first convolution has no bias in Detectron",
        },
        unwrap=_unwrap_detectron,
        wrap=_wrap_detectron,
    ),
    WeightFormat(name="odtk", generator="OdtkAnchorGenerator", **_ODTK),
    WeightFormat(
        name="odtk-0.2.0", generator="DetectronAnchorGenerator", offset=0.5, **_ODTK
    ),  # and before: 0.2.1 changed the anchors
)
WEIGHT_FORMATS = {weight_format.name: weight_format for weight_format in _FORMATS}
