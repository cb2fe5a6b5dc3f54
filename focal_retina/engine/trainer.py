"""Detectron2's default trainer: on CPU and in bf16 too, exactly resumed, with COCO evaluation."""

import logging
import weakref
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import AMPTrainer, DefaultTrainer, TrainerBase, create_ddp_model
from detectron2.engine.hooks import EvalHook, HookBase, IterationTimer, LRScheduler, PreciseBN
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, verify_results
from detectron2.modeling import DatasetMapperTTA
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .. import data
from ..config import check_choice
from ..config_file import with_values
from ..data.classes import index_in_dataset, training_classes
from ..dataset_check import build_record_filter
from ..evaluation import ClassSelector, ValidationLoss, build_evaluator
from ..modeling import FocalRetinaNet
from ..modeling.inference import compile_network
from ..modeling.test_time_augmentation import DenseDetectorWithTTA
from . import hooks, precision
from .checkpoint import SafeCheckpointer
from .console import ProgressPrinter, UserError
from .launch_and_interrupt import Interrupted, StopRequest
from .nonfinite import NonFiniteGuard
from .resume import check_groups, check_settings, restore_solver, settings_of
from .training_pictures import TrainingPictures

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """:class:`DefaultTrainer` with the step of ``MODEL.FOCAL_RETINA.PRECISION``, several processes
    on CPU, and runs that go on after an interruption as if there had been none.

    An iteration is the step, the checkpoint if one is due, then evaluation and writers. What
    follows the checkpoint is done again at resume. So a resumed run has the losses, weights,
    evaluations and metrics of an uninterrupted one (bit for bit on CPU with as many threads).
    """

    WRITER_PERIOD = 20  # iterations between two lines of metrics.json

    def __init__(self, cfg: CfgNode):
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        cfg = precision.resolve_precision(cfg)
        arithmetic = precision.precision_of(cfg)
        logger.info(
            f"{cfg.MODEL.META_ARCHITECTURE}, {cfg.SOLVER.MAX_ITER} iterations of "
            f"{cfg.SOLVER.IMS_PER_BATCH} images, trained on {', '.join(cfg.DATASETS.TRAIN)}, "
            f"evaluated on {', '.join(cfg.DATASETS.TEST) or 'nothing'}"
        )

        model = self.build_model(cfg)
        precision.prepare_for_training(model, precision=arithmetic, device=cfg.MODEL.DEVICE)
        device_ids = None if cfg.MODEL.DEVICE == "cpu" else [comm.get_local_rank()]
        # First, as it gives all processes the same weights, which the average begins with
        parallel = create_ddp_model(model, broadcast_buffers=False, device_ids=device_ids)
        self._average = hooks.WeightAverage(model, cfg.MODEL.FOCAL_RETINA.EMA_DECAY)
        self.evaluated = self._average.evaluated
        folder, period = Path(cfg.OUTPUT_DIR), cfg.MODEL.FOCAL_RETINA.GRADIENT_CHECK_PERIOD
        self._guard = NonFiniteGuard(model, cfg.dump(), folder / "nonfinite", period)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        self._settings = settings_of(cfg, getattr(data_loader, "num_images", None))
        self._trainer = precision.STEP_TRAINERS[arithmetic](parallel, data_loader, optimizer)
        self._trainer.register_hooks([self._guard])

        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        state = {"trainer": weakref.proxy(self)}
        self.checkpointer = SafeCheckpointer(self.evaluated, cfg.OUTPUT_DIR, **state)
        self.checkpointer.num_kept = cfg.SOLVER.CHECKPOINTS_KEPT
        self.start_iter, self.max_iter, self.cfg = 0, cfg.SOLVER.MAX_ITER, cfg
        self.interrupted_by: int | None = None  # the signal that ended the training early
        self._stop = StopRequest()
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = super().build_model(cfg)
        classes = training_classes(cfg)
        model.class_names = classes.names if classes else None
        if cfg.MODEL.FOCAL_RETINA.COMPILE:
            compile_network(model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """SGD or AdamW, by ``MODEL.FOCAL_RETINA.OPTIMIZER``, with the values of ``SOLVER`` and
        Detectron2's parameter groups and gradient clipping."""
        # One pass over memory instead of one for each operation: 2.7 times as fast on a CPU. Not
        # with clipping: a loss scaler leaves the unscaling to a fused step, which comes after it.
        fast = "foreach" if cfg.SOLVER.CLIP_GRADIENTS.ENABLED else "fused"
        values = {"momentum": cfg.SOLVER.MOMENTUM, "nesterov": cfg.SOLVER.NESTEROV, fast: True}
        sgd: Any = partial(torch.optim.SGD, **values)
        optimizers = {"SGD": sgd, "AdamW": torch.optim.AdamW}
        name = cfg.MODEL.FOCAL_RETINA.OPTIMIZER
        check_choice("MODEL.FOCAL_RETINA.OPTIMIZER", name, optimizers)
        stock = super().build_optimizer(cfg, model).param_groups
        groups = [{key: x[key] for key in ("params", "lr", "weight_decay")} for x in stock]
        return maybe_add_gradient_clipping(cfg, optimizers[name](groups))

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict]]:
        mapper = data.build_corrupt_image_guard(cfg, data.build_train_mapper(cfg))
        return data.build_train_loader(cfg, mapper, filter_records=build_record_filter(cfg))

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """Detectron2's; a dense detector is evaluated as a copy in
        ``MODEL.FOCAL_RETINA.INFERENCE_PRECISION``, its batch normalization folded. A set without
        some of the model's ``class_names`` is evaluated on those that it has."""
        if isinstance(model, DistributedDataParallel):
            model = model.module
        if isinstance(model, DenseDetector):
            model = precision.build_inference_copy(cfg, model)
        if evaluators is None:
            evaluators = [cls._build_evaluators(cfg, model, x) for x in cfg.DATASETS.TEST]
        return super().test(cfg, model, evaluators)

    @classmethod
    def _build_evaluators(cls, cfg: CfgNode, model: nn.Module, name: str) -> DatasetEvaluators:
        class_names = getattr(model, "class_names", None)
        indices = index_in_dataset(class_names, name) if class_names else None
        evaluator = cls.build_evaluator(cfg, name)
        evaluators = [ClassSelector(evaluator, indices) if indices else evaluator]
        if cfg.TEST.LOSS and isinstance(model, FocalRetinaNet):
            evaluators.append(ValidationLoss(model, name, indices))
        return DatasetEvaluators(evaluators)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """:meth:`test` with the augmentations of ``TEST.AUG``; its results' names end in _TTA."""
        with_tta: Any = DenseDetectorWithTTA(model, DatasetMapperTTA(cfg))
        with_tta.model = precision.build_inference_copy(cfg, with_tta.model)
        with_tta.class_names = getattr(with_tta.model, "class_names", None)
        cfg = with_values(cfg, {"OUTPUT_DIR": str(Path(cfg.OUTPUT_DIR, "TTA"))})
        results = cls.test(cfg, with_tta)
        return {f"{name}_TTA": metrics for name, metrics in results.items()}

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict]]:
        mapper = data.build_test_mapper(cfg)
        loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper)
        loader.worker_init_fn = data.prepare_data_worker
        return loader

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        folder = Path(cfg.OUTPUT_DIR, "inference", dataset_name)
        limit = cfg.TEST.DETECTIONS_PER_IMAGE
        return build_evaluator(dataset_name, str(folder), max_dets=limit)

    def build_writers(self) -> list[EventWriter]:
        """Detectron2's: progress on the console, metrics.json, TensorBoard."""
        _, *files = super().build_writers()
        return [ProgressPrinter(self.max_iter), *files]

    def build_hooks(self) -> list[HookBase | None]:
        """Detectron2's hooks in its order, see the class."""
        cfg, model, is_main = self.cfg, self._average.model, comm.is_main_process()
        pictures = None
        if cfg.VIS_PERIOD > 0 and isinstance(model, FocalRetinaNet) and is_main:
            pictures = TrainingPictures(model, period=cfg.VIS_PERIOD, input_format=cfg.INPUT.FORMAT)
        writers = self.build_writers() if is_main else []
        self._metrics_writer = hooks.MetricsWriter(writers, self.WRITER_PERIOD)
        period = cfg.SOLVER.CHECKPOINT_PERIOD
        self._checkpoint_hook = hooks.CheckpointHook(self.checkpointer, period, self._stop)
        evaluation = EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate)
        best = hooks.BestCheckpoint(cfg.TEST.EVAL_PERIOD, self.checkpointer, cfg.TEST.KEEP_BEST)
        patience = cfg.TEST.PATIENCE
        with_tta = partial(self.test_with_TTA, cfg, self.evaluated)
        precise_bn = cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(model)
        return [
            self._average,
            IterationTimer(),
            hooks.FirstEstimate(),
            LRScheduler(),
            self._build_precise_bn() if precise_bn else None,
            self._checkpoint_hook,
            evaluation,
            best if cfg.TEST.KEEP_BEST else None,
            EvalHook(0, with_tta) if cfg.TEST.AUG.ENABLED else None,
            pictures,
            self._metrics_writer,
            hooks.Patience(patience, best, evaluation) if patience else None,
        ]

    def _build_precise_bn(self) -> PreciseBN:
        logger.warning("TEST.PRECISE_BN draws its images from the first on after each resume")
        cfg = with_values(self.cfg, {"DATALOADER.NUM_WORKERS": 0})  # it is idle most of the time
        loader = self.build_train_loader(cfg)
        count = cfg.TEST.PRECISE_BN.NUM_ITER
        return PreciseBN(cfg.TEST.EVAL_PERIOD, self.evaluated, loader, count)

    def _evaluate(self) -> dict[str, Any]:
        self._checkpoint_hook.gather_rng_states()
        self._average.share_buffers()
        try:
            with self._stop.evaluation():
                self._last_eval_results = self.test(self.cfg, self.evaluated)
        except Interrupted:
            self._checkpoint_hook.save_unless_due()
            raise
        return self._last_eval_results

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last intact checkpoint in ``OUTPUT_DIR``, or load ``MODEL.WEIGHTS``: a
        ValueError for a file that is damaged or would run code."""
        super().resume_or_load(resume)
        if self.start_iter > 0:
            logger.info(f"goes on at iteration {self.start_iter}, from {self.cfg.OUTPUT_DIR}")
            if isinstance(self.data_loader, data.TrainLoader):
                self.data_loader.start_iter = self.start_iter
            return
        logger.info(f"weights: {self.cfg.MODEL.WEIGHTS or 'none'}")
        if resume:
            logger.warning(f"no checkpoint is in {self.cfg.OUTPUT_DIR}: the training starts anew")
            # Drop what a run that was killed before its first checkpoint has written.
            self._metrics_writer.load_state_dict({"scalars": {}, "last_write": -1})

    def train(self) -> dict[str, Any] | None:
        """Detectron2's, to the end or to the first SIGTERM or Ctrl-C: see ``interrupted_by``."""
        with self._stop.listen():
            try:
                TrainerBase.train(self, self.start_iter, self.max_iter)
            except Interrupted as interruption:
                self.interrupted_by = interruption.signum
            finally:
                self._trainer._data_loader_iter_obj = None  # ends the data workers
        if self.interrupted_by is not None:
            return None
        if comm.is_main_process():
            self.verify(self.cfg, self._last_eval_results)
        return self._last_eval_results

    @staticmethod
    def verify(cfg: CfgNode, results: dict[str, Any]) -> None:
        """Exit with status 1 where the results are not TEST.EXPECTED_RESULTS."""
        if missing := {task for task, *_ in cfg.TEST.EXPECTED_RESULTS} - results.keys():
            raise UserError(f"TEST.EXPECTED_RESULTS has {missing}, and the results {list(results)}")
        verify_results(cfg, results)

    def before_train(self) -> None:
        super().before_train()
        if self.start_iter > 0:
            self.iter = self.storage.iter = self.start_iter - 1
            if self.start_iter >= self.max_iter:  # a kill may have come before model_final.pth
                self._checkpoint_hook.step(self.iter)
            for hook in self._hooks[self._hooks.index(self._checkpoint_hook) + 1 :]:
                hook.after_step()

    def after_train(self) -> None:
        if self.iter < self.max_iter:
            # Failed or stopped. In the last iteration, too, where the hook would evaluate.
            evaluation = (EvalHook, hooks.BestCheckpoint)
            self._hooks[:] = [x for x in self._hooks if not isinstance(x, evaluation)]
            super().after_train()
        else:
            with self._stop.evaluation():
                super().after_train()

    def read_gpu(self) -> None:
        """Wait for what checkpoints and writers need, and for the last look at the gradients."""
        self._guard.look()
        if isinstance(self._trainer, precision.StepTrainer):
            self._trainer.write_metrics_now()

    def state_dict(self) -> dict[str, Any]:
        state = {**super().state_dict(), "settings": self._settings}
        if isinstance(self.data_loader, data.TrainLoader):
            state["data_loader"] = {"seed": self.data_loader.seed}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint, with this config: see :func:`check_settings`."""
        # A checkpoint of Detectron2 has no settings, random states and seed.
        check_settings(state_dict.get("settings", {}), self._settings)
        solver = [{**group} for group in self.optimizer.param_groups]
        check_groups(state_dict["_trainer"]["optimizer"]["param_groups"], self.optimizer)
        if isinstance(self._trainer, AMPTrainer):  # which another precision has begun, maybe
            state_dict["_trainer"].setdefault("grad_scaler", self._trainer.grad_scaler.state_dict())
        super().load_state_dict(state_dict)
        restore_solver(solver, self.optimizer, self.scheduler)
        if "data_loader" in state_dict and isinstance(self.data_loader, data.TrainLoader):
            self.data_loader.seed = state_dict["data_loader"]["seed"]
