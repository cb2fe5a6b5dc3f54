"""The mapper of training, with its augmentation: a dataset dict in, what the model sees out."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T


def build_train_mapper(cfg: CfgNode) -> DatasetMapper:
    """The mapper that ``INPUT.MAPPER`` names, with the augmentations of
    :func:`build_train_augmentation`; it keeps crowds where ``LABELING.CROWD_IOA_THRESH`` asks for
    them.

    Raises:
        ValueError: an unknown name, or a config that the mapper can't serve.
    """
    bases: list[type[DatasetMapper]] = []
    if cfg.MODEL.FOCAL_RETINA.LABELING.CROWD_IOA_THRESH is not None:
        bases.append(CrowdKeepingMapper)
    if cfg.INPUT.MAPPER == "opencv":
        from .opencv_mapper import OpenCVMapper  # the package is imported without OpenCV

        bases.append(OpenCVMapper)
    elif cfg.INPUT.MAPPER != "detectron2":
        raise ValueError(f"INPUT.MAPPER is {cfg.INPUT.MAPPER!r}; it can be detectron2, opencv")
    mapper = type("TrainMapper", tuple(bases), {}) if bases else DatasetMapper
    return mapper(cfg, is_train=True, augmentations=build_train_augmentation(cfg))


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


class CrowdKeepingMapper(DatasetMapper):
    """:class:`DatasetMapper` that keeps crowd annotations (COCO's ``iscrowd``), which Detectron2's
    drops.

    Its ``instances`` carry boxes and classes, and ``gt_is_crowd``, bool (M,), for the anchor
    labeling.
    """

    def _transform_annotations(
        self,
        dataset_dict: dict[str, Any],
        transforms: T.TransformList,
        image_shape: tuple[int, int],
    ) -> None:
        annotations = [
            # A crowd's segmentation is run-length encoded; boxes are all that is needed.
            {
                key: value
                for key, value in annotation.items()
                if key not in ("segmentation", "keypoints")
            }
            for annotation in dataset_dict.pop("annotations")
        ]
        annotations = [
            utils.transform_instance_annotations(x, transforms, image_shape) for x in annotations
        ]
        instances = utils.annotations_to_instances(annotations, image_shape)
        instances.gt_is_crowd = torch.tensor(
            [bool(x.get("iscrowd", 0)) for x in annotations], dtype=torch.bool
        )
        dataset_dict["instances"] = utils.filter_empty_instances(instances)
