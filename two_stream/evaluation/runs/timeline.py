"""Scores the time line of long recordings: sliding windows, a rule chosen on the holdout, bouts and their metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from two_stream.config.schema import EvaluateOptions
from two_stream.data.bouts import BACKGROUND, Bout, LabelledRecording, read_recordings
from two_stream.data.catalog import mirror_of
from two_stream.data.clips.dataset import make_source
from two_stream.data.sources.files import SeenSource
from two_stream.data.sources.segments import segments_of
from two_stream.errors import DataError, ScoreError, SettingsError
from two_stream.evaluation.runs.run import (
    AnyRun,
    check_classes,
    read_and_score,
    run_facts,
    scoring_facts,
    with_options,
)
from two_stream.evaluation.scores.metrics import probabilities, source_units
from two_stream.evaluation.scores.statistics import Interval
from two_stream.evaluation.scores.timeline_metrics import (
    MAP_OVERLAPS,
    RecordingCounts,
    class_values,
    count_recording,
    f1_of,
    segment_counts,
    summarise_timeline,
    timeline_values,
)
from two_stream.evaluation.scoring.score import aggregate_views
from two_stream.evaluation.scoring.video import clip_spans
from two_stream.runtime import distributed
from two_stream.runtime.console import note
from two_stream.runtime.files import check_writable, write_json, write_text
from two_stream.runtime.text import csv_text
from two_stream.types import Part, VideoRecord

SHORTEST = (0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0)
"""shortest bouts in seconds that are tried on the holdout"""
CRITERIA = "thresholds: frame F1 of each class on the holdout; shortest bout: segmental F1@50 on the holdout"
_SLACK = 1e-6
"""seconds; tolerance for rounding of times"""


@dataclass(frozen=True)
class TimeLine:
    """The predictions of a network for one recording."""

    name: str
    """id of the recording"""
    recording: LabelledRecording
    chances: NDArray[np.float64]
    """probabilities of the actions, without background, `(W, K)` for W windows"""
    owner: NDArray[np.int64]
    """index of the window of each frame, `(N,)`: the one whose middle is nearest"""

    @property
    def truth(self) -> list[Bout]:
        """The true bouts."""
        return [Bout(start, end, name) for start, end, name in self.recording.bouts if name != BACKGROUND]


@dataclass(frozen=True)
class Rule:
    """How bouts are found."""

    thresholds: dict[str, float]
    """least probability of each action"""
    undetermined: list[str]
    """actions whose threshold could not be chosen on the holdout; they have the mean of the others, or 0.5"""
    shortest: float = 0.0
    """shortest bout in seconds"""


@dataclass(frozen=True)
class TimelineResult:
    """The result of `evaluate_timeline`."""

    metrics: dict[str, Interval]
    classes: dict[str, dict[str, float | int | None]]
    rule: Rule
    meta: dict[str, Any]
    path: Path
    """JSON file with all of this; the bouts are in the CSV file of the same name"""


def frame_labels(
    bouts: Sequence[Bout], edges: NDArray[np.float64], actions: Sequence[str]
) -> NDArray[np.int64]:
    """Return the index of the action of each frame, -1 for background, `(N,)`; see `frames_between` for the borders."""
    labels_N = np.full(len(edges) - 1, -1, np.int64)
    for bout in bouts:
        first, stop = (int(np.searchsorted(edges, at + _SLACK, "right")) - 1 for at in (bout.start, bout.end))
        labels_N[max(first, 0) : stop] = actions.index(bout.name)
    return labels_N


def choose_rule(lines: Sequence[TimeLine], actions: Sequence[str]) -> Rule:
    """Choose the thresholds and the shortest bout on recordings with known bouts.

    A frame shows its most likely action if the probability is at least the action's threshold. The frame F1 of an
    action depends only on its own threshold, so the thresholds are chosen one by one. Each lies halfway between the
    lowest probability that is accepted and the next one. Among equally good shortest bouts, the smallest is chosen.

    Raises:
        ScoreError: The recordings have no bout.
    """
    if not any(line.truth for line in lines):
        raise ScoreError(
            "the holdout recordings have no bouts, so no threshold can be chosen; set another `data.holdout`"
        )
    best, chance, size, own, total = [], [], [], [], np.zeros(len(actions), np.int64)
    for line in lines:
        best.append(line.chances.argmax(axis=1))
        chance.append(line.chances.max(axis=1))
        truth_N = frame_labels(line.truth, line.recording.edges, actions)
        windows = len(line.chances)
        size.append(np.bincount(line.owner, minlength=windows))
        own.append(np.bincount(line.owner[truth_N == best[-1][line.owner]], minlength=windows))
        total += np.bincount(truth_N[truth_N >= 0], minlength=len(actions))
    best_W, chance_W, size_W, own_W = (np.concatenate(values) for values in (best, chance, size, own))
    found = {
        name: _threshold(chance_W[best_W == k], size_W[best_W == k], own_W[best_W == k], int(total[k]))
        for k, name in enumerate(actions)
    }
    known = [value for value in found.values() if value is not None]
    usual = float(np.mean(known)) if known else 0.5
    rule = Rule(
        {name: usual if value is None else value for name, value in found.items()},
        [name for name, value in found.items() if value is None],
    )
    rules = [replace(rule, shortest=seconds) for seconds in SHORTEST]
    return max(rules, key=lambda one: _segmental_f1(lines, one, actions))


def _threshold(
    chance_W: NDArray[np.float64], size_W: NDArray[np.int64], own_W: NDArray[np.int64], total: int
) -> float | None:
    """Return the threshold with the highest frame F1; None if the action does not occur or is never recognised.

    `size_W` and `own_W` are the frames of each window, and those that show the action. `total` is the number of frames
    that show the action in all windows.
    """
    order = np.argsort(-chance_W, kind="stable")
    ranked = np.append(chance_W[order], 0.0)
    f1 = 2 * np.cumsum(own_W[order]) / (np.cumsum(size_W[order]) + max(total, 1))
    f1[ranked[:-1] == ranked[1:]] = 0  # equal probabilities are accepted together
    if not f1.size or f1.max() == 0:
        return None
    last = int(f1.argmax())
    return float((ranked[last] + ranked[last + 1]) / 2)


def _segmental_f1(lines: Sequence[TimeLine], rule: Rule, actions: Sequence[str]) -> float:
    counts = [segment_counts(line.truth, find_bouts(line, rule, actions), 0.5) for line in lines]
    return float(f1_of(np.sum(counts, axis=0)))


def find_bouts(line: TimeLine, rule: Rule, actions: Sequence[str]) -> list[Bout]:
    """Return the bouts of a recording in order of time.

    Gaps that are shorter than the shortest bout, between two bouts of the same action, are filled first. Then shorter
    bouts are removed, and the gaps that they leave are filled in the same way.
    """
    edges, shortest = line.recording.edges, rule.shortest - _SLACK
    best_W = line.chances.argmax(axis=1)
    least_K = np.asarray([rule.thresholds[name] for name in actions])
    label_W = np.where(line.chances.max(axis=1) >= least_K[best_W], best_W, -1)
    label_N = label_W[line.owner]
    starts = np.flatnonzero(np.diff(label_N, prepend=-2))
    spans = zip(starts.tolist(), [*starts[1:].tolist(), len(label_N)])
    bouts = [(first, stop, int(label_N[first])) for first, stop in spans if label_N[first] >= 0]
    for _ in range(2):
        joined: list[tuple[int, int, int]] = []
        for first, stop, label in bouts:
            if joined and joined[-1][2] == label and edges[first] - edges[joined[-1][1]] < shortest:
                joined[-1] = (joined[-1][0], stop, label)
            else:
                joined.append((first, stop, label))
        bouts = [one for one in joined if edges[one[1]] - edges[one[0]] >= shortest]
    chance_KW = line.chances.T
    return [
        Bout(
            float(edges[first]),
            float(edges[stop]),
            actions[label],
            float(chance_KW[label][line.owner[first:stop]].mean()),
        )
        for first, stop, label in bouts
    ]


def evaluate_timeline(
    run: AnyRun[Any],
    options: EvaluateOptions,
    part: Part = "test",
    *,
    workers: int | None = None,
    out: Path | None = None,
) -> TimelineResult:
    """Score the recordings of a part, with thresholds and a shortest bout that are chosen on those of the holdout.

    Writes a JSON file and a CSV file of the bouts (`scores/timeline_<part>.json` and `.csv` in the run folder).

    Raises:
        DataError: The data set has no dense labels, or other classes than the network.
        ScoreError: The holdout has no bouts.
        SettingsError: There is no holdout, or several processes.
    """
    _check_protocol(run, part)
    path = out or run.paths.scores / f"timeline_{part}{run.score_suffix}.json"
    check_writable(path)
    recordings = read_recordings(run.record)
    check_classes(run)
    names = {key: _recordings_of(run, recordings, key) for key in ("val", part)}
    shared = sorted(set(names["val"]) & set(names[part]))
    if shared:
        raise DataError(
            f"{run.record.name}: recording {shared[0]!r} is in the holdout and in the {part} part"
        )
    chosen = options.model_copy(update={"views": "sliding", "keep_views": True})
    experiment = with_options(run, chosen, workers)
    if experiment.data.source == "shards":  # they contain clips, not whole recordings
        source = "frames" if run.record.videos is None else "videos"
        note(f"shards contain only the clips of the lists, so the recordings are read from {source}")
        data = experiment.data.model_copy(update={"source": source})
        experiment = experiment.model_copy(update={"data": data})
    lines = _score(run, experiment, {name: recordings[name] for name in (*names["val"], *names[part])})
    actions = [name for name in run.class_names if name != BACKGROUND]
    rule = choose_rule([lines[name] for name in names["val"]], actions)
    found_bouts = {name: find_bouts(line, rule, actions) for name, line in lines.items()}
    counts = {name: _count(line, found_bouts[name], actions) for name, line in lines.items()}
    scored = [counts[name] for name in names[part]]
    groups = [recordings[name].group for name in names[part]]
    units = source_units(names[part], groups)
    result = TimelineResult(
        summarise_timeline(scored, units),
        _class_rows(scored, [lines[name] for name in names[part]], found_bouts, actions),
        rule,
        {
            **run_facts(run, experiment, part),
            "selection": "holdout",
            "criteria": CRITERIA,
            "holdout_recordings": names["val"],
            "holdout": timeline_values([counts[name] for name in names["val"]]),
            "recordings": names[part],
            "sources": int(units.max()) + 1,
            **scoring_facts(experiment, run.model, mirror_of(run.record, experiment.data.augment.protocol)),
        },
        path,
    )
    rows = [
        (name, f"{bout.start:.3f}", f"{bout.end:.3f}", bout.name, f"{bout.confidence:.6f}")
        for name in names[part]
        for bout in found_bouts[name]
    ]
    write_text(path.with_suffix(".csv"), csv_text(("video", "start", "end", "class", "confidence"), rows))
    write_json(path, {key: value for key, value in asdict(result).items() if key != "path"})
    return result


def _check_protocol(run: AnyRun[Any], part: Part) -> None:
    selection = run.experiment.train.selection
    if selection != "holdout" or part == "val":
        found = "the part is val" if part == "val" else f"`train.selection` is {selection}"
        raise SettingsError(
            f"--timeline: {found}, but the thresholds are chosen on the holdout; use a run with selection holdout, and "
            "the part test or train"
        )
    if distributed.world_size() > 1:
        raise SettingsError("--timeline runs in one process; start it without torchrun")


def _recordings_of(run: AnyRun[Any], recordings: dict[str, LabelledRecording], part: Part) -> list[str]:
    """Return the ids of the recordings that the clips of a part belong to."""
    segments = segments_of(run.record)
    clips = [video.id for video in run.videos(part)]
    names = list(dict.fromkeys(segments[clip].video if clip in segments else clip for clip in clips))
    lost = [name for name in names if name not in recordings]
    if lost:
        raise DataError(
            f"{run.record.name}: the recording {lost[0]!r} of the {part} part has no dense labels; run "
            "`two-stream prepare timeline` again"
        )
    return names


def _score(
    run: AnyRun[Any], experiment: Any, recordings: dict[str, LabelledRecording]
) -> dict[str, TimeLine]:
    """Return the predictions for whole recordings. Only one chunk of frames is in memory at a time."""
    spec, evaluate = run.model.spec, experiment.evaluate
    flow = spec.modality == "flow"
    videos = [VideoRecord(name, one.flow if flow else one.frames, 0) for name, one in recordings.items()]
    scores, skipped = read_and_score(run, experiment, videos)
    if skipped:
        raise ScoreError(f"{skipped[0][0]}: the recording cannot be read ({skipped[0][1]})")
    assert scores.view_logits is not None
    keep = [k for k, name in enumerate(run.class_names) if name != BACKGROUND]
    made, start = {}, 0
    for name, count in zip(scores.ids, scores.counts.tolist(), strict=True):
        recording = recordings[name]
        images = np.arange(1, recording.frames + 1)
        if spec.fps is not None:
            listed = VideoRecord(name, recording.flow if flow else recording.frames, 0)
            images = np.array(
                SeenSource(make_source(run.record, spec.modality, experiment.data), spec.fps).images(listed)
            )
        spans = images[np.array(clip_spans(evaluate, spec, len(images), experiment.data.sampling)) - 1]
        logits_CWK = scores.view_logits[start : start + count].reshape(-1, len(spans), len(run.class_names))
        start += count
        logits_WK = np.stack(
            [aggregate_views(logits_CK, evaluate.aggregate) for logits_CK in logits_CWK.swapaxes(0, 1)]
        )
        middles = spans.mean(axis=1)
        owner_N = np.searchsorted((middles[:-1] + middles[1:]) / 2, np.arange(1, recording.frames + 1))
        chances_WK = probabilities(logits_WK, multi_label=run.multi_label)[:, keep]
        made[name] = TimeLine(name, recording, chances_WK, owner_N.astype(np.int64))
    return made


def _count(line: TimeLine, found: Sequence[Bout], actions: Sequence[str]) -> RecordingCounts:
    edges = line.recording.edges
    truth_N, found_N = (frame_labels(bouts, edges, actions) for bouts in (line.truth, found))
    return count_recording(line.truth, found, truth_N, found_N, actions)


def _class_rows(
    counts: Sequence[RecordingCounts],
    lines: Sequence[TimeLine],
    found: dict[str, list[Bout]],
    actions: Sequence[str],
) -> dict[str, dict[str, float | int | None]]:
    """Return the metrics of each action; `constant_f1` is the frame F1 if every frame were predicted as this action."""
    truths, frames = (np.sum([getattr(one, key) for one in counts], axis=0) for key in ("truths", "frames"))
    total = sum(line.recording.frames for line in lines)
    made: dict[str, dict[str, float | int | None]] = {}
    for k, (name, row) in enumerate(zip(actions, class_values(counts), strict=True)):
        own = int(frames[k, 0] + frames[k, 2])
        made[name] = {
            "frame_f1": float(row[0]) if own else None,
            "constant_f1": 2 * own / (own + total) if own else None,
            "ap@0.5": float(row[1 + MAP_OVERLAPS.index(0.5)]) if truths[k] else None,
            "true_bouts": int(truths[k]),
            "found_bouts": sum(bout.name == name for line in lines for bout in found[line.name]),
        }
    return made
