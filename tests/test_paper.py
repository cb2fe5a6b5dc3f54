"""configs/paper/: a yaml a row of the paper's tables, which changes what that row is about only.
configs/sweeps/: the paper's rows and numbers, and rows that make a config and a loss."""

import re
from collections import defaultdict
from itertools import chain

import pytest
from helpers import CONFIGS, SWEEPS, commands, differences, header, load, name_of

from focal_retina.figures.speed_accuracy import PAPER_RETINANET
from focal_retina.losses import build_cls_loss
from focal_retina.sweep.grid import read_sweep

PAPER = CONFIGS / "paper"
ALPHA = "MODEL.RETINANET.FOCAL_LOSS_ALPHA"
GAMMA = "MODEL.RETINANET.FOCAL_LOSS_GAMMA"
LOSS = "MODEL.FOCAL_RETINA.CLS_LOSS.NAME"
# Files, and the numbers of their rows in the order of the paper: AP/AP50/AP75[/APs/APm/APl], in
# percent; from arXiv 1708.02002v2.
NUMBERS = {
    "table1a_alpha/alpha_{}": """
        0.1 0/0/0  0.25 10.8/16.0/11.7  0.5 30.2/46.7/32.8  0.75 31.1/49.4/33.0
        0.9 30.8/49.7/32.3  0.99 28.7/47.4/29.9  0.999 25.1/41.7/26.1""",
    "table1b_gamma/gamma_{}": """
        0 31.1/49.4/33.0  0.1 31.4/49.9/33.1  0.2 31.9/50.7/33.4  0.5 32.9/51.7/35.2
        1 33.7/52.0/36.2  2 34.0/52.5/36.5  5 32.2/49.6/34.8""",
    "table1c_anchors/scales_{}": """
        1_ratios_1 30.3/49.0/31.8  2_ratios_1 31.9/50.0/34.0  3_ratios_1 31.8/49.4/33.7
        1_ratios_3 32.4/52.3/33.9  2_ratios_3 34.2/53.1/36.5  3_ratios_3 34.0/52.5/36.5
        4_ratios_3 33.8/52.1/36.2""",
    "table1d_ohem/{}": """
        ohem_128_nms_0.7 31.1/47.2/33.2  ohem_256_nms_0.7 31.8/48.8/33.9
        ohem_512_nms_0.7 30.6/47.0/32.6  ohem_128_nms_0.5 32.8/50.3/35.1
        ohem_256_nms_0.5 31.0/47.4/33.0  ohem_512_nms_0.5 27.6/42.0/29.2
        ohem_1to3_128_nms_0.5 31.1/47.2/33.2  ohem_1to3_256_nms_0.5 28.3/42.4/30.3
        ohem_1to3_512_nms_0.5 24.0/35.5/25.8  focal_loss 36.0/54.9/38.7""",
    "table1e_speed/R50_{}": """
        400 30.5/47.8/32.7/11.2/33.8/46.1  500 32.5/50.9/34.8/13.9/35.8/46.7
        600 34.3/53.2/36.9/16.2/37.4/47.4  700 35.1/54.2/37.7/18.0/39.3/46.4
        800 35.7/55.0/38.5/18.9/38.9/46.3""",
    "table1e_speed/R101_{}": """
        400 31.9/49.5/34.1/11.6/35.8/48.5  500 34.4/53.1/36.8/14.7/38.5/49.1
        600 36.0/55.2/38.7/17.4/39.6/49.7  700 37.1/56.6/39.8/19.1/40.6/49.4
        800 37.8/57.5/40.8/20.2/41.1/49.2""",
    "table2_state_of_the_art/{}_800": """
        R101 39.1/59.1/42.3/21.8/42.7/50.2  X101_32x8d 40.8/61.1/44.1/24.1/44.2/51.2""",
    "table3_focal_star/{}": """
        cross_entropy 31.1/49.4/33.0  focal_loss 34.0/52.5/36.5
        focal_star_gamma_2_beta_1 33.8/52.7/36.3  focal_star_gamma_4_beta_0 33.9/51.8/36.4""",
    "prior_init/{}_prior": "without -  with 30.2",
}


def rows_of_tables():
    """(path, metrics) of each row; those of a row that the paper describes in words are empty."""
    for pattern, text in NUMBERS.items():
        words = text.split()
        for name, numbers in zip(words[::2], words[1::2], strict=True):
            values = [float(x) for x in numbers.split("/") if x != "-"]
            metrics = ("AP", "AP50", "AP75", "APs", "APm", "APl")
            yield PAPER / f"{pattern.format(name)}.yaml", dict(zip(metrics, values, strict=False))


ROWS = list(rows_of_tables())


@pytest.fixture(scope="module")
def base():
    return load("paper/Base-Paper.yaml")


def test_every_row_has_a_file_and_every_file_a_row():
    files = {p for p in PAPER.rglob("*.yaml") if not p.name.startswith("Base-")}
    assert files == {path for path, _ in ROWS}


@pytest.mark.parametrize("path, paper", ROWS, ids=lambda x: getattr(x, "stem", ""))
def test_header_says_what_the_row_is_and_what_the_paper_has(path, paper):
    cfg, lines, table = load(path), header(path), path.parent.name
    place = f"Table {table[5:].partition('_')[0]}:" if table.startswith("table") else "Section 5.1:"
    assert lines[0].startswith(place)
    dataset = f"coco_2017_{'test-dev' if place in ('Table 1e:', 'Table 2:') else 'val'}"
    assert (dataset,) == cfg.DATASETS.TEST and lines[0].endswith(f"({dataset}).")
    depth, size = cfg.MODEL.RESNETS.DEPTH, cfg.INPUT.MIN_SIZE_TEST
    assert f"{depth}-" in lines[0] and f" {size} px" in lines[0]
    said, ours = lines[2].removeprefix("Paper: ").split(". Ours: ")
    assert ours == "not run."
    numbers = {name: float(x) for name, x in re.findall(r"(AP\w*) ([\d.]+)", said)}
    assert numbers == paper and (numbers or said == "diverges early")
    if place == "Table 1e:":
        time, ap = PAPER_RETINANET[f"RetinaNet-{depth}"][size // 100 - 4]
        assert lines[3] == f"{time} ms an image on an M40." and ap == paper["AP"]


def test_table_2_is_the_largest_model_of_table_1e_trained_for_longer():
    longer = {
        "INPUT.MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800),
        "SOLVER.STEPS": (90000, 120000),
        "SOLVER.MAX_ITER": 135000,
    }
    resnext = {
        "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl",
        "MODEL.PIXEL_STD": [57.375, 57.120, 58.395],
        "MODEL.RESNETS.NUM_GROUPS": 32,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
    }
    largest = load("paper/table1e_speed/R101_800.yaml")
    for name, expected in {"R101_800": longer, "X101_32x8d_800": longer | resnext}.items():
        changed = differences(load(f"paper/table2_state_of_the_art/{name}.yaml"), largest)
        assert changed.pop("OUTPUT_DIR") and changed == expected


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


# Paper sections 4 and 4.1, where they say it; P6 comes from C5.
RECIPE = """
    SOLVER.IMS_PER_BATCH 16 SOLVER.MAX_ITER 90000 SOLVER.STEPS (60000,80000) SOLVER.BASE_LR 0.01
    SOLVER.GAMMA 0.1 SOLVER.MOMENTUM 0.9 SOLVER.WEIGHT_DECAY 0.0001 SOLVER.NESTEROV False
    SOLVER.LR_SCHEDULER_NAME WarmupMultiStepLR MODEL.FOCAL_RETINA.OPTIMIZER SGD
    SOLVER.AMP.ENABLED False SOLVER.CLIP_GRADIENTS.ENABLED False INPUT.RANDOM_FLIP horizontal
    INPUT.CROP.ENABLED False INPUT.LARGE_SCALE_JITTER.ENABLED False
    MODEL.BACKBONE.NAME build_retinanet_resnet_fpn_backbone MODEL.FPN.OUT_CHANNELS 256
    MODEL.RETINANET.NUM_CONVS 4 MODEL.RETINANET.IN_FEATURES ['p3','p4','p5','p6','p7']
    MODEL.RETINANET.IOU_THRESHOLDS [0.4,0.5] MODEL.RETINANET.IOU_LABELS [0,-1,1]
    MODEL.RETINANET.FOCAL_LOSS_GAMMA 2.0 MODEL.RETINANET.FOCAL_LOSS_ALPHA 0.25
    MODEL.RETINANET.PRIOR_PROB 0.01 MODEL.FOCAL_RETINA.HEAD.PRIOR_INIT True
    MODEL.RETINANET.BBOX_REG_LOSS_TYPE smooth_l1 MODEL.RETINANET.SCORE_THRESH_TEST 0.05
    MODEL.RETINANET.TOPK_CANDIDATES_TEST 1000 MODEL.RETINANET.NMS_THRESH_TEST 0.5
"""


def test_base_is_the_papers_recipe(base):
    assert base.MODEL.RETINANET.NORM == ""
    assert base == load("paper/Base-Paper.yaml", *RECIPE.split())
    paper = "Paper: AP 34.0, AP50 52.5, AP75 36.5 on COCO minival. Ours: not run."
    assert header(PAPER / "Base-Paper.yaml")[2] == paper


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


LOSSES = CONFIGS / "sweeps" / "losses.yaml"
TABLE_SWEEPS = [path for path in SWEEPS if path != LOSSES]
# Rows of the text, not of a table, which have no yaml in configs/paper/.
TEXT_ROWS = {"CE, π .1", "CE, π .001"}


def row_config(sweep, row, base):
    cfg = load(base)
    cfg.merge_from_list([*chain(*sweep.overrides.items(), *row.overrides.items())])
    return cfg


def base_of(path):
    (command,) = commands(path)
    return command[command.index("--config-file") + 1].removeprefix("configs/")


@pytest.mark.parametrize("path", SWEEPS, ids=name_of)
def test_every_row_makes_a_config_and_a_loss(path):
    sweep = read_sweep(path)
    configs = [row_config(sweep, row, base_of(path)) for row in sweep.rows]
    for row, cfg in zip(sweep.rows, configs, strict=True):
        build_cls_loss(cfg)
        # The weights of every loss, which are .25 where nobody sets them
        if cfg.MODEL.FOCAL_RETINA.CLS_LOSS.NAME in ("CrossEntropy", "OHEM"):
            assert (cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA == -1) == ("α" not in row.name), row.name
    assert len({cfg.dump() for cfg in configs}) == len(configs)
    if sweep.tuning is not None:
        for value in sweep.tuning.values:
            configs[0].merge_from_list([sweep.tuning.key, value])


def with_ce_as_focal_loss(cfg):
    """Cross-entropy is the focal loss with γ 0; it doesn't look at γ."""
    if cfg.MODEL.FOCAL_RETINA.CLS_LOSS.NAME == "CrossEntropy":
        cfg.merge_from_list([LOSS, "FocalLoss", GAMMA, 0.0])
    return cfg


@pytest.mark.parametrize("path", TABLE_SWEEPS, ids=name_of)
def test_rows_and_numbers_are_those_of_configs_paper(path):
    base = "paper/Base-Paper-R101.yaml" if path.stem == "table1d_ohem" else "paper/Base-Paper.yaml"
    assert f"configs/{base}" in "\n".join(header(path))
    sweep = read_sweep(path)
    rows = [row for row in sweep.rows if row.name not in TEXT_ROWS]
    expected = [x for x in ROWS if x[0].parent.name == path.stem]
    for row, (file, paper) in zip(rows, expected, strict=True):
        assert row.paper == paper and (paper or row.paper_note == "diverges early")
        ours = with_ce_as_focal_loss(row_config(sweep, row, base))
        changed = differences(ours, with_ce_as_focal_loss(load(file)))
        # A sweep needs annotations, which test-dev doesn't give out.
        assert set(changed) <= {"OUTPUT_DIR", "DATASETS.TEST"}, row.name
        assert ours.DATASETS.TEST == ("coco_2017_val",)


@pytest.mark.parametrize("name, key", [("table1a_alpha", ALPHA), ("table1b_gamma", GAMMA)])
def test_the_figures_axis_is_what_the_rows_change(name, key):
    sweep = read_sweep(CONFIGS / "sweeps" / f"{name}.yaml")
    assert sweep.figure is not None
    assert [row.x for row in sweep.rows] == [row.overrides[key] for row in sweep.rows]


def test_the_tuned_rates_enclose_the_recipes_own():
    sweep = read_sweep(LOSSES)
    assert sweep.tuning is not None and sweep.tuning.key == "SOLVER.BASE_LR"
    rates = sweep.tuning.values
    assert min(rates) < load(base_of(LOSSES)).SOLVER.BASE_LR < max(rates)
