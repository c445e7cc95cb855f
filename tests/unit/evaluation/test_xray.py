"""`xray`: the changes by hand, natural scores equal to those of `evaluate`, and controls that only order explains."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.runs import make_world
from two_stream import create_model
from two_stream.cli import main as cli
from two_stream.config.model import ModelOptions
from two_stream.config.schema import EvaluateOptions
from two_stream.data.clips.sampling import reorder_frames
from two_stream.evaluation.runs.run import evaluate_run, load_run
from two_stream.evaluation.runs.xray import cross_changes, score_changes
from two_stream.evaluation.scores.fusion import fuse
from two_stream.evaluation.scoring.changes import (
    NATURAL,
    OTHER,
    changed_views,
    clip_changes,
    known_change,
    split_name,
)
from two_stream.types import InputSpec, VideoViews

PLAIN = EvaluateOptions(views="multi", crops="three", precision="fp32", batch_views=5)


def spec(modality: str, stack: int = 1) -> InputSpec:
    channels = 3 if modality == "rgb" else 2 * stack
    return InputSpec(
        modality, 5, 1, (8, 10), 6, (0.0, 255.0), (0.0,) * channels, (1.0,) * channels, stack=stack
    )


def views(name: str = "a", label: int = 0, channels: int = 3, clips: int = 2, frames: int = 9) -> VideoViews:
    pixels = np.random.default_rng(len(name) + label).integers(
        0, 256, (frames, 8, 10, channels), dtype=np.uint8
    )
    rows = torch.tensor([[3 * clip + step for step in range(5)] for clip in range(clips)])
    return VideoViews(name, label, torch.from_numpy(pixels), rows, [(1, 2, 7, 8)], [False])


def changed(item: VideoViews, modality: str, *more: VideoViews) -> dict[str, np.ndarray]:
    """The first clip of `item` under every change, `(T, H, W, C)`."""
    found = changed_views([item, *more], clip_changes(spec(modality), [0, 1]))
    return {
        split_name(one.id)[0]: one.frames[one.clips[0]].numpy()
        for one in found
        if split_name(one.id)[1] == item.id
    }


@pytest.mark.parametrize("modality", ["rgb", "flow"])
def test_changes_are_what_they_are_called(modality: str) -> None:
    item = views(channels=3 if modality == "rgb" else 2)
    later = [views("bb", 0, 2), views("ccc", 1, 2)] if modality == "flow" else []
    found, clip = changed(item, modality, *later), item.frames[item.clips[0]].numpy()
    assert list(found) == [NATURAL, *(change.name for change in clip_changes(spec(modality), [0, 1]))]
    expected = {
        NATURAL: clip,
        "shuffled": clip[reorder_frames(range(5), "shuffled", "a")],
        "reversed": clip[::-1],
        "first frame": clip[[0] * 5],
        "middle frame": clip[[2] * 5],
        "last frame": clip[[4] * 5],
        "held": clip[[0, 0, 2, 2, 4]],
        "median": np.repeat(np.median(clip, axis=0)[None], 5, axis=0),
    }
    if modality == "flow":
        moved = clip.astype(float) - 127.5
        expected |= {
            "rewound": (127.5 - moved)[::-1],
            "zero": np.full_like(clip, 128),
            "halved": np.rint(127.5 + moved / 2),
            "doubled": np.clip(np.rint(127.5 + 2 * moved), 0, 255),
            "other video": later[1].frames[later[1].clips[0]].numpy(),
        }
    else:
        grey = clip @ np.array([0.299, 0.587, 0.114])
        assert np.abs(found["grey"] - grey[..., None]).max() <= 1
        means = clip[:, :, :8].astype(float).mean((1, 2))  # 8×10 pixels become one
        assert found["blurred"].std((1, 2)).max() < 1e-9
        assert np.abs(found["blurred"][:, 0, 0] - clip.astype(float).mean((1, 2))).max() <= 1, means
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, name)


def test_a_stack_of_flow_is_rewound_as_a_whole() -> None:
    item = views(channels=6)
    found = next(
        one
        for one in changed_views([item], clip_changes(spec("flow", 3), [0]))
        if one.id.startswith("rewound")
    )
    fields = item.frames[item.clips[0]].numpy().reshape(5, 8, 10, 3, 2)
    wanted = 255 - fields[::-1, :, :, ::-1]
    np.testing.assert_array_equal(found.frames[found.clips[0]].numpy().reshape(5, 8, 10, 3, 2), wanted)


def test_the_flow_of_another_video_is_of_another_class_and_follows_its_clips() -> None:
    videos = (("a", 0, 1), ("bb", 0, 2), ("ccc", 1, 1), ("dddd", 1, 2))
    items = [views(name, label, 2, clips) for name, label, clips in videos]
    found = {
        split_name(one.id)[1]: one
        for one in changed_views(items, clip_changes(spec("flow"), [0, 1]))
        if one.id.startswith(OTHER.name)
    }
    sources = {"a": 2, "bb": 2, "ccc": 1, "dddd": 1}
    for name, place in sources.items():
        assert found[name].frames is items[place].frames
    assert found["bb"].clips.tolist() == [items[2].clips[0].tolist()] * 2
    assert found["dddd"].clips.tolist() == items[1].clips.tolist()
    assert OTHER not in clip_changes(spec("flow"), [1, 1])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("modality", ["rgb", "flow"])
def test_natural_and_shuffled_scores_are_those_of_evaluate(
    world: Path, modality: str, tmp_path: Path
) -> None:
    run = load_run(world / modality)
    (found,) = score_changes([run], [PLAIN])
    for change, order in ((NATURAL, "natural"), ("shuffled", "shuffled"), ("reversed", "reversed")):
        data = run.experiment.data.model_copy(update={"frame_order": order})
        other = replace(run, experiment=run.experiment.model_copy(update={"data": data}))
        wanted, _ = evaluate_run(other, PLAIN, out=tmp_path / "s.npz")
        rows = [found[change].ids.index(name) for name in wanted.ids]
        np.testing.assert_allclose(found[change].logits[rows], wanted.logits, rtol=0, atol=1e-5)
    assert found["shuffled"].meta["change"] == "shuffled"
    assert found["held"].meta["model_sha256"] == run.model_sha256


@pytest.mark.parametrize("modality", ["rgb", "flow"])
def test_a_network_that_averages_single_frames_ignores_their_order(world: Path, modality: str) -> None:
    run = load_run(world / modality)
    given = run.model.spec
    size = {"clip_length": given.clip_length, "resize": given.resize, "crop": given.crop}
    backbone = {"kind": "timm", "name": "test_resnet"}
    torch.manual_seed(0)
    head = {"kind": "average"}
    model = create_model(ModelOptions(modality=modality, backbone=backbone, head=head, input=size), 3)
    (found,) = score_changes([replace(run, model=model.eval())], [PLAIN])
    natural = found[NATURAL].logits
    for change in ("shuffled", "reversed"):
        np.testing.assert_allclose(found[change].logits, natural, rtol=0, atol=1e-5)
        assert (found[change].logits.argmax(1) == natural.argmax(1)).all()
    for change in ("middle frame", "median", "held"):
        assert np.abs(found[change].logits - natural).max() > 1e-4


def test_runs_together_score_as_alone_and_share_a_backbone(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(world / "rgb")
    other = load_run(world / "rgb")
    torch.nn.init.normal_(other.model.classifier.weight)
    calls = []
    kind = type(run.model.backbone)
    plain = kind.forward

    def forward(self, x_BCTHW):
        calls.append(len(x_BCTHW))
        return plain(self, x_BCTHW)

    alone = [score_changes([one], [PLAIN])[0] for one in (run, other)]
    monkeypatch.setattr(kind, "forward", forward)
    score_changes([run], [PLAIN])
    once, calls[:] = sum(calls), []
    together = score_changes([run, other], [PLAIN, PLAIN])
    assert sum(calls) - once == 2  # the second network is folded with an example of its own, before and after
    for single, joint in zip(alone, together, strict=True):
        for change, table in single.items():
            np.testing.assert_allclose(joint[change].logits, table.logits, rtol=0, atol=1e-5)
    assert np.abs(together[0][NATURAL].logits - together[1][NATURAL].logits).max() > 0.1


def test_two_streams_are_fused_with_one_of_them_changed(world: Path) -> None:
    rgb, flow = score_changes([load_run(world / name) for name in ("rgb", "flow")], [PLAIN, PLAIN])
    found = cross_changes(rgb, flow, "l2")
    assert len(found) == len(rgb) + len(flow) - 1
    np.testing.assert_array_equal(found["flow zero"].logits, fuse([rgb[NATURAL], flow["zero"]], "l2").logits)
    np.testing.assert_array_equal(found["RGB grey"].logits, fuse([rgb["grey"], flow[NATURAL]], "l2").logits)
    assert known_change("flow zero").removes == "all motion in flow"


def test_the_command_writes_a_page_and_its_data(world: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "x.html"
    assert cli(["xray", str(world / "rgb"), str(world / "flow"), "--out", str(out), "--crops", "center"]) == 0
    assert "rgb + flow" in capsys.readouterr().out
    result = json.loads(out.with_suffix(".json").read_text())
    rows = {(row["network"], row["change"]): row for row in result["xray"]["rows"]}
    assert len(rows) == 10 + 13 + 22
    for row in rows.values():
        natural = rows[row["network"], NATURAL]
        if row["difference"] is not None:
            gap = row["accuracy"]["value"] - natural["accuracy"]["value"]
            assert row["difference"]["value"] == pytest.approx(gap)
    page = out.read_text()
    assert "Temporal X-ray" in page
    assert "what is shown, and what is not" in page
    assert (tmp_path / "x-xray.csv").read_text().count("\n") == len(rows) + 1
    assert "tab:xray-xray" in (tmp_path / "x.tex").read_text()
    assert "rgb + flow" in (tmp_path / "x.md").read_text()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "no run given"),
        (["missing"], "missing"),
        (["{rgb}", "{rgb}"], "given twice"),
        (["{rgb}", "--level", "2"], "--level is 2.0"),
        (["{rgb}", "--out", "x.png"], "ending in .html"),
        (["{rgb}", "--num-clips", "3"], "applies only to uniform views"),
    ],
)
def test_wrong_flags_are_one_line(
    world: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    args = [one.format(rgb=world / "rgb") for one in more]
    assert cli(["xray", *args]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1
