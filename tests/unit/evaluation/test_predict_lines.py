"""`predict --stdin`: a line with a video in, a line of JSON out, with the results of `predict` itself."""

from __future__ import annotations

import io
import json

import pytest

from two_stream.cli import main
from two_stream.evaluation.runs import run as runs


def test_lines_give_what_predict_gives_and_networks_are_loaded_once(
    exported_world, tmp_path, capsys, monkeypatch
):
    first, second = sorted((exported_world / "videos").rglob("*.mp4"))[:2]
    networks = [
        "--rgb",
        str(exported_world / "rgb"),
        "--flow",
        str(exported_world / "flow"),
        "--device",
        "cpu",
    ]
    assert main(["predict", str(first), str(second), *networks, "--json", "-"]) == 0
    expected = json.loads(capsys.readouterr().out)
    loaded = []
    load = runs.load_run
    monkeypatch.setattr(
        "two_stream.evaluation.runs.run.load_run",
        lambda *given, **more: loaded.append(1) or load(*given, **more),
    )
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{first}\n\n{tmp_path / 'no.mp4'}\n{second}"))
    assert main(["predict", "--stdin", *networks]) == 1
    one, missing, two = map(json.loads, capsys.readouterr().out.splitlines())
    assert missing == {"video": str(tmp_path / "no.mp4"), "error": f"{tmp_path / 'no.mp4'}: no such file"}
    for given, wanted in zip((one, two), expected):
        assert given["video"] == wanted["video"]
        assert [row["class"] for row in given["top"]] == [row["class"] for row in wanted["top"]]
        for row, same in zip(given["top"], wanted["top"]):
            assert row["probability"] == pytest.approx(
                same["probability"], abs=1e-5
            )  # views of several videos share batches
    assert len(loaded) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["x.mp4", "--stdin"], "--stdin reads the videos from the standard input; omit x.mp4"),
        (["--stdin", "--csv", "x.csv"], "--stdin writes lines of JSON; omit --csv"),
    ],
)
def test_contradicting_flags_are_one_line(exported_world, capsys, flags, message):
    assert main(["predict", *flags, "--rgb", str(exported_world / "rgb")]) == 2
    assert message in capsys.readouterr().err
