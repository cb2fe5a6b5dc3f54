"""``torch.compile`` of the network: backbone and subnets, not labeling, losses or NMS."""

import os
import shutil

from detectron2.modeling.meta_arch.dense_detector import DenseDetector


def compile_network(model: DenseDetector, *, backend: str = "inductor") -> None:
    """Compile backbone and subnets at their first call, in place: the state dict keeps its keys.

    Each new image size is compiled anew, once; then sizes are taken as variables.

    Raises:
        RuntimeError: on a CPU inductor needs a C++ compiler, and there is none.
    """
    if backend == "inductor" and model.device.type == "cpu":
        compilers = [os.environ.get("CXX", "g++"), "clang++"]
        if not any(map(shutil.which, compilers)):
            raise RuntimeError(
                f"torch.compile on a CPU needs a C++ compiler, and {' and '.join(compilers)} are "
                "not on the PATH: install one, name it in CXX, or set "
                "MODEL.FOCAL_RETINA.COMPILE False"
            )
    for network in (model.backbone, *model.head.children()):
        network.compile(backend=backend)
