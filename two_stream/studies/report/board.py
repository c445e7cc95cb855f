"""The board: one static page of all runs, studies, compressions and fusions below a folder, see `write_board`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from two_stream.config.load import load_experiment
from two_stream.config.schema import Experiment
from two_stream.errors import ScoreError, TwoStreamError, printable
from two_stream.evaluation.report.page import IntervalRow, Top, accuracy_rows, dots_note, page_templates
from two_stream.evaluation.runs.lookup import compression_of, read_history, run_of, settings_of
from two_stream.evaluation.scores.files import read_scores
from two_stream.evaluation.scores.formats import is_score_file
from two_stream.evaluation.scores.statistics import Interval
from two_stream.evaluation.scores.words import DASH, label_of, percent, text_table
from two_stream.runtime.files import write_text
from two_stream.runtime.provenance import code_version
from two_stream.runtime.text import parse_json, plural
from two_stream.studies import leaderboard
from two_stream.studies.report.study_report import read_result
from two_stream.studies.report.tables import differing_values, flat_settings, not_default
from two_stream.studies.statistics.scored import ScoredRun, comparable_facts
from two_stream.types import RunPaths

_TEMPLATES = Path(__file__).parent / "templates"
_PAGES = ("report.html", "study.html", "compression.html")
_CURVES = {
    "val_map": "validation mAP",
    "val_top1": "validation top-1",
    "val_loss": "validation loss",
    "train_loss": "training loss",
}
"""keys of `metrics.jsonl`; the first one that a run has is drawn"""
_POINTS = 40
"""largest number of points of a learning curve"""
_BOARDS = 3
"""number of leaderboards in the answer"""
_BARS = 8
"""number of variants in the figure"""


@dataclass
class Entry:
    """A row of the page; `path` is the folder of a run or study, or a score file."""

    kind: str
    path: Path
    name: str
    state: str = "damaged"
    """finished, unfinished, failed or damaged"""
    detail: str = ""
    dataset: str = ""
    data: str = DASH
    """data set, split and part"""
    model: str = DASH
    modality: str = DASH
    accuracy: Interval | None = None
    metric: str = "top-1"
    epochs: str = DASH
    date: float = 0.0
    """time of the newest file, in seconds since 1970"""
    curve: tuple[str, str] | None = None
    """description of the learning curve, and its points as an SVG polyline in a box of 100 × 30"""
    found: str = ""
    """answer of a study, or verdict on a compression"""
    picture: str = ""
    """frames of a test video as a data URI"""
    settings: dict[str, str] = field(default_factory=dict)
    chosen: set[str] = field(default_factory=set)
    """settings that are not the default"""
    facts: dict[str, str] | None = None
    """see `comparable_facts`; None without scores"""


Scored = tuple[ScoredRun, leaderboard.RankedTable]
"""a score file, and the board that contains only this file"""


@contextmanager
def _noted(problems: list[str], path: Path) -> Iterator[None]:
    """Context manager that turns an error about an untrusted file into a line of `problems`."""
    try:
        yield
    except TwoStreamError as error:
        problems.append(str(error))
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        problems.append(printable(f"{path}: cannot be shown ({type(error).__name__}: {error})"))


def read_board(root: Path, *, pictures: bool = False) -> tuple[list[Entry], list[ScoredRun], list[str]]:
    """Read all runs, studies, compressions and fusions below a folder.

    Returns:
        The entries, the newest first, the scores of test parts, and a message for each file that cannot be used.

    Raises:
        ScoreError: The folder does not exist or contains nothing to show.
    """
    runs: dict[Path, Experiment | None] = {}
    cells: dict[Path, list[Path]] = {}
    files: list[Path] = []
    problems: list[str] = []
    for folder, names in leaderboard.walk(root):
        files += filter(is_score_file, (folder / name for name in names))
        if RunPaths(folder).experiment.name in names:
            runs[folder] = None
            with _noted(problems, folder):
                runs[folder] = load_experiment(RunPaths(folder).experiment)
        if folder.name == "cells":
            cells[folder.parent] = [folder / name for name in names if name.endswith(".json")]
    scored: dict[Path, list[Scored]] = {folder: [] for folder in runs}
    for path in sorted(files):
        with _noted(problems, path):
            table = read_scores(path)
            run, own = run_of(table), path.parent.parent
            known = runs[run.root] if run is not None and run.root in runs else settings_of(run)
            item = ScoredRun(table, run, known)
            for board in leaderboard.rank_scores([item], problems).boards:  # also checks untrusted metadata
                scored.setdefault(own if own in runs else path, []).append((item, board))
    entries, tests = [], []
    for path, items in scored.items():
        mine = [one for one in items if one[0].table.meta.get("part", "test") == "test"]
        tests += [item for item, _ in mine]
        if path in runs or mine:
            with _noted(problems, path):
                kind = "study run" if any(parent in cells for parent in path.parents) else "run"
                entries.append(_entry(Entry(kind, path, path.name), mine or items, pictures))
                if path in runs:
                    _add_run(entries[-1], runs[path], problems)
    for folder, records in cells.items():
        with _noted(problems, folder):
            entries.append(_study_entry(folder, records, {entry.path: entry for entry in entries}))
    if not entries and not problems:
        hint = "train a run with `two-stream train`, or name another folder"
        raise ScoreError(f"{root}: no run, study or score file found; {hint}")
    _tell_apart(entries)
    return sorted(entries, key=lambda entry: -entry.date), tests, problems


def _tell_apart(entries: Sequence[Entry]) -> None:
    """Add the number of classes, and the hash of their list, to the names of data sets that have the same name."""
    lists: dict[str, set[str]] = {}
    for entry in entries:
        lists.setdefault(entry.dataset, set()).add(entry.facts["class lists"] if entry.facts else "")
    for entry in entries:
        if entry.facts and len(lists[entry.dataset] - {""}) > 1:
            name = f"{entry.dataset} ({entry.facts['class lists']})"
            entry.data = entry.data.replace(entry.dataset, name, 1)
            entry.dataset = name


def _entry(entry: Entry, items: Sequence[Scored], pictures: bool) -> Entry:
    """Return an entry with its newest scores added."""
    if not items:
        return entry
    item, board = max(items, key=lambda one: Path(one[0].file).stat().st_mtime)
    meta, standing, entry.state = item.table.meta, board.standings[0], "finished"
    if entry.path.suffix:
        entry.kind = "fusion" if meta.get("kind") == "fused" else "scores"
        entry.name = label_of(item.table) if entry.kind == "fusion" else entry.name
    entry.dataset, entry.data = str(meta.get("dataset", "")), board.title.partition(" part · ")[0]
    entry.model, entry.modality = standing.model, standing.modality
    entry.accuracy, entry.metric = standing.accuracy, board.metric
    entry.date, entry.facts = Path(item.file).stat().st_mtime, comparable_facts(item)
    if pictures:
        from two_stream.evaluation.pictures.thumbnails import strip

        entry.picture, _ = strip(item.experiment, item.table.ids[0], entry.modality)
    return entry


def _add_run(entry: Entry, experiment: Experiment | None, problems: list[str]) -> None:
    """Add what the folder of a run contains: settings, learning curve, state and compression."""
    run = RunPaths(entry.path)
    rows, problem = read_history(run)
    problems += [problem] if problem else []
    if compressed := compression_of(run):
        entry.kind, entry.found = "compression", str(compressed["verdict"])
    entry.date = max(entry.date, *(path.stat().st_mtime for path in entry.path.iterdir()))
    if experiment is None:
        entry.state, entry.detail = "damaged", "the settings cannot be read"
        return
    mapping = experiment.model_dump(mode="json")
    entry.settings, entry.chosen = flat_settings(mapping), not_default(mapping)
    entry.model, entry.modality = leaderboard.model_of(experiment), experiment.model.modality
    if entry.accuracy is None:
        entry.dataset, entry.detail = experiment.data.dataset, "no scores"
        entry.data = f"{entry.dataset} split {experiment.data.split}"
    if rows and "c" not in rows[0]:  # a linear probe has no epochs
        last, total = round(rows[-1]["epoch"]), experiment.train.epochs
        entry.epochs, entry.curve = f"{last} of {total}" if last < total else f"{last}", _curve(rows)
        started = last < total
    else:
        started = not rows and not run.best.is_dir()
    entry.state = "unfinished" if started and entry.accuracy is None else "finished"


def _curve(rows: Sequence[Mapping[str, float]]) -> tuple[str, str] | None:
    key = next((key for key in _CURVES if any(key in row for row in rows)), None)
    if key is None:
        return None
    values = [row[key] for row in rows if key in row]
    values = values if len(values) > 1 else 2 * values
    loss = key.endswith("loss")
    top = max(1e-9, *map(abs, values)) if loss else 1.0
    places = range(len(values))[:: -max(1, -(-len(values) // _POINTS))][::-1]  # with the last one
    drawn = [f"{100 * place / (len(values) - 1):.0f},{29 - 28 * values[place] / top:.1f}" for place in places]
    ends = [f"{value:.3g}" if loss else f"{percent(value)} %" for value in (values[0], values[-1])]
    return f"{_CURVES[key]} from {ends[0]} to {ends[1]}", " ".join(drawn)


def _study_entry(folder: Path, records: Sequence[Path], runs: Mapping[Path, Entry]) -> Entry:
    """Return the entry of a study, and mark its failed runs."""
    entry = Entry("study", folder, folder.name, "unfinished", "no report yet", date=folder.stat().st_mtime)
    for path in records:
        cell = parse_json(path.read_bytes())
        run = runs.get(folder / "runs" / path.stem)
        if run is not None and cell["state"] == "failed":
            run.state, run.detail = "failed", str(cell["reason"])
    report = folder / "report.json"
    if not report.is_file():
        return entry
    result = read_result(report)
    best = max(result.variants, key=lambda variant: variant.accuracy.value)
    states = [run.state for run in result.runs]
    entry.date, entry.data = report.stat().st_mtime, result.protocol.partition(" part · ")[0]
    entry.dataset, entry.model = entry.data.partition(" split ")[0], plural(len(result.variants), "variant")
    entry.accuracy, entry.metric, entry.found = best.accuracy, result.metric, result.answer
    entry.detail = f"{states.count('done')} of {plural(len(states), 'run')}; best: {best.name}"
    entry.state = "failed" if "failed" in states else "unfinished" if "missing" in states else "finished"
    return entry


def write_board(root: Path, out: Path, *, pictures: bool = False) -> list[str]:
    """Write the page of all runs, studies, compressions and fusions below a folder; its links are relative.

    Args:
        root: The folder; links to folders and hidden folders are not entered.
        out: The page.
        pictures: Whether to show frames of a test video of each run. Otherwise, no pixel of a video is in the page.

    Returns:
        A message for each file that cannot be used; the page lists them too.

    Raises:
        ScoreError: The folder does not exist or contains nothing to show.
    """
    entries, tests, problems = read_board(root, pictures=pictures)
    boards: list[leaderboard.RankedTable] = []
    with _noted(problems, root):
        boards = leaderboard.rank_scores(tests, problems).boards
    boards.sort(key=lambda board: -len(board.standings))
    runs = sum(entry.kind in ("run", "study run", "compression") for entry in entries)
    sets = {entry.dataset for entry in entries if entry.dataset}
    others = len(entries) - runs
    more = f"; {others} other {'entry' if others == 1 else 'entries'} (studies, fusions)" if others else ""
    counts = f"{plural(runs, 'run')} of {plural(len(sets), 'data set')}{more}."
    sentences = ["None has scores of the test part; `two-stream evaluate RUN` writes them."]
    figure, note = None, ""
    if boards:
        sentences = [leaderboard.best_sentence(board, _place(board, boards)) for board in boards[:_BOARDS]]
        rows = [IntervalRow(one.name, one.accuracy) for one in boards[0].standings[:_BARS]]
        figure = accuracy_rows(rows, boards[0].metric, label="the best variants with intervals")
        note = f"The best on {_place(boards[0], boards)}. {dots_note(rows)}"
    top = Top(
        "board",
        f"Runs in {root.resolve().name}",
        f"{counts} {sentences[0]}",
        boards[0].title if boards else "",
        " ".join(sentences[1:]),
        notes=[f"{plural(len(problems), 'problem')}, listed at the end of the page."] if problems else [],
        figure=figure,
        figure_note=note,
        code_version=code_version(),
        created=datetime.now(UTC).astimezone().isoformat(timespec="seconds"),
    )
    facts = {
        "entries": [_shown(entry, root, out) for entry in entries],
        "data": _data(entries),
        "rankings": [
            (board.title, text_table("", leaderboard.COLUMNS, leaderboard.rows(board))) for board in boards
        ],
        "problems": problems,
    }
    write_text(out, page_templates(_TEMPLATES).get_template("board.html").render(top=top, **facts))
    return problems


def _place(board: leaderboard.RankedTable, boards: Sequence[leaderboard.RankedTable]) -> str:
    """Return the data set, split and part of a board, and the protocol if several boards have the same data."""
    data, protocol = board.title.split(" · ")[:2]
    alike = [one for one in boards if one.title.startswith(f"{data} · ")]
    return f"{data} ({protocol})" if len(alike) > 1 else data


def _shown(entry: Entry, root: Path, out: Path) -> dict[str, Any]:
    """Return an entry for the template, with links relative to the page."""
    pages = [entry.path / name for name in _PAGES if (entry.path / name).is_file()]
    links = {
        page.stem: quote(os.fsencode(os.path.relpath(page, out.parent).replace(os.sep, "/")))
        for page in pages
    }
    when = datetime.fromtimestamp(entry.date).strftime("%Y-%m-%d") if entry.date else DASH
    return vars(entry) | {"folder": str(entry.path.relative_to(root).parent), "links": links, "when": when}


def _data(entries: Sequence[Entry]) -> dict[str, Any]:
    """Return what the page needs for comparing entries: settings that differ, and facts that must agree."""
    flat = {str(place): entry.settings for place, entry in enumerate(entries) if entry.settings}
    keys = list(differing_values(flat, {key for entry in entries for key in entry.chosen}))
    names = [entry.name for entry in entries]
    rows = {
        place: {
            "name": printable(entry.name if names.count(entry.name) == 1 else str(entry.path)),
            "path": shlex.quote(printable(str(entry.path))),
            "facts": entry.facts and {label: printable(value) for label, value in entry.facts.items()},
            "values": [printable(entry.settings.get(key, DASH)) for key in keys] if entry.settings else None,
            "chosen": [number for number, key in enumerate(keys) if key in entry.chosen],
        }
        for place, entry in enumerate(entries)
        if entry.settings or entry.facts
    }
    return {"keys": list(map(printable, keys)), "missing": DASH, "entries": rows}
