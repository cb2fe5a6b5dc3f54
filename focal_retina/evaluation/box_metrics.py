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
from typing import Any, NamedTuple

import numpy as np
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

_logger = logging.getLogger(__name__)

_STANDARD_MAX_DETS = 100


class _Columns(NamedTuple):
    """Boxes by columns, B of them; images and categories by their rank among the sorted ids."""

    image: np.ndarray  # (B,) int64
    category: np.ndarray  # (B,) int64
    box: np.ndarray  # (B, 4) float64: x, y, width, height


def evaluate_boxes(
    coco_api: COCO,
    detections: Sequence[Mapping[str, Any]],
    *,
    image_ids: Iterable[Hashable] | None = None,
    max_dets: Sequence[int] = (1, 10, _STANDARD_MAX_DETS),
) -> COCOeval:
    """What pycocotools' ``COCOeval(coco_api, …, "bbox")`` computes, to the last bit, but for an
    annotation of id 0: pycocotools takes a match with it for none, here it counts, with a warning.

    Args:
        coco_api: the ground truth. Ids of images may be integers of any size or strings.
        detections: entries of COCO's results format; of equal scores the earlier ranks higher.
        image_ids: evaluate on these images only; None: on all.
        max_dets: the highest-scoring detections of an image and class that count, for the three
            average recalls; the largest is also for the average precisions.

    Returns:
        A COCOeval that is accumulated and summarized: ``stats`` holds the 12 numbers, ``eval`` the
        arrays of precision and recall. Its table went to the standard output.

    Raises:
        ValueError: a detection is of an image that the ground truth does not have.
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
    try:
        coco_eval.eval = _accumulate_by_hotcoco(coco_api, detections, coco_eval.params)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        _logger.warning(
            "pycocotools evaluates, which takes far longer, because hotcoco failed (%s: %s)%s",
            type(error).__name__,
            error,
            "; pip install hotcoco" if isinstance(error, ModuleNotFoundError) else "",
        )
        _accumulate_by_pycocotools(coco_api, detections, coco_eval)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
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

    annotations = coco_api.dataset["annotations"]
    if 0 in coco_api.anns:
        _logger.warning(
            "the annotation of id 0 counts as any other; pycocotools would take detections that "
            "match it for wrong ones: count from 1 to compare with its numbers"
        )
    image_ranks = {image_id: rank for rank, image_id in enumerate(params.imgIds, start=1)}
    category_ranks = {category: rank for rank, category in enumerate(params.catIds, start=1)}
    truth, kept = _columns(annotations, image_ranks, category_ranks)
    found, found_kept = _columns(detections, image_ranks, category_ranks)
    scores = np.array([d["score"] for d in detections], np.float64)[found_kept]
    if not (np.isfinite(found.box).all() and np.isfinite(scores).all()):
        raise ValueError("some detections' boxes or scores are not finite")

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        # That max_dets are not COCO's, which the caller knows
        warnings.simplefilter("ignore")
        ground_truth = hotcoco.COCO.from_arrays(
            [{"id": rank} for rank in image_ranks.values()],
            [{"id": rank, "name": str(rank)} for rank in category_ranks.values()],
            truth.image,
            truth.category,
            truth.box,
            ids=np.arange(1, len(truth.image) + 1),
            area=np.array([a["area"] for a in annotations], np.float64)[kept],
            iscrowd=np.array([bool(a["iscrowd"]) for a in annotations], np.int64)[kept],
        )
        rows = np.column_stack([found.image, found.box, scores, found.category])
        evaluation = hotcoco.COCOeval(ground_truth, ground_truth.load_res(rows), "bbox")
        evaluation.params.max_dets = [int(m) for m in params.maxDets]
        evaluation.evaluate()
        evaluation.accumulate()
    accumulated = evaluation.eval
    assert accumulated is not None  # after accumulate()
    return {name: accumulated[name] for name in ("precision", "recall", "scores")}


def _columns(
    entries: Sequence[Mapping[str, Any]],
    image_ranks: Mapping[Any, int],
    category_ranks: Mapping[Any, int],
) -> tuple[_Columns, np.ndarray]:
    """Columns of the entries of known images and categories, and which of the entries these are:
    bool, as long as ``entries``. (pycocotools does not look at the others either.)"""
    image = np.array([image_ranks.get(e["image_id"], 0) for e in entries], np.int64)
    category = np.array([category_ranks.get(e["category_id"], 0) for e in entries], np.int64)
    box = np.array([e["bbox"] for e in entries], np.float64).reshape(-1, 4)
    kept = (image > 0) & (category > 0)
    return _Columns(image[kept], category[kept], box[kept]), kept


def _accumulate_by_pycocotools(
    coco_api: COCO, detections: Sequence[Mapping[str, Any]], coco_eval: COCOeval
) -> None:
    """Write ``coco_eval.eval``; pycocotools' progress is not printed."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco_eval.cocoGt = coco_api
        # It cannot load an empty list.
        coco_eval.cocoDt = coco_api.loadRes([dict(d) for d in detections]) if detections else COCO()
        coco_eval.evaluate()
        coco_eval.accumulate()
