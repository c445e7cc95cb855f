"""Runs on the Hugging Face hub: pushed to a server on this machine, loaded, used, and reproduced."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file, save_file

from tests.conftest import MadeOnce
from tests.helpers.hub import Hub, Repo, connected
from tests.helpers.runs import make_world
from two_stream import create_model, load_run
from two_stream.cli import main
from two_stream.errors import CheckpointError, SettingsError
from two_stream.evaluation.runs.publish import hash_names, hide_places
from two_stream.evaluation.runs.reproduce import compare_again
from two_stream.evaluation.runs.run import evaluate_run
from two_stream.evaluation.scores.files import find_scores, read_scores, write_scores
from two_stream.pretrained.files import hub as hub_module
from two_stream.pretrained.reading import read_metadata
from two_stream.runtime.files import write_checksums

REPO = "ada/waves"
PUSH = [REPO, "--license", "mit"]


@pytest.fixture(scope="session")
def scored_world(made_once: MadeOnce) -> Path:
    """Videos and two runs, of which the RGB run has scores."""

    def fill(folder: Path) -> None:
        make_world(folder)
        evaluate_run(folder / "rgb", device="cpu")

    return made_once("hub", fill)


@pytest.fixture
def world(scored_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the runs in the current folder; the data stay where they are."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(scored_world / "rgb", tmp_path / "rgb")
    return scored_world


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with connected(monkeypatch, tmp_path_factory.mktemp("cache")) as made:
        yield made


def again(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict]:
    """Run `reproduce --json` and return the exit code and the result."""
    capsys.readouterr()
    code = main(["reproduce", *args, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_push_load_predict_reproduce(
    hub: Hub, world: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["push", "rgb", *PUSH]) == 0
    files = hub.repos[REPO].commits[-1]
    assert set(files) == {
        "README.md",
        "checksums.json",
        "config.json",
        "data.json",
        "experiment.yaml",
        "model.safetensors",
        "scores/test_multi_three_logits.npz",
    }
    run, own = load_run(f"hf://{REPO}"), load_run("rgb")
    video = str(world / "videos" / "left" / "v_g3.mp4")
    np.testing.assert_array_equal(run.predict(video).probabilities, own.predict(video).probabilities)
    assert run.class_names == own.class_names
    capsys.readouterr()
    assert main(["predict", video, "--rgb", f"hf://{REPO}", "--json", "-"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown[0]["top"][0]["class"] == own.predict(video).label
    data = ["--data-root", str(world / "settings" / "toy")]
    code, found = again([f"hf://{REPO}", *data], capsys)
    assert (code, found["verdict"]) == (0, "equal bit for bit")
    assert (found["videos"], found["changed"], found["largest"]) == (3, 0, 0.0)
    assert "code version" not in found["facts"]
    assert not (tmp_path / "runs").exists()
    assert main(["evaluate", f"hf://{REPO}", *data]) == 0
    (written,) = (tmp_path / "runs" / "hub").glob("ada--waves@*/scores/*.npz")
    np.testing.assert_array_equal(read_scores(written).logits, read_scores(find_scores("rgb")).logits)


def test_python_pushes_and_a_revision_is_loaded(hub: Hub, world: Path) -> None:
    run = load_run("rgb", data_root=world / "settings" / "toy")
    assert run.push(REPO, license="mit") == f"{hub.url}/{REPO}"
    first = hub.repos[REPO].sha()
    changed = load_file("rgb/best/model.safetensors")
    changed["classifier.bias"] += 1
    save_file(
        changed, "rgb/best/model.safetensors", metadata=read_metadata(Path("rgb/best/model.safetensors"))
    )
    write_checksums(Path("rgb/best"))
    load_run("rgb").push(REPO, license="mit")
    newest, old = load_run(f"hf://{REPO}"), load_run(f"hf://{REPO}@{first}")
    assert old.model_sha256 == run.model_sha256
    torch.testing.assert_close(newest.model.classifier.bias, old.model.classifier.bias + 1)
    # the scores are of the first weights
    assert "scores/test_multi_three_logits.npz" not in hub.repos[REPO].commits[-1]


def test_published_scores_are_compared_published_again_and_a_start(
    hub: Hub, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", "rgb", *PUSH]) == 0
    assert main(["push", f"hf://{REPO}", "ada/copy", "--license", "MIT"]) == 0
    first, copy = hub.repos[REPO].commits[-1], hub.repos["ada/copy"].commits[-1]
    assert copy["model.safetensors"] == first["model.safetensors"]
    assert read_scores(find_scores("hf://ada/copy")).ids == read_scores(find_scores(f"hf://{REPO}")).ids
    capsys.readouterr()
    assert main(["fuse", f"hf://{REPO}", "hf://ada/copy", "--out", "fused.npz"]) == 0
    assert read_scores("fused.npz").ids == read_scores(find_scores("hf://ada/copy")).ids
    model = create_model(load_run("rgb").experiment.model, pretrained=f"hf://{REPO}")
    assert torch.equal(model.classifier.weight, load_run("rgb").model.classifier.weight)
    videos = str(world / "videos" / "left")
    assert main(["features", f"hf://{REPO}", "--videos", videos, "--npy", "one", "--device", "cpu"]) == 0
    assert main(["features", "rgb", "--videos", videos, "--npy", "two", "--device", "cpu"]) == 0
    np.testing.assert_array_equal(np.load("one/v_g3.npy"), np.load("two/v_g3.npy"))
    assert main(["report", f"hf://{REPO}"]) == 0
    assert len(list(Path("runs/hub").glob("ada--waves@*/report.html"))) == 1


def test_the_newest_published_scores_are_those_of_the_list(tmp_path: Path) -> None:
    for place, name in enumerate(("test_b", "test_a", "val_c")):
        (tmp_path / "scores").mkdir(exist_ok=True)
        (tmp_path / "scores" / f"{name}.npz").touch()
        os.utime(tmp_path / "scores" / f"{name}.npz", (place, place))
    assert find_scores(tmp_path).name == "test_a.npz"
    results = [{"file": "scores/test_b.npz"}, {"file": "scores/test_a.npz"}]
    (tmp_path / "config.json").write_text(json.dumps({"results": results}))
    assert find_scores(tmp_path).name == "test_b.npz"


def test_nothing_private_is_uploaded(hub: Hub, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = yaml.safe_load(Path("rgb/experiment.yaml").read_text())
    settings["train"]["init"] = "/home/ada lovelace/secret/start.pth"
    settings["data"]["settings_root"] = "/home/lovelace"
    settings["device"] = "cuda:3"
    settings["data"]["dataset"] = str(world / "settings" / "toy" / "dataset.yaml")
    Path("rgb/experiment.yaml").write_text(yaml.safe_dump(settings))
    path = find_scores("rgb")
    table = read_scores(path)
    table.meta |= {"skipped": ["left/v_ada"], "skipped_reasons": {"left/v_ada": "/home/ada/v.mp4: damaged"}}
    table.meta |= {"features": {"folder": "/home/ada/f", "content_sha256": "0" * 64}}
    write_scores(path, table)
    Path("rgb/environment.json").write_text('{"torch": "2.14", "gpu": "see /home/ada/x y"}')
    assert main(["push", "rgb", *PUSH, "--out", "card"]) == 0
    assert hub.repos == {}
    assert not hub.requests
    for file in Path("card").rglob("*.*"):
        content = file.read_bytes()
        if file.suffix == ".npz":
            found = read_scores(file)
            assert found.ids == hash_names(table).ids
            assert found.groups == hash_names(table).groups
            np.testing.assert_array_equal(found.logits, table.logits)
            content = json.dumps([found.ids, found.groups, found.meta]).encode()
            assert found.meta["features"]["folder"] == "f"
        if file.suffix == ".safetensors":
            content = json.dumps(read_metadata(file)).encode()
        for secret in (
            str(world),
            str(Path.home()) + "/",
            socket.gethostname(),
            "lovelace",
            "v_g3",
            "/home",
            "v_ada",
        ):
            named = secret.encode()
            assert named not in content.replace(b"video/v_", b""), (file, secret)
    written = yaml.safe_load(Path("card/experiment.yaml").read_text())
    assert (written["train"]["init"], written["data"]["dataset"]) == ("start.pth", "toy")
    assert written["device"] == "auto"
    assert main(["push", "rgb", *PUSH, "--video-names", "--out", "named"]) == 0
    assert read_scores(find_scores("named")).ids == table.ids


def test_weights_whose_header_names_a_place(world: Path) -> None:
    file = Path("rgb/best/model.safetensors")
    header = read_metadata(file)
    meta = json.loads(header["meta"])
    header["meta"] = json.dumps(meta | {"extraction": {"flow": "tvl1", "source": "/home/ada/videos"}})
    tensors = load_file(file)
    save_file(tensors, file, metadata=header)
    write_checksums(file.parent)
    path = find_scores("rgb")
    table = read_scores(path)
    table.meta["model_sha256"] = load_run("rgb").model_sha256
    write_scores(path, table)
    assert main(["push", "rgb", *PUSH, "--out", "card"]) == 0
    written = Path("card/model.safetensors")
    assert b"/home/ada" not in written.read_bytes()
    for name, tensor in load_file(written).items():
        assert torch.equal(tensor, tensors[name])
    assert load_run("card").model_sha256 == read_scores(find_scores("card")).meta["model_sha256"]


@pytest.mark.parametrize(
    ("value", "public"),
    [
        ("/data/ada/model.pth", "model.pth"),
        ("C:\\Users\\ada\\model.pth", "model.pth"),
        ("~/x/y z", "y z"),
        ("../ada/toy", "toy"),
        ("s3://key:secret@bucket/shards", "shards"),
        ("read from /home/ada/x.mp4 (damaged)", "read from x.mp4 (damaged)"),
        ("MCG-NJU/videomae-base", "MCG-NJU/videomae-base"),
        ("multi-clip × ten-crop, mean of logits", "multi-clip × ten-crop, mean of logits"),
        ("open/close", "open/close"),
    ],
)
def test_places_are_hidden(value: str, public: str) -> None:
    assert hide_places({"a": [value]}) == {"a": [public]}


def test_the_card_states_scores_data_and_limits(hub: Hub, world: Path) -> None:
    assert main(["push", "rgb", *PUSH]) == 0
    text = hub.repos[REPO].commits[-1]["README.md"].decode()
    card = ModelCard(text)
    assert card.data.license == "mit"
    assert card.data.pipeline_tag == "video-classification"
    assert card.data.library_name == "two-stream"
    (result,) = card.data.eval_results
    table = read_scores(find_scores("rgb"))
    right = 100 * float((table.logits.argmax(axis=1) == table.labels).mean())
    assert result.metric_value == pytest.approx(right, abs=0.01)
    assert result.dataset_split == "test"
    assert table.meta["protocol"] in result.metric_name
    for line in (
        "hf://ada/waves --data-root",
        "left, right, stay",
        "In the test part: only 1 source video",
        "mobilenetv2_3d",
    ):
        assert line in text
    assert not re.search(r"None|Undefined|\{\{|v_g3", text)


def test_the_threshold_of_these_weights_is_published(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"value": 0.9, "false_alarms": 0.1, "scores": "scores/val.npz"}
    Path("rgb/threshold.json").write_text(json.dumps(facts | {"model_sha256": load_run("rgb").model_sha256}))
    assert main(["push", "rgb", *PUSH, "--out", "card"]) == 0
    assert load_run("card").threshold == 0.9
    assert "below the threshold in `threshold.json`" in Path("card/README.md").read_text()
    Path("rgb/threshold.json").write_text(json.dumps(facts | {"model_sha256": "other"}))
    assert "chosen for other weights" in failure(["push", "rgb", *PUSH, "--out", "second"], capsys)
    assert not Path("second").exists()


def test_reproduce_names_what_differs(hub: Hub, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data-root", str(world / "settings" / "toy")]
    before = find_scores("rgb").read_bytes()
    code, found = again(["rgb", *data, "--batch-views", "2"], capsys)
    assert (code, found["verdict"]) == (0, "within the interval")
    assert found["facts"]["batch views"] == [5, 2]
    assert 0 < found["largest"] < 1e-3
    code, found = again(["rgb", *data, "--precision", "bf16"], capsys)
    assert found["facts"]["precision"] == ["fp32", "bf16"]
    assert (code, found["verdict"]) == (
        (0, "within the interval") if not found["changed"] else (1, "different")
    )
    assert find_scores("rgb").read_bytes() == before
    file = Path("rgb/best/model.safetensors")
    tensors, header = load_file(file), read_metadata(file)
    tensors["classifier.weight"][0, 0] += 1e-3
    save_file(tensors, file, metadata=header)
    code, found = again(["rgb", *data], capsys)
    assert (code, found["verdict"]) == (1, "different")
    assert "damaged (SHA-256 differs" in found["why"][0]
    write_checksums(file.parent)
    code, found = again(["rgb", *data], capsys)
    assert (code, found["verdict"]) == (1, "different")
    assert found["why"] == ["the weights are not those of the score file"]
    assert "weights" in found["facts"]
    assert main(["reproduce", "rgb", *data]) == 1
    assert capsys.readouterr().out.startswith("different: the weights are not those of the score file; ")


def test_reproduce_compares_videos_labels_and_the_interval() -> None:
    draw = np.random.default_rng(0)
    from tests.helpers.runs import Runs

    meta = {
        "modality": "rgb",
        "file": "s.npz",
        "model_sha256": "a",
        "crops": "center",
        "views_per_video": 2.0,
    }
    stored = Runs(Path()).table(["a", "b", "c"], 60, "test", meta)
    order = draw.permutation(60)
    mixed = replace(
        stored,
        ids=[stored.ids[i] for i in order],
        labels=stored.labels[order],
        logits=stored.logits[order],
        groups=[stored.groups[i] for i in order],
    )
    assert compare_again(stored, mixed).verdict == "equal bit for bit"
    near = replace(stored, logits=stored.logits + 1e-9)
    assert compare_again(stored, near).verdict == "within the interval"
    wrong = replace(stored, logits=np.roll(stored.logits, 1, axis=1))
    found = compare_again(stored, wrong)
    assert found.verdict == "different"
    assert "top-1 is now outside of the interval" in found.why[0]
    fewer = replace(
        stored,
        ids=[*stored.ids[:58], "new"],
        labels=stored.labels[:59],
        logits=stored.logits[:59],
        groups=stored.groups[:59],
    )
    assert compare_again(stored, fewer).why == ["the videos differ (2 are missing now, 1 are new)"]
    relabelled = replace(stored, labels=np.r_[(stored.labels[0] + 1) % 3, stored.labels[1:]])
    assert compare_again(stored, relabelled).why == ["the labels of 1 video differ"]
    other = replace(stored, meta=meta | {"crops": "ten"})
    assert compare_again(stored, other).why == ["crops: center then, ten now"]
    longer = replace(stored, meta=meta | {"views_per_video": 3.0})
    assert compare_again(stored, longer).why == ["views per video: 2.0 then, 3.0 now"]


def failure(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line of a command that fails."""
    capsys.readouterr()
    assert main(args) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("loading ")]
    assert len(lines) == 1, lines
    return lines[0]


def test_one_line_for_each_mistake(
    hub: Hub, world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--license mit, apache-2.0" in failure(["push", "rgb", REPO], capsys)
    assert "expected NAME/MODEL" in failure(["push", "rgb", "waves", "--license", "mit"], capsys)
    assert "the license is 'MIT License'" in failure(
        ["push", "rgb", REPO, "--license", "MIT License"], capsys
    )
    assert "not a run folder" in failure(["push", ".", *PUSH], capsys)
    assert "rgb exists" in failure(["push", "rgb", *PUSH, "--out", "rgb"], capsys)
    assert "--private cannot be combined" in failure(
        ["push", "rgb", *PUSH, "--out", "x", "--private"], capsys
    )
    assert "(403)" in failure(["push", "rgb", "somebody-else/x", "--license", "mit"], capsys)
    assert "not the name of a run" in failure(["evaluate", "hf://waves"], capsys)
    assert "no such repository" in failure(["evaluate", "hf://ada/nothing"], capsys)
    hub.repos[REPO] = Repo()
    assert "is public" in failure(["push", "rgb", *PUSH, "--private"], capsys)
    assert hub.repos[REPO].commits == [{}]
    assert "no revision 'old'" in failure(["evaluate", f"hf://{REPO}@old"], capsys)
    hub.repos[REPO].put(**{"pytorch_model.bin": b"\x80\x04."})
    said = failure(["evaluate", f"hf://{REPO}"], capsys)
    assert "its weights are pickles" in said
    assert "pytorch_model.bin" in said
    assert not list(Path(constants.HF_HUB_CACHE).rglob("pytorch_model.bin"))
    hub.broken = 500
    assert "answers 500" in failure(["push", "rgb", *PUSH], capsys)
    assert "cannot be reached (" in failure(["evaluate", "hf://ada/fourth"], capsys)
    hub.broken = 0
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert "rejects the token (401)" in failure(["push", "rgb", *PUSH], capsys)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in failure(["push", "rgb", *PUSH], capsys)
    assert "http://127.0.0.1:9 cannot be reached" in failure(["evaluate", "hf://ada/other"], capsys)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in failure(["evaluate", "hf://ada/third"], capsys)
    assert "HF_HUB_OFFLINE is set" in failure(["push", "rgb", *PUSH], capsys)


def test_a_loaded_run_works_offline(hub: Hub, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["push", "rgb", *PUSH, "--private"]) == 0
    assert hub.repos[REPO].private
    before = load_run(f"hf://{REPO}").model_sha256
    hub_module._fetch.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_run(f"hf://{REPO}").model_sha256 == before
    with pytest.raises(CheckpointError, match="no checkpoint 'last'; use `best`"):
        load_run(f"hf://{REPO}", "last")


def test_scores_that_are_not_of_one_run_are_refused(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = find_scores("rgb")
    table = read_scores(path)
    table.meta["kind"] = "fused"
    write_scores(Path("fused.npz"), table)
    assert "cannot be reproduced" in failure(["reproduce", "rgb", "--scores", "fused.npz"], capsys)
    shutil.rmtree("rgb/scores")
    assert "no scores of the test part" in failure(["reproduce", "rgb"], capsys)
    with pytest.raises(SettingsError, match="expected NAME/MODEL"):
        load_run("rgb").push("x", license="mit")
