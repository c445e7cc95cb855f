"""Report of a compressed run: its accuracy and cost before and after.

Costs are measured on this machine, alternating between the two networks. The accuracies come from score files of
the same videos under the same protocol and are compared with the same statistical tests as in studies.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn

from two_stream.compression.layers import Layer, layers_of
from two_stream.config.compress import CompressOptions, Prune
from two_stream.config.load import flatten
from two_stream.config.schema import EvaluateOptions
from two_stream.errors import ScoreError, SettingsError
from two_stream.evaluation.report.page import IntervalRow, Top, accuracy_rows, dots_note, page_templates
from two_stream.evaluation.runs.run import Run, evaluate_run, load_run
from two_stream.evaluation.scores.files import read_scores
from two_stream.evaluation.scores.statistics import LEVEL, Interval
from two_stream.evaluation.scores.words import (
    difference_in_points,
    few_sources,
    more_data,
    percent,
    protocol_line,
    sentence,
    text_table,
)
from two_stream.evaluation.scoring.network import is_exact, resolve_evaluation
from two_stream.evaluation.scoring.views import protocol_slug
from two_stream.profiling.timing import NetworkCosts, device_name, measure_networks
from two_stream.runtime.console import console, say, table
from two_stream.runtime.device import pick_device
from two_stream.runtime.files import write_json, write_text
from two_stream.runtime.plotting import SERIES
from two_stream.runtime.provenance import code_version, environment
from two_stream.runtime.text import signed_number
from two_stream.studies.statistics.comparison import Panel, compare_panels, correct_families, panel_of
from two_stream.studies.statistics.results import Comparison
from two_stream.types import Part, ScoreTable

NAME = "compression"
"""Stem of the report's files in a run folder."""
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class LayerChange:
    """One layer's weights before and after compression."""

    name: str
    before: str
    """shape of the weights before compression, as text"""
    after: str
    sparsity: float
    """fraction of the remaining weights that are 0"""


@dataclass(frozen=True)
class Side:
    """The run before or after compression."""

    name: str
    run: str
    scores: str
    accuracy: Interval
    """accuracy (mAP for a multi-label set); 95 % interval over source videos"""
    costs: NetworkCosts


@dataclass(frozen=True)
class CompressionReport:
    """The content of `compression.{html,md,json}`."""

    kind: str
    """prune, quantize or distill"""
    part: str
    metric: str
    protocol: str
    device: str
    before: Side
    after: Side
    comparison: Comparison
    """statistical comparison of the accuracies, after minus before"""
    layers: list[LayerChange] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    """values of the run's `compress` section"""
    environment: dict[str, str] = field(default_factory=dict)
    code_version: str = ""
    created: str = ""
    command: str = ""
    before_sources: list[float] = field(default_factory=list)
    """accuracy of each source before compression; empty if the sources are unknown"""
    after_sources: list[float] = field(default_factory=list)

    @property
    def claim(self) -> str:
        """What the compression loses and saves, in a few sentences."""
        gap, one, two = self.comparison.difference, self.before.costs, self.after.costs
        points, name = 100 * gap.value, self.metric.replace("top", "Top")
        from_to = f"{percent(self.before.accuracy.value)} → {percent(self.after.accuracy.value)} %"
        if abs(points) < 0.05:
            loss = f"No difference in {self.metric} shown: {percent(self.after.accuracy.value)} % before and after ("
        else:
            verb = "fell" if points < 0 else "rose"
            loss = f"{name} {verb} by {abs(points):.1f} points ({from_to}"
        interval = (
            f"95 % interval of the change {signed_number(100 * gap.low)} to {signed_number(100 * gap.high)}"
        )
        loss += f"{'' if loss.endswith('(') else '; '}{interval if gap.known else 'too few sources for an interval'})."
        if not self.comparison.significant:
            detectable = self.comparison.detectable
            seen = f"only a change of {100 * detectable:.1f} points or more would have been detected reliably"
            limit = "not even a large change could have been detected" if detectable >= 1 else seen
            unsure = "" if abs(points) < 0.05 else "these data cannot tell this from no change: "
            loss += f" {sentence(unsure + limit)}"
        saved = [
            f"{name} {_factor(first, second)}"
            for name, first, second in (
                ("file", one.file_bytes, two.file_bytes),
                ("multiply-adds", one.multiply_adds, two.multiply_adds),
                ("latency", *self._latencies),
                ("memory", one.memory_mib, two.memory_mib),
            )
            if _factor(first, second)
        ]
        return f"{loss} Cost: {', '.join(saved)}."

    @property
    def _latencies(self) -> tuple[float, float]:
        """The latencies before and after; zeros if their ranges overlap, because they may then be equal."""
        one, two = self.before.costs, self.after.costs
        apart = one.latency_high < two.latency_low or two.latency_high < one.latency_low
        return (one.latency_ms, two.latency_ms) if apart else (0.0, 0.0)

    @property
    def rows(self) -> list[list[str]]:
        """Rows of the table, in the order of `COLUMNS`."""
        one, two = self.before.costs, self.after.costs
        gap = self.comparison.difference
        return [
            [
                f"{self.metric} (%)",
                percent(self.before.accuracy),
                percent(self.after.accuracy),
                f"{difference_in_points(gap)} points",
            ],
            _row("file (MB)", one.file_bytes / 1e6, two.file_bytes / 1e6),
            _row("parameters (M)", one.parameters / 1e6, two.parameters / 1e6),
            _row("parameters that are not 0 (M)", one.nonzero / 1e6, two.nonzero / 1e6),
            _row("multiply-adds per view (G)", one.multiply_adds / 1e9, two.multiply_adds / 1e9),
            ["latency per view (ms)", _spread(one), _spread(two), _factor(one.latency_ms, two.latency_ms)],
            _row("memory, weights and one view (MiB)", one.memory_mib, two.memory_mib),
        ]


COLUMNS = ("", "before", "after", "change")


def write_compression(
    source: Path,
    made: Path,
    *,
    part: Part = "test",
    options: EvaluateOptions | None = None,
    device: str | None = None,
    seconds: float = 1.0,
    layers: list[LayerChange] | None = None,
    command: str = "",
) -> CompressionReport:
    """Compare a run with its source; write `compression.html`, `.md` and `.json` into its folder.

    Both runs are scored with the same protocol; existing scores of that protocol are reused. The costs of the two
    networks are measured alternately.

    Args:
        source: Run folder before compression (of a distilled network: the teacher's).
        made: Run folder after compression.
        part: Part of the data set to score.
        options: Protocol; default: that of `made`.
        device: Device to score and measure on; default: that of `made`.
        seconds: Time to spend on timing each network.
        layers: Changes of each layer.
        command: Command line that made the run.

    Raises:
        TwoStreamError: A run or the data set cannot be read, or the runs have different classes or videos.
    """
    given = load_run(made).experiment
    where = device or given.device
    runs = [load_run(source, device=where), load_run(made, device=where)]
    _check(*runs)
    chosen = options or given.evaluate
    tables = [scores_of(run, chosen, part) for run in runs]
    panels = [_panel(run, table) for run, table in zip(runs, tables, strict=True)]
    names = _names(*runs)
    (comparison,) = correct_families([compare_panels((names[1], names[0]), (panels[1], panels[0]))])
    costs = measure_networks(runs, chosen, device=where, seconds=seconds)
    sides = [
        Side(name, str(run.paths.root), str(table.meta["file"]), panel.interval(LEVEL), cost)
        for name, run, table, panel, cost in zip(names, runs, tables, panels, costs, strict=True)
    ]
    report = CompressionReport(
        kind=given.compress.kind,
        part=part,
        metric="mAP" if panels[1].multi_label else "top-1",
        protocol=protocol_line(tables[1].meta),
        device=device_name(pick_device(where)),
        before=sides[0],
        after=sides[1],
        comparison=comparison,
        layers=layers or [],
        settings=_settings(given.compress),
        environment=environment(),
        code_version=code_version(),
        created=datetime.now(UTC).astimezone().isoformat(timespec="seconds"),
        before_sources=panels[0].by_source(panels[0].hits),
        after_sources=panels[1].by_source(panels[1].hits),
        command=command,
    )
    write_pages(report, made)
    return report


def layer_changes(before: nn.Module, after: nn.Module) -> list[LayerChange]:
    """Return the shapes and sparsity of each convolution and linear layer that both networks have."""
    new = layers_of(after)
    return [
        LayerChange(
            name,
            _shape(layer),
            _shape(new[name]),
            1.0 - int(torch.count_nonzero(new[name].weight)) / new[name].weight.numel(),
        )
        for name, layer in layers_of(before).items()
        if name in new
    ]


def _shape(layer: Layer) -> str:
    return "×".join(map(str, layer.weight.shape))


def scores_of(run: Run, options: EvaluateOptions, part: Part) -> ScoreTable:
    """Return a run's scores under a protocol: from a score file of exactly these weights, or computed now."""
    model, exact = run.model, is_exact(run.experiment)
    found = resolve_evaluation(model, options, model.device, exact=exact)
    path = run.paths.scores / f"{part}_{protocol_slug(found)}.npz"
    if path.is_file():
        table = read_scores(path)
        if table.meta.get("model_sha256") == run.model_sha256:
            return table
    return evaluate_run(run, options, part)[0]


def show_compression(report: CompressionReport, made: Path) -> None:
    """Print the table, the verdict of the test, and the path of the page."""
    title = f"{report.after.name} against {report.before.name}"
    console.print(table(title, COLUMNS, report.rows))
    say(report.protocol)
    say(f"costs: measured alternately on {report.device}; test of the accuracies: {report.comparison.test}")
    say(report.claim)
    say(f"report: {made / NAME}.html")


def _check(before: Run, after: Run) -> None:
    if before.class_names != after.class_names:
        raise ScoreError(
            f"{after.paths.root} and {before.paths.root} have different classes and cannot be compared"
        )
    if before.experiment.data.split != after.experiment.data.split:
        raise SettingsError(
            f"{after.paths.root} was trained on split {after.experiment.data.split} and {before.paths.root} on split "
            f"{before.experiment.data.split}; they cannot be compared"
        )


def _panel(run: Run, table: ScoreTable) -> Panel:
    """Return the `Panel` of a single run; its seed is ignored, because the two runs are compared video by video."""
    return panel_of(run.paths.root.name, {(run.experiment.data.split, 0): table})


def _names(before: Run, after: Run) -> tuple[str, str]:
    one, two = before.paths.root.resolve().name, after.paths.root.resolve().name
    return (one, two) if one != two else (f"{one} (before)", f"{two} (after)")


def _settings(section: CompressOptions) -> dict[str, str]:
    """Return the settings as text, without empty ones and without those that other settings disable."""
    found = flatten(
        section.model_dump(mode="json", exclude=section.unused if isinstance(section, Prune) else None)
    )
    return {key: str(value) for key, value in found.items() if value not in (None, "", [], {})}


def write_pages(report: CompressionReport, folder: Path) -> Path:
    """Write `compression.html`, `.md` and `.json` into a folder, and return the path of the page."""
    environment_ = page_templates(_TEMPLATES)
    rows = [
        IntervalRow(side.name, side.accuracy, color, sources=sources)
        for side, color, sources in (
            (report.before, SERIES[0], report.before_sources),
            (report.after, SERIES[2], report.after_sources),
        )
    ]
    gap = report.comparison
    needed = gap.data_needed if not gap.significant else 0.0
    what = f"a change of {100 * abs(gap.difference.value):.1f} points"
    top = Top(
        f"compression · {report.kind}",
        f"{report.after.name} against {report.before.name}",
        report.claim,
        report.protocol,
        more_data(needed, what, gap.groups) if needed > 1 else "",
        few_sources(gap.videos, gap.groups),
        figure=accuracy_rows(rows, report.metric),
        figure_note=dots_note(rows),
        code_version=report.code_version,
        created=report.created,
    )
    caption = (
        f"Brackets contain 95 % intervals; the difference is tested by {gap.test}. Costs are measured alternately on "
        f"{report.device}; latency is the median of five rounds, with the smallest and the largest."
    )
    zeros = any(layer.sparsity for layer in report.layers)
    layers = [
        [layer.name, layer.before, layer.after, *([percent(layer.sparsity)] if zeros else [])]
        for layer in report.layers
    ]
    tables = {
        # on a phone, only the first columns are in view without scrolling
        "costs": text_table(
            caption, [COLUMNS[0], *COLUMNS[:0:-1]], [[row[0], *row[:0:-1]] for row in report.rows]
        ),
        "layers": text_table(
            "", ["layer", "weights before", "after", *(["zeros (%)"] if zeros else [])], layers
        ),
    }
    facts = {"report": report, "rows": report.rows, "columns": COLUMNS, "tables": tables, "top": top}
    for suffix in (".html", ".md"):
        text = environment_.get_template(f"{NAME}{suffix}").render(**facts)
        write_text(folder / f"{NAME}{suffix}", text)
    plain = asdict(report) | {"columns": list(COLUMNS), "rows": report.rows}
    write_json(folder / f"{NAME}.json", plain)
    return folder / f"{NAME}.html"


def _row(what: str, before: float, after: float) -> list[str]:
    return [what, f"{before:.3g}", f"{after:.3g}", _factor(before, after)]


def _factor(before: float, after: float) -> str:
    """Return the factor by which the value fell or rose, as text."""
    if before == after:
        return "same"
    if not after or not before:
        return ""
    return f"{before / after:.2f}× less" if before > after else f"{after / before:.2f}× more"


def _spread(costs: NetworkCosts) -> str:
    return f"{costs.latency_ms:.3g} ({costs.latency_low:.3g} to {costs.latency_high:.3g})"
