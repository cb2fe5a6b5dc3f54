"""Written files, for the tests of this folder."""

import json

import pytest


@pytest.fixture
def write(tmp_path):
    """Write a content as json, or a text as it is; returns the path."""

    def call(content, name="set.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return call
