"""The report of a study: a self-contained HTML page, and its content as Markdown, CSV, JSON and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from two_stream.errors import ScoreError, SettingsError
from two_stream.evaluation.report.page import page_templates
from two_stream.runtime.files import write_json, write_text
from two_stream.studies.report import figures, tables
from two_stream.studies.report.tables import Table, TableCell, number
from two_stream.studies.statistics.results import Comparison, StudyResult

_TEMPLATES = Path(__file__).parent / "templates"
_PAIRS = 12
"""Largest number of comparisons that are shown class by class."""
_CELLS = 15
"""Number of confusions that are listed if there are too many classes for a matrix."""
_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "−": "$-$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "–": "--",
    "…": r"\dots{}",
}
_TEX_MARKS = re.compile("|".join(re.escape(mark) for mark in _TEX))


def write_study_report(result: StudyResult, out: Path) -> list[Path]:
    """Write a study's report in all formats. Each file is written completely or not at all.

    Args:
        result: The study's result.
        out: Path of the HTML page. Files with the same stem are written to the same folder: `.md`, `.csv` (variants),
            `-comparisons.csv` (if there are comparisons), `.json` (the complete result, see `read_result`) and `.tex`
            (a booktabs table).

    Returns:
        The paths of the written files, the page first.

    Raises:
        SettingsError: The file name does not end in .html or .htm.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise SettingsError(
            f"{out}: the page is HTML; expected a file name ending in .html (.json, .md, .csv and .tex "
            "files are written to the same folder)"
        )
    environment = page_templates(_TEMPLATES)
    environment.filters["tex"] = escape_tex
    facts = {"result": result, "tables": _tables(result), "level": f"{100 * result.level:g} %"}
    page = environment.get_template("study.html")
    write_text(out, page.render(**facts, figures=_figures(result), classes=class_views(result)))
    texts = {
        ".md": _tidy(environment.get_template("study.md").render(**facts)),
        ".tex": environment.get_template("study.tex").render(**facts),
        ".csv": tables.variants_csv(result),
    }
    for suffix, text in texts.items():
        write_text(out.with_suffix(suffix), text)
    plain = TypeAdapter(StudyResult).dump_python(
        result, mode="json", warnings=False, fallback=lambda value: np.asarray(value).tolist()
    )
    write_json(out.with_suffix(".json"), plain, indent=None)
    written = [out, *(out.with_suffix(suffix) for suffix in (*texts, ".json"))]
    if result.comparisons:
        written.append(out.with_name(f"{out.stem}-comparisons.csv"))
        write_text(written[-1], tables.comparisons_csv(result))
    return written


def read_result(path: Path) -> StudyResult:
    """Read the JSON file that `write_study_report` wrote.

    Raises:
        ScoreError: The file cannot be read or is not the JSON file of a study's report.
    """
    try:
        return TypeAdapter(StudyResult).validate_json(path.read_bytes())
    except OSError as error:
        raise ScoreError(
            f"{path}: cannot be read ({error.strerror}); expected the .json file of a study's report"
        ) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        where = f" at `{key}`" if key else ""
        raise ScoreError(
            f"{path}: expected the .json file of a study's report, found an error{where}: "
            f"{first['msg'][0].lower()}{first['msg'][1:]}"
        ) from None


def escape_tex(text: object) -> str:
    r"""Escape the special characters of LaTeX. Line breaks become spaces.

    A bracket or star at the start is protected by braces, because LaTeX would read it as an option of the preceding
    `\\`.
    """
    plain = " ".join(str(text).split())
    safe = _TEX_MARKS.sub(lambda found: _TEX[found.group()], plain)
    return "{}" + safe if plain.startswith(("[", "*")) else safe


def _tidy(markdown: str) -> str:
    """Return Markdown without trailing spaces and without repeated empty lines."""
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+$", "", markdown, flags=re.MULTILINE)).strip() + "\n"


def _tables(result: StudyResult) -> dict[str, Any]:
    """Return the tables of the report by name; a table without content is None."""
    fusion, compared = result.fusion, result.comparisons
    return {
        "variants": tables.variants_table(result) if result.variants else None,
        "paper": tables.variants_table(result, "paper") if result.variants else None,
        "comparisons": tables.comparisons_table(result) if compared else None,
        "mcnemar": tables.mcnemar_table(result) if any(one.mcnemar for one in compared) else None,
        "runs": tables.runs_table(result) if result.runs else None,
        "matrix": tables.fusion_matrix(fusion) if fusion and fusion.pairs else None,
        "pairs": tables.pairs_table(fusion) if fusion and fusion.pairs else None,
        "contributions": tables.contributions_table(result) if fusion and fusion.contributions else None,
        "agreement": tables.agreement_table(fusion) if fusion and fusion.agreement else None,
        "settings": tables.settings_tables(result),
    }


def _figures(result: StudyResult) -> dict[str, str | None]:
    """Return the figures of the report by name, as SVG; a figure without content is None."""
    single = {
        variant.name: [
            run.accuracy for run in result.runs if run.variant == variant.name and run.accuracy is not None
        ]
        for variant in result.variants
    }
    histories = {one.name: list(one.histories.values()) for one in result.variants if one.histories}
    variants, metric = result.variants, result.metric
    return {
        "forest": figures.forest(result.comparisons, result.level) if result.comparisons else None,
        "accuracies": figures.accuracies(variants, single, metric, result.chance) if variants else None,
        "pareto": figures.pareto(variants, metric),
        "learning": figures.learning(histories),
    }


@dataclass(frozen=True)
class ClassView:
    """A comparison of two variants, class by class."""

    title: str
    verdict: str
    classes: str | None
    confusion: str | None = None
    """SVG of the difference of the confusion matrices, if there are few classes"""
    cells: Table | None = None
    """table of the confusions that differ most, if there are many classes"""


def class_views(result: StudyResult) -> list[ClassView]:
    """Return a `ClassView` for each comparison; significant differences come first, then large ones."""
    ordered = sorted(result.comparisons, key=lambda one: (not one.significant, -abs(one.difference.value)))
    views = [_view(result, one) for one in ordered[:_PAIRS]]
    return [view for view in views if view.classes or view.confusion or view.cells]


def _view(result: StudyResult, one: Comparison) -> ClassView:
    names, title = result.class_names, f"{one.first} − {one.second}"
    counts = {variant.name: variant.confusion for variant in result.variants}
    first, second = counts.get(one.first), counts.get(one.second)
    view = ClassView(title, one.verdict, figures.class_differences(one, names))
    if first is None or second is None:
        return view
    first_KK, second_KK = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if len(names) > figures.MOST_CLASSES:
        return replace(view, cells=_cells(names, one, first_KK, second_KK))
    label = f"difference of confusions, {title}"
    return replace(view, confusion=figures.confusion_difference(first_KK - second_KK, names, label))


def _cells(
    names: Sequence[str], one: Comparison, first_KK: NDArray[np.float64], second_KK: NDArray[np.float64]
) -> Table:
    """Return a table of the off-diagonal confusions that differ most."""
    gap_KK = first_KK - second_KK
    wrong = np.where(np.eye(len(gap_KK), dtype=bool), 0.0, gap_KK)
    order = np.argsort(-np.abs(wrong), axis=None, kind="stable")[:_CELLS]
    rows = []
    for true, predicted in (divmod(place, len(gap_KK)) for place in order.tolist()):
        if not wrong[true, predicted]:
            break
        a, b = float(first_KK[true, predicted]), float(second_KK[true, predicted])
        classes = [TableCell(names[place], names[place]) for place in (true, predicted)]
        rows.append([*classes, number(a), number(b), number(a - b, signed=True)])
    return Table(
        "Confusions that differ most, in videos (mean over runs).",
        ["true", "predicted", one.first, one.second, "difference"],
        [False, False, True, True, True],
        rows,
    )
