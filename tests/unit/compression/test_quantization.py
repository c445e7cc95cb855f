"""Int8 runs: calibrated or trained for, told in their folder, scored like any other."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.ao.quantization import FakeQuantize

from tests.helpers.datasets import SmallWorld
from two_stream.commands import compress as command
from two_stream.compression.quantization import QuantizationAware, calibration_videos, quantise_run
from two_stream.config.schema import Experiment
from two_stream.errors import CheckpointError, SettingsError
from two_stream.evaluation.runs.run import evaluate_run, load_run
from two_stream.recognizer import Recognizer, create_model
from two_stream.surgery.int8_graph import MovingRange
from two_stream.training.train import train


def int8(
    world: SmallWorld, source: Path, name: str, compress: dict[str, Any], **train_options: Any
) -> Experiment:
    given = world.experiment(name, init=source, **train_options)
    section = {"kind": "quantize", "source": source, "observer": "minmax", **compress}
    return Experiment.model_validate({**given.model_dump(), "compress": section})


@pytest.fixture(scope="module")
def static_run(small_world: SmallWorld, rgb_run: Path) -> Path:
    return quantise_run(int8(small_world, rgb_run, "static", {"clips": 6})).root


def test_the_run_is_an_ordinary_one_in_int8(rgb_run: Path, static_run: Path) -> None:
    before, after = load_run(rgb_run), load_run(static_run, device="auto")
    assert after.class_names == before.class_names
    assert after.meta == before.meta
    assert after.model.cpu_only
    tables = [evaluate_run(run, part="test")[0] for run in (before, after)]
    assert tables[1].ids == tables[0].ids
    noise = ((tables[1].logits - tables[0].logits) ** 2).mean() / (tables[0].logits ** 2).mean()
    assert noise < 0.01  # 20 dB
    assert noise > 0.0
    assert tables[1].meta["model_sha256"] == after.model_sha256
    facts = json.loads((static_run / "environment.json").read_text())
    assert facts["quantised"] == f"{rgb_run} {before.model_sha256}"
    size = [(run / "best/model.safetensors").stat().st_size for run in (rgb_run, static_run)]
    assert size[1] < 0.35 * size[0]


def test_ranges_are_measured_on_the_training_part_alone(small_world: SmallWorld, rgb_run: Path) -> None:
    run, experiment = load_run(rgb_run), small_world.experiment()
    videos = [video.id for video in calibration_videos(run, experiment, 6)]
    trained = {line.split()[0] for line in (small_world.root / "settings/tiny/train_rgb_split1.txt").open()}
    held = {video.id for video in calibration_videos(run, experiment, 1000)}
    assert len(videos) == 6
    assert set(videos) <= held < trained  # the validation part is left out too
    assert videos == [video.id for video in calibration_videos(run, experiment, 6)]


def test_another_observer_gives_other_scales(
    small_world: SmallWorld, rgb_run: Path, static_run: Path
) -> None:
    made = quantise_run(
        int8(small_world, rgb_run, "averaged", {"clips": 8, "observer": "moving_average"})
    ).root
    scales = [
        load_run(run).model.backbone.graph.get_submodule("layer1.0.conv1").scale for run in (static_run, made)
    ]
    assert 0.3 < scales[0] / scales[1] < 3.0
    assert scales[0] != scales[1]


def test_what_cannot_be_quantised_is_told(small_world: SmallWorld, static_run: Path) -> None:
    with pytest.raises(SettingsError, match="already quantized"):
        quantise_run(int8(small_world, static_run, "twice", {}))
    library = create_model("timm/resnet50_tsn", num_classes=2)
    with pytest.raises(SettingsError, match="backbone timm is from a library"):
        from two_stream.compression.quantization import check_quantisable

        check_quantisable(library)
    with pytest.raises(CheckpointError, match="an int8 network cannot be trained"):
        train(small_world.experiment("from_int8", init=static_run))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"compress": {"method": "static"}}, "requires no training; use `two-stream compress quantize RUN`"),
        ({"ema": 0.9}, "`train.ema` cannot be combined with"),
        ({"precision": "bf16"}, "quantization-aware training requires fp32"),
        ({"freeze_until": "stem"}, "`train.freeze_until` cannot be combined with"),
    ],
)
def test_contradictions(small_world: SmallWorld, rgb_run: Path, options: dict[str, Any], words: str) -> None:
    compress = options.pop("compress", {"method": "qat"})
    with pytest.raises(SettingsError, match=words):
        QuantizationAware(int8(small_world, rgb_run, "wrong", compress, **options))


@pytest.fixture(scope="module")
def aware(small_world: SmallWorld, rgb_run: Path) -> Path:
    return train(int8(small_world, rgb_run, "aware", {"method": "qat"})).run.root


def test_what_was_trained_for_becomes_int8(aware: Path, rgb_run: Path) -> None:
    best, trained = load_run(aware), load_run(aware, "last")
    assert best.model.cpu_only
    assert not trained.model.cpu_only
    assert (aware / "trained" / "state.pt").is_file()
    fake, _ = _read(aware / "trained")
    clips = torch.randint(0, 256, (4, 3, 8, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        simulated, computed = fake(clips), best.model(clips)
        before = load_run(rgb_run).model(clips)
    scale = float(simulated.abs().max())
    assert (simulated - computed).abs().max() < 0.1 * scale  # a rounding here and there
    assert not torch.equal(simulated, before)
    facts = json.loads((aware / "environment.json").read_text())
    assert facts["quantised"].startswith(str(rgb_run))
    assert evaluate_run(best)[0].meta["model_sha256"] == best.model_sha256


def test_ranges_and_statistics_are_held_from_their_share_on(small_world: SmallWorld, rgb_run: Path) -> None:
    experiment = int8(
        small_world, rgb_run, "held", {"method": "qat", "ranges_until": 0.5, "statistics_until": 0.75}
    )
    aware = QuantizationAware(experiment)
    aware.set_epoch_length(2)  # of two epochs: four steps
    model = load_run(rgb_run).model
    aware.start(model, resumed=False)
    clips = torch.randint(0, 256, (2, 3, 8, 32, 32), dtype=torch.uint8)
    found = []
    for step in range(4):
        model.train()
        model(clips)
        found.append(_moving(model))
        aware.stepped([model], step)
    assert found[0][0] < found[1][0] == found[2][0] == found[3][0]
    means = [mean for _, mean in found]
    assert not torch.equal(means[0], means[1])
    assert not torch.equal(means[1], means[2])
    assert torch.equal(means[2], means[3])
    model.eval()
    before = _moving(model)
    model(clips)
    assert _moving(model)[0] == before[0]


@pytest.mark.slow
def test_a_resumed_run_is_the_same_run(
    small_world: SmallWorld, rgb_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"compress": {"method": "qat", "ranges_until": 0.4, "statistics_until": 0.4}}
    whole = train(int8(small_world, rgb_run, "whole", **options, epochs=3)).run.root
    part = int8(small_world, rgb_run, "part", **options, epochs=3)
    stepped = QuantizationAware.stepped

    def interrupting(self: QuantizationAware, models: Any, step: int) -> None:
        stepped(self, models, step)
        if step == 5:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(QuantizationAware, "stepped", interrupting)
        assert train(part).interrupted == signal.SIGINT
    made = train(part, resume=True).run.root
    for folder in ("last", "trained", "best"):
        one, other = (_tensors(run / folder) for run in (whole, made))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), folder
    shutil.rmtree(made / "best")  # as if killed between training and conversion
    shutil.copytree(made / "trained", made / "best")
    again = train(part, resume=True)
    assert again.already_finished
    assert load_run(made).model.cpu_only


@pytest.mark.slow
def test_a_narrowed_network_becomes_int8_too(small_world: SmallWorld, rgb_run: Path) -> None:
    given = small_world.experiment("narrow", init=rgb_run, epochs=1).model_dump()
    section = {"kind": "prune", "source": rgb_run, "what": "channels", "amount": 0.5}
    narrow = train(Experiment.model_validate({**given, "compress": section})).run.root
    width = load_run(narrow).model.backbone.get_submodule("layer1.0.conv1").out_channels
    assert width < load_run(rgb_run).model.backbone.get_submodule("layer1.0.conv1").out_channels  # type: ignore[operator]
    made = quantise_run(int8(small_world, narrow, "narrow_static", {"clips": 4})).root
    aware = train(int8(small_world, narrow, "narrow_aware", {"method": "qat"}, epochs=1)).run.root
    for path in (made, aware):
        model = load_run(path).model
        assert [alteration.kind for alteration in model.alterations] == ["narrowed", "int8"]
        assert model.backbone.graph.get_submodule("layer1.0.conv1").out_channels == width  # type: ignore[union-attr, operator]
        assert evaluate_run(path)[0].logits.shape == (6, 3)


def test_the_command(small_world: SmallWorld, rgb_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--name", "said", "--clips", "6", "--observer", "minmax", "--keep", "classifier"]
    assert command.main(["quantize", str(rgb_run), *flags]) == 0
    made = rgb_run.parent / "said"
    assert type(load_run(made).model.classifier) is torch.nn.Linear
    report = json.loads((made / "compression.json").read_text())
    assert report["kind"] == "quantize"
    assert report["after"]["costs"]["file_bytes"] < report["before"]["costs"]["file_bytes"]
    assert "said against rgb" in capsys.readouterr().out
    with pytest.raises(SettingsError, match="the run exists"):
        command.main(["quantize", str(rgb_run), *flags])
    with pytest.raises(SettingsError, match="--resume requires --method qat"):
        command.main(["quantize", str(rgb_run), "--resume"])


def _read(folder: Path) -> tuple[Recognizer, dict[str, Any]]:
    from two_stream.pretrained import read_model

    return read_model(folder)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def _moving(model: Recognizer) -> tuple[int, torch.Tensor]:
    """Return how many batches the first range of activations saw, and the first BatchNorm's mean."""
    ranges = [part for part in model.modules() if isinstance(part, FakeQuantize)]
    first = next(
        r.activation_post_process for r in ranges if isinstance(r.activation_post_process, MovingRange)
    )
    norm = next(part for part in model.modules() if isinstance(part, torch.nn.BatchNorm3d))
    return int(first.seen), norm.running_mean.clone()  # type: ignore[union-attr]
