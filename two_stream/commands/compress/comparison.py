"""Report of a compressed run: its accuracy and cost before and after.

Costs are measured on this machine, alternating between the two networks. The accuracies come from score files of
the same videos under the same protocol and are compared with the same statistical tests as in studies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn

from two_stream.compression.layers import Layer, layers_of
from two_stream.config.load import flatten
from two_stream.config.schema import EvaluateOptions
from two_stream.errors import ScoreError, SettingsError
from two_stream.evaluation.report.page import page_templates
from two_stream.evaluation.runs.run import Run, evaluate_run, load_run
from two_stream.evaluation.scores.files import read_scores
from two_stream.evaluation.scores.statistics import LEVEL, Interval
from two_stream.evaluation.scores.words import difference_in_points, percent, protocol_line
from two_stream.evaluation.scoring.network import is_exact, resolve_evaluation
from two_stream.evaluation.scoring.views import protocol_slug
from two_stream.profiling.timing import NetworkCosts, device_name, measure_networks
from two_stream.runtime.console import console, say, table
from two_stream.runtime.device import pick_device
from two_stream.runtime.files import write_json, write_text
from two_stream.runtime.provenance import code_version, environment
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
    notes: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    code_version: str = ""
    created: str = ""

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
    notes: list[str] | None = None,
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
        notes: Caveats to show.

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
        settings=_settings(given.compress.model_dump(mode="json")),
        notes=notes or [],
        environment=environment(),
        code_version=code_version(),
        created=datetime.now(UTC).astimezone().isoformat(timespec="seconds"),
    )
    _write(report, made)
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
    say(f"costs measured alternately on {report.device}; {report.comparison.test}")
    for text in report.notes:
        say(f"note: {text}")
    say(report.comparison.verdict)
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


def _settings(section: Mapping[str, object]) -> dict[str, str]:
    return {key: str(value) for key, value in flatten(dict(section)).items() if value not in (None, "", [])}


def _write(report: CompressionReport, made: Path) -> None:
    environment_ = page_templates(_TEMPLATES)
    facts = {"report": report, "rows": report.rows, "columns": COLUMNS}
    for suffix in (".html", ".md"):
        text = environment_.get_template(f"{NAME}{suffix}").render(**facts)
        write_text(made / f"{NAME}{suffix}", text)
    plain = asdict(report) | {"columns": list(COLUMNS), "rows": report.rows}
    write_json(made / f"{NAME}.json", plain)


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
