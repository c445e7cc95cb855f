"""Folders of videos and frames, stored flow and parts of videos: predicted as `evaluate` scores them."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.runs import SMALL, write_run
from two_stream.api import load_run as load_api_run
from two_stream.cli import main as cli
from two_stream.errors import SettingsError, TwoStreamError, VideoError
from two_stream.evaluation.runs.run import evaluate_run, load_run, score_each, score_with_runs
from two_stream.evaluation.scoring.score import Canvas
from two_stream.evaluation.scoring.video import VideoInput, score_sources
from two_stream.video.decoding.memory import FlowFolder, open_any
from two_stream.video.extraction.many_videos import extract
from two_stream.video.extraction.one_video import ExtractOptions
from two_stream.video.sources import find_inputs, find_sources

CENTER = SMALL.model_copy(update={"crops": "center"})


@pytest.fixture(scope="module")
def framed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world with its frames and its DIS flow, larger than the videos, and runs that read them."""
    root = tmp_path_factory.mktemp("framed") / "world"
    shutil.copytree(world, root)
    for file in (root / "settings").rglob("dataset.yaml"):
        file.write_text(file.read_text().replace(str(world), str(root)))
    sources, _ = find_sources(root / "videos")
    assert not extract(
        sources, root / "frames", ExtractOptions(flow="dis", short_side=60, processes=0)
    ).failed
    for modality in ("rgb", "flow"):
        write_run(root / "framed", modality, settings_root=root / "settings", source="frames")
    return root


@pytest.mark.parametrize("modality", ["rgb", "flow"])
def test_a_folder_of_frames_has_the_scores_of_evaluate_bit_for_bit(framed, tmp_path, modality):
    run = load_run(framed / "framed" / modality)
    table, _ = evaluate_run(run, CENTER, out=tmp_path / "s.npz")
    folders = [framed / "frames" / name for name in table.ids]
    found = score_each([run], folders, [CENTER])
    np.testing.assert_array_equal([one[0].logits for one in found], table.logits)
    assert [one[0].frames for one in found] == [13, 13, 13]
    assert table.logits.std() > 0.01


def test_stored_flow_is_read_unless_another_algorithm_is_asked_for(framed, capsys):
    run = load_api_run(framed / "framed" / "flow")
    folder = framed / "frames" / "left" / "v_g3"
    stored = run.predict(folder).probabilities
    computed = run.predict(folder, flow="farneback").probabilities
    assert np.abs(stored - computed).max() > 1e-3
    assert "was trained on dis flow, but reads farneback" in capsys.readouterr().err


def test_flow_only_folders_and_lost_halves(framed, tmp_path, capsys):
    folder, other = framed / "frames" / "left" / "v_g3", tmp_path / "flow_only"
    other.mkdir()
    for path in folder.glob("flow_*"):
        shutil.copy(path, other / path.stem)  # without a suffix, as in the published HMDB51
    run = load_run(framed / "framed" / "flow")
    (wanted,), (found,) = (score_with_runs([run], one, [CENTER]) for one in (folder, other))
    np.testing.assert_array_equal(found.logits, wanted.logits)
    assert find_inputs(tmp_path)[0] == [("flow_only", other)]
    with pytest.raises(VideoError, match="contains stored flow but no images; use a flow run"):
        open_any(other)
    (other / "flow_y_00007").unlink()
    with pytest.raises(VideoError, match="flow frame y_7 is missing; expected x and y of frames 1 to 12"):
        FlowFolder(other)


def test_a_command_reads_a_folder_of_videos_and_frames(framed, tmp_path, capsys):
    folder = tmp_path / "mixed"
    shutil.copytree(framed / "videos" / "left", folder / "left")
    shutil.copytree(framed / "frames" / "right" / "v_g2", folder / "left" / "v_g2")  # as left/v_g2.mp4
    shutil.copytree(framed / "frames" / "right" / "v_g1", folder / "right.old" / "v_g1")
    (folder / "left" / "cover1.jpg").write_bytes(next((folder / "right.old").rglob("*.jpg")).read_bytes())
    (folder / "broken.mp4").write_text("no video")
    runs = ["--rgb", str(framed / "framed" / "rgb"), "--flow", str(framed / "framed" / "flow")]
    command = ["predict", str(folder), *runs, "--crops", "center", "--device", "cpu"]
    assert cli([*command, "--csv", str(tmp_path / "a.csv"), "--json", str(tmp_path / "a.json")]) == 1
    caught = capsys.readouterr()
    assert f"{folder / 'broken.mp4'}: not a video" in caught.err
    assert "5 videos · fused by l2 · 1 video could not be read" in caught.out
    with (tmp_path / "a.csv").open() as file:
        rows = {row.pop("id"): [float(value) for value in row.values()] for row in csv.DictReader(file)}
    assert list(rows) == ["left/v_g1", "left/v_g2", "left/v_g2.mp4", "left/v_g3", "right.old/v_g1"]
    written = json.loads((tmp_path / "a.json").read_text())
    assert written[0]["video"] == "broken"
    assert "not a video" in written[0]["error"]
    for name in ("left/v_g2", "left/v_g3.mp4"):
        one = ["predict", str(folder / name), *command[2:], "--csv", str(tmp_path / "one.csv")]
        assert cli(one) == 0
        with (tmp_path / "one.csv").open() as file:
            (row,) = csv.DictReader(file)
        alone = [float(row[key]) for key in list(row)[1:]]
        assert rows[name.removesuffix(".mp4")] == pytest.approx(alone, abs=1e-6)


def test_a_folder_of_videos_scores_as_evaluate_in_shared_batches(world, tmp_path, monkeypatch):
    run = load_run(world / "rgb")
    table, _ = evaluate_run(run, CENTER, out=tmp_path / "s.npz")
    videos = [world / "videos" / f"{name}.mp4" for name in table.ids]
    sizes: list[int] = []
    plain = Canvas.logits
    monkeypatch.setattr(Canvas, "logits", lambda self, count: sizes.append(count) or plain(self, count))
    found = score_each([run], videos, [CENTER])
    assert sizes == [5, 4]  # three videos of three views
    np.testing.assert_allclose([one[0].logits for one in found], table.logits, rtol=0, atol=1e-6)


def test_loader_processes_give_the_same_results_in_the_order_of_the_videos(world, tmp_path):
    torn = tmp_path / "torn.mp4"
    torn.write_text("no video")
    videos = sorted((world / "videos").rglob("*.mp4"))
    videos.insert(2, torn)
    run = load_run(world / "flow")
    alone = score_each([run], videos, [CENTER])
    settings = run.experiment.model_copy(
        update={"data": run.experiment.data.model_copy(update={"workers": 2})}
    )
    object.__setattr__(run, "experiment", settings)
    several = score_each([run], videos, [CENTER])
    assert [isinstance(one, TwoStreamError) for one in several] == [n == 2 for n in range(10)]
    assert "torn.mp4: not a video" in str(several[2])
    for one, other in zip(alone, several):
        if isinstance(one, list) and isinstance(other, list):
            np.testing.assert_allclose(one[0].logits, other[0].logits, rtol=0, atol=1e-6)
            assert one[0].frames == other[0].frames
            np.testing.assert_array_equal(one[0].times, other[0].times)


def test_an_error_of_the_settings_in_a_loader_process_is_raised_as_it_is(world):
    run = load_run(world / "rgb")
    videos = [(name, world / "videos" / "left" / f"{name}.mp4") for name in ("v_g1", "v_g2")]
    with pytest.raises(SettingsError, match=r"^unknown video backend 'none'; known: [^\n]*$"):
        list(score_sources(run.model, videos, CENTER, VideoInput("none"), workers=1))


def test_a_part_is_written_with_a_number_sign_and_a_real_file_wins(world, tmp_path, monkeypatch):
    run = load_api_run(world / "rgb")
    video = world / "videos" / "left" / "v_g3.mp4"
    wanted = run.predict((video, 0.25, 0.75))
    found = run.predict(f"{video}#0.25-0.75")
    assert found.frames == wanted.frames == 6  # 12 frames per second
    np.testing.assert_array_equal(found.probabilities, wanted.probabilities)
    odd = tmp_path / "v.mp4#0-1"
    shutil.copy(video, odd)
    assert run.predict(odd).frames == 13
    out = tmp_path / "part.json"
    command = ["predict", f"{video}#0.25-0.75", "--rgb", str(world / "rgb"), "--json", str(out)]
    assert cli([*command, "--device", "cpu"]) == 0
    assert json.loads(out.read_text())[0]["frames"] == 6


def test_changed_weights_are_noticed(world):
    run = load_api_run(world / "rgb")
    video = world / "videos" / "left" / "v_g3.mp4"
    before = run.predict(video).probabilities
    np.testing.assert_array_equal(run.predict(video).probabilities, before)
    with torch.no_grad():
        run.model.classifier.bias.add_(torch.tensor([5.0, 0.0, 0.0]))
    after = run.predict(video).probabilities
    assert after[0] / after[1] == pytest.approx(np.exp(5) * before[0] / before[1], rel=1e-4)
