"""What ``tools/export_model.py`` does: write files, measure their agreement, AP and speed."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode

from ..modeling.inference import inference_copy
from .comparison import average_precision, compare, sample_images
from .convert import export_program, save_onnx, save_program
from .meta import build_meta
from .network import DenseNetwork, DetectionNetwork
from .predictor import EagerPredictor, Predictor, load_detector, load_predictor
from .quantization import quantize_onnx

EAGER, FOLDED, PROGRAM, ONNX, INT8 = "eager", "eager-folded", "torch.export", "onnx", "onnx-int8"


def export(
    cfg: CfgNode, folder: Path, with_nms: bool = True, num_calibration: int | None = None
) -> dict[str, Predictor]:
    """Write ``model.pt2``, ``model.onnx`` and ``meta.json``, and load them again.

    Args:
        cfg: of a model with weights, on the device on which the ``.pt2`` is to run.
        folder: made if it is not there.
        with_nms: whether decoding and NMS are in the graphs.
        num_calibration: write ``model_int8.onnx``, too, calibrated on so many images of
            DATASETS.TRAIN.

    Returns:
        By name the model in PyTorch, as it is and folded for inference, and each file.

    Raises:
        UserError, OSError, ValueError: the model or the images can't be loaded, or not exported.
    """
    model = load_detector(cfg)
    meta = build_meta(cfg, model, with_nms=with_nms)
    network = DetectionNetwork(model) if with_nms else DenseNetwork(model)
    folder.mkdir(parents=True, exist_ok=True)
    files = {PROGRAM: folder / "model.pt2", ONNX: folder / "model.onnx"}

    quantized = folder / "model_int8.onnx"
    quantized.unlink(missing_ok=True)  # an earlier export's, which meta.json would no longer fit
    meta.save(folder)
    program = export_program(network, meta.preprocessing)
    save_program(program, files[PROGRAM])
    save_onnx(program, files[ONNX], network.output_names)
    if num_calibration is not None:
        images = sample_images(cfg.DATASETS.TRAIN, num_calibration)
        files[INT8] = quantized
        quantize_onnx(files[ONNX], files[INT8], images, meta.preprocessing)
    print(f"written: {', '.join(map(str, files.values()))}", flush=True)
    return {
        EAGER: EagerPredictor(model, meta),
        FOLDED: EagerPredictor(inference_copy(model), meta),
        **{name: load_predictor(path) for name, path in files.items()},
    }


def compare_all(predictors: Mapping[str, Predictor], images: Sequence[np.ndarray]) -> bool:
    """Print how each agrees with the model in PyTorch on the images; the one in int8 can't.

    Returns:
        whether they find the same, see :class:`Agreement`.
    """
    exact = True
    for name in (x for x in predictors if x not in (EAGER, INT8)):
        agreement = compare(predictors[name], predictors[EAGER], images)
        print(f"{name}: {agreement}", flush=True)
        exact &= agreement.is_exact
    return exact


def evaluate_all(predictors: Mapping[str, Predictor], cfg: CfgNode) -> str:
    """AP of each on each of DATASETS.TEST, and its difference to the first's, as a table.

    The evaluators' files go into ``OUTPUT_DIR/inference``.
    """
    lines = ["| data set | model | AP | difference |", "| --- | --- | ---: | ---: |"]
    for dataset in cfg.DATASETS.TEST:
        folder = Path(cfg.OUTPUT_DIR, "inference", dataset)
        precisions = {
            name: average_precision(predictor, dataset, folder / name)
            for name, predictor in predictors.items()
        }
        for name, ap in precisions.items():
            difference = ap - precisions[EAGER]
            lines.append(f"| {dataset} | {name} | {ap:.2f} | {difference:+.2f} |")
    return "\n".join(lines)


def timing_case(
    predictors: Mapping[str, Predictor], images: Sequence[np.ndarray]
) -> tuple[str, Mapping[str, Callable[[], object]]]:
    """A title, and calls that take each predictor over the images, one by one, resizing and NMS
    included: a case of ``benchmarks.timing``."""

    def run(predictor: Predictor) -> None:
        for image in images:
            predictor.predict([image])

    calls = {name: partial(run, predictor) for name, predictor in predictors.items()}
    return f"{len(images)} images", calls
