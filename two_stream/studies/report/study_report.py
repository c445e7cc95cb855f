"""The report of a study: one self-contained page, and the same as Markdown, CSV, JSON and LaTeX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from two_stream.errors import ScoreError, SettingsError
from two_stream.evaluation.report.page import page_templates
from two_stream.runtime.files import write_json, write_text
from two_stream.studies.report import figures, fusion_tables, outputs, variant_tables
from two_stream.studies.report.class_by_class import class_views
from two_stream.studies.report.pareto import pareto
from two_stream.studies.statistics.results import StudyResult

_TEMPLATES = Path(__file__).parent / "templates"
_BESIDE = (".json", ".md", ".csv", ".tex")


def write_study_report(result: StudyResult, out: Path) -> list[Path]:
    """Write a study's report in every form; each file is whole or absent.

    Args:
        result: What the study says.
        out: The page. Beside it, under its name: `.md`, `.csv` (variants), `-comparisons.csv` (where there are any),
            `.json` (everything; `read_result` reads it back) and `.tex` (a booktabs table).

    Returns:
        The paths, the page first.

    Raises:
        SettingsError: The name is not one of a page.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise SettingsError(
            f"{out}: the page is HTML; give a name in .html ({', '.join(_BESIDE)} are written beside it)"
        )
    environment = page_templates(_TEMPLATES)
    environment.filters["tex"] = outputs.tex
    shown = _tables(result)
    facts = {"result": result, "tables": shown, "level": f"{100 * result.level:g} %"}
    write_text(
        out,
        environment.get_template("study.html").render(
            **facts, figures=_figures(result), classes=class_views(result)
        ),
    )
    markdown, latex = out.with_suffix(".md"), out.with_suffix(".tex")
    write_text(markdown, outputs.tidy(environment.get_template("study.md").render(**facts)))
    write_text(latex, environment.get_template("study.tex").render(**facts))
    written = [out, markdown, latex, out.with_suffix(".csv"), out.with_suffix(".json")]
    write_text(written[3], outputs.variants_csv(result))
    write_json(written[4], _plain(result), indent=None)
    if result.comparisons:
        written.append(out.with_name(f"{out.stem}-comparisons.csv"))
        write_text(written[-1], outputs.comparisons_csv(result))
    return written


def read_result(path: Path) -> StudyResult:
    """Read what `write_study_report` kept as JSON.

    Raises:
        ScoreError: Not such a file; names it and what is wrong.
    """
    try:
        return TypeAdapter(StudyResult).validate_json(path.read_bytes())
    except OSError as error:
        raise ScoreError(
            f"{path}: cannot be read ({error.strerror}); expected the .json of a study's report"
        ) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        where = f" at `{key}`" if key else ""
        raise ScoreError(
            f"{path}: not the .json of a study's report{where}: {first['msg'][0].lower()}{first['msg'][1:]}"
        ) from None


def _plain(result: StudyResult) -> Any:
    """Return a result as JSON takes it; numbers of numpy become Python's."""
    return TypeAdapter(StudyResult).dump_python(
        result, mode="json", warnings=False, fallback=lambda value: np.asarray(value).tolist()
    )


def _tables(result: StudyResult) -> dict[str, Any]:
    """Return every table of the report by name; None where there is nothing to show."""
    fusion = result.fusion
    return {
        "variants": variant_tables.variants_table(result) if result.variants else None,
        "paper": variant_tables.paper_table(result) if result.variants else None,
        "comparisons": variant_tables.comparisons_table(result) if result.comparisons else None,
        "mcnemar": variant_tables.mcnemar_table(result)
        if any(one.mcnemar for one in result.comparisons)
        else None,
        "runs": fusion_tables.runs_table(result) if result.runs else None,
        "matrix": fusion_tables.fusion_matrix(fusion) if fusion and fusion.pairs else None,
        "pairs": fusion_tables.pairs_table(fusion) if fusion and fusion.pairs else None,
        "contributions": fusion_tables.contributions_table(result)
        if fusion and fusion.contributions
        else None,
        "agreement": fusion_tables.agreement_table(fusion) if fusion and fusion.agreement else None,
        "settings": fusion_tables.settings_tables(result),
    }


def _figures(result: StudyResult) -> dict[str, str | None]:
    """Return the figures as SVG; None where there is nothing to draw."""
    single = {
        variant.name: [
            run.accuracy for run in result.runs if run.variant == variant.name and run.accuracy is not None
        ]
        for variant in result.variants
    }
    histories = {
        variant.name: list(variant.histories.values()) for variant in result.variants if variant.histories
    }
    return {
        "forest": figures.forest(result.comparisons, result.level) if result.comparisons else None,
        "accuracies": figures.accuracies(result.variants, single, result.metric, result.chance)
        if result.variants
        else None,
        "pareto": pareto(result.variants, result.metric),
        "learning": figures.learning(histories),
    }
