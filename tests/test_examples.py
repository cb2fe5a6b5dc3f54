"""docs/examples and configs/lazy: each is run on small data, as somebody's own code would be."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from helpers import CONFIGS, QUICKSTART, ROOT, TINY_TRAINING, ZOO, load, make_batch

from focal_retina import engine, merge_config_file
from focal_retina.commands import main

EXAMPLES = ROOT / "docs" / "examples"
LAZY_CONFIG = CONFIGS / "lazy" / "retinanet_R_50_FPN_1x.py"
SMALL_R18 = [
    *("MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.RETINANET.NUM_CLASSES", 2, "MODEL.RETINANET.NUM_CONVS", 1, "MODEL.DEVICE", "cpu"),
]


def import_example(name: str):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def run_example(monkeypatch, name: str, *arguments: str):
    example = import_example(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    return example.run(example.parse_args())


@pytest.mark.slow
@pytest.mark.usefixtures("quiet_setup", "tiny")
def test_own_train_net_trains_and_evaluates(monkeypatch, tmp_path):
    arguments = ["--config-file", QUICKSTART, *TINY_TRAINING.split(), "OUTPUT_DIR", tmp_path]
    arguments += ["MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", 2, "SOLVER.AMP.ENABLED", False]
    run_example(monkeypatch, "yacs_train_net", *arguments)
    assert (tmp_path / "model_final.pth").is_file()
    assert "loss_cls" in (tmp_path / "metrics.json").read_text()
    weights = ("MODEL.WEIGHTS", tmp_path / "model_final.pth")
    run_example(monkeypatch, "yacs_train_net", "--eval-only", *arguments, *weights)
    assert (tmp_path / "inference" / "coco_instances_results.json").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("quiet_setup", "tiny")
def test_lazy_config_trains_evaluates_and_resumes(monkeypatch, tmp_path):
    options = ("dataset.names=tiny", "num_workers=0", "mapper.augmentations=[]")
    arguments = [
        *("--config-file", LAZY_CONFIG, "model.num_classes=2", "model.head.conv_dims=[256]"),
        *(f"dataloader.{name}.{x}" for name in ("train", "test") for x in options),
        *("dataloader.train.total_batch_size=2", "optimizer.lr=1e-6", "train.device=cpu"),
        *("train.init_checkpoint=''", f"train.output_dir={tmp_path}"),
        *("train.log_period=1", "train.eval_period=2"),
    ]
    run_example(monkeypatch, "lazy_train_net", *arguments, "train.max_iter=2")
    metrics = (tmp_path / "metrics.json").read_text()
    assert "loss_cls" in metrics and "bbox/AP" in metrics
    run_example(monkeypatch, "lazy_train_net", "--resume", *arguments, "train.max_iter=3")
    assert '"iteration": 2' in (tmp_path / "metrics.json").read_text()


@pytest.mark.slow
def test_wandb_gets_each_number_once(monkeypatch, register_tiny, quiet_setup, tmp_path):
    logged = []
    log = lambda numbers, step: logged.append((step, numbers))  # noqa: E731
    run = SimpleNamespace(log=log, finish=lambda: logged.append("finished"))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **options: run))
    monkeypatch.setattr(engine, "Trainer", engine.Trainer)  # it is put back at the end
    options = [*TINY_TRAINING.split(), "OUTPUT_DIR", str(tmp_path), "TEST.EVAL_PERIOD", "2"]
    example = ["--import", str(EXAMPLES / "wandb_writer.py")]
    assert (
        main(["train", "--config-file", str(QUICKSTART), *register_tiny, *example, *options]) == 0
    )
    *logged, last = logged
    assert last == "finished" and [step for step, _ in logged] == [1, 2, 3]
    assert "bbox/AP" in logged[0][1] and "total_loss" in logged[1][1] and "bbox/AP" in logged[2][1]


def losses_of(model, batch):
    with EventStorage():
        return model.train()(batch)


def test_lazy_config_is_the_yaml_of_the_same_name():
    lazy = LazyConfig.load(str(LAZY_CONFIG))
    cfg = load("COCO/retinanet_R_50_FPN_1x.yaml")
    ours, expected = instantiate(lazy.model), build_model(cfg)
    ours.load_state_dict(expected.state_dict())  # has exactly these keys
    batch = make_batch()
    torch.testing.assert_close(losses_of(ours, batch), losses_of(expected, batch))
    for name in ("score_thresh", "topk_candidates", "nms_thresh", "max_detections"):
        assert getattr(ours.postprocessor, name) == getattr(expected.postprocessor, name)
    assert lazy.train.init_checkpoint == cfg.MODEL.WEIGHTS
    assert (lazy.train.max_iter, lazy.optimizer.lr) == (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR)
    assert lazy.dataloader.train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH


def build(meta_architecture: str) -> torch.nn.Module:
    """Of the zoo's config, without the keys of focal_retina, as in code that knows none of them."""
    cfg = get_cfg()
    merge_config_file(cfg, ZOO)
    cfg.merge_from_list([*SMALL_R18, "MODEL.META_ARCHITECTURE", meta_architecture])
    torch.manual_seed(0)
    return build_model(cfg)


def test_only_the_loss():
    import_example("loss_in_own_model")
    stock, ours = build("RetinaNet"), build("MyDetector")
    ours.load_state_dict(stock.state_dict())
    expected, actual = losses_of(stock, make_batch()), losses_of(ours, make_batch())
    # Their normalizers differ, by the same factor in both losses.
    factor = actual["loss_box_reg"] / expected["loss_box_reg"]
    torch.testing.assert_close(actual["loss_cls"], factor * expected["loss_cls"])
    sum(actual.values()).backward()
    assert all(p.grad.isfinite().all() for p in ours.head.parameters())


def test_only_the_head():
    import_example("head_in_own_model")
    model = build("RetinaNetWithoutPrior")
    assert not model.head.cls_score.bias.any()
    assert model.head.state_dict().keys() == build("RetinaNet").head.state_dict().keys()
    sum(losses_of(model, make_batch()).values()).backward()
    assert all(p.grad.isfinite().all() for p in model.head.parameters())


def test_only_the_labeling():
    import_example("labeling_in_own_model")
    stock, ours = build("RetinaNet"), build("RetinaNetWithExactLabels")
    batch = make_batch()
    objects = [x["instances"] for x in batch]
    features = stock.backbone(stock.preprocess_image(batch).tensor)
    anchors = stock.anchor_generator([features[x] for x in stock.head_in_features])
    (label,), (boxes,) = ours.label_anchors(anchors, objects)
    (stock_label,), (stock_boxes,) = stock.label_anchors(anchors, objects)
    assert torch.equal(label, stock_label)
    positive = (label >= 0) & (label < 2)
    assert positive.any() and torch.equal(boxes[positive], stock_boxes[positive])

    objects[0].gt_boxes.tensor[0, 2] = objects[0].gt_boxes.tensor[0, 0]  # no width
    (label,), _ = ours.label_anchors(anchors, objects)
    (stock_label,), _ = stock.label_anchors(anchors, objects)
    assert (stock_label < 2).all() and (label == 2).sum() > 0.8 * len(label)
    sum(losses_of(ours, make_batch()).values()).backward()
