"""`auto` takes bf16 where it was measured to be faster, and a measurement is made once."""

from __future__ import annotations

import math

import pytest
import torch

from two_stream.config.schema import DataOptions, EvaluateOptions, Experiment
from two_stream.evaluation.runs.run import scoring_facts
from two_stream.evaluation.scores.words import protocol_line
from two_stream.evaluation.scoring.network import resolve_evaluation
from two_stream.recognizer import create_model
from two_stream.runtime import device as precision
from two_stream.runtime.device import Speedup, native_bf16, precision_reason, resolve_precision

CPU = torch.device("cpu")


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Return a function that says what a measurement would find, and the list of measurements made."""
    made = []
    monkeypatch.setenv("TWO_STREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(precision, "_found", {})
    monkeypatch.setattr(precision, "native_bf16", lambda device: True)

    def pretend(product, convolution):
        precision._found.clear()
        found = Speedup(product, convolution)
        monkeypatch.setattr(precision, "_measure", lambda: made.append(found) or found)

    pretend.made = made
    return pretend


@pytest.mark.parametrize(
    ("product", "convolution", "expected", "reason"),
    [
        (2.0, 2.1, "bf16", "bf16 (2.0x fp32 here)"),
        (0.54, 0.61, "fp32", "fp32 (bf16 0.5x here)"),  # an Intel Xeon with AVX-512 BF16 and no AMX
        (2.0, 1.1, "fp32", "fp32 (bf16 1.1x here)"),
        (1.1, 2.0, "fp32", "fp32 (bf16 1.1x here)"),
        (1.2, 1.2, "bf16", "bf16 (1.2x fp32 here)"),
    ],
)
def test_auto_is_what_was_measured_to_be_clearly_faster(measured, product, convolution, expected, reason):
    measured(product, convolution)
    assert precision_reason("bf16") is None  # nothing is known yet
    assert resolve_precision("auto", CPU) == expected
    assert precision_reason(expected) == reason
    assert precision_reason("fp16") is None


def test_what_is_given_or_of_the_paper_measures_nothing(measured, monkeypatch):
    measured(2.0, 2.0)
    assert resolve_precision("auto", CPU, exact=True) == "fp32"
    assert resolve_precision("fp16", CPU, exact=True) == "fp16"
    assert resolve_precision("bf16", CPU) == "bf16"
    assert resolve_precision("auto", torch.device("cuda")) == "bf16"  # a GPU is believed
    monkeypatch.setattr(precision, "native_bf16", lambda device: False)
    assert resolve_precision("auto", CPU) == "fp32"  # an old machine
    assert measured.made == []
    assert precision_reason("fp32") is None


def test_a_measurement_is_kept_for_the_next_process(measured, tmp_path, monkeypatch):
    measured(2.0, 3.0)
    assert precision.bf16_speedup() == precision.bf16_speedup() == Speedup(2.0, 3.0)
    (kept,) = (tmp_path / "cache" / "precision").iterdir()
    measured(0.5, 0.5)  # the next process would find this
    assert precision.bf16_speedup() == Speedup(2.0, 3.0)
    assert len(measured.made) == 1
    for damage in (
        "",
        "[]",
        '{"product": 2.0}',
        '{"product": "x", "convolution": 1}',
        '{"product": NaN, "convolution": 1}',
    ):
        kept.write_text(damage)
        measured(0.5, 0.5)
        assert precision.bf16_speedup() == Speedup(0.5, 0.5), damage
        precision._found.clear()
        assert precision.bf16_speedup() == Speedup(0.5, 0.5)  # and written again
    assert len(measured.made) == 6
    monkeypatch.setattr(torch, "get_num_threads", lambda: 61)
    measured(4.0, 4.0)
    assert precision.bf16_speedup() == Speedup(4.0, 4.0)  # other threads are another machine
    assert len(list(kept.parent.iterdir())) == 2


@pytest.mark.parametrize("place", ["off", "file"])
def test_a_cache_that_cannot_be_written_is_no_error(measured, tmp_path, monkeypatch, place):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TWO_STREAM_CACHE", "off" if place == "off" else str(tmp_path / "file"))
    measured(2.0, 2.0)
    assert resolve_precision("auto", CPU) == "bf16"
    assert resolve_precision("auto", CPU) == "bf16"
    assert len(measured.made) == 1


def test_scores_and_reports_say_what_was_chosen_and_why(measured):
    measured(0.5, 0.6)
    experiment = Experiment()
    model = create_model("efficient3d/mobilenet_0.5x", 3)
    chosen = resolve_evaluation(model, EvaluateOptions(), CPU, exact=False)
    facts = scoring_facts(experiment.model_copy(update={"evaluate": chosen}), model)
    assert (facts["precision"], facts["precision_reason"]) == ("fp32", "fp32 (bf16 0.5x here)")
    assert "mean of logits · fp32 (bf16 0.5x here)" in protocol_line(facts)
    paper = experiment.model_copy(update={"evaluate": chosen, "data": DataOptions(sampling="paper")})
    assert scoring_facts(paper, model)["precision_reason"] is None
    measured(2.5, 2.0)
    chosen = resolve_evaluation(model, EvaluateOptions(), CPU, exact=False)
    # kept in the cache folder: what this machine was found to be stays
    assert chosen.precision == "fp32"


def test_a_measurement_compares_the_same_work(monkeypatch):
    """By a clock that counts: fp32 takes two of its seconds and bf16 one, so bf16 is twice as fast."""
    seen = []

    def seconds(run):
        kind = run.args[0].dtype
        seen.append((kind, [tuple(tensor.shape) for tensor in run.args]))
        return 2.0 if kind == torch.float32 else 1.0

    monkeypatch.setattr(precision, "_seconds", seconds)
    assert precision._measure() == Speedup(2.0, 2.0)
    assert {kind for kind, _ in seen} == {torch.float32, torch.bfloat16}
    assert all(a[1] == b[1] for a, b in zip(seen[::2], seen[1::2], strict=True))
    monkeypatch.undo()
    real = precision._measure()
    assert all(math.isfinite(value) and value > 0 for value in (real.product, real.convolution))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t: fpu sse avx512_bf16 amx_tile", True),
        ("flags\t: fpu sse amx_bf16", True),
        ("Features\t: fp asimd bf16", True),
        ("flags\t: fpu sse avx512f", False),
        ("", False),
    ],
)
def test_the_cpu_says_whether_it_has_bf16(monkeypatch, flags, expected):
    text = f"processor\t: 0\nmodel name\t: bf16 amx_bf16\n{flags}\nbugs\t: none\n"
    monkeypatch.setattr("pathlib.Path.read_text", lambda *_, **__: text)
    assert native_bf16(CPU) is expected
    assert native_bf16(torch.device("mps")) is False
