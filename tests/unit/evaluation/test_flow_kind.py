"""Flow of another kind: one rule says what a flow network reads of a video, wherever it is asked."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.helpers.datasets import CLASSES
from tests.helpers.runs import SMALL, write_run
from two_stream.cli import main as cli
from two_stream.data.clips.dataset import current_extraction
from two_stream.data.clips.transforms import resize_frames
from two_stream.data.packing import PackOptions, pack
from two_stream.errors import SettingsError
from two_stream.evaluation.runs.run import evaluate_run, extraction_of, load_run, predict, reading_of
from two_stream.evaluation.scoring import video as on_the_fly
from two_stream.evaluation.scoring.video import VideoInput, read_clip
from two_stream.export import export_run, load
from two_stream.streaming.live.networks import Prepare
from two_stream.video.decoding.reader import open_video
from two_stream.video.extraction.many_videos import extract
from two_stream.video.extraction.one_video import ExtractOptions, resize_frame
from two_stream.video.flow import FlowEstimator, quantize, to_gray
from two_stream.video.sources import find_sources

ONE = SMALL.model_copy(update={"views": "single", "crops": "center"})
READ = {"dis": "dis", "farneback": "farneback", "tvl1": "dis", "raft": "dis"}
SIZE = (40, 56)


@pytest.fixture(scope="module")
def extracted(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The frames of all videos with DIS flow, at a size that is neither the videos' nor a short side."""
    root = tmp_path_factory.mktemp("extracted")
    sources, _ = find_sources(world / "videos")
    extract(sources, root, ExtractOptions(flow="dis", short_side=None, size=SIZE, processes=0))
    return root


def run_on(root: Path, world: Path, extracted: Path, kind: str, **settings: object) -> Path:
    """Return a flow run on frames whose manifests tell of another kind, or other settings."""
    shutil.copytree(extracted, root / "frames")
    for path in (root / "frames").rglob(".done.json"):
        manifest = json.loads(path.read_text())
        manifest["settings"] |= {"flow": kind, **settings}
        path.write_text(json.dumps(manifest))
    shutil.copytree(world / "settings" / "toy", root / "settings" / "toy")
    record_file = root / "settings" / "toy" / "dataset.yaml"
    record = yaml.safe_load(record_file.read_text())
    record["frames"] = {"rgb": str(root / "frames"), "flow": str(root / "frames")}
    record_file.write_text(yaml.safe_dump(record))
    return write_run(root, "flow", settings_root=root / "settings", source="frames")


def wanted(
    video: Path, kind: str, run: Path, bound: float = 20.0, size: tuple[int, int] = SIZE
) -> np.ndarray:
    """Return the clip (T, crop, crop, 2) that the algorithm makes of a video's first five pictures."""
    with open_video(video) as opened:
        pictures = [to_gray(resize_frame(frame, *size)) for frame in opened.read(range(5))]
    estimator, spec = FlowEstimator(kind), load_run(run).model.spec
    flow = np.stack([quantize(estimator.flow(*pair), bound) for pair in itertools.pairwise(pictures)])
    top, left = ((side - spec.crop) // 2 for side in spec.resize)
    return resize_frames(flow, spec.resize)[:, top : top + spec.crop, left : left + spec.crop]


@pytest.fixture
def video(world: Path) -> Path:
    return world / "videos" / "left" / "v_g1.mp4"


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """What networks are given, each clip `(T, H, W, 2)`."""
    seen: list[np.ndarray] = []
    cut, prepared = on_the_fly.views_of_clip, Prepare.__call__

    def clip(*given):
        made = cut(*given)
        seen.append(made.views[0].permute(1, 2, 3, 0).numpy().copy())
        return made

    def frame(self, *pictures):
        made = prepared(self, *pictures)
        seen.append(made.permute(1, 2, 0).numpy()[None])
        return made

    monkeypatch.setattr(on_the_fly, "views_of_clip", clip)
    monkeypatch.setattr(Prepare, "__call__", frame)
    return seen


def asked(way: str, run: Path, video: Path, *more: str) -> None:
    if way == "python":
        predict(run, video, options=ONE)
        return
    flags = [way, str(video), "--flow", str(run), "--device", "cpu", "--json", "-", *more]
    view = ["--views", "single", "--crops", "center", "--batch-views", "1"] if way == "predict" else []
    assert cli([*flags, *view]) == 0


@pytest.mark.parametrize("way", ["python", "predict", "stream"])
@pytest.mark.parametrize("kind", READ)
def test_a_network_reads_the_kind_it_was_trained_on_or_says_which_other(
    world, extracted, video, tmp_path, fed, capsys, way, kind
):
    """DIS and Farnebäck are computed as they are; TV-L1 and RAFT are DIS with one line, in all three ways."""
    run = run_on(tmp_path, world, extracted, kind)
    asked(way, run, video)
    np.testing.assert_array_equal(np.concatenate(fed)[:4], wanted(video, READ[kind], run))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    if READ[kind] == kind:
        assert lines == []
        return
    (line,) = lines
    assert f"{run}: was trained on {kind} flow, but reads dis flow here" in line
    assert ("--flow-algorithm tvl1 is closer" in line) == (kind == "tvl1")
    assert ("two-stream extract" in line) == (kind == "raft")


@pytest.mark.parametrize("way", ["predict", "stream"])
def test_a_kind_that_is_asked_for_is_computed(world, extracted, video, tmp_path, fed, capsys, way):
    run = run_on(tmp_path, world, extracted, "tvl1")
    asked(way, run, video, "--flow-algorithm", "tvl1")
    np.testing.assert_array_equal(np.concatenate(fed)[:4], wanted(video, "tvl1", run))
    assert "warning" not in capsys.readouterr().err
    fed.clear()
    asked(way, run, video, "--flow-algorithm", "farneback")
    np.testing.assert_array_equal(np.concatenate(fed)[:4], wanted(video, "farneback", run))
    assert "reads farneback flow here; --flow-algorithm tvl1 is closer" in capsys.readouterr().err


def test_python_takes_a_kind_too_and_says_a_line_once_per_run(world, extracted, video, tmp_path, fed, capsys):
    folder = run_on(tmp_path, world, extracted, "tvl1")
    run = load_run(folder)
    for _ in range(2):
        predict(run, video, options=ONE)
    assert capsys.readouterr().err.count("was trained on tvl1 flow") == 1
    fed.clear()
    predict(run, video, options=ONE, reading=reading_of(run, flow="tvl1"))
    predict(run, video, options=ONE, reading=VideoInput(flow="tvl1", size=SIZE))
    for clip in fed:
        np.testing.assert_array_equal(clip, wanted(video, "tvl1", folder))
    farneback = load_run(run_on(tmp_path / "other", world, extracted, "farneback"))
    predict(
        farneback, video, options=ONE, reading=VideoInput(size=SIZE)
    )  # a reading that leaves the kind open
    np.testing.assert_array_equal(fed[-1], wanted(video, "farneback", folder))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("way", ["python", "predict", "stream"])
def test_a_kind_that_nobody_recorded_is_dis_with_a_line(world, extracted, video, tmp_path, fed, capsys, way):
    run = run_on(tmp_path, world, extracted, "dis")
    for path in (tmp_path / "frames").rglob(".done.json"):
        path.unlink()
    asked(way, run, video)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert f"{run}: the kind of flow that the network was trained on is unknown, so dis flow is used" in line
    assert "--flow-algorithm" in line


def test_a_model_without_a_run_has_a_line_too(world, video, capsys):
    predict(load_run(world / "flow").model, video, options=ONE)
    assert (
        "the kind of flow that the network was trained on is unknown, so dis flow is used"
        in capsys.readouterr().err
    )
    predict(load_run(world / "flow").model, video, options=ONE, reading=VideoInput(flow="dis"))
    predict(load_run(world / "rgb").model, video, options=ONE)
    assert capsys.readouterr().err == ""


def test_a_data_set_of_other_classes_says_nothing_of_a_network(world, extracted, tmp_path):
    """A published checkpoint that was converted names the demo's data set, which it never saw."""
    run_on(tmp_path, world, extracted, "farneback")
    folder = write_run(
        tmp_path / "theirs", "flow", names=["a", "b"], settings_root=tmp_path / "settings", source="frames"
    )
    assert extraction_of(load_run(folder)) is None


@pytest.mark.parametrize("way", ["python", "predict", "stream"])
def test_bound_and_size_are_those_of_the_training_frames(world, extracted, video, tmp_path, fed, way):
    run = run_on(tmp_path, world, extracted, "dis", flow_bound=3.0, size=[48, 64])
    asked(way, run, video)
    found, usual = np.concatenate(fed)[:4], wanted(video, "dis", run, size=(48, 64))
    np.testing.assert_array_equal(found, wanted(video, "dis", run, 3.0, (48, 64)))
    assert np.abs(found.astype(int) - usual.astype(int)).max() > 20


@pytest.mark.parametrize("key", ["flow_bound", "short_side", "size"])
def test_nonsense_in_a_record_is_one_line(world, extracted, tmp_path, key):
    run = run_on(tmp_path, world, extracted, "dis", **{key: "wide"})
    with pytest.raises(SettingsError, match=f"{run}: extraction settings of its frames: `{key}.*` is 'wide'"):
        reading_of(load_run(run))


def test_the_attention_figure_is_of_the_same_flow(world, extracted, video, tmp_path, monkeypatch):
    """It reads a clip through the `VideoInput` of the command."""
    run = load_run(run_on(tmp_path, world, extracted, "farneback"))
    with open_video(video) as opened:
        clip = read_clip(opened, [1, 2, 3, 4], run.model.spec, reading_of(run))
        ours = read_clip(opened, [1, 2, 3, 4], run.model.spec, VideoInput(flow="farneback", size=SIZE))
    np.testing.assert_array_equal(clip, ours)


def test_an_exported_file_says_its_kind_away_from_the_data_set(world, extracted, video, tmp_path, capsys):
    folder = run_on(tmp_path, world, extracted, "tvl1")
    file, _ = export_run(load_run(folder), "pt2", tmp_path / "model.pt2")
    shutil.rmtree(tmp_path / "frames")
    shutil.rmtree(tmp_path / "settings")
    capsys.readouterr()
    predict(load(file), video, options=ONE)
    assert f"{file}: was trained on tvl1 flow, but reads dis flow here" in capsys.readouterr().err
    assert reading_of(load(file)).size == SIZE


def test_shards_know_what_they_were_packed_from(world, extracted, tmp_path):
    """Of video files by themselves, of frame folders by the folders' manifests at that time."""
    folder = run_on(tmp_path, world, extracted, "farneback", size=[36, 48])
    run = load_run(folder)

    def read(source: str, flow: str) -> VideoInput:
        options = PackOptions(source=source, flow=flow, resize=(36, 48), encoding="raw", processes=0)
        pack(run.record, "flow", tmp_path / source, options)
        data = run.experiment.data.model_copy(update={"source": "shards", "shards": str(tmp_path / source)})
        return reading_of(replace(run, experiment=run.experiment.model_copy(update={"data": data})))

    assert (read("videos", "dis").flow, read("videos", "dis").size) == ("dis", None)
    found = read("frames", "dis")
    assert (found.flow, found.size) == ("farneback", (36, 48))


def test_shards_are_enough_where_the_frames_are_not(world, extracted, tmp_path):
    """Frames of another origin, packed, and no longer on this machine: their kind is not known, and that is all."""
    run = load_run(run_on(tmp_path, world, extracted, "dis"))
    for path in (tmp_path / "frames").rglob(".done.json"):
        path.unlink()
    pack(run.record, "flow", tmp_path / "shards", PackOptions(resize=(36, 48), encoding="raw", processes=0))
    shutil.rmtree(tmp_path / "frames")
    data = run.experiment.data.model_copy(update={"source": "shards", "shards": str(tmp_path / "shards")})
    packed = replace(run, experiment=run.experiment.model_copy(update={"data": data}))
    assert current_extraction(data, packed.record, "flow") is None
    evaluate_run(packed, ONE)


def test_what_training_wrote_down_goes_before_what_lies_there_now(world, extracted, tmp_path, capsys):
    """`evaluate` warns when the frames were extracted again with other settings than the network's training frames."""
    folder = run_on(tmp_path, world, extracted, "dis")
    run = load_run(folder)
    evaluate_run(run, ONE)
    assert "was trained on" not in capsys.readouterr().err
    run.meta["extraction"] = {"flow": "farneback", "size": list(SIZE)}
    assert reading_of(run).flow == "farneback"
    evaluate_run(run, ONE)
    assert f"{folder}: was trained on frames with flow farneback, but those of toy have flow dis" in (
        capsys.readouterr().err
    )


def test_training_writes_down_how_its_frames_were_made(world, extracted, tmp_path):
    folder = run_on(tmp_path, world, extracted, "farneback")
    flags = ["--name", "trained", "--train.epochs", "1", "--train.batch-size", "3", "--device", "cpu"]
    assert cli(["train", str(folder / "experiment.yaml"), *flags]) == 0
    run = load_run(tmp_path / "trained")
    assert run.meta["extraction"]["flow"] == "farneback"
    assert run.meta["extraction"]["size"] == list(SIZE)
    shutil.rmtree(tmp_path / "frames")
    assert reading_of(load_run(tmp_path / "trained")).flow == "farneback"
    assert run.class_names == CLASSES
    assert torch.isfinite(next(run.model.parameters())).all()
