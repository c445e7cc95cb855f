"""Counted and measured costs."""

from typing import ClassVar

import pytest
import torch

from two_stream.config.backbones import ResNet3d
from two_stream.config.heads import AverageHead, HfBertHead, LstmHead, NonLocalHead
from two_stream.config.model import ModelOptions
from two_stream.data.clips.dataset import ClipItem
from two_stream.profiling import peak, timing
from two_stream.profiling.costs import (
    clip_shape,
    fvcore_operations,
    meta_model,
    multiply_adds,
    parameter_count,
    stage_costs,
)
from two_stream.profiling.loading import LoadingCost, loading_verdict
from two_stream.profiling.peak import gemm_rate
from two_stream.profiling.timing import PeakMemory, measure_speed
from two_stream.recognizer import Recognizer
from two_stream.zoo import find

CPU = torch.device("cpu")
TINY = ModelOptions(
    backbone=ResNet3d(depth=10, width=0.125),
    head=AverageHead(),
    modality="flow",
    input={"clip_length": 4, "crop": 32},
)


def test_multiply_adds_of_a_published_network():
    model = meta_model(find("3dresnets/resnet18").options, 700)
    assert multiply_adds(model) / 1e9 == pytest.approx(8.308, abs=1e-3)  # shared/fixtures/families/TABLES.md
    assert parameter_count(model) == 33_563_004


def test_stage_costs_by_hand():
    costs = {cost.name: cost for cost in stage_costs(meta_model(TINY, 3))}
    # 2 channels to 8 by 7×7×7, 4×16×16 places
    assert costs["stem"].multiply_adds == 2 * 8 * 343 * 4 * 16 * 16
    assert costs["stem"].parameters == 2 * 8 * 343 + 2 * 8
    assert costs["stem"].output == (8, 2, 8, 8)
    # two 3×3×3 convolutions, 8 to 8, 2×8×8 places
    assert costs["layer1"].multiply_adds == 2 * 8 * 8 * 27 * 2 * 8 * 8
    assert costs["classifier"].multiply_adds == 64 * 3
    assert costs["head"].multiply_adds == 0
    assert sum(cost.parameters for cost in costs.values()) == parameter_count(meta_model(TINY, 3))


def test_what_a_head_does_while_pooling_counts_as_head():
    options = TINY.model_copy(update={"head": NonLocalHead(features=None)})
    costs = {cost.name: cost for cost in stage_costs(meta_model(options, 3))}
    # one place: four 64×64 linear layers, and two products of 1×64 by 64×1
    assert costs["head"].multiply_adds == 4 * 64 * 64 + 2 * 64


def test_lstm_is_counted():
    options = TINY.model_copy(update={"head": LstmHead(hidden=5, layers=1)})
    costs = {cost.name: cost for cost in stage_costs(meta_model(options, 3))}
    assert costs["head"].multiply_adds == 4 * 5 * (64 + 5)


ATTENTION = 4 * 64 * 64 * 5 + 2 * 64 * 5 * 5 + 2 * 64 * 256 * 5  # a block over a class token and four tokens
HEADS = {
    "gru": 3 * 450 * (64 + 450) * 4 + 3 * 450 * (450 + 450) * 4,
    "tcn": 4 * (64 * 256 + 4 * (3 + 1) * 256 * 256),
    "trn": sum(count * 256 * (size * 64 + 256) for size, count in {4: 1, 3: 3, 2: 3}.items()),
    "transformer": ATTENTION,
    "bert": ATTENTION,
    "attentive": 64 * 64 + 2 * 64 * 64 * 4 + 2 * 64 * 4 + 2 * 64 * 256,  # one query to four tokens
}


@pytest.mark.parametrize("kind", HEADS)
def test_heads_are_counted(kind):
    options = {**TINY.model_dump(), "head": {"kind": kind}, "input": {"clip_length": 64, "crop": 32}}
    costs = {cost.name: cost for cost in stage_costs(meta_model(ModelOptions.model_validate(options), 3))}
    assert costs["head"].multiply_adds == HEADS[kind]


def test_measuring_times_every_stage():
    model = Recognizer(TINY, 3)
    speed = measure_speed(model, batch_size=2, device=torch.device("cpu"), precision="fp32", seconds=0.05)
    assert clip_shape(model, 2) == (2, 2, 4, 32, 32)
    assert speed.passes >= 3
    assert speed.milliseconds > 0
    assert speed.clips_per_second == pytest.approx(2000 / speed.milliseconds)
    assert list(speed.stages) == [
        "stem",
        "layer1",
        "layer2",
        "layer3",
        "layer4",
        "head",
        "classifier",
        "other",
    ]
    assert all(speed.stages[name] > 0 for name in list(speed.stages)[:-1])
    assert speed.peak_memory > 50 * 2**20  # torch alone is more
    assert not model.backbone._forward_hooks


def test_training_counts_three_passes_and_leaves_no_gradients():
    model = Recognizer(TINY, 3)
    speed = measure_speed(
        model, batch_size=2, device=CPU, precision="fp32", seconds=0.02, work="training", peak_flops=1e12
    )
    operations = 3 * 2 * multiply_adds(model) * 2
    assert speed.flops_per_second == pytest.approx(operations / speed.milliseconds * 1e3)
    assert speed.share_of_peak == pytest.approx(speed.flops_per_second / 1e12)
    assert speed.stages == {}
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training


def test_fvcore_counts_normalisations_too():
    model = meta_model(TINY, 3)
    # BatchNorm, two per element: stem 8×4×16×16, then per stage its convolutions' outputs, layer1 without shortcut
    stem = 8 * 4 * 16 * 16
    blocks = 2 * 8 * 2 * 8 * 8 + 3 * 16 * 1 * 4 * 4 + 3 * 32 * 1 * 2 * 2 + 3 * 64
    assert fvcore_operations(model) == multiply_adds(model) + 2 * (stem + blocks)
    bert = TINY.model_copy(update={"head": HfBertHead(heads=4, layers=1)})
    with_norms = fvcore_operations(meta_model(bert, 3)) - multiply_adds(meta_model(bert, 3))
    norms = sum(isinstance(part, torch.nn.LayerNorm) for part in meta_model(bert, 3).modules())
    assert norms > 0
    # one time step and the class token, 64 features, five per element
    assert with_norms - 2 * (stem + blocks) == norms * 5 * 2 * 64


def test_memory_marks_start_anew():
    big = torch.zeros(48 * 2**20 // 4)
    big.add_(1)
    del big
    memory = PeakMemory(CPU)
    before = memory.peak() - memory.before
    if memory.kind.startswith("largest"):
        pytest.skip("this system does not restart its mark")
    assert before < 24 * 2**20
    kept = torch.ones(64 * 2**20 // 4)
    del kept
    assert 56 * 2**20 < memory.peak() - memory.before < 96 * 2**20


def test_gemm_rate_counts_two_operations_a_multiply_add(monkeypatch):
    ticks = iter(range(0, 10_000, 2))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(peak, "_SIZES", {"cpu": (16, 32)})
    assert gemm_rate(CPU, "bf16") == 2 * 32**3 / 2.0  # each product takes two of these seconds


def loading(**changed):
    values = {
        "dataset": "d",
        "source": "frames",
        "modality": "rgb",
        "clips": 8,
        "read": 60.0,
        "transform": 8.0,
    }
    values |= {"collate": 2.0, "copy": 1.0, "workers": 2, "clips_per_second": 14.0}
    return LoadingCost(**(values | changed))


def test_the_sentence_names_the_limit():
    assert loading_verdict(loading(), 9.0, "training, fp32") == (
        "the loader delivers 14 clips/s with 2 workers, the model processes 9.0 (training, fp32): "
        "the model is the limit"
    )
    # 50 clips/s × 70 ms: 3.5 processors
    assert loading().workers_for(50.0) == 4
    assert loading_verdict(loading(), 50.0, "x").endswith(
        "the loader is the limit; 4 workers with one processor each would keep up"
    )
    assert loading_verdict(loading(workers=1), 14.5, "x").startswith(
        "the loader delivers 14 clips/s with 1 worker,"
    )
    assert loading_verdict(loading(), 14.5, "x").endswith("they are about equal")


def test_loading_adds_up_reading_apart_from_the_rest(monkeypatch):
    from two_stream.profiling import loading as module

    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def spend(seconds):
        now[0] += seconds

    class Source:
        def read(self, name):
            spend(0.05)
            return name

    class Clips:
        source = Source()

        def __getitem__(self, index):
            assert self.source.read("v") == "v"
            spend(0.01)
            return ClipItem("v", 0, torch.zeros(3, 2, 4, 4, dtype=torch.uint8))

    class Plan:
        dataset = Clips()
        plan: ClassVar = [[0, 1], [2]]

    times, count = module._alone(Plan(), CPU, 60.0)
    assert count == 3
    assert times["read"] == pytest.approx(0.15)
    assert times["transform"] == pytest.approx(0.03)
