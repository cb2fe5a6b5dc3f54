"""Blobs of Detectron's (Caffe2) RetinaNet: ``_w`` and ``_b`` of convolutions, ``_s`` and ``_b`` of
AffineChannel, which stands for a batch norm. The subnets are named after level 3."""

from .adapter import Adapter

_BLOCK = "backbone.bottom_up.res{stage}.{block}"
_RESNET = {
    "backbone.bottom_up.stem.conv1": "conv1",
    f"{_BLOCK}.conv1": "res{stage}_{block}_branch2a",
    f"{_BLOCK}.conv2": "res{stage}_{block}_branch2b",
    f"{_BLOCK}.conv3": "res{stage}_{block}_branch2c",
    f"{_BLOCK}.shortcut": "res{stage}_{block}_branch1",
}
_AFFINE = {
    f"{ours}.norm": "res_conv1_bn" if theirs == "conv1" else f"{theirs}_bn"
    for ours, theirs in _RESNET.items()
}
_CONVS = {
    "backbone.fpn_lateral3": "fpn_inner_res3_{last3}_sum_lateral",
    "backbone.fpn_lateral4": "fpn_inner_res4_{last4}_sum_lateral",
    "backbone.fpn_lateral5": "fpn_inner_res5_{last5}_sum",  # nothing comes down to the top level
    "backbone.fpn_output3": "fpn_res3_{last3}_sum",
    "backbone.fpn_output4": "fpn_res4_{last4}_sum",
    "backbone.fpn_output5": "fpn_res5_{last5}_sum",
    "backbone.top_block.p{i}": "fpn_{i}",
    "head.cls_subnet.{i}": "retnet_cls_conv_n{i}_fpn3",
    "head.cls_score": "retnet_cls_pred_fpn3",
    "head.bbox_subnet.{i}": "retnet_bbox_conv_n{i}_fpn3",
    "head.bbox_pred": "retnet_bbox_pred_fpn3",
}

DETECTRON = Adapter(
    name="detectron",
    keys={
        **{f"{ours}.weight": f"{theirs}_w" for ours, theirs in (_RESNET | _CONVS).items()},
        **{f"{ours}.weight": f"{theirs}_s" for ours, theirs in _AFFINE.items()},
        **{f"{ours}.bias": f"{theirs}_b" for ours, theirs in (_AFFINE | _CONVS).items()},
    },
    config={
        "MODEL.PIXEL_MEAN": [102.9801, 115.9465, 122.7717],
        "MODEL.ANCHOR_GENERATOR.NAME": "DetectronAnchorGenerator",
        "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
        "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.11,
        "MODEL.FOCAL_RETINA.NORMALIZER.MODE": "batch",
        "MODEL.FOCAL_RETINA.LABELING.PROMOTION": "min_iou",
    },
    free=["MODEL.RETINANET.NUM_CONVS"],
    place="blobs",
    spare="fc1000_.*|conv1_b|.*_momentum",  # of the ImageNet weights, and of the training
)
