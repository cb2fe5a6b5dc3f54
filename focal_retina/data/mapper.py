"""Detectron2's mapper, for models that look at crowd annotations."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data.transforms import TransformList

__all__ = ["CrowdKeepingMapper"]


class CrowdKeepingMapper(DatasetMapper):
    """:class:`DatasetMapper` that keeps crowd annotations (COCO's ``iscrowd``), which Detectron2's
    drops.

    Its ``instances`` carry boxes and classes, and ``gt_is_crowd``, bool (M,), for the anchor
    labeling.
    """

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: TransformList, image_shape: tuple[int, int]
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
