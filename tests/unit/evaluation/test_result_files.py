"""Result files that are damaged, of another form or about other videos; the command that evaluates them."""

from __future__ import annotations

import json

import pytest
import yaml

from two_stream.cli import main as cli
from two_stream.errors import DataError, ScoreError, SettingsError
from two_stream.evaluation.scores.result_files import evaluate_results, read_results, read_truth

GUESSES = {"a/v1": [{"label": "jump", "score": 0.7}, {"label": "run", "score": 0.3}]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not a JSON file"),
        ("[]", 'expected {"results"'),
        ('{"results": {"v": 3}}', r"results\.v: expected a list"),
        (
            '{"results": {"v": [{"label": "a"}]}}',
            r"results\.v: \{'label': 'a'\}: expected `label` and a number",
        ),
        (
            '{"results": {"v": [{"segment": [1, 2], "result": []}, {"label": "a", "score": 1}]}}',
            "are mixed; expected only one",
        ),
    ],
)
def test_what_is_wrong_with_a_result_file_is_named(tmp_path, text, said):
    path = tmp_path / "val.json"
    path.write_text(text)
    with pytest.raises(ScoreError, match=said):
        read_results(path)
    with pytest.raises(ScoreError, match="no such file"):
        read_results(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("truth", "said"),
    [
        ({"labels": []}, 'expected {"labels"'),
        ({"database": {"v": {}}}, r"database\.v: `subset` is missing"),
        (
            {"database": {"v": {"subset": "training", "annotations": {"label": "a"}}}},
            "no video of subset 'validation'",
        ),
        ({"database": {"v": {"subset": "validation"}}}, r"database\.v: expected `annotations`"),
    ],
)
def test_what_is_wrong_with_an_annotation_file_is_named(tmp_path, truth, said):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    with pytest.raises(DataError, match=said):
        read_truth(path)


def test_several_classes_of_a_video_and_other_names(tmp_path):
    path = tmp_path / "truth.json"
    both = [{"label": "a", "segment": [0, 1]}, {"label": "b"}, {"label": "a"}]
    path.write_text(json.dumps({"database": {"v": {"subset": "validation", "annotations": both}}}))
    assert read_truth(path) == {"v": ("a", "b")}
    assert evaluate_results({"v": [("b", 0.9)]}, {"v": ("a", "b")}).top == {1: 1.0, 5: 1.0}
    with pytest.raises(
        ScoreError,
        match=r"no video of the ground truth has a result: the ground truth lists videos such as 'v', "
        ".* 'w'",
    ):
        evaluate_results({"w": [("b", 0.9)]}, {"v": ("a",)})
    with pytest.raises(SettingsError, match="--top is 0"):
        evaluate_results({"v": []}, {"v": ("a",)}, (0,))


def test_the_command_counts_the_videos_without_result(tmp_path, capsys):
    folder = tmp_path / "settings" / "tiny"
    folder.mkdir(parents=True)
    (folder / "dataset.yaml").write_text(yaml.safe_dump({"name": "tiny", "classes": ["jump", "run"]}))
    (folder / "val_rgb_split1.txt").write_text("a/v1 9 0\na/v2 9 1\n")
    (folder / "train_rgb_split1.txt").write_text("a/v3 9 0\n")
    results = tmp_path / "val.json"
    results.write_text(json.dumps({"results": {**GUESSES, "a/v9": GUESSES["a/v1"]}}))
    command = ["evaluate", "--from-json", str(results), "--truth", str(folder / "dataset.yaml")]
    assert cli([*command, "--top", "1"]) == 1, "a listed video has no result"
    shown = capsys.readouterr()
    assert "50.0" in shown.out
    assert "2 of 2 videos listed" in shown.out
    assert "no result for 1 video (a/v2): counted as wrong" in shown.err
    assert "not counted, because not listed: 1 video (a/v9)" in shown.err
    assert cli([*command, "--ignore-unseen", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["top"] == {"1": 1.0, "5": 1.0}
    assert cli(command[:3]) == 2
    assert "--from-json requires --truth" in capsys.readouterr().err
