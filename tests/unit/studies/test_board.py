"""The board of runs: what it lists, what it says of damaged files, and what it never contains."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.helpers.browser import Checker
from tests.helpers.runs import Runs
from tests.helpers.studies import HOSTILE, Studio, made_result
from two_stream import cli
from two_stream.errors import ScoreError
from two_stream.evaluation.scores.files import read_scores, write_scores
from two_stream.evaluation.scores.fusion import fuse
from two_stream.evaluation.scores.tables import join
from two_stream.runtime.files import write_json
from two_stream.studies.leaderboard import best_sentence, leaderboard, walk
from two_stream.studies.report.board import read_board, write_board
from two_stream.studies.statistics.scored import comparable_facts, read_scored

SCORES = "scores/test_multi_ten_logits.npz"


def entries_of(root: Path) -> dict:
    return {entry.name: entry for entry in read_board(root)[0]}


def page_of(root: Path, out: Path | None = None) -> tuple[str, dict, Checker]:
    """The text of the page, the data in it, and its parsed tags."""
    out = out or root / "board.html"
    write_board(root, out)
    text = out.read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    checker = Checker()
    checker.feed(text)
    return text, data, checker


def fail_cell(folder: Path, name: str, state: str, reason: str = "") -> None:
    cell = folder / "cells" / f"{name}.json"
    cell.parent.mkdir(parents=True, exist_ok=True)
    cell.write_text(json.dumps({"state": state, "reason": reason}))


def test_rows_hold_the_same_numbers_as_the_leaderboard(studio) -> None:
    studio.run("rgb", 1.2)
    studio.run("flow", 0.6, modality="flow", head="bert")
    tables = [read_scores(studio.root / name / SCORES) for name in ("rgb", "flow")]
    write_scores(studio.root / "fused.npz", fuse(tables, "l2"))
    found = entries_of(studio.root)
    (board,) = leaderboard(studio.root).boards
    ranked = {standing.name: standing for standing in board.standings}
    assert found["rgb"].accuracy == ranked["rgb"].accuracy
    assert found["fused (l2)"].accuracy == ranked["fused"].accuracy
    flow = found["flow"]
    assert (flow.kind, flow.state, flow.data) == ("run", "finished", "toy split 1, test")
    assert (flow.model, flow.modality, flow.epochs) == ("mobilenetv2_3d + bert", "flow", "1 of 30")
    assert found["fused (l2)"].kind == "fusion"
    text, _, _ = page_of(studio.root)
    assert "2 runs of 1 data set; 1 other entry (studies, fusions). Best on toy split 1, test part: " in text
    interval = ranked["rgb"].accuracy
    assert f"<b>{100 * interval.value:.1f}</b>" in text
    assert f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]" in text


def test_sentence_on_the_best_uses_the_tests_of_the_leaderboard(studio) -> None:
    for head, skill in (("average", 0.3), ("bert", 1.7), ("lstm", 1.7)):
        for seed in (1, 2, 3):
            studio.run(f"{head}-seed{seed}", skill, head=head, seed=seed)
    (board,) = leaderboard(studio.root).boards
    _, alike, _ = (standing.name for standing in board.standings)
    assert best_sentence(board, "toy").endswith(f"]; not shown to differ from it: {alike}.")
    lucky = studio.run("lucky", 4.0, head="concat")
    (board,) = leaderboard(studio.root).boards
    assert best_sentence(board, "toy").startswith("Best on toy: lucky 100.0\u00a0% [")
    assert "not tested, because a ranking tests only variants with 3 or more training runs" in best_sentence(
        board, "toy"
    )
    for name in [path for path in studio.root.iterdir() if path != lucky]:
        (name / SCORES).unlink()
    (board,) = leaderboard(studio.root).boards
    assert best_sentence(board, "toy").endswith("; the only one.")


def test_states_of_runs(studio) -> None:
    done, short, failed = (studio.run(name) for name in ("done", "short", "failed"))
    for run in (done, short):
        for file in (run / "scores").iterdir():
            file.unlink()
    rows = [{"epoch": epoch, "val_top1": 1 - 0.9**epoch} for epoch in range(1, 31)]
    (done / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (short / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:7]))
    study = studio.root / "studies" / "heads"
    (study / "runs").mkdir(parents=True)
    failed.rename(study / "runs" / "failed")
    fail_cell(study, "failed", "failed", "out of memory")
    fail_cell(study, "absent", "done")
    found = entries_of(studio.root)
    assert (found["done"].state, found["done"].detail, found["done"].epochs) == (
        "finished",
        "no scores",
        "30",
    )
    assert (found["short"].state, found["short"].epochs) == ("unfinished", "7 of 30")
    assert (found["failed"].kind, found["failed"].state, found["failed"].detail) == (
        "study run",
        "failed",
        "out of memory",
    )
    assert (found["heads"].kind, found["heads"].state) == ("study", "unfinished")
    label, points = found["done"].curve
    assert label == "validation top-1 from 10.0 % to 95.8 %"
    assert points.split()[0] == "0,26.2"
    assert points.split()[-1] == "100,2.2"


def test_long_curves_keep_their_last_epoch_and_few_points(studio) -> None:
    run = studio.run("long")
    rows = ({"epoch": epoch, "val_loss": float(1000 - epoch)} for epoch in range(1000))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    label, points = entries_of(studio.root)["long"].curve
    assert label == "validation loss from 1e+03 to 1"
    assert len(points.split()) == 40
    assert points.split()[-1] == "100,29.0"


def test_a_study_and_a_compression_link_to_their_pages(studio) -> None:
    study = studio.root / "studies" / "made heads"
    fail_cell(study, "one", "done")
    result = made_result()
    write_json(study / "report.json", asdict(result))
    (study / "report.html").write_text("")
    run = studio.run("small")
    report = {"comparison": {"verdict": "small & fast"}, "columns": [], "rows": []}
    (run / "compression.json").write_text(json.dumps(report))
    (run / "compression.html").write_text("")
    found = entries_of(studio.root)
    best = max(result.variants, key=lambda variant: variant.accuracy.value)
    assert found["made heads"].accuracy == best.accuracy
    assert (found["made heads"].found, found["made heads"].state) == (result.answer, "failed")
    assert found["made heads"].detail == f"17 of 18 runs; best: {best.name}"
    assert (found["small"].kind, found["small"].found) == ("compression", "small & fast")
    text, _, checker = page_of(studio.root)
    assert {"studies/made%20heads/report.html", "small/compression.html"} <= set(checker.loads)
    assert "small &amp; fast" in text
    _, _, elsewhere = page_of(studio.root, studio.root.parent / "pages" / "all.html")
    assert "../runs/small/compression.html" in elsewhere.loads


def test_untrusted_names_are_escaped(studio) -> None:
    for place, name in enumerate((*HOSTILE, "javascript:alert(1)", "</script><script>alert(1)</script>")):
        run = studio.run(f"run{place}", dataset=name, views=name, seed=place)
        target = studio.root / name.replace("/", "∕")
        run.rename(target)
        (target / "report.html").write_text("")
    odd = studio.run("odd")
    odd.rename(os.fsdecode(os.fsencode(studio.root) + b"/caf\xe9 \xe2\x80\xae#1?"))
    text, data, checker = page_of(studio.root)
    assert checker.open == []
    assert text.count("<script") == 3
    assert "alert(1)</script>" not in text
    assert "<b>A|B</b>" not in text
    assert "\u202e" not in text
    assert all(re.match(r"#|data:,|[\w.~%-]+/report\.html$", link) for link in checker.loads), checker.loads
    assert "javascript%3Aalert%281%29/report.html" in checker.loads
    assert len(data["entries"]) == len(HOSTILE) + 3
    assert not any("\u202e" in one["name"] for one in data["entries"].values())


def test_damaged_files_do_not_stop_the_page(studio, capsys) -> None:
    good = studio.run("good")
    (studio.run("cut") / "experiment.yaml").write_text("name: [")
    (studio.run("scores") / SCORES).write_bytes(b"PK\x03\x04 cut off")
    (studio.run("metrics") / "metrics.jsonl").write_text('{"epoch": 1, "val_top1": 0.5}\n{"epo')
    weird = studio.table(name="weird", skipped=5, sources=[1, 2])
    del weird.meta["precision"]
    weird.meta["sources"] = [1, 2]
    write_scores(studio.run("weird") / SCORES, weird)
    (studio.root / "broken" / "cells").mkdir(parents=True)
    (studio.root / "broken" / "report.json").write_text('{"name": 3}')
    (studio.root / "loop").symlink_to(studio.root)
    (good / "up").symlink_to("..")
    assert cli.main(["board", str(studio.root)]) == 1
    warnings = capsys.readouterr().err
    text = (studio.root / "board.html").read_text()
    for line in (
        "cut/experiment.yaml: line 1 not valid YAML",
        "scores/test_multi_ten_logits.npz: not a score file",
        "metrics/metrics.jsonl: line 2 is damaged",
        "weird/scores/test_multi_ten_logits.npz: cannot be shown (",
        "broken/report.json: expected the .json file of a study",
    ):
        assert line in warnings
        assert line in text
    assert "5 problems, listed at the end of the page." in text
    found = entries_of(studio.root)
    assert set(found) == {"good", "cut", "scores", "metrics", "weird"}
    assert (found["cut"].state, found["good"].state) == ("damaged", "finished")
    assert found["scores"].data == "toy split 1, val"  # the next best scores
    assert "Best on toy split 1, test part: " in text  # the rankings of the others are not lost


def test_only_settings_that_differ_are_embedded(studio) -> None:
    studio.run("a", seed=1)
    studio.run("b", head="bert", seed=2)
    _, data, _ = page_of(studio.root)
    assert "model.head.kind" in data["keys"]
    assert not {"name", "runs", "seed", "data.split", "model.backbone.kind"} & set(data["keys"])
    place = data["keys"].index("model.head.kind")
    assert {one["name"]: one["values"][place] for one in data["entries"].values()} == {
        "a": "average",
        "b": "bert",
    }
    assert all(place in one["chosen"] for one in data["entries"].values() if one["name"] == "b")


@pytest.mark.parametrize("change", ["videos", "classes", "labels", "split", "part", "selection"])
def test_facts_differ_where_a_comparison_is_refused(studio, change: str, tmp_path: Path) -> None:
    table, other = studio.table(), studio.table(videos=116 if change == "videos" else 120)
    if change == "classes":
        other.class_names = [*other.class_names[:-1], "other"]
    elif change == "labels":
        other.labels = other.labels[::-1].copy()
    elif change not in ("videos",):
        other.meta[change] = {"split": 2, "part": "val", "selection": "paper"}[change]
    for name, one in (("a", table), ("b", other)):
        write_scores(tmp_path / f"{name}.npz", one)
    first, second = (comparable_facts(read_scored(tmp_path / f"{name}.npz")) for name in "ab")
    label = {"classes": "class lists", "labels": "videos", "split": "splits", "part": "parts"}.get(
        change, change
    )
    label = "selection of the checkpoint" if change == "selection" else label
    assert [key for key in first if first[key] != second[key]] == [label]
    if change in ("videos", "classes", "labels"):
        with pytest.raises(ScoreError):
            join([table, other])


def test_no_pixel_of_a_video_without_the_flag(tmp_path) -> None:
    runs = Runs(tmp_path / "runs")
    scores = read_scores(runs.make("rgb") / SCORES)
    runs.frames(scores.ids[:1], scores.class_names)
    text, _, checker = page_of(runs.root)
    assert "img" not in checker.tags
    assert "data:image" not in text
    assert cli.main(["board", str(runs.root), "--with-pictures", "--out", str(tmp_path / "p.html")]) == 0
    assert '<img class="strip" src="data:image/jpeg;base64,' in (tmp_path / "p.html").read_text()


def test_empty_and_missing_folders_are_errors(tmp_path, capsys) -> None:
    assert cli.main(["board", str(tmp_path)]) == 2
    assert "no run, study or score file found" in capsys.readouterr().err
    assert cli.main(["board", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err


def test_hidden_folders_and_links_are_not_entered(tmp_path) -> None:
    deep = tmp_path / "/".join("d" * 50)
    for folder in (deep, tmp_path / ".hidden"):
        folder.mkdir(parents=True)
        (folder / "x.npz").touch()
    (deep / "loop").symlink_to(tmp_path)
    assert [folder / name for folder, names in walk(tmp_path) for name in names if name == "x.npz"] == [
        deep / "x.npz"
    ]


def test_torch_is_not_imported(tmp_path) -> None:
    Studio(tmp_path / "runs").run("a")
    code = "import sys\nfrom two_stream import cli\ncli.main(sys.argv[1:])\nprint({'torch', 'cv2'} & set(sys.modules))"
    command = [sys.executable, "-c", code, "board", str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"open {tmp_path / 'runs' / 'board.html'}\nset()\n"
