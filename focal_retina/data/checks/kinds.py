"""What a data check can find, how grave it is, and what becomes of it: one table.

Three degrees:

- ``error``: the training would stop in its middle, or learn from nonsense. It stops before step 0.
- ``warning``: the model copes, but the user should know. Said, counted, never a reason to stop.
- ``note``: a fact of the data set, in the report only.

The line between the first two is drawn such that COCO 2017, with its boxes of no height, its boxes
that reach a fraction of a pixel over the border and its crowds, passes with warnings.
"""

from typing import NamedTuple

# A few faulty objects are an annotator's slip, of which the log tells; more are a fault of the
# program that wrote the file, such as rounding to zero. As a share of all objects.
TOLERATED_SHARE = 0.01
# Pixels by which a box may reach over the border, which rounding explains.
OVERHANG = 1.0
# Share of boxes over the border from which on they look like [x1, y1, x2, y2].
MOSTLY_OUTSIDE = 0.1


class Kind(NamedTuple):
    """A line of the table."""

    title: str
    degree: str
    """``error``, ``warning`` or ``note``; ``tolerated`` is a warning up to TOLERATED_SHARE of the
    objects and an error beyond."""
    leaves_out: str
    """What ``skip`` leaves out: ``object``, ``image``, or nothing (it then stays an error)."""
    meaning: str
    only_training: bool = False
    """Where the set is only evaluated, an error of this kind is a warning."""


KINDS = {
    # images
    "duplicate_image_id": Kind(
        "images with the same id", "error", "", "only the last of them would be loaded"
    ),
    "conflicting_image": Kind(
        "one file listed several times, with different objects",
        "error",
        "",
        "what is an object in one entry is background in another",
    ),
    "repeated_image": Kind(
        "one file listed several times, with the same objects",
        "warning",
        "",
        "the image counts several times, in the evaluation too",
    ),
    "image_size": Kind(
        "image sizes that are not positive", "error", "image", "boxes can't be placed in them"
    ),
    "missing_image": Kind(
        "images without a file", "error", "image", "reading one would stop the training"
    ),
    "unreadable_image": Kind(
        "images that can't be decoded", "error", "image", "reading one would stop the training"
    ),
    "wrong_size": Kind(
        "images whose size is not the annotated one",
        "error",
        "image",
        "their boxes belong to another scale or orientation; Detectron2 stops at them",
    ),
    # annotations
    "duplicate_annotation_id": Kind(
        "annotations with the same id", "error", "", "Detectron2 refuses the file"
    ),
    "annotation_id_zero": Kind(
        "annotation id 0",
        "warning",
        "",
        "pycocotools takes a match with id 0 for no match, so the object counts as missed",
    ),
    "unknown_image": Kind(
        "annotations of images that are not listed",
        "error",
        "object",
        "Detectron2 drops these objects",
    ),
    "unknown_category": Kind(
        "annotations of categories that are not listed", "error", "", "Detectron2 stops at them"
    ),
    "box_not_finite": Kind(
        "boxes with NaN or infinite numbers", "error", "object", "they make the loss NaN"
    ),
    "negative_size": Kind(
        "boxes of negative width or height",
        "error",
        "object",
        "they match no anchor: the object would be trained as background",
    ),
    "box_outside": Kind(
        "boxes wholly outside their image",
        "error",
        "object",
        "nothing of the object is in the image",
    ),
    "box_format": Kind(
        "boxes of another format",
        "error",
        "",
        "COCO's are [x, y, width, height] in pixels of the image",
    ),
    "zero_area": Kind(
        "boxes without area",
        "tolerated",
        "object",
        "they match no anchor: the object is trained as background",
    ),
    "no_polygon": Kind(
        "objects whose polygons have fewer than three points",
        "tolerated",
        "object",
        "Detectron2 drops the object, box and all; remove the segmentation to keep it",
    ),
    "box_over_border": Kind(
        "boxes that reach over their image's border by more than a pixel",
        "warning",
        "",
        "they are cut at the border",
    ),
    # the whole set
    "no_objects": Kind(
        "no object to learn from", "error", "", "crowds do not count", only_training=True
    ),
    "class_without_objects": Kind(
        "classes without objects", "warning", "", "they can't be learned, nor evaluated"
    ),
    "same_name": Kind(
        "categories of the same name", "warning", "", "they are learned as different classes"
    ),
    "empty_images": Kind(
        "images without objects",
        "note",
        "",
        "left out of the training where DATALOADER.FILTER_EMPTY_ANNOTATIONS",
    ),
    "category_gaps": Kind(
        "gaps in the category ids", "note", "", "classes are numbered in the order of their ids"
    ),
}
