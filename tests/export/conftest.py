"""A toy model and its exports, made once."""

import numpy as np
import pytest
from detectron2.config import get_cfg
from toy_run import make_run

from focal_retina import add_focal_retina_config, merge_config_file
from focal_retina.export import (
    DenseNetwork,
    DetectionNetwork,
    build_meta,
    export_program,
    save_onnx,
    save_program,
)
from focal_retina.export.predictor import load_detector


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("toy") / "run", SCORE_THRESH_TEST=0.3)


@pytest.fixture(scope="session")
def toy_cfg(toy_folder):
    cfg = get_cfg()
    add_focal_retina_config(cfg)
    merge_config_file(cfg, str(toy_folder / "config.yaml"))
    cfg.MODEL.WEIGHTS = str(toy_folder / "model_final.pth")
    return cfg


@pytest.fixture(scope="session")
def toy_model(toy_cfg):
    return load_detector(toy_cfg).eval()


@pytest.fixture(
    scope="session",
    params=[pytest.param(True, id="nms"), pytest.param(False, id="dense", marks=pytest.mark.slow)],
)
def exported(request, toy_cfg, toy_model, tmp_path_factory):
    """(folder with model.pt2, model.onnx and meta.json; the meta)."""
    folder = tmp_path_factory.mktemp("exported")
    meta = build_meta(toy_cfg, toy_model, with_nms=request.param)
    network = (DetectionNetwork if request.param else DenseNetwork)(toy_model)
    program = export_program(network, meta.preprocessing)
    meta.save(folder)
    save_program(program, folder / "model.pt2")
    save_onnx(program, folder / "model.onnx", network.output_names)
    return folder, meta


@pytest.fixture(scope="session")
def images():
    """Twenty of unlike sizes and contrasts; the network sees them at 64 to 112 pixels a side."""
    generator = np.random.default_rng(0)
    images = []
    for i in range(20):
        noise = generator.uniform(-1, 1, (64 + 7 * i, 64 + (29 * i) % 90, 3))
        images.append((115 + 6 * (i + 1) * noise).astype(np.uint8))
    return images
