"""`features --videos --npy`: the vectors of `run.features`, written completely or not at all, with their times."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.helpers.runs import make_world
from two_stream.api import load_run
from two_stream.cli import main as cli
from two_stream.errors import ScoreError
from two_stream.evaluation.scoring.score import Canvas


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def videos(world: Path, tmp_path: Path) -> Path:
    shutil.copytree(world / "videos" / "left", tmp_path / "videos" / "left")
    shutil.copy(world / "videos" / "stay" / "v_g2.mp4", tmp_path / "videos")
    return tmp_path / "videos"


def command(run: Path, videos: Path, out: Path, *more: str) -> list[str]:
    flags = ["--videos", str(videos), "--npy", str(out), "--step", "3", "--device", "cpu"]
    return ["features", str(run), *flags, *more]


@pytest.mark.parametrize("modality", ["rgb", "flow"])
def test_files_are_the_features_of_the_run(world, videos, tmp_path, modality):
    out = tmp_path / "out"
    assert cli(command(world / modality, videos, out)) == 0
    run = load_run(world / modality)
    names = sorted(path.relative_to(out).with_suffix("").as_posix() for path in out.rglob("*.npy"))
    assert names == ["left/v_g1", "left/v_g2", "left/v_g3", "v_g2"]
    for name in names:
        wanted = run.features(videos / f"{name}.mp4", step=3)
        found, facts = np.load(out / f"{name}.npy"), json.loads((out / f"{name}.json").read_text())
        assert found.dtype == np.float32
        # bit-equal in batches of the same size; kernels for other sizes round differently
        np.testing.assert_allclose(found, wanted.vectors, rtol=0, atol=1e-4 * found.max())
        assert facts["first_frame"] == wanted.first.tolist()
        assert facts["last_frame"] == wanted.last.tolist()
        assert facts["start_s"] == pytest.approx(wanted.start, abs=1e-6)
        assert facts["end_s"] == pytest.approx(wanted.end, abs=1e-6)
        assert facts["duration"] == pytest.approx(facts["frames"] / 12)
    said = json.loads((out / "_features.json").read_text())
    assert said["input"]["modality"] == modality
    assert said["evaluate"]["step"] == 3


@pytest.mark.parametrize("modality", ["rgb", "flow"])
def test_folders_of_frames_are_read_like_videos(world, videos, tmp_path, modality):
    frames, out = tmp_path / "frames", tmp_path / "out"
    assert cli(["extract", str(videos), "--out", str(frames), "--flow", "dis", "--short-side", "0"]) == 0
    assert cli(command(world / modality, frames, out)) == 0
    run = load_run(world / modality)
    assert len(list(out.rglob("*.npy"))) == 4
    for name in ("left/v_g1", "v_g2"):
        wanted, film = run.features(frames / name, step=3), run.features(videos / f"{name}.mp4", step=3)
        found, facts = np.load(out / f"{name}.npy"), json.loads((out / f"{name}.json").read_text())
        np.testing.assert_allclose(found, wanted.vectors, rtol=0, atol=1e-4 * found.max())
        assert facts["start_s"] == pytest.approx(film.start, abs=1e-6)
        assert facts["end_s"] == pytest.approx(film.end, abs=1e-6)


def test_a_second_call_writes_only_what_is_missing_or_has_changed(world, videos, tmp_path, capsys):
    out = tmp_path / "out"
    (videos / "torn.mp4").write_text("no video")
    assert cli(command(world / "rgb", videos, out)) == 1
    caught = capsys.readouterr()
    assert "torn.mp4: not a video" in caught.err
    assert "features of 4 videos; 1 video could not be read" in caught.out
    shutil.copy(videos / "v_g2.mp4", videos / "torn.mp4")
    shutil.copy(videos / "left" / "v_g3.mp4", videos / "left" / "v_g1.mp4")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")}
    assert cli(command(world / "rgb", videos, out)) == 0
    assert "3 of 5 videos are finished already" in capsys.readouterr().err
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")}
    assert {path.stem for path in after if before.get(path) != after[path]} == {"torn", "v_g1"}
    np.testing.assert_array_equal(np.load(out / "torn.npy"), np.load(out / "v_g2.npy"))
    for change, key in (
        (["--step", "2"], "evaluate.step"),
        (["--maps"], "weights_sha256"),
        (["--short-side", "60"], "reading.short_side"),
    ):
        assert cli([*command(world / "rgb", videos, out), *change]) == 2
        message = capsys.readouterr().err
        assert f"contains features with another {key}" in message
        assert message.count("\n") == 1
    assert cli(command(world / "flow", videos, out)) == 2
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")} == after


def test_an_interruption_leaves_no_half_file(world, videos, tmp_path, monkeypatch):
    out, calls = tmp_path / "out", []
    plain = Canvas.logits

    def stop(self, count):
        calls.append(count)
        if len(calls) == 3:
            raise ScoreError("stopped")
        return plain(self, count)

    monkeypatch.setattr(Canvas, "logits", stop)
    assert cli(command(world / "rgb", videos, out, "--batch-views", "2")) == 2
    left = [path.name for path in out.rglob("*") if path.is_file()]
    assert 1 < len(left) < 9
    assert not [name for name in left if name.endswith(".part")]
    for path in out.rglob("*.npy"):
        assert len(np.load(path)) == json.loads(path.with_suffix(".json").read_text())["windows"]


def test_the_layout_of_actionformer_is_an_exact_grid(world, videos, tmp_path):
    out, plain = tmp_path / "out", tmp_path / "plain"
    assert cli(command(world / "rgb", videos, out, "--layout", "actionformer")) == 0
    assert cli(command(world / "rgb", videos, plain)) == 0
    found = json.loads((out / "_annotations.json").read_text())
    assert {key: found[key] for key in ("feat_stride", "num_frames", "offset_frames")} == {
        "feat_stride": 3,
        "num_frames": 4,
        "offset_frames": 2,
    }
    entry = found["database"]["left/v_g2"]
    assert entry["frame"] == 9
    assert entry["fps"] == pytest.approx(12)
    assert entry["annotations"] == []
    starts = {
        name: json.loads((out / f"{name}.json").read_text())["first_frame"] for name in found["database"]
    }
    # windows of 4 of 5, 9 and 13 frames; the plain layout also has a last window that ends with the video
    assert starts["left/v_g1"] == [1]
    assert starts["left/v_g2"] == starts["v_g2"] == [1, 4]
    assert starts["left/v_g3"] == [1, 4, 7, 10]
    assert len(np.load(out / "left/v_g2.npy")) == 2
    assert len(np.load(plain / "left/v_g2.npy")) == 3
    np.testing.assert_allclose(
        np.load(out / "left/v_g2.npy"), np.load(plain / "left/v_g2.npy")[:2], rtol=0, atol=1e-3
    )
    assert found["input_dim"] == np.load(out / "v_g2.npy").shape[1]


def test_maps_average_to_the_vectors_and_processes_share_the_videos(world, videos, tmp_path, monkeypatch):
    maps, vectors = tmp_path / "maps", tmp_path / "vectors"
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert cli(command(world / "rgb", videos, maps, "--maps")) == 0
        seen.append(len(list(maps.rglob("*.npy"))))
    assert seen == [2, 4]
    monkeypatch.delenv("WORLD_SIZE")
    assert cli(command(world / "rgb", videos, vectors)) == 0
    found = np.load(maps / "left" / "v_g3.npy")
    assert found.ndim == 5
    np.testing.assert_allclose(
        found.mean(axis=(2, 3, 4)), np.load(vectors / "left" / "v_g3.npy"), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--views", "single"], "--step applies only to sliding views"),
        (["--layout", "actionformer", "--maps"], "--layout actionformer requires vectors"),
        (["--workers", "-1"], "--workers is -1"),
        (["--step", "0"], "step"),
        (["--videos", "nowhere"], "--videos nowhere: no such file or folder"),
    ],
)
def test_wrong_flags_are_one_line(world, videos, tmp_path, capsys, more, said):
    assert cli([*command(world / "rgb", videos, tmp_path / "out"), *more]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_does_not_grow_with_the_length_of_a_video(world, tmp_path):
    """An hour at 25 frames per second against four minutes; both are measured in a process of their own."""
    code = (
        "import resource, sys; from two_stream.cli import main; assert main(sys.argv[1:]) == 0;"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,"
        "resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    peaks = []
    for frames in (6_000, 90_000):
        path = tmp_path / f"{frames}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for number in range(frames):
                picture = np.full((48, 64, 3), number % 256, np.uint8)
                for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
        arguments = command(world / "rgb", path, tmp_path / "out", "--workers", "1", "--step", "16")
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True
        )
        peaks.append([int(number) / 1024 for number in done.stdout.split()[-2:]])
        assert len(np.load(tmp_path / "out" / f"{frames}.npy")) == -(-(frames - 4) // 16) + 1
    print(peaks)
    assert peaks[1][0] < peaks[0][0] + 60
    assert peaks[1][1] < peaks[0][1] + 60


def test_weights_of_an_untrained_classifier_do_not_count(world):
    from two_stream.evaluation.features.cache import weights_sha256

    model = load_run(world / "rgb").model
    before = weights_sha256(model, skip="classifier.")
    with torch.no_grad():
        model.classifier.bias.add_(1)
    assert weights_sha256(model, skip="classifier.") == before
    assert weights_sha256(model) != before
