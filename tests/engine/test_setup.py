"""From a command line to a checked config: errors are UserErrors, whatever was typed."""

import json

import pytest
import torch
from helpers import QUICKSTART, ZOO, make_run
from hypothesis import given, settings
from hypothesis import strategies as st

from focal_retina.engine import UserError, load_config, resolve_class_alpha, setup_config

KERNEL = ("MODEL.FOCAL_RETINA.CLS_LOSS.KERNEL",)
TINY = ["DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "()", "MODEL.RETINANET.NUM_CLASSES", "2"]


@pytest.fixture
def set_up(tiny_coco, tmp_path):
    """The config of tiny_coco with further options, set up."""

    def call(*options, eval_only=False):
        opts = [*TINY, "OUTPUT_DIR", str(tmp_path / "out"), *options]
        register = ["tiny={}:{}".format(*tiny_coco)]
        return setup_config(QUICKSTART, opts, register=register, eval_only=eval_only)

    return call


@pytest.fixture
def spoil(tiny_coco):
    path, _ = tiny_coco
    content = json.loads(path.read_text())
    content["annotations"][4]["bbox"][2] = float("nan")
    path.write_text(json.dumps(content))


def test_spoiled_data_stop_before_the_first_iteration(set_up, spoil, caplog):
    caplog.set_level("DEBUG", "focal_retina")
    with pytest.raises(UserError, match="'tiny': boxes with NaN.*4.jpg, annotation 5") as error:
        set_up()
    assert "\n" not in str(error.value)
    assert "4.jpg, annotation 5, box" in caplog.text  # the list of first cases


@pytest.mark.parametrize("mode", ["skip", "off"])
def test_by_flag_they_do_not(set_up, spoil, mode):
    assert set_up("MODEL.FOCAL_RETINA.DATA_CHECK.MODE", mode).is_frozen()


def test_class_alpha_auto_becomes_numbers(set_up):
    """Three objects of each class have the scalar's α; a class without objects is one line."""
    auto = ("MODEL.FOCAL_RETINA.CLS_LOSS.CLASS_ALPHA", "auto")
    cfg = resolve_class_alpha(set_up(*auto))
    assert pytest.approx([0.25, 0.25]) == cfg.MODEL.FOCAL_RETINA.CLS_LOSS.CLASS_ALPHA
    assert resolve_class_alpha(cfg) is cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.FOCAL_RETINA.CLS_LOSS.CLASS_ALPHA = "auto"
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    with pytest.raises(UserError, match="2"):
        resolve_class_alpha(cfg)


def test_only_what_is_evaluated_is_checked_for_an_evaluation(set_up, spoil):
    weights = ("MODEL.WEIGHTS", str(QUICKSTART))
    generated = ("DATASETS.TEST", "('focal_shapes_val',)", "MODEL.RETINANET.NUM_CLASSES", "4")
    set_up(*weights, *generated, eval_only=True)
    with pytest.raises(UserError, match="boxes with NaN"):
        set_up(*weights, "DATASETS.TEST", "('tiny',)", eval_only=True)


def test_one_process_a_machine_checks(set_up, spoil, monkeypatch):
    """The others of torchrun meet the first in vain: it ends them all."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    set_up()


def test_torchruns_processes_share_the_batch(set_up, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="IMS_PER_BATCH 16 can't be divided among 3 processes"):
        set_up()


@pytest.mark.parametrize(
    "options, message",
    [
        (("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.3"), "set MODEL.RETINANET.SCORE_THRESH_TEST"),
        (("MODEL.DEVICE.X", "1"), "MODEL.DEVICE.X"),
        (("MODEL.WEIGHTS", "{[]: 1}"), "unhashable"),
        (("MODEL.FOCAL_RETINA.DATA_CHECK.MODE", "no"), "one of error, skip, off"),
        (("MODEL.META_ARCHITECTURE", "GeneralizedRCNN"), "GeneralizedRCNN is no dense detector"),
        (("MODEL.META_ARCHITECTURE", "FocalRetinanet"), "near: FocalRetinaNet"),
        (("MODEL.BACKBONE.NAME", "build_resnet_backbone"), "has p3, p4, but .* has res3"),
        (("MODEL.DEVICE", "cpu", *KERNEL, "triton"), "CLS_LOSS.KERNEL 'triton' cannot"),
    ],
)
def test_wrong_options(set_up, options, message):
    with pytest.raises(UserError, match=message):
        set_up(*options)


def test_an_evaluation_on_nothing(set_up):
    with pytest.raises(UserError, match=r"DATASETS\.TEST is empty"):
        set_up(eval_only=True)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def test_only_the_default_device_falls_back(no_gpu, caplog, tmp_path):
    caplog.set_level("INFO")
    assert load_config(ZOO).MODEL.DEVICE == "cpu"
    assert "no GPU" in caplog.text
    yaml = tmp_path / "gpu.yaml"
    yaml.write_text("MODEL: {DEVICE: cuda}")
    wrong = [(yaml, ()), (ZOO, ("MODEL.DEVICE", "cuda:1")), (ZOO, ("MODEL.DEVICE", "gpu"))]
    for source, opts in wrong:
        with pytest.raises(UserError, match="MODEL.DEVICE"):
            load_config(source, opts)
    with pytest.raises(UserError, match="finds 0 GPUs for the 2 processes"):
        load_config(ZOO, num_processes=2)
    assert load_config(ZOO, ("MODEL.DEVICE", "cpu"), num_processes=2).MODEL.DEVICE == "cpu"


def test_a_trainings_folder_is_its_config_and_its_weights(no_gpu, tmp_path):
    make_run(tmp_path / "run")
    run = (tmp_path / "run").rename(tmp_path / "moved")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("DEVICE: cpu", "DEVICE: cuda"))  # trained there
    for source in (run, config):
        cfg = load_config(source)
        assert str(run / "model_final.pth") == cfg.MODEL.WEIGHTS
        assert (str(run), 64, "cpu") == (cfg.OUTPUT_DIR, cfg.INPUT.MIN_SIZE_TEST, cfg.MODEL.DEVICE)
    assert load_config(run, ["MODEL.WEIGHTS", "other.pth"]).MODEL.WEIGHTS == "other.pth"
    on_cpu = tmp_path / "on_cpu"
    make_run(on_cpu)  # by two processes
    assert load_config(on_cpu, num_processes=2).MODEL.DEVICE == "cpu"
    cfg = load_config(run, trained=False)  # to train again, or to go on
    assert ("", str(run)) == (cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR)
    (run / "model_final.pth").unlink()
    with pytest.raises(UserError, match="no finished training: there is no file"):
        load_config(run)


_WORD = st.sampled_from(
    ["MODEL", "RETINANET", "NUM_CLASSES", "SOLVER", "BASE_LR", "DEVICE", "STEPS", "x", ""]
)
_KEY = st.lists(_WORD, min_size=1, max_size=4).map(".".join)
_VALUE = st.text(alphabet="()[]{}:,'\"0123456789.eE+-x# \n", max_size=12)


@settings(deadline=None, max_examples=150)
@given(options=st.lists(st.tuples(_KEY, _VALUE), min_size=1, max_size=2))
def test_any_options_are_read_or_a_user_error(options):
    typed = [word for pair in options for word in pair]
    try:
        assert load_config(QUICKSTART, typed).is_frozen()
    except UserError as error:
        assert "\n" not in str(error) and str(error)  # noqa: PT017, either outcome is right
