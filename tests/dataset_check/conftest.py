"""A registered data set, for the tests of this folder."""

import json

import pytest

from focal_retina.data import register_coco_json


@pytest.fixture
def register(tiny_coco, catalogs):
    """Change the content of tiny_coco, and register it as "tiny"; returns the image folder."""
    path, folder = tiny_coco

    def call(change=lambda content: None):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        register_coco_json("tiny", str(path), str(folder))
        return folder

    return call
