"""The loss of positives and of negatives, cumulated from easy to hard: the paper's figure 4; and
which levels and classes hold it.

A logit of an anchor that is not ignored is a positive for the anchor's own class and a negative for
every other class. As in the paper (section 5.1), a trained model predicts many images, a fixed
number of logits is drawn at random, sorted by loss and cumulated.

Shapes: M drawn logits, G gammas, C parts of a whole. Of the dimension 2 negatives come first.
"""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.data.build import get_detection_dataset_dicts
from detectron2.data.detection_utils import build_augmentation
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data import DetectionMapper
from ..data.classes import index_in_dataset
from ..engine import UserError, load_detector
from ..files import write_json
from ..losses import focal_loss
from ..modeling import FocalRetinaNet
from . import SERIES_COLORS, new_figure, style_axes

SIGNS = ("negatives", "positives")
_NUMBERS_FILE = "loss_distribution.json"
_SEED = 0
_SAMPLE_SIZE = 10_000_000  # logits of each sign that are drawn, as many of each image
_CURVE_POINTS = 300  # evenly spaced, and as many more towards the hardest logits
_HARDEST = (("positives", 0.2), ("negatives", 0.01))
_MAX_NAMES = 12  # of more classes the picture shows those that hold most


class LogitSample(NamedTuple):
    """Logits of one sign, drawn at random."""

    x_t: Tensor  # fp32 (M,)
    cells: Tensor  # int32 (M,): level · K + class
    seen: int  # how many there were to draw from


# "samples": shares of the logits, from 0 to 1; "loss": the share of the loss that these hold, which
# are those of the lowest loss.
Cdf = dict[str, list[float]]


def read_loss_cdf(folder: Path) -> dict[str, Any] | None:
    """What :func:`measure_loss_cdf` left in ``folder``; None where it did not, or is damaged."""
    try:
        content = json.loads((folder / _NUMBERS_FILE).read_text())
        hardest_shares(content)
        return content
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def measure_loss_cdf(
    cfg: CfgNode, output: Path, *, gammas: Sequence[float], alpha: float, max_images: int
) -> dict[str, Any]:
    """Write fig4.png, loss_shares.png and loss_distribution.json, whose content is returned: the
    number of "images" and of "samples" in them by sign; "cdf", by sign and γ; "shares".

    At most ``max_images`` of DATASETS.TEST are looked at, at random. ``alpha`` is that of
    :func:`loss_shares`. A UserError or ValueError says what is wrong with the model, the data or
    the gammas.
    """
    if min(gammas) < 0 or len({f"{gamma:g}" for gamma in gammas}) < len(gammas):
        raise ValueError(f"gammas are {list(gammas)}: give different numbers >= 0")
    model = load_detector(cfg)
    names: Any = model.class_names
    if names and index_in_dataset(names, cfg.DATASETS.TEST[0]):
        classes = ", ".join(names[:10])
        raise ValueError(f"{cfg.DATASETS.TEST[0]} needs the model's classes in order: {classes}")
    loader = labeled_loader(cfg, max_images)
    samples = draw_logits(model, loader, max(1, _SAMPLE_SIZE // len(loader)))
    class_names = MetadataCatalog.get(cfg.DATASETS.TEST[0]).thing_classes
    shares = loss_shares(samples, gammas, alpha, model.head_in_features, class_names)
    content = {
        "weights": cfg.MODEL.WEIGHTS,
        "datasets": list(cfg.DATASETS.TEST),
        "images": len(loader),
        "alpha": alpha,
        "gammas": list(gammas),
        "samples": {sign: sample.seen for sign, sample in samples.items()},
        "drawn": {sign: len(sample.x_t) for sign, sample in samples.items()},
        "cdf": {sign: cumulate(sample.x_t, gammas) for sign, sample in samples.items()},
        "shares": shares,
    }
    write_json(output / _NUMBERS_FILE, content, indent=None)
    draw_loss_cdfs(content, output / "fig4.png")
    draw_loss_shares(shares, gammas, alpha, output / "loss_shares.png")
    return content


def labeled_loader(cfg: CfgNode, max_images: int) -> DataLoader:
    """The same random images of DATASETS.TEST each time, one a batch, resized as for a test, with
    their objects and crowds as in training."""
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
    """Draw at most ``per_image`` negatives and positives of each image, labeled as for training."""
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
    joined = {sign: map(torch.cat, zip(*parts, strict=True)) for sign, parts in drawn.items()}
    return {sign: LogitSample(x_t, cells, seen[sign]) for sign, (x_t, cells) in joined.items()}


def cumulate(x_t: Tensor, gammas: Sequence[float]) -> dict[str, Cdf | None]:
    """γ -> curve of the logits ``x_t`` (M,), None where they have no loss."""
    # FL falls with x_t, whatever γ: one order serves all.
    x_t = x_t.sort(descending=True).values
    even = np.linspace(0, len(x_t), _CURVE_POINTS + 1)
    near_the_hardest = len(x_t) - np.geomspace(1, max(1, len(x_t)), _CURVE_POINTS)
    ranks = torch.as_tensor(np.unique(np.rint([*even, *near_the_hardest])).astype(np.int64))
    samples = (ranks.double() / max(1, len(x_t))).tolist()
    cdfs: dict[str, Cdf | None] = {}
    for gamma in gammas:
        cumulated = torch.zeros(len(x_t) + 1, dtype=torch.float64)
        torch.cumsum(focal_loss(x_t, gamma), 0, dtype=torch.float64, out=cumulated[1:])
        loss = (cumulated[ranks] / cumulated[-1]).tolist()
        cdfs[f"{gamma:g}"] = {"samples": samples, "loss": loss} if cumulated[-1] > 0 else None
    return cdfs


def loss_shares(
    samples: Mapping[str, LogitSample],
    gammas: Sequence[float],
    alpha: float,
    level_names: Sequence[str],
    class_names: Sequence[str],
) -> dict[str, dict[str, list]]:
    """What each "level" and each "class" holds of the focal loss and its gradient.

    ``samples`` holds the logits of each sign, which stand for as many as there were to draw from.
    ``alpha`` weighs positives, and 1 - alpha negatives; < 0: no weights.

    Returns:
        "level" and "class" -> "names" (C); "loss" (G, 2, C), shares of α_t·FL, of which those of
        one γ sum to 1, or 0 without a loss; and "gradient" (G, 2, C), the same of |d α_t·FL / dx|.
    """
    shape = len(level_names), len(class_names)
    sums = torch.zeros(2, len(gammas), 2, *shape, dtype=torch.float64)
    weights = (1 - alpha, alpha) if alpha >= 0 else (1, 1)
    for s, (sign, weight) in enumerate(zip(SIGNS, weights, strict=True)):
        x_t, cells, seen = samples[sign]
        x_t = x_t.detach().requires_grad_()
        for g, gamma in enumerate(gammas):
            loss = focal_loss(x_t, gamma)
            (slope,) = torch.autograd.grad(loss.sum(), x_t)
            for q, values in enumerate((loss.detach(), slope.abs())):
                total = torch.bincount(cells, values.double(), minlength=sums[0, 0, 0].numel())
                sums[q, g, s] = weight * seen / max(1, len(x_t)) * total.view(shape)
    wholes = sums.sum(dim=(2, 3, 4), keepdim=True)
    shares = sums / wholes.where(wholes > 0, 1)
    by_kind = {"level": (level_names, shares.sum(4)), "class": (class_names, shares.sum(3))}
    return {
        kind: {"names": list(names), "loss": x[0].tolist(), "gradient": x[1].tolist()}
        for kind, (names, x) in by_kind.items()
    }


def hardest_shares(measured: Mapping[str, Any]) -> dict[str, str]:
    """What the logits of the highest loss hold of the loss of their sign, by heading."""
    shares = {}
    for sign, share in _HARDEST:
        for gamma, cdf in measured["cdf"][sign].items():
            held = cdf and f"{1 - np.interp(1 - share, cdf['samples'], cdf['loss']):.0%}"
            shares[f"hardest {share:.0%} of {sign}, γ {gamma}"] = held or "–"
    return shares


def draw_loss_cdfs(measured: Mapping[str, Any], out_png: Path) -> None:
    """Draw figure 4, positives on the left."""
    figure = new_figure(11, 4.5)
    panels = figure.subplots(1, 2, subplot_kw={"xlim": (0, 1), "ylim": (0, 1.02)})
    for sign, axes in zip(("positives", "negatives"), panels, strict=True):
        style_axes(axes, f"{measured['samples'][sign]:,} {sign}")
        axes.set(xlabel=f"fraction of {sign}, from low to high loss", ylabel="cumulative loss")
        for (gamma, cdf), color in zip(measured["cdf"][sign].items(), cycle(SERIES_COLORS)):
            curve = (cdf["samples"], cdf["loss"]) if cdf else ([], [])
            label = f"γ = {gamma}" if cdf else f"γ = {gamma}: no loss"
            axes.plot(*curve, color=color, label=label)
        axes.legend(frameon=False, loc="upper left")
    figure.savefig(out_png)


def draw_loss_shares(
    shares: Mapping[str, Mapping[str, list]], gammas: Sequence[float], alpha: float, out_png: Path
) -> None:
    """Draw a column for levels and one for classes: shares of the loss above, of the gradient
    below. A bar is a γ, its lower segment negatives, its upper, hatched one positives."""
    figure = new_figure(12, 8)
    panels = figure.subplots(2, len(shares), sharex="col", width_ratios=(1, 2))
    width = 0.84 / len(gammas)
    for (kind, its), column in zip(shares.items(), panels.T, strict=True):
        largest = np.argsort(-np.sum(its["loss"], axis=(0, 1)), kind="stable")
        kept = np.sort(largest[:_MAX_NAMES])
        selection = f": the largest of {len(largest)}" if len(kept) < len(largest) else ""
        for axes, quantity in zip(column, ("loss", "gradient"), strict=True):
            style_axes(axes, f"share of the {quantity} by {kind}, %{selection}")
            values = 100 * np.array(its[quantity])[..., kept]
            for g, (gamma, color) in enumerate(zip(gammas, cycle(SERIES_COLORS))):
                x = np.arange(len(kept)) + (g - (len(gammas) - 1) / 2) * width
                style: dict[str, Any] = {"width": 0.9 * width, "edgecolor": color}
                negatives, positives = (f"γ = {gamma:g}, {sign}" for sign in SIGNS)
                axes.bar(x, values[g, 0], facecolor=color, label=negatives, **style)
                style |= {"bottom": values[g, 0], "facecolor": "w", "hatch": "//////"}
                axes.bar(x, values[g, 1], label=positives, **style)
            axes.grid(axis="x", visible=False)
            names = [its["names"][k] for k in kept]
            axes.set_xticks(range(len(kept)), names, rotation=0 if kind == "level" else 40)
    weights = f"α = {alpha:g}" if alpha >= 0 else "not weighted by α"
    title = f"shares of the whole focal loss, {weights}"
    handles = panels[0, 0].get_legend_handles_labels()
    figure.legend(*handles, title=title, loc="outside upper center", ncols=len(gammas))
    figure.savefig(out_png)
