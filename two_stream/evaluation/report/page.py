"""Parts of report pages: the common template, tables, and figures as inline SVG for the light and dark themes.

Every page extends `page.html`, which starts with the answer, see `Top`. Matplotlib draws with the colours of the light
theme, which are then replaced by CSS variables of the page. Figures contain their values as data. The page
shows the value nearest to the pointer, and the arrow keys step through the values.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path
from typing import Any, cast

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
from two_stream.evaluation.scores.statistics import Interval
from two_stream.evaluation.scores.words import Table, minus, percent, sentence, text_table
from two_stream.runtime import plotting
from two_stream.runtime.plotting import INK, MUTED, SERIES, SURFACE, plain_figures, shorten
from two_stream.runtime.text import shown_lines, signed_number

_TEMPLATES = Path(__file__).parent / "templates"
_VARIABLES = {color: f"var(--{name})" for name, color in plotting.LIGHT.items()}
_STYLE = {"axes.facecolor": "none", "figure.facecolor": "none"}
WIDTH = 4.5
"""width in inches; it fits a phone, so that the text is not scaled down"""
_ROW = 0.4
"""height in inches of a row of `draw_intervals`"""
_LETTERS = 58
"""largest number of characters of a name above a row"""
_NUMBERED = 16
"""largest number of classes for which a confusion matrix shows counts"""
_LABELLED = 60
"""largest number of classes for which the axes show class names"""
DEEPEST = 0.42
"""opacity of the darkest shade of a cell; text on it stays readable on light and dark pages"""
_CONFUSIONS = 30
"""number of confusions in the table behind a confusion matrix that is too large to be shown as a table"""


@dataclass(frozen=True)
class Top:
    """The top of a page: the answer, its uncertainty, and what more data would show."""

    kicker: str
    """kind of the page, above the title"""
    title: str
    answer: str
    protocol: str
    outlook: str = ""
    """what more data would show"""
    notes: Sequence[str] = ()
    """caveats"""
    headline: Mapping[str, str] | None = None
    """`value`, `metric`, `name`, `interval`, `correct` and `chance` of the main number"""
    figure: str | None = None
    """SVG"""
    figure_note: str = ""
    code_version: str = ""
    created: str = ""
    """time of the page or of its newest scores, in ISO format"""


def page_templates(*folders: Path) -> jinja2.Environment:
    """Return a template environment that searches `folders` and then the templates of this package.

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
    environment.globals.update(LIGHT=plotting.LIGHT, DARK=plotting.DARK, css=_css)
    environment.filters.update(percent=percent, cell=markdown_cell, minus=minus, sections=_sections)
    environment.filters.update(minute=_minute, breakable=_breakable, sentence=sentence)
    return environment


def _shown(value: object) -> object:
    """Remove control characters from text values, but not from markup."""
    return shown_lines(value) if type(value) is str else value


def _css(theme: Mapping[str, str]) -> str:
    """Return a theme as declarations of CSS variables."""
    return " ".join(f"--{name}: {color};" for name, color in theme.items())


def _sections(content: str) -> list[tuple[str, str]]:
    """Return the id and the heading of each section of a page."""
    found = re.findall(
        r'<section id="([^"]+)"[^>]*>\s*<h2>(.*?)\s*(?:<small>.*?</small>)?</h2>', content, re.DOTALL
    )
    return [(name, unescape(title)) for name, title in found]


def _minute(time: str) -> str:
    """Shorten an ISO time to the minute."""
    return time[:16].replace("T", " ")


def _breakable(text: str) -> list[str]:
    """Split a table cell's text where a line may break: after `.`, `/` or `_` inside a word."""
    return re.split(r"(?<=[^\W\d][./_])(?=[^\W\d]{3})", minus(shown_lines(text)))


def markdown_cell(value: object) -> str:
    """Escape characters that would end a Markdown table cell or start markup."""
    text = printable(" ".join(str(value).split()))
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, f"\\{mark}")
    return text


class _Drawing(Figure):
    """A figure with the values that the page shows: axes, position in their data coordinates, and text."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.values: list[tuple[Axes, float, float, str]] = []


@contextmanager
def drawing(
    height: float, panels: int = 1, *, columns: int = 1, width: float = WIDTH, **extra: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Context manager that yields a figure in the style of the pages and a list of its axes (row by row); see `to_svg`.

    Sizes are in inches. `panels` is the number of axes; it is rounded up to complete rows of `columns`. `extra` is
    passed to `Figure.subplots`.
    """
    with plain_figures(_STYLE):
        figure = _Drawing(figsize=(width, height), layout="constrained")
        axes = figure.subplots(-(-panels // columns), columns, squeeze=False, **extra)
        yield figure, list(axes.flat)


def add_value(axis: Axes, x: float, y: float, text: str) -> None:
    """Add a value that the page shows when the pointer is near `(x, y)`, in data coordinates."""
    cast(_Drawing, axis.figure).values.append((axis, x, y, text))


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
    start = f'<svg role="img" aria-label="{escape(label)}"'
    if values := cast(_Drawing, figure).values:
        points = []
        for axis, x, y, what in values:
            right, up = axis.transData.transform((x, y)) * 72 / figure.dpi  # SVG has 72 units per inch
            points.append(
                [round(right, 1), round(72 * figure.get_figheight() - up, 1), minus(shown_lines(what))]
            )
        start += f' tabindex="0" data-values="{escape(json.dumps(points, ensure_ascii=False, separators=(",", ":")))}"'
    return start + text.removeprefix("<svg")


@dataclass(frozen=True)
class IntervalRow:
    """A row of `draw_intervals`: a name, a value with its interval, and the values of which it is the mean."""

    name: str
    interval: Interval | None = None
    """None for a heading"""
    color: str = SERIES[0]
    is_filled: bool = True
    sources: Sequence[float] = ()
    """value of each source"""
    runs: Sequence[float] = ()
    """value of each training run"""
    published: float | None = None


def draw_intervals(
    axis: Axes, rows: Sequence[IntervalRow], unit: str, line: tuple[float, str] | None = None
) -> None:
    """Draw fractions (in per cent or points) with their intervals, one in each row, below their names.

    Args:
        axis: Axes to draw on; see `intervals_height`.
        rows: The rows, from top to bottom. Grey dots are sources; sources with nearly the same value are one dot whose
            area is their number. Ticks are training runs, diamonds are published values.
        unit: Unit of the values, for the texts that the page shows: `%` or `points`.
        line: Value and name of a dashed vertical line.
    """
    for place, row in enumerate(rows):
        axis.annotate(
            shorten(row.name, _LETTERS),
            (0.0, place),
            xycoords=axis.get_yaxis_transform(),
            xytext=(2, 6),
            textcoords="offset points",
            weight="bold" if row.interval is None else "normal",
            bbox={"boxstyle": "square,pad=0.05", "facecolor": SURFACE, "edgecolor": "none", "alpha": 0.85},
            zorder=4,
        )
        if row.interval is None:
            continue
        for value, count in sorted(Counter(round(40 * value) / 40 for value in row.sources).items()):
            size = min(14.0, 4.0 * count**0.5)
            axis.plot(
                [100 * value],
                [place + 0.24],
                "o",
                color=MUTED,
                alpha=0.45,
                markersize=size,
                markeredgewidth=0,
            )
            what = f"{count} sources" if count > 1 else "1 source"
            add_value(
                axis, 100 * value, place + 0.24, f"{row.name}: {what} at about {100 * value:.0f} {unit}"
            )
        ends = [100 * row.interval.low, 100 * row.interval.high]
        if row.interval.known:
            axis.plot(ends, [place, place], color=row.color, linewidth=1.8)
        if len(row.runs) > 1:
            ticks = [100 * value for value in row.runs]
            axis.plot(ticks, [place] * len(ticks), "|", color=row.color, markersize=9.0, markeredgewidth=1.2)
        filling = row.color if row.is_filled else SURFACE
        mark: dict[str, Any] = {"markerfacecolor": filling, "markersize": 6.0, "markeredgewidth": 1.5}
        axis.plot([100 * row.interval.value], [place], "o", color=row.color, **mark)
        written = signed_number if unit == "points" else "{:.1f}".format
        numbers = [written(number) for number in (100 * row.interval.value, *ends)]
        interval = f" [{numbers[1]}, {numbers[2]}]" if row.interval.known else ", no interval"
        add_value(axis, 100 * row.interval.value, place, f"{row.name}: {numbers[0]} {unit}{interval}")
        if row.published is not None:
            axis.plot([100 * row.published], [place], "D", color=SERIES[1], markersize=5.0)
            add_value(
                axis, 100 * row.published, place, f"{row.name}, published: {100 * row.published:.1f} {unit}"
            )
    axis.margins(x=0.06)
    if line is not None and (100 * line[0] > axis.get_xlim()[0] - 5 or not line[1]):
        style: Any = {"linestyle": (0, (3, 3)), "color": MUTED} if line[1] else {"color": INK}
        axis.axvline(100 * line[0], linewidth=1.0, zorder=1, **style)
        if line[1]:
            where: Any = {
                "xycoords": axis.get_xaxis_transform(),
                "xytext": (3, 2),
                "textcoords": "offset points",
            }
            axis.annotate(line[1], (100 * line[0], 0.0), color=MUTED, fontsize=8.0, **where)
    axis.set_ylim(len(rows) - 0.35, -0.75)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)


def intervals_height(rows: Sequence[IntervalRow]) -> float:
    """Return the height in inches of the axes for `draw_intervals`."""
    return _ROW * len(rows) + 0.6


def accuracy_rows(
    rows: Sequence[IntervalRow], metric: str, guess: tuple[float, str] | None = None, label: str = ""
) -> str:
    """Draw accuracies with their intervals and sources; `guess` is `(accuracy of guessing, label)`."""
    with drawing(intervals_height(rows)) as (figure, (axis,)):
        draw_intervals(axis, rows, "%", guess)
        low, high = axis.get_xlim()
        axis.set(xlabel=f"{metric} (%)", xlim=(max(-3.0, low), min(103.0, high)))
        return to_svg(figure, label or f"{metric} with intervals")


def dots_note(rows: Sequence[IntervalRow]) -> str:
    """Return a sentence on the marks of `draw_intervals`."""
    parts = ["The dot on a line is the mean, the line is its 95 % interval."]
    if any(row.sources for row in rows):
        parts.append("Grey dots are sources; a larger dot stands for several.")
    if any(len(row.runs) > 1 for row in rows):
        parts.append("Ticks are training runs.")
    if any(row.published is not None for row in rows):
        parts.append("Diamonds are published values.")
    return " ".join(parts)


def learning_curves(
    histories: Mapping[str, Sequence[Mapping[str, float]]], chosen: Mapping[str, int | None] | None = None
) -> str | None:
    """Draw loss, accuracy and learning rate of each run over the epochs; None if there is nothing to draw.

    `histories` contains rows for each stream, with `epoch` and any of `train_loss`, `val_loss`, `train_top1`,
    `val_top1`, `val_map` and `lr`. `chosen` contains the epochs of the checkpoints, which are marked.
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
            for nth, (color, (name, rows)) in enumerate(zip(SERIES, histories.items())):
                for key in keys:
                    epoch = None if key.startswith("train") else (chosen or {}).get(name)
                    _curve(axis, rows, key, name, color, epoch, len(histories) - nth)
            if title == "learning rate":
                axis.set_yscale("log")
                for set_format in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
                    set_format("{x:g}")  # the default labels contain `$`, which is drawn as text
        figure.legend(*axes[0].get_legend_handles_labels(), ncols=2, loc="outside upper left")
        axes[-1].set_xlabel("epoch")
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        return to_svg(figure, "learning curves")


def _curve(
    axis: Axes,
    rows: Sequence[Mapping[str, float]],
    key: str,
    name: str,
    color: str,
    chosen: int | None = None,
    width: int = 1,
) -> None:
    """Draw a curve; `width` makes the learning rates of earlier runs wider, so that equal curves stay visible."""
    scale = 100.0 if key.endswith(("top1", "map")) else 1.0
    points = [(row["epoch"], scale * row[key]) for row in rows if key in row and "epoch" in row]
    if not points:
        return
    trained = key.startswith("train")
    label = f"{name}, {'training' if trained else 'validation'}" if key != "lr" else name
    axis.plot(
        *zip(*points, strict=True),
        color=color,
        linestyle=(0, (4, 2)) if trained else "-",
        linewidth=1.2 if trained else 1.8 if key != "lr" else 0.6 + 1.4 * width,
        marker="o" if len(points) == 1 else None,
        label=label,
    )
    for epoch, value in points:
        mark = ", chosen" if epoch == chosen else ""
        add_value(
            axis, epoch, value, f"{label}, epoch {epoch:g}{mark}: {value:.4g}{' %' if scale > 1 else ''}"
        )
        if mark:
            axis.plot(
                [epoch], [value], "o", color=color, markersize=7, markerfacecolor=SURFACE, markeredgewidth=1.5
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
        tints = [to_rgba(SERIES[2], 0.06 + DEEPEST * float(shares[cell])) for cell in cells]
        axis.add_collection(PatchCollection(squares, facecolors=tints, edgecolors="none"))
        if classes <= _NUMBERED:
            for row, column in cells:
                text = str(counts_KK[row, column])
                axis.text(column, row, text, ha="center", va="center", color=INK)
        for row, column in cells:
            count = int(counts_KK[row, column])
            text = f"{names[row]}, predicted as {names[column]}: {count} of {int(totals[row, 0])}"
            add_value(axis, column, row, text)
        axis.set(xlim=(-0.5, classes - 0.5), ylim=(classes - 0.5, -0.5), xlabel="predicted", ylabel="true")
        axis.set_aspect("equal")
        axis.grid(visible=False)
        if classes <= _LABELLED:
            size = 8.0 if classes <= 20 else 4.5
            axis.set_xticks(range(classes), [shorten(name) for name in names], rotation=90, fontsize=size)
            axis.set_yticks(range(classes), [shorten(name) for name in names], fontsize=size)
        return to_svg(figure, "confusion matrix")


def confusion_table(counts_KK: NDArray[np.int64], names: Sequence[str]) -> Table:
    """Return a confusion matrix as a table; with many classes, only the most frequent confusions are listed."""
    if len(names) <= _NUMBERED:
        rows = [[name, *map(int, counts)] for name, counts in zip(names, counts_KK)]
        return text_table("Rows are true classes, columns are predicted classes.", ["", *names], rows)
    wrong_KK = np.where(np.eye(len(names), dtype=bool), 0, counts_KK)
    order = np.argsort(-wrong_KK, axis=None, kind="stable")[:_CONFUSIONS]
    cells = [divmod(int(place), len(names)) for place in order]
    return text_table(
        "The most frequent confusions.",
        ["true", "predicted", "videos"],
        [
            [names[row], names[column], int(wrong_KK[row, column])]
            for row, column in cells
            if wrong_KK[row, column]
        ],
    )


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
            for at, index in zip(place + shift, order):
                value = 100 * (cells[index].accuracy or 0.0)
                add_value(axis, value, float(at), _class_text(other, cells[index], measure))
        for at, index in zip(place, order):
            add_value(axis, values[at], float(at), _class_text(name, rows[index], measure))
        size = 8.5 if len(order) <= 30 else 6.0
        labels = [f"{shorten(rows[index].name)} ({rows[index].videos})" for index in order]
        axis.set_yticks(place, labels, fontsize=size)
        axis.set(xlim=(0, 100), ylim=(len(order) - 0.4, -0.6), xlabel=f"{measure} (%), videos in brackets")
        axis.grid(visible=False, axis="y")
        if others:
            figure.legend(loc="outside upper left", ncols=len(others) + 1)
        return to_svg(figure, f"{measure} per class")


def _class_text(stream: str, row: ClassRow, measure: str) -> str:
    right = f" ({row.correct} of {row.videos})" if measure == "accuracy" else ""
    return f"{row.name}, {stream}: {percent(row.accuracy)} %{right}"


def fusion_curve(curve: Curve) -> str:
    """Draw the accuracy over the weight of the first stream and mark the chosen weight."""
    with drawing(2.5) as (figure, (axis,)):
        axis.plot(curve.shares, [100 * value for value in curve.accuracies], color=SERIES[2])
        for share, value in zip(curve.shares, curve.accuracies):
            add_value(axis, share, 100 * value, f"w = {share:.2f}: {100 * value:.1f} %")
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
