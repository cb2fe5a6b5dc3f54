"""Readers of YOLO, Pascal VOC and CVAT. Those of hotcoco 1.3.0 lose too much: suffixes and folders
of images, numbered and escaped names, difficult objects, the angle of a box."""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import yaml
from PIL import Image

from .images import image_suffixes, in_one_line, list_files

SPLITS = ("train", "val", "valid", "validation", "trainval", "test")
_MARGIN = 0.01  # of the image's side, by which YOLO's rounded coordinates may leave the image
_SHOWN = 3  # examples of each note


class LabelledImage(NamedTuple):
    path: Path
    size: Any  # (width, height), or a text that says why the image cannot be read
    objects: list[tuple[Any, list[float], int]]  # key of the class, [x, y, width, height], iscrowd


Notes = dict[str, list[str]]  # what is not taken over as it stands → examples
# Names of the classes by key, in the order of their ids; the images of each split, "" without any
Content = tuple[dict[Any, str], dict[str, list[LabelledImage]]]
Plan = tuple[list[Path], Callable[[Notes], Content]]  # the files that decide; what reads them


def examples(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _read_size(path: Path) -> tuple[int, int] | str:
    """Width and height, as the image is turned when it is read; or why it cannot be read."""
    try:
        with Image.open(path) as image:
            # Where a PNG does not begin with Exif data, getexif decodes all pixels
            has_exif = image.format != "PNG" or "exif" in image.info
            is_turned = has_exif and image.getexif().get(0x0112) in (5, 6, 7, 8)
            return image.size[::-1] if is_turned else image.size
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, struct.error and more
        return in_one_line(error)


def _read_lines(path: Path) -> list[str]:
    return [x.strip() for x in path.read_text("utf-8-sig", "replace").splitlines()]


def _to_numbers(texts: list[str], where: str) -> list[float]:
    try:
        numbers = [float(x) for x in texts]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{where}: {' '.join(texts)[:80]!r} are not numbers")
    return numbers


def _enclose(points: list[float]) -> list[float]:
    xs, ys = points[::2], points[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


# --- YOLO: data.yaml, folders or lists of images, and for images/a.jpg the file labels/a.txt ---


def plan_yolo(path: Path) -> Plan:
    try:  # BaseLoader leaves all values text: a class may be called `no`
        content = yaml.load(path.read_text("utf-8-sig"), Loader=yaml.BaseLoader)
        names = content["names"]
        numbered = dict(enumerate(names)) if isinstance(names, list) else names
        classes = {int(x): str(numbered[x]) for x in sorted(numbered, key=int)}
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = in_one_line(error)
        raise ValueError(f'{path} is no YOLO yaml with "names" of classes: {reason}') from error
    # `path` is often that of another machine
    roots = _locate(str(content.get("path") or "."), path.parent), path.parent
    files, missing = [path], []
    splits: dict[str, dict[Path, None]] = defaultdict(dict)
    for split in SPLITS:
        entries = content.get(split) or []
        for x in entries if isinstance(entries, list) else [entries]:
            source, images = _locate(str(x), *roots), []
            if source.is_dir():
                images = list_files(source, image_suffixes())
            elif source.is_file() and source.suffix == ".txt":
                files.append(source)
                lines = filter(None, _read_lines(source))
                images = [_locate(x, source.parent, *roots) for x in lines]
            if images:
                splits[split] |= dict.fromkeys(images)
            else:
                missing.append(f"{split}: {source}")
    labels = {x: _label_of(x) for x in itertools.chain(*splits.values())}
    if not any(x.exists() for x in labels.values()):
        raise ValueError(f"{path}: there is no image with a label file; {examples(missing)}")

    def read(notes: Notes) -> Content:
        notes["splits are neither a folder with images nor a .txt list of them"] = missing
        bare = [str(x) for x, label in labels.items() if not label.exists()]
        notes["images have no label file, and so no objects"] = bare
        texts = itertools.chain(*(x.glob("*.txt") for x in {x.parent for x in labels.values()}))
        listed = {str(x) for x in texts if x.name != "classes.txt" and x.name[0] != "."}
        used = {*map(str, (*labels.values(), *files))}
        notes["label files have no image"] = sorted(listed - used)
        found = {}
        with ThreadPoolExecutor() as pool:
            for image, size in zip(labels, pool.map(_read_size, labels), strict=True):
                if isinstance(size, str):
                    notes["images cannot be read and are left out"].append(f"{image}: {size}")
                else:
                    rows = _read_yolo(labels[image], classes, size, "kpt_shape" in content)
                    found[image] = LabelledImage(image, size, [*rows])
        return classes, {x: [found[i] for i in y if i in found] for x, y in splits.items()}

    return [*files, *labels, *labels.values()], read


def _locate(entry: str, *roots: Path) -> Path:
    """Roboflow writes `../train/images` of a folder that stands beside the yaml."""
    found = [root / x for root in roots for x in (entry, entry.removeprefix("../"))]
    return next((x for x in found if x.exists()), found[0])


def _label_of(image: Path) -> Path:
    """In labels/, where images/ is in the path of the image, or beside it."""
    beside = image.with_suffix(".txt")
    head, images, tail = str(beside).rpartition("/images/")
    label = Path(f"{head}/labels/{tail}") if images else beside
    return label if label.exists() else beside if beside.exists() else label


def _read_yolo(
    label: Path, classes: dict[Any, str], size: tuple[int, int], is_pose: bool
) -> Iterator[tuple[float, list[float], int]]:
    for number, line in enumerate(_read_lines(label) if label.exists() else [], 1):
        if not line:
            continue
        where = f"{label}, line {number}"
        key, *values = _to_numbers(line.split(), where)
        values = values[:4] if is_pose else values
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            form = "a class and x, y, width, height, or a class and the points of a polygon"
            raise ValueError(f"{where}: {len(values) + 1} numbers, which are not {form}")
        if key not in classes:
            raise ValueError(f'{where}: class {key:g} is not in "names", which has {len(classes)}')
        if not all(-_MARGIN <= x <= 1 + _MARGIN for x in values):
            raise ValueError(f"{where}: {line[:80]!r} are no fractions of the image's sides")
        pixels = [x * size[i % 2] for i, x in enumerate(values)]
        x, y, w, h = pixels[:4]
        yield key, _enclose(pixels) if len(pixels) > 4 else [x - w / 2, y - h / 2, w, h], 0


def _parse_xml(path: Path, tag: str) -> ElementTree.Element:
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # of encodings, too
        raise ValueError(f"{path} is not xml: {error}") from error
    if root.tag != tag:
        raise ValueError(f"{path} begins with <{root.tag}>, where <{tag}> is expected")
    return root


# --- Pascal VOC: an xml for each image in Annotations/, images in JPEGImages/, or all mixed ---


def plan_voc(root: Path) -> Plan:
    folders = root / "Annotations", root / "JPEGImages"
    xml_root, image_root = folders if all(x.is_dir() for x in folders) else (root, root)
    xmls = {_key_of(x, xml_root): x for x in list_files(xml_root, {".xml"})}
    if not xmls:
        raise ValueError(f"{root} holds no data.yaml, no annotations.xml and no VOC xml")
    paths = {_key_of(x, image_root): x for x in reversed(list_files(image_root, image_suffixes()))}
    lists = [x for name in SPLITS if (x := root / f"ImageSets/Main/{name}.txt").is_file()]

    def read(notes: Notes) -> Content:
        images = {}
        for key, xml in xmls.items():
            image = _read_voc(xml, paths.get(key), (image_root / key).parent)
            if isinstance(image.size, str):
                notes["images cannot be read, and the xml holds no size: left out"].append(key)
            else:
                images[key] = image
        objects = {key: x.objects for key, x in images.items()}
        at_zero = [key for key, xs in objects.items() if any(min(x[1]) < 1 for x in xs)]
        notes["images have objects at 0: all boxes count from 0, not from VOC's 1"] = at_zero
        for _, box, _ in itertools.chain(*objects.values()):
            left, top = (x if at_zero else x - 1 for x in box[:2])
            box[:] = left, top, box[2] - left, box[3] - top  # VOC's last pixel belongs to it
        difficult = [key for key, xs in objects.items() if any(x[2] for x in xs)]
        notes["images have difficult objects, which become iscrowd"] = difficult
        splits: dict[str, list[str]] = defaultdict(list)
        for file in lists:
            splits[file.stem] = [*filter(None, _read_lines(file))]
        for key in xmls if not lists else ():
            splits[folder if (folder := key.partition("/")[0]) in SPLITS else ""].append(key)
        listed = {*itertools.chain(*splits.values())}
        notes["entries of ImageSets/Main have no xml"] = sorted(listed - xmls.keys())
        notes["xml are in no list of ImageSets/Main"] = sorted(xmls.keys() - listed)
        notes["images have no xml and are left out"] = sorted(paths.keys() - xmls.keys())
        names = sorted({name for xs in objects.values() for name, *_ in xs})
        by_split = {x: [images[i] for i in keys if i in images] for x, keys in splits.items()}
        return {x: x for x in names}, by_split

    return [*lists, *xmls.values(), *paths.values()], read


def _key_of(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def _read_voc(xml: Path, image: Path | None, folder: Path) -> LabelledImage:
    """Boxes are [xmin, ymin, xmax, ymax] as they are written."""
    tree = _parse_xml(xml, "annotation")
    named = folder / (Path(tree.findtext("filename", "")).name or f"{xml.stem}.jpg")
    if image is None or (named.stem == xml.stem and named.is_file()):  # of a.png and a.tif
        image = named
    objects = []
    for number, element in enumerate(tree.iterfind("object"), 1):
        where = f"{xml}, object {number}"
        if not (name := element.findtext("name", "").strip()):
            raise ValueError(f"{where} has no name")
        sides = [element.findtext(f"bndbox/{x}", "") for x in ("xmin", "ymin", "xmax", "ymax")]
        is_difficult = element.findtext("difficult", "").strip() == "1"
        objects.append((name, _to_numbers(sides, f"{where}: bndbox"), int(is_difficult)))
    sides = [tree.findtext(f"size/{x}", "") or "0" for x in ("width", "height")]
    width, height = map(int, _to_numbers(sides, f"{xml}: size"))
    return LabelledImage(image, (width, height) if width and height else _read_size(image), objects)


# --- CVAT for images 1.1: annotations.xml, and the images in images/ or beside it ---


def plan_cvat(path: Path) -> Plan:
    folder = path.parent / "images"
    images = set(list_files(folder, image_suffixes())) if folder.is_dir() else set()
    folder = folder if images else path.parent

    def read(notes: Notes) -> Content:
        tree = _parse_xml(path, "annotations")
        if tree.find("track") is not None:
            raise ValueError(f"{path} holds tracks of a video: export it as CVAT for images 1.1")
        names = [x.text or "" for x in tree.iterfind("meta//labels/label/name")]
        splits: dict[str, list[LabelledImage]] = defaultdict(list)
        skipped = notes["shapes are neither box nor polygon and are left out"]
        for element in tree.iterfind("image"):
            name, subset = element.get("name", ""), element.get("subset", "")
            where = f"{path}, image {name!r}"
            sides = [element.get(x, "") for x in ("width", "height")]
            width, height = map(int, _to_numbers(sides, f"{where}: size"))
            objects = []
            for shape in element:
                if shape.tag in ("box", "polygon"):
                    objects.append((shape.get("label", ""), _cvat_box(shape, where), 0))
                else:
                    skipped.append(f"{shape.tag} in {name}")
            names += [x for x, *_ in objects]
            image = folder / subset / name
            image = image if image in images else folder / name
            split = subset.lower() if subset.lower() in SPLITS else ""
            splits[split].append(LabelledImage(image, (width, height), objects))
        return {x: x for x in names}, splits

    return [path, *images], read


def _cvat_box(shape: ElementTree.Element, where: str) -> list[float]:
    """The box round a polygon, or round a box that is turned."""
    where = f"{where}: {shape.tag}"
    if shape.tag == "polygon":
        points = re.split("[,;]", shape.get("points", ""))
        return _enclose(_to_numbers(points, where))
    sides = [shape.get(x, "") for x in ("xtl", "ytl", "xbr", "ybr")]
    angle, left, top, right, bottom = _to_numbers([shape.get("rotation", "0"), *sides], where)
    cos, sin = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
    width = (right - left) * cos + (bottom - top) * sin
    height = (right - left) * sin + (bottom - top) * cos
    return [(left + right - width) / 2, (top + bottom - height) / 2, width, height]
