"""The classes of a model: kept beside its weights, as its score threshold is, and compared by name
with those of data sets."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from ..config_file import near_names
from ..files import is_generated, write_json
from .coco import SPEC, read_coco_json

CLASSES_FILE = "classes.json"  # the "categories" of COCO json, in the order of the classes
THRESHOLD_FILE = "threshold.json"  # the score of the best F1, and the set on which it was chosen


class Classes(NamedTuple):
    """What a class index of a model means."""

    names: list[str]
    category_ids: list[int]  # of the training set


def save_classes(cfg: CfgNode, folder: Path) -> None:
    """Write the classes of DATASETS.TRAIN to ``folder``, where their names are known, for a new
    training: the threshold of an earlier one goes."""
    (folder / THRESHOLD_FILE).unlink(missing_ok=True)
    if classes := training_classes(cfg):
        categories = [{"id": i, "name": name} for name, i in zip(*classes, strict=True)]
        write_json(folder / CLASSES_FILE, categories)


def model_classes(cfg: CfgNode) -> Classes | None:
    """Of the file beside MODEL.WEIGHTS, else of the training. ValueError: the file is damaged."""

    def read(categories: Any) -> Classes:
        return Classes([str(x["name"]) for x in categories], [int(x["id"]) for x in categories])

    return _beside_weights(cfg, CLASSES_FILE, read) or training_classes(cfg)


def model_threshold(cfg: CfgNode) -> float | None:
    """The score threshold that a training left beside MODEL.WEIGHTS. ValueError: it is damaged."""
    return _beside_weights(cfg, THRESHOLD_FILE, lambda content: float(content["threshold"]))


def _beside_weights(cfg: CfgNode, file_name: str, read: Callable[[Any], Any]) -> Any:
    weights = cfg.MODEL.WEIGHTS
    path = Path(weights).parent / file_name
    if not weights or "://" in weights or not path.is_file():
        return None
    try:
        return read(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): remove it") from error


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
            new = {"thing_classes": classes.names, "thing_dataset_id_to_contiguous_id": to_class}
            MetadataCatalog.get(name).set(**new, announced=True)


def dataset_classes(name: str) -> list[str] | None:
    """Class names of a data set, in order: of the metadata, else of the annotation file; None if
    only loading tells them. ValueError: it is not registered. FileNotFoundError: no such file."""
    if name not in DatasetCatalog:
        hint = near_names(name, DatasetCatalog)
        raise ValueError(f"no data set {name!r} is registered{hint}; --register {SPEC} adds one")
    metadata = MetadataCatalog.get(name)
    classes, json_file = metadata.get("thing_classes"), metadata.get("json_file")
    if not json_file:
        return classes
    # A URL is fetched at loading, a generated set is written then.
    if not ("://" in json_file or is_generated(name) or os.path.isfile(json_file)):
        raise FileNotFoundError(
            f"data set {name!r}: no annotation file {json_file}; put it there, or set "
            "DETECTRON2_DATASETS to the folder that holds your data sets (it is "
            f"{os.getenv('DETECTRON2_DATASETS', 'not set')})"
        )
    return classes or [x["name"] for x in read_coco_json(json_file)["categories"]]


def check_num_classes(num_classes: int, dataset_names: Iterable[str], advice: str = "") -> None:
    """ValueError, which ``advice`` ends, where MODEL.RETINANET.NUM_CLASSES and data sets disagree.
    Other errors: as :func:`dataset_classes`."""
    classes_of = {name: dataset_classes(name) for name in dataset_names}
    known = [(name, classes) for name, classes in classes_of.items() if classes is not None]
    for name, classes in known:
        if len(classes) != num_classes:
            advice = advice or f": set MODEL.RETINANET.NUM_CLASSES {len(classes)}"
            raise ValueError(
                f"{name} has {_listed(classes)}, but MODEL.RETINANET.NUM_CLASSES is {num_classes}"
                f"{advice}"
            )
        if classes != known[0][1]:
            raise ValueError(
                f"{name} has {_listed(classes)}, but {known[0][0]} has {_listed(known[0][1])}: "
                "data sets used together must agree in names and order"
            )


def check_classes(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """ValueError where NUM_CLASSES, the model and the data sets disagree. A set that is evaluated
    may have fewer classes, or another order. Other errors: as :func:`dataset_classes`."""
    num_classes = cfg.MODEL.RETINANET.NUM_CLASSES
    if not eval_only:
        check_num_classes(num_classes, cfg.DATASETS.TRAIN)
    classes = model_classes(cfg) if eval_only else training_classes(cfg)
    if classes is None:
        unknown = f", and no {CLASSES_FILE} beside the weights says which classes these are"
        check_num_classes(num_classes, cfg.DATASETS.TEST, unknown)
    elif len(classes.names) != num_classes:
        raise ValueError(
            f"MODEL.RETINANET.NUM_CLASSES is {num_classes}, but the checkpoint "
            f"{cfg.MODEL.WEIGHTS} has {_listed(classes.names)}"
        )
    else:
        for name in cfg.DATASETS.TEST:
            index_in_dataset(classes.names, name)


def index_in_dataset(names: Sequence[str], dataset_name: str) -> list[int] | None:
    """Of each class of a model its index in a data set, by name; -1 where the set lacks the class.
    None where all classes are the same, or those of the set are not known. ValueError: the set has
    a class that the model lacks, or a name stands for two classes."""
    found = dataset_classes(dataset_name)
    if found is None or list(found) == list(names):
        return None
    if not set(found) <= set(names) or len({*found}) < len(found) or len({*names}) < len(names):
        raise ValueError(
            f"{dataset_name} has {_listed(found)}, but the model has {_listed(names)}: a set that "
            "is evaluated may only have classes of the model, and each once"
        )
    return [found.index(x) if x in found else -1 for x in names]


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} classes ({', '.join(names[:10])}{', …' if len(names) > 10 else ''})"
