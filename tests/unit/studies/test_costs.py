"""Costs of variants: counted right, measured as evaluated, measured once."""

import json

import pytest
import torch

from two_stream.config.backbones import ResNet3d
from two_stream.config.heads import AverageHead, HfBertHead
from two_stream.config.model import ModelOptions
from two_stream.config.schema import EvaluateOptions, Experiment, TrainOptions
from two_stream.profiling import timing as network_cost
from two_stream.profiling.costs import meta_model, multiply_adds, parameter_count
from two_stream.studies import result as costs
from two_stream.studies.result import cost_key, measure_variant, stored_cost

CPU = torch.device("cpu")
SMALL = ModelOptions(
    backbone=ResNet3d(depth=10, width=0.125), head=AverageHead(), input={"clip_length": 4, "crop": 32}
)


def experiment(**changed):
    return Experiment(
        model=SMALL.model_copy(update=changed.pop("model", {})),
        evaluate=EvaluateOptions(**{"precision": "fp32", **changed}),
    )


def test_counts_are_those_of_the_model_before_folding():
    cost = measure_variant(experiment(fold=True), 7, 20.0, device=CPU, seconds=0.02)
    model = meta_model(SMALL, 7)
    assert cost.parameters == parameter_count(model)
    assert cost.multiply_adds == multiply_adds(model)
    assert cost.views == 20.0
    assert 0.1 < cost.latency_ms < 5000
    assert 0 <= cost.memory_mib < 2000
    assert cost.device == "cpu (1 thread), fp32"


def test_a_larger_clip_takes_longer_and_more_memory():
    small = measure_variant(experiment(), 7, None, device=CPU, seconds=0.05)
    large = {"input": SMALL.input.model_copy(update={"clip_length": 16, "crop": 112})}
    big = measure_variant(experiment(model=large), 7, None, device=CPU, seconds=0.05)
    assert big.parameters == small.parameters
    assert big.multiply_adds > 30 * small.multiply_adds
    assert big.latency_ms > 2 * small.latency_ms
    assert big.memory_mib > small.memory_mib


def test_the_network_is_measured_in_the_precision_of_the_evaluation(monkeypatch):
    seen = []
    real = network_cost.prepare_for_inference
    monkeypatch.setattr(
        network_cost,
        "prepare_for_inference",
        lambda model, options: seen.append(options) or real(model, options),
    )
    cost = measure_variant(experiment(precision="bf16"), 7, None, device=CPU, seconds=0.02)
    assert cost.device.endswith(", bf16")
    assert (seen[0].precision, seen[0].fold) == ("bf16", True)
    paper = experiment(precision="auto").model_copy(update={"train": TrainOptions(selection="paper")})
    assert measure_variant(paper, 7, None, device=CPU, seconds=0.02).device.endswith(", fp32")
    assert not seen[1].fold


def test_equal_models_are_measured_once(tmp_path, monkeypatch):
    path, calls = tmp_path / "deep" / "costs.json", []
    real = measure_variant

    def counted(*args, **options):
        calls.append(args[0])
        return real(*args, seconds=0.01, **options)

    monkeypatch.setattr(costs, "measure_variant", counted)
    first = stored_cost(path, experiment(), 7, 1.0, device=CPU)
    other_training = experiment().model_copy(update={"seed": 5, "train": TrainOptions(epochs=3)})
    again = stored_cost(path, other_training, 7, 10.0, device=CPU)
    assert len(calls) == 1
    assert (again.latency_ms, again.memory_mib, again.views) == (first.latency_ms, first.memory_mib, 10.0)
    bert = experiment(model={"head": HfBertHead(heads=4, layers=1)})
    assert stored_cost(path, bert, 7, 1.0, device=CPU).parameters > first.parameters
    assert stored_cost(path, experiment(), 7, 1.0, device=CPU) == first
    assert len(calls) == 2
    assert len(json.loads(path.read_text())) == 2


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"a": 1}', '{"a": {"parameters": 1}}', '{"a": {"b": 1}}']
)
def test_a_damaged_file_is_measured_anew(tmp_path, monkeypatch, content):
    path = tmp_path / "costs.json"
    path.write_text(content)
    fixed = costs.VariantCost(1, 2, None, 3.0, 4.0, "x")
    monkeypatch.setattr(costs, "measure_variant", lambda *args, **options: fixed)
    assert stored_cost(path, experiment(), 7, None, device=CPU) == fixed
    assert list(json.loads(path.read_text())) == [cost_key(experiment(), 7, CPU)]


def test_the_key_knows_what_a_cost_depends_on():
    key = cost_key(experiment(), 7, CPU)
    assert cost_key(experiment(), 7, CPU) == key
    assert cost_key(experiment(), 8, CPU) != key
    for other in (
        experiment(precision="bf16"),
        experiment(fold=False),
        experiment(model={"dropout": 0.1}),
        experiment().model_copy(update={"channels_last": False}),
    ):
        assert cost_key(other, 7, CPU) != key
    assert cost_key(experiment(crops="center"), 7, CPU) == key
