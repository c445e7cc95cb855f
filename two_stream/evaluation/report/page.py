"""Parts of report pages: templates, and figures as inline SVG with colours for the light and dark themes.

Matplotlib draws with the colours of the light theme, which are then replaced by CSS variables of the page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from two_stream.errors import printable
from two_stream.evaluation.scores.fusion import Curve
from two_stream.evaluation.scores.metrics import ClassRow
from two_stream.evaluation.scores.words import percent
from two_stream.runtime import plotting
from two_stream.runtime.plotting import INK, MUTED, SERIES, SURFACE, plain_figures
from two_stream.runtime.text import shown_lines

_TEMPLATES = Path(__file__).parent / "templates"
_VARIABLES = {color: f"var(--{name})" for name, color in plotting.LIGHT.items()}
_STYLE = {"axes.facecolor": "none", "figure.facecolor": "none"}
WIDTH = 5.2
"""width in inches; narrow figures keep text readable on a phone"""
_NUMBERED = 16
"""largest number of classes for which a confusion matrix shows counts"""
_LABELLED = 60
"""largest number of classes for which the axes show class names"""


def page_templates(*folders: Path) -> jinja2.Environment:
    """Return a template environment that searches `folders` and then the run report's templates.

    Missing values are errors.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, _TEMPLATES]),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, cell=markdown_cell)
    return environment


def _shown(value: object) -> object:
    """Remove control characters from text values, but not from markup."""
    return shown_lines(value) if type(value) is str else value


def markdown_cell(value: object) -> str:
    """Escape characters that would end a Markdown table cell or start markup."""
    text = printable(" ".join(str(value).split()))
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, f"\\{mark}")
    return text


@contextmanager
def drawing(
    height: float, panels: int = 1, *, columns: int = 1, width: float = WIDTH, **extra: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Context manager that yields a figure in the report's style and a list of its axes (row by row); see `to_svg`.

    Sizes are in inches. `panels` is the number of axes; it is rounded up to complete rows of `columns`. `extra` is
    passed to `Figure.subplots`.
    """
    with plain_figures(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(-(-panels // columns), columns, squeeze=False, **extra)
        yield figure, list(axes.flat)


def to_svg(figure: Figure, label: str) -> str:
    """Return a figure as an `<svg>` element with theme colours, without an XML prologue and without a fixed size."""
    buffer = io.StringIO()
    with plain_figures({**_STYLE, "svg.hashsalt": label}):
        metadata = dict.fromkeys(("Date", "Creator", "Type", "Format"))
        figure.savefig(buffer, format="svg", metadata=metadata)
    text = shown_lines(buffer.getvalue())
    text = text[text.index("<svg") :]
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"font: (?:normal )*([\d.]+)px [^;\"]*", r"font: \1px var(--font)", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", text)
    safe = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'<svg role="img" aria-label="{safe}"' + text.removeprefix("<svg")


def learning_curves(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> str | None:
    """Draw loss, accuracy and learning rate of each run over the epochs; None if there is nothing to draw.

    `histories` contains rows for each stream, with `epoch` and any of `train_loss`, `val_loss`, `train_top1`,
    `val_top1`, `val_map` and `lr`.
    """
    panels = [
        ("loss", ("train_loss", "val_loss")),
        ("top-1 (%)", ("train_top1", "val_top1")),
        ("mAP (%)", ("val_map",)),
        ("learning rate", ("lr",)),
    ]
    known = {key for rows in histories.values() for row in rows for key in row}
    present = [(title, keys) for title, keys in panels if known.intersection(keys)]
    if not present:
        return None
    with drawing(1.9 * len(present) + 0.3, len(present), sharex=True) as (figure, axes):
        for axis, (title, keys) in zip(axes, present):
            axis.set_title(title)
            for color, (name, rows) in zip(SERIES, histories.items()):
                for key in keys:
                    _curve(axis, rows, key, name, color)
            if title == "learning rate":
                axis.set_yscale("log")
        axes[0].legend(ncols=2, loc="upper right")
        axes[-1].set_xlabel("epoch")
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        return to_svg(figure, "learning curves")


def _curve(axis: Axes, rows: Sequence[Mapping[str, float]], key: str, name: str, color: str) -> None:
    points = [(row["epoch"], row[key]) for row in rows if key in row and "epoch" in row]
    if not points:
        return
    scale = 100.0 if key.endswith(("top1", "map")) else 1.0
    trained = key.startswith("train")
    label = f"{name}, {'training' if trained else 'validation'}" if key != "lr" else name
    axis.plot(
        [epoch for epoch, _ in points],
        [scale * value for _, value in points],
        color=color,
        linestyle=(0, (4, 2)) if trained else "-",
        linewidth=1.2 if trained else 1.8,
        marker="o" if len(points) == 1 else None,
        label=label,
    )


def confusion(counts_KK: NDArray[np.int64], names: Sequence[str]) -> str:
    """Draw a confusion matrix.

    Rows are true classes, columns are predicted classes, and shades show fractions of the true class's videos.
    """
    classes = len(names)
    side = min(WIDTH, 1.6 + 0.5 * classes)
    with drawing(side) as (figure, (axis,)):
        totals = counts_KK.sum(axis=1, keepdims=True)
        shares = np.divide(counts_KK, totals, out=np.zeros(counts_KK.shape), where=totals > 0)
        cells = [(int(row), int(column)) for row, column in np.argwhere(counts_KK > 0)]
        squares = [Rectangle((column - 0.47, row - 0.47), 0.94, 0.94) for row, column in cells]
        tints = [to_rgba(SERIES[2], 0.12 + 0.88 * float(shares[cell])) for cell in cells]
        axis.add_collection(PatchCollection(squares, facecolors=tints, edgecolors="none"))
        if classes <= _NUMBERED:
            for row, column in cells:
                color = SURFACE if shares[row, column] > 0.75 else INK
                text = str(counts_KK[row, column])
                axis.text(column, row, text, ha="center", va="center", color=color)
        axis.set(xlim=(-0.5, classes - 0.5), ylim=(classes - 0.5, -0.5), xlabel="predicted", ylabel="true")
        axis.set_aspect("equal")
        axis.grid(visible=False)
        if classes <= _LABELLED:
            size = 8.0 if classes <= 20 else 4.5
            axis.set_xticks(range(classes), [short(name) for name in names], rotation=90, fontsize=size)
            axis.set_yticks(range(classes), [short(name) for name in names], fontsize=size)
        return to_svg(figure, "confusion matrix")


def class_bars(streams: Mapping[str, Sequence[ClassRow]], measure: str = "accuracy") -> str:
    """Draw the accuracy (or another metric) of each class: bars for the last stream (the fusion), dots for the rest."""
    *others, (name, rows) = list(streams.items())
    order = sorted(range(len(rows)), key=lambda index: (-(rows[index].accuracy or 0.0), index))
    place = np.arange(len(order))
    with drawing(0.9 + max(0.13, min(0.3, 7 / len(order))) * len(order)) as (figure, (axis,)):
        values = [100 * (rows[index].accuracy or 0.0) for index in order]
        color = SERIES[2] if others else SERIES[0]
        axis.barh(place, values, height=0.62, color=color, alpha=0.55, label=name)
        for nth, (tint, (other, cells)) in enumerate(zip(SERIES, others)):
            shift = 0.36 * ((nth + 0.5) / len(others) - 0.5)  # keeps equal values visible
            axis.plot(
                [100 * (cells[index].accuracy or 0.0) for index in order],
                place + shift,
                "o" if tint == SERIES[0] else "D",
                color=tint,
                markersize=4.5,
                markeredgecolor=SURFACE,
                markeredgewidth=0.8,
                label=other,
                clip_on=False,
            )
        size = 8.5 if len(order) <= 30 else 6.0
        labels = [f"{short(rows[index].name)} ({rows[index].videos})" for index in order]
        axis.set_yticks(place, labels, fontsize=size)
        axis.set(xlim=(0, 100), ylim=(len(order) - 0.4, -0.6), xlabel=f"{measure} (%), videos in brackets")
        axis.grid(visible=False, axis="y")
        if others:
            figure.legend(loc="outside upper left", ncols=len(others) + 1)
        return to_svg(figure, f"{measure} per class")


def fusion_curve(curve: Curve) -> str:
    """Draw the accuracy over the weight of the first stream and mark the chosen weight."""
    with drawing(2.5) as (figure, (axis,)):
        axis.plot(curve.shares, [100 * value for value in curve.accuracies], color=SERIES[2])
        axis.axvline(curve.chosen, color=MUTED, linewidth=1.0, linestyle=(0, (3, 3)))
        axis.plot([curve.chosen], [100 * curve.accuracy], "o", color=SERIES[2], markersize=6)
        right = curve.chosen < 0.6
        axis.annotate(
            f"chosen w = {curve.chosen:.2f}",
            (curve.chosen, 100 * min(curve.accuracies)),
            xytext=(6 if right else -6, 4),
            textcoords="offset points",
            ha="left" if right else "right",
            color=INK,
        )
        first, second = curve.names
        axis.set(xlim=(0, 1), xlabel=f"weight w of {first} (0: {second} alone, 1: {first} alone)")
        axis.set_title(f"{curve.metric} (%) on the holdout part, {curve.videos} videos, rule {curve.rule}")
        axis.margins(y=0.12)
        return to_svg(figure, "accuracy over the fusion weight")


def short(name: str, limit: int = 22) -> str:
    """Shorten a name to `limit` characters for a label in a figure."""
    text = printable(name)
    return text if len(text) <= limit else text[: limit - 1] + "…"
