"""train --data: the sets, classes and recipe that a train_net.py command would name."""

import itertools
import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from focal_retina.commands import make_parser
from focal_retina.commands.train import expand_data


@pytest.fixture
def expand(tiny_coco, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*words):
        spec = "{}:{}".format(*tiny_coco)
        return expand_data(make_parser("train").parse_intermixed_args(["--data", spec, *words]))

    return call


def test_a_fifth_is_set_aside_once(expand, tiny_coco, tmp_path):
    config_file, register, opts = expand()
    assert config_file.endswith("configs/finetune/efficientnet_lite0.yaml")
    assert [x.partition("=")[0] for x in register] == ["train", "val"]
    assert dict(zip(opts[::2], opts[1::2], strict=True)) == {
        "MODEL.RETINANET.NUM_CLASSES": "2",
        "DATASETS.TRAIN": '("train",)',
        "DATASETS.TEST": '("val",)',
        "OUTPUT_DIR": "output/photos",
    }
    (folder,) = tmp_path.glob("output/photos/splits/[!.]*")
    files = [folder / f"{x}.json" for x in ("train", "val")]
    first = [x.read_text() for x in files]
    assert [len(json.loads(x)["images"]) for x in first] == [4, 2]  # one of each class
    folder.rename(folder.with_name(f".{folder.name}.unfinished"))  # as if killed amid them
    assert expand() == (config_file, register, opts)
    assert [x.read_text() for x in files] == first
    for catalog, name in itertools.product((DatasetCatalog, MetadataCatalog), ("train", "val")):
        catalog.pop(name)  # as in another process
    DatasetCatalog.pop("data")
    content = json.loads(tiny_coco[0].read_text())
    tiny_coco[0].write_text(json.dumps({**content, "info": {}}))
    assert expand()[1] != register  # other data, another split


def test_what_the_user_says_stays(expand, tiny_coco, tmp_path):
    words = ("--val", "{}:{}".format(*tiny_coco), "MODEL.RETINANET.NUM_CLASSES", "7")
    _, register, opts = expand(*words, "OUTPUT_DIR", "mine")
    assert [x.partition("=")[0] for x in register] == ["data", "val"]
    assert opts[-4:] == ["MODEL.RETINANET.NUM_CLASSES", "7", "OUTPUT_DIR", "mine"]
    assert opts.count("OUTPUT_DIR") == opts.count("MODEL.RETINANET.NUM_CLASSES") == 1
    assert not (tmp_path / "mine").exists()


@pytest.mark.usefixtures("quiet_setup")
def test_a_number_of_classes_that_disagrees_is_an_error(assert_user_error, tiny_coco, tmp_path):
    spec = "{}:{}".format(*tiny_coco)
    words = ("MODEL.RETINANET.NUM_CLASSES", 7, "OUTPUT_DIR", tmp_path)
    assert_user_error("NUM_CLASSES", "train", "--data", spec, "--val", spec, *words)
    assert_user_error("--data", "train", "--val", spec)
    assert_user_error("--data", "train", "--data", spec, "--config-file", "a.yaml")
