"""int8 by onnxruntime: convolutions in 8 bits, everything else in fp32.

Static quantization, since the ranges of a detector's activations are much alike from image to
image, and to find them anew in each costs more than 8 bits save.
"""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from .convert import require_packages
from .meta import Preprocessing

# They make the scores and deltas themselves; the other convolutions do 99% of the arithmetic.
_FP32_LAYERS = ("cls_score", "bbox_pred")


def quantize_onnx(
    path: Path, quantized: Path, images: Iterable[np.ndarray], preprocessing: Preprocessing
) -> None:
    """Write an int8 copy of an exported ``.onnx``, with the same inputs and outputs.

    Weights are symmetric, with a scale for each output channel, in 7 of the 8 bits: without VNNI
    x86 adds products in 16 bits, which 8 would overflow. Activations get the range that they have
    on the images.

    Args:
        path: the file to copy.
        quantized: the file to write.
        images: for calibration, each (H, W, 3) uint8, BGR; a hundred like those to come are enough.
        preprocessing: of the export.

    Raises:
        UserError: onnx or onnxruntime is missing.
    """
    require_packages("onnx", "onnxruntime")
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        inputs: Iterator[dict] = (
            {"image": preprocessing.pad(preprocessing.resize(x)).numpy()} for x in images
        )

        def get_next(self) -> dict | None:
            return next(self.inputs, None)

    with tempfile.TemporaryDirectory() as folder:
        fused = Path(folder, "fused.onnx")  # the head's batch normalization, too
        quant_pre_process(path, fused, skip_symbolic_shape=True)
        convolutions = [x for x in onnx.load(fused).graph.node if x.op_type == "Conv"]
        kept = [x.name for x in convolutions if any(layer in x.input[1] for layer in _FP32_LAYERS)]
        quantization.quantize_static(
            fused,
            quantized,
            Reader(),
            per_channel=True,
            reduce_range=True,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=kept,
        )
