"""The report of a study: a self-contained HTML page with figures, and its content as Markdown, CSV, JSON and LaTeX.

Figures write names above their rows, because long names do not fit the width of a phone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from two_stream.errors import ScoreError, SettingsError
from two_stream.evaluation.pictures.cost_figure import CostPoint, cost_height, draw_costs
from two_stream.evaluation.report.page import (
    DEEPEST,
    WIDTH,
    IntervalRow,
    Top,
    accuracy_rows,
    add_value,
    dots_note,
    draw_intervals,
    drawing,
    intervals_height,
    page_templates,
    to_svg,
)
from two_stream.evaluation.scores.words import Table, TableCell, percent
from two_stream.runtime.files import write_json, write_text
from two_stream.runtime.plotting import INK, MUTED, SERIES, SURFACE, shorten
from two_stream.runtime.text import signed_number
from two_stream.studies.report import tables
from two_stream.studies.report.tables import number
from two_stream.studies.statistics.results import Comparison, StudyResult, VariantResult, Xray, XrayRow

MORE, LESS, SAME = SERIES[2], SERIES[1], MUTED
"""Colours of a gain, a loss, and no difference."""
MOST_CLASSES = 20
"""Largest number of classes for which a figure shows all classes."""
_HALF = MOST_CLASSES // 2
_NUMBERED = 12
"""Largest number of classes for which a difference of confusion matrices shows numbers."""


def forest(comparisons: Sequence[Comparison], level: float = 0.95) -> str:
    """Draw each difference with its interval.

    Significant differences have filled marks. If there are several families of comparisons, their names are shown.
    """
    families = list(dict.fromkeys(one.family for one in comparisons))
    rows = []
    for family in families:
        if len(families) > 1:
            rows.append(IntervalRow(family))
        rows += [
            IntervalRow(f"{one.first} − {one.second}", one.difference, _colour(one), one.significant)
            for one in comparisons
            if one.family == family
        ]
    with drawing(intervals_height(rows)) as (figure, (axis,)):
        draw_intervals(axis, rows, "points", (0.0, ""))
        axis.set_xlabel(f"difference in points, {100 * level:g} % interval")
        return to_svg(figure, "differences between variants with their intervals")


def _colour(comparison: Comparison) -> str:
    if not comparison.significant:
        return SAME
    return MORE if comparison.difference.value > 0 else LESS


def xray_figures(xray: Xray, metric: str) -> list[str]:
    """Draw the accuracy of networks under changes; networks with the same changes share a figure, one column each."""
    networks: dict[str, dict[str, XrayRow]] = {}
    for row in xray.rows:
        networks.setdefault(row.network, {})[row.change] = row
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, rows in networks.items():
        groups.setdefault(tuple(rows), []).append(name)
    return [
        _xray_figure(changes, {name: networks[name] for name in names}, metric)
        for changes, names in groups.items()
    ]


def _xray_figure(changes: Sequence[str], networks: Mapping[str, Mapping[str, XrayRow]], metric: str) -> str:
    with drawing(0.9 + 0.27 * len(changes)) as (figure, (axis,)):
        for column, (name, rows) in enumerate(networks.items()):
            for line, change in enumerate(changes):
                row = rows[change]
                gap = 0.0 if row.difference is None else row.difference.value
                tint = to_rgba(
                    MORE if gap > 0 else LESS, DEEPEST * min(1.0, abs(gap) / 0.6) if row.significant else 0
                )
                axis.add_patch(
                    Rectangle((column - 0.48, line - 0.46), 0.96, 0.92, facecolor=tint, edgecolor="none")
                )
                weight = "bold" if row.difference is None or row.significant else "normal"
                colour = INK if weight == "bold" else MUTED
                text = f"{100 * row.accuracy.value:.0f}"
                axis.text(
                    column, line, text, ha="center", va="center", color=colour, weight=weight, fontsize=8.0
                )
                add_value(axis, column, line, f"{name}, {change}: {metric} {percent(row.accuracy)} %")
        axis.set(xlim=(-0.5, len(networks) - 0.5), ylim=(len(changes) - 0.5, -0.5))
        axis.set_xticks(
            range(len(networks)), [shorten(name, 30) for name in networks], rotation=90, fontsize=8.0
        )
        axis.set_yticks(range(len(changes)), changes, fontsize=8.0)
        axis.xaxis.tick_top()
        axis.grid(visible=False)
        for spine in axis.spines.values():
            spine.set_visible(False)
        return to_svg(figure, f"{metric} under changes of the clips: {', '.join(networks)}")


def variant_rows(result: StudyResult) -> list[IntervalRow]:
    """Return the rows of the accuracy figure: each variant with its sources, runs and published value."""
    return [
        IntervalRow(
            one.name,
            one.accuracy,
            sources=one.sources,
            runs=[
                run.accuracy for run in result.runs if run.variant == one.name and run.accuracy is not None
            ],
            published=None if one.published is None else one.published.value,
        )
        for one in result.variants
    ]


def class_differences(comparison: Comparison, names: Sequence[str]) -> str | None:
    """Draw the difference for each class, in descending order; with many classes, only the largest gains and losses.

    Returns None if no class has a difference other than 0.
    """
    known = [(value, place) for place, value in enumerate(comparison.per_class) if value is not None]
    if not any(value for value, _ in known):
        return None
    order = sorted(known, key=lambda item: (-item[0], item[1]))
    if len(order) > MOST_CLASSES:
        order = order[:_HALF] + order[-_HALF:]
    values = [100 * value for value, _ in order]
    with drawing(0.21 * len(order) + 0.7) as (figure, (axis,)):
        colors = [MORE if value > 0 else LESS for value in values]
        axis.barh(range(len(order)), values, height=0.66, color=colors, alpha=0.8)
        axis.axvline(0, color=INK, linewidth=1.0)
        for at, (value, place) in enumerate(order):
            add_value(axis, 100 * value, at, f"{names[place]}: {signed_number(100 * value)} points")
        axis.set_yticks(range(len(order)), [shorten(names[place]) for _, place in order], fontsize=8.0)
        axis.set(ylim=(len(order) - 0.4, -0.6), xlabel="difference in points")
        reach = 1.05 * max(1.0, *(abs(value) for value in values))
        axis.set_xlim(-reach, reach)
        axis.grid(visible=False, axis="y")
        return to_svg(figure, f"difference by class, {comparison.first} minus {comparison.second}")


def confusion_difference(counts_KK: NDArray[np.float64], names: Sequence[str], label: str) -> str:
    """Draw the difference of two confusion matrices `(K, K)`. Rows are true classes, columns are predicted classes.

    Colours show which of the two matrices has more videos. `label` is the alternative text of the figure.
    """
    classes = len(names)
    most = max(1e-9, float(np.abs(counts_KK).max()))
    with drawing(min(WIDTH, 1.7 + 0.36 * classes)) as (figure, (axis,)):
        cells = [(int(row), int(column)) for row, column in np.argwhere(np.abs(counts_KK) > 0.02 * most)]
        squares = [Rectangle((column - 0.47, row - 0.47), 0.94, 0.94) for row, column in cells]
        tints = [
            to_rgba(
                MORE if counts_KK[cell] > 0 else LESS, 0.06 + DEEPEST * abs(float(counts_KK[cell])) / most
            )
            for cell in cells
        ]
        axis.add_collection(PatchCollection(squares, facecolors=tints, edgecolors="none"))
        for row, column in cells:
            text = (
                f"{names[row]}, predicted as {names[column]}: {signed_number(counts_KK[row, column])} videos"
            )
            add_value(axis, column, row, text)
        if classes <= _NUMBERED:
            for row, column in cells:
                text = signed_number(counts_KK[row, column], 0)
                if text != "0":
                    axis.text(column, row, text, ha="center", va="center", color=INK, fontsize=8.0)
        axis.set(xlim=(-0.5, classes - 0.5), ylim=(classes - 0.5, -0.5), xlabel="predicted", ylabel="true")
        axis.set_aspect("equal")
        axis.grid(visible=False)
        size = 8.0 if classes <= _NUMBERED else 6.5
        axis.set_xticks(range(classes), [shorten(name) for name in names], rotation=90, fontsize=size)
        axis.set_yticks(range(classes), [shorten(name) for name in names], fontsize=size)
        return to_svg(figure, label)


def learning(histories: Mapping[str, Sequence[Sequence[Mapping[str, float]]]]) -> str | None:
    """Draw validation metrics over the epochs: thin lines for runs, a thick line for the mean of a variant's runs.

    If there are only a few variants, all are drawn in the same axes. Otherwise, each variant has its own axes, with the
    means of the other variants in the background. The rows of a run have `epoch` and any of `val_loss`, `val_top1` and
    `val_map`. The result is None if no row has any of these metrics.
    """
    labels = {
        "val_top1": "validation top-1 (%)",
        "val_map": "validation mAP (%)",
        "val_loss": "validation loss",
    }
    rows = [row for runs in histories.values() for run in runs for row in run]
    keys = [key for key in labels if any(key in row for row in rows)]
    if not keys:
        return None
    if len(histories) > len(SERIES):
        return _small_multiples(histories, keys[0], labels[keys[0]])
    keys = [key for key in keys if key != "val_top1" or "val_map" not in keys]
    with drawing(2.2 * len(keys) + 0.4, len(keys), sharex=True) as (figure, axes):
        for axis, key in zip(axes, keys):
            axis.set_title(labels[key])
            for color, (name, runs) in zip(SERIES, histories.items()):
                _runs(axis, runs, key, color, name)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[-1].set_xlabel("epoch")
        handles, texts = axes[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside upper left", ncols=2 if len(texts) > 1 else 1)
        return to_svg(figure, "learning curves of the variants")


def _small_multiples(
    histories: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], key: str, label: str
) -> str:
    across = 2
    down = -(-len(histories) // across)
    with drawing(1.25 * down + 0.5, panels=len(histories), columns=across, sharex=True, sharey=True) as (
        figure,
        axes,
    ):
        for axis, (name, runs) in zip(axes, histories.items()):
            axis.set_title(shorten(name, 30), fontsize=8.5)
            for other in histories.values():
                epochs, means = _mean(other, key)
                axis.plot(epochs, means, color=MUTED, linewidth=0.7, alpha=0.45)
            _runs(axis, runs, key, SERIES[0], name)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        for axis in axes[len(histories) :]:
            axis.set_visible(False)
        figure.supxlabel("epoch", fontsize=9.0, color=MUTED)
        figure.supylabel(label, fontsize=9.0, color=MUTED)
        return to_svg(figure, "learning curves of the variants")


def _runs(axis: Axes, runs: Sequence[Sequence[Mapping[str, float]]], key: str, color: str, name: str) -> None:
    for run in runs if len(runs) > 1 else ():
        epochs, values = _mean([run], key)
        axis.plot(epochs, values, color=color, linewidth=0.7, alpha=0.5)
    epochs, means = _mean(runs, key)
    if not epochs:
        return
    loss = key.endswith("loss")
    best = epochs[int(np.argmin(means) if loss else np.argmax(means))]
    for epoch, mean in zip(epochs, means):
        text = f"{name}, epoch {epoch:g}{', best' if epoch == best else ''}: {mean:.4g}{'' if loss else ' %'}"
        add_value(axis, epoch, mean, text)
    style: dict[str, Any] = {
        "marker": "o",
        "markevery": [epochs.index(best)],
        "markersize": 6,
        "markerfacecolor": SURFACE,
    }
    axis.plot(epochs, means, color=color, linewidth=2.0, label=shorten(name, 32), **style)


def _mean(runs: Sequence[Sequence[Mapping[str, float]]], key: str) -> tuple[list[float], list[float]]:
    """Return the epochs that all runs with values have in common, and the mean value at each epoch."""
    scale = 1.0 if key.endswith("loss") else 100.0
    tables = [
        {row["epoch"]: scale * row[key] for row in run if key in row and "epoch" in row} for run in runs
    ]
    tables = [table for table in tables if table]
    if not tables:
        return [], []
    epochs = sorted(set.intersection(*(set(table) for table in tables)))
    return epochs, [float(np.mean([table[epoch] for table in tables])) for epoch in epochs]


def cost_axes(variants: Sequence[VariantResult]) -> list[tuple[str, list[CostPoint]]]:
    """Return the axis label and the points for each cost that is known for at least two variants.

    Multiply-adds are per video if the number of views is known for all variants, otherwise per view.
    """
    costs = [(variant, variant.cost) for variant in variants if variant.cost is not None]
    whole = all(cost.views for _, cost in costs)
    unit = f"G multiply-adds per {'video' if whole else 'view'}"
    found: dict[str, list[CostPoint]] = {unit: [], "milliseconds per view": []}
    for variant, cost in costs:
        operations = cost.multiply_adds * ((cost.views or 1.0) if whole else 1.0) / 1e9
        for label, value in zip(found, (operations, cost.latency_ms), strict=True):
            if value is not None:
                accuracy = variant.accuracy
                found[label].append(
                    CostPoint(shorten(variant.name), value, accuracy.value, accuracy.low, accuracy.high)
                )
    return [(label, points) for label, points in found.items() if len(points) > 1]


def pareto(variants: Sequence[VariantResult], metric: str) -> str | None:
    """Draw accuracy against multiply-adds and against latency, with the Pareto front; None if costs are unknown."""
    shown = cost_axes(variants)
    if not shown:
        return None
    height = cost_height(max(len(points) for _, points in shown))
    with drawing(height * len(shown), len(shown)) as (figure, axes):
        for axis, (label, points) in zip(axes, shown):
            draw_costs(axis, points, height, (SERIES[2], MUTED, INK))
            for point in points:
                text = f"{point.name}: {100 * point.accuracy:.1f} %, {point.cost:.3g} {label}"
                add_value(axis, point.cost, 100 * point.accuracy, text)
            axis.set(xlabel=label, ylabel=f"{metric} (%)")
        return to_svg(figure, f"{metric} against cost")


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


def study_files(out: Path) -> list[Path]:
    """Return the paths of all files that `write_study_report` writes, the page first.

    Raises:
        SettingsError: The file name does not end in .html or .htm.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise SettingsError(
            f"{out}: the page is HTML; expected a file name ending in .html (.json, .md, .csv and .tex "
            "files are written to the same folder)"
        )
    others = [out.with_suffix(suffix) for suffix in (".md", ".csv", ".json", ".tex")]
    return [out, *others, *(out.with_name(f"{out.stem}-{name}.csv") for name in ("comparisons", "xray"))]


def write_study_report(result: StudyResult, out: Path) -> list[Path]:
    """Write a study's report in all formats. Each file is written completely or not at all.

    Args:
        result: The study's result.
        out: Path of the HTML page. Files with the same stem are written to the same folder: `.md`, `.csv` (variants),
            `-comparisons.csv` (if there are comparisons), `-xray.csv` (if there is an X-ray), `.json` (the complete
            result, see `read_result`) and `.tex` (booktabs tables).

    Returns:
        The paths of the written files, the page first.

    Raises:
        SettingsError: The file name does not end in .html or .htm.
    """
    study_files(out)
    environment = page_templates(_TEMPLATES)
    environment.filters["tex"] = escape_tex
    facts = {"result": result, "tables": _tables(result), "level": f"{100 * result.level:g} %"}
    page = environment.get_template("study.html")
    rows = variant_rows(result)
    guess = (result.chance, "guessing") if result.metric == "top-1" else None
    top = Top(
        f"study · {result.name}",
        result.question,
        result.answer,
        result.protocol,
        result.outlook,
        result.notes,
        figure=accuracy_rows(rows, result.metric, guess, f"{result.metric} of the variants")
        if rows
        else None,
        figure_note=dots_note(rows),
        code_version=result.code_version,
        created=result.created,
    )
    changed = [] if result.xray is None else xray_figures(result.xray, result.metric)
    figures = {**_figures(result), "xray": changed}
    write_text(out, page.render(**facts, top=top, figures=figures, classes=class_views(result)))
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
    if result.xray is not None:
        written.append(out.with_name(f"{out.stem}-xray.csv"))
        write_text(written[-1], tables.xray_csv(result.xray))
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
        "costs": tables.costs_table(result) if any(one.cost for one in result.variants) else None,
        "comparisons": tables.comparisons_table(result) if compared else None,
        "mcnemar": tables.mcnemar_table(result) if any(one.mcnemar for one in compared) else None,
        "runs": tables.runs_table(result) if result.runs else None,
        "matrix": tables.fusion_matrix(fusion) if fusion and fusion.pairs else None,
        "pairs": tables.pairs_table(fusion) if fusion and fusion.pairs else None,
        "contributions": tables.contributions_table(result) if fusion and fusion.contributions else None,
        "agreement": tables.agreement_table(fusion) if fusion and fusion.agreement else None,
        "settings": tables.settings_tables(result),
        "xray": tables.xray_table(result) if result.xray else None,
    }


def _figures(result: StudyResult) -> dict[str, str | None]:
    """Return the figures of the report by name, as SVG; a figure without content is None."""
    histories = {one.name: list(one.histories.values()) for one in result.variants if one.histories}
    variants, metric = result.variants, result.metric
    return {
        "forest": forest(result.comparisons, result.level) if result.comparisons else None,
        "pareto": pareto(variants, metric),
        "learning": learning(histories),
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
    """Return a `ClassView` for up to `_PAIRS` comparisons; significant differences come first, then large ones."""
    ordered = sorted(result.comparisons, key=lambda one: (not one.significant, -abs(one.difference.value)))
    views = [_view(result, one) for one in ordered[:_PAIRS]]
    return [view for view in views if view.classes or view.confusion or view.cells]


def _view(result: StudyResult, one: Comparison) -> ClassView:
    names, title = result.class_names, f"{one.first} − {one.second}"
    counts = {variant.name: variant.confusion for variant in result.variants}
    first, second = counts.get(one.first), counts.get(one.second)
    view = ClassView(title, one.verdict, class_differences(one, names))
    if first is None or second is None or first == second:
        return view
    first_KK, second_KK = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if len(names) > MOST_CLASSES:
        return replace(view, cells=_cells(names, one, first_KK, second_KK))
    label = f"difference of confusions, {title}"
    return replace(view, confusion=confusion_difference(first_KK - second_KK, names, label))


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
