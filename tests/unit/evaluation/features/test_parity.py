"""Scores from stored features are those of the videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.datasets import write_frame_dataset
from tests.helpers.models import difference, settled_model
from tests.helpers.runs import (
    BERT,
    LARGER,
    MOBILENET,
    NONLOCAL,
    SLOWFAST,
    experiment_of,
    save_run,
    with_features,
)
from two_stream.backbones import Backbone
from two_stream.errors import CheckpointError, DataError, SettingsError
from two_stream.evaluation.features.cache import FeatureCache
from two_stream.evaluation.features.extract_features import write_features
from two_stream.evaluation.runs.run import evaluate_run, load_run
from two_stream.heads import HEADS
from two_stream.recognizer import Recognizer
from two_stream.types import FeatureLayout

CSN = {"kind": "csn", "depth": 26, "width": 0.25, "temporal_stride": 4}
TIMM = {"kind": "timm", "name": "test_resnet", "temporal_stride": 4}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], bool, dict[str, Any]]] = {
    "bert": (MOBILENET, BERT, False, {}),
    "bert from maps": (MOBILENET, BERT, True, {}),
    "frmb, lstm": (
        MOBILENET,
        {"kind": "lstm", "hidden": 16},
        False,
        {"reduction": "frmb", "reduced_channels": 64},
    ),
    "non-local over places": (MOBILENET, NONLOCAL, True, {"input": LARGER}),
    "non-local over time": (MOBILENET, {**NONLOCAL, "over": "time"}, False, {}),
    "slowfast late": (SLOWFAST, BERT, False, {}),
    "slowfast late, non-local": (SLOWFAST, NONLOCAL, True, {"input": LARGER}),
    "slowfast early": ({**SLOWFAST, "fusion": "early"}, {"kind": "concat", "features": 24}, False, {}),
    "timm": (TIMM, {"kind": "average"}, False, {}),
    "csn": (CSN, {"kind": "average", "features": 20}, False, {}),
}


def make(world: Path, tmp_path: Path, case: str, **settings: Any) -> tuple[Path, Path]:
    """A run over the cache of its own backbone; returns the run and the cache."""
    backbone, head, maps, options = CASES[case]
    experiment = experiment_of(world, backbone, head, runs=tmp_path, model=options, **settings)
    model = settled_model(experiment.model)
    cache = tmp_path / "cache"
    write_features(model, experiment, cache, maps=maps)
    return save_run(with_features(experiment, cache), model), cache


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.slow)
        if case in ("slowfast late", "slowfast early", "non-local over time", "timm", "csn")
        else case
        for case in CASES
    ],
)
def test_logits_of_every_view_are_the_same(world: Path, tmp_path: Path, case: str) -> None:
    run, cache = make(world, tmp_path, case)
    cached, path = evaluate_run(run, device="cpu")
    read, _ = evaluate_run(run, device="cpu", uncached=True, out=tmp_path / "read.npz")
    assert path.name == "test_multi_ten_logits.npz"
    assert cached.ids == read.ids
    assert cached.view_logits is not None
    assert read.view_logits is not None
    clips = 3 if load_run(run).model.spec.stride == 1 else 1  # of 8 frames in videos of 25
    assert len(cached.view_logits) == 3 * clips * 10
    assert difference(cached.view_logits, read.view_logits) < 1e-5
    assert difference(cached.logits, read.logits) < 1e-5
    assert str(FeatureCache(cache).layout).endswith("×2×2") == ("input" in CASES[case][3])
    assert np.ptp(read.view_logits, axis=0).min() > 1e-2  # and not all views alike
    assert cached.groups == read.groups
    np.testing.assert_array_equal(cached.labels, read.labels)


@pytest.mark.parametrize("kind", sorted(HEADS))
def test_every_head_takes_maps_and_says_whether_tokens_do(world: Path, kind: str) -> None:
    """A head that pools in its own way and forgets `needs_maps` would be fed wrong tokens in silence."""
    small = {"lstm": {"hidden": 16}, "bert": {"heads": 4}, "hf_bert": {"heads": 4}}
    head = {"kind": kind, **small.get(kind, {})}
    model = settled_model(experiment_of(world, head=head, model={"input": LARGER}).model)
    clip = torch.randint(0, 256, (2, 3, 8, 48, 48), dtype=torch.uint8)
    with torch.no_grad():
        wanted = model(clip).numpy()
        for maps in (True, False):
            parts = model.features_to_store(model.normalised(clip), maps=maps)
            layout = FeatureLayout(tuple(tuple(part.shape[1:]) for part in parts))
            rows = torch.cat([part.flatten(1) for part in parts], dim=1)
            if not maps and model.head.needs_maps:
                with pytest.raises(SettingsError, match="--maps"):
                    model.use_cached_features(layout)
                continue
            model.use_cached_features(layout)
            assert difference(model(rows).numpy(), wanted) < 1e-5
            model.stored = None


@pytest.mark.parametrize("part", ["val", "train"])
def test_training_list_is_scored_on_centred_clips(world: Path, tmp_path: Path, part: Any) -> None:
    run, _ = make(world, tmp_path, "bert", evaluate={"views": "multi", "crops": "three"})
    cached, path = evaluate_run(run, part=part, device="cpu")
    assert path.name == f"{part}_single_center_logits.npz"
    assert cached.meta["protocol"] == "single clip × centre crop, mean of logits"
    loaded = load_run(run)
    single = loaded.experiment.evaluate.model_copy(update={"views": "single", "crops": "center"})
    read, _ = evaluate_run(loaded, single, part, uncached=True)
    assert cached.ids == read.ids
    assert difference(cached.logits, read.logits) < 1e-5


def test_whole_frames_are_stored_and_not_taken_for_crops(world: Path, tmp_path: Path) -> None:
    shape = {"input": {"clip_length": 8, "resize": (36, 48), "crop": (28, 44)}}
    whole = {"augment": {"crop": "full"}}
    views = {"views": "multi", "crops": "full"}
    experiment = experiment_of(world, head=BERT, runs=tmp_path, model=shape, data=whole, evaluate=views)
    model = settled_model(experiment.model)
    cache = tmp_path / "cache"
    facts = write_features(model, experiment, cache)
    assert facts.parts["test"].crops == 2
    assert facts.settings["model.input.crop"] == [28, 44]
    run = save_run(with_features(experiment, cache), model)
    for part, protocol in (
        ("test", "multi-clip × whole frame + mirror, mean of logits"),
        ("val", "single clip × whole frame, mean of logits"),
    ):
        cached, _ = evaluate_run(run, part=part, device="cpu")  # type: ignore[arg-type]
        assert cached.meta["protocol"] == protocol
        loaded = load_run(run)
        asked = loaded.experiment.evaluate
        if part == "val":
            asked = asked.model_copy(update={"views": "single", "crops": "center"})
        read, _ = evaluate_run(loaded, asked, part, uncached=True, out=tmp_path / "read.npz")  # type: ignore[arg-type]
        assert read.meta["protocol"] == protocol
        assert difference(cached.logits, read.logits) < 1e-5
    other = experiment_of(world, head=BERT, runs=tmp_path, model=shape, evaluate=views)
    crops = tmp_path / "crops"
    write_features(model, other, crops, parts=["train"])
    wrong = save_run(with_features(experiment.model_copy(update={"name": "wrong"}), crops), model)
    with pytest.raises(SettingsError, match=r"`data.augment.crop` multiscale \(here full\)"):
        evaluate_run(wrong, part="val", device="cpu")


def test_mirrored_crops_of_paired_classes_are_renamed(tmp_path: Path) -> None:
    world = write_frame_dataset(tmp_path / "pairs", pairs=True)
    run, _ = make(world, tmp_path, "bert")
    cached, _ = evaluate_run(run, device="cpu")
    read, _ = evaluate_run(run, device="cpu", uncached=True)
    assert difference(cached.view_logits, read.view_logits) < 1e-5
    plain, _ = evaluate_run(_forget_pairs(run, world), device="cpu", uncached=True)
    assert plain.view_logits is not None
    assert np.abs(plain.view_logits - read.view_logits).max() > 1e-2


def _forget_pairs(run: Path, world: Path) -> Path:
    record = world / "settings" / "toy" / "dataset.yaml"
    kept = [line for line in record.read_text().splitlines() if "left\n" not in line]
    text = "\n".join(kept).split("mirror_pairs:")
    record.write_text(text[0] + "\n".join(line for line in text[1].splitlines() if ":" in line) + "\n")
    return run


def test_multi_label_videos_keep_their_targets(tmp_path: Path) -> None:
    world = write_frame_dataset(tmp_path / "multi", multi_label=True)
    run, _ = make(world, tmp_path, "bert", evaluate={"aggregate": "probabilities"})
    cached, _ = evaluate_run(run, part="val", device="cpu")
    loaded = load_run(run)
    single = loaded.experiment.evaluate.model_copy(update={"views": "single", "crops": "center"})
    read, _ = evaluate_run(loaded, single, "val", uncached=True)
    assert cached.targets is not None
    assert read.targets is not None
    np.testing.assert_array_equal(cached.targets, read.targets)
    assert difference(cached.logits, read.logits) < 1e-5


def test_half_precision_is_kept_as_it_was(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are float32, and the head still sees the type that the backbone gave under autocast."""
    run, cache = make(world, tmp_path, "bert", evaluate={"precision": "bf16"})
    seen = set()
    forward = Recognizer.forward_stored

    def watched(self: Recognizer, features_BD: torch.Tensor, layout: FeatureLayout) -> torch.Tensor:
        seen.add(features_BD.dtype)
        return forward(self, features_BD, layout)

    monkeypatch.setattr(Recognizer, "forward_stored", watched)
    cached, path = evaluate_run(run, device="cpu")
    assert path.name == "test_multi_ten_logits_bf16.npz"
    evaluate_run(run, part="val", device="cpu", out=tmp_path / "val.npz")
    assert seen == {torch.bfloat16, torch.float32}  # of training clips, computed in `train.precision`
    read, _ = evaluate_run(run, device="cpu", uncached=True)
    assert difference(cached.logits, read.logits) < 0.01
    rows = torch.from_numpy(np.array(FeatureCache(cache).part("test").rows))
    assert torch.equal(rows.to(torch.bfloat16).float(), rows)


def test_no_view_goes_through_the_backbone(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = make(world, tmp_path, "bert")

    def refuse(*_: object) -> None:
        raise AssertionError("the backbone ran")

    for backbone in {type(load_run(run).model.backbone), Backbone}:
        monkeypatch.setattr(backbone, "forward", refuse)
    table, _ = evaluate_run(run, device="cpu")
    assert len(table.ids) == 3


def test_meta_says_where_scores_come_from(world: Path, tmp_path: Path) -> None:
    run, cache = make(world, tmp_path, "bert")
    table, _ = evaluate_run(run, device="cpu")
    assert table.meta["source"] == "features"
    facts = table.meta["features"]
    assert facts["folder"] == str(cache)
    assert facts["holds"] == "tokens (T, D) 2×1280"
    assert len(facts["backbone_sha256"]) == len(facts["content_sha256"]) == 64
    assert table.meta["protocol"] == "multi-clip × ten-crop, mean of logits"
    assert table.meta["folded"] is True


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"crops": "three"}, "`evaluate.crops` ten (here three)"),
        ({"views": "uniform"}, "`evaluate.views` multi (here uniform)"),
        ({"precision": "bf16"}, "computed in fp32, but `evaluate.precision` is bf16"),
    ],
)
def test_other_views_than_stored_are_refused(
    world: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    run, _ = make(world, tmp_path, "bert")
    loaded = load_run(run)
    with pytest.raises(SettingsError) as caught:
        evaluate_run(loaded, loaded.experiment.evaluate.model_copy(update=change))
    assert words in str(caught.value)
    assert "--uncached" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_uniform_views_compare_their_number(world: Path, tmp_path: Path) -> None:
    run, _ = make(world, tmp_path, "bert", evaluate={"views": "uniform", "num_clips": 3, "crops": "center"})
    loaded = load_run(run)
    table, _ = evaluate_run(loaded)
    read, _ = evaluate_run(loaded, uncached=True)
    assert difference(table.logits, read.logits) < 1e-5
    with pytest.raises(SettingsError, match=r"`evaluate.num_clips` 3 \(here 4\)"):
        evaluate_run(loaded, loaded.experiment.evaluate.model_copy(update={"num_clips": 4}))


def test_head_over_places_needs_maps(world: Path, tmp_path: Path) -> None:
    experiment = experiment_of(world, head=NONLOCAL, runs=tmp_path)
    model = settled_model(experiment.model)
    write_features(model, experiment, tmp_path / "cache")
    run = save_run(with_features(experiment, tmp_path / "cache"), model)
    with pytest.raises(SettingsError, match=r"head nonlocal needs feature maps.*--maps"):
        evaluate_run(run, device="cpu")


def test_another_backbone_is_refused(world: Path, tmp_path: Path) -> None:
    run, _ = make(world, tmp_path, "bert")
    loaded = load_run(run)
    with torch.no_grad():
        next(loaded.model.backbone.parameters()).mul_(1.001)
    with pytest.raises(
        CheckpointError, match=r"the stored features were computed by a different backbone.*--uncached"
    ):
        evaluate_run(loaded)


def test_broken_videos_are_skipped_or_refused(tmp_path: Path) -> None:
    world = write_frame_dataset(tmp_path / "broken")
    (world / "frames" / "right" / "v_g4" / "img_00012.jpg").write_bytes(b"no picture")
    (world / "frames" / "left" / "v_g1" / "img_00003.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match="left/v_g1"):
        make(world, tmp_path, "bert")
    assert not (tmp_path / "cache").exists()
    run, _ = make(world, tmp_path, "bert", data={"on_error": "skip"})
    cached, _ = evaluate_run(run, device="cpu")
    read, _ = evaluate_run(run, device="cpu", uncached=True)
    assert cached.ids == read.ids == ["left/v_g4", "stay/v_g4"]
    assert cached.meta["skipped"] == ["right/v_g4"]
    assert difference(cached.logits, read.logits) < 1e-5
