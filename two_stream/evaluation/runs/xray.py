"""Scores runs under controlled changes of their clips. Runs with the same input read the data once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from two_stream.config.schema import EvaluateOptions, Experiment
from two_stream.data.clips.views import view_loader
from two_stream.errors import SettingsError
from two_stream.evaluation.features.cache import weights_sha256
from two_stream.evaluation.runs.run import AnyRun, aggregation_of, check_classes, score_table, with_options
from two_stream.evaluation.scores.fusion import fuse
from two_stream.evaluation.scoring.changes import NATURAL, changed_views, clip_changes, split_name
from two_stream.evaluation.scoring.network import evaluation_mode, prepare_for_inference
from two_stream.evaluation.scoring.score import (
    Canvas,
    VideoProgress,
    VideoScores,
    aggregate_views,
    check_incomplete,
    scored_views,
)
from two_stream.recognizer import Recognizer
from two_stream.runtime import distributed
from two_stream.runtime.console import progress
from two_stream.runtime.device import rng
from two_stream.types import Part, ScoreTable, VideoRecord

Changed = dict[str, ScoreTable]
"""scores under each change, with `NATURAL` first"""


def score_changes(
    runs: Sequence[AnyRun[Any]],
    options: Sequence[EvaluateOptions] | None = None,
    part: Part = "test",
    *,
    workers: int | None = None,
) -> list[Changed]:
    """Score a part of each run's data set under all changes of `clip_changes`.

    Runs with the same videos, input and views are scored together. Their data is read once, and runs with the same
    backbone weights share the forward pass of the backbone. Scores are computed from the videos even if a run was
    trained on stored features. `options` contains the evaluation options of each run; the default is those of the run.

    Raises:
        SettingsError: There are several processes (`torchrun`).
        TwoStreamError: See `evaluate_run`.
    """
    if distributed.world_size() > 1:
        raise SettingsError("`two-stream xray` runs in one process; start it without torchrun")
    groups: dict[str, list[tuple[int, Experiment, list[VideoRecord]]]] = {}
    for place, run in enumerate(runs):
        check_classes(run)
        experiment = with_options(run, options[place] if options else None, workers)
        records = run.videos(part)
        facts = {
            "input": asdict(run.model.spec),
            "record": str(run.record.folder),
            "data": experiment.data.model_dump(mode="json", exclude={"features", "holdout"}),
            "evaluate": experiment.evaluate.model_dump(mode="json"),
            "videos": [record.id for record in records],
            "export": None if isinstance(run.model, Recognizer) else place,
        }
        groups.setdefault(json.dumps(facts), []).append((place, experiment, records))
    found: dict[int, Changed] = {}
    for members in groups.values():
        places, experiments, lists = zip(*members, strict=True)
        found |= zip(
            places, _score_group([runs[place] for place in places], experiments, part, lists[0]), strict=True
        )
    return [found[place] for place in range(len(runs))]


def _score_group(
    runs: Sequence[AnyRun[Any]],
    experiments: Sequence[Experiment],
    part: Part,
    records: Sequence[VideoRecord],
) -> list[Changed]:
    first, data, evaluate = runs[0], experiments[0].data, experiments[0].evaluate
    if len(runs) > 1:
        evaluate = evaluate.model_copy(update={"compile": False})
    changes = clip_changes(first.model.spec, [record.label for record in records])
    # in lists that are sorted by class, the next video of another class would be far away
    mixed = [records[place] for place in rng("xray").permutation(len(records))]
    loader = view_loader(data, evaluate, first.model.spec, mixed, first.record)
    networks: list[Any] = []
    shared: dict[str, nn.Module] = {}
    backbones: list[nn.Module] = []
    for run in runs:
        networks.append(prepare_for_inference(run.model, evaluate))
        if len(runs) > 1:
            key = weights_sha256(run.model.backbone)
            backbones.append(shared.setdefault(key, networks[-1].backbone))
            if networks[-1] is not run.model:  # a copy, whose own backbone is not needed
                networks[-1].backbone = backbones[-1]
    compute = _joined(networks, backbones) if len(runs) > 1 else None
    canvas = Canvas(networks[0], first.model.device, evaluate.precision, evaluate.batch_views or 1, compute)
    count, aggregate = len(first.class_names), aggregation_of(evaluate, first.record.multi_label)
    videos: dict[str, VideoProgress] = {}
    means: dict[str, dict[str, NDArray[np.float64]]] = {}
    views: dict[str, int] = {}
    items = (
        replace(item, mirror_labels=_repeated(item.mirror_labels, len(runs)))
        for item in changed_views(loader, changes)
    )
    with ExitStack() as stack, progress("scoring", len(records) * (1 + len(changes))) as advance:
        for network in networks:
            stack.enter_context(evaluation_mode(network))
        for video in scored_views(items, videos, canvas):
            change, name = split_name(video.id)
            parts = np.split(video.logits, len(runs), axis=1)
            means.setdefault(name, {})[change] = np.stack([aggregate_views(one, aggregate) for one in parts])
            views[name] = video.views
            video.logits = np.zeros((0, count), np.float32)
            advance()
    check_incomplete([replace(one, id=split_name(one.id)[1]) for one in videos.values()], loader)
    names = [NATURAL, *(change.name for change in changes)]
    kept = [record for record in records if len(means.get(record.id, ())) == len(names)]

    found: list[Changed] = []
    for place, run in enumerate(runs):
        scores = VideoScores(
            [record.id for record in kept],
            np.asarray([record.label for record in kept], np.int64),
            np.zeros((len(kept), count)),
            None,
            np.asarray([views[record.id] for record in kept], np.int64),
        )
        experiment = experiments[place].model_copy(update={"evaluate": evaluate})
        reasons = dict(loader.skipped)
        plain = score_table(run, experiment, part, records, scores, reasons=reasons, facts={})
        found.append({})
        for change in names:
            logits = np.asarray([means[record.id][change][place] for record in kept])
            found[-1][change] = replace(plain, logits=logits, meta=plain.meta | {"change": change})
    return found


def _joined(
    networks: Sequence[Recognizer], backbones: Sequence[nn.Module]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that computes the logits of all networks; a backbone that several share is computed once."""

    def compute(x_BCTHW: torch.Tensor) -> torch.Tensor:
        maps: dict[tuple[nn.Module, str], list[torch.Tensor]] = {}
        found = []
        for network, backbone in zip(networks, backbones, strict=True):
            key = backbone, network.options.modality  # RGB and RGB differences may have the same weights
            if key not in maps:
                maps[key] = network.maps_of_normalised(x_BCTHW)
            found.append(network.logits_of_maps(maps[key]))
        return torch.cat([logits_BK.float() for logits_BK in found], dim=1)

    return compute


def _repeated(labels: Sequence[int] | None, times: int) -> list[int] | None:
    """Return the labels of mirrored actions for the joined logits of several networks."""
    if labels is None:
        return None
    return [label + place * len(labels) for place in range(times) for label in labels]


def cross_changes(rgb: Mapping[str, ScoreTable], flow: Mapping[str, ScoreTable], rule: str) -> Changed:
    """Return the fusion of two networks in which one sees natural clips and the other changed ones."""
    made = {NATURAL: fuse([rgb[NATURAL], flow[NATURAL]], rule)}
    made |= {
        f"RGB {change}": fuse([table, flow[NATURAL]], rule)
        for change, table in rgb.items()
        if change != NATURAL
    }
    return made | {
        f"flow {change}": fuse([rgb[NATURAL], table], rule)
        for change, table in flow.items()
        if change != NATURAL
    }
