"""Only the head, in another model: Detectron2's RetinaNet, started without the prior.

./run train_net.py --import docs/examples/head_in_own_model.py --config-file my_config.yaml \\
    MODEL.META_ARCHITECTURE RetinaNetWithoutPrior
"""

from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet

from focal_retina import FocalRetinaNetHead


@META_ARCH_REGISTRY.register()
class RetinaNetWithoutPrior(RetinaNet):
    @classmethod
    def from_config(cls, cfg):
        arguments = super().from_config(cfg)
        shapes = arguments["backbone"].output_shape()
        input_shape = [shapes[name] for name in arguments["head_in_features"]]
        (num_anchors,) = set(arguments["anchor_generator"].num_cell_anchors)
        arguments["head"] = FocalRetinaNetHead(
            input_shape=input_shape,
            num_classes=arguments["num_classes"],
            num_anchors=num_anchors,
            conv_dims=[input_shape[0].channels] * cfg.MODEL.RETINANET.NUM_CONVS,
            prior_prob=None,
        )
        return arguments
