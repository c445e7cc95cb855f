"""The leaderboard: ranks the comparable score files below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import combinations
from pathlib import Path

from two_stream.config.schema import Experiment
from two_stream.errors import ScoreError, TwoStreamError
from two_stream.evaluation.scores.formats import Described, is_score_file
from two_stream.evaluation.scores.statistics import LEVEL, Interval, holm
from two_stream.evaluation.scores.words import DASH, percent, protocol_line
from two_stream.runtime.text import plural
from two_stream.studies.statistics.comparison import ENOUGH_TRAININGS, Panel, main_test, p_text, panel_of
from two_stream.studies.statistics.scored import ScoredRun, group_variants, read_scored, stated_fact

_NAMED = 5
"""largest number of variants that are listed in a sentence"""
COLUMNS = ("#", "variant", "accuracy [interval]", "behind", "p (Holm)", "modality", "model", "runs", "date")


@dataclass(frozen=True)
class Standing:
    """One row of a board: a variant."""

    place: int
    name: str
    accuracy: Interval
    behind: float | None
    """accuracy of the first variant minus the accuracy of this variant; None for the first variant"""
    p_holm: float | None
    """p value of the paired test against the best variant, corrected for all pairs by Holm's procedure. Only variants
    with three or more training runs are tested. None for the best of these variants and for variants with fewer
    training runs"""
    level_with_best: bool
    """whether the test against the best variant shows no difference"""
    modality: str
    model: str
    """names of backbone and head"""
    splits: list[int]
    seeds: list[int]
    date: str
    files: list[str]


@dataclass(frozen=True)
class RankedTable:
    """A board: variants with the same data, splits and protocol, best first."""

    title: str
    metric: str
    standings: list[Standing]


@dataclass(frozen=True)
class Leaderboard:
    """All boards of a folder, and error messages for files that cannot be used."""

    boards: list[RankedTable]
    damaged: list[str] = field(default_factory=list)


def leaderboard(
    root: Path, part: str = "test", level: float = LEVEL, described: Described | None = None
) -> Leaderboard:
    """Rank all score files of a part below a folder.

    A board contains the files with the same data set, part, splits and protocol, with the best accuracy first. Variants
    with three or more training runs are tested in pairs with significance level 1 - `level`. Holm's procedure corrects
    all pairs together, because the best variant is chosen on the same data.

    Raises:
        ScoreError: The folder does not exist or contains no readable score file of the part.
    """
    found, damaged = _read_all(root, part, described)
    if not found:
        broken = f" ({len(damaged)} damaged: {damaged[0]})" if damaged else ""
        raise ScoreError(
            f"{root}: no score file of the {part} part found{broken}; write one with `two-stream evaluate RUN`"
        )
    return rank_scores(found, damaged, level)


def rank_scores(found: Sequence[ScoredRun], damaged: list[str], level: float = LEVEL) -> Leaderboard:
    """Rank score files of one part; see `leaderboard`. Messages about impossible tests are added to `damaged`."""
    alike: dict[str, list[ScoredRun]] = {}
    for item in found:
        alike.setdefault(item.protocol, []).append(item)
    boards = [board for members in alike.values() for board in _boards(members, level, damaged)]
    return Leaderboard(sorted(boards, key=lambda board: board.title), damaged)


def walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield every folder below a folder, with the names of its files.

    Hidden folders and links to folders are left out, and so are folders that cannot be read.

    Raises:
        ScoreError: The folder does not exist.
    """
    if not root.is_dir():
        raise ScoreError(f"{root}: no such folder; expected a folder with runs, such as runs/")
    waiting = [root]
    while waiting:
        folder, names = waiting.pop(), []
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    names.append(entry.name)
                elif not entry.name.startswith("."):
                    waiting.append(folder / entry.name)
        yield folder, sorted(names)


def _read_all(root: Path, part: str, described: Described | None) -> tuple[list[ScoredRun], list[str]]:
    found, damaged = [], []
    paths = (folder / name for folder, names in walk(root) for name in names)
    for path in sorted(filter(is_score_file, paths)):
        try:
            item = read_scored(path, part, described)
        except TwoStreamError as error:
            damaged.append(str(error))
            continue
        if item.table.meta.get("part", part) == part:
            found.append(item)
    return found, damaged


def _boards(members: Sequence[ScoredRun], level: float, damaged: list[str]) -> list[RankedTable]:
    """Return the boards for score files with the same protocol: one board for each set of splits."""
    groups = group_variants(members)
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
    groups: dict[str, list[ScoredRun]], panels: dict[str, Panel], level: float, damaged: list[str]
) -> RankedTable:
    values = {name: round(panel.estimate().value, 12) for name, panel in panels.items()}
    order = sorted(panels, key=lambda name: (-values[name], name))
    first = order[0]
    tested = [name for name in order if len(panels[name].seeds) >= ENOUGH_TRAININGS]
    ps = {}
    for pair in combinations(tested, 2):
        try:
            ps[pair] = main_test(pair, (panels[pair[0]], panels[pair[1]]), level).p
        except ScoreError as error:
            damaged.append(f"{pair[1]} is not compared with {pair[0]}: {error}")
    adjusted = {
        pair[1]: p for pair, p in zip(ps, holm(list(ps.values())), strict=True) if pair[0] == tested[0]
    }
    standings = []
    for name in order:
        place = 1 + sum(value > values[name] for value in values.values())  # equal values share a place
        items = groups[name]
        newest = max(Path(item.file).stat().st_mtime for item in items)
        standings.append(
            Standing(
                place=place,
                name=name,
                accuracy=panels[name].interval(level),
                behind=values[first] - values[name] if name != first else None,
                p_holm=adjusted.get(name),
                level_with_best=name in adjusted and adjusted[name] >= 1 - level,
                modality=str(items[0].table.meta.get("modality", DASH)),
                model=_model(items[0]),
                splits=panels[name].splits,
                seeds=panels[name].seeds,
                date=datetime.fromtimestamp(newest).strftime("%Y-%m-%d"),
                files=[item.file for item in items],
            )
        )
    lead = panels[first]
    return RankedTable(_title(lead), "mAP" if lead.multi_label else "top-1", standings)


def best_sentence(board: RankedTable, place: str) -> str:
    """Return a sentence on the best variant of a board and on the variants that are not shown to differ from it."""
    first = board.standings[0]
    interval = percent(first.accuracy).replace(" ", "\u00a0% ", 1)
    alike = [standing.name for standing in board.standings if standing.level_with_best]
    tested = [standing for standing in board.standings if len(standing.seeds) >= ENOUGH_TRAININGS]
    if len(board.standings) == 1:
        found = "the only one"
    elif first not in tested:
        found = (
            f"not tested, because a ranking tests only variants with {ENOUGH_TRAININGS} or more training runs "
            "(`two-stream compare` tests single runs)"
        )
    elif alike:
        more = f" and {len(alike) - _NAMED} more" if len(alike) > _NAMED else ""
        found = f"not shown to differ from it: {', '.join(alike[:_NAMED])}{more}"
    else:
        found = f"better than all others with {ENOUGH_TRAININGS} training runs"
    return f"Best on {place}: {first.name} {interval}; {found}."


def _title(panel: Panel) -> str:
    """Return the title of a board: data set, splits, part, protocol and size.

    Seeds are left out, because they differ between variants.
    """
    splits = ", ".join(map(str, panel.splits))
    meta = {
        key: value for key, value in panel.first.meta.items() if key not in ("seed", "skipped", "sources")
    }
    meta |= {"split": splits, "kind": None}
    sources = f" of {plural(panel.groups, 'source')}" if panel.groups is not None else ""
    precision = stated_fact(panel.first.meta, "precision").replace("None", "unknown precision")
    return f"{protocol_line(meta)} · {precision} · {plural(round(panel.videos), 'video')}{sources}"


def _model(item: ScoredRun) -> str:
    if item.table.meta.get("kind") == "fused":
        return f"fusion ({item.table.meta.get('rule')})"
    return DASH if item.experiment is None else model_of(item.experiment)


def model_of(experiment: Experiment) -> str:
    """Return the names of backbone, reduction and head."""
    model = experiment.model
    reduction = "" if model.reduction == "none" else f" + {model.reduction}"
    return f"{model.backbone.kind}{reduction} + {model.head.kind}"


def _runs(standing: Standing) -> str:
    """Return the number of runs. The word "run" is added if there are too few training runs for a test."""
    number = len(standing.seeds) * len(standing.splits)
    return plural(number, "run") if len(standing.seeds) < ENOUGH_TRAININGS else str(number)


def rows(board: RankedTable) -> list[list[str]]:
    """Return the cells of a board's table in the order of `COLUMNS`, with accuracies in per cent.

    `2 ≈1` means place 2, not significantly different from place 1 (the best variant with enough training runs).
    """
    best = next((one.place for one in board.standings if len(one.seeds) >= ENOUGH_TRAININGS), 0)
    return [
        [
            f"{standing.place}" + (f" ≈{best}" if standing.level_with_best else ""),
            standing.name,
            percent(standing.accuracy),
            percent(standing.behind),
            DASH if standing.p_holm is None else p_text(standing.p_holm),
            standing.modality,
            standing.model,
            _runs(standing),
            standing.date,
        ]
        for standing in board.standings
    ]
