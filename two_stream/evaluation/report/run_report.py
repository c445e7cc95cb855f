"""The report on runs: a self-contained HTML page, and the same numbers as JSON and Markdown.

All values are first collected in one dictionary, from which the three files are written.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from two_stream.config.load import dump
from two_stream.config.schema import Experiment
from two_stream.errors import ScoreError, SettingsError, TwoStreamError
from two_stream.evaluation.pictures.thumbnails import strip
from two_stream.evaluation.report import page
from two_stream.evaluation.runs.lookup import (
    compression_of,
    find_baseline,
    history,
    locate_data,
    run_of,
    settings_of,
)
from two_stream.evaluation.scores import metrics, statistics, words
from two_stream.evaluation.scores.files import find_scores, newest_scores, read_scores
from two_stream.evaluation.scores.formats import Described
from two_stream.evaluation.scores.fusion import Curve, fuse, match_fit, weight_curve
from two_stream.evaluation.scores.tables import join, keep_common_videos, name_of
from two_stream.runtime.files import keep_inputs, write_json, write_text
from two_stream.runtime.plotting import SERIES
from two_stream.runtime.provenance import code_version
from two_stream.runtime.text import plural
from two_stream.types import RunPaths, ScoreTable

_PROVENANCE = (
    *("run", "checkpoint", "epoch", "model_sha256", "dataset", "split", "part", "selection", "protocol"),
    *("clip_length", "stride", "resize", "crop", "precision", "source", "decoder", "flow_algorithm"),
    *("seed", "device", "threads", "code_version"),
)
"""metadata of a score file that the report lists"""


@dataclass(frozen=True)
class Reading:
    """How the score files and data of a report are read."""

    holdout: Sequence[Path | str] = ()
    """score files of the holdout part, in the order of the streams; by default those of the runs"""
    described: Described | None = None
    """what score files of other programs leave out"""
    common: bool = False
    """whether only the videos that all files contain are used"""
    data_root: Sequence[Path] = ()
    """folder of the data set's `dataset.yaml`, if it has been moved"""
    saliency: bool = False
    """whether the mistakes are shown with saliency maps; their videos are read, and the networks are loaded"""


@dataclass(frozen=True)
class _Stream:
    """A score table and the run that it was computed with."""

    table: ScoreTable
    name: str
    run: RunPaths | None
    experiment: Experiment | None
    val: ScoreTable | None
    """scores of the same model on the holdout part; None if there are none"""


def write_report(
    sources: Sequence[Path | str],
    out: Path | None = None,
    *,
    title: str | None = None,
    rule: str = "l2",
    mistakes: int = 8,
    reading: Reading | None = None,
) -> list[Path]:
    """Write a report as HTML, JSON and Markdown.

    Args:
        sources: Score files, or run folders whose newest test scores are used. Two or more streams are fused, unless
            one of the files is a fusion. The report includes the baseline of the data set if its scores are found or
            are among the files.
        out: Path of the HTML page. The JSON and Markdown files have the same name with another suffix. The default is
            `report.html`, in the run folder if there is a single stream, otherwise in the current folder.
        title: Title of the page.
        rule: Fusion rule; `learned` fits the weights on the holdout scores of the runs.
        mistakes: Number of mistakes to show; the most confident mistakes are shown.
        reading: How the score files and data are read.

    Returns:
        The paths of the three files.

    Raises:
        ScoreError: There is no source, or the score files cannot be read or joined.
        SettingsError: `out` ends in .json or .md.
    """
    if out is not None and out.suffix.lower() in (".json", ".md"):
        raise SettingsError(f"{out}: the page is HTML; expected a file name ending in .html")
    if not sources:
        raise ScoreError(
            "no run or score file given; expected at least one, for example: two-stream report "
            "runs/rgb runs/flow"
        )
    reading = reading or Reading()
    streams, fused, given = _gather(sources, reading, rule)
    if out is None:
        only = streams[0].run if len(streams) == 1 else None
        out = only.report if only else Path("report.html")
    written = [out, out.with_suffix(".json"), out.with_suffix(".md")]
    keep_inputs(written, [*sources, *reading.holdout])
    baseline, remark, command = _find_baseline(streams, given)
    facts, drawn = _facts(streams, fused, baseline, title, mistakes)
    if reading.saliency:
        drawn["maps"] = _saliency_strips(facts["mistakes"], streams, reading.data_root)
    if remark:
        facts["baseline"] = remark
    facts["answer"] = f"{words.sentence(facts['verdict'])} {facts['baseline']}".strip()
    facts["commands"] = _commands(streams, sources, out, rule, command if baseline is not None else "")
    environment = page.page_templates()
    top = page.Top(
        "report",
        facts["title"],
        facts["answer"],
        facts["protocol"],
        facts["outlook"],
        facts["notes"],
        facts["headline"],
        **drawn.pop("top"),
        code_version=facts["code_version"],
        created=facts["created"],
    )
    html = environment.get_template("report.html").render(facts=facts, top=top, **drawn)
    text = environment.get_template("report.md").render(facts=facts)
    write_text(written[0], html)
    write_json(written[1], facts)
    write_text(written[2], text)
    return written


def _gather(
    sources: Sequence[Path | str], reading: Reading, rule: str
) -> tuple[list[_Stream], ScoreTable | None, ScoreTable | None]:
    """Read the score files, and fuse the streams unless one of the files is a fusion.

    Returns:
        The streams, the fusion, and the baseline if it is among the files. The baseline is not part of the fusion.
    """
    found = [read_scores(find_scores(source), reading.described) for source in sources]
    found = keep_common_videos(found) if reading.common else join(found)
    baseline = next((table for table in found if table.meta.get("baseline")), None)
    found = [table for table in found if table is not baseline] or found
    given = [table for table in found if table.meta.get("kind") == "fused"]
    plain = [table for table in found if table.meta.get("kind") != "fused"]
    if len(given) > 1:
        raise ScoreError(f"{len(given)} fused score files given; expected at most one")
    if not plain:
        plain, given = given, []
    streams = [_stream(table, name) for table, name in zip(plain, words.labels_of(plain))]
    if reading.holdout:
        fit = [read_scores(find_scores(path, "val"), reading.described, "val") for path in reading.holdout]
        streams = [replace(stream, val=val) for stream, val in zip(streams, match_fit(plain, fit))]
    if reading.data_root:
        streams = [_with_data(stream, reading.data_root) for stream in streams]
    fused = given[0] if given else None
    if fused is None and len(plain) > 1:
        fused = fuse(plain, rule, fit=_fit_tables(streams) if rule == "learned" else None)
    return streams, fused, baseline


def _fit_tables(streams: list[_Stream]) -> list[ScoreTable]:
    """Return the holdout scores of all streams, reduced to their common videos."""
    lacking = next((stream for stream in streams if stream.val is None), None)
    if lacking is not None:
        raise ScoreError(
            f"{name_of(lacking.table)}: `--rule learned` fits the weights on the holdout part, but no holdout "
            "scores of this stream's model were found; run `two-stream evaluate RUN --part val`, or choose another rule"
        )
    return keep_common_videos([stream.val for stream in streams if stream.val is not None])


def _find_baseline(streams: list[_Stream], given: ScoreTable | None) -> tuple[ScoreTable | None, str, str]:
    """Return the baseline's scores, a note if there are none, and the command that computes the scores."""
    first = streams[0].table
    if first.meta.get("baseline"):
        return None, "", ""
    try:
        baseline, command = find_baseline(first)
        baseline = baseline if given is None else given
        if baseline is not None:
            return join([first, baseline])[1], "", command
    except ScoreError as error:
        return None, f"The baseline is not shown: {error}.", ""
    hint = f"This data set has no baseline yet. To compute the accuracy that a network should exceed, run: {command}"
    return None, hint if command else "", command


def _stream(table: ScoreTable, name: str) -> _Stream:
    run = run_of(table)
    return _Stream(table, name, run, settings_of(run), _holdout_scores(table, run))


def _with_data(stream: _Stream, data_root: Sequence[Path]) -> _Stream:
    if stream.run is None or stream.experiment is None:
        return stream
    return replace(stream, experiment=locate_data(stream.run, stream.experiment, data_root))


def _holdout_scores(table: ScoreTable, run: RunPaths | None) -> ScoreTable | None:
    if run is None or table.meta.get("selection") == "paper":
        return None
    try:
        found = read_scores(newest_scores(run.root, "val"))
    except ScoreError:
        return None
    return found if found.meta.get("model_sha256") == table.meta.get("model_sha256") else None


def _facts(
    streams: list[_Stream],
    fused: ScoreTable | None,
    baseline: ScoreTable | None,
    title: str | None,
    mistakes: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the values of the report, and the figures and images for the page."""
    curve = _curve(streams, fused)
    shown = [stream.table for stream in streams]
    if fused is not None:
        shown.append(fused)
        if curve is not None and fused.meta["rule"] != "learned" and len({*fused.meta["weights"]}) == 1:
            shown.append(_tuned(streams, fused))
    found = words.lines([*shown, *([] if baseline is None else [baseline])])
    main = found[len(streams)] if fused is not None else found[0]
    histories = {stream.name: history(stream.run) for stream in streams if stream.run is not None}
    compared = found[: len(streams) + (fused is not None)]
    classes = {line.name: metrics.per_class(line.table) for line in compared}
    confusion = None
    if main.table.targets is None:  # a row needs one true class per video
        confusion = metrics.confusion_matrix(main.table.logits, main.table.labels)
    measure = "accuracy" if confusion is not None else "average precision"
    facts: dict[str, Any] = {
        "title": title or _title(streams, fused),
        "headline": _headline(main),
        "protocol": words.protocol_line(main.table.meta, main.summary),
        "warning": words.PAPER_WARNING if main.table.meta.get("selection") == "paper" else "",
        "notes": words.caveats(main),
        "outlook": _outlook(main, found[: len(streams)], fused, baseline),
        "columns": list(words.columns(found)),
        "rows": words.rows(found),
        "streams": [{"name": line.name, **line.summary.to_json(), "meta": line.table.meta} for line in found],
        "main": main.name,
        "chance": main.summary.chance,
        "verdict": words.fusion_verdict(fused, [s.table for s in streams]) if fused is not None else "",
        "baseline": "" if baseline is None else words.against_baseline(main, baseline),
        "agreement": _agreement(streams),
        "curve": asdict(curve) if curve is not None else None,
        "curve_hint": _curve_hint(streams, fused, curve),
        "class_names": main.table.class_names,
        "confusion": None if confusion is None else confusion.tolist(),
        "measure": measure,
        "per_class": {name: [asdict(row) for row in rows] for name, rows in classes.items()},
        "history": histories,
        "compression": {s.name: made for s in streams if (made := compression_of(s.run)) is not None},
        "mistakes": _mistakes(main.table, streams, mistakes),
        "skipped": words.skipped_videos(main.table.meta),
        "settings": {s.name: dump(s.experiment) for s in streams if s.experiment is not None},
        "provenance": _provenance(streams),
        "code_version": code_version(),
        "created": _newest(shown),
    }
    # a linear probe is solved directly and has no learning curve
    trained = {name: rows for name, rows in histories.items() if rows and "c" not in rows[0]}
    chosen = {stream.name: stream.table.meta.get("epoch") for stream in streams}
    rows = [_interval_row(line, main) for line in found]
    guess = (main.summary.chance, "guessing") if main.summary.map is None else None
    drawn: dict[str, Any] = {
        "top": {
            "figure": page.accuracy_rows(rows, facts["headline"]["metric"], guess),
            "figure_note": page.dots_note(rows),
        },
        "tables": _tables(facts, confusion),
        "learning_note": _learning_note(trained, chosen),
        "table_notes": _table_notes(main, baseline),
        "curve_note": _curve_note(curve, found),
        "figures": {
            "learning": page.learning_curves(trained, chosen),
            "confusion": page.confusion(confusion, main.table.class_names) if confusion is not None else None,
            "classes": page.class_bars(classes, measure),
            "curve": page.fusion_curve(curve) if curve is not None else None,
        },
        "strips": _strips(facts["mistakes"], streams),
        "maps": [],
    }
    return facts, drawn


def _newest(tables: Sequence[ScoreTable]) -> str:
    """Return the time of the newest score file, which is the same if the report is written again."""
    files = [Path(str(table.meta["file"])) for table in tables if table.meta.get("file")]
    times = [path.stat().st_mtime for path in files if path.is_file()]
    return datetime.fromtimestamp(max(times)).isoformat(timespec="seconds") if times else ""


def _outlook(
    main: words.Line, streams: list[words.Line], fused: ScoreTable | None, baseline: ScoreTable | None
) -> str:
    """Return a sentence on how much data would show the gain of the fusion, or the difference from the baseline."""
    other, name = baseline, "the baseline"
    if fused is not None:
        best = max(streams, key=lambda line: line.summary.main.value)
        other, name = best.table, best.name
    if other is None:
        return ""
    found = metrics.difference(main.table, other)
    times = statistics.data_needed(found.estimate, 1 - statistics.LEVEL)
    if times <= 1 or not found.interval.low <= 0 <= found.interval.high:
        return ""
    what = f"a difference of {100 * abs(found.interval.value):.1f} points between {main.name} and {name}"
    return words.more_data(times, what, main.summary.groups)


def _interval_row(line: words.Line, main: words.Line) -> page.IntervalRow:
    color = SERIES[2] if line is main else SERIES[0]
    return page.IntervalRow(
        line.name, line.summary.main, color, sources=metrics.source_accuracies(line.table)
    )


def _tables(facts: dict[str, Any], confusion: NDArray[np.int64] | None) -> dict[str, Any]:
    """Return the tables of the page."""
    columns = ["class", "correct" if confusion is not None else "ranked first", facts["measure"]]
    rows = []
    for row in facts["per_class"][facts["main"]]:
        cells = [row["name"], f"{row['correct']} of {row['videos']}", words.percent(row["accuracy"])]
        mistaken = f"{row['confusion']} ({row['confusion_count']})" if row["confusion"] else ""
        more = [words.percent(row["precision"]), words.percent(row["f1"]), mistaken]
        rows.append([*cells, *more] if confusion is not None else cells)
    columns += ["precision", "F1", "mostly mistaken for"] if confusion is not None else []
    compression = {
        name: words.text_table("", made["columns"], made["rows"])
        for name, made in facts["compression"].items()
    }
    caption = "In per cent, with 95 % intervals in brackets."
    return {
        "accuracy": words.text_table(caption, facts["columns"], facts["rows"], strong=facts["main"]).filled(),
        "classes": words.text_table("In per cent. The accuracy of a class is its recall.", columns, rows),
        "confusion": page.confusion_table(confusion, facts["class_names"]) if confusion is not None else None,
        "compression": compression,
    }


def _table_notes(main: words.Line, baseline: ScoreTable | None) -> list[str]:
    """Return what the names of the rows mean."""
    meta = main.table.meta
    found = []
    if baseline is not None:
        protocol = f"; {baseline.meta['protocol']}" if baseline.meta.get("protocol") else ""
        found.append(f"baseline: linear classifiers on fixed features, by `two-stream baseline`{protocol}.")
    if meta.get("kind") == "fused":
        weights = "equal weights" if len({*meta.get("weights", [])}) <= 1 else "the weights in brackets"
        found.append(f"{main.name}: the streams are fused by rule {meta.get('rule')} with {weights}.")
    return found


def _curve_note(curve: Curve | None, found: Sequence[words.Line]) -> str:
    """Return which row uses the chosen weight of the fusion, and which weights are equally good."""
    if curve is None:
        return ""
    best = [share for share, value in zip(curve.shares, curve.accuracies) if value >= curve.accuracy - 1e-9]
    row = next((line.name for line in found if line.table.meta.get("fitted_on")), "")
    text = "The weight is chosen on the holdout part; test videos are not used."
    text += f" The row '{row}' uses it." if row else ""
    return (
        f"{text} All weights from {min(best):.2f} to {max(best):.2f} give this value."
        if len(best) > 1
        else text
    )


def _learning_note(
    histories: Mapping[str, Sequence[Mapping[str, float]]], chosen: Mapping[str, int | None]
) -> str:
    epochs = [f"{name} {epoch}" for name in histories if (epoch := chosen.get(name)) is not None]
    marked = f"Circles mark the epochs of the checkpoints ({', '.join(epochs)}). " if epochs else ""
    trained = any("train_top1" in row for rows in histories.values() for row in rows)
    why = (
        "Training accuracy is measured with augmentation and dropout, so it can be below validation accuracy."
    )
    return f"{marked}{why if trained else ''}".strip()


def _curve(streams: list[_Stream], fused: ScoreTable | None) -> Curve | None:
    """Return the accuracy of two streams over the fusion weight; None without holdout scores of the same videos."""
    if fused is None or len(streams) != 2 or streams[0].val is None or streams[1].val is None:
        return None
    try:
        rule = str(fused.meta.get("rule", "l2"))
        curve = weight_curve(streams[0].val, streams[1].val, "logits" if rule == "learned" else rule)
    except ScoreError:  # holdout parts of different seeds
        return None
    return replace(curve, names=(streams[0].name, streams[1].name))


def _tuned(streams: list[_Stream], fused: ScoreTable) -> ScoreTable:
    fit = [stream.val for stream in streams if stream.val is not None]
    return fuse([stream.table for stream in streams], str(fused.meta["rule"]), fit=fit)


def _curve_hint(streams: list[_Stream], fused: ScoreTable | None, curve: Curve | None) -> str:
    if fused is None or curve is not None or len(streams) != 2:
        return ""
    lacking = [str(stream.run.root) for stream in streams if stream.val is None and stream.run is not None]
    if not lacking or fused.meta.get("selection") == "paper":
        return (
            "The fusion-weight curve is not shown: it is computed on the holdout part, but these streams have "
            "no holdout videos in common."
        )
    commands = " && ".join(f"two-stream evaluate {shlex.quote(run)} --part val" for run in lacking)
    return f"The fusion-weight curve is computed on the holdout part; to add the curve, run: {commands}"


def _title(streams: list[_Stream], fused: ScoreTable | None) -> str:
    meta = streams[0].table.meta
    kinds = [str(s.table.meta.get("modality") or s.name) for s in streams]
    names = " + ".join(kinds if len(set(kinds)) == len(kinds) else [s.name for s in streams])
    kind = ", fused" if fused is not None else ""
    split = f", split {meta['split']}" if "split" in meta else ""
    return f"{meta.get('dataset', 'Scores')}{split}: {names}{kind}"


def _headline(line: words.Line) -> dict[str, str]:
    top, summary = line.summary.main, line.summary
    correct = f"{round(top.value * summary.videos)} of {plural(summary.videos, 'video')}"
    if summary.map is not None:
        correct = f"mean over {summary.map_classes} of {plural(len(line.table.class_names), 'class')}"
    return {
        "metric": "top-1" if summary.map is None else "mAP",
        "name": line.name,
        "value": f"{words.percent(top.value)} %",
        "interval": f"{words.percent(top.low)} – {words.percent(top.high)} %" if top.known else "unknown",
        "chance": f"{words.percent(summary.chance)} %",
        "correct": correct,
    }


def _agreement(streams: list[_Stream]) -> dict[str, Any] | None:
    if len(streams) != 2:
        return None
    counts = metrics.agreement(streams[0].table, streams[1].table)
    return {"first": streams[0].name, "second": streams[1].name, **counts}


def _mistakes(table: ScoreTable, streams: list[_Stream], count: int) -> list[dict[str, Any]]:
    found = []
    gaps = metrics.score_gaps(table)
    for row in metrics.confident_mistakes(table, count):
        guesses = {}
        for stream in streams:
            several = stream.table.targets is not None
            chances = metrics.probabilities(stream.table.logits[row], multi_label=several)
            best = int(chances.argmax())
            guesses[stream.name] = {"class": table.class_names[best], "probability": float(chances[best])}
        predicted = table.class_names[int(table.logits[row].argmax())]
        true = _true_classes(table, row)
        found.append(
            {
                "id": table.ids[row],
                "true": true,
                "predicted": predicted,
                "streams": guesses,
                "gap": float(gaps[row]),
            }
        )
    return found


def _true_classes(table: ScoreTable, row: int) -> str:
    if table.targets is None:
        return table.class_names[int(table.labels[row])]
    return ", ".join(name for name, has in zip(table.class_names, table.targets[row]) if has)


def _strips(mistakes: list[dict[str, Any]], streams: list[_Stream]) -> list[tuple[str, str]]:
    source = next((s for s in streams if s.table.meta.get("modality") == "rgb" and s.experiment), streams[0])
    modality = str(source.table.meta.get("modality", "rgb"))
    return [strip(source.experiment, mistake["id"], modality) for mistake in mistakes]


def _saliency_strips(
    mistakes: list[dict[str, Any]], streams: list[_Stream], data_root: Sequence[Path]
) -> list[list[tuple[str, str, str]]]:
    """Return for each mistake the rows `(what is shown, data URI, "")`, or `(stream, "", reason)`."""
    rows: list[list[tuple[str, str, str]]] = [[] for _ in mistakes]
    for stream in streams:
        try:
            pictures = _maps_of_stream(mistakes, stream, data_root)
        except TwoStreamError as error:
            pictures = [[(stream.name, "", " ".join(str(error).split()))] for _ in mistakes]
        for own, found in zip(rows, pictures):
            own += found
    return rows


def _maps_of_stream(
    mistakes: list[dict[str, Any]], stream: _Stream, data_root: Sequence[Path]
) -> list[list[tuple[str, str, str]]]:
    """Return the rows of a stream for each mistake, from the middle clip of its video."""
    from two_stream.data.clips.views import view_loader
    from two_stream.evaluation.pictures.saliency import strip_of_clip
    from two_stream.evaluation.runs.run import load_run, with_options
    from two_stream.evaluation.scoring.saliency import SaliencyOptions

    meta = stream.table.meta
    if stream.run is None:
        raise ScoreError("the run folder of these scores is not on this machine")
    run = load_run(stream.run.root, str(meta.get("checkpoint") or "best"), data_root=data_root)
    views = run.experiment.evaluate.model_copy(update={"views": "single", "crops": "center"})
    experiment = with_options(run, views, 0)
    known = {record.id: record for record in run.videos(meta.get("part") or "test")}
    found: list[list[tuple[str, str, str]]] = []
    for mistake in mistakes:
        record = known.get(mistake["id"])
        if record is None:
            found.append([(stream.name, "", "the video is not in the lists of the data set")])
            continue
        loader = view_loader(experiment.data, experiment.evaluate, run.model.spec, [record], run.record)
        clip = next((views.views[0] for views in loader), None)
        if clip is None:
            found.append([(stream.name, "", dict(loader.skipped)[record.id])])
            continue
        first, second = str(mistake["predicted"]), str(mistake["true"])
        # a video with several true classes has no single one to compare with
        several = second not in run.class_names
        pairs = [(first,)] if several else [(first, second), (second, first)]
        asked = [SaliencyOptions(pair) for pair in pairs]
        for wanted in asked:
            wanted.check(run.model, run.class_names, stream.name)
        found.append(
            [
                (
                    f"{stream.name}: for {' rather than '.join(wanted.classes)}",
                    strip_of_clip(run.model, clip, run.class_names, wanted),
                    "",
                )
                for wanted in asked
            ]
        )
    return found


def _provenance(streams: list[_Stream]) -> list[dict[str, Any]]:
    rows = []
    for stream in streams:
        meta = stream.table.meta
        known = {key: meta[key] for key in _PROVENANCE if meta.get(key) is not None}
        facts = {"scores": meta.get("file"), **known}
        rows.append({"name": stream.name, "facts": facts, "environment": meta.get("environment", {})})
    return rows


def _commands(
    streams: list[_Stream], sources: Sequence[Path | str], out: Path, rule: str, baseline: str
) -> list[str]:
    lines = [baseline] if baseline else []
    for stream in streams:
        if stream.run is None:
            continue
        meta = stream.table.meta
        lines.append(_train_command(stream.run))
        flags = [f"--{key} {meta.get(key)}" for key in ("views", "crops", "aggregate")]
        if meta.get("num_clips"):
            flags.append(f"--num-clips {meta['num_clips']}")
        if meta.get("step"):
            flags.append(f"--step {meta['step']}")
        root = shlex.quote(str(stream.run.root))
        lines.append(f"two-stream evaluate {root} --part {meta.get('part')} {' '.join(flags)}")
    joined = shlex.join(str(source) for source in sources)
    if len(streams) > 1:
        lines.append(f"two-stream fuse {joined} --rule {rule}")
    lines.append(f"two-stream report {joined} --rule {rule} --out {shlex.quote(str(out))}")
    return lines


def _train_command(run: RunPaths) -> str:
    """Return the command that repeats the training of a run with another run name."""
    name = re.sub(r"[^\w.+-]", "_", f"{run.root.resolve().name}_again")
    return f"two-stream train {shlex.quote(str(run.experiment))} --name {name}"
