"""Importing focal_retina beside another plugin of the same names, and twice: all or nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# One process for all cases, since an import takes seconds. Registries as {name: [entries]}.
SCRIPT = """
import importlib, importlib.util, json, sys
from detectron2.data import DatasetCatalog
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY, BACKBONE_REGISTRY, META_ARCH_REGISTRY,
)

REGISTRIES = {"meta": META_ARCH_REGISTRY, "backbone": BACKBONE_REGISTRY,
              "anchors": ANCHOR_GENERATOR_REGISTRY}
seen = {}

def state():
    return {**{k: sorted(n for n, _ in r) for k, r in REGISTRIES.items()},
            "data": sorted(DatasetCatalog.list())}

def attempt(case, action):
    before = state()
    try:
        action()
        message = None
    except (ImportError, AssertionError) as error:
        message = f"{type(error).__name__}: {error}"
    after = state()
    added = {k: sorted(set(after[k]) - set(before[k])) for k in after}
    seen[case] = {"message": message, "added": added}

def import_it():
    importlib.import_module("focal_retina")

class FocalRetinaNet:
    pass

META_ARCH_REGISTRY.register(FocalRetinaNet)
attempt("other meta-architecture", import_it)
del META_ARCH_REGISTRY._obj_map["FocalRetinaNet"]

def build_resnet_fpn_backbone_without_top_block(cfg, input_shape):
    pass

BACKBONE_REGISTRY.register(build_resnet_fpn_backbone_without_top_block)
attempt("other backbone", import_it)
del BACKBONE_REGISTRY._obj_map["build_resnet_fpn_backbone_without_top_block"]

DatasetCatalog.register("focal_shapes_val", lambda: [])
attempt("other data set", import_it)
DatasetCatalog.remove("focal_shapes_val")

attempt("free", import_it)
attempt("again", import_it)
attempt("reload", lambda: importlib.reload(sys.modules["focal_retina"]))

def import_a_copy():
    origin = sys.modules["focal_retina"].__spec__
    spec = importlib.util.spec_from_file_location(
        "vendored", origin.origin, submodule_search_locations=origin.submodule_search_locations)
    sys.modules["vendored"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["vendored"])

attempt("copy", import_a_copy)

from focal_retina import DENSE_HEAD_REGISTRY, FocalRetinaNetHead
ours = FocalRetinaNetHead
attempt("other head", lambda: DENSE_HEAD_REGISTRY.register(type("FocalRetinaNetHead", (), {})))
seen["head is ours"] = DENSE_HEAD_REGISTRY.get("FocalRetinaNetHead") is ours
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def seen():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


NOTHING = {"meta": [], "backbone": [], "anchors": [], "data": []}


@pytest.mark.parametrize(
    "case, name, registry",
    [
        ("other meta-architecture", "FocalRetinaNet", "META_ARCH_REGISTRY"),
        ("other backbone", "build_resnet_fpn_backbone_without_top_block", "BACKBONE_REGISTRY"),
        ("other data set", "focal_shapes_val", "DatasetCatalog"),
    ],
)
def test_a_taken_name_is_an_error_that_says_by_whom_and_leaves_nothing(seen, case, name, registry):
    message = seen[case]["message"]
    assert message.startswith("ImportError: focal_retina registers")
    assert f"{name!r} in Detectron2's {registry}, but the name is taken by __main__" in message
    assert seen[case]["added"] == NOTHING


def test_once_the_names_are_free_all_are_registered_and_no_others(seen):
    from focal_retina.registration import REGISTERED_NAMES

    meta, backbone, anchors, data = (sorted(names) for _, _, names in REGISTERED_NAMES)
    assert seen["free"] == {
        "message": None,
        "added": {"meta": meta, "backbone": backbone, "anchors": anchors, "data": data},
    }


def test_importing_again_changes_nothing(seen):
    assert seen["again"] == {"message": None, "added": NOTHING}


@pytest.mark.parametrize("case", ["reload", "copy"])
def test_running_it_a_second_time_is_an_error(seen, case):
    assert "taken by focal_retina.modeling.meta_arch (" in seen[case]["message"]
    assert "restart Python" in seen[case]["message"]
    assert seen[case]["added"] == NOTHING


def test_a_head_of_the_same_name_does_not_replace_ours(seen):
    assert "FocalRetinaNetHead" in seen["other head"]["message"]
    assert seen["head is ours"] is True
