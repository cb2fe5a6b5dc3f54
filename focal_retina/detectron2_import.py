"""The first import of Detectron2: without its warnings, or with what to do where it is missing."""

import logging
import warnings

# A CUDA build of PyTorch says so on every machine without a GPU.
logging.getLogger("torch.utils.cpp_extension").addFilter(
    lambda record: not str(record.msg).startswith("No CUDA runtime is found")
)
with warnings.catch_warnings():
    # What Detectron2 and fvcore do at their import. The user's own code keeps these warnings.
    warnings.filterwarnings(
        "ignore", "pkg_resources is deprecated", UserWarning, r"detectron2\.model_zoo\.model_zoo"
    )
    warnings.filterwarnings(
        "ignore", r"`torch\.jit\.script` is deprecated", FutureWarning, r"torch\.jit\._script"
    )
    try:
        import detectron2.engine
        import detectron2.model_zoo  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "detectron2":
            raise
        raise ModuleNotFoundError(
            "focal_retina needs Detectron2: with torch, 'setuptools<81' and wheel installed, "
            "`pip install --no-build-isolation "
            "'git+https://github.com/facebookresearch/detectron2.git'`; "
            "or let `./run` in a clone of focal_retina make an environment that has it.",
            name="detectron2",
        ) from None
# Detectron2's anchor generator, at its first call. PyTorch warns once a process.
warnings.filterwarnings(
    "ignore", r"torch\.meshgrid: in an upcoming release", UserWarning, r"torch\.functional"
)
