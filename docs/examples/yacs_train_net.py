"""A train_net of one's own, with yacs and Detectron2's DefaultTrainer.

./run docs/examples/yacs_train_net.py --config-file my_config.yaml SOLVER.BASE_LR 0.0025

The two marked lines are all that a train_net needs for focal_retina.
"""

import os
import sys

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import COCOEvaluator

from focal_retina import add_focal_retina_config  # 1: registers FocalRetinaNet


class MyTrainer(DefaultTrainer):
    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return COCOEvaluator(dataset_name, output_dir=os.path.join(cfg.OUTPUT_DIR, "inference"))


def parse_args():
    return default_argument_parser(epilog=__doc__).parse_args()


def setup(args):
    cfg = get_cfg()
    add_focal_retina_config(cfg)  # 2: the keys under MODEL.FOCAL_RETINA
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def main(args):
    cfg = setup(args)
    if args.eval_only:
        model = MyTrainer.build_model(cfg)
        DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        return MyTrainer.test(cfg, model)
    trainer = MyTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def run(args):
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


if __name__ == "__main__":
    sys.exit(run(parse_args()))
