"""One interface to a detector in PyTorch and in an exported file, and its run over sources."""

import contextlib
import itertools
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.data.transforms import ResizeTransform
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from fvcore.transforms import CropTransform, TransformList
from tqdm import tqdm

from ..data import limit_pixels
from ..engine import UserError, load_config, load_detector, prepare_process
from ..engine.precision import build_inference_copy
from ..modeling.postprocess import Candidates
from ..modeling.test_time_augmentation import Detector, merged_detections
from .export import BY_SUFFIX, Graph, load_graph
from .media import CocoWriter, Frame, PictureWriter, Source
from .meta import ModelMeta, build_meta


class Predictor:
    """Images in, detections out, whatever runs the network."""

    def __init__(self, model: Detector, meta: ModelMeta):
        self.model, self.meta = model, meta

    @torch.inference_mode()
    def predict(self, images: Sequence[np.ndarray]) -> list[Instances]:
        """Of images (H, W, 3) uint8, BGR, of any sizes, Instances on the CPU with ``pred_boxes`` in
        the image's pixels, ``scores`` and ``pred_classes``, the highest score first."""
        resized = [self.meta.preprocessing.resize(x) for x in images]
        of_each = self.model.candidates([{"image": x} for x in resized]) if resized else []
        results = []
        for image, x, candidates in zip(images, resized, of_each, strict=True):
            found = self.model.postprocessor.select(*candidates, (x.shape[1], x.shape[2]))
            results.append(detector_postprocess(found, *image.shape[:2]).to("cpu"))
        return results


class TiledPredictor(Predictor):
    """A predictor that sees tiles of an image beside the whole. As in test-time augmentation, the
    candidates of all pass NMS together."""

    def __init__(
        self, predictor: Predictor, *, tile: int, overlap: float = 0.2, batch_size: int = 1
    ):
        """
        Args:
            predictor: runs the network. It resizes a tile as it does an image.
            tile: side of a tile in pixels of the image. A smaller image is seen as a whole alone.
            overlap: neighbours share at least this part of their sides.
            batch_size: of tiles.
        """
        if tile < 1 or not 0 <= overlap < 1:
            raise ValueError(f"tile {tile}, overlap {overlap:g}: at least 1; from 0 to below 1")
        super().__init__(predictor.model, predictor.meta)
        self.tile, self.overlap, self.batch_size = tile, overlap, batch_size

    @torch.inference_mode()
    def predict(self, images: Sequence[np.ndarray]) -> list[Instances]:
        return [self._detect(x) for x in images]

    def _detect(self, image: np.ndarray) -> Instances:
        if max(image.shape[:2]) <= self.tile:
            return super().predict([image])[0]
        size = image.shape[:2]
        return merged_detections(self.model, self._views(image), size, self.batch_size).to("cpu")

    def _views(self, image: np.ndarray) -> Iterator[dict]:
        height, width = image.shape[:2]
        tops, lefts = (self._starts(x) for x in (height, width))
        tiles = itertools.product(tops, lefts, [self.tile], [self.tile])
        for top, left, tile_height, tile_width in [(0, 0, height, width), *tiles]:
            part = image[top : top + tile_height, left : left + tile_width]
            resized = self.meta.preprocessing.resize(part)
            crop = CropTransform(left, top, *part.shape[1::-1], width, height)
            resize = ResizeTransform(*part.shape[:2], *resized.shape[1:])
            yield {"image": resized, "transforms": TransformList([crop, resize])}

    def _starts(self, length: int) -> list[int]:
        """Of the fewest tiles that cover a side, evenly spread."""
        last = max(length - self.tile, 0)
        count = 1 + math.ceil(last / (self.tile * (1 - self.overlap)))
        return [round(x) for x in np.linspace(0, last, count)]


class GraphDetector:
    """An exported :class:`~.export.DetectorGraph` as a detector."""

    def __init__(self, graph: Graph, meta: ModelMeta):
        self.graph, self.meta, self.postprocessor = graph, meta, meta.postprocessor()

    def candidates(self, batched_inputs: list[dict]) -> list[Candidates]:
        """As :meth:`FocalRetinaNet.candidates`; of a graph with NMS, what that has left."""
        outputs = self.graph(self.meta.preprocessing.pad([x["image"] for x in batched_inputs]))
        if self.meta.with_nms:
            boxes, scores, classes, images = outputs
            masks = [images == i for i in range(len(batched_inputs))]
            return [(boxes[x], scores[x], classes[x]) for x in masks]
        count = len(self.meta.levels)
        logits, deltas, anchors = (list(outputs[i * count :][:count]) for i in range(3))
        return list(self.postprocessor.candidates([Boxes(x) for x in anchors], logits, deltas))


def load_predictor(
    source: str | Path,
    opts: Sequence[str] = (),
    *,
    register: Sequence[str] = (),
    imports: Sequence[str] = (),
    allow_code: bool = False,
) -> Predictor:
    """``source`` is a training's folder, a config, or an exported file beside its ``meta.json``,
    which takes no ``opts``; for the rest see :func:`focal_retina.engine.load_config`. Only with
    ``allow_code`` is a ``.pt2`` opened, which runs Python code that stands in it.

    A UserError: ``source`` is nothing of this or not allowed, or a package is missing. An OSError
    or ValueError: a file is missing or damaged.
    """
    path = Path(source)
    if path.is_dir() or path.suffix in (".yaml", ".yml"):
        cfg = load_config(path, opts, register=register, imports=imports)
        model = load_detector(cfg)
        return Predictor(build_inference_copy(cfg, model), build_meta(cfg, model))
    if path.suffix not in BY_SUFFIX:
        kinds = ", ".join(sorted(BY_SUFFIX))
        raise UserError(f"{path}: expected a training's folder, a config .yaml or a file {kinds}")
    if opts:
        raise UserError(f"{path} has its config in it: leave out {' '.join(map(str, opts))}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if BY_SUFFIX[path.suffix].runs_code and not allow_code:
        problem = f"to open a {path.suffix} runs Python code that stands in it"
        advice = "if you trust the file, add --allow-code (allow_code=True), else use an .onnx"
        raise UserError(f"{path}: {problem}; {advice}")
    prepare_process(imports, register)
    meta = ModelMeta.load(path.parent)
    limit_pixels(meta.max_image_pixels)
    return Predictor(GraphDetector(load_graph(path), meta), meta)


def predict_sources(
    predictor: Predictor,
    sources: Sequence[Source],
    writers: Sequence[CocoWriter | PictureWriter],
    *,
    batch_size: int = 1,
    threshold: float = 0.0,
) -> int:
    """Run a predictor on everything, with a progress bar; detections score at least ``threshold``,
    which can't be below the predictor's own (UserError).

    A source that can't be read, or on which the model fails, is reported and passed over; their
    number is returned. Whatever ends the run, the writers are closed, and hold what was done.
    """
    lowest = predictor.meta.score_thresh
    if 0 < threshold < lowest:
        own = f"the model's own, {lowest:g} (MODEL.RETINANET.SCORE_THRESH_TEST, at its export)"
        raise UserError(f"--threshold {threshold:g} is below {own}")
    failed: set[Source] = set()
    with contextlib.ExitStack() as stack:
        is_endless = any(x.webcam is not None for x in sources)
        total = None if is_endless else sum(x.length() for x in sources)
        progress = stack.enter_context(tqdm(total=total, unit="image"))
        for writer in writers:
            stack.callback(writer.close)
        frames = _frames(sources, failed)
        while batch := list(itertools.islice(frames, batch_size)):
            for frame, instances in _detections(predictor, batch, failed):
                for writer in writers:
                    writer.write(frame, instances[instances.scores >= threshold])
            progress.update(len(batch))
    return len(failed)


def _frames(sources: Iterable[Source], failed: set[Source]) -> Iterator[Frame]:
    for source in sources:
        try:
            yield from source.frames()
        except Exception as error:  # Pillow's decoders raise nearly any
            _pass_over(source, error, failed)


def _detections(
    predictor: Predictor, frames: list[Frame], failed: set[Source]
) -> Iterator[tuple[Frame, Instances]]:
    """What is found in each; an image on which the model fails costs no other of the batch."""
    try:
        found = predictor.predict([x.image for x in frames])
    except Exception as error:  # onnxruntime's have no common base
        if len(frames) == 1:
            _pass_over(frames[0].source, error, failed)
        else:
            for frame in frames:
                yield from _detections(predictor, [frame], failed)
        return
    yield from zip(frames, found, strict=True)


def _pass_over(source: Source, error: Exception, failed: set[Source]) -> None:
    failed.add(source)
    tqdm.write(f"{source.name}: passed over: {' '.join(str(error).split())}", file=sys.stderr)
