"""Converted models beside torchvision's own: the same logits, deltas and anchors."""

import re
from functools import cache

import pytest
import torch
from converted import build_detector, from_detectron2, predict, ratios_fastest, to_detectron2
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from foreign_models import randomize
from torchvision.models import detection
from torchvision.models.detection.image_list import ImageList

BUILDERS = {
    "torchvision-v1": detection.retinanet_resnet50_fpn,
    "torchvision-v2": detection.retinanet_resnet50_fpn_v2,
}
COCO_IDS = [category["id"] for category in COCO_CATEGORIES if category["isthing"]]
# The second is no multiple of 128, so that strides of P6 and P7 are not 64 and 128 in torchvision.
SIZES = [(128, 256), (150, 96)]


def build_theirs(name):
    model = randomize(BUILDERS[name](weights=None, weights_backbone=None))
    for module in model.backbone.body.modules():
        if hasattr(module, "bn3"):
            module.bn3.weight.data *= 0.3  # else activations grow with every residual block
    return model


@cache
def build_both(name):
    theirs = build_theirs(name)
    conversion = to_detectron2(theirs.state_dict(), name)
    return name, theirs, conversion, build_detector(conversion)


@pytest.fixture(params=BUILDERS)
def models(request):
    return build_both(request.param)


@torch.no_grad()
def predict_theirs(model, pixels):
    """Logits (R, 91), deltas and anchors of preprocessed pixels, in Detectron2's order."""
    features = list(model.backbone(pixels).values())
    outputs = model.head(features)
    (anchors,) = model.anchor_generator(ImageList(pixels, [tuple(pixels.shape[2:])]), features)
    rows = outputs["cls_logits"][0], outputs["bbox_regression"][0], anchors
    return [ratios_fastest(r) for r in rows]


def image_of(size):
    return torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(1)).float()


@pytest.mark.parametrize("size", SIZES)
def test_raw_outputs_are_torchvisions(models, size):
    _, theirs, conversion, ours = models
    assert conversion.is_complete
    image = image_of(size)
    logits, deltas, anchors, seen = predict(ours, image)

    transformed = theirs.transform.normalize(image / 255)
    pixels = theirs.transform.batch_images([transformed], size_divisible=32)
    torch.testing.assert_close(seen, pixels, atol=1e-5, rtol=0)
    their_logits, their_deltas, their_anchors = predict_theirs(theirs, pixels)
    assert 0.5 < logits.std() < 20  # a comparison of zeros would say nothing
    torch.testing.assert_close(logits, their_logits[:, COCO_IDS], atol=1e-4, rtol=0)
    torch.testing.assert_close(deltas, their_deltas, atol=1e-4, rtol=0)
    torch.testing.assert_close(anchors, their_anchors, atol=1e-4, rtol=0)


def test_back_to_torchvision(models):
    name, theirs, conversion, _ = models
    back = from_detectron2(conversion, name)
    assert back.is_complete
    assert back.spec == conversion.spec
    used = torch.tensor([91 * a + row for a in range(9) for row in COCO_IDS])
    for key, tensor in theirs.state_dict().items():
        if "cls_logits" in key:
            tensor, back.tensors[key] = tensor[used], back.tensors[key][used]
        if "num_batches_tracked" not in key:
            assert torch.equal(back.tensors[key], tensor), key


def test_torchvision_loads_it_and_unused_rows_never_detect():
    name, _, conversion, _ = build_both("torchvision-v2")
    model = BUILDERS[name](weights=None, weights_backbone=None)
    model.load_state_dict(from_detectron2(conversion, name).tensors, strict=True)
    unused = sorted(set(range(91)) - set(COCO_IDS))
    bias = model.head.classification_head.cls_logits.bias.view(9, 91)[:, unused]
    torch.testing.assert_close(bias.sigmoid(), torch.full_like(bias, 0.01))


def test_names_of_the_published_v1_file_and_its_epsilon():
    """``RetinaNet_ResNet50_FPN_Weights.COCO_V1`` has names of before torchvision 0.13, and is run
    with an epsilon of 0 in its frozen batch norms: the variances make up for Detectron2's 1e-5."""
    name, theirs, conversion, _ = build_both("torchvision-v1")
    old = {}
    for key, tensor in theirs.state_dict().items():
        key = re.sub(r"(_blocks\.\d)\.0\.", r"\1.", key)
        key = re.sub(r"(_head\.conv)\.(\d)\.0\.", lambda x: f"{x[1]}.{2 * int(x[2])}.", key)
        old[key] = tensor
    assert {"backbone.fpn.inner_blocks.2.bias", "head.regression_head.conv.6.bias"} <= old.keys()
    found = to_detectron2(old, name, bn_eps=0.0)
    assert found.is_complete and found.tensors.keys() == conversion.tensors.keys()
    for key, tensor in conversion.tensors.items():
        epsilon = 1e-5 if key.endswith("running_var") else 0.0
        torch.testing.assert_close(found.tensors[key], tensor - epsilon, rtol=0, atol=1e-6)


def test_the_config_carries_the_source_training_losses(models):
    name, _, conversion, _ = models
    retinanet = conversion.spec.MODEL.RETINANET
    expected = {"torchvision-v1": ("smooth_l1", 0.0), "torchvision-v2": ("giou", 0.1)}[name]
    assert expected == (retinanet.BBOX_REG_LOSS_TYPE, retinanet.SMOOTH_L1_LOSS_BETA)
    assert conversion.spec.MODEL.FOCAL_RETINA.NORMALIZER.MODE == "image"


@pytest.mark.parametrize("num_rows", [5, 6])
def test_classes_come_back_with_or_without_a_row_of_background(num_rows):
    """Of 5 classes; a model that was made with ``num_classes=5`` has no such row."""
    state = build_theirs("torchvision-v1").state_dict()
    for part in ("weight", "bias"):
        key = f"head.classification_head.cls_logits.{part}"
        state[key] = state[key][: 9 * num_rows]
    conversion = to_detectron2(state, "torchvision-v1", 5)
    back = from_detectron2(conversion, "torchvision-v1").tensors[key].view(9, num_rows)
    assert torch.equal(back[:, num_rows - 5 :], state[key].view(9, num_rows)[:, num_rows - 5 :])
