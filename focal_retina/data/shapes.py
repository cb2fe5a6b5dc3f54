"""The embedded data set: generated shapes in COCO format, written at their first use.

Layout, below DETECTRON2_DATASETS (default `datasets`):

    focal_shapes/v1-9c2f41d0/train/annotations.json
    focal_shapes/v1-9c2f41d0/train/images/000000.jpg …

The folder's name holds the generator's version and a digest of the parameters, so that other
parameters or a newer generator never meet old data. A split's folder appears by one rename, when
everything in it is written: where it exists, it is complete.
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from iopath.common.file_io import file_lock
from tqdm import tqdm

from .shapes_config import GENERATOR_VERSION, SPLITS, ShapesConfig
from .shapes_outlines import CLASS_NAMES


def split_directory(config: ShapesConfig, split: str, root: Path) -> Path:
    """The folder of one split, below the folder `root` of all data sets."""
    parameters = json.dumps([CLASS_NAMES, asdict(config)], sort_keys=True)
    digest = hashlib.sha256(parameters.encode()).hexdigest()[:8]
    return root / "focal_shapes" / f"v{GENERATOR_VERSION}-{digest}" / split


def generate_split(config: ShapesConfig, split: str, root: Path) -> Path:
    """Write one split, unless it is there already.

    Several processes may ask for it at once: one writes, the others wait for it. A process that is
    killed leaves a hidden folder, which the next one replaces.

    Returns:
        The split's folder, which holds `annotations.json` and `images/`.

    Raises:
        OSError: the folder cannot be written.
    """
    target = split_directory(config, split, root)
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(target)):
            if not target.is_dir():  # another process may have written it meanwhile
                unfinished = target.with_name(f".{split}.unfinished")
                if unfinished.exists():
                    shutil.rmtree(unfinished)
                _write_split(config, split, unfinished)
                unfinished.rename(target)
    except OSError as error:
        raise OSError(
            f"the generated data set cannot be written to {target}: {error.strerror or error}; "
            "the environment variable DETECTRON2_DATASETS names another folder for data sets"
        ) from error
    return target


def _write_split(config: ShapesConfig, split: str, directory: Path) -> None:
    # Here, so that the package can be imported without OpenCV, of which there are several wheels.
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "generating the shapes needs OpenCV: pip install opencv-python-headless", name="cv2"
        ) from error
    from .shapes_scene import render_scene

    (directory / "images").mkdir(parents=True)
    images: list[dict] = []
    annotations: list[dict] = []
    numbers = range(config.num_images(split))
    for image_id in tqdm(
        numbers, desc=f"generating focal_shapes_{split}", unit="image", mininterval=1
    ):
        pixels, objects = render_scene(config, split, image_id)
        file_name = f"{image_id:06d}.jpg"
        quality = (cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality)
        _, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), quality)
        (directory / "images" / file_name).write_bytes(encoded.tobytes())
        height, width = pixels.shape[:2]
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        annotations += [
            {
                "id": len(annotations) + number,
                "image_id": image_id,
                "category_id": scene_object.label + 1,
                "bbox": scene_object.box,
                "area": scene_object.area,
                "iscrowd": 0,
            }
            for number, scene_object in enumerate(objects, start=1)
        ]
    coco = {
        "info": {
            "description": f"focal_retina's generated shapes, {split}",
            "version": str(GENERATOR_VERSION),
            "parameters": asdict(config),
        },
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name, "supercategory": "shape"}
            for number, name in enumerate(CLASS_NAMES, start=1)
        ],
    }
    with (directory / "annotations.json").open("w") as file:
        json.dump(coco, file)
        file.flush()
        os.fsync(file.fileno())


def register_shapes(config: ShapesConfig | None = None, root: str | Path | None = None) -> None:
    """Register `focal_shapes_train`, `focal_shapes_val` and `focal_shapes_test`.

    Nothing is written: a split is generated when Detectron2 first asks for its records.

    Args:
        config: the data set's parameters, the default ones if None.
        root: folder of all data sets; if None, DETECTRON2_DATASETS or `datasets`, as for
            Detectron2's own data sets.
    """
    config = config or ShapesConfig()
    folder = Path(root or os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
    for split in SPLITS:
        name, directory = f"focal_shapes_{split}", split_directory(config, split, folder)
        DatasetCatalog.register(name, partial(_load_split, config, split, folder, name))
        MetadataCatalog.get(name).set(
            json_file=str(directory / "annotations.json"),
            image_root=str(directory / "images"),
            evaluator_type="coco",
            thing_classes=list(CLASS_NAMES),
            thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(CLASS_NAMES))},
            generated=True,  # the files need not be there yet
        )


def _load_split(config: ShapesConfig, split: str, root: Path, name: str) -> list[dict]:
    directory = generate_split(config, split, root)
    return load_coco_json(str(directory / "annotations.json"), str(directory / "images"), name)
