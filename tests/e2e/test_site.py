"""The documentation site: it builds without a warning, and nothing on its pages is cut off, on a phone either."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.browser import Browser

pytestmark = pytest.mark.integration
CUT = """(() => {
  const found = [], wide = document.documentElement.clientWidth;
  const say = (one, why) => found.push(`${why}: <${one.tagName}> ${one.textContent.trim().slice(0, 60)}`);
  const scrolls = (one) => ['auto', 'scroll'].includes(getComputedStyle(one).overflowX);
  if (document.scrollingElement.scrollWidth > wide) say(document.body, 'the page scrolls to the side');
  for (const one of document.querySelectorAll('article *')) {
    const box = one.getBoundingClientRect();
    let around = one.parentElement;
    while (around && !scrolls(around)) around = around.parentElement;
    if (box.width && !around && (box.right > wide + 1 || box.left < -1)) say(one, 'outside the window');
    if (one.matches('pre, .table-wrapper') && one.scrollWidth > one.clientWidth && !scrolls(one)) say(one, 'cut');
  }
  return found;
})()"""


@pytest.fixture(scope="module")
def site(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, page = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("page")
    for name in ("index.html", "model.json"):
        (page / name).write_text(name)
    flags = ["-q", "-W", "-E", "-c", "docs/site", "-b", "html", ".", str(out)]  # as `make docs`
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *flags],
        cwd=repository,
        env=os.environ | {"TRY": str(page)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out


def test_reference_pages_are_generated_from_the_code(site: Path) -> None:
    words = {"commands": "usage: two-stream auto", "settings": "--train.epochs", "files": "backbone_sha256"}
    words["api"] = "two_stream.api.load_run"
    for page, text in words.items():
        assert text in (site / "docs" / "site" / f"{page}.html").read_text(encoding="utf-8"), page


def test_a_page_of_a_network_is_copied_and_linked(site: Path) -> None:
    assert (site / "try" / "index.html").read_text() == "index.html"
    assert 'href="../../try/index.html"' in (site / "docs" / "site" / "index.html").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("width", [390, 1300])
def test_nothing_is_cut_off(tab: Browser, site: Path, width: int) -> None:
    pages = [page for folder in ("docs", "eval", "weights") for page in (site / folder).rglob("*.html")]
    pages.append(site / "README.html")
    assert len(pages) > 40
    tab.size(width, 844)
    bad = {}
    for page in pages:
        tab.open(page)
        if found := [*tab.evaluate(CUT), *tab.complaints()]:
            bad[str(page.relative_to(site))] = found[:3]
    assert not bad
