"""configs/paper/: a yaml a row of the paper's tables, which changes what that row is about only."""

from collections import defaultdict

import pytest
from config_files import CONFIGS, commands, differences, header, load
from paper_tables import ALPHA, GAMMA, LOSS, MILLISECONDS, TABLES

PAPER = CONFIGS / "paper"
ROWS = [(table, row) for table, rows in TABLES.items() for row in rows]


def row_name(value):
    return getattr(value, "file", value)


def path_of(table, row):
    return PAPER / table / f"{row.file}.yaml"


@pytest.fixture(scope="module")
def base():
    return load("paper/Base-Paper.yaml")


def test_every_row_has_a_file_and_every_file_a_row():
    files = {p for p in PAPER.rglob("*.yaml") if not p.name.startswith("Base-")}
    assert files == {path_of(table, row) for table, row in ROWS}


@pytest.mark.parametrize("table, row", ROWS, ids=row_name)
def test_differs_from_the_base_only_in_what_the_row_is_about(table, row, base):
    expected = base.clone()
    for key, value in row.values.items():
        expected.merge_from_list([key, value])
    cfg = load(path_of(table, row))
    if (table, row.file) == ("table1b_gamma", "gamma_0"):  # table 1a's CE, which is FL with γ 0
        assert (cfg.MODEL.FOCAL_RETINA.CLS_LOSS.NAME, row.values[GAMMA]) == ("CrossEntropy", 0)
        expected.merge_from_list(
            [LOSS, "CrossEntropy", GAMMA, base.MODEL.RETINANET.FOCAL_LOSS_GAMMA]
        )
    expected.OUTPUT_DIR = cfg.OUTPUT_DIR
    assert differences(cfg, expected) == {}


@pytest.mark.parametrize("table, row", ROWS, ids=row_name)
def test_header_says_what_the_row_is_and_what_the_paper_has(table, row):
    path = path_of(table, row)
    cfg, lines = load(path), header(path)

    place = f"Table {table[5:].partition('_')[0]}:" if table.startswith("table") else "Section 5.1:"
    assert lines[0].startswith(place)
    split = {"coco_2017_val": "minival", "coco_2017_test-dev": "test-dev"}[cfg.DATASETS.TEST[0]]
    assert lines[0].endswith(f"COCO {split} ({cfg.DATASETS.TEST[0]}).")
    depth, size = cfg.MODEL.RESNETS.DEPTH, cfg.INPUT.MIN_SIZE_TEST
    resnext = cfg.MODEL.RESNETS.NUM_GROUPS > 1
    assert ("ResNeXt-101-32x8d-FPN" if resnext else f"R{depth}-FPN") in lines[0]
    assert f" {size} px" in lines[0]

    numbers = ", ".join(f"{metric} {value:g}" for metric, value in row.paper.items())
    said = ", ".join(_shorten(x) for x in lines[2].partition(". Ours: ")[0].split(", "))
    assert said == f"Paper: {numbers or 'diverges early'}"
    assert lines[2].endswith(". Ours: not run.")
    if table == "table1e_speed":
        assert lines[3] == f"{MILLISECONDS[row.file]} ms an image on an M40."


def _shorten(number):
    """ "AP 34.0" as "AP 34"."""
    words = number.split()
    return " ".join([*words[:-1], f"{float(words[-1]):g}"]) if words[-1][0].isdigit() else number


def test_one_output_folder_is_one_training():
    """Rows of the same model share it, and it is trained once: all commands but one --resume."""
    configs, fresh = defaultdict(list), defaultdict(int)
    for path in PAPER.rglob("*.yaml"):
        cfg = load(path)
        for command in commands(path):
            fresh[cfg.OUTPUT_DIR] += "--resume" not in command
            cfg.DATASETS.TEST = ()
            configs[cfg.OUTPUT_DIR].append(cfg)
    for folder, same in configs.items():
        assert all(cfg == same[0] for cfg in same), folder
        assert fresh[folder] == 1, folder
    assert len(configs["output/paper/R50_600"]) == 5  # Base-Paper; tables 1b, 1c, 1e, 3
    for cfg in (same[0] for same in configs.values()):
        cfg.OUTPUT_DIR = ""
    assert len({same[0].dump() for same in configs.values()}) == len(configs)


def test_base_is_the_papers_recipe(base):
    """Paper sections 4 and 4.1, where they say it."""
    solver, retinanet = base.SOLVER, base.MODEL.RETINANET
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER, solver.STEPS) == (16, 90000, (60000, 80000))
    assert (solver.BASE_LR, solver.GAMMA, solver.LR_SCHEDULER_NAME) == (
        0.01,
        0.1,
        "WarmupMultiStepLR",
    )
    assert (solver.MOMENTUM, solver.WEIGHT_DECAY, solver.NESTEROV) == (0.9, 1e-4, False)
    assert not solver.AMP.ENABLED and not solver.CLIP_GRADIENTS.ENABLED
    assert base.MODEL.FOCAL_RETINA.OPTIMIZER == "SGD"
    assert base.INPUT.RANDOM_FLIP == "horizontal"
    assert not base.INPUT.CROP.ENABLED and not base.INPUT.LARGE_SCALE_JITTER.ENABLED
    assert base.MODEL.BACKBONE.NAME == "build_retinanet_resnet_fpn_backbone"  # P6 from C5
    assert (base.MODEL.FPN.OUT_CHANNELS, retinanet.NUM_CONVS, retinanet.NORM) == (256, 4, "")
    assert retinanet.IN_FEATURES == ["p3", "p4", "p5", "p6", "p7"]
    assert (retinanet.IOU_THRESHOLDS, retinanet.IOU_LABELS) == ([0.4, 0.5], [0, -1, 1])
    assert (retinanet.FOCAL_LOSS_GAMMA, retinanet.FOCAL_LOSS_ALPHA) == (2.0, 0.25)
    assert retinanet.PRIOR_PROB == 0.01 and base.MODEL.FOCAL_RETINA.HEAD.PRIOR_INIT
    assert retinanet.BBOX_REG_LOSS_TYPE == "smooth_l1"
    assert retinanet.SCORE_THRESH_TEST == 0.05
    assert (retinanet.TOPK_CANDIDATES_TEST, retinanet.NMS_THRESH_TEST) == (1000, 0.5)
    assert header(PAPER / "Base-Paper.yaml")[2] == (
        "Paper: AP 34.0, AP50 52.5, AP75 36.5 on COCO minival. Ours: not run."
    )


def test_choices_where_the_paper_is_silent(base):
    """Those of facebookresearch/Detectron: its defaults and its retinanet_R-50-FPN_1x.yaml."""
    assert differences(base, load("Base-FocalRetinaNet.yaml")) == {
        "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
        "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.11,
        "MODEL.FOCAL_RETINA.NORMALIZER.MODE": "batch",
        "MODEL.FOCAL_RETINA.LABELING.PROMOTION": "min_iou",
        "INPUT.MIN_SIZE_TRAIN": (600,),
        "INPUT.MAX_SIZE_TRAIN": 1000,
        "INPUT.MIN_SIZE_TEST": 600,
        "INPUT.MAX_SIZE_TEST": 1000,
        "SOLVER.WARMUP_ITERS": 500,
        "SOLVER.WARMUP_FACTOR": 1 / 3,
        "OUTPUT_DIR": "output/paper/R50_600",
    }
    assert base.MODEL.FOCAL_RETINA.LABELING.PROMOTION_MIN_IOU == 0.4
    assert base.TEST.DETECTIONS_PER_IMAGE == 100


@pytest.mark.parametrize("table", ["table1a_alpha", "prior_init"])
def test_cross_entropy_states_its_weights(table):
    """α of focal loss would otherwise weigh it: .25."""
    assert all(ALPHA in row.values for row in TABLES[table])
