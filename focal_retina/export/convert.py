"""From a trained model to ``model.pt2`` and ``model.onnx``."""

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.export import ExportedProgram
from torch.onnx.errors import OnnxExporterError

from ..engine import UserError
from .meta import Preprocessing
from .network import DenseNetwork

_logger = logging.getLogger(__name__)


def export_program(network: DenseNetwork, preprocessing: Preprocessing) -> ExportedProgram:
    """Trace the network with ``torch.export``, height and width being variables.

    Args:
        network: on the device on which the program is to run.
        preprocessing: which sizes it takes.

    Raises:
        UserError: this PyTorch can't.
    """
    unit = preprocessing.size_divisibility
    smallest = preprocessing.smallest_side // unit
    height, width = (unit * torch.export.Dim(x, min=smallest) for x in ("height", "width"))
    # Unlike each other and well above the minimum: no accident becomes a rule of the graph.
    example = torch.zeros(1, 3, (smallest + 2) * unit, (smallest + 3) * unit)
    with warnings.catch_warnings():
        # torchvision's description of NMS uses a function that PyTorch has renamed.
        warnings.filterwarnings("ignore", "`create_unbacked_symint` is deprecated", FutureWarning)
        try:
            return torch.export.export(
                network.eval(),
                (example.to(network.detector.device),),
                dynamic_shapes={"image": {2: height, 3: width}},
                strict=False,
            )
        except RuntimeError as error:
            raise _untranslatable("torch.export", error) from error


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write a ``.pt2``, for ``torch.export.load``."""
    with warnings.catch_warnings():
        # The weights' layout is channels_last, which is complete, though not contiguous.
        warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)
        torch.export.save(program, path)


def save_onnx(program: ExportedProgram, path: Path, output_names: list[str]) -> None:
    """Translate the program to ONNX, weights included.

    Raises:
        UserError: a package is missing, or this PyTorch can't translate an operation.
    """
    require_packages("onnx", "onnxscript")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`create_unbacked_symint` is deprecated", FutureWarning)
        try:
            onnx_program = torch.onnx.export(
                program,
                input_names=["image"],
                output_names=output_names,
                dynamo=True,
                verbose=False,
            )
        except OnnxExporterError as error:
            raise _untranslatable("ONNX", error) from error
    assert onnx_program is not None  # it is, where dynamo=True
    onnx_program.save(path, external_data=False)


def _untranslatable(target: str, error: Exception) -> UserError:
    _logger.debug("export to %s", target, exc_info=error)
    return UserError(
        f"PyTorch {torch.__version__} can't translate this model to {target} "
        f"({str(error).splitlines()[0]}): try a newer one, or --no-nms"
    )


def require_packages(*names: str) -> None:
    """
    Raises:
        UserError: one is not installed.
    """
    for name in names:
        if find_spec(name) is None:
            raise UserError(f"{name} is not installed: pip install 'focal_retina[export]'")
