"""Toy models and their batches, a tiny training, and the yaml files of configs/."""

import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from focal_retina import add_focal_retina_config, merge_config_file

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
SWEEPS = sorted((CONFIGS / "sweeps").glob("*.yaml"))
MODELS = sorted(set(CONFIGS.rglob("*.yaml")) - set(SWEEPS))
QUICKSTART = CONFIGS / "quickstart" / "shapes.yaml"
ZOO = model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
# Behind the quickstart's yaml and --register tiny=…: seconds of training
TINY_TRAINING = """
    DATASETS.TRAIN ('tiny',) DATASETS.TEST ('tiny',) TEST.EXPECTED_RESULTS []
    MODEL.RETINANET.NUM_CLASSES 2 MODEL.RETINANET.NUM_CONVS 1 MODEL.FPN.OUT_CHANNELS 8
    MODEL.RESNETS.NORM FrozenBN INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64
    SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 3 SOLVER.STEPS () DATALOADER.NUM_WORKERS 0
"""


def python(*arguments, cwd=ROOT, **environment):
    """Run Python in a process of its own, with this package on its path."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this took too long"
        time.sleep(0.01)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def default_cfg(*opts):
    """Detectron2's config with this package's nodes, on the CPU."""
    cfg = get_cfg()
    add_focal_retina_config(cfg)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *opts])
    return cfg


def load(path, *opts):
    """The config of a file of configs/, or of any with an absolute path."""
    cfg = default_cfg()
    merge_config_file(cfg, str(CONFIGS / path))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *opts])
    return cfg


def toy_cfg(*opts):
    """RetinaNet of the zoo, of 3 classes, 16 channels and a ResNet-18 without weights."""
    toy = """
        MODEL.META_ARCHITECTURE FocalRetinaNet MODEL.RETINANET.NUM_CLASSES 3
        MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.FPN.OUT_CHANNELS 16
    """
    return load(ZOO, "MODEL.WEIGHTS", "", *toy.split(), *opts)


def coco(**changes):
    """A small content in COCO's format, sections changed."""
    annotation = {"id": 1, "image_id": 1, "category_id": 5, "bbox": [1, 1, 2.5, 2]}
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 8, "height": 6}],
        "annotations": [annotation],
        "categories": [{"id": 5, "name": "cat"}, {"id": 2, "name": "dog"}],
        **changes,
    }


class Call:
    """A pickle's call of a name with arguments, and its BUILD with a state."""

    def __init__(self, function, arguments, state=None):
        self.parts = function, arguments, state

    def __reduce__(self):
        return self.parts


def make_instances(boxes, classes, size=(64, 64), **fields):
    """Ground truth: boxes (M, 4), classes (M,), and further fields of M entries."""
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.as_tensor(classes, dtype=torch.int64)
    for name, value in fields.items():
        instances.set(name, torch.as_tensor(value))
    return instances


def make_batch(boxes=((5, 5, 40, 40), (2, 2, 62, 62)), classes=(0, 1), size=(64, 64)):
    """One random image with its objects."""
    image = torch.randint(256, (3, *size), generator=torch.Generator().manual_seed(0)).float()
    return [{"image": image, "instances": make_instances(boxes, classes, size)}]


def make_dense_batch(
    level_sizes=(30, 8, 1), num_classes=5, *, num_images=2, dtype=torch.float32, scale=3.0,
    background=0.0, seed=0,
):  # fmt: skip
    """Leaf logits (N, R_l, K) and labels (N, R_l) of all kinds (ignored, each class, background) by
    level; a further share of the labels is background."""
    generator = torch.Generator().manual_seed(seed)
    shape = num_images, sum(level_sizes)
    labels = torch.randint(-1, num_classes + 1, shape, generator=generator)
    labels[torch.rand(shape, generator=generator) < background] = num_classes
    logits = scale * torch.randn(*shape, num_classes, generator=generator)
    levels = [x.to(dtype).contiguous().requires_grad_() for x in logits.split(level_sizes, dim=1)]
    return levels, list(labels.split(level_sizes, dim=1))


def reference_loss_sum(logits, labels, formula, positive_weight=1.0, negative_weight=1.0):
    """The paper's definitions (section 3 and appendix A) in float64, with ordinary autograd,
    one-hot targets and masks."""
    name, gamma, beta = formula

    def loss_of(x_t):
        if name == "focal_star":
            return -F.logsigmoid(gamma * x_t + beta) / gamma
        return -F.logsigmoid(x_t) * torch.exp(gamma * F.logsigmoid(-x_t))

    total = torch.zeros((), dtype=torch.float64)
    for x, y in zip(logits, labels, strict=True):
        targets = F.one_hot(y.clamp(min=0), x.shape[2] + 1)[..., :-1][y >= 0].bool()
        x = x.double()[y >= 0]
        total = total + (positive_weight * loss_of(x))[targets].sum()
        total = total + (negative_weight * loss_of(-x))[~targets].sum()
    return total


def make_run(folder, datasets=(), **thresholds):
    """What a training leaves: config.yaml and model_final.pth of a model that finds something
    everywhere; two classes, levels of strides 8 and 16. ``thresholds``: keys below MODEL.RETINANET.
    """
    # A network without weights to load
    words = """
        MODEL.BACKBONE.NAME build_resnet_fpn_backbone_without_top_block MODEL.BACKBONE.FREEZE_AT 0
        MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.RESNETS.NORM BN
        MODEL.RESNETS.OUT_FEATURES ['res3','res4'] MODEL.FPN.OUT_CHANNELS 8 INPUT.FORMAT BGR
        MODEL.PIXEL_MEAN [103.53,116.28,123.675] MODEL.PIXEL_STD [57.375,57.12,58.395]
        MODEL.RETINANET.NUM_CONVS 1 MODEL.RETINANET.NUM_CLASSES 2 DATALOADER.NUM_WORKERS 0
        INPUT.MIN_SIZE_TEST 64 INPUT.MAX_SIZE_TEST 112
    """
    cfg = load("quickstart/shapes.yaml", *words.split(), "OUTPUT_DIR", str(folder))
    cfg.MODEL.RETINANET.update(thresholds)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = datasets
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():
        # Scores from 0 to 1, and boxes that differ from their anchors.
        model.head.cls_score.weight.mul_(100)
        model.head.cls_score.bias.fill_(-2.5)
        model.head.bbox_pred.weight.mul_(10)
    folder.mkdir(parents=True)
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


class LargestTensor(TorchDispatchMode):
    """Records the elements and bytes of the largest tensor that any operator returns."""

    numel = nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
                self.nbytes = max(self.nbytes, tensor.numel() * tensor.element_size())
        return result


def name_of(path):
    return str(path.relative_to(CONFIGS))


def header(path):
    """Lines of the comment that the file starts with, without the number sign and one space."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].removeprefix(" "))
    return lines


def commands(path):
    """Commands of the header, as words; a line that ends in a backslash goes on in the next."""
    text = "\n".join(header(path)).replace("\\\n", " ")
    return [line.split() for line in text.splitlines() if line.strip().startswith("./run ")]


def differences(cfg, base, prefix=""):
    """Keys in which ``cfg`` differs from ``base``, with its values."""
    changed = {}
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            changed |= differences(value, base[key], f"{prefix}{key}.")
        elif value != base[key]:
            changed[f"{prefix}{key}"] = value
    return changed
