"""The two subnets of RetinaNet: feature maps in, class logits and box deltas out."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from fvcore.common.registry import Registry
from torch import Tensor, nn

from ..config import check_choice
from .patches import run_on_patches

DENSE_HEAD_REGISTRY = Registry("DENSE_HEAD")
DENSE_HEAD_REGISTRY.__doc__ = """
Registry of dense heads. A head is built as ``head(cfg, input_shape: list[ShapeSpec])`` and called
with the list of feature maps, high resolution first. It returns per-level logits (N, A x K, H, W)
and box deltas (N, A x 4, H, W). It derives from :class:`DenseHead`.
"""


class DenseHead(nn.Module):
    """Base of dense heads; a subclass fills ``forward``."""

    def predict_positives(
        self, features: list[Tensor], image_idxs: Tensor, anchor_idxs: Tensor, groups: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Per level logits (N, A x K, H, W), but box deltas (P, 4) of P anchors alone: only
        positives have a box loss.

        Args:
            features: per level (N, C, H, W).
            image_idxs, anchor_idxs: (P,) int64, anchors counted over all levels of an image.
            groups: (P,) int64, such as each anchor's object: anchors of one image, level and group
                are likely to be neighbours.
        """
        logits, deltas = self(features)
        dense_deltas = torch.cat([permute_to_N_HWA_K(x, 4) for x in deltas], dim=1)
        return logits, dense_deltas[image_idxs, anchor_idxs]


def build_dense_head(cfg: CfgNode, input_shape: list[ShapeSpec]) -> DenseHead:
    """Build the head that ``MODEL.FOCAL_RETINA.HEAD.NAME`` names; ValueError if there is none."""
    name = cfg.MODEL.FOCAL_RETINA.HEAD.NAME
    check_choice("MODEL.FOCAL_RETINA.HEAD.NAME", name, sorted(dict(DENSE_HEAD_REGISTRY)))
    return DENSE_HEAD_REGISTRY.get(name)(cfg, input_shape)


@DENSE_HEAD_REGISTRY.register()
class FocalRetinaNetHead(DenseHead, RetinaNetHead):
    """Detectron2's RetinaNet head (same layers, names and initial values) with an optional prior:
    paper section 4."""

    cls_subnet: nn.Sequential
    bbox_subnet: nn.Sequential
    cls_score: nn.Conv2d
    bbox_pred: nn.Conv2d

    @configurable
    def __init__(
        self,
        *,
        input_shape: list[ShapeSpec],
        num_classes: int,
        num_anchors: int,
        conv_dims: list[int],
        norm: str = "",
        prior_prob: float | None = 0.01,
    ):
        """
        Args:
            input_shape: of each level.
            num_classes: K.
            num_anchors: A, at each position, the same on every level.
            conv_dims: output channels of each 3x3 convolution of a subnet.
            norm: normalization after those convolutions, see :func:`detectron2.layers.get_norm`.
            prior_prob: the initial score of every anchor (paper section 3.3); None is a
                classification bias of 0, which means a score of 0.5.
        """
        if prior_prob is not None and not 0 < prior_prob < 1:
            raise ValueError(
                f"prior_prob {prior_prob} (MODEL.RETINANET.PRIOR_PROB) is not within (0, 1)"
            )
        super().__init__(
            input_shape=input_shape,
            num_classes=num_classes,
            num_anchors=num_anchors,
            conv_dims=conv_dims,
            norm=norm,
            prior_prob=0.5 if prior_prob is None else prior_prob,  # logit(0.5) = 0
        )
        self.num_anchors = num_anchors

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        arguments = super().from_config(cfg, input_shape)
        if not cfg.MODEL.FOCAL_RETINA.HEAD.PRIOR_INIT:
            arguments["prior_prob"] = None
        return arguments

    def predict_positives(
        self, features: list[Tensor], image_idxs: Tensor, anchor_idxs: Tensor, groups: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """See :meth:`DenseHead.predict_positives`. The box subnet runs on the positives' receptive
        fields alone, except with a normalization layer or with many positives."""
        layers, cell_idxs = [*self.bbox_subnet, self.bbox_pred], anchor_idxs // self.num_anchors
        is_own = type(self).forward is RetinaNetHead.forward  # else a subclass computes more
        arguments = layers, features, image_idxs, cell_idxs, groups
        deltas = run_on_patches(*arguments) if is_own else None
        if deltas is None:
            return super().predict_positives(features, image_idxs, anchor_idxs, groups)
        anchor_of_cell = (anchor_idxs % self.num_anchors)[:, None, None].expand(-1, 1, 4)
        deltas = deltas.unflatten(1, (self.num_anchors, 4)).gather(1, anchor_of_cell)[:, 0]
        return [self.cls_score(self.cls_subnet(x)) for x in features], deltas
