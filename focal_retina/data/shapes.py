"""The generated data set: shapes in COCO format, written at their first use.

A split is a folder, `focal_shapes/v2-9c2f41d0/train`. Its name holds the generator's version and a
digest of the parameters: other parameters or a newer generator never meet old data. The folder
appears by one rename: where it exists, it is complete.
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
from PIL import Image
from tqdm import tqdm

from ..files import atomic_write, file_lock
from .shapes_scene import CLASS_NAMES, GENERATOR_VERSION, SPLITS, ShapesConfig, render_scene


def split_directory(config: ShapesConfig, split: str, root: Path) -> Path:
    """The folder of one split, below the folder `root` of all data sets."""
    parameters = json.dumps([CLASS_NAMES, asdict(config)], sort_keys=True)
    digest = hashlib.sha256(parameters.encode()).hexdigest()[:8]
    return root / "focal_shapes" / f"v{GENERATOR_VERSION}-{digest}" / split


def generate_split(config: ShapesConfig, split: str, root: Path) -> Path:
    """Write one split, unless it is there already, and return its folder.

    Several processes may ask for it at once: one writes, the others wait for it. A killed process
    leaves a hidden folder, which the next one replaces. OSError: the folder cannot be written.
    """
    target = split_directory(config, split, root)
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(target.with_name(f".{split}.lock")):
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
    (directory / "images").mkdir(parents=True)
    images: list[dict] = []
    annotations: list[dict] = []
    numbers = range(getattr(config, f"num_{split}"))
    for number in tqdm(numbers, f"generating focal_shapes_{split}", unit="image", mininterval=1):
        pixels, objects = render_scene(config, split, number)
        name, (height, width) = f"{number:06d}.jpg", pixels.shape[:2]
        Image.fromarray(pixels).save(directory / "images" / name, quality=config.jpeg_quality)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for shape in objects:
            ids = {"id": len(annotations) + 1, "image_id": number, "category_id": 1 + shape.label}
            annotations.append({**ids, "bbox": shape.box, "area": shape.area, "iscrowd": 0})
    content = {
        "info": {"version": str(GENERATOR_VERSION), "parameters": asdict(config)},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASS_NAMES, start=1)],
    }
    with atomic_write(directory / "annotations.json", "w") as file:
        json.dump(content, file)


def _load_split(config: ShapesConfig, split: str, root: Path) -> list[dict]:
    folder = generate_split(config, split, root)
    return load_coco_json(folder / "annotations.json", folder / "images", f"focal_shapes_{split}")


def register_shapes(config: ShapesConfig | None = None, root: str | Path | None = None) -> None:
    """Register `focal_shapes_train`, `focal_shapes_val` and `focal_shapes_test`.

    Nothing is written: a split is generated below `root` (default: DETECTRON2_DATASETS, else
    `datasets`) when Detectron2 first asks for its records.
    """
    config = config or ShapesConfig()
    folder = Path(root or os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
    for split in SPLITS:
        name, directory = f"focal_shapes_{split}", split_directory(config, split, folder)
        DatasetCatalog.register(name, partial(_load_split, config, split, folder))
        MetadataCatalog.get(name).set(
            json_file=str(directory / "annotations.json"),
            image_root=str(directory / "images"),
            evaluator_type="coco",
            thing_classes=list(CLASS_NAMES),
            thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(CLASS_NAMES))},
            generated=True,  # the files need not be there yet
        )
