"""The paper's tables: what each row changes, and its numbers.

Source: Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection", arXiv
1708.02002v2. Numbers are AP/AP50/AP75, in tables 1e and 2 also APs/APm/APl, in percent.
"""

from collections.abc import Callable
from typing import NamedTuple

ALPHA = "MODEL.RETINANET.FOCAL_LOSS_ALPHA"
GAMMA = "MODEL.RETINANET.FOCAL_LOSS_GAMMA"
LOSS = "MODEL.FOCAL_RETINA.CLS_LOSS.NAME"
BETA = "MODEL.FOCAL_RETINA.CLS_LOSS.BETA"
OHEM = "MODEL.FOCAL_RETINA.CLS_LOSS.OHEM"
PRIOR = "MODEL.FOCAL_RETINA.HEAD.PRIOR_INIT"
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
R101 = {
    "MODEL.RESNETS.DEPTH": 101,
    "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-101.pkl",
}
TEST_DEV = {"DATASETS.TEST": ("coco_2017_test-dev",)}


class PaperRow(NamedTuple):
    """``values`` are config keys; what they leave out is as in R50-FPN, 600 px, FL, γ 2, α .25."""

    file: str
    values: dict[str, object]
    paper: dict[str, float]


def _rows(table: str, row: Callable[..., tuple[str, dict[str, object]]]) -> list[PaperRow]:
    """Rows of a table that is written as lines: the columns, and the numbers last."""
    rows = []
    for line in table.strip().splitlines():
        *columns, numbers = line.split()
        file, values = row(*columns)
        metrics = zip(METRICS, map(float, numbers.split("/")), strict=False)
        rows.append(PaperRow(file, values, dict(metrics)))
    return rows


def _anchors(scales: str, ratios: str) -> tuple[str, dict[str, object]]:
    n = int(scales)
    sizes = [[side * 2 ** (k / n) for k in range(n)] for side in (32, 64, 128, 256, 512)]
    return f"scales_{scales}_ratios_{ratios}", {
        "MODEL.ANCHOR_GENERATOR.SIZES": sizes,
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": {"1": [[1.0]], "3": [[0.5, 1.0, 2.0]]}[ratios],
    }


def _ohem(variant: str, batch_size: str, nms: str) -> tuple[str, dict[str, object]]:
    if variant == "FL":
        return "focal_loss", R101
    one_to_three = variant == "1:3"
    options = {
        "BATCH_SIZE": int(batch_size),
        "NMS_THRESH": float(nms),
        "ONE_TO_THREE": one_to_three,
    }
    values = {f"{OHEM}.{key}": value for key, value in options.items()}
    name = f"ohem{'_1to3' if one_to_three else ''}_{batch_size}_nms_{nms}"
    return name, {**R101, LOSS: "OHEM", ALPHA: -1.0, **values}


def _size(depth: str, pixels: str) -> tuple[str, dict[str, object]]:
    shortest = int(pixels)
    longest = round(shortest * 5 / 3)
    return f"R{depth}_{pixels}", {
        **(R101 if depth == "101" else {}),
        **TEST_DEV,
        "INPUT.MIN_SIZE_TRAIN": (shortest,),
        "INPUT.MAX_SIZE_TRAIN": longest,
        "INPUT.MIN_SIZE_TEST": shortest,
        "INPUT.MAX_SIZE_TEST": longest,
    }


def _longer_with_jitter(backbone: str) -> tuple[str, dict[str, object]]:
    resnext = {
        "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl",
        "MODEL.PIXEL_STD": [57.375, 57.120, 58.395],
        "MODEL.RESNETS.NUM_GROUPS": 32,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
    }
    return f"{backbone}_800", {
        **_size("101", "800")[1],
        **(resnext if backbone.startswith("X") else {}),
        "INPUT.MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800),
        "SOLVER.STEPS": (90000, 120000),
        "SOLVER.MAX_ITER": 135000,
    }


def _star(loss: str, gamma: str, beta: str) -> tuple[str, dict[str, object]]:
    if loss == "FL*":
        return f"focal_star_gamma_{gamma}_beta_{beta}", {
            LOSS: "FocalLossStar",
            GAMMA: float(gamma),
            BETA: float(beta),
        }
    return {"CE": ("cross_entropy", {LOSS: "CrossEntropy", ALPHA: 0.75}), "FL": ("focal_loss", {})}[
        loss
    ]


TABLES: dict[str, list[PaperRow]] = {
    # α
    "table1a_alpha": _rows(
        """
        0.1    0/0/0
        0.25   10.8/16.0/11.7
        0.5    30.2/46.7/32.8
        0.75   31.1/49.4/33.0
        0.9    30.8/49.7/32.3
        0.99   28.7/47.4/29.9
        0.999  25.1/41.7/26.1
        """,
        lambda alpha: (f"alpha_{alpha}", {LOSS: "CrossEntropy", ALPHA: float(alpha)}),
    ),
    # γ, α
    "table1b_gamma": _rows(
        """
        0    0.75  31.1/49.4/33.0
        0.1  0.75  31.4/49.9/33.1
        0.2  0.75  31.9/50.7/33.4
        0.5  0.50  32.9/51.7/35.2
        1    0.25  33.7/52.0/36.2
        2    0.25  34.0/52.5/36.5
        5    0.25  32.2/49.6/34.8
        """,
        lambda gamma, alpha: (f"gamma_{gamma}", {GAMMA: float(gamma), ALPHA: float(alpha)}),
    ),
    # scales, aspect ratios
    "table1c_anchors": _rows(
        """
        1 1  30.3/49.0/31.8
        2 1  31.9/50.0/34.0
        3 1  31.8/49.4/33.7
        1 3  32.4/52.3/33.9
        2 3  34.2/53.1/36.5
        3 3  34.0/52.5/36.5
        4 3  33.8/52.1/36.2
        """,
        _anchors,
    ),
    # variant, B, NMS
    "table1d_ohem": _rows(
        """
        OHEM 128 0.7  31.1/47.2/33.2
        OHEM 256 0.7  31.8/48.8/33.9
        OHEM 512 0.7  30.6/47.0/32.6
        OHEM 128 0.5  32.8/50.3/35.1
        OHEM 256 0.5  31.0/47.4/33.0
        OHEM 512 0.5  27.6/42.0/29.2
        1:3  128 0.5  31.1/47.2/33.2
        1:3  256 0.5  28.3/42.4/30.3
        1:3  512 0.5  24.0/35.5/25.8
        FL   -   -    36.0/54.9/38.7
        """,
        _ohem,
    ),
    # depth, pixels of the shortest side
    "table1e_speed": _rows(
        """
        50  400  30.5/47.8/32.7/11.2/33.8/46.1
        50  500  32.5/50.9/34.8/13.9/35.8/46.7
        50  600  34.3/53.2/36.9/16.2/37.4/47.4
        50  700  35.1/54.2/37.7/18.0/39.3/46.4
        50  800  35.7/55.0/38.5/18.9/38.9/46.3
        101 400  31.9/49.5/34.1/11.6/35.8/48.5
        101 500  34.4/53.1/36.8/14.7/38.5/49.1
        101 600  36.0/55.2/38.7/17.4/39.6/49.7
        101 700  37.1/56.6/39.8/19.1/40.6/49.4
        101 800  37.8/57.5/40.8/20.2/41.1/49.2
        """,
        _size,
    ),
    # backbone
    "table2_state_of_the_art": _rows(
        """
        R101        39.1/59.1/42.3/21.8/42.7/50.2
        X101_32x8d  40.8/61.1/44.1/24.1/44.2/51.2
        """,
        _longer_with_jitter,
    ),
    # loss, γ, β
    "table3_focal_star": _rows(
        """
        CE  -  -  31.1/49.4/33.0
        FL  2  -  34.0/52.5/36.5
        FL* 2  1  33.8/52.7/36.3
        FL* 4  0  33.9/51.8/36.4
        """,
        _star,
    ),
    # section 5.1, in its text
    "prior_init": [
        PaperRow("without_prior", {LOSS: "CrossEntropy", ALPHA: -1.0, PRIOR: False}, {}),
        PaperRow("with_prior", {LOSS: "CrossEntropy", ALPHA: -1.0}, {"AP": 30.2}),
    ],
}
