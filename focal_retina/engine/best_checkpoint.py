"""The best weights so far, and an early end of a training that finds no better ones."""

import logging
from typing import Any

from detectron2.engine import hooks
from detectron2.utils import comm

_logger = logging.getLogger(__name__)


class BestCheckpoint(hooks.BestCheckpointer):
    """Detectron2's ``model_best.pth``, its state in the checkpoint and the same in every process.
    The best value so far is a metric, too, whose name is ``best/`` and the metric's."""

    def _best_checking(self) -> None:
        storage, metric = self.trainer.storage, self._val_metric
        latest = comm.all_gather(storage.latest())[0]  # only the main process has the metrics
        if metric not in latest:
            names = ", ".join(name for name in latest if "bbox" in name) or "none"
            raise ValueError(f"TEST.KEEP_BEST {metric} is not evaluated, in contrast to {names}")
        value, iteration = latest[metric]
        if not comm.is_main_process():
            storage.put_scalar(metric, value, smoothing_hint=False, cur_iter=iteration)
        super()._best_checking()
        if self.best_iter is not None:
            storage.put_scalar(f"best/{metric}", self.best_metric, smoothing_hint=False)
            # The last evaluation comes after the last iteration, and counts as one more.
            number = min(self.best_iter + 1, self.trainer.max_iter)
            best = f"{self.best_metric:.2f} after {number} iterations"
            _logger.info(f"{metric} is {value:.2f}, the best {best}: model_best.pth")

    def num_worse(self) -> int:
        """Evaluations since the best, 0 between two of them."""
        number, rest = divmod(self.trainer.iter + 1, self._period)
        best_iter = -1 if self.best_iter is None else self.best_iter
        return 0 if rest else number - (best_iter + 1) // self._period

    def state_dict(self) -> dict[str, Any]:
        return {self._val_metric: (self.best_metric, self.best_iter)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_metric, self.best_iter = state.get(self._val_metric, (None, None))


class OutOfPatience(BaseException):
    """Ends the loop of Detectron2's trainer, which logs an Exception as an error."""


class Patience(hooks.HookBase):
    """The last hook, in every process: after ``patience`` evaluations without a better one the
    training ends as after its last iteration, but that its ``evaluation`` is done already. Like
    any checkpoint the last one has the random states of before the evaluation."""

    def __init__(self, patience: int, best: BestCheckpoint, evaluation: hooks.EvalHook):
        self._patience, self._best, self._evaluation = patience, best, evaluation

    def after_step(self) -> None:
        """:class:`OutOfPatience` where it is."""
        trainer, best = self.trainer, self._best
        if trainer.iter + 1 >= trainer.max_iter or best.num_worse() < self._patience:
            return
        trainer.checkpointer.save("model_final", iteration=trainer.iter)
        why = f"as TEST.PATIENCE {self._patience} is over"
        _logger.info(f"the training is finished after {trainer.iter + 1} iterations, {why}")
        trainer._hooks[:] = [x for x in trainer._hooks if x not in (best, self._evaluation)]
        trainer.iter += 1
        trainer.max_iter = trainer.iter
        raise OutOfPatience
