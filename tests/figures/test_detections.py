"""The sheet of detections: which boxes are drawn on which images."""

import json

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from focal_retina.drawing import Outline, draw_outlines
from focal_retina.figures import detections
from focal_retina.figures.detections import break_even_threshold, draw_detections


def record(image_id, *objects):
    keys = ("category_id", "bbox", "bbox_mode", "iscrowd")
    annotations = [dict(zip(keys, x, strict=False)) for x in objects]
    return {"file_name": f"{image_id}.png", "image_id": image_id, "annotations": annotations}


def prediction(image_id, category_id, score, box=(0, 0, 2, 3)):
    return {"image_id": image_id, "category_id": category_id, "bbox": list(box), "score": score}


def test_boxes_labels_and_order(tmp_path, monkeypatch):
    """Boxes of both formats; ids of the json mapped to labels; the best detection on top."""
    panels = []

    def record_outlines(image, outlines, **options):
        panels.append([(x.label, tuple(x.box), x.color) for x in outlines])
        return draw_outlines(image, outlines, **options)

    monkeypatch.setattr(detections, "draw_outlines", record_outlines)
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("7.png", np.full((30, 40, 3), 128, np.uint8))
    objects = (1, [1, 2, 3, 4], BoxMode.XYWH_ABS), (0, [1, 2, 3, 4], BoxMode.XYXY_ABS)
    DatasetCatalog.register("sheet", lambda: [record(7, *objects)])
    ids = {10: 0, 20: 1}
    metadata = MetadataCatalog.get("sheet")
    metadata.set(thing_classes=["cat", "dog"], thing_dataset_id_to_contiguous_id=ids)
    predictions = [prediction(7, 10, 0.9, (5, 6, 7, 8)), prediction(7, 20, 0.3)]
    predictions += [prediction(7, 10, 0.1), prediction(8, 10, 0.2)]
    (tmp_path / "results.json").write_text(json.dumps(predictions))
    draw_detections("sheet", tmp_path / "results.json", tmp_path / "sheet.png")
    left, right = panels
    assert [x[:2] for x in left] == [("dog", (1, 2, 4, 6)), ("cat", (1, 2, 3, 4))]
    assert [x[:2] for x in right] == [("dog 0.30", (0, 0, 2, 3)), ("cat 0.90", (5, 6, 12, 14))]
    assert [x[2] for x in left] == [x[2] for x in right]  # a class has one colour
    assert left[0][2] != left[1][2]
    assert cv2.imread("sheet.png") is not None

    # LVIS's evaluator of Detectron2 counts from 1 where the set has no ids of its own.
    del metadata.thing_dataset_id_to_contiguous_id
    metadata.set(evaluator_type="lvis")
    (tmp_path / "results.json").write_text(json.dumps([prediction(7, 2, 0.9)]))
    draw_detections("sheet", tmp_path / "results.json", tmp_path / "sheet.png")
    assert panels[-1][0][0] == "dog 0.90"


def test_break_even_shows_as_many_detections_as_objects():
    box = (0, [0, 0, 1, 1], BoxMode.XYWH_ABS)
    records = [record(1, box, box), record(2, box, (*box, 1))]  # the last one is a crowd
    predictions = [prediction(1, 0, score) for score in (0.2, 0.9, 0.4, 0.6, 0.1)]
    assert break_even_threshold(predictions, records) == 0.4
    assert break_even_threshold(predictions[:2], records) == 0.2
    assert break_even_threshold([], records) == 1.0
    assert break_even_threshold(predictions, [record(1)]) == 1.0


@pytest.mark.parametrize("height, width", [(1, 3000), (3000, 1), (900, 1200)])
def test_drawings_of_thin_and_of_large_images(height, width):
    """They have a pixel at least, and the box where it is."""
    image = np.zeros((height, width, 3), np.uint8)
    box = (0, 0, width / 2, height / 2)
    drawing = draw_outlines(image, [Outline(box, "#ff0000")], longer_side=120)
    assert max(drawing.shape) == 120 and min(drawing.shape) >= 1
    if height == 900:
        assert drawing[45, 30:32].max() > 100 and drawing[60:].max() == 0
