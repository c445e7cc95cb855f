"""The Python interface: every form of a video gives the scores of its file, and scores those of the commands."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

import two_stream
from tests.helpers.runs import Runs
from two_stream.cli import main
from two_stream.errors import ScoreError, SettingsError, VideoError
from two_stream.evaluation.scores.files import find_scores, write_scores, write_table
from two_stream.pretrained import write_model
from two_stream.recognizer import create_model
from two_stream.video.decoding.reader import open_video

TINY = {"kind": "resnet3d", "depth": 10, "width": 0.125}


@pytest.fixture(params=["rgb", "flow"])
def run(request, exported_world: Path, tmp_path: Path, monkeypatch):
    shutil.copytree(exported_world, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    return two_stream.load_run(request.param)


@pytest.fixture
def video(exported_world: Path) -> Path:
    return exported_world / "videos" / "left" / "v_g3.mp4"


def test_every_form_of_a_video_gives_the_scores_of_its_file(run, video: Path, tmp_path: Path) -> None:
    wanted = run.predict(video)
    with open_video(video) as opened:
        frames = np.stack(list(opened.frames()))
        times = opened.times
    for number, frame in enumerate(frames, start=1):
        (tmp_path / "images").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / f"img_{number}.png"), frame[..., ::-1])
    assert times is not None
    forms = [
        frames,
        tmp_path / "images",
        (video, 0, times[-1]),
        (frames_of(frames, times), 0.0, 1e9),
        str(video),
    ]
    for form in forms:
        found = run.predict(form)
        assert found.frames == len(frames)
        np.testing.assert_array_equal(found.probabilities, wanted.probabilities)
    assert [one.label for one in run.predict([frames, video])] == 2 * [wanted.label]
    assert wanted.top(1)[0][0] == wanted.label
    assert two_stream.predict(run, video, top_k=1) == wanted.top(1)


def frames_of(frames: np.ndarray, times: np.ndarray):
    from two_stream.video.decoding.memory import ArrayVideo

    return ArrayVideo(frames, fps=1 / float(np.diff(times).mean()))


def test_a_part_is_the_video_of_its_frames(run, video: Path) -> None:
    with open_video(video) as opened:
        frames, times = np.stack(list(opened.frames())), opened.times
    assert times is not None
    first, last = 3, 12
    part = run.predict((video, times[first], times[last]))
    assert part.frames == last - first
    np.testing.assert_array_equal(part.probabilities, run.predict(frames[first:last]).probabilities)
    with pytest.raises(VideoError, match=r"no frame from 50 to 60 s; the video ends at \d"):
        run.predict((video, 50, 60))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (np.zeros((4, 8, 8), np.uint8), r"expected uint8 \(T, H, W, 3\)"),
        (np.zeros((4, 8, 8, 3), np.float32), "float32; expected uint8"),
        (np.zeros((0, 8, 8, 3), np.uint8), "contains no frames"),
        (("v.mp4", 1.0), r"expected \(video, start, end\)"),
        (("v.mp4", "0.1", "0.5"), r"expected \(video, start, end\)"),
        ((np.zeros((4, 8, 8, 3), np.uint8), 2.0, 1.0), "expected 0 <= start < end"),
        (torch.zeros(4, 8, 8, 3), "found Tensor; expected a file"),
        (None, "found NoneType; expected a file"),
        ("empty", "contains no frames"),
    ],
)
def test_wrong_sources_are_one_line(
    source, said: str, exported_world: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(VideoError, match=said):
        two_stream.load_run(exported_world / "rgb").predict(source)


def test_features_are_what_the_classifier_receives(run, video: Path) -> None:
    found = run.features(video, step=3)
    length = run.model.spec.clip_length
    flow = run.model.spec.modality == "flow"
    assert found.vectors.shape == (len(found.first), run.model.classifier.in_features)
    assert np.diff(found.first)[:-1].tolist() == [3] * (len(found.first) - 2)
    assert found.last[0] - found.first[0] + 1 == (length - 1) * run.model.spec.stride + 1 + flow
    assert found.start is not None
    assert found.start[0] == 0.0
    with torch.inference_mode():
        logits = run.model.classifier(torch.from_numpy(found.vectors))
    changes = {"views": "sliding", "crops": "center", "step": 3, "precision": "fp32"}
    scores = torch.softmax(logits.mean(dim=0), dim=0).numpy()
    np.testing.assert_allclose(run.predict(video, **changes).probabilities, scores, atol=1e-5)


def test_evaluate_is_the_command(run, capsys) -> None:
    table = run.evaluate(views="single", crops="center", precision="fp32")
    command = ["evaluate", str(run.paths.root), "--views", "single", "--crops", "center", "--device", "cpu"]
    assert main([*command, "--precision", "fp32", "--out", "s.npz"]) == 0
    np.testing.assert_array_equal(two_stream.read_scores("s.npz").logits, table.logits)
    with pytest.raises(SettingsError, match="crop"):
        run.evaluate(crop="center")
    with pytest.raises(SettingsError, match="expected test, val or train"):
        run.evaluate("Test")


def test_a_run_is_a_few_lines(run, video: Path) -> None:
    assert str(run.paths.root) in repr(run)
    assert len(repr(run).splitlines()) == 6
    assert run._repr_html_().startswith("<table><tr><th>run</th>")
    assert "left" in run.predict(video)._repr_html_()
    assert repr(run.predict(video)).startswith(f"Prediction({video}: ")


def test_scores_are_those_of_the_commands(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    runs = Runs(tmp_path)
    rgb, flow = runs.make("rgb"), runs.make("flow")
    fused = two_stream.fuse([rgb, flow], "probabilities")
    assert main(["fuse", str(rgb), str(flow), "--rule", "probabilities", "--out", "f.npz"]) == 0
    np.testing.assert_array_equal(two_stream.read_scores("f.npz").logits, fused.logits)
    learned = two_stream.fuse([rgb, flow], "learned", fit=[rgb, flow])
    capsys.readouterr()
    assert main(["fuse", str(rgb), str(flow), "--rule", "learned", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"] == learned.meta["weights"]
    found = two_stream.compare({"flow": flow, "rgb": two_stream.read_scores(find_scores(rgb))})
    assert main(["compare", str(flow), str(rgb), "--json"]) == 0
    stated = json.loads(capsys.readouterr().out)["comparisons"][0]
    assert found.comparisons[0].difference.low == stated["difference"]["low"]
    assert found.comparisons[0].p_holm == stated["p_holm"]
    counts = two_stream.confusion(fused)
    assert counts.sum() == len(fused.ids)
    assert counts.trace() == (fused.logits.argmax(1) == fused.labels).sum()
    with pytest.raises(ScoreError, match="expected two or more"):
        two_stream.compare({"rgb": rgb})
    with pytest.raises(ScoreError, match="the baseline is 'x'; expected one of: rgb, flow"):
        two_stream.compare({"rgb": rgb, "flow": flow}, baseline="x")
    with pytest.raises(SettingsError, match="the level is 95"):
        two_stream.compare({"rgb": rgb, "flow": flow}, level=95)
    with pytest.raises(ScoreError, match="expected a list"):
        two_stream.fuse("f.npz")
    with pytest.raises(ScoreError, match="found int"):
        two_stream.confusion(3)
    assert repr(fused) == "ScoreTable(rgb + flow: 60 videos, 4 classes)"


def test_a_frame_needs_pandas_and_says_so(tmp_path: Path) -> None:
    table = two_stream.read_scores(find_scores(Runs(tmp_path).make("rgb")))
    pandas = pytest.importorskip("pandas", reason="pandas is not installed; two-stream does not require it")
    frame = table.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == ["id", "label", "group", *table.class_names]


def test_an_unknown_rule_is_refused_and_names_are_listed(run, video: Path) -> None:
    for rule in ("foo", "learned"):
        with pytest.raises(
            ScoreError, match=f"unknown fusion rule '{rule}' for predictions; expected one of: l2"
        ):
            two_stream.predict([run, run], video, rule=rule)
    assert {"load_run", "read_scores", "compare"} <= set(dir(two_stream))


def test_weights_of_a_file_bring_their_classes(tmp_path: Path) -> None:
    options = {"backbone": TINY, "head": {"kind": "average"}, "input": {"clip_length": 8, "crop": 32}}
    name = "rgb_resneXt3D64f101"
    made = create_model(name, 7, **options)
    write_model(tmp_path / "model", made, {})
    found = two_stream.create_model(name, pretrained=tmp_path / "model", **options)
    assert found.num_classes == 7
    assert all(
        torch.equal(one, two) for one, two in zip(made.state_dict().values(), found.state_dict().values())
    )
    other = two_stream.create_model(name, 3, pretrained=tmp_path / "model", **options)
    assert other.num_classes == 3
    first = next(iter(made.backbone.parameters()))
    assert torch.equal(next(iter(other.backbone.parameters())), first)
    with pytest.raises(SettingsError, match="`num_classes` is missing"):
        two_stream.create_model(name, **options)


def test_published_weights_are_found_by_name(tmp_path: Path, monkeypatch) -> None:
    """Of the folder $TWO_STREAM_WEIGHTS and with a list of the current folder; the cache gets a checked copy."""
    made = create_model("efficient3d/mobilenetv2_0.2x", 5)
    write_model(tmp_path / "made", made, {})
    local = tmp_path / "local"
    local.mkdir()
    shutil.copy(tmp_path / "made" / "model.safetensors", local / "small.safetensors")
    entry = {
        "name": "small-5",
        "title": "Small",
        "file": "small.safetensors",
        "page": "https://example.org/",
        "sha256": hashlib.sha256((local / "small.safetensors").read_bytes()).hexdigest(),
        "licence": "MIT",
        "model": "efficient3d/mobilenetv2_0.2x",
        "modality": "rgb",
        "layout": "two-stream",
        "preprocessing": {
            "frames": 16,
            "size": 112,
            "value_range": [0, 1],
            "mean": [0, 0, 0],
            "std": [1, 1, 1],
        },
        "classes": {"count": 5, "set": "toy"},
        "source": "a test",
    }
    monkeypatch.chdir(tmp_path)
    Path("weights").mkdir()
    Path("weights/manifest.yaml").write_text(yaml.safe_dump({"entries": [entry]}))
    monkeypatch.setenv("TWO_STREAM_WEIGHTS", str(local))
    monkeypatch.setenv("TWO_STREAM_CACHE", str(tmp_path / "cache"))
    for name in ("small-5", "efficient3d/mobilenetv2_0.2x"):
        found = two_stream.create_model(name, pretrained=True)
        assert found.num_classes == 5
        assert all(map(torch.equal, made.state_dict().values(), found.state_dict().values()))
    assert (tmp_path / "cache" / "weights" / "small.safetensors").is_file()
    with pytest.raises(SettingsError, match="found 0 published files for this model"):
        two_stream.create_model("rgb_I3D64f", pretrained=True)
    assert two_stream.__version__ == "0.1.0"


def test_scores_written_by_hand_are_read(tmp_path: Path) -> None:
    table = two_stream.read_scores(find_scores(Runs(tmp_path).make("rgb")))
    write_scores(tmp_path / "again.npz", table)
    assert two_stream.read_scores(tmp_path / "again.npz").ids == table.ids


@pytest.mark.parametrize("name", ["run", "scores"])
def test_the_page_runs(
    name: str, exported_world: Path, repository: Path, tmp_path: Path, monkeypatch
) -> None:
    shutil.copytree(exported_world, tmp_path / "runs")
    shutil.copytree(exported_world / "videos", tmp_path / "videos")
    monkeypatch.chdir(tmp_path)
    runs = Runs(tmp_path / "made")
    for modality in ("rgb", "flow"):
        write_table(Path(f"{modality}.csv"), two_stream.read_scores(find_scores(runs.make(modality))))
    page = (repository / "docs" / "python.md").read_text()
    blocks = [block.partition("```")[0] for block in page.split(f"```python {name}\n")[1:]]
    assert blocks
    exec(compile("\n".join(blocks), "docs/python.md", "exec"), {})
