from pathlib import Path

import pytest
import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from helpers import default_cfg
from helpers import make_dense_batch as make_batch
from torch import distributed, nn

from focal_retina.losses import (
    OHEM,
    BatchNormalizer,
    CrossEntropy,
    EmaNormalizer,
    FocalLoss,
    ImageNormalizer,
)
from focal_retina.losses.normalizer import build_loss_normalizer, normalized_loss


def test_ema_has_detectron2s_numbers_to_the_last_digit():
    class Detectron2:
        update = DenseDetector._ema_update

    theirs, ours = Detectron2(), EmaNormalizer()
    for counts in ([7, 0], [0, 0], [123, 45], [1, 2], [900, 1]):
        expected = theirs.update("normalizer", max(sum(counts), 1), 100)
        returned = ours(torch.tensor(counts))
        assert ours.ema.item() == expected
        torch.testing.assert_close(returned, torch.tensor(expected), rtol=1e-7, atol=0)


def test_ema_stays_in_evaluation_and_earlier_results_stay_in_training():
    normalizer = EmaNormalizer()
    first = normalizer(torch.tensor([10]))
    normalizer(torch.tensor([1000]))
    assert first == 91
    normalizer.eval()
    before = normalizer.ema.clone()
    assert normalizer(torch.tensor([1000])) == before.float()
    assert normalizer.ema == before


def test_batch_and_image_count_positives_and_at_least_one():
    assert BatchNormalizer()(torch.tensor([3, 0, 4])) == 7
    assert BatchNormalizer()(torch.tensor([0, 0])) == 1
    assert ImageNormalizer()(torch.tensor([3, 0, 4])).tolist() == [9, 3, 12]


@pytest.mark.parametrize("normalizer", [EmaNormalizer(), BatchNormalizer(), ImageNormalizer()])
def test_no_value_is_read_on_the_host(normalizer):
    """Meta tensors have no values: what runs on them never waits for a CUDA device."""
    positives = torch.tensor([3, 4], device="meta")
    assert normalizer.to("meta")(positives).device.type == "meta"


def test_state_dict_has_the_average_only_once_it_was_updated():
    model, resumed = nn.Sequential(EmaNormalizer()), nn.Sequential(EmaNormalizer())
    assert list(model.state_dict()) == []
    model[0](torch.tensor([42]))
    assert list(model.state_dict()) == ["0.ema"]
    assert resumed.load_state_dict(model.state_dict(), strict=True) == ([], [])
    assert resumed[0].ema == model[0].ema == 94.2


def test_checkpoint_without_average_loads_strictly_and_starts_anew():
    model = nn.Sequential(nn.ReLU(), EmaNormalizer(initial=50.0))
    model[1](torch.tensor([42]))
    assert model.load_state_dict(given := {}, strict=True) == ([], [])
    assert model[1].ema == 50
    assert not given  # the caller's own dict is left alone


def test_build_passes_values_and_names_the_key():
    cfg = default_cfg()
    node = cfg.MODEL.FOCAL_RETINA.NORMALIZER
    built = {"batch": BatchNormalizer, "image": ImageNormalizer, "ema": EmaNormalizer}
    for mode, expected in built.items():
        node.MODE = mode
        assert type(build_loss_normalizer(cfg)) is expected
    node.INITIAL, node.MOMENTUM = 30.0, 0.5
    assert build_loss_normalizer(cfg)(torch.tensor([10])) == 20
    node.MODE = "anchors"
    with pytest.raises(ValueError, match="NORMALIZER.MODE is 'anchors'.*batch, ema, image"):
        build_loss_normalizer(cfg)
    with pytest.raises(ValueError, match="initial is inf"):
        EmaNormalizer(initial=float("inf"))


def test_normalized_loss_of_a_batch_and_of_images():
    loss, positives = FocalLoss(), torch.tensor([4, 0, 10])
    (x,), (y,) = make_batch(level_sizes=(30,), num_images=3)
    whole = normalized_loss(loss, [x], [y], BatchNormalizer()(positives), anchors=[])
    torch.testing.assert_close(whole, loss([x], [y])[0] / 14)

    by_image = normalized_loss(loss, [x], [y], ImageNormalizer()(positives), anchors=[])
    images = zip(x.split(1), y.split(1), (4, 1, 10), strict=True)
    quotients = [loss([x], [y])[0] / divisor for x, y, divisor in images]
    torch.testing.assert_close(by_image, sum(quotients) / 3)


def test_a_count_of_the_losss_own_goes_before_the_normalizer():
    logits, labels = make_batch(level_sizes=(40,))
    anchors = [torch.rand(40, 2).repeat(1, 2) + torch.tensor([0.0, 0.0, 1.0, 1.0])]
    loss = OHEM(batch_size=5, nms_thresh=1.0)
    total, count = loss(logits, labels, anchors)
    assert count == 10
    for normalizer in (torch.tensor(3.0), torch.tensor([3.0, 8.0])):
        quotient = normalized_loss(loss, logits, labels, normalizer, anchors)
        torch.testing.assert_close(quotient, total / 10)


def train_worker(rank: int, world_size: int, folder: Path) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world_size
    )
    torch.save(steps_of_worker(rank, world_size), folder / f"{rank}.pt")
    distributed.destroy_process_group()


def steps_of_worker(rank: int, world_size: int) -> torch.Tensor:
    """Normalized losses of each iteration, of this worker's share of the images."""
    ema, batch = EmaNormalizer(), BatchNormalizer()
    ohem = OHEM(batch_size=3, nms_thresh=0.5, one_to_three=False)
    steps = []
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        logits = torch.randn(2, 20, 3, generator=generator)
        labels = torch.randint(-1, 4, (2, 20), generator=generator)
        labels[1, 2:] = -1  # an image with less to mine than OHEM's batch, and perhaps no positives
        corners = 10 * torch.rand(20, 2, generator=generator)
        anchors = [torch.cat([corners, corners + 2], dim=1)]
        share = slice(rank, None, world_size)
        logits, labels = [logits[share]], [labels[share]]
        positives = ((labels[0] >= 0) & (labels[0] < 3)).sum(dim=1)
        for loss, normalizer in ((CrossEntropy(), ema), (CrossEntropy(), batch), (ohem, batch)):
            divisor = normalizer(positives)
            steps.append(normalized_loss(loss, logits, labels, divisor, anchors).item())
    return torch.tensor(steps)


@pytest.mark.slow
def test_two_workers_train_as_one_does(tmp_path):
    """The mean of two workers' losses, what DDP descends, is the loss of one with all images."""
    torch.multiprocessing.spawn(train_worker, (2, tmp_path), nprocs=2)
    two_workers = torch.stack([torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]).mean(dim=0)
    torch.testing.assert_close(two_workers, steps_of_worker(0, 1), rtol=1e-5, atol=0)
