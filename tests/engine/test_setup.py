"""From a command line to a checked config: errors are UserErrors, whatever was typed."""

import argparse
import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from focal_retina.engine import UserError, read_config, setup_config

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart" / "shapes_R18.yaml"
TINY = ["DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "()", "MODEL.RETINANET.NUM_CLASSES", "2"]


@pytest.fixture
def arguments(tiny_coco, tmp_path, monkeypatch):
    """train_net.py's arguments for tiny_coco, and further options."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    json_file, folder = tiny_coco

    def call(*options, **changes):
        defaults = {
            "config_file": str(CONFIG),
            "register": [f"tiny={json_file}:{folder}"],
            "imports": [],
            "resume": False,
            "eval_only": False,
            "num_gpus": 0,
            "num_machines": 1,
        }
        opts = [*TINY, "OUTPUT_DIR", str(tmp_path / "out"), *options]
        return argparse.Namespace(**{**defaults, "opts": opts, **changes})

    yield call
    if "tiny" in DatasetCatalog:
        DatasetCatalog.remove("tiny")
    MetadataCatalog.pop("tiny", None)


@pytest.fixture
def spoil(tiny_coco):
    path, _ = tiny_coco
    content = json.loads(path.read_text())
    content["annotations"][4]["bbox"][2] = float("nan")
    path.write_text(json.dumps(content))


def test_sound_data_pass(arguments):
    assert setup_config(arguments()).is_frozen()


def test_spoiled_data_stop_before_the_first_iteration(arguments, spoil, caplog):
    with pytest.raises(UserError, match="'tiny': boxes with NaN.*4.jpg, annotation 5") as error:
        setup_config(arguments())
    assert "\n" not in str(error.value)
    assert "4.jpg, annotation 5, box" in caplog.text  # the list of first cases


@pytest.mark.parametrize("mode", ["skip", "off"])
def test_by_flag_they_do_not(arguments, spoil, mode):
    setup_config(arguments("MODEL.FOCAL_RETINA.DATA_CHECK.MODE", mode))


def test_only_what_is_evaluated_is_checked_for_an_evaluation(arguments, spoil):
    setup_config(arguments(eval_only=True))
    with pytest.raises(UserError, match="boxes with NaN"):
        setup_config(arguments("DATASETS.TEST", "('tiny',)", eval_only=True))


def test_one_process_a_machine_checks(arguments, spoil, monkeypatch):
    """The others of torchrun meet the first in vain: it ends them all."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    setup_config(arguments())


def test_torchruns_processes_share_the_batch(arguments, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="IMS_PER_BATCH 16 can't be divided among 3 processes"):
        setup_config(arguments())


@pytest.mark.parametrize(
    "options, message",
    [
        (("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.3"), "set MODEL.RETINANET.SCORE_THRESH_TEST"),
        (("SOLVER.BASE_LR", "-1.0"), "SOLVER.BASE_LR is -1.0, not a positive number"),
        (("MODEL.DEVICE.X", "1"), "MODEL.DEVICE.X"),
        (("MODEL.WEIGHTS", "{[]: 1}"), "unhashable"),
        (("MODEL.FOCAL_RETINA.DATA_CHECK.MODE", "no"), "one of error, skip, off"),
    ],
)
def test_wrong_options(arguments, options, message):
    with pytest.raises(UserError, match=message):
        setup_config(arguments(*options))


_WORD = st.sampled_from(
    ["MODEL", "RETINANET", "NUM_CLASSES", "SOLVER", "BASE_LR", "DEVICE", "STEPS", "x", ""]
)
_KEY = st.lists(_WORD, min_size=1, max_size=4).map(".".join)
_VALUE = st.text(alphabet="()[]{}:,'\"0123456789.eE+-x# \n", max_size=12)


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(options=st.lists(st.tuples(_KEY, _VALUE), min_size=1, max_size=2))
def test_any_options_are_read_or_a_user_error(arguments, options):
    typed = arguments(*[word for pair in options for word in pair])
    try:
        assert read_config(typed).is_frozen()
    except UserError as error:
        assert "\n" not in str(error) and str(error)  # noqa: PT017, either outcome is right
