# COCO/retinanet_R_50_FPN_1x.yaml for Detectron2's lazy tooling: the same model, data and schedule.
#   ./run docs/examples/lazy_train_net.py --num-gpus 8 \
#       --config-file configs/lazy/retinanet_R_50_FPN_1x.py
# Detectron2's zoo: AP 37.4 on coco_2017_val. Ours: not run.
from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from focal_retina import FocalRetinaNet, FocalRetinaNetHead
from focal_retina.evaluation import COCOEvaluator
from focal_retina.losses import EmaNormalizer, FocalLoss
from focal_retina.modeling import AnchorLabeler, DensePostprocessor
from focal_retina.modeling.box_loss import SmoothL1BoxLoss

zoo = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.py")
train, optimizer, lr_multiplier, dataloader = (
    zoo[name] for name in ("train", "optimizer", "lr_multiplier", "dataloader")
)
dataloader.evaluator._target_ = COCOEvaluator

# Backbone, anchors and pixel statistics are the zoo's.
model = L(FocalRetinaNet)(
    backbone=zoo.model.backbone,
    head=zoo.model.head,
    head_in_features=zoo.model.head_in_features,
    anchor_generator=zoo.model.anchor_generator,
    anchor_labeler=L(AnchorLabeler)(
        num_classes="${..num_classes}",
        iou_thresholds=[0.4, 0.5],
        iou_labels=[0, -1, 1],
        promotion="any",
    ),
    cls_loss=L(FocalLoss)(alpha=0.25, gamma=2.0),
    box_loss=L(SmoothL1BoxLoss)(box2box_transform=zoo.model.box2box_transform, beta=0.0),
    loss_normalizer=L(EmaNormalizer)(initial=100.0, momentum=0.9),
    postprocessor=L(DensePostprocessor)(
        box2box_transform=zoo.model.box2box_transform,
        score_thresh=0.05,
        topk_candidates=1000,
        nms_thresh=0.5,
        max_detections=100,
    ),
    num_classes=zoo.model.num_classes,
    pixel_mean=zoo.model.pixel_mean,
    pixel_std=zoo.model.pixel_std,
)
model.head._target_ = FocalRetinaNetHead
