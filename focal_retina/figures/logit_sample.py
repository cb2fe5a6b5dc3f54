"""A random sample of a trained model's logits, with the labels that training would give them.

A logit of an anchor that is not ignored is a positive for the anchor's own class and a negative for
every other class. Images are resized as for a test, one image a batch, without augmentation.
Anchors over the padding count too. Shapes: R_l anchors of level l, K classes.
"""

import random
from collections.abc import Iterable

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from detectron2.data.detection_utils import build_augmentation
from torch import Tensor
from tqdm import tqdm

from ..data import CrowdKeepingMapper
from ..engine import UserError
from ..modeling import FocalRetinaNet

SIGNS = ("negatives", "positives")
_SEED = 0


class LogitSample:
    """At most ``size`` of the logits that were added, each with the same chance.

    Every logit draws a random key, and the sample is the logits of the lowest keys. So the memory
    does not grow with the number of images. ``seen`` is the number of added logits.
    """

    def __init__(self, size: int):
        self.size = size
        self.seen = 0
        self._generator = torch.Generator().manual_seed(_SEED)
        self._highest_key = 1.0  # a logit with a higher key is not in the sample
        self._chunks: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, x_t: Tensor, cells: Tensor) -> None:
        """Add logits: ``x_t`` (M,), and ``cells`` (M,), which is level · K + class."""
        keys = torch.rand(len(x_t), generator=self._generator)
        is_kept = keys < self._highest_key
        on_device = is_kept.to(x_t.device)
        self._chunks.append(
            (keys[is_kept], x_t[on_device].float().cpu(), cells[on_device].int().cpu())
        )
        self.seen += len(x_t)
        if sum(len(chunk[0]) for chunk in self._chunks) > 2 * self.size:
            self._thin_out()

    def draw(self) -> tuple[Tensor, Tensor]:
        """The sample: x_t, fp32 (M,), and cells, int32 (M,)."""
        if not self._chunks:
            return torch.empty(0), torch.empty(0, dtype=torch.int32)
        self._thin_out()
        return self._chunks[0][1:]

    def _thin_out(self) -> None:
        keys, x_t, cells = (torch.cat(parts) for parts in zip(*self._chunks, strict=True))
        if len(keys) > self.size:
            keys, lowest = keys.topk(self.size, largest=False, sorted=False)
            x_t, cells = x_t[lowest], cells[lowest]
            self._highest_key = float(keys.max())
        self._chunks = [(keys, x_t, cells)]


@torch.no_grad()
def sample_logits(
    model: FocalRetinaNet, loader: Iterable[list[dict]], size: int
) -> dict[str, LogitSample]:
    """Draw at most ``size`` negatives and ``size`` positives, with a progress bar on stderr.

    Args:
        model: is put into evaluation mode.
        loader: of :func:`build_labeled_loader`.
        size: of each sample.

    Raises:
        UserError: a logit is NaN or infinite; the message names the image.
        ValueError: an object's class or box is impossible; the message names the image.
    """
    model.eval()
    samples = {sign: LogitSample(size) for sign in SIGNS}
    for batch in tqdm(loader, unit="image", desc="loss distribution"):
        predictions = model.label_and_predict(model.preprocess_image(batch).tensor, batch)
        if not all(bool(x.isfinite().all()) for x in predictions.logits):
            raise UserError(
                f"{batch[0]['file_name']}: there are NaN or infinite logits: the model has diverged"
            )
        for level, its in enumerate(predictions.levels()):
            add_level(samples, level, its.logits[0], its.labels)
    return samples


def add_level(samples: dict[str, LogitSample], level: int, logits: Tensor, labels: Tensor) -> None:
    """Add ``logits`` (N, R_l, K) of one level, whose ``labels`` are int64 (N, R_l): -1 ignored,
    0 … K-1 a class, K background."""
    is_used = labels >= 0
    x, y = logits[is_used], labels[is_used]
    classes = torch.arange(logits.shape[-1], device=y.device)
    cells = (level * len(classes) + classes).expand_as(x)
    is_own_class = y[:, None] == classes
    samples["negatives"].add(-x[~is_own_class], cells[~is_own_class])
    samples["positives"].add(x[is_own_class], cells[is_own_class])


def build_labeled_loader(cfg: CfgNode, max_images: int) -> Iterable[list[dict]]:
    """Images of DATASETS.TEST, chosen at random but always the same, with their objects.

    Images without objects are among them.

    Raises:
        UserError: the data set has no annotations.
    """
    records = get_detection_dataset_dicts(cfg.DATASETS.TEST, filter_empty=False)
    bare = next((x["file_name"] for x in records if "annotations" not in x), None)
    if bare is not None:
        raise UserError(f"DATASETS.TEST {cfg.DATASETS.TEST}: {bare} has no annotations to label by")
    records = random.Random(_SEED).sample(records, min(max_images, len(records)))
    # The mapper treats crowd objects as it does in training.
    mapper = CrowdKeepingMapper(cfg, is_train=True, augmentations=build_augmentation(cfg, False))
    return build_detection_test_loader(
        records, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
    )
