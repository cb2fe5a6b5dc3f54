"""Checkpoints that survive a kill at any moment, and are read without executing code."""

import contextlib
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

from ..files import atomic_write


def is_intact(path: str | os.PathLike) -> bool:
    """Whether a ``.pth`` file is complete and every part of it has its checksum.

    ``torch.save`` writes a zip archive with a CRC-32 of each tensor and of the pickle, at which
    ``torch.load`` does not look.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # torch does not read what has the attribute of a folder, and takes it for read.
            if archive.testzip() is not None or any(x.external_attr for x in archive.infolist()):
                return False
        read_torch_file(path, mmap=True)  # its table of contents, too, has to be right
    except Exception as error:  # by what is damaged, nearly any
        return _refused_global(error) is not None  # whole, but not to be loaded: that says so
    return True


def _refused_global(error: Exception) -> str | None:
    """What a file would have called on loading."""
    match = re.search(r"(?:GLOBAL|asks for) `?([\w.]+)", str(error))
    return match[1] if match else None


class SafeCheckpointer(DetectionCheckpointer):
    """:class:`DetectionCheckpointer` with atomic, checksummed files.

    What it writes is Detectron2's own format, and Detectron2's checkpointer reads it. What it reads
    (``.pth``, Detectron2's and Caffe2's ``.pkl``, ``.safetensors``) is tensors and plain values: a
    file that would run code on loading is refused.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        """See :meth:`fvcore.common.checkpoint.Checkpointer.save`.

        Raises:
            OSError: the disk is full, or the like; what was there before still is.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: obj.state_dict() for key, obj in self.checkpointables.items()}
        data = {"model": self.model.state_dict(), **states, **kwargs}
        path = Path(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        try:
            with atomic_write(path) as file:
                torch.save(data, file)
        except (OSError, RuntimeError) as error:  # torch's own follows that of the disk
            reason = error if isinstance(error, OSError) else error.__context__ or error
            raise OSError(f"{path} cannot be written: {reason}") from error
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
            return _StrictCheckpointer(self.model, self.save_dir, **self.checkpointables).load(path)
        return self.load(path, checkpointables=[])

    def has_checkpoint(self) -> bool:
        """Whether the folder has anything to go on from, even if the disk lost its name."""
        return super().has_checkpoint() or bool(self._from_last())

    def get_checkpoint_file(self) -> str:
        """What ``last_checkpoint`` names, or else the newest checkpoint of the folder; or ""."""
        return str(next(iter(self._from_last()), ""))

    def last_intact(self) -> str | None:
        """The newest checkpoint that is not damaged, see :meth:`get_checkpoint_file`."""
        for candidate in self._from_last():
            if is_intact(candidate):
                return str(candidate)
            self.logger.warning(f"{candidate} is damaged: going back to the checkpoint before it")
        return None

    def _from_last(self) -> list[Path]:
        """Checkpoints of the folder, the last first; those after it belong to another run."""
        saved = Path(self.save_dir).glob("model_*.pth")
        newest_first = sorted((x for x in saved if x.stem[6:].isdigit()), reverse=True)
        if (final := Path(self.save_dir, "model_final.pth")).exists():
            newest_first.insert(0, final)
        tag = Path(self.save_dir, "last_checkpoint")
        name = tag.read_text(errors="replace").strip("\0 \n") if tag.exists() else ""
        last = Path(self.save_dir, name)
        if name == last.name and "\0" not in name and last.is_file():
            return [last, *(x for x in newest_first if x.name < name)]
        if newest_first:
            self.logger.warning(
                f"{tag} names no checkpoint of its folder: {newest_first[0]} is the newest"
            )
        return newest_first

    def _load_file(self, filename: str) -> dict[str, Any]:
        with refusal_in_one_line(filename):
            if filename.endswith(".pkl"):
                return _from_zoo(read_weights(filename))
            return super()._load_file(filename)

    def _torch_load(self, f: str) -> Any:
        return read_weights(f)


def load_trained_model(cfg: CfgNode) -> nn.Module:
    """The model of ``cfg`` with the weights MODEL.WEIGHTS, or a new one where that is empty.

    Raises:
        ValueError: the checkpoint does not fit. (To Detectron2 that is a warning; here the numbers
            of an untrained head would follow.)
    """
    model = build_model(cfg)
    _StrictCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


class _StrictCheckpointer(SafeCheckpointer):
    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        incompatible = super()._load_model(checkpoint)
        wrong = [*incompatible.missing_keys, *(x[0] for x in incompatible.incorrect_shapes)]
        if wrong:
            raise ValueError(
                f"the checkpoint lacks {len(wrong)} of the model's tensors, or has them in another "
                f"shape, {wrong[0]} for one: MODEL.WEIGHTS and the config don't belong together"
            )
        return incompatible


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
        if name := _refused_global(error):
            reason = (
                f"asks for {name} to be called, and so is not read: weights are arrays and "
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
