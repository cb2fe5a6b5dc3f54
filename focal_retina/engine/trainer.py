"""Detectron2's default trainer, on CPU and in bf16 too, with COCO evaluation."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer, TrainerBase, create_ddp_model
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from ..data import CrowdKeepingMapper
from ..evaluation import build_evaluator
from .optimizer import build_optimizer
from .precision import build_step_trainer

__all__ = ["Trainer"]


class Trainer(DefaultTrainer):
    """:class:`DefaultTrainer` with the step of ``MODEL.FOCAL_RETINA.PRECISION`` and several
    processes on CPU.

    Detectron2's constructor fixes both the step trainer and the ``device_ids`` of
    DistributedDataParallel, so this one stands in for it; everything else is inherited.
    """

    def __init__(self, cfg: CfgNode):
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        on_cpu = cfg.MODEL.DEVICE == "cpu"

        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        device_ids = None if on_cpu else [comm.get_local_rank()]
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=device_ids)
        self._trainer = build_step_trainer(cfg, model, data_loader, optimizer)

        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DetectionCheckpointer(
            model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = super().build_model(cfg)
        if cfg.SOLVER.AMP.ENABLED:
            # The layout that fast low-precision convolutions want; the dense outputs are then
            # views, not copies.
            model.to(memory_format=torch.channels_last)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict]]:
        keeps_crowds = cfg.MODEL.FOCAL_RETINA.LABELING.CROWD_IOA_THRESH is not None
        # None is Detectron2's own mapper
        return build_detection_train_loader(
            cfg, mapper=CrowdKeepingMapper(cfg, is_train=True) if keeps_crowds else None
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(
            dataset_name, os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        )
