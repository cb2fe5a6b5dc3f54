"""How many objects of each class a training set has."""

from collections.abc import Iterable

from detectron2.data import DatasetCatalog


def count_objects(dataset_names: Iterable[str], num_classes: int) -> list[int]:
    """Objects of each of the K classes in registered data sets, crowds left out.

    Raises:
        ValueError: an object of a class outside 0 … K-1.
    """
    counts = [0] * num_classes
    for name in dataset_names:
        for record in DatasetCatalog.get(name):
            for annotation in record["annotations"]:
                if annotation.get("iscrowd", 0):
                    continue
                label = annotation["category_id"]
                if not 0 <= label < num_classes:
                    raise ValueError(
                        f"{name}: {record['file_name']} has an object of class {label}; "
                        f"MODEL.RETINANET.NUM_CLASSES is {num_classes}"
                    )
                counts[label] += 1
    return counts
