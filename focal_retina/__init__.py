"""focal_retina: RetinaNet with the focal loss (Lin et al., ICCV 2017) as a Detectron2 plugin.

Importing the package registers ``FocalRetinaNet``, backbones and anchor generators with Detectron2.
Without Detectron2, ``focal_retina.losses`` alone can be imported.
"""

import logging
import os
import sys
import warnings
from pathlib import Path

__version__ = "0.1.0"
NEEDS_DETECTRON2 = (
    "focal_retina needs Detectron2: with torch, 'setuptools<81' and wheel installed, "
    "`pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'`; "
    "or let `./run` in a clone of focal_retina make an environment that has it."
)


def _is_command() -> bool:
    """Whether this process is a command of this package."""
    script, train_net = Path(sys.argv[0]), Path(__file__).resolve().parents[1] / "train_net.py"
    is_module = sys.orig_argv[1:3] == ["-m", "focal_retina"]
    return is_module or script.name == "focal-retina" or script.resolve() == train_net


def _import_detectron2() -> bool:
    """Import Detectron2 without its warnings; False where it is missing."""
    # A CUDA build of PyTorch says so on every machine without a GPU.
    logging.getLogger("torch.utils.cpp_extension").addFilter(
        lambda record: not str(record.msg).startswith("No CUDA runtime is found")
    )
    # Detectron2's anchor generator, at its first call. PyTorch warns once a process.
    warnings.filterwarnings("ignore", r"torch\.meshgrid: in an upcoming release", UserWarning)
    # Detectron2's create_ddp_model alone: the user's own calls keep it.
    where = r"detectron2\.engine\.defaults"
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning, where)
    with warnings.catch_warnings():
        # What Detectron2 and fvcore do at their import. The user's own code keeps these warnings.
        warnings.filterwarnings("ignore", "pkg_resources is deprecated")
        warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated")
        try:
            import detectron2.engine
            import detectron2.model_zoo  # noqa: F401
        except ImportError as error:
            if (error.name or "detectron2").partition(".")[0] != "detectron2":
                raise
            return False
    return True


if _is_command() and not sys.stderr.isatty():
    # tqdm reads it at its import; to a log it writes a line each time.
    os.environ.setdefault("TQDM_MININTERVAL", "60")  # seconds
_is_help = _is_command() and not {"-h", "--help"}.isdisjoint(sys.argv)  # needs no library
if not _is_help and _import_detectron2():
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
