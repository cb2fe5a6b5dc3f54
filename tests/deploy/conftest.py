"""A toy model and its exports, made once."""

import numpy as np
import pytest
from helpers import make_run

from focal_retina.deploy import build_meta, write_targets
from focal_retina.engine import load_config, load_detector


@pytest.fixture(scope="session")
def toy_cfg(tmp_path_factory):
    return load_config(make_run(tmp_path_factory.mktemp("toy") / "run", SCORE_THRESH_TEST=0.3))


@pytest.fixture(scope="session")
def toy_model(toy_cfg):
    return load_detector(toy_cfg)


@pytest.fixture(scope="session")
def images():
    """Twenty of unlike sizes and contrasts; the network sees them at 64 to 112 pixels a side."""
    generator = np.random.default_rng(0)
    images = []
    for i in range(20):
        noise = generator.uniform(-1, 1, (64 + 7 * i, 64 + (29 * i) % 90, 3))
        images.append((115 + 6 * (i + 1) * noise).astype(np.uint8))
    return images


@pytest.fixture(
    scope="session",
    params=[pytest.param(True, id="nms"), pytest.param(False, id="dense", marks=pytest.mark.slow)],
)
def exported(request, toy_cfg, toy_model, images, tmp_path_factory):
    """(folder of the export, int8 included; the meta)."""
    folder = tmp_path_factory.mktemp("exported")
    meta = build_meta(toy_cfg, toy_model, with_nms=request.param)
    write_targets(toy_model, meta, folder, images)
    return folder, meta
