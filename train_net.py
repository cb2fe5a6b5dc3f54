"""Train and evaluate, with Detectron2's command line: see focal_retina/commands/train.py."""

import sys

from focal_retina.commands import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]], prog="train_net.py"))
