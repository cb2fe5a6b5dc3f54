"""COCO's box metrics by hotcoco, with pycocotools as the reference and the fallback.

A test set is evaluated every few thousand iterations, and pycocotools takes minutes where classes
and images are many: 25.2 s for 1,000 images × 100 boxes × 80 classes, hotcoco .15 s and
faster-coco-eval 2.4 s. hotcoco is young, so it does little here: it takes columns of numbers, and
gives back precision and recall, which the tests compare with pycocotools' bit for bit. The averages
are made of them by pycocotools itself.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

_logger = logging.getLogger(__name__)

_STANDARD_MAX_DETS = 100


def evaluate_boxes(
    coco_api: COCO,
    detections: Sequence[Mapping[str, Any]],
    *,
    image_ids: Iterable[Hashable] | None = None,
    max_dets: Sequence[int] = (1, 10, _STANDARD_MAX_DETS),
) -> COCOeval:
    """What pycocotools' ``COCOeval(coco_api, …, "bbox")`` computes, to the last bit, with its
    summary; but an annotation of id 0 counts, with a warning; pycocotools takes a match with it
    for none. ValueError: a detection is of an image that the ground truth does not have.

    Args:
        coco_api: the ground truth. Ids of images may be integers of any size or strings.
        detections: entries of COCO's results format; of equal scores the earlier ranks higher.
        image_ids: evaluate on these images only; None: on all.
        max_dets: the highest-scoring detections of an image and class that count, for the three
            average recalls; the largest is also for the average precisions.
    """
    known = coco_api.imgs.keys()
    unknown = next((d["image_id"] for d in detections if d["image_id"] not in known), None)
    if unknown is not None:
        raise ValueError(
            f"a detection has image_id {unknown!r}, which the ground truth does not have: "
            "these are detections of another data set"
        )
    chosen = sorted(set(known if image_ids is None else image_ids))
    # Detectron2 summarizes by a class of its own where AP is not at 100 detections.
    evaluator = COCOeval if max_dets[-1] == _STANDARD_MAX_DETS else COCOevalMaxDets
    coco_eval = evaluator(iouType="bbox")
    coco_eval.params.imgIds = chosen
    coco_eval.params.catIds = sorted(coco_api.getCatIds())
    coco_eval.params.maxDets = sorted(max_dets)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            coco_eval.eval = _accumulate_by_hotcoco(coco_api, detections, coco_eval.params)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic in Rust is no Exception
            hint = "; pip install hotcoco" if isinstance(error, ModuleNotFoundError) else ""
            reason = f"{type(error).__name__}: {error}{hint}"
            _logger.warning("pycocotools evaluates, far slower, as hotcoco failed (%s)", reason)
            coco_eval.cocoGt = coco_api
            # It cannot load an empty list.
            found = [dict(x) for x in detections]
            coco_eval.cocoDt = coco_api.loadRes(found) if found else COCO()
            coco_eval.evaluate()
            coco_eval.accumulate()
        coco_eval.summarize()
    _logger.debug(printed.getvalue())
    return coco_eval


def _accumulate_by_hotcoco(
    coco_api: COCO, detections: Sequence[Mapping[str, Any]], params: Any
) -> dict[str, Any]:
    """``COCOeval.eval``: arrays over thresholds of IoU, recalls, classes, areas and max_dets.

    Images and categories go by their ranks, so that their ids may be anything; pycocotools, too,
    takes images in the order of their ids, which decides between equal scores.
    """
    import hotcoco

    if 0 in coco_api.anns:
        _logger.warning(
            "the annotation of id 0 counts as any other; pycocotools would take detections that "
            "match it for wrong ones: count from 1 to compare with its numbers"
        )
    image_ranks = {image_id: rank for rank, image_id in enumerate(params.imgIds, start=1)}
    category_ranks = {category: rank for rank, category in enumerate(params.catIds, start=1)}

    def counts(entry: Mapping[str, Any]) -> bool:
        """pycocotools does not look at others either."""
        return entry["image_id"] in image_ranks and entry["category_id"] in category_ranks

    def columns(entries: list[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ranks of images and categories, (B,), and boxes (B, 4)."""
        images = np.array([image_ranks[x["image_id"]] for x in entries], np.int64)
        categories = np.array([category_ranks[x["category_id"]] for x in entries], np.int64)
        return images, categories, np.array([x["bbox"] for x in entries], float).reshape(-1, 4)

    truth = [x for x in coco_api.dataset["annotations"] if counts(x)]
    found = [x for x in detections if counts(x)]
    images, categories, boxes = columns(found)
    rows = np.column_stack([images, boxes, [x["score"] for x in found], categories])
    if not np.isfinite(rows).all():
        raise ValueError("some detections' boxes or scores are not finite")
    with warnings.catch_warnings():
        # That max_dets are not COCO's, which the caller knows
        warnings.simplefilter("ignore")
        ground_truth = hotcoco.COCO.from_arrays(
            [{"id": rank} for rank in image_ranks.values()],
            [{"id": rank, "name": str(rank)} for rank in category_ranks.values()],
            *columns(truth),
            ids=np.arange(1, len(truth) + 1),
            area=np.array([x["area"] for x in truth], np.float64),
            iscrowd=np.array([bool(x["iscrowd"]) for x in truth], np.int64),
        )
        evaluation = hotcoco.COCOeval(ground_truth, ground_truth.load_res(rows), "bbox")
        evaluation.params.max_dets = [int(m) for m in params.maxDets]
        evaluation.evaluate()
        evaluation.accumulate()
    accumulated = evaluation.eval
    assert accumulated is not None  # after accumulate()
    return {name: accumulated[name] for name in ("precision", "recall", "scores")}
