"""How much each layer bears: one layer at a time loses a share of its weights or channels, and clips are scored.

After compressed-video-classification's `model-sensitivity.py`, with a fixed set of clips in place of one drawn anew,
and with what each share saves beside what it costs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch

from two_stream.compression.channels import take_out
from two_stream.compression.layers import chosen_layers
from two_stream.compression.masks import kept, level_threshold
from two_stream.config.compress import Prune
from two_stream.data.clips.dataset import open_clips
from two_stream.data.clips.loader import clip_loader
from two_stream.data.splits import load_part
from two_stream.errors import DataError, SettingsError
from two_stream.evaluation.runs.run import Run
from two_stream.evaluation.scores import metrics
from two_stream.evaluation.scoring.network import example_clip
from two_stream.profiling import multiply_adds
from two_stream.profiling.network_cost import nonzero_parameters
from two_stream.profiling.timing import timed
from two_stream.recognizer import Recognizer
from two_stream.runtime.console import progress
from two_stream.runtime.seeding import rng
from two_stream.training.losses import evaluation_loss
from two_stream.types import Batch, Part

_LATENCY_SECONDS = 0.3


@dataclass(frozen=True)
class SensitivityPoint:
    """The network with one layer pruned."""

    layer: str
    """empty: nothing is pruned"""
    level: float
    top1: float
    """share; of a multi-label set any class counts"""
    top5: float
    loss: float
    parameters: int
    """that are left and not 0"""
    multiply_adds: int
    latency_ms: float | None = None
    map: float | None = None
    """of a multi-label set"""


@dataclass(frozen=True)
class Sensitivity:
    """Every layer at every level on the same clips."""

    run: str
    what: str
    part: str
    clips: int
    seed: int
    base: SensitivityPoint
    points: list[SensitivityPoint]
    shared: dict[str, str] = field(default_factory=dict)
    """layers whose channels are another one's too: measured under that one's name"""
    fixed: list[str] = field(default_factory=list)
    """layers that lose no channel, because they reach the last map"""

    @property
    def layers(self) -> list[str]:
        """The measured layers, in the order of the network."""
        return list(dict.fromkeys(point.layer for point in self.points))


def fixed_clips(run: Run, part: Part, count: int | None, seed: int) -> list[Batch]:
    """Return the centred clips of a part's videos, or of `count` of them drawn once without replacement.

    Args:
        run: Whose data set.
        part: `val` and `train` are the two sides of the holdout, also of a run whose epochs were picked on the test
            list.
        count: How many; none: all.
        seed: Of the draw.

    Raises:
        DataError: The part has no video, or one cannot be read.
    """
    data = run.experiment.data
    records = load_part(
        run.record,
        run.model.spec.modality,
        data.split,
        part,
        holdout=data.holdout,
        seed=run.experiment.seed,
    )
    if not records:
        raise DataError(f"{run.paths.root}: the {part} part has no videos; give another --part")
    if count is not None and count < len(records):
        chosen = rng(seed, "sensitivity").permutation(len(records))[:count]
        records = [records[place] for place in sorted(chosen)]
    clips = open_clips(data, run.model.spec, records, run.record)
    return list(clip_loader(clips, run.experiment.train.batch_size))


def measure_sensitivity(
    run: Run,
    options: Prune,
    levels: Sequence[float],
    batches: Sequence[Batch],
    *,
    part: Part,
    seed: int,
    latency: bool = False,
) -> Sensitivity:
    """Prune one layer after another to each level and score the clips.

    Args:
        run: The network is left as it is; one copy of it exists at a time.
        options: What is pruned, by which importance, which layers.
        levels: Shares, ascending.
        batches: Clips, as `fixed_clips` gives them.
        part: What they are of, for the record.
        seed: Of their draw, for the record.
        latency: Time a view's forward pass at every point.

    Raises:
        SettingsError: The network cannot be pruned so, or no layer can.
    """
    model = run.model.cpu().eval()
    score = _scorer(batches, latency=latency)
    base = score(model, "", 0.0)
    found: list[SensitivityPoint] = []
    shared: dict[str, str] = {}
    fixed: list[str] = []
    names = [
        name
        for name in chosen_layers(model, options)
        if options.what == "weights" or name.startswith("backbone.")
    ]
    known: dict[tuple[str, ...], str] = {}
    with progress("sensitivity", len(names) * len(levels)) as advance:
        for name in names:
            for level in levels:
                if options.what == "weights":
                    with without_weights(model, name, level):
                        found.append(score(model, name, level))
                elif name not in shared and name not in fixed:
                    made = narrowed_copy(model, options, {name: level})
                    if made is None:
                        if level == levels[-1]:
                            fixed.append(name)
                    elif known.setdefault(_changed(made), name) != name:
                        shared[name] = known[_changed(made)]
                    else:
                        found.append(score(made, name, level))
                advance()
    if not found:
        raise SettingsError(
            f"{run.paths.root}: none of the {len(names)} layers can lose {options.what}, so there is nothing to measure"
        )
    return Sensitivity(
        str(run.paths.root),
        options.what,
        part,
        sum(len(batch.ids) for batch in batches),
        seed,
        base,
        found,
        shared,
        fixed,
    )


@contextmanager
def without_weights(model: Recognizer, name: str, level: float) -> Iterator[None]:
    """Set the smallest weights of a layer to 0 for as long as the context lasts."""
    weight = model.get_parameter(f"{name}.weight")
    whole = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(kept(whole, level_threshold(whole, level)))
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(whole)


def latency_of(model: Recognizer) -> float:
    """Return the median milliseconds of a view's forward pass on the CPU."""
    clip_BCTHW = example_clip(model)

    def run() -> None:
        with torch.inference_mode():
            model(clip_BCTHW)

    run()
    return median(timed(run, torch.device("cpu"), _LATENCY_SECONDS)) * 1e3


def _scorer(
    batches: Sequence[Batch], *, latency: bool
) -> Callable[[Recognizer, str, float], SensitivityPoint]:
    labels = torch.cat([batch.labels for batch in batches])

    def score(model: Recognizer, layer: str, level: float) -> SensitivityPoint:
        with torch.inference_mode():
            logits_BK = torch.cat([model(batch.clips) for batch in batches])
        ranked = logits_BK.topk(min(5, logits_BK.shape[1]), dim=1).indices
        several = labels.ndim == 2
        hits = labels.gather(1, ranked) > 0 if several else ranked == labels.unsqueeze(1)
        return SensitivityPoint(
            layer,
            level,
            float(hits[:, 0].double().mean()),
            float(hits.any(1).double().mean()),
            float(evaluation_loss(logits_BK, labels)) / len(labels),
            nonzero_parameters(model),
            multiply_adds(model),
            latency_of(model) if latency else None,
            _map(logits_BK, labels) if several else None,
        )

    return score


def _map(logits_BK: torch.Tensor, labels_BK: torch.Tensor) -> float:
    logits = logits_BK.double().numpy()
    return float(metrics.mean_average_precision(logits, np.asarray(labels_BK.numpy() > 0)))


def narrowed_copy(model: Recognizer, options: Prune, by_layer: dict[str, float]) -> Recognizer | None:
    """Return a narrowed copy; None where these layers can lose nothing."""
    made = copy.deepcopy(model)
    changed = take_out(made, options.model_copy(update={"by_layer": by_layer}))
    return made.eval() if changed else None


def _changed(model: Recognizer) -> tuple[str, ...]:
    """Return which tensors the last narrowing changed: the same for layers that share their channels."""
    return tuple(sorted(model.alterations[-1].sizes))
