"""Links, pictures and code blocks of the documentation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from html import unescape
from pathlib import Path

import pictures
import pytest

COLUMNS = 88
"""characters of a code block in GitHub's column"""
GUIDES = ("quickstart", "datasets", "training", "features", "studies", "streaming", "compression", "export")
GUIDES += ("report", "statistics", "models/README", "models/late-temporal")
BYTES = 60_000


@pytest.fixture(scope="module")
def pages(repository: Path) -> list[Path]:
    folders = ("docs", "eval", "weights")
    found = [path for folder in folders for path in sorted((repository / folder).rglob("*.md"))]
    found = [path for path in found if path.parent.name != "site"]  # lists of pages for Sphinx
    return [repository / "README.md", repository / "CONTRIBUTING.md", *found]


def parts_of(page: Path) -> Iterator[tuple[int, str, bool]]:
    """Yield each line with its number and whether it is code (fenced, or indented after an empty line)."""
    fenced, before, indented = False, "", False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = line.lstrip().startswith("```")
        indented = line.startswith("    ") and (indented or not before.strip()) and "- " not in line[:8]
        yield number, line, not fence and (fenced or indented)
        fenced, before = fenced ^ fence, line


def prose(page: Path) -> str:
    """Return a page without code."""
    lines = (line for _, line, code in parts_of(page) if not code and not line.lstrip().startswith("```"))
    return re.sub(r"`[^`\n]*`", "", "\n".join(lines))


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes from headings, and the ids in a page."""
    headings = [
        line.lstrip("#").strip() for _, line, code in parts_of(page) if line.startswith("#") and not code
    ]
    slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return {*slugs, *re.findall(r'<a id="([\w-]+)">', page.read_text(encoding="utf-8"))}


def test_code_fits_the_column_of_github(pages: list[Path]) -> None:
    long = [
        f"{page.name}:{number}: {len(line)}"
        for page in pages
        for number, line, code in parts_of(page)
        if code and len(line) > COLUMNS
    ]
    assert not long, f"break these lines with \\, or move their comments above them: {long}"


def test_links_and_anchors_resolve(pages: list[Path]) -> None:
    broken = []
    for page in pages:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", prose(page)):
            there = page.parent / target if target else page
            if not there.exists() or (anchor and anchor not in anchors(there.resolve())):
                broken.append(f"{page.name}: {target}#{anchor}")
    assert not broken, broken


def test_every_condition_of_data_has_a_test_that_exists(repository: Path) -> None:
    page = (repository / "docs" / "conditions.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and "report | test" not in line]
    assert len(rows) >= 42
    for row in rows:
        named = re.findall(r"`(tests/[^`]+)` `(\w+)`", row)
        assert named, row
        for path, name in named:
            assert f"def {name}(" in (repository / path).read_text(), row


def test_pictures_exist_and_are_described(pages: list[Path]) -> None:
    shown = {page: re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", prose(page)) for page in pages}
    bad = [
        f"{page.name}: {path}"
        for page, found in shown.items()
        for words, path in found
        if not (page.parent / path).is_file() or len(words) < 40
    ]
    assert not bad, f"a picture needs a file and a text that says what it shows: {bad}"
    used = {(page.parent / path).resolve() for page, found in shown.items() for _, path in found}
    docs = pages[0].parent / "docs"
    assert {path.resolve() for pattern in ("*.png", "pictures/*") for path in docs.glob(pattern)} <= used


@pytest.mark.parametrize("guide", GUIDES)
def test_every_guide_has_a_picture_and_explains_its_terms(repository: Path, guide: str) -> None:
    page = repository / "docs" / f"{guide}.md"
    text = page.read_text(encoding="utf-8")
    assert "![" in text
    assert "glossary.md#" in text


def test_the_glossary_leads_to_pages_and_is_read(repository: Path, pages: list[Path]) -> None:
    glossary = repository / "docs" / "glossary.md"
    entries = re.split(r"\n- ", prose(glossary))[1:]
    assert len(entries) > 40
    shape = re.compile(r'<a id="[\w-]+"></a>\*\*[^*]+\*\*: .+\.\s+See\s+\[[^\]]+\]\([^)]+\)\.', re.DOTALL)
    assert not [entry for entry in entries if not shape.match(entry)]
    assert "docs/glossary.md#source" in pages[0].read_text(encoding="utf-8")


def test_diagrams_are_what_the_script_draws(tmp_path: Path) -> None:
    pictures.main(tmp_path)
    drawn, committed = (
        {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.svg")}
        for folder in (tmp_path, pictures.FOLDER)
    )
    assert drawn == committed, "run `python eval/documentation/pictures.py`"
    for text in drawn.values():
        assert len(text.encode()) < BYTES
        assert "prefers-color-scheme:dark" in text
        assert not re.search(r"(?<!xmlns=\")https?://|<image|<script", text)


def test_the_worked_example_has_the_numbers_of_its_picture(repository: Path) -> None:
    docs = repository / "docs"
    texts = re.findall(
        r"<text[^>]*>([^<]+)</text>", (docs / "pictures" / "statistics.svg").read_text("utf-8")
    )
    titles = [unescape(text) for text in texts if "[" in text]
    assert [title[:2] for title in titles] == ["A:", "B:", "A "]
    page = (docs / "statistics.md").read_text(encoding="utf-8").partition("## A worked example")[2]
    for number in re.findall(r"\d+\.\d+", " ".join(titles)):
        assert number in page.partition("\n## ")[0]


def test_the_readme_says_that_digits_depend_on_the_machine(pages: list[Path]) -> None:
    after = pages[0].read_text(encoding="utf-8").partition("│ fused (l2) │")[2]
    assert "On another CPU, the digits can differ" in after.partition("\n## ")[0]
