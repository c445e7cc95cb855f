"""Counted and measured costs."""

import pytest
import torch

from two_stream.config.model import AverageHead, LstmHead, ModelOptions, NonLocalHead, ResNet3d
from two_stream.profiling import clip_shape, measure, meta_model, multiply_adds, parameter_count, stage_costs
from two_stream.recognizer import Recognizer
from two_stream.zoo import find

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


def test_measuring_times_every_stage():
    model = Recognizer(TINY, 3)
    speed = measure(model, batch_size=2, device=torch.device("cpu"), precision="fp32", seconds=0.05)
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
