"""`two-stream compare` and `two-stream leaderboard` as they are called."""

from __future__ import annotations

import csv
import io
import json
from itertools import combinations

import numpy as np
import pytest

from two_stream import cli
from two_stream.evaluation.scores.files import read_scores, write_scores
from two_stream.evaluation.scores.fusion import fuse
from two_stream.evaluation.scores.statistics import holm
from two_stream.studies.leaderboard import leaderboard, rows
from two_stream.studies.statistics.comparison import main_test, panel_of
from two_stream.studies.statistics.scored import read_scored


@pytest.fixture
def heads(studio) -> list[str]:
    """Two heads, three trainings each; BERT is better by far."""
    return [
        str(studio.run(f"{head}-seed{seed}", skill, head=head, seed=seed))
        for head, skill in (("average", 0.7), ("bert", 1.7))
        for seed in (1, 2, 3)
    ]


def compared(capsys, *args: str) -> dict:
    capsys.readouterr()
    assert cli.main(["compare", *args, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_compare_groups_seeds_and_tests_the_variants(heads, capsys) -> None:
    found = compared(capsys, *heads)
    assert [variant["name"] for variant in found["variants"]] == ["average", "bert"]
    assert [variant["seeds"] for variant in found["variants"]] == [[1, 2, 3]] * 2
    (comparison,) = found["comparisons"]
    assert (comparison["first"], comparison["second"], comparison["seeds"]) == ("bert", "average", 3)
    assert comparison["significant"]
    assert found["answer"].startswith("bert beats average by ")
    assert found["question"] == "Which is better: average or bert?"
    assert found["command"].startswith("two-stream compare ")
    assert len(found["runs"]) == 6


def test_compare_prints_tables_and_verdicts(heads, capsys) -> None:
    assert cli.main(["compare", *heads]) == 0
    shown = capsys.readouterr().out
    for text in ("top-1 in %", "bert −", "< 0.001", "bert beats average by", "3 training runs each"):
        assert text in shown


def test_compare_writes_the_report(heads, capsys, tmp_path, monkeypatch) -> None:
    from two_stream.studies.report import study_report

    def write_study_report(result, out):
        out.write_text(result.answer)
        return [out]

    monkeypatch.setattr(study_report, "write_study_report", write_study_report)
    out = tmp_path / "page.html"
    assert cli.main(["compare", *heads, "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert out.read_text().startswith("bert beats average by ")


def test_baseline_names_groups_and_pairs(studio, capsys) -> None:
    runs = [str(studio.run(head, head=head)) for head in ("average", "bert", "lstm")]

    def pairs(*args: str) -> list[tuple[str, str]]:
        found = compared(capsys, *runs, *args)
        return [(item["first"], item["second"]) for item in found["comparisons"]]

    assert pairs() == [("bert", "average"), ("lstm", "average")]
    assert pairs("--baseline", "lstm") == [("average", "lstm"), ("bert", "lstm")]
    assert pairs("--baseline", "2") == [("average", "bert"), ("lstm", "bert")]
    assert pairs("--all-pairs") == [("average", "bert"), ("average", "lstm"), ("bert", "lstm")]
    assert pairs("--names", "a,b,c") == [("b", "a"), ("c", "a")]
    other = str(studio.run("other", head="lstm", seed=2, split=1))
    found = compared(capsys, *runs[:1], "--group", f"both={runs[1]},{other}")
    assert [(variant["name"], variant["seeds"]) for variant in found["variants"]] == [
        ("both", [1, 2]),
        ("average", [1]),
    ]


def test_compare_fuses(studio, capsys) -> None:
    runs = [str(studio.run("rgb")), str(studio.run("flow", modality="flow"))]
    fusion = compared(capsys, *runs, "--fuse", "l2", "--fit")["fusion"]
    assert fusion["pairs"][0]["first"] == "rgb"
    assert sum(fusion["weights"].values()) == pytest.approx(1)
    assert cli.main(["compare", *runs, "--fuse", "l2", "--fit"]) == 0
    shown = capsys.readouterr().out
    assert "fusion (l2)" in shown
    assert "found on the holdout part (120 videos)" in shown


def test_compare_uses_the_part_asked_for(studio, capsys) -> None:
    runs = [str(studio.run("a")), str(studio.run("b", head="bert"))]
    assert compared(capsys, *runs, "--part", "val")["part"] == "val"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ([], "no run or score file given"),
        (
            ["A"],
            "only one variant (a), because runs that differ only in seed or split form one variant",
        ),
        (["A", "A"], "a: the same run or file is given twice"),
        (["A", "B", "--baseline", "berd"], "--baseline is 'berd': expected the name or number of a variant"),
        (["A", "B", "--baseline", "3"], "--baseline is '3': expected the name or number of a variant"),
        (["A", "B", "--baseline", "b", "--all-pairs"], "--all-pairs and --baseline cannot"),
        (["A", "B", "--names", "x"], "--names is 'x': expected 2 different names, one for each of a, b"),
        (["A", "B", "--group", "x"], "--group is 'x': expected NAME=RUN,RUN"),
        (
            ["--group", "a=A", "--group", "b=B"],
            "--group is given twice; pass all its values after one --group",
        ),
        (["A", "B", "--fit"], "--fit needs a fusion rule"),
        (["A", "B", "--level", "95"], "--level is 95.0: expected a number"),
        (["A", "C"], "different views: multi ("),
        (["A", "none"], "none: no such score file or run folder"),
    ],
)
def test_one_line_about_what_is_wrong(studio, capsys, args, line: str) -> None:
    paths = {
        "A": str(studio.run("a")),
        "B": str(studio.run("b", head="bert")),
        "C": str(studio.run("c", head="lstm", views="single")),
    }
    assert cli.main(["compare", *(paths.get(arg, arg) for arg in args)]) == 2
    shown = capsys.readouterr().err
    assert line in shown
    assert shown.count("\n") == 1


def test_anyway_compares_and_says_so(studio, capsys) -> None:
    runs = [str(studio.run("a")), str(studio.run("b", head="bert", views="single"))]
    found = compared(capsys, *runs, "--anyway")
    assert found["notes"][0].startswith("The variants are compared despite different views: multi (")


def test_different_training_lists_are_noted(studio, capsys) -> None:
    def about(**second) -> list[str]:
        first = {"training_list": "one", "training_videos": 80}
        runs = [str(studio.run("a", **first)), str(studio.run("b", head="bert", **second))]
        return [note for note in compared(capsys, *runs)["notes"] if "lists" in note]

    note = "The runs were trained on different lists: 80 and 56 videos (a; b)."
    assert about(training_list="two", training_videos=56) == [note]
    assert about(training_list="two", training_videos=56, modality="flow") == [note]
    assert about(training_list="one", training_videos=80, seed=2) == []
    assert about(training_list="two", training_videos=56, seed=2) == [note]
    assert about() == []  # an older run: unknown


def test_different_environments_are_noted(studio, capsys) -> None:
    runs = [studio.run("a"), studio.run("b", head="bert")]
    facts = {
        "torch": "2.14.1",
        "cpu": "AMD EPYC",
        "device": "cuda:0",
        "numpy": "2.4",
        "two-stream": "0.1.0-a",
    }
    others = {"device": "cuda:1", "numpy": "2.5"}, {"device": "cpu", "two-stream": "0.1.0-b"}
    line = "The runs were trained in different environments: device cuda / cpu; code 0.1.0-a / 0.1.0-b."
    for change, expected in zip(others, ([], [line])):
        for run, own in zip(runs, (facts, facts | change)):
            (run / "environment.json").write_text(json.dumps(own))
        notes = compared(capsys, *map(str, runs))["notes"]
        assert [note for note in notes if "environments" in note] == expected


def test_the_settings_that_differ_are_named(studio, capsys, tmp_path) -> None:
    runs = [str(studio.run("a")), str(studio.run("b", head="bert", seed=2))]
    line = "settings that differ: model.head.kind"
    assert cli.main(["compare", *runs]) == 0
    assert f"{line} (--out FILE.html shows the values)\n" in capsys.readouterr().out
    assert cli.main(["compare", *runs, "--out", str(tmp_path / "r.html")]) == 0
    assert f"{line}\n" in capsys.readouterr().out
    assert "\n| model.head.kind | average | bert |\n" in (tmp_path / "r.md").read_text()
    assert cli.main(["compare", runs[0], runs[0] + "/scores/test_multi_ten_logits.npz"]) == 0
    assert "settings that differ" not in capsys.readouterr().out


def test_a_score_file_outside_a_run_has_unknown_settings(studio, capsys, tmp_path) -> None:
    runs = [str(studio.run("a")), str(studio.run("b", head="bert"))]
    write_scores(tmp_path / "c.npz", studio.table(1.2, stream=5, name="c"))
    assert not [note for note in compared(capsys, *runs)["notes"] if "unknown for" in note]
    assert cli.main(["compare", *runs, str(tmp_path / "c.npz")]) == 0
    shown = capsys.readouterr().out
    assert (
        f"note: The settings of {tmp_path / 'c.npz'} are unknown: the file is not in a run folder.\n" in shown
    )
    assert "settings that differ: model.head.kind (" in shown  # those of the two runs


def test_videos_that_differ_are_refused_even_then(studio, capsys) -> None:
    run, other = studio.run("a"), studio.run("b", head="bert")
    write_scores(other / "scores" / "test_multi_ten_logits.npz", studio.table(videos=119, name="b"))
    assert cli.main(["compare", str(run), str(other), "--anyway"]) == 2
    assert "are missing: 'turn right/test_s1_119'" in capsys.readouterr().err


def test_the_leaderboard_tests_every_two_variants_of_three_trainings(studio, heads) -> None:
    for seed in (1, 2, 3):
        studio.run(f"lstm-seed{seed}", 1.75, head="lstm", seed=seed)
    lucky = studio.run("concat-seed1", 2.5, head="concat")
    for seed in (1, 2):
        studio.run(f"nonlocal-seed{seed}", 0.2, head="nonlocal", seed=seed)
    found = leaderboard(studio.root)
    (board,) = found.boards
    by_name = {standing.name: standing for standing in board.standings}
    names = list(by_name)
    assert names[0] == "concat-seed1"
    assert [standing.place for standing in board.standings] == [1, 2, 3, 4, 5]
    assert by_name["concat-seed1"].files == [str(lucky / "scores" / "test_multi_ten_logits.npz")]
    panels = {
        name: panel_of(name, {item.cell: item.table for item in map(read_scored, standing.files)})
        for name, standing in by_name.items()
    }
    tested = [name for name in names if len(panels[name].seeds) == 3]
    assert sorted(tested) == ["average", "bert", "lstm"]
    pairs = list(combinations(tested, 2))
    ps = [main_test(pair, (panels[pair[0]], panels[pair[1]])).p for pair in pairs]
    adjusted = dict(zip(pairs, holm(ps), strict=True))
    assert holm(ps) != pytest.approx(ps)
    best, close, far = tested
    assert far == "average"
    assert by_name[close].p_holm == pytest.approx(adjusted[best, close])
    assert by_name[far].p_holm == pytest.approx(adjusted[best, far])
    assert by_name[far].p_holm < 0.05 < by_name[close].p_holm
    marked = [name for name in names if by_name[name].level_with_best]
    assert marked == [close]
    without = [name for name in names if by_name[name].p_holm is None]
    assert without == ["concat-seed1", best, "nonlocal"]
    values = {name: np.mean(panel.by_training) for name, panel in panels.items()}
    assert by_name[names[0]].behind is None
    for name in names[1:]:
        assert by_name[name].behind == pytest.approx(values[names[0]] - values[name])
        assert by_name[name].behind >= 0
    assert {row[1]: (row[0], row[7]) for row in rows(board)} == {
        "concat-seed1": ("1", "1 run"),
        best: ("2", "3"),
        close: ("3 ≈2", "3"),
        "average": ("4", "3"),
        "nonlocal": ("5", "2 runs"),
    }
    assert by_name["bert"].seeds == [1, 2, 3]
    assert by_name["bert"].model == "mobilenetv2_3d + bert"
    assert found.damaged == []


def test_single_runs_are_ranked_and_not_tested(studio, capsys) -> None:
    studio.run("a", 3.0)
    studio.run("b", 0.1, head="bert")
    (board,) = leaderboard(studio.root).boards
    assert [(one.name, one.p_holm, one.level_with_best) for one in board.standings] == [
        ("a", None, False),
        ("b", None, False),
    ]
    assert cli.main(["leaderboard", str(studio.root)]) == 0
    assert "= not significantly" not in capsys.readouterr().out


def test_other_data_splits_and_protocols_have_boards_of_their_own(studio) -> None:
    studio.run("a")
    studio.run("b", head="bert")
    studio.run("other-set", dataset="other")
    studio.run("other-views", views="single")
    studio.run("split2", head="lstm", split=2)
    studio.run("half", head="lstm", precision="bf16")
    boards = [
        sorted(standing.name for standing in board.standings) for board in leaderboard(studio.root).boards
    ]
    assert sorted(boards) == [["a", "b"], ["half"], ["other-set"], ["other-views"], ["split2"]]


def test_a_fusion_stands_beside_its_streams(studio) -> None:
    runs = [studio.run("rgb"), studio.run("flow", modality="flow")]
    tables = [read_scores(run / "scores" / "test_multi_ten_logits.npz") for run in runs]
    write_scores(studio.root / "fused.npz", fuse(tables, "l2"))
    (board,) = leaderboard(studio.root).boards
    assert {standing.name for standing in board.standings} == {"rgb", "flow", "fused"}
    assert {standing.model for standing in board.standings if standing.name == "fused"} == {"fusion (l2)"}


def test_damaged_files_are_listed_and_do_not_stop_the_rest(studio, capsys, tmp_path) -> None:
    for seed in (1, 2, 3):
        studio.run(f"a-seed{seed}", seed=seed)
        few = studio.run(f"few-seed{seed}", head="bert", seed=seed)
        table = studio.table(videos=60, seed=seed, name=few.name, run=str(few))
        write_scores(few / "scores" / "test_multi_ten_logits.npz", table)
    (studio.root / "a-seed1" / "scores" / "test_broken.npz").write_bytes(b"PK\x03\x04 cut off")
    out = tmp_path / "board.csv"
    assert cli.main(["leaderboard", str(studio.root), "--out", str(out)]) == 1
    shown = capsys.readouterr()
    assert "test_broken.npz: not a score file" in shown.err
    assert "is not compared with" in shown.err
    rows = list(csv.reader(io.StringIO(out.read_text())))
    assert rows[0][:3] == ["board", "#", "variant"]
    assert {row[2] for row in rows[1:]} == {"a", "few"}


def test_the_leaderboard_in_other_forms(studio, heads, capsys, tmp_path) -> None:
    out = tmp_path / "board.md"
    assert cli.main(["leaderboard", str(studio.root), "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [standing["name"] for standing in found["boards"][0]["standings"]] == ["bert", "average"]
    text = out.read_text()
    assert text.startswith("## toy split 1, test part · multi-clip × ten-crop, mean of logits")
    assert "| 1 | bert | " in text


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["."], "no score file of the test part found"),
        ([".", "--out", "x.html"], "--out is x.html: expected a file name that ends in .csv or .md"),
        ([".", "--level", "2"], "--level is 2.0"),
    ],
)
def test_a_leaderboard_of_nothing(tmp_path, monkeypatch, capsys, args, line: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["leaderboard", *args]) == 2
    shown = capsys.readouterr().err
    assert line in shown
    assert shown.count("\n") == 1
