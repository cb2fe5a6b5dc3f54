"""The copy for inference, and the compiled network, against the model that they were made from."""

import copy
import shutil

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import build_model
from helpers import load, make_batch, toy_cfg
from torch import nn
from torch._dynamo.testing import CompileCounter

from focal_retina.modeling.inference import (
    compile_network,
    fold_batch_norm,
    fold_frozen_batch_norm,
    inference_copy,
)


@pytest.fixture(params=["FrozenBN", "BN"])
def model(request):
    torch.manual_seed(0)
    thresh = "MODEL.RETINANET.SCORE_THRESH_TEST", 0.001
    model = build_model(toy_cfg("MODEL.RESNETS.NORM", request.param, *thresh))
    change_norms(model)
    nn.init.normal_(model.head.cls_score.weight, std=0.1)
    return model


def change_norms(model):
    for layer in model.modules():
        if isinstance(layer, FrozenBatchNorm2d | nn.BatchNorm2d) and layer.weight is not None:
            nn.init.uniform_(layer.weight, 0.5, 1.0)
            nn.init.normal_(layer.bias, std=0.1)
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 1.5)


def losses_and_gradients(model):
    """Of one step."""
    model.train().zero_grad()
    losses = model(2 * make_batch(size=(96, 160)))
    sum(losses.values()).backward()
    gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    return {k: v.detach() for k, v in losses.items()}, gradients


@pytest.fixture(params=["resnet", "efficientnet"])
def frozen(request):
    if request.param == "resnet":
        cfg = toy_cfg("MODEL.RESNETS.NORM", "FrozenBN")
    else:
        pytest.importorskip("efficientnet_lite_pytorch")
        cfg = load("finetune/efficientnet_lite0.yaml", "MODEL.RETINANET.NUM_CLASSES", 2)
    torch.manual_seed(0)
    # In float64: in fp32, rounding decides on which side of a ReLU's kink an activation lies.
    return build_model(cfg).double()


def test_training_with_folded_norms_is_the_same_to_rounding(frozen):
    folded = copy.deepcopy(frozen)
    fold_frozen_batch_norm(folded)
    assert folded.state_dict().keys() == frozen.state_dict().keys()
    for model in (folded, copy.deepcopy(folded)):
        # What was computed of the first weights must not outlive a checkpoint.
        losses_and_gradients(model)
        change_norms(frozen)
        model.load_state_dict(frozen.state_dict())
        expected, expected_gradients = losses_and_gradients(copy.deepcopy(frozen))
        losses, gradients = losses_and_gradients(copy.deepcopy(model))
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0)
        assert gradients.keys() == expected_gradients.keys()
        for name, gradient in gradients.items():
            expected = expected_gradients[name]
            assert (gradient - expected).norm() < 1e-4 * expected.norm() + 1e-6, name
    assert not has_norms(inference_copy(folded).backbone)


def has_norms(network):
    return any(isinstance(x, FrozenBatchNorm2d | nn.BatchNorm2d) for x in network.modules())


def predict(model):
    """The dense outputs of a random image."""
    image = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        features = model.backbone(image)
        logits, deltas = model.head([features[name] for name in model.head_in_features])
        return [*logits, *deltas]


def test_fp32_predictions_are_the_models_own(model):
    copied = inference_copy(model.train(), "fp32")
    assert model.training and not copied.training
    for actual, expected in zip(predict(copied), predict(model.eval()), strict=True):
        assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert actual.is_contiguous(memory_format=torch.channels_last)


def test_bf16_runs_the_network_in_bf16_and_gives_fp32_detections(model):
    copied = inference_copy(model, "bf16")
    assert {x.dtype for x in predict(copied)} == {torch.bfloat16}
    image = torch.randint(256, (3, 96, 128), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        narrow, wide = (
            x([{"image": image}])[0]["instances"] for x in (copied, inference_copy(model))
        )
    assert len(narrow) > 10
    assert narrow.scores.dtype == narrow.pred_boxes.tensor.dtype == torch.float32
    torch.testing.assert_close(narrow.scores[:5], wide.scores[:5], rtol=0.05, atol=0.05)


def test_the_model_is_left_alone_and_the_copy_has_no_norm(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert not has_norms(inference_copy(model, "bf16")) and has_norms(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_statistics_of_the_batch_are_not_folded():
    conv = Conv2d(2, 3, 1, norm=nn.BatchNorm2d(3))
    fold_batch_norm(conv.train())
    assert isinstance(conv.norm, nn.BatchNorm2d)


def test_unknown_precision_lists_the_known_ones():
    with pytest.raises(ValueError, match="int8.*fp32, bf16"):
        inference_copy(nn.Identity(), "int8")


def test_compiled_network_keeps_detections_and_keys(model):
    """Traced and run without a compiler, which would take minutes."""
    batch, keys = [{"image": torch.randint(256, (3, 64, 96))}], list(model.state_dict())
    with torch.no_grad():
        (before,) = model.eval()(batch)
        compile_network(model, backend=(graphs := CompileCounter()))
        (after,) = model(batch)
    assert graphs.frame_count > 0 and graphs.op_count > 50
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(after["instances"].scores, before["instances"].scores)


def test_without_a_compiler_the_error_says_what_to_do(model, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="C\\+\\+ compiler.*COMPILE False"):
        compile_network(model)
