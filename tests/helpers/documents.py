"""Reads the pages of the documentation: which pages the site has, and which commands they show."""

from __future__ import annotations

import re
from pathlib import Path


def pages_of(repository: Path, *captions: str) -> list[Path]:
    """Return the pages that the site lists under the captions, in their order; generated pages are left out."""
    index = repository / "docs" / "site" / "index.md"
    trees = re.findall(
        r"```\{toctree\}\n:caption: (.+)\n(?::.*\n)*\n([^`]*)```", index.read_text(encoding="utf-8")
    )
    lines = [line for caption, tree in trees if caption in captions for line in tree.split("\n")]
    names = [re.sub(r".*<(.+)>", r"\1", line) for line in lines]  # `name`, or `title <name>`
    paths = [(index.parent / f"{name}.md").resolve() for name in names]
    return [path for path in paths if path.is_file()]


def commands_in(page: Path) -> list[str]:
    """Return the command lines in the code blocks of a page, without comments and line continuations."""
    blocks = re.findall(r"^```.*?\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    found = [re.sub(r"\s+#\s.*", "", line).strip().removeprefix("!") for line in lines]
    return [line for line in found if re.match(r"(two-stream|torchrun|make|python|pip) ", line)]
