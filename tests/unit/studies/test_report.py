"""The report of a study: every form says the same, nothing breaks where parts are missing or names are odd."""

import csv
import json
import re
from dataclasses import replace

import pytest

from tests.helpers.browser import Checker
from tests.helpers.studies import HEADS, HOSTILE, made_result
from two_stream.config.load import dump
from two_stream.config.schema import Experiment
from two_stream.errors import ScoreError, SettingsError
from two_stream.evaluation.scores.metrics import Interval
from two_stream.evaluation.scores.words import minus
from two_stream.studies.report import tables
from two_stream.studies.report.study_report import escape_tex, read_result, write_study_report
from two_stream.studies.statistics.comparison import p_text
from two_stream.studies.statistics.results import RunRow


class Page(Checker):
    """Also collects figures, sections, bold text, and tables by their label."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.figures: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.bold: set[str] = set()
        self.ids: set[str] = set()
        self._table = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, attrs)
        found = dict(attrs)
        if tag == "svg":
            self.figures.append(found["aria-label"])
        if tag == "section":
            self.ids.add(found["id"])
        if tag == "table":
            self._table = found.get("aria-label", "")
            self.tables[self._table] = []
        if tag == "tr":
            self.tables[self._table].append([])
        if tag in ("td", "th"):
            self.tables[self._table][-1].append("")

    def handle_data(self, data):
        super().handle_data(data)
        if "td" in self.open or "th" in self.open:
            self.tables[self._table][-1][-1] += data
            if "b" in self.open:
                self.bold.add(data)


def written(result, folder, name="study"):
    """Write a report and return its page, Markdown, LaTeX and JSON."""
    paths = write_study_report(result, folder / f"{name}.html")
    page = Page(paths[0].read_text())
    assert [load for load in page.loads if not load.startswith(("#", "data:"))] == []
    assert read_result(folder / f"{name}.json") == result
    latex = paths[2].read_text()
    check_latex(latex)
    return page, paths[1].read_text(), latex, paths


def check_latex(text):
    """Braces balance, environments nest, and every row has the columns that the table declares."""
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    plain = re.sub(r"\\[{}&%$#_\\]", "", body)
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    assert re.search(r"(?<!\\)[#^~]", body) is None
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", body):
        stack.append(name) if kind == "begin" else stack.remove(name)
    assert stack == []
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", body)
    if columns:
        rows = [line for line in plain.splitlines() if "&" in line]
        assert rows
        assert {line.count("&") + 1 for line in rows} == {len(columns[1])}


def test_every_form_says_the_same(tmp_path):
    result = made_result()
    page, markdown, latex, paths = written(result, tmp_path)
    assert [path.name for path in paths] == [
        *("study.html", "study.md", "study.tex", "study.csv", "study.json"),
        "study-comparisons.csv",
    ]
    for text in (page.text, markdown.replace("\\", ""), latex.replace("\\", "")):
        assert result.question in text
        for variant in result.variants:
            value = variant.accuracy
            shown = f"{100 * value.value:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"
            assert shown in text
            assert variant.name in text
    for text in (page.text, minus(markdown.replace("\\", ""))):
        assert minus(result.answer) in text
        assert result.protocol in text
        assert result.command in text
        for one in result.comparisons:
            assert minus(one.verdict) in text
        for note in result.notes:
            assert minus(note) in text
    rows = list(csv.DictReader(paths[3].open()))
    assert [row["variant"] for row in rows] == list(HEADS)
    assert [float(row["top1"]) for row in rows] == [one.accuracy.value for one in result.variants]
    assert rows[4]["multiply_adds_per_view"] == str(result.variants[4].cost.multiply_adds)
    assert rows[1]["published"] == ""
    gaps = list(csv.DictReader(paths[5].open()))
    assert [float(row["difference"]) for row in gaps] == [one.difference.value for one in result.comparisons]
    assert [row["mcnemar_first_only"] for row in gaps] == ["72"] * 5
    assert "![" not in markdown
    assert not re.search(r"[ \t]$|\n\n\n", markdown, re.MULTILINE)
    assert "MiB" not in latex  # the few columns that fit on paper
    assert "G multiply-adds per view" in latex
    assert list(tmp_path.glob(".*")) == []


def test_bold_is_only_what_is_significantly_better(tmp_path):
    result = made_result()
    better = {one.first for one in result.comparisons if one.significant}
    assert 0 < len(better) < len(HEADS) - 1
    page, markdown, latex, _ = written(result, tmp_path)
    for name in HEADS:
        assert (name in page.bold) == (name in better)
        assert (f"| **{name}** |" in markdown) == (name in better)
        assert (rf"\textbf{{{name}}} &" in latex) == (name in better)
    heads, *rows = page.tables["Variants"]
    said = {row[0]: row[heads.index("verdict")] for row in rows}
    assert said.pop("average") == "–"
    for name, text in said.items():
        assert text == ("better (p = 0.004)" if name in better else "no difference shown")
    worse = replace(
        result.comparisons[-1], difference=Interval(-0.1, -0.15, -0.05), verdict="worse", p_holm=0.0004
    )
    table = tables.variants_table(replace(result, comparisons=[worse]))
    assert not any(cell.strong for row in table.rows for cell in row)
    assert table.rows[-1][table.columns.index("verdict")].text == "worse (p < 0.001)"
    table = tables.variants_table(replace(result, comparisons=[replace(worse, significant=False)]))
    assert not any(cell.strong for row in table.rows for cell in row)


def test_columns_and_parts_without_content_are_left_out(tmp_path):
    result = made_result()
    bare = [
        replace(
            one,
            cost=None,
            published=None,
            more={},
            sd=None,
            seed_interval=None,
            histories={},
            confusion=None,
            per_class=[],
        )
        for one in result.variants
    ]
    page, markdown, _, paths = written(
        replace(result, variants=bare, comparisons=[], settings={}, notes=[], definition="", environment={}),
        tmp_path,
    )
    assert page.tables["Variants"][0] == ["variant", "top-1 (%) [95\u00a0%]"]
    assert page.ids == {"variants", "settings", "runs", "reproduce"}  # changes stand for settings
    assert page.figures == ["top-1 of the variants"]
    assert "## Comparisons" not in markdown
    assert len(paths) == 5


def test_one_variant_and_none(tmp_path):
    result = made_result(("only",))
    assert result.comparisons == []
    page, *_ = written(result, tmp_path)
    assert "comparisons" not in page.ids
    assert "settings" not in page.ids
    assert not any(
        "against cost" in label for label in page.figures
    )  # a single point has nothing to compare with
    failed = [RunRow("only", 1, 1, "failed", reason="no such file: x.yaml"), RunRow("only", 1, 2, "missing")]
    page, markdown, latex, _ = written(
        replace(result, variants=[], runs=failed, settings={}, answer="No run has finished."), tmp_path
    )
    for text in (page.text, markdown, latex):
        assert "No variant has a finished run." in text
    assert page.figures == []
    assert page.ids == {"variants", "runs", "reproduce"}
    assert page.tables["Runs"] == [
        ["variant", "split", "seed", "state", "why it failed"],
        ["only", "1", "1", "failed", "no such file: x.yaml"],
        ["only", "1", "2", "missing", "–"],
    ]


def test_names_are_escaped_in_every_form(tmp_path):
    result = made_result(HOSTILE, classes=4, fusion=True)
    result = replace(result, class_names=["<i>", "a|b", "c_d %", "Ä$x$"], definition="a: '</pre><script>'\n")
    page, markdown, latex, paths = written(result, tmp_path)
    for name in HOSTILE:
        assert " ".join(name.split()) in " ".join(page.text.split())
    assert paths[0].read_text().count("<script>") == 1
    assert "<b>" not in markdown.replace("\\<b", "")
    widths = {}
    for line in markdown.split("## Comparisons")[0].splitlines():
        if line.startswith("|"):
            widths.setdefault(len(re.findall(r"(?<!\\)\|", line)), []).append(line)
    assert len(widths) == 2  # variants and costs
    assert r"under\_score \& \$x\$ \#1" in latex
    assert r"\textless{}b\textgreater{}A\textbar{}B" in latex
    assert [row["variant"] for row in csv.DictReader(paths[3].open())] == list(HOSTILE)


def test_multi_label_sets_have_no_confusion(tmp_path):
    page, markdown, _, paths = written(made_result(multi_label=True), tmp_path)
    assert not any("confusion" in label for label in page.figures)
    assert any(label.startswith("difference by class") for label in page.figures)
    assert "McNemar tests" not in page.tables
    assert "mAP (%) [95\u00a0%]" in page.tables["Variants"][0]
    assert "only first" not in page.text + markdown
    assert not any("clips" in column for column in page.tables["Comparisons"][0])
    assert next(csv.reader(paths[3].open()))[1] == "map"


@pytest.mark.parametrize("classes", [101, 400])
def test_many_classes_show_what_differs_most(tmp_path, classes):
    result = made_result(("average", "bert"), classes=classes, seeds=2)
    page, *_ = written(result, tmp_path)
    heads, *rows = page.tables["Confusions that differ most"]
    assert heads == ["true", "predicted", "bert", "average", "difference"]
    gaps = [abs(float(row[4].replace("−", "-"))) for row in rows]
    assert gaps == sorted(gaps, reverse=True)
    assert all(row[0] != row[1] for row in rows)
    place = [result.class_names.index(name) for name in rows[0][:2]]
    first, second = (one.confusion[place[0]][place[1]] for one in (result.variants[1], result.variants[0]))
    assert rows[0][2:4] == [f"{first:.1f}", f"{second:.1f}"]
    bars = [label for label in page.figures if label.startswith("difference by class")]
    assert len(bars) == 1
    one = result.comparisons[0]
    largest = max(range(classes), key=lambda place: one.per_class[place] or -1.0)
    assert result.class_names[largest] in page.text


def test_fusion_matrix_has_every_pair(tmp_path):
    result = made_result(("rgb a", "rgb b", "flow a", "flow b"), fusion=True)
    fusion = result.fusion
    page, markdown, *_ = written(result, tmp_path)
    assert page.tables["Fusion matrix"][0] == ["", "flow a", "flow b"]
    for row in page.tables["Fusion matrix"][1:]:
        for column, shown in zip(("flow a", "flow b"), row[1:]):
            pair = next(one for one in fusion.pairs if (one.first, one.second) == (row[0], column))
            assert shown == f"{100 * pair.accuracy.value:.1f} ({tables.signed_number(100 * pair.gain.value)})"
            assert (shown in page.bold) == (pair.gain.low > 0)
            assert shown in markdown
    assert [row[0] for row in page.tables["Contributions of streams"][1:]] == fusion.streams
    assert page.tables["Agreement"][1][1:] == ["100", "71", "72", "73"]
    lacking = replace(result, fusion=replace(fusion, pairs=fusion.pairs[:-1], all_streams=None, tuned=None))
    assert tables.fusion_matrix(lacking.fusion).rows[-1][-1].text == "–"
    written(lacking, tmp_path)
    plain = replace(result, fusion=replace(fusion, contributions=[]))
    for text in written(plain, tmp_path)[:2]:
        shown = text if isinstance(text, str) else text.text
        weights = "(rgb a 0.25, rgb b 0.25, flow a 0.25, flow b 0.25)"
        assert f"With weights fitted on the holdout part, 120 videos {weights}: 82.0 [78.0, 86.0] %." in shown


def test_settings_that_differ_stand_beside_each_other(tmp_path):
    result = made_result()
    page, *_ = written(result, tmp_path)
    assert page.tables["Settings that differ"][0] == ["setting", *HEADS]
    rows = {row[0]: row[1:] for row in page.tables["Settings that differ"][1:]}
    assert list(rows) == ["model.head.kind", "model.head.layers"]  # not `name`, which every run has its own
    assert rows["model.head.layers"] == ["1", "2", "3", "1", "2", "3"]
    (table,) = tables.settings_tables(replace(result, settings={}))
    assert [[cell.text for cell in row] for row in table.rows] == [["model.head.kind", *HEADS]]
    found = tables.settings_tables(made_result(tuple(f"v{place}" for place in range(9))))
    assert [table.columns for table in found] == [
        ["setting", *(f"v{place}" for place in range(6))],
        ["setting", "v6", "v7", "v8"],
    ]


def test_options_at_their_default_are_left_out():
    def differing(*changes: dict) -> dict[str, list[str]]:
        base = {"name": "a", "data": {"dataset": "toy"}}
        texts = [dump(Experiment.model_validate(base | change)) for change in changes]
        result = replace(made_result(("a", "b")), settings=dict(zip("ab", texts)))
        return {key: list(own.values()) for key, own in tables.differing_settings(result).items()}

    prune = {"kind": "prune", "source": "runs/a", "amount": 0.25}
    assert differing(
        {}, {"compress": prune, "train": {"epochs": 7, "init": "runs/a", "init_part": "all"}}
    ) == {
        "train.epochs": ["30", "7"],
        "train.init": ["null", "runs/a"],
        "compress.kind": ["none", "prune"],
        "compress.source": ["–", "runs/a"],
        "compress.amount": ["–", "0.25"],
    }
    found = differing({}, {"train": {"optimizer": {"kind": "adamw"}}})
    assert found["train.optimizer.kind"] == ["sgd", "adamw"]
    assert found["train.optimizer.lr"][0] != found["train.optimizer.lr"][1]  # both defaults, of either kind
    assert "train.optimizer.momentum" not in found


def test_captions_say_what_is_shown(tmp_path):
    result = made_result(("a", "b"))
    page, markdown, *_ = written(result, tmp_path)
    assert "Key: hash of" in page.text
    assert "This report was written with" in page.text
    assert "This report was written with:\n\n- torch: 2.14.1\n" in markdown
    _, markdown, *_ = written(replace(result, runs=[replace(one, key="") for one in result.runs]), tmp_path)
    assert "\nModel: SHA-256 of the weights. Folders are in" in markdown


def test_runs_are_listed_with_hash_and_reason(tmp_path):
    result = made_result()
    page, markdown, *_ = written(result, tmp_path)
    rows = page.tables["Runs"][1:]
    assert len(rows) == len(result.runs) == 18
    failed = [row for row in rows if row[3] == "failed"]
    assert failed == [
        [HEADS[1], "1", "3", "failed", "–", "67", "01039f8e7d6c", "ab" * 6, "01-3", failed[0][-1]]
    ]
    assert failed[0][-1] == "CUDA out of memory | tried to allocate <2 GiB>"
    assert "Folders are in runs/studies/made_heads/runs." in page.text
    assert "CUDA out of memory \\| tried to allocate \\<2 GiB\\>" in markdown


def test_families_are_named_where_there_are_several():
    result = made_result()
    first, *others = result.comparisons
    table = tables.comparisons_table(replace(result, comparisons=[replace(first, family="another"), *others]))
    place = table.columns.index("family")
    assert [row[place].text for row in table.rows][:2] == ["another", "every variant with average"]
    assert "family" not in tables.comparisons_table(result).columns


def test_the_page_is_the_same_twice(tmp_path):
    result = made_result(("average", "bert"), classes=4)
    first = write_study_report(result, tmp_path / "a.html")[0].read_bytes()
    assert write_study_report(result, tmp_path / "a.html")[0].read_bytes() == first
    assert not re.search(rb"url\((?!#)|@import|#0[1-5]0[1-5]0[1-5]", first)


@pytest.mark.parametrize("suffix", [".json", ".md", ".CSV", ".tex"])
def test_the_page_does_not_overwrite_its_own_numbers(tmp_path, suffix):
    with pytest.raises(
        SettingsError, match=rf"r\{suffix}: the page is HTML; expected a file name ending in \.html"
    ):
        write_study_report(made_result(("a", "b")), tmp_path / f"r{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_or_damaged_json_is_one_line(tmp_path):
    result = made_result(("a", "b"))
    path = write_study_report(result, tmp_path / "r.html")[4]
    values = json.loads(path.read_text())
    values["variants"][0]["accuracy"]["low"] = "much"
    path.write_text(json.dumps(values))
    with pytest.raises(
        ScoreError,
        match=r"r\.json: expected the \.json file of a study's report, found an error at `variants\.0\.acc",
    ) as caught:
        read_result(path)
    assert "\n" not in str(caught.value)
    path.write_text("{")
    with pytest.raises(ScoreError, match=r"expected the \.json file of a study's report"):
        read_result(path)
    with pytest.raises(ScoreError, match=r"none\.json: cannot be read"):
        read_result(tmp_path / "none.json")


def test_latex_text():
    assert escape_tex("a_b & 5 % {x}\\y ~ ^ #") == (
        r"a\_b \& 5 \% \{x\}\textbackslash{}y \textasciitilde{} \textasciicircum{} \#"
    )
    assert escape_tex("[a]") == "{}[a]"
    assert escape_tex("*") == "{}*"
    assert escape_tex("−3 × 4\n · 5") == r"$-$3 $\times$ 4 $\cdot$ 5"


def test_numbers_as_they_are_shown():
    assert tables.signed_number(-0.04) == "0.0"
    assert tables.signed_number(-1234.56) == "−1,234.6"
    assert p_text(0.00099) == "< 0.001"
    assert p_text(0.001) == "0.001"
    assert tables.number(None) == tables.TableCell("–")
    assert tables.number(0.1234, 1, 100) == tables.TableCell("12.3", 0.1234)


def test_of_several_comparisons_the_variants_table_names_the_first_and_counts_the_others():
    made = made_result()
    first = made.comparisons[0]
    other = replace(
        first, second=next(v.name for v in made.variants if v.name not in (first.first, first.second))
    )
    table = tables.variants_table(replace(made, comparisons=[first, other]))
    row = next(row for row in table.rows if row[0].text == first.first)
    texts = [cell.text for cell in row]
    assert f"{tables.signed_number(100 * first.difference.value)} to {first.second} (+ 1 below)" in texts
    assert tables.short_verdict(first) in texts
