"""Text of results: percentages with intervals, protocol lines, comparisons with streams and the baseline, tables."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from two_stream.data.catalog import Record
from two_stream.data.splits import load_part, source_of
from two_stream.evaluation.scores.fusion import stream_name
from two_stream.evaluation.scores.metrics import Summary, difference, gain, summarise
from two_stream.evaluation.scores.statistics import LEAST_UNITS, LEVEL, Interval, expected_interval
from two_stream.runtime.console import console, say, table
from two_stream.runtime.text import plural, signed_number
from two_stream.types import Modality, ScoreTable

COLUMNS = ("stream", "top-1 [95 % CI]", "top-3", "top-5", "mean class", "F1", "ECE", "videos")
MULTI_COLUMNS = ("stream", "mAP [95 % CI]", "top-1 [95 % CI]", "top-3", "top-5", "classes", "videos")
"""columns for a multi-label data set; top-k counts any class of the video, and mean class and ECE are undefined"""
PAPER_WARNING = "test-selected: the checkpoint was picked on the test split, so the accuracy is optimistic"
DASH = "–"


@dataclass(frozen=True)
class Line:
    """A line of the accuracy table."""

    name: str
    table: ScoreTable
    summary: Summary


def lines(tables: Sequence[ScoreTable]) -> list[Line]:
    """Return the lines of the accuracy table with the metrics of score tables."""
    return [Line(label, table, summarise(table)) for label, table in zip(labels_of(tables), tables)]


def labels_of(tables: Sequence[ScoreTable]) -> list[str]:
    """Return unique labels for tables. If labels are equal, the run name is added, and then a number if necessary."""
    plain = [label_of(table, index) for index, table in enumerate(tables)]
    named = [
        f"{label} · {table.meta['name']}" if plain.count(label) > 1 and table.meta.get("name") else label
        for label, table in zip(plain, tables)
    ]
    found: list[str] = []
    for label in named:
        numbered = (f"{label} {place}" for place in itertools.count(2))
        found.append(next(name for name in itertools.chain([label], numbered) if name not in found))
    return found


def label_of(table: ScoreTable, index: int = 0) -> str:
    """Return the label of a table: its modality, `baseline`, or the rule and the weights of a fusion."""
    if table.meta.get("baseline"):
        return "baseline"
    if table.meta.get("kind") != "fused":
        name = stream_name(table, index)
        return f"{name} (test-selected)" if table.meta.get("selection") == "paper" else name
    weights = [float(w) for w in table.meta.get("weights", [])]
    if table.meta.get("fitted_on"):
        rule = table.meta["rule"]
        return "fused (learned)" if rule == "learned" else f"fused ({rule}, holdout weights)"
    equal = len(set(weights)) <= 1
    return f"fused ({table.meta.get('rule')}{'' if equal else ', ' + ' : '.join(f'{w:g}' for w in weights)})"


def percent(value: Interval | float | None, digits: int = 1) -> str:
    """Format a fraction as `83.3`, an interval as `83.3 [75.0, 90.0]` or `83.3 [unknown]`, and None as a dash."""
    if value is None:
        return DASH
    if not isinstance(value, Interval):
        return f"{100 * value:.{digits}f}"
    ends = f"{100 * value.low:.{digits}f}, {100 * value.high:.{digits}f}" if value.known else "unknown"
    return f"{100 * value.value:.{digits}f} [{ends}]"


def difference_in_points(gap: Interval) -> str:
    """Format a difference with its interval in percentage points; all numbers have a sign."""
    return f"{signed_number(100 * gap.value)} {_ends(gap) if gap.known else '[unknown]'}"


def rows(found: Sequence[Line]) -> list[list[str]]:
    """Return the cells of the accuracy table in the order of `columns`, in per cent."""
    return [_cells(line.name, line.summary) for line in found]


def columns(found: Sequence[Line]) -> tuple[str, ...]:
    """Return the headings of the accuracy table."""
    own = MULTI_COLUMNS if found[0].summary.map is not None else COLUMNS
    return (*own[:-1], *found[0].summary.own, own[-1])


def print_accuracies(title: str, found: Sequence[Line], paths: Sequence[Path] = ()) -> None:
    """Print the accuracy table, the protocol of its last line, the caveats, and the score files."""
    meta = found[-1].table.meta
    console.print(table(title, columns(found), rows(found), spare=("top-3",)))
    say(protocol_line(meta, found[-1].summary))
    for text in caveats(found[-1]):
        say(f"note: {text}")
    for path in paths:
        say(f"scores: {path}")


def _cells(name: str, summary: Summary) -> list[str]:
    values = [summary.top.get(3), summary.top.get(5), summary.mean_class]
    third, fifth, mean_class = (percent(None if one is None else one.value) for one in values)
    top = [percent(summary.top.get(1)), third, fifth]
    more = [*map(percent, summary.own.values()), str(summary.videos)]
    if summary.map is not None:
        return [name, percent(summary.map), *top, str(summary.map_classes), *more]
    return [name, *top, mean_class, percent(summary.f1), percent(summary.ece), *more]


def protocol_line(meta: Mapping[str, Any], summary: Summary | None = None) -> str:
    """Return the protocol of a result on one line: data, part, views, selection, videos, seed and type of interval."""
    split = f" split {meta['split']}" if "split" in meta else ""
    parts = [f"{meta.get('dataset', 'unknown data set')}{split}, {meta.get('part', '?')} part"]
    if meta.get("protocol"):
        parts.append(str(meta["protocol"]))
    if meta.get("precision_reason"):
        parts.append(str(meta["precision_reason"]))
    if meta.get("kind") == "fused":
        parts.append(f"fusion {meta.get('rule')}")
    selection = meta.get("selection")
    if selection:
        names = {"paper": "test-selected", "folds": "selection by folds of the training list"}
        parts.append(names.get(str(selection), f"selection {selection}"))
    if summary is not None:
        videos = plural(summary.videos, "video")
        parts.append(
            videos + (f" of {plural(summary.groups, 'source')}" if summary.groups is not None else "")
        )
    if meta.get("common"):
        parts.append(str(meta["common"]))
    skipped = skipped_videos(meta)
    if skipped:
        parts.append(f"{len(skipped)} skipped")
    if "seed" in meta:
        parts.append(f"seed {meta['seed']}")
    if summary is not None:
        parts.append(interval_words(summary.groups, summary.main))
        if summary.main.known and summary.mean_class is not None and not summary.mean_class.known:
            parts.append("no interval for mean class: a class has only one source")
    return " · ".join(parts)


def interval_words(
    groups: int | None, found: Interval, level: float = LEVEL, *, trainings: bool = False
) -> str:
    """Return a description of an interval, or the reason why there is no interval."""
    if not found.known:
        number = "videos of unknown source" if groups is None else plural(groups, "source")
        return f"no interval: too few independent sources ({number})"
    over = "" if groups is None else " over sources"
    over += f"{' over' if groups is None else ' and'} training runs" if trainings else ""
    unknown = "; sources unknown: videos counted as independent" if groups is None else ""
    return f"{100 * level:g} % intervals{over}{unknown}"


FEW_SOURCES = 20
"""With fewer sources than this, a note is added, because a single source has a weight of more than 5 %."""
_FAR = 50
"""number of times the present data from which on the exact number does not matter"""


def few_sources(videos: int, groups: int | None) -> list[str]:
    """Return a note if there are few sources, or few videos if the number of sources, `groups`, is unknown."""
    units = videos if groups is None else groups
    if units >= FEW_SOURCES:
        return []
    unit = "source videos" if groups is not None else "videos"
    return [f"Only {units} {unit}: a single one of them changes the accuracy considerably."]


def caveats(line: Line) -> list[str]:
    """Return what weakens a result: a test-selected checkpoint, or few sources."""
    groups = line.summary.groups
    found = [sentence(PAPER_WARNING)] if line.table.meta.get("selection") == "paper" else []
    return found + few_sources(line.summary.videos, groups)


def more_data(times: float, what: str, sources: int | None, trainings: int = 1) -> str:
    """Return a sentence on how much data would be needed to show a difference.

    Args:
        times: How many times the present data; see `statistics.data_needed`.
        what: The difference.
        sources: Present number of sources; None if unknown.
        trainings: Present number of training runs.
    """
    if times > _FAR:
        return f"To show {what}, more than {_FAR} times as much data would be needed."
    many = f"{times:.{0 if times >= 10 else 1}f} times as many {'videos' if sources is None else 'sources'}"
    if sources is not None and trainings == 1:
        many += f" ({ceil(times * sources)} instead of {sources})"
    many += " and training runs" if trainings > 1 else ""
    return f"About {many} would be needed to show {what}, with a probability of 80 % if it is real."


def sentence(text: str) -> str:
    """Return a text with a capital first letter and a full stop."""
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def listed(names: Sequence[str]) -> str:
    """Return names as `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def expected_words(record: Record, modality: Modality, split: int) -> str:
    """Return a sentence on the expected precision of an accuracy on the test part."""
    test = load_part(record, modality, split, "test")
    train = load_part(record, modality, split, "train", selection="paper")
    unit = np.unique([source_of(video) for video in test], return_inverse=True)[1]
    sources = int(unit.max()) + 1
    known = "an accuracy will have no interval, because an interval requires three test sources"
    if sources >= LEAST_UNITS:
        found = expected_interval(unit)
        half = 50 * (found.high - found.low)
        known = f"the 95 % interval of an accuracy of 75 % will be about ±{half:.0f} points"
    return (
        f"{plural(len(train), 'training video')} of {plural(len({source_of(video) for video in train}), 'source')}, "
        f"{plural(len(test), 'test video')} of {plural(sources, 'source')}, "
        f"{plural(record.num_classes, 'class')}: {known}."
    )


def skipped_videos(meta: Mapping[str, Any]) -> list[str]:
    """Return the ids of videos that could not be read; for a fused table, those of all its streams."""
    names = [str(name) for name in meta.get("skipped", [])]
    for source in meta.get("sources", []):
        names += [name for name in skipped_videos(source) if name not in names]
    return names


def fusion_verdict(fused: ScoreTable, streams: Sequence[ScoreTable]) -> str:
    """Return a sentence that compares a fusion with the better of its streams. The tables must be joined."""
    found = gain(fused, streams)
    best = max(lines(streams), key=lambda line: line.summary.main.value)
    better = f"the better stream ({best.name})"
    if found.known and found.low > 0:
        return f"fusion is higher on these runs than {better}: {_points(found)}"
    if found.known and found.high < 0:
        why = "where the streams differ, the weaker one often prevails over the better one"
        return f"fusion is lower on these runs than {better}: {_points(found)}; {why}"
    return f"no difference shown between fusion and {better}: {_points(found)}"


def against_baseline(main: Line, baseline: ScoreTable) -> str:
    """Return a sentence that compares a result with the baseline. The tables must be joined."""
    found = difference(main.table, baseline).interval
    side = "above" if found.value > 0 else "below"
    where = f"{100 * abs(found.value):.1f} points {side} it" if found.value else "equal to it"
    sure = "no difference shown"
    if found.known and not found.low <= 0 <= found.high:
        sure = f"it is {'higher' if found.value > 0 else 'lower'} on these runs"
    return f"Comparison with the baseline: {main.name} is {where}, {_interval(found)}; {sure}."


def _points(found: Interval) -> str:
    return f"{signed_number(100 * found.value)} points, {_interval(found)}"


def _interval(found: Interval) -> str:
    return f"95 % interval {_ends(found)}" if found.known else "too few sources for an interval"


def _ends(found: Interval) -> str:
    return f"[{signed_number(100 * found.low)}, {signed_number(100 * found.high)}]"


def minus(text: str) -> str:
    """Replace hyphens before numbers by minus signs."""
    return re.sub(r"(?<![\w.,/-])-(?=\d)", "−", text)


@dataclass(frozen=True)
class TableCell:
    """A table cell with a text and a sort key."""

    text: str
    sort: float | str | None = None
    """sort key; cells with None come last"""
    strong: bool = False
    shade: float | None = None
    """colour intensity in a heat map, from 0 to 1; None for no colour"""


@dataclass(frozen=True)
class Table:
    """A table; the first column contains the names of the rows."""

    caption: str
    columns: list[str]
    numeric: list[bool]
    rows: list[list[TableCell]]

    def filled(self) -> Table:
        """Return the table without empty columns."""
        return self.only(
            label
            for place, label in enumerate(self.columns)
            if place == 0 or any(row[place].text not in ("", DASH) for row in self.rows)
        )

    def only(self, labels: Iterable[str]) -> Table:
        """Return the table with only these columns; their order does not change."""
        kept = set(labels)
        places = [place for place, label in enumerate(self.columns) if label in kept]
        return Table(
            self.caption,
            [self.columns[place] for place in places],
            [self.numeric[place] for place in places],
            [[row[place] for place in places] for row in self.rows],
        )

    @property
    def texts(self) -> list[list[str]]:
        """The text of every cell."""
        return [[cell.text for cell in row] for row in self.rows]


_NUMBER = re.compile(r"[-+−±]?\d")


def text_table(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[object]], strong: str | None = None
) -> Table:
    """Return a table of texts with sort keys. The row with the name `strong` is bold.

    A column is numeric if all its cells start with a number or are empty. The sort keys of its cells are these numbers.
    """
    texts = [[str(cell) for cell in row] for row in rows]
    numeric = [
        place > 0 and all(_NUMBER.match(row[place]) for row in texts if row[place] not in ("", DASH))
        for place in range(len(columns))
    ]
    return Table(
        caption,
        list(columns),
        numeric,
        [
            [
                TableCell(text, _sort_key(text, numeric[place]), row[0] == strong)
                for place, text in enumerate(row)
            ]
            for row in texts
        ],
    )


def _sort_key(text: str, numeric: bool) -> float | str | None:
    if text in ("", DASH):
        return None
    found = re.match(r"[-+−]?[\d.]+", text.replace(",", "")) if numeric else None
    return float(found.group().replace("−", "-")) if found else text
