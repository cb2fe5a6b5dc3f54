"""Registered data sets, for the tests of this folder."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from focal_retina.data import register_coco_json


@pytest.fixture
def catalogs(tmp_path, monkeypatch):
    """An empty cache of data checks; forget what a test registers."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def register(tiny_coco):
    """Change the content of tiny_coco, and register it as "tiny"; returns the image folder."""
    path, folder = tiny_coco

    def call(change=lambda content: None):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        register_coco_json("tiny", str(path), str(folder))
        return folder

    return call


@pytest.fixture
def write(tmp_path):
    """Write a content as json, or a text as it is; returns the path."""

    def call(content, name="set.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return call
