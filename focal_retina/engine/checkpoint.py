"""Checkpoints that survive a kill at any moment, and are read without executing code."""

import contextlib
import logging
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils import comm
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..data.classes import model_classes
from ..files import atomic_write

_logger = logging.getLogger(__name__)


def is_intact(path: str | os.PathLike) -> bool:
    """Whether a ``.pth`` file is complete and every part of it has its checksum.

    ``torch.save`` writes a zip archive with a CRC-32 of each tensor and of the pickle, at which
    ``torch.load`` does not look.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return False
        read_torch_file(path, mmap=True)  # its table of contents, too, has to be right
    except pickle.UnpicklingError:
        return True  # whole, but not to be loaded: that says so
    except (OSError, zipfile.BadZipFile, EOFError, ValueError, RuntimeError):
        return False
    return True


class SafeCheckpointer(DetectionCheckpointer):
    """:class:`DetectionCheckpointer` with atomic, checksummed files.

    What it writes is Detectron2's own format, and Detectron2's checkpointer reads it. What it reads
    (``.pth``, Detectron2's and Caffe2's ``.pkl``, ``.safetensors``) is tensors and plain values: a
    file that would run code on loading is refused.
    """

    is_strict = False  # whether the checkpoint has to hold the whole model

    def save(self, name: str, **kwargs: Any) -> None:
        """See :meth:`fvcore.common.checkpoint.Checkpointer.save`."""
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: obj.state_dict() for key, obj in self.checkpointables.items()}
        data = {"model": self.model.state_dict(), **states, **kwargs}
        path = Path(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        with atomic_write(path) as file:
            torch.save(data, file)
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_write(Path(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the last checkpoint that is intact with everything in it, or ``path``'s weights.

        Args:
            path: file or URL of weights, for where there is nothing to resume; may be empty.
            resume: look for a checkpoint in the output folder first.

        Returns:
            What was in the file and has not been loaded.

        Raises:
            ValueError: there are checkpoints, and none is intact.
        """
        if resume and self.has_checkpoint():
            # One process chooses, as another may see the folder a moment later.
            choice = self.last_intact() if comm.is_main_process() else None
            path = comm.all_gather(choice)[0]
            if not path:
                raise ValueError(
                    f"--resume: no checkpoint in {self.save_dir} is intact; start anew without it"
                )
            return self.load(path)
        return self.load(path, checkpointables=[]) if path else {}

    def last_intact(self) -> str | None:
        """The file that ``last_checkpoint`` names, or the newest before it that is not damaged."""
        last = Path(self.get_checkpoint_file())
        numbered = Path(self.save_dir).glob("model_[0-9]*.pth")  # "model_final" sorts after them
        older = sorted((x for x in numbered if x.name < last.name), reverse=True)
        for candidate in [last, *older]:
            if is_intact(candidate):
                return str(candidate)
            _logger.warning(
                f"{candidate} is damaged or missing: going back to the checkpoint before it"
            )
        return None

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        incompatible = super()._load_model(checkpoint)
        anew = [*incompatible.missing_keys, *(x[0] for x in incompatible.incorrect_shapes)]
        if anew and not self.is_strict:
            _logger.info(
                "%d of the model's %d tensors are not in the checkpoint, or have another shape "
                "there, and start anew: %s%s",
                len(anew),
                len(self.model.state_dict()),
                ", ".join(anew[:3]),
                " …" if len(anew) > 3 else "",
            )
        return incompatible

    def _load_file(self, filename: str) -> dict[str, Any]:
        with refusal_in_one_line(filename):
            if filename.endswith(".pkl"):
                return _from_zoo(read_weights(filename))
            return super()._load_file(filename)

    def _torch_load(self, f: str) -> Any:
        return read_weights(f)


def load_trained_model(cfg: CfgNode, *, resume: bool = False) -> nn.Module:
    """The model of ``cfg`` with the weights MODEL.WEIGHTS. Its ``class_names`` are a list, or None
    where they are not known.

    Args:
        cfg: of the model.
        resume: take the last checkpoint in OUTPUT_DIR, where there is one.

    Raises:
        ValueError: there are no weights, or they do not fit. (To Detectron2 that is a warning; here
            the numbers of an untrained head would follow.)
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.FOCAL_RETINA.EFFICIENTNET_LITE.PRETRAINED = False  # all weights come from the file
    model = build_model(cfg)
    checkpointer = _StrictCheckpointer(model, cfg.OUTPUT_DIR)
    if not (cfg.MODEL.WEIGHTS or (resume and checkpointer.has_checkpoint())):
        raise ValueError("MODEL.WEIGHTS is empty: name a checkpoint")
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    if resume and checkpointer.has_checkpoint():
        cfg.MODEL.WEIGHTS = checkpointer.get_checkpoint_file()
    _logger.info("weights: %s", cfg.MODEL.WEIGHTS)
    classes = model_classes(cfg)
    model.class_names = classes.names if classes else None
    return model


class _StrictCheckpointer(SafeCheckpointer):
    is_strict = True

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        incompatible = super()._load_model(checkpoint)
        shapes = {name: (theirs, ours) for name, theirs, ours in incompatible.incorrect_shapes}
        wrong = [*incompatible.missing_keys, *shapes]
        if not wrong:
            return incompatible
        theirs, ours = shapes.get("head.cls_score.bias", ((0,), (1,)))
        count = getattr(self.model, "num_classes", 0) * theirs[0] / ours[0]
        if all(x.startswith("head.cls_score.") for x in wrong) and count == int(count):
            raise ValueError(
                f"the checkpoint has {int(count)} classes and the config "
                f"{self.model.num_classes}: set MODEL.RETINANET.NUM_CLASSES {int(count)}"
            )
        raise ValueError(
            f"the checkpoint is of another architecture: it lacks {len(wrong)} of the model's "
            f"tensors, or has them in another shape, {wrong[0]} for one: MODEL.WEIGHTS and the "
            "config don't belong together"
        )


def _from_zoo(data: Any) -> dict[str, Any]:
    """Detectron2's zoo format as it is; Caffe2's (Detectron, ImageNet) with what it needs."""
    if not isinstance(data, dict):
        raise pickle.UnpicklingError(f"it holds a {type(data).__name__}, not a dict of arrays")
    if "model" in data and "__author__" in data:
        return data
    blobs = data.get("blobs", data)
    blobs = {name: blob for name, blob in blobs.items() if not name.endswith("_momentum")}
    return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}


@contextlib.contextmanager
def refusal_in_one_line(path: str | os.PathLike) -> Iterator[None]:
    """Turn reading errors into a ValueError; torch's own text advises to read the file anyhow."""
    try:
        yield
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        reason = "is no checkpoint, or damaged"
        if match := re.search(r"(?:GLOBAL|asks for) `?([\w.]+)", str(error)):
            reason = (
                f"asks for {match[1]} to be called, and so is not read: weights are arrays and "
                "plain values alone"
            )
        raise ValueError(f"{path} {reason}") from error


def read_weights(path: str | os.PathLike) -> Any:
    """What a file holds, by its ending: ``.safetensors``, ``.pkl``, else a ``torch.save`` file."""
    suffix = Path(path).suffix
    if suffix == ".safetensors":
        return load_file(path)
    if suffix == ".pkl":
        with open(path, "rb") as file:
            return load_arrays(file)
    return read_torch_file(path)


def _latin1_bytes(text: str, encoding: str = "latin1") -> bytes:
    """``_codecs.encode`` as pickles of Python 3 use it, for bytes, and nothing else."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes text as {encoding!r}")
    return text.encode(encoding)


# What a pickle may call: a pickle can name any function and have it called on loading. NumPy's are
# taken from what NumPy itself pickles, as they have moved between its versions.
_BUILDERS = {
    "multiarray._reconstruct": np.zeros(1).__reduce__()[0],
    "multiarray.scalar": np.float64(0).__reduce__()[0],
    "numeric._frombuffer": np.zeros(1).__reduce_ex__(5)[0],
}
_ARRAY_GLOBALS: dict[str, Any] = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    **{f"numpy.core.{name}": builder for name, builder in _BUILDERS.items()},
    **{f"numpy._core.{name}": builder for name, builder in _BUILDERS.items()},
}
_PICKLE_GLOBALS: dict[str, Any] = {
    **_ARRAY_GLOBALS,
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _latin1_bytes,
}
_DTYPES = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + "?efd"}


def read_torch_file(path: str | os.PathLike, *, mmap: bool = False) -> Any:
    """Load a ``torch.save`` file that holds tensors, arrays and plain values alone."""
    allowed: list[Any] = [*((builder, name) for name, builder in _ARRAY_GLOBALS.items()), *_DTYPES]
    with torch.serialization.safe_globals(allowed):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _PICKLE_GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _PICKLE_GLOBALS[f"{module}.{name}"]


def load_arrays(file: IO[bytes]) -> Any:
    """Unpickle dicts, lists, numbers, text and NumPy arrays, such as Detectron2's zoo (``.pkl``),
    some of it written by Python 2.

    Raises:
        pickle.UnpicklingError: it holds anything else, which was not called; or it is no pickle.
    """
    try:
        return _ArrayUnpickler(file, encoding="latin1").load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # of a damaged pickle: nearly any, by its opcodes
        raise pickle.UnpicklingError(f"it is damaged: {error}") from error
