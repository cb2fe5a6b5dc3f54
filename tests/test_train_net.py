"""The command line: what a user types, what a user gets wrong, and a training in miniature."""

import json
import shutil

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers import QUICKSTART, TINY_TRAINING, make_run, python

from focal_retina import engine
from focal_retina.commands import make_parser
from focal_retina.deploy import load_predictor

CONFIG = ["--config-file", QUICKSTART]


@pytest.fixture
def run(command, quiet_setup):
    """Call the command; returns (exit status, what it wrote to stderr)."""
    return lambda *words: command("train", *words)[::2]


@pytest.fixture
def train_tiny(run, register_tiny, tmp_path):
    """Train on tiny_coco for 3 iterations, with further arguments."""

    def call(*arguments, flags=()):
        fixed = [*CONFIG, *register_tiny, *flags, *TINY_TRAINING.split()]
        return run(*fixed, "OUTPUT_DIR", tmp_path / "out", *arguments)

    return call


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config-file", "none.yaml"], "none.yaml does not exist"),
        (["--config-file", QUICKSTART, "--register", "x=none.json:."], "none.json"),
        (["--config-file", QUICKSTART, "--import", "none.py"], "none.py, or its name ends not in"),
        ([], "--config-file"),
        ("MODEL.NO_SUCH_KEY 1", "NO_SUCH_KEY"),
        ("MODEL.DEVICE", "MODEL.DEVICE"),
        ("--num-gpus 0 DATASETS.TRAIN ()", "DATASETS.TRAIN is empty"),
        ("--num-gpus 0 SOLVER.MAX_ITER 0", "SOLVER.MAX_ITER"),
        ("DATASETS.TRAIN ('nowhere',)", "no data set 'nowhere'"),
        ("MODEL.RETINANET.NUM_CLASSES 9", "MODEL.RETINANET.NUM_CLASSES 4"),
        ("MODEL.WEIGHTS none.pth", "none.pth does not exist"),
        ("MODEL.FOCAL_RETINA.PRECISION fp16 MODEL.DEVICE cpu", "PRECISION auto"),
        ("MODEL.FOCAL_RETINA.PRECISION int4", "it can be auto, fp32, bf16, fp16"),
        ("MODEL.FOCAL_RETINA.CLS_LOSS.NAME FocalLos", "FocalLoss"),
        ("MODEL.FOCAL_RETINA.HEAD.NAME Heda", "FocalRetinaNetHead"),
        ("OUTPUT_DIR file/out", "cannot be written"),
    ],
)
@pytest.mark.usefixtures("quiet_setup")
def test_user_errors(assert_user_error, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    arguments = [*CONFIG, *arguments.split()] if isinstance(arguments, str) else arguments
    assert_user_error(message, "train", *arguments)


def test_trains_evaluates_reports_and_resumes(run, train_tiny, tmp_path):
    out = tmp_path / "out"
    assert train_tiny()[0] == 0
    assert (out / "model_final.pth").is_file()
    metrics = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert metrics[-1]["iteration"] == 3
    assert "bbox/AP" in metrics[-1]
    for name in ("detections.png", "training.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert list(out.glob("events.out.tfevents.*"))

    augmented = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64,)"]
    assert train_tiny("SOLVER.MAX_ITER", "5", *augmented, flags=["--resume"])[0] == 0
    metrics = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert metrics[-1]["iteration"] == 5
    assert {"bbox/AP", "bbox_TTA/AP"} <= metrics[-1].keys()

    # Anew in the same folder, the model of before is kept.
    assert train_tiny()[0] == 0
    assert (out / "model_final_before.pth").is_file() and (out / "model_final.pth").is_file()
    assert "set another OUTPUT_DIR" in train_tiny("MODEL.WEIGHTS", out / "model_final.pth")[1]

    # What was trained with loss scaling on a GPU is evaluated without one.
    fp16 = ["MODEL.FOCAL_RETINA.PRECISION", "fp16", "MODEL.DEVICE", "cpu"]
    weights = ["MODEL.WEIGHTS", out / "model_final.pth"]
    assert train_tiny(*weights, *fp16, *augmented, flags=["--eval-only"])[0] == 0
    assert list(out.glob("TTA/inference/tiny/*.json"))

    # Of an interrupted training, the last checkpoint
    stopped = shutil.copytree(out, tmp_path / "stopped")
    (stopped / "model_final.pth").rename(stopped / "model_0000004.pth")
    assert run("--eval-only", "--resume", "--config-file", stopped)[0] == 0

    # The classes are known without the data set.
    DatasetCatalog.remove("tiny")
    MetadataCatalog.remove("tiny")
    meta = load_predictor(out).meta
    assert (meta.classes, meta.category_ids) == (["cat", "dog"], [3, 8])
    assert MetadataCatalog.get("tiny").thing_classes == ["cat", "dog"]


def evaluate(run, folder, content, name, *arguments):
    """Evaluate a training's folder on a COCO json; returns status, stderr, and detections."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    register = ["--register", f"{name}={path}:{folder.parent / 'images'}"]
    sets = ["DATASETS.TEST", f"('{name}',)", *arguments]
    status, err = run("--eval-only", "--config-file", folder, *register, *sets)
    results = folder / "inference" / name / "coco_instances_results.json"
    found = json.loads(results.read_text()) if status == 0 else []
    return status, err, {(x["image_id"], x["category_id"], *x["bbox"]): x["score"] for x in found}


def test_evaluation_is_by_class_name_with_weights_that_fit(run, tiny_coco, tmp_path, quiet_setup):
    folder = make_run(tmp_path / "run")
    classes = [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}]
    (folder / "classes.json").write_text(json.dumps(classes))
    content = json.loads(tiny_coco[0].read_text())
    _, _, both = evaluate(run, folder, content, "both")
    dogs = [x for x in content["annotations"] if x["category_id"] == 8]
    one = {**content, "categories": classes[1:], "annotations": dogs}
    _, _, found = evaluate(run, folder, one, "one")
    assert found == {key: score for key, score in both.items() if key[1] == 8} and len(found) > 9

    three = {**content, "categories": [*classes, {"id": 9, "name": "cow"}]}
    status, err, _ = evaluate(run, folder, three, "three")
    assert status == 2 and "(cat, dog, cow), but the model has 2 classes (cat, dog)" in err
    (folder / "classes.json").unlink()
    for arguments, message in [
        (["MODEL.RETINANET.NUM_CLASSES", 3], "the checkpoint has 2 classes and the config 3"),
        (["MODEL.FPN.OUT_CHANNELS", 16, "MODEL.RETINANET.NUM_CLASSES", 3], "another architecture"),
        (["MODEL.RETINANET.NUM_CLASSES", 3, "MODEL.WEIGHTS", ""], "MODEL.WEIGHTS is empty"),
        ([], "NUM_CLASSES is 2, and no classes.json beside the weights"),
    ]:
        status, err, _ = evaluate(run, folder, three, "three", *arguments)
        assert status == 2 and message in err


def test_options_may_stand_behind_keys():
    words = ["SEED", "1", "--num-gpus", "2", "SOLVER.BASE_LR", "-1e-3"]
    args = make_parser("train").parse_intermixed_args(words)
    assert (args.num_gpus, args.opts) == (2, ["SEED", "1", "SOLVER.BASE_LR", "-1e-3"])


def test_trains_detectron2s_own_model(train_tiny):
    """For a comparison with the stock model: one command, one word changed."""
    assert train_tiny("MODEL.META_ARCHITECTURE", "RetinaNet", "SOLVER.AMP.ENABLED", "False")[0] == 0


def test_trains_with_a_loss_of_ones_own(train_tiny, tmp_path):
    (tmp_path / "half_loss.py").write_text(
        "from focal_retina.losses import CLS_LOSS_REGISTRY, DenseLoss\n"
        "@CLS_LOSS_REGISTRY.register()\n"
        "class HalfLoss(DenseLoss):\n"
        "    def elementwise(self, x_t):\n"
        "        return (1 - x_t.sigmoid()) / 2\n"
    )
    flags = ["--import", tmp_path / "half_loss.py"]
    assert train_tiny("MODEL.FOCAL_RETINA.CLS_LOSS.NAME", "HalfLoss", flags=flags)[0] == 0
    # The registry keeps it: a file that registers the name a second time is refused.
    (tmp_path / "again.py").write_text((tmp_path / "half_loss.py").read_text())
    status, err = train_tiny(flags=["--import", tmp_path / "again.py"])
    assert status == 2
    assert "'HalfLoss'" in err


def test_two_processes_on_cpu(register_tiny, tmp_path):
    command = ["train_net.py", "--num-gpus", "2", *CONFIG]
    command += [*register_tiny, *TINY_TRAINING.split(), "OUTPUT_DIR", tmp_path / "out"]
    command += ["MODEL.DEVICE", "cpu"]
    done = python(*command, "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr
    assert (tmp_path / "out" / "model_final.pth").is_file()


def test_interrupt_is_one_line_and_status_130(run, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "launch_training", interrupted)
    status, err = run(*CONFIG)
    assert status == 130
    assert "--resume" in err and "Traceback" not in err
