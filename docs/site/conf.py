"""Settings of Sphinx for the documentation site; `make docs` builds it.

Sphinx with MyST reads the Markdown pages where they are, so that they are also readable on GitHub, checks their links,
and makes the reference of Python from docstrings. `eval/documentation/reference.py` generates the reference of
commands, settings and files.
"""

import os
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "eval" / "documentation")]

project = "Two-Stream"
author = "The Two-Stream authors"
copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/site/index"
include_patterns = [
    "docs/*.md",
    "docs/models/*.md",
    "docs/site/*.md",
    "eval/results/*.md",
    "eval/benchmarks/README.md",
    "weights/README.md",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
]
html_theme = "furo"
html_math_renderer = "mathml"
html_title = "Two-Stream"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
myst_enable_extensions = ["attrs_inline", "dollarmath", "html_image"]
myst_heading_anchors = 4
autodoc_typehints = "signature"
default_role = "code"  # of text in single backticks in docstrings
autodoc_member_order = "bysource"
napoleon_google_docstring = True
nitpicky = False
suppress_warnings = ["myst.header"]  # pages may start a section below the first level


def setup(app):
    """Generate the reference pages before they are read."""
    from ipython_pygments_lexers import IPython3Lexer
    from reference import write_reference
    from sphinx.errors import ConfigError

    app.add_lexer("python", IPython3Lexer)  # commands of the notebook start with `!`

    write_reference(Path(__file__).parent)
    app.connect("source-read", _targets)
    if os.environ.get("TRY"):
        if not (ROOT / os.environ["TRY"] / "model.json").is_file():
            raise ConfigError(
                f"TRY={os.environ['TRY']}: expected a folder written by `two-stream export --to web`"
            )
        app.connect("source-read", _link_page)
        app.connect("build-finished", _copy_page)
    app.add_html_math_renderer(
        "mathml", (_formula, None), (_formula, None)
    )  # MathJax would be loaded from a server


def _formula(translator, node):
    """Write a formula as MathML; a wide one scrolls."""
    from docutils.nodes import SkipNode, math_block
    from latex2mathml.converter import convert

    if isinstance(node, math_block):
        translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    else:
        translator.body.append(convert(node.astext()))
    raise SkipNode


def _link_page(app, name, source):
    """Add a link to the page of `two-stream export --to web` that TRY names to the start page."""
    if name == app.config.root_doc:
        link = (
            '<a href="../../try/index.html">Try a network in this browser</a>: no image leaves your computer.'
        )
        source[0] = source[0].replace("\n```{toctree}", f"\n{link}\n\n```{{toctree}}", 1)


def _copy_page(app, error):
    """Copy this page into the site."""
    if error is None:
        shutil.copytree(ROOT / os.environ["TRY"], Path(app.outdir) / "try", dirs_exist_ok=True)


def _targets(app, name, source):
    """Turn what only GitHub understands into what Sphinx understands: targets in HTML, and links to folders."""
    del app
    folder = (ROOT / name).parent

    def without_folder(link):
        return link[1] if (folder / link[2]).is_dir() else link[0]

    text = re.sub(r'<a id="([\w-]+)"></a>', r"[]{#\1}", source[0])
    source[0] = re.sub(r"(?<!!)\[([^\]]+)\]\(([\w./-]+)\)", without_folder, text)
