"""The study's page and the run's report in a real browser: no complaint, all drawn, sortable, on phone and paper."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.browser import CONTRAST, NAMES, Browser, browser, find_chromium
from tests.helpers.runs import Runs
from tests.helpers.studies import HEADS, HOSTILE, made_result
from two_stream.studies.report.study_report import write_study_report

pytestmark = pytest.mark.integration
OPEN = "document.querySelectorAll('details').forEach(one => { one.open = true; })"
FIGURES = """[...document.querySelectorAll('figure')].map(figure => {
  const svg = figure.querySelector('svg');
  const box = svg ? svg.getBoundingClientRect() : { width: 0, height: 0 };
  const inside = svg ? [...svg.querySelectorAll('path, use, text')].filter(one => {
    const own = one.getBoundingClientRect();
    return own.width + own.height > 0;
  }).length : 0;
  return [svg ? svg.getAttribute('aria-label') : '', box.width, box.height, inside];
})"""
COLUMN = """[...document.querySelectorAll('#variants tbody tr')].map(row => row.cells[%d].textContent)"""
PRESS = """document.querySelectorAll('#variants thead th')[%d].querySelector('button').click()"""


TWENTY = tuple(f"{head} · {end}" for head in HEADS[:5] for end in ("none", "frab", "frmb", "late"))
RESULTS = {
    "two": lambda: made_result(("average", "bert"), classes=4, seeds=1),
    "six": lambda: made_result(classes=12, fusion=True),
    "twenty": lambda: made_result(TWENTY, classes=101, fusion=True),
    "hostile": lambda: made_result(HOSTILE, classes=5, multi_label=True, fusion=True),
}


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip(
            f"no Chromium: none of {', '.join(NAMES)} is on the path and TWO_STREAM_CHROMIUM names none "
            "(Debian: apt-get install chromium)"
        )
    with browser(program, tmp_path_factory.mktemp("profile")) as made:
        yield made


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    return {name: write_study_report(make(), folder / f"{name}.html")[0] for name, make in RESULTS.items()}


@pytest.mark.parametrize("name", RESULTS)
def test_no_complaint_every_figure_drawn_and_nothing_wider_than_the_window(tab, pages, name):
    tab.media()
    for width in (360, 1280):
        tab.size(width, 800, mobile=width == 360)
        tab.open(pages[name])
        assert tab.complaints() == []
        tab.evaluate(OPEN)
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        found = tab.evaluate(FIGURES)
        assert len(found) == tab.evaluate("document.querySelectorAll('figure').length") >= 4
        for label, across, down, inside in found:
            assert label, name
            assert across > 150, label
            assert down > 60, label
            assert inside > 8, label


def test_headers_sort_by_value_not_by_letters(tab, pages):
    tab.size(1280, 900)
    tab.open(pages["six"])
    heads = tab.evaluate("[...document.querySelectorAll('#variants thead th')].map(one => one.textContent)")
    names, given = tab.evaluate(COLUMN % 0), list(HEADS)
    assert names == given
    place = heads.index("ECE (%)")  # 5.0 … 10.0: as text 10.0 would come first
    tab.evaluate(PRESS % place)
    assert tab.evaluate(COLUMN % place) == ["10.0", "9.0", "8.0", "7.0", "6.0", "5.0"]
    assert tab.evaluate(COLUMN % 0) == given[::-1]
    state = "[...document.querySelectorAll('#variants thead th')].map(one => one.getAttribute('aria-sort'))"
    assert tab.evaluate(state)[place] == "descending"
    tab.evaluate(PRESS % place)
    assert tab.evaluate(COLUMN % place) == ["5.0", "6.0", "7.0", "8.0", "9.0", "10.0"]
    tab.evaluate(PRESS % 0)
    assert tab.evaluate(COLUMN % 0) == sorted(given)
    assert [one for one in tab.evaluate(state) if one] == ["ascending"]
    published = heads.index("published (%)")  # what is not known comes last, both ways
    for _ in range(2):
        tab.evaluate(PRESS % published)
        assert tab.evaluate(COLUMN % published) == ["70.0"] * 2 + ["–"] * 4
    assert tab.complaints() == []


def test_headers_are_reached_and_pressed_by_keyboard(tab, pages):
    tab.open(pages["six"])
    tab.evaluate("document.querySelector('#variants thead th button').focus()")
    for kind in ("keyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r")
    assert tab.evaluate(COLUMN % 0) == sorted(HEADS)
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert tab.evaluate(outline) == "solid"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["six", "twenty"])
def test_text_stands_out_from_what_is_behind_it(tab, pages, name, scheme):
    tab.size(1280, 900)
    tab.media(scheme=scheme)
    tab.open(pages[name])
    tab.evaluate(OPEN)
    least, text = tab.evaluate(CONTRAST)
    assert least >= 4.5, text
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(17, 20, 24)") == (scheme == "dark")


@pytest.mark.parametrize("name", RESULTS)
def test_paper_cuts_nothing_off(tab, pages, name):
    tab.size(688, 1000)  # A4 without margins
    tab.media("print")
    tab.open(pages[name])
    assert tab.evaluate("document.documentElement.scrollWidth") == 688
    tab.media()
    printed = tab.pdf()
    assert printed.startswith(b"%PDF-")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 60
    assert tab.evaluate("document.querySelectorAll('details.paper:not([open])').length") == max(
        0, tab.evaluate("document.querySelectorAll('details.paper').length") - 1
    )  # closed again after printing


def test_page_without_script_is_whole(tab, pages):
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.size(1280, 900)
        tab.open(pages["six"])
        assert tab.evaluate(COLUMN % 0) == list(HEADS)
        assert tab.evaluate("document.querySelectorAll('thead button').length") == 0
        assert min(row[1] for row in tab.evaluate(FIGURES)[:4]) > 150
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)


def test_report_of_runs_has_no_complaint_either(tab, tmp_path):
    from two_stream.evaluation.report.run_report import write_report

    runs = Runs(tmp_path / "runs")
    page = write_report([runs.make("rgb"), runs.make("flow")], tmp_path / "r.html", mistakes=2)[0]
    for width in (360, 1280):
        tab.size(width, 800, mobile=width == 360)
        tab.open(page)
        assert tab.complaints() == []
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        for label, across, down, inside in tab.evaluate(FIGURES):
            assert across > 150, label
            assert down > 60, label
            assert inside > 8, label
