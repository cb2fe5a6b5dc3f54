"""CE and α-CE (paper section 3.1, Table 1a)."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from .base import KernelLoss
from .kernels import Focal
from .registry import CLS_LOSS_REGISTRY


@CLS_LOSS_REGISTRY.register()
class CrossEntropy(KernelLoss):
    """-α_t·log p_t, the binary cross-entropy of every anchor and class.

    From a config, α is ``MODEL.RETINANET.FOCAL_LOSS_ALPHA``, whose default is .25: set it to -1
    for CE without weights.
    """

    def __init__(self, *, alpha: float | Sequence[float] = -1.0, kernel: str = "auto"):
        """
        Args:
            alpha, kernel: see :class:`KernelLoss`.
        """
        super().__init__(formula=Focal(gamma=0.0), alpha=alpha, kernel=kernel)

    def elementwise(self, x_t: Tensor) -> Tensor:
        return -F.logsigmoid(x_t)
