"""Pruning sensitivity of each layer, and the choice of a fraction for each layer to meet a budget.

A fraction of the weights or channels of one layer is removed, and a fixed set of clips is scored; this is repeated for
all layers. The method is from `model-sensitivity.py` of compressed-video-classification, which draws new clips each
time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure

from two_stream.compression.channels import remove_channels
from two_stream.compression.layers import chosen_layers
from two_stream.compression.pruning import apply_masks, keep_mask, level_masks, level_threshold
from two_stream.config.compress import Prune
from two_stream.data.clips.dataset import open_clips
from two_stream.data.clips.loader import clip_loader
from two_stream.data.splits import load_part
from two_stream.errors import DataError, SettingsError, printable
from two_stream.evaluation.runs.run import Run
from two_stream.evaluation.scores import metrics
from two_stream.profiling.costs import multiply_adds
from two_stream.profiling.timing import forward_of, nonzero_parameters, time_in_turns
from two_stream.recognizer import Recognizer
from two_stream.runtime.console import progress
from two_stream.runtime.device import rng
from two_stream.runtime.plotting import MUTED, SERIES, SURFACE, plain_figures, save_figure, shades, text_on
from two_stream.runtime.text import signed_number
from two_stream.training.losses import evaluation_loss
from two_stream.types import Batch, Part

Measure = Literal["parameters", "macs", "latency"]
Levels = dict[str, float]
_LATENCY_SECONDS = 0.3
_LEAST_LOSS = 1e-6
"""Smallest loss that a step is assumed to add, because an improvement of the loss is due to chance."""
_ROWS = 40
"""largest number of layers for which the rows of the figure are high"""


@dataclass(frozen=True)
class SensitivityPoint:
    """Result for the network with one pruned layer."""

    layer: str
    """name of the pruned layer; empty if no layer is pruned"""
    level: float
    top1: float
    """top-1 accuracy; for a multi-label data set, any class of the video counts"""
    top5: float
    loss: float
    parameters: int
    """number of parameters that are not 0"""
    multiply_adds: int
    latency_ms: float | None = None
    map: float | None = None


@dataclass(frozen=True)
class Sensitivity:
    """Results for all layers and levels on the same clips."""

    run: str
    what: str
    part: str
    clips: int
    seed: int
    base: SensitivityPoint
    points: list[SensitivityPoint]
    shared: dict[str, str] = field(default_factory=dict)
    """`{layer: measured layer}` for layers that share their channels with a measured layer and have the same results"""
    fixed: list[str] = field(default_factory=list)
    """layers that cannot lose channels, because they belong to the last feature map"""

    @property
    def metric(self) -> str:
        """Name of the accuracy: mAP for a multi-label data set, otherwise top-1."""
        return "top-1" if self.base.map is None else "mAP"

    @property
    def reference(self) -> str:
        """The results of the unpruned network and the number of clips, in words."""
        accuracy = self.base.top1 if self.base.map is None else self.base.map
        one = f" (one clip = {100 / self.clips:.3g} points)" if self.base.map is None else ""
        return (
            f"unpruned network: {self.metric} {100 * accuracy:.1f} %, loss {self.base.loss:.3f}; {self.clips} clips of "
            f"the {self.part} part{one}"
        )

    def change_of(self, point: SensitivityPoint) -> tuple[float, float]:
        """Return the changes of the accuracy, in points, and of the loss against the unpruned network."""
        new, old = (point.top1, self.base.top1) if point.map is None else (point.map, self.base.map or 0.0)
        return 100 * (new - old), point.loss - self.base.loss

    @property
    def layers(self) -> list[str]:
        """The measured layers, in the order of the network."""
        return list(dict.fromkeys(point.layer for point in self.points))

    def points_of(self, layer: str) -> list[SensitivityPoint]:
        """Return the points of a layer, sorted by level."""
        return sorted((point for point in self.points if point.layer == layer), key=lambda point: point.level)

    @property
    def by_robustness(self) -> list[tuple[str, list[SensitivityPoint]]]:
        """The layers with their points, in the order of the largest loss after pruning."""
        rows = [(layer, self.points_of(layer)) for layer in self.layers]
        return sorted(rows, key=lambda row: max(point.loss for point in row[1]))


def fixed_clips(run: Run, part: Part, count: int | None, seed: int) -> list[Batch]:
    """Return the centred clips of a part's videos, or of `count` videos that are drawn with the seed.

    `val` is the holdout and `train` the rest of the training list, even if the run selected its epoch on the test list.

    Raises:
        DataError: The part has no videos, or a video cannot be read.
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
        raise DataError(f"{run.paths.root}: the {part} part has no videos; choose another --part")
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
    """Prune each layer separately to each of the ascending levels, and score the clips of `fixed_clips`.

    The run's network is not changed. `part` and `seed` describe the clips and are stored in the result. If `latency` is
    true, the forward pass of a view is also timed for each point.

    Raises:
        SettingsError: The network or all its layers cannot be pruned with these options.
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
                    with _without_weights(model, name, level):
                        found.append(score(model, name, level))
                elif name not in shared and name not in fixed:
                    narrowed = _narrowed_copy(model, options, {name: level})
                    if narrowed is None:
                        if level == levels[-1]:
                            fixed.append(name)
                    elif known.setdefault(_changed(narrowed), name) != name:
                        shared[name] = known[_changed(narrowed)]
                    else:
                        found.append(score(narrowed, name, level))
                advance()
    if not found:
        raise SettingsError(
            f"{run.paths.root}: none of the {len(names)} selected layers has {options.what} that can be removed, "
            "so there is nothing to measure; select other layers with `compress.layers`"
        )
    clips = sum(len(batch.ids) for batch in batches)
    return Sensitivity(
        str(run.paths.root), options.what, part, clips, seed, base, found, shared=shared, fixed=fixed
    )


@contextmanager
def _without_weights(model: Recognizer, name: str, level: float) -> Iterator[None]:
    """Context manager that sets the smallest weights of a layer to 0."""
    weight = model.get_parameter(f"{name}.weight")
    original = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(keep_mask(original, level_threshold(original, level)))
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(original)


def _latency_of(model: Recognizer) -> float:
    """Return the median duration in milliseconds of a view's forward pass on the CPU."""
    device = torch.device("cpu")
    return time_in_turns([forward_of(model, device)], device, _LATENCY_SECONDS)[0][0]


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
            top1=float(hits[:, 0].double().mean()),
            top5=float(hits.any(1).double().mean()),
            loss=float(evaluation_loss(logits_BK, labels)) / len(labels),
            parameters=nonzero_parameters(model),
            multiply_adds=multiply_adds(model),
            latency_ms=_latency_of(model) if latency else None,
            map=_map(logits_BK, labels) if several else None,
        )

    return score


def _map(logits_BK: torch.Tensor, labels_BK: torch.Tensor) -> float:
    logits = logits_BK.double().numpy()
    return float(metrics.mean_average_precision(logits, np.asarray(labels_BK.numpy() > 0)))


def _narrowed_copy(model: Recognizer, options: Prune, by_layer: Levels) -> Recognizer | None:
    """Return a narrowed copy of the network; None if these layers cannot lose channels."""
    narrowed = copy.deepcopy(model)
    changed = remove_channels(narrowed, options.model_copy(update={"by_layer": by_layer}))
    return narrowed.eval() if changed else None


def _changed(model: Recognizer) -> tuple[str, ...]:
    """Return the names of the tensors that the last narrowing changed.

    The names are equal for layers that share channels.
    """
    return tuple(sorted(model.alterations[-1].sizes))


@dataclass(frozen=True)
class LevelChoice:
    """Fractions to prune that meet a budget."""

    levels: Levels
    measure: Measure
    budget: float
    """requested cost, as a fraction of the unpruned network's cost"""
    reached: float
    """actual cost of the network with these levels, as a fraction of the unpruned network's cost"""
    loss: float
    """sum of the added losses of the separately pruned layers; the loss of pruning them together can differ"""


def choose_levels(
    model: Recognizer, found: Sensitivity, options: Prune, measure: Measure, budget: float
) -> LevelChoice:
    """Choose a fraction to prune for each layer, so that the network keeps at most `budget` (0 to 1) of its cost.

    The method is greedy. Each step considers the next level of each layer, and takes the one with the smallest added
    loss per saved cost. After each step, the cost of the network with all levels chosen so far is counted or timed.
    Pruning weights reduces only the number of parameters.

    Raises:
        SettingsError: Latencies were not measured, or the budget cannot be met, for example a budget of multiply-adds
            by pruning weights.
    """
    costs: Mapping[Measure, Callable[[Recognizer], float]] = {
        "parameters": nonzero_parameters,
        "macs": multiply_adds,
        "latency": _latency_of,
    }
    cost = costs[measure]
    total = cost(model)
    steps = {layer: _steps(found, layer, measure) for layer in found.layers}
    levels: Levels = {}
    taken = dict.fromkeys(steps, 0)
    loss, reached = 0.0, 1.0
    while reached > budget:
        open_ = [layer for layer in steps if taken[layer] < len(steps[layer])]
        if not open_:
            raise SettingsError(
                f"a budget of {budget:g} of the {measure} cannot be met with these levels; the lowest possible "
                f"value is {reached:.3f}; increase the budget, or measure higher --levels"
            )
        layer = min(open_, key=lambda name: steps[name][taken[name]].price)
        step = steps[layer][taken[layer]]
        taken[layer] += 1
        levels[layer] = step.level
        loss += step.loss
        reached = cost(_applied(model, options, levels)) / total
    ordered = {layer: levels[layer] for layer in found.layers if layer in levels}
    return LevelChoice(ordered, measure, budget, reached, loss)


@dataclass(frozen=True)
class _Step:
    level: float
    loss: float
    """loss that the step adds to the loss of the previous level"""
    price: float


def _steps(found: Sensitivity, layer: str, measure: Measure) -> list[_Step]:
    """Return the levels of a layer that reduce the cost, with the loss that each level adds."""
    points = found.points_of(layer)
    losses = list(accumulate((max(0.0, one.loss - found.base.loss) for one in points), max))
    steps = []
    before, loss_before = _value(found.base, measure), 0.0
    for point, loss in zip(points, losses, strict=True):
        saved = before - _value(point, measure)
        if saved <= 0:
            continue
        added = max(_LEAST_LOSS, loss - loss_before)
        steps.append(_Step(point.level, added, added / saved))
        before, loss_before = _value(point, measure), loss
    return steps


def _value(point: SensitivityPoint, measure: Measure) -> float:
    if measure == "parameters":
        return point.parameters
    if measure == "macs":
        return point.multiply_adds
    if point.latency_ms is None:
        raise SettingsError(
            "a latency budget requires measured latencies, found none; set `latency=True` in `measure_sensitivity`"
        )
    return point.latency_ms


def _applied(model: Recognizer, options: Prune, levels: Levels) -> Recognizer:
    if options.what == "channels":
        return _narrowed_copy(model, options, levels) or model
    pruned = copy.deepcopy(model)
    weights = {name: pruned.get_parameter(f"{name}.weight").detach() for name in levels}
    apply_masks(pruned, level_masks(weights, levels))
    return pruned


@plain_figures()
def draw_sensitivity(found: Sensitivity, target: Path) -> None:
    """Draw a row for each layer and a column for each level: the changes of the accuracy and of the loss.

    Dark cells are worse than the unpruned network. `target` is the PNG, SVG or PDF file to write.
    """
    layers, levels = found.layers, sorted({point.level for point in found.points})
    changes = np.full((2, len(layers), len(levels)), np.nan)
    for point in found.points:
        place = layers.index(point.layer), levels.index(point.level)
        changes[(slice(None), *place)] = found.change_of(point)
    row = 0.22 if len(layers) <= _ROWS else 0.15
    size = max(7.5, 3.8 + 1.1 * len(levels)), 1.3 + row * len(layers)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    colours = shades(SERIES[0])
    # a change of the accuracy by one clip stays pale
    parts = (f"{found.metric} in points", -1, 1, 300 / found.clips), ("the loss", 1, 2, 0.3)
    for axis, change, (title, sign, digits, least) in zip(axes, changes, parts):
        harm = np.maximum(0.0, sign * change)
        worst = float(np.nanmax(harm, initial=least))
        axis.pcolormesh(harm, cmap=colours, vmin=0.0, vmax=worst, edgecolors=SURFACE, linewidth=1.0)
        for place in np.ndindex(change.shape):
            style: Any = {"ha": "center", "va": "center", "size": 34 * row, "color": MUTED}
            text = "–"
            if not np.isnan(change[place]):
                text, style["color"] = (
                    signed_number(change[place], digits),
                    text_on(colours(harm[place] / worst)),
                )
            axis.text(place[1] + 0.5, place[0] + 0.5, text, **style)
        axis.set_xticks(np.arange(len(levels)) + 0.5, [f"{100 * level:g} %" for level in levels])
        axis.set(title=f"change of {title}", xlabel=f"removed share of the layer's {found.what}")
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
    axis.set_yticks(np.arange(len(layers)) + 0.5, [_end(name, 38) for name in layers], fontsize=36 * row)
    axis.invert_yaxis()
    title = f"{_end(found.run, 50)}: one layer pruned at a time; light: harmless, dark: harmful\n{found.reference}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    save_figure(figure, target)


def _end(name: str, limit: int) -> str:
    """Return the last characters of a name."""
    text = printable(name)
    return text if len(text) <= limit else f"…{text[1 - limit :]}"
