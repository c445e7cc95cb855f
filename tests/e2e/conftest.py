"""A browser tab for the tests of pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.browser import NAMES, Browser, browser, find_chromium


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip(
            f"no Chromium: none of {', '.join(NAMES)} is on the path (Debian: apt-get install chromium)"
        )
    with browser(program, tmp_path_factory.mktemp("profile")) as made:
        yield made
