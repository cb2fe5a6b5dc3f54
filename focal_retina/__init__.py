"""focal_retina: RetinaNet with the focal loss (Lin et al., ICCV 2017) as a Detectron2 plugin.

Importing the package registers ``FocalRetinaNet`` in Detectron2's ``META_ARCH_REGISTRY``, the dense
head in ``DENSE_HEAD_REGISTRY``, the classification losses in ``CLS_LOSS_REGISTRY``, and backbones
and anchor generators in Detectron2's registries. Without Detectron2, ``focal_retina.losses`` alone
can be imported.
"""

import logging
import sys
import warnings
from pathlib import Path

__version__ = "0.1.0"
NEEDS_DETECTRON2 = (
    "focal_retina needs Detectron2: with torch, 'setuptools<81' and wheel installed, "
    "`pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'`; "
    "or let `./run` in a clone of focal_retina make an environment that has it."
)


def _is_help() -> bool:
    """Whether a command of this package is asked for its help, which needs no library."""
    script = Path(sys.argv[0])
    is_ours = (
        sys.orig_argv[1:3] == ["-m", "focal_retina"]
        or script.name == "focal-retina"
        or script.resolve() == Path(__file__).resolve().parents[1] / "train_net.py"
    )
    return is_ours and not {"-h", "--help"}.isdisjoint(sys.argv)


def _import_detectron2() -> bool:
    """Import Detectron2 without its warnings; False where it is missing."""
    # A CUDA build of PyTorch says so on every machine without a GPU.
    logging.getLogger("torch.utils.cpp_extension").addFilter(
        lambda record: not str(record.msg).startswith("No CUDA runtime is found")
    )
    with warnings.catch_warnings():
        # What Detectron2 and fvcore do at their import. The user's own code keeps these warnings.
        for message, category, module in (
            ("pkg_resources is deprecated", UserWarning, r"detectron2\.model_zoo\.model_zoo"),
            (r"`torch\.jit\.script` is deprecated", FutureWarning, r"torch\.jit\._script"),
        ):
            warnings.filterwarnings("ignore", message, category, module)
        try:
            import detectron2.engine
            import detectron2.model_zoo  # noqa: F401
        except ImportError as error:
            if (error.name or "detectron2").partition(".")[0] != "detectron2":
                raise
            return False
    # Detectron2's anchor generator, at its first call. PyTorch warns once a process.
    warnings.filterwarnings(
        "ignore", r"torch\.meshgrid: in an upcoming release", UserWarning, r"torch\.functional"
    )
    return True


if not _is_help() and _import_detectron2():
    from .config import add_focal_retina_config
    from .config_file import get_config_file, merge_config_file
    from .data import register_shapes
    from .losses import CLS_LOSS_REGISTRY, build_cls_loss
    from .modeling import DENSE_HEAD_REGISTRY, FocalRetinaNet, FocalRetinaNetHead

    register_shapes()
else:

    def __getattr__(name: str) -> object:
        if name in __all__:
            raise ModuleNotFoundError(NEEDS_DETECTRON2, name="detectron2")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "CLS_LOSS_REGISTRY",
    "DENSE_HEAD_REGISTRY",
    "FocalRetinaNet",
    "FocalRetinaNetHead",
    "__version__",
    "add_focal_retina_config",
    "build_cls_loss",
    "get_config_file",
    "merge_config_file",
]
