"""From a model and labeled images to figure 4, as pictures, numbers and sentences."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from tqdm import tqdm

from ..engine import UserError
from ..modeling import FocalRetinaNet
from .labeled_predictions import labeled_predictions
from .loss_distribution import SATURATION, SCORE_BORDERS, SIGNS, LossCdf, LossDistribution
from .plots import draw_loss_cdfs, draw_loss_shares

NUMBERS_FILE = "loss_distribution.json"

# What the summary tells of.
_HARDEST = (("positives", 0.2), ("negatives", 0.2), ("negatives", 0.01))

_DEFINITIONS = {
    "sample": "a logit of an anchor that is not ignored: positive for the anchor's own class, "
    "negative for every other class",
    "labels": "the training's, for images resized as for a test, without augmentation",
    "cdf": "samples of one sign sorted from low to high loss, cumulated, normalised to 1; each "
    "point as if the samples had been sorted, between two points too high by at most error",
    "shares": "parts of the sum over all samples of the loss, weighted by alpha, and of the "
    "absolute value of its derivative by the logit; [gamma][negatives, positives][name]",
    "score": f"the sigmoid of the logit; buckets between {', '.join(map(str, SCORE_BORDERS))}",
    "saturated": f"share of samples with |logit| above {SATURATION:.2f} = 25 log 2, where the "
    "sigmoid in fp32 is 1",
}


def measure_loss_distribution(
    model: FocalRetinaNet,
    loader: Sequence[list[dict]],
    gammas: Sequence[float],
    max_negatives: float = float("inf"),
) -> tuple[LossDistribution, int]:
    """Run the model over images, with a progress bar on stderr.

    Args:
        model: the trained model.
        loader: of :func:`~focal_retina.analysis.labeled_predictions.build_labeled_loader`.
        gammas: of the losses to look at.
        max_negatives: the image that reaches so many negatives is the last.

    Returns:
        The distribution, and how many images are in it.

    Raises:
        UserError: logits that are not finite; the message names the image.
        ValueError: bad gammas; or bad ground truth, the message naming the image, too.
    """
    distribution = LossDistribution(
        num_levels=len(model.head_in_features),
        num_classes=model.num_classes,
        gammas=gammas,
        device=model.device,
    )
    num_images = 0
    with tqdm(total=len(loader), unit="image", desc="loss distribution") as bar:
        for name, logits, labels in labeled_predictions(model, loader):
            try:
                distribution.update(logits, labels)
            except ValueError as error:
                raise UserError(f"{name}: {error}") from error
            num_images += 1
            bar.update()
            if distribution.num_negatives >= max_negatives:
                break
    return distribution, num_images


def write_loss_distribution(
    distribution: LossDistribution, num_images: int, output: Path, *, cfg: CfgNode, alpha: float
) -> None:
    """Write fig4.png, loss_shares.png and loss_distribution.json.

    Args:
        distribution, num_images: what was measured.
        output: an existing folder.
        cfg: the model's config, for the names of weights, data sets, levels and classes.
        alpha: see :meth:`LossDistribution.shares`.
    """
    class_names = MetadataCatalog.get(cfg.DATASETS.TEST[0]).thing_classes
    shares = distribution.shares(alpha, cfg.MODEL.RETINANET.IN_FEATURES, class_names)
    cdfs = {sign: {g: distribution.cdf(sign, g) for g in distribution.gammas} for sign in SIGNS}
    contents = {
        "weights": cfg.MODEL.WEIGHTS or "none: a new model",
        "datasets": list(cfg.DATASETS.TEST),
        "images": num_images,
        "definitions": _DEFINITIONS,
        "alpha": alpha,
        "gammas": distribution.gammas,
        "samples": _sample_counts(distribution),
        "saturated": distribution.saturated(),
        "cdf": {
            sign: {f"{gamma:g}": cdf and asdict(cdf) for gamma, cdf in by_gamma.items()}
            for sign, by_gamma in cdfs.items()
        },
        "shares": {part: asdict(share) for part, share in shares.items()},
    }
    (output / NUMBERS_FILE).write_text(json.dumps(contents) + "\n")
    draw_loss_cdfs(cdfs, _sample_counts(distribution), output / "fig4.png")
    draw_loss_shares(shares, distribution.gammas, alpha, output / "loss_shares.png")


class MeasuredCdfs(NamedTuple):
    """Figure 4 of one model.

    Attributes:
        images: how many it was measured on.
        samples: sign -> how many there are.
        cdfs: sign -> γ -> curve, None where there is no loss.
    """

    images: int
    samples: dict[str, int]
    cdfs: dict[str, dict[float, LossCdf | None]]


def read_loss_cdfs(path: Path) -> MeasuredCdfs:
    """Read the curves out of the json that :func:`write_loss_distribution` wrote.

    Raises:
        OSError: there is no such file.
        ValueError: it is another kind of file, or cut off.
    """
    try:
        content = json.loads(path.read_text())
        cdfs = {
            sign: {float(gamma): cdf and LossCdf(**cdf) for gamma, cdf in by_gamma.items()}
            for sign, by_gamma in content["cdf"].items()
        }
        return MeasuredCdfs(content["images"], content["samples"], cdfs)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no loss distribution ({error}): remove it") from error


def summary(distribution: LossDistribution, num_images: int) -> str:
    """A few lines on what was found."""
    counts = _sample_counts(distribution)
    lines = [
        f"{num_images} images, {counts['negatives']:,} negatives, {counts['positives']:,} positives"
    ]
    for sign, share in _HARDEST:
        held = [_held(distribution.cdf(sign, g), g, share) for g in distribution.gammas]
        lines.append(f"hardest {share:.0%} of {sign} hold, of the {sign}' loss: {', '.join(held)}")
    for sign, sides in distribution.saturated().items():
        shares = ", ".join(f"{share:.3%} on the {side} side" for side, share in sides.items())
        lines.append(f"saturated {sign}: {shares}")
    return "\n".join(lines)


def _held(cdf: LossCdf | None, gamma: float, share: float) -> str:
    held = "nothing, there is none" if cdf is None else f"{cdf.hardest(share):.1%}"
    return f"{held} (γ = {gamma:g})"


def _sample_counts(distribution: LossDistribution) -> dict[str, int]:
    return dict(zip(SIGNS, (distribution.num_negatives, distribution.num_positives), strict=True))
