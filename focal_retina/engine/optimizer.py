"""Detectron2's SGD, or AdamW, over Detectron2's parameter groups and gradient clipping."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

__all__ = ["build_optimizer"]


def _build_adamw(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    groups = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    adamw = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    return adamw(groups, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)


_OPTIMIZERS = {"SGD": build_sgd, "AdamW": _build_adamw}


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build what ``MODEL.FOCAL_RETINA.OPTIMIZER`` names, with the values under ``SOLVER``.

    Raises:
        ValueError: there is no optimizer of that name.
    """
    name = cfg.MODEL.FOCAL_RETINA.OPTIMIZER
    if name not in _OPTIMIZERS:
        known = ", ".join(_OPTIMIZERS)
        raise ValueError(f"MODEL.FOCAL_RETINA.OPTIMIZER is {name!r}; it can be {known}")
    return _OPTIMIZERS[name](cfg, model)
