import json
import math
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student

from tests.helpers.browser import Checker
from two_stream.commands import fuse as fuse_command
from two_stream.commands import report as report_command
from two_stream.errors import ScoreError, SettingsError
from two_stream.evaluation.pictures import thumbnails
from two_stream.evaluation.report import page
from two_stream.evaluation.report.run_report import write_report
from two_stream.evaluation.runs.lookup import BASELINE_SCORES, baseline_folder
from two_stream.evaluation.scores import metrics, words
from two_stream.evaluation.scores.files import find_scores, read_scores, write_scores
from two_stream.evaluation.scores.fusion import fuse, weight_curve
from two_stream.evaluation.scores.statistics import Interval
from two_stream.evaluation.scores.tables import join, reorder
from two_stream.evaluation.scores.words import minus
from two_stream.runtime.text import signed_number

HOSTILE = ["<script>alert(1)</script>", "a & b", "c | d", "$e$ `f`"]


def parsed(path: Path) -> Checker:
    checker = Checker()
    checker.feed(path.read_text())
    assert checker.open == []
    return checker


@pytest.fixture
def two(runs):
    return [runs.make("rgb"), runs.make("flow")]


def test_page_numbers_json_and_markdown_agree_with_the_metrics(two, tmp_path):
    page, values, text = write_report(two, tmp_path / "out" / "r.html")
    streams = join([read_scores(find_scores(run)) for run in two])
    fused = fuse(streams)
    facts = json.loads(values.read_text())
    summary = metrics.summarise(fused)
    assert facts["streams"][2]["top"]["1"]["value"] == summary.top[1].value
    assert [row["name"] for row in facts["streams"]][:3] == ["rgb", "flow", "fused (l2)"]
    assert facts["confusion"] == metrics.confusion_matrix(fused.logits, fused.labels).tolist()
    assert facts["verdict"] == words.fusion_verdict(fused, streams)
    shown = words.percent(summary.top[1])
    assert shown in parsed(page).text
    assert shown.replace("[", r"\[").replace("]", r"\]") in text.read_text()
    for line in words.rows(words.lines(streams)):
        assert line[1] in parsed(page).text
    assert "multi-clip × ten-crop, mean of logits" in parsed(page).text
    assert "60 videos of 20 sources" in parsed(page).text


def test_page_is_self_contained_and_the_same_twice(two, tmp_path):
    page = write_report(two, tmp_path / "a.html")[0]
    checker = parsed(page)
    assert [load for load in checker.loads if not load.startswith(("#", "data:"))] == []
    assert page.read_text().count("<script") == 1  # the page's own
    assert not re.search(r"url\((?!#)|@import|<!DOCTYPE svg|#0[1-5]0[1-5]0[1-5]", page.read_text())
    first = page.read_bytes()
    assert write_report(two, tmp_path / "a.html")[0].read_bytes() == first


def test_every_name_is_escaped(runs, tmp_path):
    folders = [runs.make(modality, classes=HOSTILE) for modality in ("rgb", "flow")]
    ids = read_scores(find_scores(folders[0])).ids
    assert any("<script>" in name for name in ids)
    page, _, text = write_report(folders, tmp_path / "r.html", title="<i>t</i>")
    checker = parsed(page)
    assert page.read_text().count("<script") == 1  # the page's own
    assert "<i>t</i>" in checker.text
    assert "<script>alert(1)</script>" in checker.text
    assert "<script>" not in text.read_text().replace("\\<script", "")
    rows = [line for line in text.read_text().splitlines() if line.startswith("| c ")]
    assert rows
    assert rows[0].startswith("| c \\| d |")


def test_curve_needs_holdout_scores_and_tells_how_to_get_them(two, tmp_path):
    facts = json.loads(write_report(two, tmp_path / "r.html")[1].read_text())
    vals = [read_scores(find_scores(run, "val")) for run in two]
    assert facts["curve"]["chosen"] == weight_curve(*vals).chosen
    assert facts["streams"][3]["meta"]["fitted_part"] == "val"
    (two[1] / "scores" / "val_multi_ten_logits.npz").unlink()
    page, values, _ = write_report(two, tmp_path / "r.html")
    assert json.loads(values.read_text())["curve"] is None
    assert f"two-stream evaluate {two[1]} --part val" in parsed(page).text


def test_learned_weights_are_those_that_fuse_finds(two, tmp_path):
    facts = json.loads(write_report(two, tmp_path / "r.html", rule="learned")[1].read_text())
    tests, vals = ([read_scores(find_scores(run, part)) for run in two] for part in ("test", "val"))
    fused = fuse(tests, "learned", fit=vals)
    assert facts["main"] == "fused (learned)"
    assert facts["streams"][2]["meta"]["weights"] == fused.meta["weights"]
    assert facts["streams"][2]["top"]["1"]["value"] == metrics.top_k_accuracy(fused.logits, fused.labels)
    assert len(facts["streams"]) == 3  # nothing to search where the weights are fitted
    assert facts["curve"]["rule"] == "logits"
    (two[1] / "scores" / "val_multi_ten_logits.npz").unlink()
    with pytest.raises(ScoreError, match=r"npz: `--rule learned` fits .* on the holdout part"):
        write_report(two, tmp_path / "r.html", rule="learned")


def test_scores_of_another_model_are_not_taken_for_the_holdout(runs, tmp_path):
    folders = [runs.make("rgb"), runs.make("flow")]
    path = folders[0] / "scores" / "val_multi_ten_logits.npz"
    table = read_scores(path)
    table.meta["model_sha256"] = "older"
    write_scores(path, table)
    assert json.loads(write_report(folders, tmp_path / "r.html")[1].read_text())["curve"] is None


def test_strips_show_the_frames_and_absent_ones_say_why(two, runs, tmp_path):
    page = write_report(two, tmp_path / "r.html", mistakes=3)[0]
    assert parsed(page).text.count("no frames:") == 3
    table = read_scores(find_scores(two[0]))
    runs.frames(table.ids, table.class_names)
    page = write_report(two, tmp_path / "r.html", mistakes=3)[0]
    assert sum(load.startswith("data:image/jpeg;base64,") for load in parsed(page).loads) == 3
    assert "no frames:" not in parsed(page).text


def test_single_stream_report_lies_in_its_run(two):
    written = write_report([two[0]])
    assert written[0] == two[0] / "report.html"
    facts = json.loads(written[1].read_text())
    assert facts["main"] == "rgb"
    assert facts["agreement"] is None
    assert facts["history"]["rgb"][0] == {
        "epoch": 1,
        "train_loss": 0.7,
        "val_loss": 0.77,
        "lr": pytest.approx(0.008),
        "train_top1": pytest.approx(0.475),
        "val_top1": pytest.approx(0.42),
    }


def test_two_streams_of_one_modality_both_show(runs, tmp_path):
    folders = [runs.make("rgb", name=f"head-{place}", model_sha256=f"sha-{place}") for place in ("a", "b")]
    path = folders[1] / "scores" / "test_multi_ten_logits.npz"
    table = read_scores(path)
    table.logits = np.roll(table.logits, 1, axis=1)  # another network: it is wrong where the first is right
    write_scores(path, table)
    page, values, _ = write_report(folders, tmp_path / "r.html")
    facts = json.loads(values.read_text())
    names = ["rgb · head-a", "rgb · head-b"]
    assert [row["name"] for row in facts["streams"]][:3] == [*names, "fused (l2)"]
    assert list(facts["history"]) == names
    assert [facts["settings"][name].splitlines()[0] for name in names] == ["name: head-a", "name: head-b"]
    assert list(facts["per_class"]) == [*names, "fused (l2)"]
    assert facts["per_class"][names[0]] != facts["per_class"][names[1]]
    for mistake in facts["mistakes"]:
        assert list(mistake["streams"]) == names
        assert mistake["streams"][names[0]]["class"] != mistake["streams"][names[1]]["class"]
    assert facts["curve"]["names"] == names
    assert (facts["agreement"]["first"], facts["agreement"]["second"]) == tuple(names)
    assert set(names) <= set(re.findall(r"rgb · head-[ab]", parsed(page).text))


def test_labels_are_told_apart_by_run_then_by_number(runs):
    tables_ = [read_scores(find_scores(runs.make("rgb", name=name))) for name in ("a", "b")]
    flow = read_scores(find_scores(runs.make("flow")))
    assert words.labels_of([*tables_, tables_[0], flow]) == ["rgb · a", "rgb · b", "rgb · a 2", "flow"]
    for table in tables_:
        del table.meta["name"]
    assert words.labels_of([*tables_, flow]) == ["rgb", "rgb 2", "flow"]
    assert [line.name for line in words.lines(tables_)] == ["rgb", "rgb 2"]


@pytest.mark.parametrize("suffix", [".json", ".md", ".JSON"])
def test_the_page_does_not_overwrite_its_own_numbers(two, tmp_path, suffix):
    with pytest.raises(
        SettingsError, match=rf"r\{suffix}: the page is HTML; expected a file name ending in \.html"
    ) as caught:
        write_report(two, tmp_path / f"r{suffix}")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.glob("r.*")) == []


def test_shown_commands_can_be_pasted(runs, tmp_path):
    folders = [runs.make("rgb", name="my rgb"), runs.make("flow", name="my flow")]
    out = tmp_path / "a page.html"
    facts = json.loads(write_report(folders, out)[1].read_text())
    train, evaluate, _, _, fused, report = [shlex.split(line) for line in facts["commands"]]
    assert train == [
        *("two-stream", "train", str(folders[0] / "experiment.yaml")),
        *("--name", "my_rgb_again"),
    ]
    assert evaluate[:3] == ["two-stream", "evaluate", str(folders[0])]
    assert fused[:4] == ["two-stream", "fuse", *map(str, folders)]
    assert report[-2:] == ["--out", str(out)]
    (folders[1] / "scores" / "val_multi_ten_logits.npz").unlink()
    hint = json.loads(write_report(folders, out)[1].read_text())["curve_hint"]
    command = hint[hint.index("two-stream") :]
    assert shlex.split(command) == ["two-stream", "evaluate", str(folders[1]), "--part", "val"]


def test_test_selected_scores_are_labelled_everywhere(runs, tmp_path):
    folder = runs.make("rgb", selection="paper")
    page, values, text = write_report([folder], tmp_path / "r.html")
    for content in (parsed(page).text, values.read_text(), text.read_text()):
        assert "test-selected" in content


def test_score_files_without_a_run_are_enough(two, tmp_path):
    copies = []
    for run in two:
        table = read_scores(find_scores(run))
        table.meta.pop("run")
        copies.append(tmp_path / f"{run.name}.npz")
        write_scores(copies[-1], table)
    page, values, _ = write_report(copies, tmp_path / "r.html")
    assert "no frames:" in parsed(page).text
    assert json.loads(values.read_text())["settings"] == {}
    fused = fuse([read_scores(path) for path in copies], "logits")
    write_scores(tmp_path / "fused.npz", fused)
    facts = json.loads(write_report([*copies, tmp_path / "fused.npz"], tmp_path / "r.html")[1].read_text())
    assert facts["main"] == "fused (logits)"
    with pytest.raises(ScoreError, match="no run or score file"):
        write_report([])


@pytest.mark.parametrize("classes", [2, 40, 101])
def test_figures_of_few_and_many_classes(classes):
    names = [f"class {i}" for i in range(classes)]
    counts = np.eye(classes, dtype=np.int64) * 3
    drawn = page.confusion(counts, names)
    assert drawn.startswith("<svg")
    assert ("class 1<" in drawn) == (classes < 101)
    assert (">3</text>" in drawn) == (classes == 2)
    rows = [metrics.ClassRow(name, 3, 3, 1.0, 1.0, 1.0, "", 0) for name in names]
    assert "class 0 (3)" in page.class_bars({"rgb": rows, "fused": rows})


def test_learning_curves_leave_out_what_is_not_there():
    assert page.learning_curves({}) is None
    drawn = page.learning_curves({"rgb": [{"epoch": 1.0, "val_loss": 1.0}]})
    assert ">loss<" in drawn
    assert "learning rate" not in drawn


def test_the_learning_rate_has_plain_numbers():
    """Also on its small ticks, which have labels if the values are within a factor of ten."""
    drawn = page.learning_curves({"rgb": [{"epoch": e, "lr": 0.01 * 0.8**e} for e in (1.0, 8.0)]})
    assert drawn is not None
    assert "mathdefault" not in drawn
    assert ">0.006<" in drawn


def test_flow_is_drawn_by_direction_and_length():
    flow = np.full((1, 1, 3, 2), 128, np.uint8)
    flow[0, 0, 1] = (255, 128)
    flow[0, 0, 2] = (0, 128)
    rest, right, left = thumbnails.flow_picture(flow)[0, 0].astype(int)
    assert rest.max() < 40
    assert right.max() == left.max() == 255
    assert np.abs(right - left).max() > 200


def test_fuse_command_on_runs_fits_on_the_holdout_and_writes(two, tmp_path, capsys):
    out = tmp_path / "fused.npz"
    assert fuse_command.main([*map(str, two), "--rule", "learned", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "fitted on 60 videos of the holdout part" in shown
    assert any(
        words in shown for words in ("fusion is higher", "fusion is lower", "between fusion and the better")
    )
    table = read_scores(out)
    assert table.meta["rule"] == "learned"
    assert table.meta["fitted_part"] == "val"
    assert len(table.meta["sources"]) == 2
    assert fuse_command.main([*map(str, two), "--weights", "2", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"] == [2.0, 1.0]
    (two[0] / "scores" / "val_multi_ten_logits.npz").unlink()
    with pytest.raises(ScoreError, match=r"no scores of the val part; write them with `.* --part val`"):
        fuse_command.main([*map(str, two), "--rule", "learned"])


def test_fuse_command_warns_when_streams_were_scored_unalike(two, capsys):
    first, second = (read_scores(find_scores(run)) for run in two)
    assert fuse_command.main([*map(str, two)]) == 0
    assert "different protocols" not in capsys.readouterr().err
    second.meta["protocol"] = "single clip × centre crop, mean of logits"
    write_scores(two[1] / "scores" / "test_single_center_logits.npz", second)
    assert fuse_command.main([*map(str, two)]) == 0
    complaint = capsys.readouterr().err
    assert "different protocols" in complaint
    assert str(first.meta["protocol"]) in complaint


def test_report_command_prints_what_it_wrote(two, tmp_path, capsys):
    out = tmp_path / "r.html"
    assert report_command.main([*map(str, two), "--out", str(out)]) == 0
    assert capsys.readouterr().out.split() == [
        "open",
        *(str(out.with_suffix(e)) for e in (".html", ".json", ".md")),
    ]


def test_verdict_says_how_sure_it_is(two):
    streams = join([read_scores(find_scores(run)) for run in two])
    worse = fuse(streams, weights=[1, 0])
    best = max(streams, key=lambda t: metrics.top_k_accuracy(t.logits, t.labels))
    sentence = words.fusion_verdict(worse, streams)
    gap = metrics.gain(worse, streams)
    assert gap.value == metrics.difference(worse, best).interval.value
    assert f"{signed_number(100 * gap.value)} points" in sentence
    assert ("no difference shown" in sentence) == (gap.low <= 0 <= gap.high)
    assert words.percent(Interval(0.8333, 0.75, 0.9)) == "83.3 [75.0, 90.0]"
    assert words.percent(Interval(0.8333, 0, 1, known=False)) == "83.3 [unknown]"
    assert words.percent(None) == "–"


def baseline_scores(runs, run, *, missing=0, **facts):
    """The baseline of the made-up data set: it knows the first half of the videos, and guesses the first class else."""
    table = read_scores(find_scores(run))
    half = np.arange(len(table.ids)) < len(table.ids) // 2
    logits = np.eye(len(table.class_names))[np.where(half, table.labels, 0)]
    order = np.arange(len(table.ids))[::-1][missing:]
    made = reorder(replace(table, logits=logits), order)
    made.meta = {"kind": "fused", "rule": "probabilities", "weights": [1.0, 1.0], "baseline": True, **facts}
    path = baseline_folder(runs.root, "toy", 1) / BASELINE_SCORES.format(part="test")
    write_scores(path, made)
    return path


def test_the_baseline_is_a_row_and_a_sentence_and_no_part_of_the_fusion(two, runs, tmp_path):
    without = json.loads(write_report(two, tmp_path / "r.html")[1].read_text())
    command = f"two-stream baseline toy --split 1 --settings-root {runs.root}/settings --runs {runs.root}"
    assert (
        without["baseline"]
        == f"This data set has no baseline yet. To compute the accuracy that a network should exceed, run: {command}"
    )
    baseline_scores(runs, two[0])
    page, values, text = write_report(two, tmp_path / "r.html")
    facts = json.loads(values.read_text())
    assert [row["name"] for row in facts["streams"]] == [
        *(row["name"] for row in without["streams"]),
        "baseline",
    ]
    table = read_scores(find_scores(two[0]))
    right = 30 + int((table.labels[30:] == 0).sum())
    assert facts["streams"][-1]["top"]["1"]["value"] == pytest.approx(right / 60)
    fused = without["streams"][2]["top"]["1"]["value"]
    kept = ("main", "verdict", "confusion", "per_class", "history", "mistakes", "curve", "settings")
    assert {key: facts[key] for key in kept} == {key: without[key] for key in kept}
    wrong = fuse(join([read_scores(find_scores(run)) for run in two])).logits.argmax(1) != table.labels
    gap = np.where(np.arange(60) < 30, 1.0, table.labels == 0) - ~wrong
    assert fused - right / 60 == pytest.approx(-gap.mean())
    by_source = -gap.reshape(20, 3).mean(1)  # of one size: a t test over 20 sources, or more careful
    half = student.ppf(0.975, 19) * by_source.std(ddof=1) / math.sqrt(20)
    shown = facts["baseline"].replace("−", "-")
    numbers = [float(n) for n in re.findall(r"[-+]\d+\.\d", shown)]
    assert numbers == pytest.approx(
        [100 * (by_source.mean() - half), 100 * (by_source.mean() + half)], abs=0.06
    )
    side = "above" if gap.mean() < 0 else "below"
    assert facts["baseline"].startswith(
        f"Comparison with the baseline: fused (l2) is {abs(100 * gap.mean()):.1f} points {side} it, "
    )
    for shown in (parsed(page).text, text.read_text().replace("\\", "")):
        assert minus(facts["baseline"]) in minus(shown)
    assert "| baseline | " in text.read_text()
    assert facts["commands"][0] == command


def test_one_stream_of_a_baseline_is_the_baseline_and_its_own_report_has_none(two, runs, tmp_path):
    folder = runs.make("rgb", name="baseline/toy-split1/rgb")
    facts = json.loads(write_report([two[1]], tmp_path / "r.html")[1].read_text())
    assert [row["name"] for row in facts["streams"]] == ["flow", "baseline"]
    assert facts["streams"][1]["meta"]["file"] == str(folder / "scores" / "test_multi_ten_logits.npz")
    assert json.loads(write_report([folder], tmp_path / "b.html")[1].read_text())["baseline"] == ""
    deep = runs.make("flow", name="studies/s/runs/cell")  # a study's cell: the same folder of runs
    facts = json.loads(write_report([deep], tmp_path / "r.html")[1].read_text())
    assert [row["name"] for row in facts["streams"]] == ["flow", "baseline"]


def test_a_baseline_among_the_files_is_no_stream_and_one_of_other_videos_is_not_shown(two, runs, tmp_path):
    path = baseline_scores(runs, two[0])
    given = json.loads(write_report([*two, path], tmp_path / "r.html")[1].read_text())
    found = json.loads(write_report(two, tmp_path / "r.html")[1].read_text())
    assert given["streams"] == found["streams"]
    alone = json.loads(write_report([path], tmp_path / "r.html")[1].read_text())
    assert ([row["name"] for row in alone["streams"]], alone["baseline"]) == (["baseline"], "")
    baseline_scores(runs, two[0], missing=1)
    facts = json.loads(write_report(two, tmp_path / "r.html")[1].read_text())
    assert facts["baseline"].startswith(f"The baseline is not shown: {path}: 1 of the 60 videos of ")
    assert "baseline" not in [row["name"] for row in facts["streams"]]


def test_other_parts_and_several_classes_per_video_have_no_baseline(runs, tmp_path):
    run = runs.make("rgb")
    val = run / "scores" / "val_multi_ten_logits.npz"
    assert json.loads(write_report([val], tmp_path / "r.html")[1].read_text())["baseline"] == ""
    table = read_scores(find_scores(run))
    table.targets = np.eye(4, dtype=bool)[table.labels]
    write_scores(run / "scores" / "test_multi_ten_logits.npz", table)
    assert json.loads(write_report([run], tmp_path / "r.html")[1].read_text())["baseline"] == ""
