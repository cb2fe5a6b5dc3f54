"""Checkpoints that survive a kill at any moment, and are read without executing code."""

import logging
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

from ..config_file import with_values
from ..data.classes import model_classes
from ..files import atomic_write
from ..modeling import FocalRetinaNet
from ..weight_reader import RefusedError, check_named_tensors, read_weights

_logger = logging.getLogger(__name__)
_NONE = "none yet"  # in the place of the last checkpoint's name


def is_intact(path: str | os.PathLike) -> bool:
    """Whether a ``.pth`` file is complete and every part of it, tensor or pickle, has the CRC-32
    that ``torch.save`` writes and ``torch.load`` does not look at."""
    try:
        with zipfile.ZipFile(path) as archive:
            # torch does not read what has the attribute of a folder, and takes it for read.
            if archive.testzip() is not None or any(x.external_attr for x in archive.infolist()):
                return False
        read_weights(path, mmap=True)  # its table of contents, too, has to be right
    except RefusedError:
        return True  # whole, but not to be loaded: that says so
    except Exception:  # by what is damaged, nearly any
        return False
    return True


class SafeCheckpointer(DetectionCheckpointer):
    """:class:`DetectionCheckpointer` with atomic, checksummed files in its format. What it reads
    (``.pth``, Detectron2's and Caffe2's ``.pkl``, ``.safetensors``) is tensors and plain values: a
    file that would run code on loading is refused."""

    is_strict = False  # whether the checkpoint has to hold the whole model; so at resume
    num_kept = 0  # numbered checkpoints that stay, the last intact ones; 0 or less: all

    def save(self, name: str, **kwargs: Any) -> None:
        """Detectron2's; at an OSError (the disk is full) what was there before still is."""
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
        if name == "model_best":
            return  # it is older than the last: no training goes on from it
        self.tag_last_checkpoint(path.name)
        if self.num_kept > 0:
            self._remove_old()

    def _remove_old(self) -> None:
        # fvcore's max_to_keep forgets the files at resume, and takes damaged ones for good.
        num_intact = 0
        for path in self._from_last():
            if num_intact >= self.num_kept:
                path.unlink()
            elif path.name != "model_final.pth":
                num_intact += is_intact(path)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_write(Path(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the last checkpoint that is intact with everything in it; where there is none, or
        without ``resume``, the weights of ``path``: a file, a URL or "". Returns what was in the
        file and has not been loaded. ValueError: there are checkpoints, and none is intact."""
        if resume and self.has_checkpoint():
            # One process chooses, as another may see the folder a moment later.
            choice = self.last_intact() if comm.is_main_process() else None
            path = comm.all_gather(choice)[0]
            if not path:
                raise ValueError(
                    f"--resume: no checkpoint in {self.save_dir} is intact; start anew without it"
                )
            self.is_strict = True
            return self.load(path)
        return self.load(path, checkpointables=[]) if path else {}

    def has_checkpoint(self) -> bool:
        """Whether the folder has anything to go on from, even if the disk lost its name."""
        return self._last_name() != _NONE and (super().has_checkpoint() or bool(self._from_last()))

    def start_anew(self) -> None:
        """Nothing goes on from the checkpoints of an earlier training in the folder, whose
        model_final.pth is renamed: it would be taken for this training's."""
        if not self.has_checkpoint():
            return
        if (final := Path(self.save_dir, "model_final.pth")).exists():
            final.replace(final.with_name("model_final_before.pth"))
            self.logger.info(f"{final}, of a training before, is model_final_before.pth now")
        self.tag_last_checkpoint(_NONE)

    def last_intact(self) -> str | None:
        """The newest checkpoint that is not damaged, from that of ``last_checkpoint`` backwards."""
        for candidate in self._from_last():
            if is_intact(candidate):
                return str(candidate)
            _logger.warning(f"{candidate} is damaged: going back to the checkpoint before it")
        return None

    def _from_last(self) -> list[Path]:
        """Checkpoints of the folder, the last first; those after it belong to another run."""
        files = Path(self.save_dir).glob("model_*.pth")
        saved = [x for x in files if x.stem[6:].isdigit() or x.stem == "model_final"]
        newest_first = sorted(saved, reverse=True)  # letters come behind digits
        name = self._last_name()
        if name == _NONE:
            return []
        last = Path(self.save_dir, name)
        if name == last.name and "\0" not in name and last.is_file():
            return [last, *(x for x in newest_first if x.name < name)]
        if newest_first:
            what = f"{self.save_dir}/last_checkpoint names no checkpoint of its folder"
            _logger.warning(f"{what}: taking {newest_first[0]}")
        return newest_first

    def _last_name(self) -> str:
        tag = Path(self.save_dir, "last_checkpoint")
        return tag.read_text(errors="replace").strip("\0 \n") if tag.exists() else ""

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        incompatible = super()._load_model(checkpoint)
        shapes = {name: (theirs, ours) for name, theirs, ours in incompatible.incorrect_shapes}
        if not (wrong := [*incompatible.missing_keys, *shapes]):
            return incompatible
        if not self.is_strict:
            what = f"{len(wrong)} of the model's {len(self.model.state_dict())} tensors"
            names = f"{', '.join(wrong[:3])}{' …' if len(wrong) > 3 else ''}"
            _logger.info(f"{what} start anew, as the checkpoint has none of that shape: {names}")
            return incompatible
        theirs, ours = shapes.get("head.cls_score.bias", ((0,), (1,)))
        count = getattr(self.model, "num_classes", 0) * theirs[0] / ours[0]
        if all(x.startswith("head.cls_score.") for x in wrong) and count == int(count):
            raise ValueError(
                f"the checkpoint has {int(count)} classes and the config {self.model.num_classes}: "
                f"set MODEL.RETINANET.NUM_CLASSES {int(count)}"
            )
        raise ValueError(
            f"the checkpoint is of another architecture, {len(wrong)} tensors lack or have another "
            f"shape ({wrong[0]} …): MODEL.WEIGHTS and the config don't belong together"
        )

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
    """The model of ``cfg`` with the weights MODEL.WEIGHTS. Its ``class_names`` are a list, or None
    where they are not known. ValueError: there are no weights, or they do not fit. (To Detectron2
    that is a warning; here the numbers of an untrained head would follow.)"""
    from_file_alone = {"MODEL.FOCAL_RETINA.EFFICIENTNET_LITE.PRETRAINED": False}
    model = build_model(with_values(cfg, from_file_alone))
    checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR)
    checkpointer.is_strict = True
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS is empty: name a checkpoint")
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
    _logger.info("weights: %s", cfg.MODEL.WEIGHTS)
    classes = model_classes(cfg)
    model.class_names = classes.names if classes else None
    return model


def load_detector(cfg: CfgNode) -> FocalRetinaNet:
    """:func:`load_trained_model`, in evaluation mode; ValueError for another kind of model, too."""
    model = load_trained_model(cfg)
    if not isinstance(model, FocalRetinaNet):
        advice = "set it to FocalRetinaNet, which loads the checkpoints of RetinaNet, too"
        raise ValueError(f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}: {advice}")
    return model.eval()


def _from_zoo(data: dict[str, Any]) -> dict[str, Any]:
    """Detectron2's zoo format as it is; Caffe2's (Detectron, ImageNet) with what it needs."""
    if "model" in data and "__author__" in data:
        return data
    blobs = data.get("blobs", data)
    if isinstance(blobs, dict):
        blobs = {key: x for key, x in blobs.items() if not str(key).endswith("_momentum")}
    return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}
