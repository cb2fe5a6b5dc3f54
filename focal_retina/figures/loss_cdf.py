"""The loss of positives and of negatives, cumulated from easy to hard: the paper's figure 4.

A logit of an anchor that is not ignored is a positive for the anchor's own class and a negative for
every other class. As in the paper (section 5.1), a trained model predicts many images, a fixed
number of logits is drawn at random, sorted by loss and cumulated.
"""

import json
import random
from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.data.build import get_detection_dataset_dicts
from detectron2.data.detection_utils import build_augmentation
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data import DetectionMapper
from ..data.classes import index_in_dataset
from ..engine import UserError
from ..engine.checkpoint import load_trained_model
from ..files import atomic_write
from ..losses import focal_loss
from ..modeling import FocalRetinaNet
from .loss_shares import SIGNS, LogitSample, draw_loss_shares, loss_shares
from .style import DPI, SERIES_COLORS, style_axes

_NUMBERS_FILE = "loss_distribution.json"
_SEED = 0
_CURVE_POINTS = 300  # evenly spaced, and as many more towards the hardest logits
_HARDEST = (("positives", 0.2), ("negatives", 0.2), ("negatives", 0.01))  # in the summary


class LossCdf(NamedTuple):
    """Loss of one sign, cumulated from its lowest to its highest and normalised to 1."""

    samples: list[float]  # share of the logits, from 0 to 1
    loss: list[float]  # share of the loss that these logits of the lowest loss hold, from 0 to 1

    def hardest(self, share: float) -> float:
        """Share of the loss in the ``share`` of logits with the highest loss."""
        return float(1 - np.interp(1 - share, self.samples, self.loss))


class MeasuredCdfs(NamedTuple):
    """Figure 4 of one model."""

    images: int  # how many it was measured on
    samples: dict[str, int]  # sign -> how many logits there are in these images
    cdfs: dict[str, dict[float, LossCdf | None]]  # sign -> γ -> curve, None where there is no loss


def read_loss_cdf(folder: Path) -> MeasuredCdfs:
    """Read what :func:`measure_loss_cdf` left in ``folder``.

    Raises:
        OSError: the folder has no loss_distribution.json.
        ValueError: that file is of another kind, or cut off.
    """
    path = folder / _NUMBERS_FILE
    try:
        content = json.loads(path.read_text())
        cdfs = {
            sign: {float(g): cdf and LossCdf(cdf["samples"], cdf["loss"]) for g, cdf in its.items()}
            for sign, its in content["cdf"].items()
        }
        return MeasuredCdfs(content["images"], content["samples"], cdfs)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no loss distribution ({error}): remove it") from error


def measure_loss_cdf(
    cfg: CfgNode,
    output: Path,
    *,
    gammas: Sequence[float] = (0, 0.5, 1, 2),
    alpha: float = 0.25,
    max_images: int = 500,
    sample_size: int = 10_000_000,
) -> MeasuredCdfs:
    """Write fig4.png, loss_shares.png and loss_distribution.json.

    At most ``max_images`` of DATASETS.TEST are looked at, at random, and ``sample_size`` logits of
    each sign are drawn, as many of each image. ``alpha`` is that of
    :func:`~focal_retina.figures.loss_shares.loss_shares`.

    Raises:
        UserError: another kind of model, a data set without annotations, or logits that are not
            finite.
        ValueError: bad gammas, or bad ground truth.
    """
    if min(gammas) < 0 or len(set(gammas)) < len(gammas):
        raise ValueError(f"gammas are {list(gammas)}: give different numbers >= 0")
    model = load_trained_model(cfg)
    names: Any = model.class_names
    if names and index_in_dataset(names, cfg.DATASETS.TEST[0]):
        raise ValueError(
            f"{cfg.DATASETS.TEST[0]} must have the model's classes in their order: "
            f"{', '.join(names[:10])}"
        )
    if not isinstance(model, FocalRetinaNet):
        raise UserError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} has no anchor labeler: set it "
            "to FocalRetinaNet, which loads the checkpoints of RetinaNet too"
        )
    loader = labeled_loader(cfg, max_images)
    samples = draw_logits(model, loader, max(1, sample_size // len(loader)))
    class_names = MetadataCatalog.get(cfg.DATASETS.TEST[0]).thing_classes
    shares = loss_shares(samples, gammas, alpha, model.head_in_features, class_names)
    seen = {sign: sample.seen for sign, sample in samples.items()}
    cdfs = {sign: cumulate(sample.x_t, gammas) for sign, sample in samples.items()}
    measured = MeasuredCdfs(len(loader), seen, cdfs)
    contents = {
        "weights": cfg.MODEL.WEIGHTS,
        "datasets": list(cfg.DATASETS.TEST),
        "images": len(loader),
        "alpha": alpha,
        "gammas": list(gammas),
        "samples": seen,
        "drawn": {sign: len(sample.x_t) for sign, sample in samples.items()},
        "cdf": {
            sign: {f"{g:g}": cdf and cdf._asdict() for g, cdf in its.items()}
            for sign, its in cdfs.items()
        },
        "shares": {kind: its._asdict() for kind, its in shares.items()},
    }
    with atomic_write(output / _NUMBERS_FILE, "w") as file:
        file.write(json.dumps(contents) + "\n")
    draw_loss_cdfs(measured, output / "fig4.png")
    draw_loss_shares(shares, gammas, alpha, output / "loss_shares.png")
    return measured


def labeled_loader(cfg: CfgNode, max_images: int) -> DataLoader:
    """Images of DATASETS.TEST, chosen at random but always the same, one a batch. They are resized
    as for a test and have their objects, crowds treated as in training."""
    records = get_detection_dataset_dicts(cfg.DATASETS.TEST, filter_empty=False)
    bare = next((x["file_name"] for x in records if "annotations" not in x), None)
    if bare is not None:
        raise UserError(f"DATASETS.TEST {cfg.DATASETS.TEST}: {bare} has no annotations to label by")
    records = random.Random(_SEED).sample(records, min(max_images, len(records)))
    resize = build_augmentation(cfg, False)
    mapper = DetectionMapper(cfg, is_train=True, augmentations=resize, keep_crowds=True)
    workers = cfg.DATALOADER.NUM_WORKERS
    return build_detection_test_loader(records, mapper=mapper, num_workers=workers)


@torch.no_grad()
def draw_logits(
    model: FocalRetinaNet, loader: Iterable[list[dict]], per_image: int
) -> dict[str, LogitSample]:
    """Draw at most ``per_image`` negatives and positives of each image, labeled as for training.

    The model is put into evaluation mode. A progress bar goes to stderr.
    """
    model.eval()
    generator = torch.Generator().manual_seed(_SEED)
    drawn: dict[str, list[tuple[Tensor, Tensor]]] = {sign: [] for sign in SIGNS}
    seen = dict.fromkeys(SIGNS, 0)
    for batch in tqdm(loader, unit="image", desc="loss distribution"):
        predictions = model.label_and_predict(model.preprocess_image(batch).tensor, batch)
        logits = torch.cat(predictions.logits, dim=1)[0].float().cpu()  # (R, K)
        labels = predictions.labels[0].cpu()
        if not logits.isfinite().all():
            raise UserError(f"{batch[0]['file_name']}: NaN or infinite logits: the model diverged")
        lengths = torch.tensor([len(x) for x in predictions.anchors])
        levels = torch.arange(len(lengths)).repeat_interleave(lengths)
        classes = torch.arange(model.num_classes)
        cells = levels[:, None] * model.num_classes + classes
        is_own = labels[:, None] == classes
        is_negative = ~is_own & (labels >= 0)[:, None]
        for sign, which, x_t in zip(SIGNS, (is_negative, is_own), (-logits, logits), strict=True):
            index = which.flatten().nonzero()[:, 0]
            seen[sign] += len(index)
            if len(index) > per_image:
                index = index[torch.randint(len(index), (per_image,), generator=generator)]
            drawn[sign].append((x_t.flatten()[index], cells.flatten()[index].int()))
    samples = {}
    for sign, parts in drawn.items():
        x_t, cells = map(torch.cat, zip(*parts, strict=True))
        samples[sign] = LogitSample(x_t, cells, seen[sign])
    return samples


def cumulate(x_t: Tensor, gammas: Sequence[float]) -> dict[float, LossCdf | None]:
    """γ -> curve of the logits ``x_t`` (M,), None where they have no loss."""
    # FL falls with x_t, whatever γ: one order serves all.
    x_t = x_t.sort(descending=True).values
    even = np.linspace(0, len(x_t), _CURVE_POINTS + 1)
    near_the_hardest = len(x_t) - np.geomspace(1, max(1, len(x_t)), _CURVE_POINTS)
    ranks = torch.as_tensor(np.unique(np.rint([*even, *near_the_hardest])).astype(np.int64))
    cdfs: dict[float, LossCdf | None] = {}
    for gamma in gammas:
        cumulated = torch.zeros(len(x_t) + 1, dtype=torch.float64)
        torch.cumsum(focal_loss(x_t, gamma), 0, dtype=torch.float64, out=cumulated[1:])
        cdfs[gamma] = None
        if cumulated[-1] > 0:
            loss = (cumulated[ranks] / cumulated[-1]).tolist()
            cdfs[gamma] = LossCdf((ranks.double() / len(x_t)).tolist(), loss)
    return cdfs


def summary(measured: MeasuredCdfs) -> str:
    """A few lines on what was found."""
    counts = ", ".join(f"{measured.samples[sign]:,} {sign}" for sign in SIGNS)
    lines = [f"{measured.images} images, {counts}"]
    for sign, share in _HARDEST:
        held = ", ".join(
            f"{'no loss' if cdf is None else format(cdf.hardest(share), '.1%')} (γ = {gamma:g})"
            for gamma, cdf in measured.cdfs[sign].items()
        )
        lines.append(f"hardest {share:.0%} of {sign} hold, of the {sign}' loss: {held}")
    return "\n".join(lines)


def draw_loss_cdfs(measured: MeasuredCdfs, out_png: Path) -> None:
    """Draw figure 4, positives on the left; below, the same from the side of the hardest logits."""
    figure = Figure(figsize=(11, 8), dpi=DPI, layout="constrained")
    panels = figure.subplots(2, 2)
    for sign, (above, below) in zip(("positives", "negatives"), panels.T, strict=True):
        count = measured.samples[sign]
        style_axes(above, f"{count:,} {sign}")
        style_axes(below, f"the hardest {sign}")
        for (gamma, cdf), color in zip(measured.cdfs[sign].items(), cycle(SERIES_COLORS)):
            if cdf is not None:
                samples, loss = np.array(cdf.samples), np.array(cdf.loss)
                above.plot(samples, loss, color=color, label=f"γ = {gamma:g}")
                below.plot(1 - samples, 1 - loss, color=color, label=f"γ = {gamma:g}")
        above.set(xlim=(0, 1), xlabel=f"fraction of {sign}, from low to high loss")
        above.set(ylim=(0, 1.02), ylabel="cumulative loss")
        below.set(xscale="log", xlim=(min(0.1, 1 / max(1, count)), 1))
        below.set(xlabel=f"fraction of {sign}, hardest first")
        below.set(ylim=(0, 1.02), ylabel="their share of the loss")
        for panel in (above, below):
            if panel.lines:
                panel.legend(frameon=False, loc="upper left")
            else:
                panel.text(0.5, 0.5, f"no loss of {sign}", transform=panel.transAxes, ha="center")
    figure.savefig(out_png)
