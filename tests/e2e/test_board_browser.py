"""The board in a real browser: filter, sort, settings side by side, at four widths and in both themes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.test_pages_browser import OPEN
from tests.helpers.browser import CONTRAST, Browser, pdf_text
from tests.helpers.studies import Studio
from two_stream.studies.report.board import write_board

pytestmark = pytest.mark.integration
SHOWN = """[...document.querySelectorAll('#runs tbody tr')].filter(row => row.checkVisibility())
  .map(row => row.querySelector('b').textContent)"""
COMPARED = (
    "[...document.querySelectorAll('#compare tr')].map(row => [...row.cells].map(one => one.textContent))"
)
REASONS = "[...document.querySelectorAll('#compare li')].map(one => one.textContent)"
VISIBLE = "document.querySelector('#compare %s').checkVisibility()"
NOISE = "<img src=x onerror=alert(1)>"


def enter(tab: Browser, field: str, text: str) -> list[str]:
    """Write into a field of the filter and return the names that are still shown."""
    tab.evaluate(f"""(() => {{ const one = document.querySelector('.filter').elements['{field}'];
      one.value = {text!r}; one.dispatchEvent(new Event('input', {{ bubbles: true }})); }})()""")
    return tab.evaluate(SHOWN)


def choose(tab: Browser, *names: str) -> None:
    for name in names:
        tab.evaluate(f"document.querySelector('input[aria-label=\"compare {name}\"]').click()")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    studio = Studio(tmp_path_factory.mktemp("board") / "runs")
    studio.run("low", 0.3)
    studio.run("high", 2.0, head="bert")
    studio.run("flow", 0.9, head="bert", modality="flow", seed=2)
    studio.run("other", 0.5, dataset=NOISE)
    (studio.run("cut") / "experiment.yaml").write_text("name: [")
    (studio.run("new", head="lstm") / "scores" / "test_multi_ten_logits.npz").unlink()
    (studio.root / "new" / "scores" / "val_multi_ten_logits.npz").unlink()
    write_board(studio.root, studio.root / "board.html")
    return studio.root / "board.html"


def test_filter_by_words_data_set_and_kind(tab, page) -> None:
    tab.size(1200, 900)
    tab.open(page)
    everything = set(tab.evaluate(SHOWN))
    assert everything == {"low", "high", "flow", "other", "cut", "new"}
    assert set(enter(tab, "words", "BERT")) == {"high", "flow"}
    assert enter(tab, "words", "bert flow") == ["flow"]
    assert tab.evaluate("document.querySelector('#runs h2 small').textContent") == "1 of 6"
    enter(tab, "words", "")
    assert enter(tab, "set", NOISE) == ["other"]
    enter(tab, "set", "")
    assert set(enter(tab, "kind", "run")) == everything
    assert enter(tab, "words", "damaged") == ["cut"]
    assert tab.complaints() == []


def test_sort_by_accuracy_and_name(tab, page) -> None:
    tab.open(page)
    press = "document.querySelectorAll('#runs thead button')[%d].click()"
    tab.evaluate(press % 1)
    names = tab.evaluate(SHOWN)
    assert (names[0], names[-2:]) == ("high", ["low", "new"])  # what has no accuracy comes last
    tab.evaluate(press % 0)
    assert tab.evaluate(SHOWN) == ["cut", "flow", "high", "low", "new", "other"]


def test_chosen_runs_are_compared_by_their_differences(tab, page) -> None:
    tab.open(page)
    assert not tab.evaluate(VISIBLE % "table")
    choose(tab, "low")
    assert tab.evaluate("document.getElementById('bar').innerText").startswith("1 chosen: choose another one")
    choose(tab, "high")
    head, *rows = tab.evaluate(COMPARED)
    assert sorted(head[1:]) == ["high", "low"]
    values = {row[0]: dict(zip(head[1:], row[1:])) for row in rows}
    assert values["model.head.kind"] == {"high": "bert", "low": "average"}
    assert not {"name", "seed", "runs", "model.modality"} & set(values)
    assert "model.head.layers" not in values  # the default, which only one of the heads has
    assert tab.evaluate(REASONS) == []
    command = tab.evaluate("document.querySelector('#compare pre').textContent")
    assert set(command.split()[2:]) == {str(page.parent / name) for name in ("low", "high")}
    choose(tab, "other", "new")
    told = set(tab.evaluate(REASONS))
    assert any(line.startswith("Not comparable: different data sets: ") and NOISE in line for line in told)
    assert "Not comparable: no scores: new" in told
    assert not tab.evaluate(VISIBLE % "pre")
    choose(tab, "cut")
    assert "The settings of cut are unknown." in tab.evaluate("document.getElementById('compare').innerText")
    tab.evaluate("document.querySelector('#bar button').click()")
    assert not tab.evaluate(VISIBLE % "table")
    assert tab.complaints() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_four_widths_and_contrast(tab, page, scheme) -> None:
    tab.media(scheme=scheme)
    for width in (390, 838, 1200, 1920):
        tab.size(width, 900, mobile=width < 500)
        tab.open(page)
        choose(tab, "low", "high", "other")
        tab.evaluate(OPEN)
        assert tab.complaints() == []
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        if width >= 1200:
            assert tab.evaluate(
                "[...document.querySelectorAll('.scroll')].every(one => one.scrollWidth <= one.clientWidth + 1)"
            )
    least, text = tab.evaluate(CONTRAST)
    assert least >= 4.5, text
    tab.media()


def test_paper_shows_every_run(tab, page) -> None:
    tab.media()
    tab.size(1200, 900)
    tab.open(page)
    names = tab.evaluate(
        "[...document.querySelectorAll('#runs tbody b, #runs h2')].map(one => one.textContent)"
    )
    for paper in ((8.27, 11.69), (8.5, 11.0)):
        printed = "".join(pdf_text(tab.pdf(paper)).split())
        assert [name for name in names if "".join(name.split()) not in printed] == []


def test_list_without_script(tab, page) -> None:
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(page)
        assert len(tab.evaluate(SHOWN)) == 6
        assert not tab.evaluate("document.querySelector('.filter').checkVisibility()")
        assert tab.evaluate("document.querySelectorAll('#runs input[type=checkbox]').length") == 0
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)
