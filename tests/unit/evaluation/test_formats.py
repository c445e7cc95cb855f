"""Score files of other programs: every form gives the numbers of our own file of the same scores."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score, precision_recall_fscore_support

from two_stream.cli import main
from two_stream.errors import ScoreError
from two_stream.evaluation.scores import metrics
from two_stream.evaluation.scores.files import read_scores, write_scores, write_table
from two_stream.evaluation.scores.formats import Described, is_score_file
from two_stream.evaluation.scores.tables import join, match_ids
from two_stream.types import ScoreTable

CLASSES = ["jump", "=run", "clap", "walk", "sit"]
VIDEOS = 60


def made(seed: int, part: str = "test") -> ScoreTable:
    rng = np.random.default_rng(seed)
    labels = np.random.default_rng(len(part)).integers(0, len(CLASSES), VIDEOS)
    logits = rng.normal(size=(VIDEOS, len(CLASSES))) + 1.5 * np.eye(len(CLASSES))[labels]
    ids = [f"{CLASSES[label].strip('=')}/{part}_{number:03d}" for number, label in enumerate(labels)]
    groups = [f"source{number // 3}" for number in range(VIDEOS)]
    return ScoreTable(ids, labels, CLASSES, logits, {"part": part}, groups=groups)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files with labels, class names and sources of the videos."""
    monkeypatch.chdir(tmp_path)
    for part in ("test", "val"):
        table = made(0, part)
        Path(f"{part}.txt").write_text(
            "".join(f"{name}.avi 30 {label}\n" for name, label in zip(table.ids, table.labels))
        )
        Path(f"{part}.csv").write_text(
            "id;label\n"
            + "".join(f"{name}.mp4;{CLASSES[label]}\n" for name, label in zip(table.ids, table.labels))
        )
        Path(f"{part}_groups.txt").write_text(
            "".join(f"{a} {b}\n" for a, b in zip(table.ids, table.groups or []))
        )
    Path("classes.txt").write_text("\n".join(CLASSES))
    Path("classInd.txt").write_text("".join(f"{place} {name}\n" for place, name in enumerate(CLASSES, 1)))
    Path("both.txt").write_text(Path("test.txt").read_text() + Path("val.txt").read_text())
    Path("groups.txt").write_text(Path("test_groups.txt").read_text() + Path("val_groups.txt").read_text())
    return tmp_path


def write_form(form: str, path: str, table: ScoreTable) -> Path:
    """Write a table as another program would; the classes of some forms are in another order."""
    rows, short = table.logits.tolist(), [name.rpartition("/")[2] for name in table.ids]
    named = [CLASSES[label] for label in table.labels]
    lines: list[str] = []
    if form == "csv":
        lines = [",".join(["id", "label", "group", *CLASSES])]
        groups = table.groups or []
        lines += [",".join([*head, *map(repr, row)]) for *head, row in zip(table.ids, named, groups, rows)]
    elif form == "tsv, numbers, shuffled rows":
        lines = [
            "\t".join([f"{name}.avi", str(label), *map(repr, row)])
            for name, label, row in zip(table.ids, table.labels, rows)
        ]
        np.random.default_rng(1).shuffle(lines)
        lines = ["\t".join(["video", "label", *CLASSES]), *lines]
    elif form == "csv, other order, no labels":
        order = [3, 1, 4, 0, 2]
        lines = [";".join(["path", *(CLASSES[k] for k in order)])]
        lines += [";".join([name, *(repr(row[k]) for k in order)]) for name, row in zip(short, rows)]
    elif form == "csv, numbered classes":
        lines = [",".join(["id", "3", "1", "4", "0", "2"])]
        lines += [
            ",".join([name, *(repr(row[k]) for k in (3, 1, 4, 0, 2))]) for name, row in zip(table.ids, rows)
        ]
    elif form == "long":
        lines = ["id,class,score"]
        lines += [
            f"{name},{one},{value!r}" for name, row in zip(short, rows) for one, value in zip(CLASSES, row)
        ]
    elif form == "jsonl":
        lines = [
            json.dumps({"id": name, "label": label, "logits": dict(zip(CLASSES, row))})
            for name, label, row in zip(table.ids, named, rows)
        ]
    elif form == "json":
        records = [
            {"id": name, "label": int(k), "scores": row}
            for name, k, row in zip(table.ids, table.labels, rows)
        ]
        lines = [json.dumps(records)]
    elif form == "clips":  # of 2 to 4 clips, whose mean logits are those of the table
        rng = np.random.default_rng(2)
        lines = [",".join(["id", *CLASSES])]
        for place, (name, row) in enumerate(zip(table.ids, table.logits)):
            noise = rng.normal(size=(2 + place % 3, len(CLASSES)))
            clips = row + noise - noise.mean(axis=0)
            lines += [",".join([name, *map(repr, clip)]) for clip in clips.tolist()]
    if lines:
        file = Path(f"{path}.{form.split(',')[0].split()[0].replace('long', 'csv').replace('clips', 'csv')}")
        file.write_text("\n".join(lines) + "\n")
    elif form == "npy":
        file = Path(f"{path}.npy")
        np.save(file, np.stack([table.logits - 1, table.logits + 1], axis=1))
        file.with_suffix(".txt").write_text("\n".join(table.ids))
    else:
        file = Path(f"{path}.npz")
        np.savez(file, logits=table.logits, ids=table.ids, labels=table.labels, class_names=CLASSES)
    return file


ALL = {"labels": "both.txt", "classes": Path("classes.txt"), "groups": Path("groups.txt")}
FORMS: dict[str, dict] = {
    "csv": {},
    "tsv, numbers, shuffled rows": {"groups": Path("groups.txt")},
    "csv, other order, no labels": ALL,
    "csv, numbered classes": ALL | {"classes": Path("classInd.txt")},
    "long": {"groups": Path("groups.txt"), "labels": "test.csv"},
    "jsonl": {"groups": Path("groups.txt")},
    "json": {"groups": Path("groups.txt"), "classes": Path("classes.txt")},
    "clips": ALL,
    "npy": ALL,
    "npz": {"groups": Path("groups.txt")},
}


def flags_of(described: dict) -> list[str]:
    return [part for name, value in described.items() for part in (f"--{name}", str(value))]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_table(form: str, folder: Path) -> None:
    table = made(1)
    file = write_form(form, "rgb", table)
    assert is_score_file(file)
    found = join([table, read_scores(file, Described(**FORMS[form]))])[1]
    np.testing.assert_allclose(found.logits, table.logits, atol=1e-12)
    assert found.labels.tolist() == table.labels.tolist()
    assert found.groups == table.groups
    assert (found.meta["scale"], found.meta["modality"]) == ("logits", "rgb")
    assert ("2 to 4 rows per video" in found.meta["protocol"]) == (form == "clips")


@pytest.mark.parametrize(
    "form",
    [
        form if form in ("csv", "clips", "npz") else pytest.param(form, marks=pytest.mark.slow)
        for form in FORMS
    ],
)
def test_commands_give_the_numbers_of_our_own_files(
    form: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = {name: made(seed) for seed, name in enumerate(("rgb", "flow"), 1)}
    described = flags_of(FORMS[form])
    found: dict[str, list] = {}
    for kind in ("own", "other"):
        for name, table in tables.items():
            if kind == "own":
                write_scores(Path(f"own/{name}.npz"), table)
            else:
                Path("other").mkdir(exist_ok=True)
                write_form(form, f"other/{name}", table)
        more = described if kind == "other" else []
        sources = [str(path) for path in sorted(Path(kind).iterdir()) if path.suffix != ".txt"]
        for rule in ("l2", "probabilities"):
            assert main(["fuse", *sources, *more, "--rule", rule, "--json"]) == 0
            fused = json.loads(capsys.readouterr().out)
            found.setdefault(kind, []).append([[one.pop("name"), one][1] for one in fused["streams"]])
        assert main(["compare", *sources, *more, "--json"]) == 0
        compared = json.loads(capsys.readouterr().out)
        found[kind].append(
            [[one["accuracy"] for one in compared["variants"]], compared["comparisons"][0]["difference"]]
        )
        assert main(["leaderboard", kind, *more, "--json"]) == 0
        boards = json.loads(capsys.readouterr().out)["boards"]
        found[kind].append([[one["accuracy"] for one in board["standings"]] for board in boards])
        assert main(["report", *sources, *more, "--out", f"{kind}.html"]) == 0
        capsys.readouterr()
        report = json.loads(Path(f"{kind}.json").read_text())
        found[kind].append(
            [report["per_class"]["fused (l2)"], report["confusion"], report["verdict"].split(":")[-1]]
        )
    assert rounded(found["own"]) == rounded(found["other"])


def rounded(value):
    if isinstance(value, float):
        return round(value, 9)
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("kind", "transform"), [("probabilities", softmax), ("log-probabilities", log_softmax)]
)
def test_what_the_numbers_are_is_recognized(kind, transform, folder: Path) -> None:
    table = made(1)
    for clips in (1, 3):
        scores = transform(
            np.stack([table.logits + n for n in np.random.default_rng(0).normal(size=(clips, 1, 5))], 1),
            axis=2,
        )
        np.savez("a.npz", scores=scores, ids=table.ids, labels=table.labels, class_names=CLASSES)
        found = read_scores("a.npz")
        mean = (scores if kind == "probabilities" else np.exp(scores)).mean(axis=1)
        np.testing.assert_allclose(found.logits, np.log(mean), atol=1e-12)
        assert found.meta["protocol"].startswith(kind)
        assert found.meta["scale"] == "log-probabilities"
    logits = read_scores("a.npz", Described(kind="logits"))
    np.testing.assert_allclose(logits.logits, scores.mean(axis=1))


def test_a_certain_video_keeps_finite_logits(folder: Path) -> None:
    Path("a.csv").write_text("id,label,a,b\nx,a,1,0\ny,b,0.5,0.5\n")
    table = read_scores("a.csv")
    assert np.isfinite(table.logits).all()
    np.testing.assert_allclose(softmax(table.logits, axis=1), [[1, 0], [0.5, 0.5]], atol=1e-300)


def test_several_labels_survive(folder: Path) -> None:
    table = made(1)
    targets = np.eye(5, dtype=bool)[table.labels] | (np.random.default_rng(0).random((VIDEOS, 5)) < 0.3)
    table.targets, table.labels = targets, targets.argmax(axis=1)
    for suffix in ("csv", "json", "npz"):
        write_table(Path(f"a.{suffix}"), table)
        found = read_scores(f"a.{suffix}")
        np.testing.assert_array_equal(found.targets, targets)
        np.testing.assert_array_equal(found.logits, table.logits)


def test_a_result_file_with_the_best_classes(folder: Path) -> None:
    table = made(1)
    shares = softmax(table.logits, axis=1)
    for count in (5, 2):
        results = {
            name.rpartition("/")[2]: [
                {"label": CLASSES[k], "score": row[k]} for k in np.argsort(-row)[:count]
            ]
            for name, row in zip(table.ids, shares)
        }
        Path("val.json").write_text(json.dumps({"results": results}))
        found = join([table, read_scores("val.json", Described("test.txt", Path("classes.txt")))])[1]
        best = np.sort(shares, axis=1)[:, ::-1][:, :count]
        np.testing.assert_allclose(
            np.sort(np.exp(found.logits), axis=1)[:, ::-1][:, :count], best, atol=1e-12
        )
        np.testing.assert_allclose(np.exp(found.logits).sum(axis=1), 1)
        assert ("best 2 classes" in found.meta["protocol"]) == (count == 2)


def test_labels_of_a_data_set_and_of_an_annotation_file(folder: Path) -> None:
    table = made(1)
    names = [name.rpartition("/")[2] for name in table.ids]
    database = {
        name: {"subset": "validation", "annotations": {"label": CLASSES[k]}}
        for name, k in zip(names, table.labels)
    }
    Path("truth.json").write_text(json.dumps({"labels": CLASSES, "database": database}))
    Path("settings/moves").mkdir(parents=True)
    Path("settings/moves/dataset.yaml").write_text(
        f"name: moves\nclasses: {json.dumps(CLASSES)}\ngroup: '_(\\d)'\nframes: {{rgb: frames}}\n"
    )
    lines = Path("test.txt").read_text().replace(".avi", "")
    for part in ("train", "val"):
        Path(f"settings/moves/{part}_rgb_split1.txt").write_text(
            lines if part == "val" else Path("val.txt").read_text()
        )
    file = write_form("csv, other order, no labels", "rgb", table)
    for labels in ("truth.json", "moves"):
        found = read_scores(file, Described(labels))
        named = {name: found.class_names[label] for name, label in zip(found.ids, found.labels)}
        assert [named[one] for one in names] == [CLASSES[label] for label in table.labels]
    assert found.class_names == CLASSES
    assert found.meta["dataset"] == "moves"
    assert found.groups is not None
    assert len(set(found.groups)) == 1


WRONG = {
    "labels": ("id,a,b\nx,1,2\n", {}, "a.csv: the labels are missing; add a column `label`, or --labels"),
    "number": ("id,label,a,b\nx,a,1,two\n", {}, "a.csv:2: the score of class 'b' is 'two'; expected a number"),
    "columns": ("id,label,a,b\nx,a,1\n", {}, "a.csv:2: 3 columns; expected 4, as in the header"),
    "nan": ("id,label,a,b\nx,a,1,nan\n", {}, "a.csv: a score of 'x' is not finite"),
    "header": ("x,a,1,2\n", {}, "a.csv: the first line is not a header; expected a first column id,"),
    "empty": ("id,label,a,b\n", {}, "a.csv: the file contains no videos"),
    "label": ("id,label,a,b\nx,c,1,2\n", {}, "the label of 'x' is 'c', which is not a class; expected"),
    "range": ("id,label,a,b\nx,2,1,2\n", {}, "the label of 'x' is 2; expected 0 to 1"),
    "two labels": ("id,label,a,b\nx,a,1,2\nx,b,1,2\n", {}, "'x' has the labels 'a' and 'b'; expected one"),
    "twice": ("id,label,a,a\nx,a,1,2\n", {}, "found two classes named 'a'; expected two or more"),
    "one": ("id,label,a\nx,a,1\n", {}, "found 1 scores, 1 class name; expected two or more"),
    "kind": ("id,label,a,b\nx,a,0.5,0.6\n", {"kind": "probabilities"}, "'x' are not probabilities, as --kind"),
    "unknown class": ("id,label,a,b\nx,a,1,2\n", {"classes": Path("classes.txt")}, "'a', 'b' is not among the 5"),
    "not listed": ("id,jump,=run,clap,walk,sit\nx,1,2,3,4,5\n", {"labels": "test.csv"}, "contains no label for 1 of 1"),
    "order": (
        "id,label,walk,=run,jump,clap,sit\nx,1,1,2,3,4,5\n",
        {"classes": Path("classes.txt")},
        "the labels are numbers, and the classes may be in another order",
    ),
    "order of a list": (
        "id,jump,=run,clap,walk,sit\ntest_000,1,2,3,4,5\n",
        {"labels": "test.txt"},
        "the labels are numbers, and the classes may be in another order",
    ),
    "long": ("id,class,score\nx,a,1\nx,b,2\ny,a,1\n", {}, "a.csv: 'y': no score for 'b'; expected a score"),
    "doubled": ("id,class,score\nx,a,1\nx,a,2\n", {}, "a.csv:3: a second score of 'x' for class 'a'; expected one"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, described, said = WRONG[case]
    Path("a.csv").write_text(text)
    shutil.copy("a.csv", "b.csv")
    with pytest.raises(ScoreError) as error:
        read_scores("a.csv", Described(**described))
    assert said in str(error.value)
    assert main(["fuse", "a.csv", "b.csv", *flags_of(described)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_pickles_and_objects_are_not_read(folder: Path) -> None:
    Path("a.pkl").write_bytes(b"x")
    with pytest.raises(ScoreError, match="pickles can run code when they are read"):
        read_scores("a.pkl")
    np.savez("a.npz", scores=np.array([{}, {}]), ids=["a", "b"])
    with pytest.raises(ScoreError, match=r"damaged|type other than numbers"):
        read_scores("a.npz")
    np.save("b.npy", np.zeros((2, 2)))
    with pytest.raises(ScoreError, match=r"the ids of the videos are missing; write one per line to b\.txt"):
        read_scores("b.npy")


def test_ids_are_matched_without_suffix_and_folder() -> None:
    assert match_ids(["a/x.avi", "b/y"], ["x", "y.mp4", "z"]) == {"a/x.avi": "x", "b/y": "y.mp4"}
    assert match_ids(["a/x", "b/x"], ["x"]) == {}  # which of the two it is cannot be known
    assert match_ids(["x"], ["a/x", "b/x"]) == {}
    assert match_ids(["x", "v1.5"], ["x.avi", "v1.5.mp4"]) == {"x": "x.avi", "v1.5": "v1.5.mp4"}


def test_missing_videos_are_counted_and_common_ones_can_be_used(folder: Path, capsys) -> None:
    rgb, flow = made(1), made(2)
    write_table(Path("rgb.csv"), rgb)
    lines = write_form("csv", "flow", flow).read_text().splitlines()
    Path("flow.csv").write_text("\n".join(lines[:51]))
    assert main(["fuse", "rgb.csv", "flow.csv"]) == 2
    said = capsys.readouterr().err
    assert "flow.csv: 10 of the 60 videos of rgb.csv are missing:" in said
    assert "(and 7 more); --common uses only" in said
    for command in ("fuse", "compare", "report"):
        out = ["--out", "r.html"] if command == "report" else []
        assert main([command, "rgb.csv", "flow.csv", "--common", *out]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        page = Path("r.html").read_text() if command == "report" else shown
        assert "only the 50 videos of 60 that all files contain" in page


def test_weights_are_learned_on_holdout_files(folder: Path, capsys) -> None:
    names = []
    for seed, name in enumerate(("flow", "rgb"), 1):
        for part in ("test", "val"):
            names.append(write_form("csv", f"{name}_{part}", made(seed if name == "rgb" else 50, part)))
    flow, flow_val, rgb, rgb_val = map(str, names)
    command = ["fuse", rgb, flow, "--rule", "learned", "--json"]
    assert main([*command, "--holdout", rgb_val, flow_val]) == 0
    weights = json.loads(capsys.readouterr().out)["weights"]
    assert main([*command, "--fit", rgb_val, flow_val]) == 0
    assert json.loads(capsys.readouterr().out)["weights"] == weights
    assert (
        main(["report", rgb, flow, "--rule", "learned", "--holdout", rgb_val, flow_val, "--out", "r.html"])
        == 0
    )
    assert json.loads(Path("r.json").read_text())["curve"]["videos"] == VIDEOS
    capsys.readouterr()
    assert main([*command, "--holdout", rgb_val]) == 2


@pytest.mark.parametrize("suffix", ["csv", "json", "npz"])
def test_scores_converts(suffix: str, folder: Path, capsys) -> None:
    table = made(1)
    write_scores(Path("runs/own.npz"), table)
    assert main(["scores", "runs/own.npz", "--to", suffix]) == 0
    assert f"own.{suffix} (60 videos, 5 classes)" in capsys.readouterr().out
    found = read_scores(f"own.{suffix}")
    np.testing.assert_array_equal(found.logits, table.logits)
    assert (found.ids, found.groups, found.class_names) == (table.ids, table.groups, CLASSES)
    assert main(["scores", f"own.{suffix}", "--to", suffix]) == 2
    assert "this is the file to convert" in capsys.readouterr().err


def script_of(name: str) -> str:
    """Return a code block of the page on score files."""
    page = (Path(__file__).parents[3] / "docs" / "scores.md").read_text()
    return page.partition(f"```python {name}\n")[2].partition("```")[0]


def prepare_result(name: str, table: ScoreTable) -> dict:
    """Write the result file of a program, and return the variables that its script expects."""
    Path("classes.txt").write_text("\n".join(CLASSES))
    short = [one.rpartition("/")[2] for one in table.ids]
    logits, shares = torch.from_numpy(table.logits), torch.from_numpy(softmax(table.logits, axis=1))
    labels = torch.from_numpy(table.labels)
    listed = "".join(f"{one}.mp4 {label}\n" for one, label in zip(table.ids, table.labels))
    if name == "mmaction2":
        entries = [{"pred_score": row, "gt_label": label[None]} for row, label in zip(shares, labels)]
        Path("result.pkl").write_bytes(pickle.dumps(entries))
        Path("test_list.txt").write_text(listed)
    elif name == "pyslowfast":
        Path("result.pkl").write_bytes(pickle.dumps([30 * shares, labels]))
        Path("test.csv").write_text(listed)
    elif name == "videomae":
        noise = np.random.default_rng(0).normal(size=logits.shape)
        for rank, chunk in enumerate((table.logits + noise, table.logits - noise)):
            lines = [
                f"{one} {row} {k} {rank} 0\n" for one, row, k in zip(short, chunk.tolist(), table.labels)
            ]
            Path(f"{rank}.txt").write_text("".join(["71.2, 90.1\n", *lines]))
    elif name == "trainer":
        config = SimpleNamespace(id2label=dict(enumerate(CLASSES)), num_labels=len(CLASSES))
        found = SimpleNamespace(predictions=table.logits, label_ids=table.labels)
        trainer = SimpleNamespace(predict=lambda _: found)
        return {"trainer": trainer, "dataset": [], "model": SimpleNamespace(config=config), "ids": short}
    elif name == "sklearn":
        classifier = LogisticRegression().fit(table.logits, [CLASSES[label] for label in table.labels])
        named = [CLASSES[label] for label in table.labels]
        return {"classifier": classifier, "features": table.logits, "ids": short, "labels": named}
    return {}


@pytest.mark.parametrize("name", ["mmaction2", "pyslowfast", "videomae", "trainer", "sklearn"])
def test_the_scripts_of_the_page_write_such_files(name: str, folder: Path) -> None:
    table = made(1)
    given = prepare_result(name, table)
    exec(compile(script_of(name), name, "exec"), given)
    (file,) = Path().glob("rgb.*")
    found = join([table, read_scores(file)])[1]
    wanted = log_softmax(table.logits, axis=1)
    if name == "sklearn":
        order = [list(given["classifier"].classes_).index(one) for one in CLASSES]
        wanted = given["classifier"].predict_log_proba(table.logits)[:, order]
    logits = name in ("videomae", "trainer")
    np.testing.assert_allclose(found.logits, table.logits if logits else wanted, atol=1e-9)
    assert found.labels.tolist() == table.labels.tolist()
    assert found.meta["scale"] == ("logits" if logits else "log-probabilities")


def test_fuse_compare_and_leaderboard_import_nothing_heavy(folder: Path) -> None:
    Path("results").mkdir()
    for seed, name in enumerate(("rgb", "flow"), 1):
        write_form("csv", f"results/{name}", made(seed))
    script = """
import sys
from two_stream.cli import main
both = ["results/rgb.csv", "results/flow.csv"]
for args in (["fuse", *both], ["compare", *both], ["leaderboard", "results"], ["scores", both[0], "--to", "npz"]):
    assert main(args) == 0
    heavy = {"torch", "sklearn", "matplotlib", "scipy.stats", "scipy.optimize"} & set(sys.modules)
    assert not heavy, (args, heavy)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-800:]


def test_metrics_of_other_packages_are_columns(folder: Path, monkeypatch, capsys) -> None:
    space: dict = {}
    exec(compile(script_of("kappa"), "kappa", "exec"), space)
    entry = SimpleNamespace(name="kappa", value="my_package:kappa", load=lambda: space["kappa"])
    monkeypatch.setattr(
        metrics, "entry_points", lambda group: [entry] if group == "two_stream.metrics" else []
    )
    table = made(1)
    write_table(Path("rgb.csv"), table)
    write_table(Path("flow.csv"), made(2))
    assert main(["fuse", "rgb.csv", "flow.csv"]) == 0
    assert "kappa" in capsys.readouterr().out
    assert main(["report", "rgb.csv", "--out", "r.html"]) == 0
    capsys.readouterr()
    found = json.loads(Path("r.json").read_text())["streams"][0]["own"]["kappa"]
    value = cohen_kappa_score(table.labels, table.logits.argmax(axis=1))
    assert found["value"] == pytest.approx(value)
    left = [
        cohen_kappa_score(
            np.delete(table.labels, place), np.delete(table.logits, place, axis=0).argmax(axis=1)
        )
        for place in np.arange(VIDEOS).reshape(-1, 3)
    ]
    spread = np.sqrt(19 / 20 * np.square(left - np.mean(left)).sum())  # standard error of the jackknife
    assert found["high"] - found["low"] == pytest.approx(2 * 2.09 * spread, rel=0.15)
    space["kappa"] = lambda *given: float("nan")
    assert main(["fuse", "rgb.csv", "flow.csv"]) == 2
    assert "metric 'kappa' (my_package:kappa) returned nan" in capsys.readouterr().err


def test_precision_and_f1_are_those_of_sklearn() -> None:
    table = made(1)
    table.labels[table.labels == 3] = 0  # a class without videos, and one that is never predicted
    table.logits[:, 2] = -100
    predicted = table.logits.argmax(axis=1)
    present = sorted(set(table.labels.tolist()))
    precision, recall, f1, _ = precision_recall_fscore_support(
        table.labels, predicted, labels=range(5), zero_division=0
    )
    rows = metrics.per_class(table)
    for place in present:
        assert (rows[place].precision, rows[place].f1) == pytest.approx((precision[place], f1[place]))
        assert rows[place].accuracy == pytest.approx(recall[place])
    assert (rows[3].accuracy, rows[3].f1) == (None, None)
    found = metrics.summarise(table)
    assert found.precision == pytest.approx(precision[present].mean())
    assert found.f1 == pytest.approx(f1[present].mean())
    assert found.mean_class is not None
    assert found.mean_class.value == pytest.approx(recall[present].mean())


def test_equal_accuracies_share_a_place(folder: Path, capsys) -> None:
    Path("results").mkdir()
    best, other = made(1), made(2)
    best.logits += 5 * np.eye(5)[best.labels]
    for name, table in (("a", other), ("b", best), ("c", other)):
        write_table(Path(f"results/{name}.csv"), table)
    assert main(["leaderboard", "results", "--json"]) == 0
    (board,) = json.loads(capsys.readouterr().out)["boards"]
    assert [(one["place"], one["name"]) for one in board["standings"]] == [(1, "b"), (2, "a"), (2, "c")]


def test_no_command_replaces_a_file_that_it_reads(folder: Path, capsys) -> None:
    for name, seed in (("rgb.csv", 1), ("flow.csv", 2), ("a.json", 1), ("report.json", 1)):
        write_table(Path(name), made(seed))
    before = {path: path.read_bytes() for path in Path().iterdir() if path.suffix in (".csv", ".json")}
    for command in (
        ["fuse", "rgb.csv", "flow.csv", "--out", "rgb.csv"],
        ["compare", "rgb.csv", "flow.csv", "--out", "rgb.html"],
        ["report", "a.json", "--out", "a.html"],
        ["report", "report.json"],  # the default page is report.html, with report.json next to it
        ["compare", "--group", "x=rgb.csv", "y=flow.csv", "--out", "flow.html"],
        ["leaderboard", ".", "--out", "flow.csv"],
        ["scores", "rgb.csv", "--to", "csv"],
    ):
        assert main(command) == 2, command
        assert "choose another name" in (said := capsys.readouterr().err) or "name another file" in said
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("column", ["pred", "index", "fold", "loss", "y_true"])
def test_a_column_that_is_no_class_is_refused(column: str, folder: Path) -> None:
    Path("a.csv").write_text(f"id,label,{column},a,b\nx,a,0,1,2\n")
    with pytest.raises(ScoreError, match=f"the column '{column}' would be a class; remove it"):
        read_scores("a.csv")
    Path("a.csv").write_text(f"id,label,{column},a,b\nx,{column},0,1,2\n")
    assert column in read_scores("a.csv").class_names


def test_rounded_probabilities_are_mentioned_and_can_be_stated(folder: Path, capsys) -> None:
    table = made(1)
    shares = softmax(table.logits, axis=1)
    np.savez("a.npz", scores=shares.round(2), ids=table.ids, labels=table.labels, class_names=CLASSES)
    assert read_scores("a.npz").meta["scale"] == "logits"
    assert "if they are rounded probabilities, add --kind probabilities" in " ".join(
        capsys.readouterr().err.split()
    )
    found = read_scores("a.npz", Described(kind="probabilities"))
    np.testing.assert_allclose(np.exp(found.logits).sum(axis=1), 1)
    np.testing.assert_allclose(np.exp(found.logits), shares, atol=0.02)


def test_labels_of_the_file_and_of_the_flag_must_agree(folder: Path) -> None:
    table = made(1)
    write_table(Path("a.csv"), table)
    assert read_scores("a.csv", Described(labels="test.csv")).labels.tolist() == table.labels.tolist()
    wrong = table.labels.copy()
    wrong[3] = (wrong[3] + 1) % 5
    table.labels = wrong
    write_table(Path("a.csv"), table)
    with pytest.raises(
        ScoreError, match=r"a\.csv: the label of '\w+/test_003' is '.*' in test\.csv; remove the wrong one"
    ):
        read_scores("a.csv", Described(labels="test.csv"))


def test_labels_that_may_count_from_one_are_mentioned(folder: Path, capsys) -> None:
    Path("a.csv").write_text("id,label,a,b,c,d\nx,1,1,2,0,0\ny,3,1,2,0,0\n")
    read_scores("a.csv")
    assert "no video has label 0; if the labels count from 1" in " ".join(capsys.readouterr().err.split())
    Path("a.csv").write_text("id,label,a,b\nx,1,1,2\ny,2.0,1,2\n")
    with pytest.raises(ScoreError, match="is 2; expected 0 to 1; these labels seem to count from 1"):
        read_scores("a.csv")


def test_one_bad_label_is_the_one_that_is_named(folder: Path) -> None:
    Path("a.csv").write_text("id,label,a,b\nx,a,1,2\ny,B,1,2\nz,b,1,2\n")
    with pytest.raises(ScoreError, match="the label of 'y' is 'B', which is not a class"):
        read_scores("a.csv")


def test_all_files_use_the_same_sources(folder: Path, capsys) -> None:
    first, second, third = made(1), made(2), made(2)
    second.groups = None
    third.groups = ["one"] * VIDEOS
    joined = join([first, second, third])
    assert [table.groups for table in joined] == [first.groups] * 3
    assert "the sources differ" in capsys.readouterr().err


def test_files_of_different_videos_are_on_different_boards(folder: Path, capsys) -> None:
    Path("results").mkdir()
    for name, count in (("a", 60), ("b", 60), ("c", 50)):
        file = write_form("csv", f"results/{name}", made(ord(name)))
        lines = file.read_text().splitlines()[: count + 1]
        file.write_text("\n".join(lines).replace("id,", "filename,", 1))
    assert main(["leaderboard", "results", "--json"]) == 0
    boards = json.loads(capsys.readouterr().out)["boards"]
    assert sorted(len(board["standings"]) for board in boards) == [1, 2]


def test_paths_of_different_depth_are_matched() -> None:
    assert match_ids(["/data/x/a/1.avi", "/data/x/b/1.avi"], ["a/1", "b/1"]) == {
        "/data/x/a/1.avi": "a/1",
        "/data/x/b/1.avi": "b/1",
    }
