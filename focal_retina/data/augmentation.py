"""What happens to a training image before the model sees it."""

from detectron2.config import CfgNode
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T


def build_train_augmentation(cfg: CfgNode) -> list[T.Augmentation]:
    """Detectron2's augmentations of training, or large-scale jitter in the place of its resizing.

    Without ``INPUT.LARGE_SCALE_JITTER`` it is the list that Detectron2's mapper makes from ``cfg``:
    crop if ``INPUT.CROP.ENABLED``, resize the shortest edge, flip. With it, the resizing is that of
    Detectron2's LSJ baselines (``new_baselines`` in its zoo), whose images are all of one size:
    what is smaller is padded with gray.

    Returns:
        For ``DatasetMapper(cfg, augmentations=…)``.

    Raises:
        ValueError: a size or a range of scales that makes no sense.
    """
    augmentations = utils.build_augmentation(cfg, is_train=True)
    if cfg.INPUT.LARGE_SCALE_JITTER.ENABLED:
        augmentations[:1] = _large_scale_jitter(cfg.INPUT.LARGE_SCALE_JITTER)
    if cfg.INPUT.CROP.ENABLED:
        augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
    return augmentations


def _large_scale_jitter(node: CfgNode) -> list[T.Augmentation]:
    if node.SIZE <= 0:
        raise ValueError(f"INPUT.LARGE_SCALE_JITTER.SIZE is {node.SIZE}: it is a number of pixels")
    if not 0 < node.MIN_SCALE <= node.MAX_SCALE:
        raise ValueError(
            "INPUT.LARGE_SCALE_JITTER draws scales from MIN_SCALE to MAX_SCALE, which are "
            f"{node.MIN_SCALE} and {node.MAX_SCALE}: they must be positive, the smaller one first"
        )
    return [
        T.ResizeScale(node.MIN_SCALE, node.MAX_SCALE, node.SIZE, node.SIZE),
        T.FixedSizeCrop((node.SIZE, node.SIZE)),
    ]
