"""A config's model with trained weights, all of them."""

from typing import Any

from detectron2.config import CfgNode
from torch import nn

from .checkpoint import SafeCheckpointer
from .setup import UserError
from .trainer import Trainer


def load_trained_model(cfg: CfgNode) -> nn.Module:
    """The model of ``cfg`` with the weights MODEL.WEIGHTS, or a new one where that is empty.

    Raises:
        UserError: the checkpoint does not fit. (To Detectron2 that is a warning; here the numbers
            of an untrained head would follow.)
    """
    model = Trainer.build_model(cfg)
    _StrictCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


class _StrictCheckpointer(SafeCheckpointer):
    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        incompatible = super()._load_model(checkpoint)
        wrong = [*incompatible.missing_keys, *(x[0] for x in incompatible.incorrect_shapes)]
        if wrong:
            raise UserError(
                f"the checkpoint lacks {len(wrong)} of the model's tensors, or has them in another "
                f"shape, {wrong[0]} for one: MODEL.WEIGHTS and the config don't belong together"
            )
        return incompatible
