"""FocalRetinaNet against Detectron2's RetinaNet: the same weights and inputs, the same numbers."""

from contextlib import nullcontext

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.utils.events import EventStorage
from helpers import make_batch as make_toy_batch
from helpers import make_instances, toy_cfg

import focal_retina
from benchmarks.inputs import spread_outputs
from focal_retina.losses import balanced_alpha
from focal_retina.modeling import head
from focal_retina.modeling.patches import run_on_patches

SIZES = [(64, 96), (96, 80), (64, 64)]  # (height, width); the last image has no object
NUM_CLASSES = 7
# R50-FPN of the zoo, small enough for a test, without this package's nodes; or of ResNet-18
SMALL = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RETINANET.NUM_CLASSES", NUM_CLASSES]
R18 = ("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)


def build(meta_architecture: str, *overrides):
    cfg = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    cfg.merge_from_list([*SMALL, "MODEL.META_ARCHITECTURE", meta_architecture, *overrides])
    return build_model(cfg)


def test_a_head_of_another_kind(monkeypatch):
    monkeypatch.setitem(head.DENSE_HEAD_REGISTRY._obj_map, "Stock", RetinaNetHead)
    with pytest.raises(ValueError, match="RetinaNetHead is no dense head: derive it"):
        build_model(toy_cfg("MODEL.FOCAL_RETINA.HEAD.NAME", "Stock"))


@pytest.mark.parametrize(
    "opts, score",
    [
        ((), 0.01),
        (("MODEL.RETINANET.PRIOR_PROB", 0.2), 0.2),
        (("MODEL.FOCAL_RETINA.HEAD.PRIOR_INIT", False), 0.5),
    ],
)
def test_every_anchor_starts_at_the_prior(opts, score):
    logits, _ = build_model(toy_cfg(*opts)).head([torch.zeros(1, 16, 2, 2)] * 5)
    scores = torch.cat(logits).sigmoid()
    torch.testing.assert_close(scores, torch.full_like(scores, score))


def make_batch(seed: int) -> list[dict]:
    """With the sizes of originals twice as large, to which detections are scaled back."""
    torch.manual_seed(seed)
    batch = []
    for (height, width), count in zip(SIZES, (4, 4, 0), strict=True):
        size = torch.rand(count, 2) * 36 + 8
        corner = torch.rand(count, 2) * (torch.tensor([width, height]) - size)
        boxes, classes = torch.cat([corner, corner + size], 1), torch.randint(NUM_CLASSES, (count,))
        instances = make_instances(boxes, classes, (height, width))
        image = torch.randint(256, (3, height, width)).float()
        of_original = {"height": 2 * height, "width": 2 * width}
        batch.append({"image": image, "instances": instances, **of_original})
    return batch


def make_pair(seed: int, *overrides):
    """(stock, ours), with the same weights, which give logits of -2 +- 1 and deltas of 0 +- 0.2."""
    torch.manual_seed(seed)
    stock = build("RetinaNet", *overrides)
    spread_outputs(stock, make_batch(seed), bias=-2, logits=1.0, deltas=0.2)
    ours = build("FocalRetinaNet", *overrides)
    ours.load_state_dict(stock.state_dict(), strict=True)
    return stock, ours


def train_step(model, batch):
    with EventStorage() as storage:
        losses = model.train()(batch)
    model.zero_grad()
    sum(losses.values()).backward()
    losses |= {name: torch.tensor(x) for name, (x, _) in storage.latest().items()}
    return losses, {k: p.grad for k, p in model.named_parameters() if p.requires_grad}


def losses_of(model, batch):
    """Ours outside an event storage: code bases with a training loop of their own have none."""
    storage = nullcontext() if isinstance(model, focal_retina.FocalRetinaNet) else EventStorage()
    with storage, torch.no_grad():
        return model.train()(batch)


def assert_losses_equal(actual, expected, rtol=1e-5):
    assert all(value > 0 for value in expected.values())
    expected = {name: value.float() for name, value in expected.items()}
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=0)


def assert_steps_equal(actual, expected, rtol=1e-5, gradient_rtol=1e-5):
    """Losses and gradients, as of :func:`train_step`."""
    assert_losses_equal(actual[0], expected[0], rtol)
    assert actual[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        error = (actual[1][name] - grad).abs().max() / grad.abs().max()
        assert error <= gradient_rtol, f"{name}: {error}"


GN = ("MODEL.RETINANET.NORM", "GN")
GIOU = ("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "giou")
SMOOTH = ("MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", 0.11)


@pytest.mark.parametrize("seed, overrides", [(0, ()), (3, GN + GIOU), (4, SMOOTH)])
def test_losses_and_gradients_equal_detectron2(seed, overrides):
    stock, ours = make_pair(seed, *overrides)
    batch = make_batch(seed)
    assert_steps_equal(train_step(ours, batch), train_step(stock, batch))
    # And with a normalizer that has moved
    assert_losses_equal(losses_of(ours, batch), losses_of(stock, batch))


@pytest.mark.parametrize("seed, overrides", [(0, ()), (1, GN)])
def test_detections_equal_detectron2(seed, overrides):
    stock, ours = make_pair(seed, *overrides)
    batch = make_batch(seed)
    with torch.no_grad():
        expected, actual = stock.eval()(batch), ours.eval()(batch)
    for theirs, mine in zip(expected, actual, strict=True):
        theirs, mine = theirs["instances"], mine["instances"]
        assert len(theirs) > 10
        assert mine.image_size == theirs.image_size
        boxes = mine.pred_boxes.tensor, theirs.pred_boxes.tensor
        for a, b in ((mine.pred_classes, theirs.pred_classes), (mine.scores, theirs.scores), boxes):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_objects_in_a_large_image_run_the_box_subnet_on_patches(dtype, monkeypatch):
    """The other comparisons are of images so small that whole maps are cheaper."""
    stock, ours = make_pair(0, *R18, "MODEL.FPN.OUT_CHANNELS", 32)
    batch = make_toy_batch([[30, 20, 90, 70], [100, 60, 180, 160]], [1, 3], (192, 256))

    used = []
    monkeypatch.setattr(
        head, "run_on_patches", lambda *args: used.append(run_on_patches(*args)) or used[-1]
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        steps = train_step(ours, batch), train_step(stock, batch)
    assert len(used) == 1 and used[0] is not None
    assert_steps_equal(*steps, *(() if dtype is torch.float32 else (0.02, 0.2)))


def test_state_dict_has_detectron2s_keys_and_one_seed_gives_the_same_weights():
    states = []
    for name in ("RetinaNet", "FocalRetinaNet"):
        torch.manual_seed(5)
        states.append(build(name).state_dict())
    assert list(states[1]) == list(states[0])
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)


def test_lazy_config_of_detectron2s_zoo_with_our_classes():
    """Constructed without a cfg, most of it by default: the same keys, and the same losses."""
    lazy = model_zoo.get_config("common/models/retinanet.py").model
    torch.manual_seed(0)
    stock = instantiate(lazy)

    ours_too = {"backbone", "head", "head_in_features", "anchor_generator", "num_classes"}
    ours_too |= {"pixel_mean", "pixel_std", "_target_"}
    for argument in set(lazy) - ours_too:
        del lazy[argument]
    lazy._target_ = focal_retina.FocalRetinaNet
    lazy.head._target_ = focal_retina.FocalRetinaNetHead
    ours = instantiate(lazy)
    ours.load_state_dict(stock.state_dict(), strict=True)
    batch = make_batch(0)
    assert_losses_equal(losses_of(ours, batch), losses_of(stock, batch))


@pytest.mark.parametrize(
    "name, lacks",
    [
        ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x", "has p7, but the backbone FPN has p2"),
        ("COCO-Detection/faster_rcnn_R_50_C4_1x", "has p3, .*, but the backbone ResNet has res4"),
    ],
)
def test_config_of_another_architecture_names_the_levels_that_lack(name, lacks):
    cfg = model_zoo.get_config(f"{name}.yaml")
    cfg.merge_from_list([*SMALL, "MODEL.META_ARCHITECTURE", "FocalRetinaNet"])
    with pytest.raises(ValueError, match=f"IN_FEATURES {lacks}.*start from a RetinaNet's"):
        build_model(cfg)


def test_class_alpha_auto_counts_the_training_set():
    annotations = [{"category_id": k} for k in (0, 1, 1, 1)]
    DatasetCatalog.register("counted", lambda: [{"annotations": annotations}])
    opts = ("MODEL.RETINANET.NUM_CLASSES", 2, "DATASETS.TRAIN", ("counted",))
    model = build_model(toy_cfg(*opts, "MODEL.FOCAL_RETINA.CLS_LOSS.CLASS_ALPHA", "auto"))
    torch.testing.assert_close(model.cls_loss.alpha, torch.tensor(balanced_alpha([1, 3], 0.25)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_waits_for_the_gpu_only_to_learn_where_the_positives_are(monkeypatch):
    model = build("FocalRetinaNet", "MODEL.DEVICE", "cuda", *R18).train()
    waits = []

    def may_wait(function):
        def call(*args, **kwargs):
            waits.append(function)
            torch.cuda.set_sync_debug_mode("default")
            try:
                return function(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("error")

        return call

    monkeypatch.setattr(torch, "nonzero", may_wait(torch.nonzero))
    monkeypatch.setattr(head, "run_on_patches", may_wait(run_on_patches))
    sum(model(make_batch(0)).values()).backward()  # Triton compiles
    try:
        torch.cuda.set_sync_debug_mode("error")
        sum(model(make_batch(1)).values()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == 4
