"""Which arithmetic a training step runs in."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from helpers import default_cfg
from torch import nn

from focal_retina.engine import SafeCheckpointer, precision
from focal_retina.engine.resume import settings_of

PROCESSORS = {
    "Zen 3": ("flags\t\t: fpu avx2 fma f16c", False),
    "Skylake-X": ("flags\t\t: fpu avx2 avx512f avx512bw avx512_vnni", False),
    "Zen 4": ("flags\t\t: fpu avx2 avx512f avx512_bf16", True),
    "Sapphire Rapids": ("flags\t\t: fpu avx512f avx512_bf16 amx_bf16 amx_tile", True),
    "Graviton 3": ("Features\t: fp asimd sve bf16 i8mm", True),
    "Graviton 2": ("Features\t: fp asimd fphp", False),
    "unknown": ("model name\t: something", False),
}


@pytest.fixture
def processor(monkeypatch, tmp_path):
    """Make this machine another one, by name."""
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)

    def become(name):
        cpuinfo = tmp_path / "cpuinfo"
        cpuinfo.write_text(f"processor\t: 0\n{PROCESSORS[name][0]}\n\nprocessor\t: 1\n")
        monkeypatch.setattr(precision, "_CPUINFO", cpuinfo)

    return become


def make_cfg(tmp_path, **options):
    cfg = default_cfg("OUTPUT_DIR", str(tmp_path), "SOLVER.AMP.ENABLED", True)
    cfg.MODEL.FOCAL_RETINA.update({"PRECISION": "auto", "INFERENCE_PRECISION": "auto", **options})
    cfg.freeze()
    return cfg


@pytest.mark.parametrize("name", PROCESSORS)
def test_auto_is_bf16_where_the_processor_computes_it(name, processor, tmp_path):
    processor(name)
    expected = "bf16" if PROCESSORS[name][1] else "fp32"
    assert precision.bf16_support("cpu")[0] is PROCESSORS[name][1]
    cfg = precision.resolve_precision(make_cfg(tmp_path))
    assert cfg.MODEL.FOCAL_RETINA.PRECISION == expected == precision.precision_of(cfg)
    assert expected == cfg.MODEL.FOCAL_RETINA.INFERENCE_PRECISION


@pytest.mark.parametrize(
    "limit, bf16, avx512",
    [("AVX2", False, False), ("AVX512_CORE", False, True), ("AVX512_CORE_BF16", True, True)],
)
def test_onednns_limit_imitates_a_lesser_processor(limit, bf16, avx512, processor, monkeypatch):
    processor("Sapphire Rapids")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert precision.bf16_support("cpu")[0] is bf16
    assert ("avx512f" in precision.cpu_flags()) is avx512


@pytest.mark.parametrize("is_native", [True, False])
def test_gpus_before_ampere_have_no_bf16(is_native, monkeypatch):
    def supported(including_emulation):
        return is_native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert precision.bf16_support("cuda:1")[0] is is_native


def test_a_resumed_run_keeps_its_precision(processor, tmp_path):
    """Begun where bf16 is native, and gone on where it is not."""
    processor("Zen 4")
    begun = precision.resolve_precision(make_cfg(tmp_path, INFERENCE_PRECISION="fp32"))
    settings = {"settings": settings_of(begun, None)}
    SafeCheckpointer(nn.Linear(1, 1), tmp_path).save("model_0000007", trainer=settings)
    processor("Zen 3")
    cfg = make_cfg(tmp_path)
    assert precision.precision_of(precision.resolve_precision(cfg)) == "fp32"
    resumed = precision.resolve_precision(cfg, resume=True).MODEL.FOCAL_RETINA
    assert (resumed.PRECISION, resumed.INFERENCE_PRECISION) == ("bf16", "fp32")


@pytest.mark.parametrize(
    "name, level, reason",
    [("Zen 3", "WARNING", ": the CPU has no bf16 instructions"), ("Zen 4", "INFO", "")],
)
def test_emulated_bf16_is_a_warning_with_factor_and_key(name, level, reason, processor, caplog):
    """A processor with bf16 is no reason for fp32."""
    precision.log_precision.cache_clear()
    processor(name)
    with caplog.at_level("INFO"):
        precision.log_precision("training", "bf16", "cpu")
        precision.log_precision("training", "fp32", "cpu")
    bf16, fp32 = caplog.records
    assert (bf16.levelname, fp32.levelname) == (level, "INFO")
    assert fp32.message.partition(" (")[0] == f"training in fp32{reason}"
    if level == "WARNING":
        assert "13 times" in bf16.message and "PRECISION fp32" in bf16.message


class Model(nn.Module):
    """loss = mean(w * x), and the product's dtype."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1, bias=False)

    def forward(self, batch):
        y = self.linear(batch)
        self.dtype = y.dtype
        return {"loss": y.float().mean()}


@pytest.mark.parametrize(
    "enabled, name, dtype",
    [(False, "bf16", torch.float32), (True, "fp32", torch.float32), (True, "bf16", torch.bfloat16)],
)
def test_step_runs_in_the_precision_of_the_config(enabled, name, dtype):
    cfg = default_cfg("SOLVER.AMP.ENABLED", enabled, "MODEL.FOCAL_RETINA.PRECISION", name)
    model, step_trainer = Model(), precision.STEP_TRAINERS[precision.precision_of(cfg)]
    weight, before = model.linear.weight, model.linear.weight.detach().clone()
    trainer = step_trainer(model, [torch.ones(2, 4)], torch.optim.SGD(model.parameters(), 0.1))
    with EventStorage() as storage:
        trainer.iter = 0
        trainer.run_step()
    assert model.dtype == dtype and weight.dtype == torch.float32
    # d mean(w·x) / dw = x, with learning rate 0.1
    torch.testing.assert_close(weight, before - 0.1)
    assert storage.latest()["total_loss"][0] == pytest.approx(before.sum().item(), abs=1e-2)
