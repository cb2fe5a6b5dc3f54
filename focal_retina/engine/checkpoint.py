"""Checkpoints that survive a kill at any moment, and are read without executing code."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn

from ..files import atomic_write
from ..weight_reader import RefusedError, check_named_tensors, read_weights


def is_intact(path: str | os.PathLike) -> bool:
    """Whether a ``.pth`` file is complete and every part of it has its checksum.

    ``torch.save`` writes a zip archive with a CRC-32 of each tensor and of the pickle, at which
    ``torch.load`` does not look.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return False
        read_weights(path, mmap=True)  # its table of contents, too, has to be right
    except RefusedError:
        return True  # whole, but not to be loaded: that says so
    except Exception:  # by what is damaged, nearly any
        return False
    return True


class SafeCheckpointer(DetectionCheckpointer):
    """:class:`DetectionCheckpointer` with atomic, checksummed files.

    What it writes is Detectron2's own format, and Detectron2's checkpointer reads it. What it reads
    (``.pth``, Detectron2's and Caffe2's ``.pkl``, ``.safetensors``) is tensors and plain values: a
    file that would run code on loading is refused.
    """

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
        return self.load(path, checkpointables=[])

    def last_intact(self) -> str | None:
        """The file that ``last_checkpoint`` names, or the newest before it that is not damaged."""
        last = Path(self.get_checkpoint_file())
        numbered = Path(self.save_dir).glob("model_[0-9]*.pth")  # "model_final" sorts after them
        older = sorted((x for x in numbered if x.name < last.name), reverse=True)
        for candidate in [last, *older]:
            if is_intact(candidate):
                return str(candidate)
            self.logger.warning(
                f"{candidate} is damaged or missing: going back to the checkpoint before it"
            )
        return None

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            data = _from_zoo(read_weights(filename))
        else:
            if filename.endswith(".pyth"):  # which Detectron2 reads by torch's safe loader
                read_weights(filename)
            data = super()._load_file(filename)
        check_named_tensors(filename, data["model"])
        return data

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


def _from_zoo(data: dict[str, Any]) -> dict[str, Any]:
    """Detectron2's zoo format as it is; Caffe2's (Detectron, ImageNet) with what it needs."""
    if "model" in data and "__author__" in data:
        return data
    blobs = data.get("blobs", data)
    if isinstance(blobs, dict):
        blobs = {key: x for key, x in blobs.items() if not str(key).endswith("_momentum")}
    return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}
