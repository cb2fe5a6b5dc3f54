"""Exported files: how each kind is written and run. A new kind is an entry of :data:`TARGETS`."""

import contextlib
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ..engine import UserError
from ..modeling import FocalRetinaNet
from ..modeling.inference import inference_copy
from .meta import ModelMeta

# What DetectorGraph does.
Graph = Callable[[Tensor], Sequence[Tensor]]
Images = Iterable[np.ndarray]


@dataclass(frozen=True)
class Target:
    """A kind of exported file."""

    file_name: str  # its suffix says how the file is run
    write: Callable[[Path, ExportedProgram, ModelMeta, Images], None]
    load: Callable[[Path], Graph]
    packages: tuple[str, ...] = ()  # what writing needs beside PyTorch
    runs_code: bool = False  # whether loading runs Python code that stands in the file
    # Writing needs images for calibration, and the file's detections differ from the model's.
    is_quantized: bool = False


class DetectorGraph(nn.Module):
    """The detector as a graph in fp32, for any number of images of one size that the size
    divisibility divides, with batch normalization folded into the convolutions, and on demand with
    decoding and NMS."""

    def __init__(self, model: FocalRetinaNet, *, with_nms: bool):
        super().__init__()
        self.detector = inference_copy(model)
        self.with_nms = with_nms

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Of images (N, 3, H, W) float32, neither normalized nor scaled, with NMS boxes (D, 4) in
        their pixels, not clipped; scores (D,); classes (D,) int64; images (D,) int64, which image
        of the batch each is in: one image after the other, the highest score first. Without NMS the
        logits (N, R_l, K) of all levels, their deltas (N, R_l, 4), their anchors (R_l, 4)."""
        detector = self.detector
        normalized = (image - detector.pixel_mean) / detector.pixel_std
        anchors, logits, deltas = detector.dense_predictions(normalized)
        if not self.with_nms:
            return (*logits, *deltas, *(boxes.tensor for boxes in anchors))
        return detector.postprocessor.detect_in_batch(anchors, logits, deltas)


def write_targets(
    model: FocalRetinaNet, meta: ModelMeta, folder: Path, calibration: Images | None = None
) -> dict[str, Path]:
    """Write ``meta.json`` and the file of each target, and return the paths.

    ``model`` is on the device on which a ``.pt2`` is to run. ``calibration`` are images (H, W, 3)
    uint8, BGR; a hundred like those to come are enough. None: quantized targets are left out.

    An ImportError: a package is missing; a UserError: this PyTorch can't translate the model.
    """
    chosen = {k: x for k, x in TARGETS.items() if calibration is not None or not x.is_quantized}
    for package in (x for target in chosen.values() for x in target.packages):
        import_module(package)
    network = DetectorGraph(model, with_nms=meta.with_nms)
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # torchvision's description of NMS uses a function that PyTorch has renamed, and anchors a
        # form of meshgrid that it wants to change. The weights' layout is channels_last, which is
        # complete, though not contiguous.
        warnings.filterwarnings("ignore", "`create_unbacked_symint` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "torch.meshgrid|No complete tensor found", UserWarning)
        program = trace(network, meta)
        for target in TARGETS.values():  # of an earlier export, which meta.json would not fit
            (folder / target.file_name).unlink(missing_ok=True)
        meta.save(folder)
        for target in chosen.values():
            target.write(folder / target.file_name, program, meta, calibration or ())
    return {name: folder / target.file_name for name, target in chosen.items()}


def load_graph(path: Path) -> Graph:
    """An exported file as a function. A ValueError: it is damaged, or of another version."""
    try:
        return BY_SUFFIX[path.suffix].load(path)
    except ImportError:
        raise
    # Of unpickling, unzipping or another version; onnxruntime's errors have no common base.
    except Exception as error:
        raise ValueError(f"{path} is not a {path.suffix} that can be read: {error}") from error


def trace(network: DetectorGraph, meta: ModelMeta) -> ExportedProgram:
    """The network by ``torch.export``, for any number of images of any height and width; a
    UserError if PyTorch can't."""
    unit = meta.preprocessing.size_divisibility
    smallest = meta.preprocessing.smallest_side // unit
    height, width = (unit * torch.export.Dim(x, min=smallest) for x in ("height", "width"))
    # Unlike each other and well above the minimum: no accident becomes a rule of the graph.
    example = torch.zeros(2, 3, (smallest + 2) * unit, (smallest + 3) * unit)
    shapes = {"image": {0: torch.export.Dim("batch", min=1), 2: height, 3: width}}
    inputs = (example.to(network.detector.device),)
    with _translation_to("torch.export"):
        return torch.export.export(network.eval(), inputs, dynamic_shapes=shapes, strict=False)


def _write_onnx(path: Path, program: ExportedProgram, meta: ModelMeta, _: Images) -> None:
    inputs, outputs = ["image"], ["boxes", "scores", "classes", "images"]
    if not meta.with_nms:
        outputs = [f"{x}_{level}" for x in ("logits", "deltas", "anchors") for level in meta.levels]
    with _translation_to("ONNX"):
        onnx_program = torch.onnx.export(
            program, input_names=inputs, output_names=outputs, dynamo=True, verbose=False
        )
    assert onnx_program is not None  # it is, where dynamo=True
    onnx_program.save(path, external_data=False)


def _load_onnx(path: Path) -> Graph:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    providers = onnxruntime.get_available_providers()
    session = onnxruntime.InferenceSession(path, options, providers=providers)

    def run(image: Tensor) -> list[Tensor]:
        return [torch.from_numpy(x) for x in session.run(None, {"image": image.numpy()})]

    return run


def _write_int8(path: Path, _: ExportedProgram, meta: ModelMeta, images: Images) -> None:
    """``model.onnx`` with convolutions in 8 bits, but for the last layers.

    Static quantization: the ranges of a detector's activations are much alike from image to image,
    and to find them anew in each costs more than 8 bits save. Weights have a scale for each output
    channel and 7 of the 8 bits: without VNNI x86 adds products in 16 bits, which 8 would overflow.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    pad, resize = meta.preprocessing.pad, meta.preprocessing.resize
    inputs = ({"image": pad([resize(x)]).numpy()} for x in images)
    reader = SimpleNamespace(get_next=lambda: next(inputs, None))
    with tempfile.TemporaryDirectory() as folder:
        fused = Path(folder, "fused.onnx")  # the head's batch normalization, too
        source = path.with_name(TARGETS["onnx"].file_name)
        quant_pre_process(source, fused, skip_symbolic_shape=True)
        convolutions = [x for x in onnx.load(fused).graph.node if x.op_type == "Conv"]
        # They make the scores and deltas; the other convolutions do 99% of the arithmetic.
        last = [x.name for x in convolutions if re.search("cls_score|bbox_pred", x.input[1])]
        scales = {"per_channel": True, "reduce_range": True}
        layers = {"op_types_to_quantize": ["Conv"], "nodes_to_exclude": last}
        quantization.quantize_static(fused, path, reader, **scales, **layers)


@contextlib.contextmanager
def _translation_to(kind: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        problem = f"can't translate this model to {kind} ({str(error).splitlines()[0]})"
        advice = "try a newer one, or --no-nms"
        raise UserError(f"PyTorch {torch.__version__} {problem}: {advice}") from error


# In the order in which they are written.
TARGETS = {
    "torch.export": Target(
        "model.pt2",
        lambda path, program, *_: torch.export.save(program, path),
        lambda path: torch.export.load(path).module(),
        runs_code=True,
    ),
    "onnx": Target("model.onnx", _write_onnx, _load_onnx, ("onnx", "onnxscript")),
    "onnx-int8": Target(
        "model_int8.onnx", _write_int8, _load_onnx, ("onnx", "onnxruntime"), is_quantized=True
    ),
}
BY_SUFFIX = {Path(x.file_name).suffix: x for x in TARGETS.values()}  # the two .onnx run alike
