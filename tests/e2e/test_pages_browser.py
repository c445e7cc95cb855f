"""Every page in a real browser: at four widths, in both themes, by keyboard and on paper."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from tests.helpers.browser import CONTRAST, pdf_text
from tests.helpers.runs import Runs
from tests.helpers.studies import HEADS, HOSTILE, made_compression, made_result
from two_stream.commands.compress.comparison import write_pages
from two_stream.evaluation.report.run_report import write_report
from two_stream.studies.report.study_report import write_study_report

pytestmark = pytest.mark.integration
WIDTHS = (390, 838, 1200, 1920)
PAGES = ("study", "large", "hostile", "report", "compression")
TWENTY = tuple(f"{head} · {end}" for head in HEADS[:5] for end in ("none", "frab", "frmb", "late"))
OPEN = "document.querySelectorAll('details').forEach(one => { one.open = true; })"
FIGURES = """[...document.querySelectorAll('figure')].map(figure => {
  const svg = figure.querySelector('svg'), box = svg.getBoundingClientRect();
  const drawn = [...svg.querySelectorAll('path, use, text')].filter(one => {
    const own = one.getBoundingClientRect();
    return own.width + own.height > 0;
  }).length;
  return [svg.getAttribute('aria-label'), box.width, box.height, drawn];
})"""
COLUMN = """[...document.querySelectorAll('#variants tbody tr')].map(row => row.cells[%d].textContent)"""
PRESS = """document.querySelectorAll('#variants thead th')[%d].querySelector('button').click()"""
CUT = """(() => {
  const found = [];
  const say = (one, why) => found.push(`${why}: <${one.tagName}> ${one.textContent.trim().slice(0, 60)}`);
  const wide = document.documentElement.clientWidth;
  for (const one of document.querySelectorAll('h1, h2, h3, p, li, th, td, summary, pre, a, figure, .bar span')) {
    if (!one.getClientRects().length) continue;
    const box = one.getBoundingClientRect();
    if (!one.closest('.scroll') && (box.right > wide + 1 || box.left < -1)) say(one, 'outside the window');
    if (!one.matches('pre') && one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).display !== 'inline')
      say(one, 'wider than its box');
  }
  for (const one of document.querySelectorAll('svg text')) {
    if (!one.getClientRects().length) continue;
    const box = one.getBoundingClientRect(), svg = one.closest('svg').getBoundingClientRect();
    const beyond = [svg.left - box.left, box.right - svg.right, svg.top - box.top, box.bottom - svg.bottom];
    if (Math.max(...beyond) > 1.5)
      say(one, 'outside its figure');
  }
  return found;
})()"""
STRUCTURE = """(() => {
  const found = [];
  let level = 0;
  for (const one of document.querySelectorAll('h1, h2, h3, h4')) {
    const own = Number(one.tagName[1]);
    if (own > level + 1 || (own === 1) !== (level === 0)) found.push(`heading out of order: ${one.textContent}`);
    level = own;
  }
  const all = (what) => [...document.querySelectorAll(what)];
  for (const one of all('img')) if (!one.alt) found.push('image without a text');
  for (const one of all('figure svg')) if (!one.getAttribute('aria-label')) found.push('figure without a label');
  for (const one of all('table')) if (!one.closest('.scroll')) found.push('table without a box that scrolls');
  for (const one of all('.scroll'))
    if (one.tabIndex !== 0 || one.getAttribute('role') !== 'region' || !one.getAttribute('aria-label'))
      found.push('a box that scrolls cannot be reached');
  for (const one of all('th')) if (!one.scope) found.push(`header without a scope: ${one.textContent}`);
  for (const one of all('nav a')) if (!document.querySelector(one.getAttribute('href'))) found.push('dead link');
  return found;
})()"""
STOPS = "[...document.querySelectorAll('a, button, summary, .scroll, svg[tabindex]')]"
VISIBLE = f"{STOPS}.filter(one => one.checkVisibility()).length"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    runs = Runs(folder / "runs")
    study = made_result(classes=12, fusion=True)
    hostile = made_result(HOSTILE, classes=5, multi_label=True, fusion=True)
    return {
        "study": write_study_report(study, folder / "study.html")[0],
        "large": write_study_report(made_result(TWENTY, classes=101, fusion=True), folder / "large.html")[0],
        "hostile": write_study_report(hostile, folder / "hostile.html")[0],
        "report": write_report([runs.make("rgb"), runs.make("flow")], folder / "report.html", mistakes=2)[0],
        "compression": write_pages(made_compression(), folder),
    }


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_cut_at_any_width(tab, pages, name):
    tab.media()
    for width in WIDTHS:
        tab.size(width, 900, mobile=width < 500)
        tab.open(pages[name])
        tab.evaluate(OPEN)
        assert tab.complaints() == []
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        assert tab.evaluate(CUT) == [], width
        for label, across, down, drawn in tab.evaluate(FIGURES):
            assert min(across / 150, down / 60, drawn / 8) > 1, label
        if width >= 1200:  # the tables of a study fit a window of usual size
            boxes = "[...document.querySelectorAll('.scroll')].filter(one => one.scrollWidth > one.clientWidth + 1)"
            names = {*tab.evaluate(f"{boxes}.map(one => one.getAttribute('aria-label'))")}
            assert name in ("hostile", "large") or names <= {
                "Settings that differ",
                "Runs",
                "Confusion matrix",
            }
    assert tab.evaluate(STRUCTURE) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["study", "report", "compression"])
def test_text_has_contrast(tab, pages, name, scheme):
    tab.size(1200, 900)
    tab.media(scheme=scheme)
    tab.open(pages[name])
    tab.evaluate(OPEN)
    least, text = tab.evaluate(CONTRAST)
    assert least >= 4.5, text


@pytest.mark.parametrize("name", ["study", "report", "compression"])
def test_everything_is_reached_by_keyboard_and_figures_tell_their_values(tab, pages, name):
    tab.media()
    tab.size(1200, 900)
    tab.open(pages[name])
    stops = tab.evaluate(VISIBLE)
    assert stops > 8
    seen = 0
    for _ in range(stops):
        tab.press("Tab")
        assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        seen += tab.evaluate(f"{STOPS}.includes(document.activeElement)")
        if tab.evaluate("document.activeElement.matches('svg')") and seen < 12:
            first = tab.press("ArrowRight") or tab.evaluate("document.getElementById('value').textContent")
            second = tab.press("ArrowRight") or tab.evaluate("document.getElementById('value').textContent")
            assert "" != first != second != ""
            assert tab.evaluate("document.querySelectorAll('circle.ring').length") == 1
    assert seen == stops
    figure = "document.querySelector('figure svg[data-values]')"
    tab.evaluate(f"{figure}.scrollIntoView({{ block: 'center' }})")
    x, y, text = tab.evaluate(
        f"(() => {{ const svg = {figure}, value = JSON.parse(svg.dataset.values)[0];"
        "const at = new DOMPoint(value[0], value[1]).matrixTransform(svg.getScreenCTM());"
        "return [at.x, at.y, value[2]]; })()"
    )
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + 2, y=y + 2)
    assert tab.evaluate("document.getElementById('value').textContent") == text


@pytest.mark.parametrize("paper", [(8.27, 11.69), (8.5, 11.0)], ids=["A4", "Letter"])
@pytest.mark.parametrize("name", ["study", "report", "compression"])
def test_paper_shows_every_figure_and_table(tab, pages, name, paper):
    tab.media()
    tab.size(1200, 900)
    tab.open(pages[name])
    wanted = "[...document.querySelectorAll('svg text, h2, details.paper td, details.paper pre')]"
    texts = tab.evaluate(f"{wanted}.map(one => one.textContent)")
    closed = tab.evaluate("document.querySelectorAll('details.paper:not([open])').length")
    printed = "".join(pdf_text(tab.pdf(paper)).split())
    missing = [text for text in texts if "".join(unicodedata.normalize("NFKC", text).split()) not in printed]
    assert missing == []
    assert tab.evaluate("document.querySelectorAll('details.paper:not([open])').length") == closed


def test_headers_sort_by_value_not_by_letters(tab, pages):
    tab.size(1280, 900)
    tab.open(pages["study"])
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
    tab.open(pages["study"])
    tab.evaluate("document.querySelector('#variants thead th button').focus()")
    for kind in ("keyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r")
    assert tab.evaluate(COLUMN % 0) == sorted(HEADS)
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert tab.evaluate(outline) == "solid"


def test_page_without_script_is_whole(tab, pages):
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.size(1280, 900)
        tab.open(pages["study"])
        assert tab.evaluate(COLUMN % 0) == list(HEADS)
        assert tab.evaluate("document.querySelectorAll('thead button').length") == 0
        assert min(row[1] for row in tab.evaluate(FIGURES)[:4]) > 150
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)
