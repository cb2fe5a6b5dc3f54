"""Names of a RetinaNet's tensors: Detectron2's, and the same tensors' in other libraries.

Each function takes an :class:`Architecture` and returns a dict of Detectron2's names to the
library's. What a library has no tensor for is left out.
"""

from collections.abc import Iterable, Iterator

from .architecture import AFFINE, BATCH_NORM, CONV, CONV_BIAS, Architecture

_FPN_STAGES = (3, 4, 5)
_SUBNETS = ("cls_subnet", "bbox_subnet")
_OUTPUTS = ("cls_score", "bbox_pred")

# Detectron2's module, the library's, parameters that both have
_Rows = Iterable[tuple[str, str, tuple[str, ...]]]


def _expand(rows: _Rows) -> dict[str, str]:
    return {
        f"{ours}.{parameter}": f"{theirs}.{parameter}"
        for ours, theirs, parameters in rows
        for parameter in parameters
    }


def _stage(stage: int) -> str:
    return f"backbone.bottom_up.res{stage}"


def detectron2_keys(architecture: Architecture) -> dict[str, str]:
    """Every tensor of ``detectron2.modeling.RetinaNet``, under its own name."""
    return _expand((name, name, parameters) for name, parameters in _modules(architecture))


def _modules(architecture: Architecture) -> Iterator[tuple[str, tuple[str, ...]]]:
    convs = ["backbone.bottom_up.stem.conv1"]
    for stage, block, num_convs, has_shortcut in architecture.blocks():
        names = [f"conv{i}" for i in range(1, num_convs + 1)] + ["shortcut"] * has_shortcut
        convs += [f"{_stage(stage)}.{block}.{name}" for name in names]
    for name in convs:
        yield name, CONV
        yield f"{name}.norm", BATCH_NORM
    conv, norm = architecture.fpn_parameters()
    for stage in _FPN_STAGES:
        for name in (f"backbone.fpn_lateral{stage}", f"backbone.fpn_output{stage}"):
            yield name, conv
            if norm:
                yield f"{name}.norm", norm
    for name in ("backbone.top_block.p6", "backbone.top_block.p7"):
        yield name, CONV_BIAS
    for subnet, output in zip(_SUBNETS, _OUTPUTS, strict=True):
        for i in range(architecture.num_convs):
            conv_index, norm_index = architecture.subnet_modules(i)
            yield f"head.{subnet}.{conv_index}", CONV_BIAS
            if norm_index is not None:
                yield f"head.{subnet}.{norm_index}", AFFINE
        yield f"head.{output}", CONV_BIAS


def _torchvision_resnet(architecture: Architecture, prefix: str) -> _Rows:
    """``torchvision.models.ResNet``, whose names mmdetection and ODTK have too."""
    stem = "backbone.bottom_up.stem.conv1"
    yield stem, f"{prefix}.conv1", CONV
    yield f"{stem}.norm", f"{prefix}.bn1", BATCH_NORM
    for stage, block, num_convs, has_shortcut in architecture.blocks():
        ours, theirs = f"{_stage(stage)}.{block}", f"{prefix}.layer{stage - 1}.{block}"
        for i in range(1, num_convs + 1):
            yield f"{ours}.conv{i}", f"{theirs}.conv{i}", CONV
            yield f"{ours}.conv{i}.norm", f"{theirs}.bn{i}", BATCH_NORM
        if has_shortcut:
            yield f"{ours}.shortcut", f"{theirs}.downsample.0", CONV
            yield f"{ours}.shortcut.norm", f"{theirs}.downsample.1", BATCH_NORM


def _fpn(architecture: Architecture, lateral: str, output: str, conv: str, norm: str) -> _Rows:
    """Two lists of three convolutions each, with the suffixes ``conv`` and ``norm``."""
    conv_parameters, norm_parameters = architecture.fpn_parameters()
    for i, stage in enumerate(_FPN_STAGES):
        for ours, theirs in ((f"fpn_lateral{stage}", lateral), (f"fpn_output{stage}", output)):
            yield f"backbone.{ours}", f"{theirs}.{i}{conv}", conv_parameters
            if norm_parameters:
                yield f"backbone.{ours}.norm", f"{theirs}.{i}{norm}", norm_parameters


def _subnet(architecture: Architecture, subnet: str, theirs: str, conv: str, norm: str) -> _Rows:
    """Convolutions ``theirs``.i; those that a norm follows have no bias, unlike Detectron2's."""
    for i in range(architecture.num_convs):
        conv_index, norm_index = architecture.subnet_modules(i)
        parameters = CONV_BIAS if norm_index is None else CONV
        yield f"head.{subnet}.{conv_index}", f"{theirs}.{i}{conv}", parameters
        if norm_index is not None:
            yield f"head.{subnet}.{norm_index}", f"{theirs}.{i}{norm}", AFFINE


def torchvision_keys(architecture: Architecture) -> dict[str, str]:
    """``torchvision.models.detection.RetinaNet`` with ``resnet_fpn_backbone``."""
    classification, regression = "head.classification_head", "head.regression_head"
    return _expand(
        [
            *_torchvision_resnet(architecture, "backbone.body"),
            *_fpn(
                architecture,
                "backbone.fpn.inner_blocks",
                "backbone.fpn.layer_blocks",
                conv=".0",
                norm=".1",
            ),
            ("backbone.top_block.p6", "backbone.fpn.extra_blocks.p6", CONV_BIAS),
            ("backbone.top_block.p7", "backbone.fpn.extra_blocks.p7", CONV_BIAS),
            *_subnet(architecture, "cls_subnet", f"{classification}.conv", ".0", ".1"),
            *_subnet(architecture, "bbox_subnet", f"{regression}.conv", ".0", ".1"),
            ("head.cls_score", f"{classification}.cls_logits", CONV_BIAS),
            ("head.bbox_pred", f"{regression}.bbox_reg", CONV_BIAS),
        ]
    )


def mmdet_keys(architecture: Architecture) -> dict[str, str]:
    """mmdetection's ``RetinaNet`` with ``ResNet``, ``FPN`` and ``RetinaHead`` (2.0 to 3.3)."""
    fpn_norm = "." + (architecture.fpn_norm or "bn").lower()
    neck, head = "neck.fpn_convs", "bbox_head"
    top_conv, top_norm = architecture.fpn_parameters()
    if top_norm:
        # There the norm follows P6 and P7 too, for which Detectron2 has no place.
        top_conv = CONV
    return _expand(
        [
            *_torchvision_resnet(architecture, "backbone"),
            *_fpn(architecture, "neck.lateral_convs", neck, conv=".conv", norm=fpn_norm),
            ("backbone.top_block.p6", f"{neck}.3.conv", top_conv),
            ("backbone.top_block.p7", f"{neck}.4.conv", top_conv),
            *_subnet(architecture, "cls_subnet", f"{head}.cls_convs", ".conv", ".gn"),
            *_subnet(architecture, "bbox_subnet", f"{head}.reg_convs", ".conv", ".gn"),
            ("head.cls_score", f"{head}.retina_cls", CONV_BIAS),
            ("head.bbox_pred", f"{head}.retina_reg", CONV_BIAS),
        ]
    )


def odtk_keys(architecture: Architecture) -> dict[str, str]:
    """ODTK's ``Model`` (NVIDIA/retinanet-examples) with one ResNet."""
    prefix = f"backbones.ResNet{architecture.depth}FPN"
    rows = [
        *_torchvision_resnet(architecture, f"{prefix}.features"),
        ("backbone.top_block.p6", f"{prefix}.pyramid6", CONV_BIAS),
        ("backbone.top_block.p7", f"{prefix}.pyramid7", CONV_BIAS),
    ]
    for stage in _FPN_STAGES:
        rows.append((f"backbone.fpn_lateral{stage}", f"{prefix}.lateral{stage}", CONV_BIAS))
        rows.append((f"backbone.fpn_output{stage}", f"{prefix}.smooth{stage}", CONV_BIAS))
    for subnet, output, theirs in zip(_SUBNETS, _OUTPUTS, ("cls_head", "box_head"), strict=True):
        for i in range(architecture.num_convs):
            conv_index, _ = architecture.subnet_modules(i)
            rows.append((f"head.{subnet}.{conv_index}", f"{theirs}.{2 * i}", CONV_BIAS))
        rows.append((f"head.{output}", f"{theirs}.{2 * architecture.num_convs}", CONV_BIAS))
    return _expand(rows)


def caffe2_keys(architecture: Architecture) -> dict[str, str]:
    """Blobs of Detectron's RetinaNet: ``_w`` and ``_b`` of convolutions, ``_s`` and ``_b`` of
    AffineChannel, which stands for a batch norm; the subnets are named after level 3."""
    keys: dict[str, str] = {}

    def add(ours: str, theirs: str, scale: str = "_w", bias: str | None = "_b") -> None:
        keys[f"{ours}.weight"] = theirs + scale
        if bias:
            keys[f"{ours}.bias"] = theirs + bias

    stem = "backbone.bottom_up.stem.conv1"
    add(stem, "conv1", bias=None)
    add(f"{stem}.norm", "res_conv1_bn", scale="_s")
    for stage, block, num_convs, has_shortcut in architecture.blocks():
        branches = [(f"conv{i + 1}", f"branch2{'abc'[i]}") for i in range(num_convs)]
        branches += [("shortcut", "branch1")] * has_shortcut
        for ours, theirs in branches:
            add(f"{_stage(stage)}.{block}.{ours}", f"res{stage}_{block}_{theirs}", bias=None)
            add(f"{_stage(stage)}.{block}.{ours}.norm", f"res{stage}_{block}_{theirs}_bn", "_s")
    for stage in _FPN_STAGES:
        blob = f"res{stage}_{architecture.last_block(stage)}_sum"
        # The top level's has no top-down neighbour to be lateral to.
        suffix = "" if stage == _FPN_STAGES[-1] else "_lateral"
        add(f"backbone.fpn_lateral{stage}", f"fpn_inner_{blob}{suffix}")
        add(f"backbone.fpn_output{stage}", f"fpn_{blob}")
    add("backbone.top_block.p6", "fpn_6")
    add("backbone.top_block.p7", "fpn_7")
    for subnet, output, theirs in zip(_SUBNETS, _OUTPUTS, ("cls", "bbox"), strict=True):
        for i in range(architecture.num_convs):
            conv_index, _ = architecture.subnet_modules(i)
            add(f"head.{subnet}.{conv_index}", f"retnet_{theirs}_conv_n{i}_fpn3")
        add(f"head.{output}", f"retnet_{theirs}_pred_fpn3")
    return keys


def legacy_torchvision_keys() -> dict[str, str]:
    """Names of before torchvision 0.13, when a convolution and its ReLU became one module, to
    today's. torchvision renames them too, when it loads a file."""
    renames = {}
    for parameter in CONV_BIAS:
        for i in range(len(_FPN_STAGES)):
            for blocks in ("inner_blocks", "layer_blocks"):
                name = f"backbone.fpn.{blocks}.{i}"
                renames[f"{name}.{parameter}"] = f"{name}.0.{parameter}"
        for i in range(4):
            for head in ("classification", "regression"):
                name = f"head.{head}_head.conv"
                renames[f"{name}.{2 * i}.{parameter}"] = f"{name}.{i}.0.{parameter}"
    return renames
