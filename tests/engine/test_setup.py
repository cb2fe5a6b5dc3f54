"""From a command line to a checked config: errors are UserErrors, whatever was typed."""

import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given, settings
from hypothesis import strategies as st

from focal_retina.engine import UserError, load_config, setup_config

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart" / "shapes.yaml"
TINY = ["DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "()", "MODEL.RETINANET.NUM_CLASSES", "2"]


@pytest.fixture
def set_up(tiny_coco, tmp_path):
    """The config of tiny_coco with further options, set up."""
    json_file, folder = tiny_coco

    def call(*options, **changes):
        defaults = {
            "source": CONFIG,
            "register": [f"tiny={json_file}:{folder}"],
            "imports": [],
        }
        opts = [*TINY, "OUTPUT_DIR", str(tmp_path / "out"), *options]
        return setup_config(opts=opts, **{**defaults, **changes})

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


def test_sound_data_pass(set_up):
    assert set_up().is_frozen()


def test_spoiled_data_stop_before_the_first_iteration(set_up, spoil, caplog):
    with pytest.raises(UserError, match="'tiny': boxes with NaN.*4.jpg, annotation 5") as error:
        set_up()
    assert "\n" not in str(error.value)
    assert "4.jpg, annotation 5, box" in caplog.text  # the list of first cases


@pytest.mark.parametrize("mode", ["skip", "off"])
def test_by_flag_they_do_not(set_up, spoil, mode):
    set_up("MODEL.FOCAL_RETINA.DATA_CHECK.MODE", mode)


def test_only_what_is_evaluated_is_checked_for_an_evaluation(set_up, spoil):
    set_up(eval_only=True)
    with pytest.raises(UserError, match="boxes with NaN"):
        set_up("DATASETS.TEST", "('tiny',)", eval_only=True)


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
        (("SOLVER.BASE_LR", "-1.0"), "SOLVER.BASE_LR is -1.0, not a positive number"),
        (("MODEL.DEVICE.X", "1"), "MODEL.DEVICE.X"),
        (("MODEL.WEIGHTS", "{[]: 1}"), "unhashable"),
        (("MODEL.FOCAL_RETINA.DATA_CHECK.MODE", "no"), "one of error, skip, off"),
    ],
)
def test_wrong_options(set_up, options, message):
    with pytest.raises(UserError, match=message):
        set_up(*options)


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
        assert load_config(CONFIG, typed).is_frozen()
    except UserError as error:
        assert "\n" not in str(error) and str(error)  # noqa: PT017, either outcome is right
