"""The classes of a model: kept beside its weights, and compared by name with those of data sets."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from ..files import atomic_write
from .coco import check_num_classes, dataset_classes

CLASSES_FILE = "classes.json"  # the "categories" of COCO json, in the order of the classes


class Classes(NamedTuple):
    """What a class index of a model means."""

    names: list[str]
    category_ids: list[int]  # of the training set


def save_classes(cfg: CfgNode, folder: Path) -> None:
    """Write the classes of DATASETS.TRAIN to ``folder``, where their names are known."""
    if classes := training_classes(cfg):
        pairs = zip(classes.category_ids, classes.names, strict=True)
        with atomic_write(folder / CLASSES_FILE, "w") as file:
            json.dump([{"id": category, "name": name} for category, name in pairs], file)


def model_classes(cfg: CfgNode) -> Classes | None:
    """The classes of the checkpoint MODEL.WEIGHTS: of the file beside it, else of a set of
    DATASETS.TRAIN that has as many. None where neither is known.

    Raises:
        ValueError: the file beside it is damaged.
    """
    weights = cfg.MODEL.WEIGHTS
    path = Path(weights).parent / CLASSES_FILE
    if not weights or "://" in weights or not path.is_file():
        return training_classes(cfg)
    try:
        categories = json.loads(path.read_text(encoding="utf-8"))
        return Classes([str(x["name"]) for x in categories], [int(x["id"]) for x in categories])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a list of categories ({error}): remove it") from error


def training_classes(cfg: CfgNode) -> Classes | None:
    """Of the first set of DATASETS.TRAIN that is known here with NUM_CLASSES classes."""
    for name in cfg.DATASETS.TRAIN:
        metadata = MetadataCatalog.get(name) if name in DatasetCatalog else Metadata()
        names = metadata.get("thing_classes", [])
        if len(names) == cfg.MODEL.RETINANET.NUM_CLASSES:
            to_class = metadata.get("thing_dataset_id_to_contiguous_id", {})
            to_category = {label: category for category, label in to_class.items()}
            return Classes(list(names), [to_category.get(i, i + 1) for i in range(len(names))])
    return None


def announce_classes(cfg: CfgNode) -> None:
    """Give data sets of ``cfg`` that are not registered here the classes of the checkpoint, in the
    MetadataCatalog, where Detectron2's Visualizer finds them."""
    if (classes := model_classes(cfg)) is None:
        return
    to_class = {category: index for index, category in enumerate(classes.category_ids)}
    for name in {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST} - set(DatasetCatalog):
        metadata = MetadataCatalog.get(name)
        if metadata.get("announced") or not metadata.get("thing_classes"):
            MetadataCatalog.pop(name)
            MetadataCatalog.get(name).set(
                thing_classes=classes.names,
                thing_dataset_id_to_contiguous_id=to_class,
                announced=True,
            )


def check_classes(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Compare NUM_CLASSES and the classes of the model with those of the data sets. A set that is
    evaluated may have fewer, or another order.

    Raises:
        ValueError: they disagree.
        ValueError, FileNotFoundError: as :func:`~focal_retina.data.coco.dataset_classes`.
    """
    num_classes = cfg.MODEL.RETINANET.NUM_CLASSES
    if not eval_only:
        check_num_classes(num_classes, cfg.DATASETS.TRAIN)
    classes = model_classes(cfg) if eval_only else training_classes(cfg)
    for name in cfg.DATASETS.TEST if classes is None else ():
        found = dataset_classes(name)
        if found is not None and len(found) != num_classes:
            raise ValueError(
                f"{name} has {_listed(found)}, but MODEL.RETINANET.NUM_CLASSES is {num_classes}, "
                f"and no {CLASSES_FILE} beside the weights says which classes these are"
            )
    if classes is None:
        return
    if len(classes.names) != num_classes:
        raise ValueError(
            f"MODEL.RETINANET.NUM_CLASSES is {num_classes}, but the checkpoint "
            f"{cfg.MODEL.WEIGHTS} has {_listed(classes.names)}"
        )
    for name in cfg.DATASETS.TEST:
        index_in_dataset(classes.names, name)


def index_in_dataset(names: Sequence[str], dataset_name: str) -> list[int] | None:
    """Of each class of a model its index in a data set, by name; -1 where the set lacks the class.
    None where all classes are the same, or those of the set are not known.

    Raises:
        ValueError: the set has a class that the model lacks, or a name stands for two classes.
    """
    found = dataset_classes(dataset_name)
    if found is None or list(found) == list(names):
        return None
    unknown = [x for x in found if x not in names]
    if unknown or len({*found}) < len(found) or len({*names}) < len(names):
        raise ValueError(
            f"{dataset_name} has {_listed(found)}, but the model has {_listed(names)}: a set that "
            "is evaluated may only have classes of the model, and each once"
        )
    return [found.index(x) if x in found else -1 for x in names]


def _listed(names: Sequence[str], limit: int = 10) -> str:
    shown = ", ".join([*names[:limit], *(["…"] if len(names) > limit else [])])
    return f"{len(names)} classes ({shown})"
