"""The leaderboard: every score file below a folder, ranked among those that may be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from two_stream.errors import ScoreError
from two_stream.evaluation.metrics import Interval
from two_stream.evaluation.tables import DASH, percent, protocol_line
from two_stream.studies.comparison import LEVEL, main_test
from two_stream.studies.compatible import protocol_key
from two_stream.studies.lines import p_value
from two_stream.studies.panel import Panel, panel_of
from two_stream.studies.scored import Scored, grouped, read_scored
from two_stream.studies.statistics import holm

COLUMNS = ("#", "variant", "accuracy [interval]", "behind", "p (Holm)", "modality", "model", "runs", "date")


@dataclass(frozen=True)
class Standing:
    """One variant on a board."""

    place: int
    name: str
    accuracy: Interval
    behind: float | None
    """accuracy of the first minus its own, on the videos of both; None for the first and what cannot be joined to it"""
    p_holm: float | None
    """of the paired test against the first, corrected over the board"""
    level_with_first: bool
    """the test cannot tell it from the first"""
    modality: str
    model: str
    """backbone and head"""
    splits: list[int]
    seeds: list[int]
    date: str
    """of its newest score file"""
    files: list[str]


@dataclass(frozen=True)
class Board:
    """Variants on the same data, splits and protocol, best first."""

    title: str
    metric: str
    standings: list[Standing]


@dataclass(frozen=True)
class Leaderboard:
    """All boards of a folder, and the files that could not be read."""

    boards: list[Board]
    damaged: list[str] = field(default_factory=list)


def leaderboard(root: Path, part: str = "test", level: float = LEVEL) -> Leaderboard:
    """Rank every score file below a folder.

    Files stand on one board when data set, part, splits and protocol agree. The best accuracy comes first, and every
    other variant is tested against it, corrected by Holm's procedure over the board.

    Args:
        root: Folder, searched with all folders below it.
        part: Part that the scores are of.
        level: Coverage of the intervals; 1 - level is the level of the tests.

    Raises:
        ScoreError: No such folder, or no readable score file of this part below it.
    """
    if not root.is_dir():
        raise ScoreError(f"{root}: no such folder; give one with runs, such as runs/")
    found, damaged = _read_all(root, part)
    if not found:
        broken = f" ({len(damaged)} damaged: {damaged[0]})" if damaged else ""
        raise ScoreError(
            f"{root}: no score file of the {part} part below it{broken}; `two-stream evaluate RUN` writes one"
        )
    alike: dict[str, list[Scored]] = {}
    for item in found:
        alike.setdefault(protocol_key(item), []).append(item)
    boards = [board for members in alike.values() for board in _boards(members, level, damaged)]
    return Leaderboard(sorted(boards, key=lambda board: board.title), damaged)


def _read_all(root: Path, part: str) -> tuple[list[Scored], list[str]]:
    found, damaged = [], []
    for path in sorted(root.rglob("*.npz")):
        if any(folder.name.startswith(".") for folder in path.relative_to(root).parents):
            continue
        try:
            item = read_scored(path)
        except ScoreError as error:
            damaged.append(str(error))
            continue
        if item.table.meta.get("part", part) == part:
            found.append(item)
    return found, damaged


def _boards(members: Sequence[Scored], level: float, damaged: list[str]) -> list[Board]:
    """Return the boards of score files of one protocol, one for each set of splits."""
    groups = grouped(members)
    panels: dict[str, Panel] = {}
    for name, items in groups.items():
        try:
            panels[name] = panel_of(name, {item.cell: item.table for item in items})
        except ScoreError as error:
            damaged.append(str(error))
    by_splits: dict[tuple[int, ...], dict[str, Panel]] = {}
    for name, panel in panels.items():
        by_splits.setdefault(tuple(panel.splits), {})[name] = panel
    return [_board(groups, own, level, damaged) for own in by_splits.values()]


def _board(
    groups: dict[str, list[Scored]], panels: dict[str, Panel], level: float, damaged: list[str]
) -> Board:
    order = sorted(panels, key=lambda name: (-panels[name].estimate().value, name))
    first = order[0]
    behind, ps = {}, {}
    for name in order[1:]:
        try:
            test = main_test((first, name), (panels[first], panels[name]), level)
        except ScoreError as error:
            damaged.append(f"{name} is not compared with {first}: {error}")
            continue
        behind[name], ps[name] = test.interval.value, test.p
    adjusted = dict(zip(ps, holm(list(ps.values())), strict=True))
    standings = []
    for place, name in enumerate(order, start=1):
        items = groups[name]
        standings.append(
            Standing(
                place=place,
                name=name,
                accuracy=panels[name].interval(level),
                behind=behind.get(name),
                p_holm=adjusted.get(name),
                level_with_first=name in adjusted and adjusted[name] >= 1 - level,
                modality=str(items[0].table.meta.get("modality", DASH)),
                model=_model(items[0]),
                splits=panels[name].splits,
                seeds=panels[name].seeds,
                date=_date(items),
                files=[item.file for item in items],
            )
        )
    lead = panels[first]
    return Board(_title(lead), "mAP" if lead.multi_label else "top-1", standings)


def _title(panel: Panel) -> str:
    """Return data set, splits, part, protocol and size; the seed is each variant's own."""
    splits = ", ".join(map(str, panel.splits))
    meta = {
        key: value for key, value in panel.first.meta.items() if key not in ("seed", "skipped", "sources")
    }
    meta |= {"split": splits, "kind": None}
    sources = f" of {panel.groups} sources" if panel.groups is not None else ""
    return f"{protocol_line(meta)} · {round(panel.videos)} videos{sources}"


def _model(item: Scored) -> str:
    if item.table.meta.get("kind") == "fused":
        return f"fusion ({item.table.meta.get('rule')})"
    if item.experiment is None:
        return DASH
    model = item.experiment.model
    reduction = "" if model.reduction == "none" else f" + {model.reduction}"
    return f"{model.backbone.kind}{reduction} + {model.head.kind}"


def _date(items: Sequence[Scored]) -> str:
    newest = max(Path(item.file).stat().st_mtime for item in items)
    return datetime.fromtimestamp(newest).strftime("%Y-%m-%d")


def rows(board: Board) -> list[list[str]]:
    """Return the cells of a board's table, in the order of `COLUMNS`, accuracies in per cent."""
    return [
        [
            f"{standing.place}" + ("=" if standing.level_with_first else ""),
            standing.name,
            percent(standing.accuracy),
            percent(standing.behind),
            DASH if standing.p_holm is None else p_value(standing.p_holm),
            standing.modality,
            standing.model,
            str(len(standing.seeds) * len(standing.splits)),
            standing.date,
        ]
        for standing in board.standings
    ]
