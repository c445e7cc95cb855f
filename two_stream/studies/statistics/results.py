"""The result of a study as plain values. All formats of the report are written from this result.

Accuracies are fractions (0 to 1). Differences are first variant minus second variant. A *cell* is one run: a variant on
one split with one seed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from two_stream.evaluation.scores.statistics import Interval

State = Literal["done", "failed", "missing"]


@dataclass(frozen=True)
class RunRow:
    """One cell of a study."""

    variant: str
    split: int
    seed: int
    state: State
    run: str = ""
    key: str = ""
    """hash of the resolved settings, the code and the data"""
    accuracy: float | None = None
    """top-1 accuracy on the evaluated part (mAP for a multi-label data set)"""
    reason: str = ""
    seconds: float | None = None
    """duration of the training and the evaluation"""
    scores: str = ""
    model_sha256: str = ""


@dataclass(frozen=True)
class VariantCost:
    """Cost of one view of a variant."""

    parameters: int
    multiply_adds: int
    """multiply-adds for one view"""
    views: float | None
    """number of views per video in the evaluation"""
    latency_ms: float | None
    """median duration of the forward pass of one view"""
    memory_mib: float | None
    """peak memory of the forward pass, minus the memory in use before it"""
    device: str = ""


@dataclass(frozen=True)
class Published:
    """A published accuracy for comparison."""

    value: float
    """published accuracy as a fraction, from 0 to 1"""
    source: str


@dataclass(frozen=True)
class VariantResult:
    """Result of a variant over all its cells."""

    name: str
    levels: dict[str, str]
    """level of the variant for each factor of the study's grid"""
    changes: dict[str, Any]
    """`{dotted setting: value}` for the settings that differ from the study's base"""
    accuracy: Interval
    """mean over splits and seeds, with its interval over source videos and, if there are several seeds, training
    runs"""
    seed_interval: Interval | None
    """t interval of the mean over seeds, where the videos are treated as fixed; None with one seed"""
    sd: float | None
    """standard deviation over seeds; None with one seed"""
    seeds: list[int]
    splits: list[int]
    more: dict[str, float | None] = field(default_factory=dict)
    """other metrics by name (top-5, mean class, ECE), as means over cells"""
    per_class: list[float | None] = field(default_factory=list)
    """accuracy of each class (average precision for a multi-label data set), as a mean over cells; None for a class
    without videos"""
    confusion: list[list[float]] | None = None
    """confusion matrix as mean counts over cells (rows true, columns predicted); None for a multi-label data set"""
    histories: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    """rows of `metrics.jsonl` for each cell, with keys such as `split 1, seed 2`"""
    cost: VariantCost | None = None
    published: Published | None = None
    sources: list[float] = field(default_factory=list)
    """accuracy of each source as a mean over training runs; empty if the sources are unknown or the metric is mAP"""
    best: bool = False
    """whether no variant has a higher mean; this is not a test"""


@dataclass(frozen=True)
class McNemar:
    """McNemar's exact two-sided test of one cell, with the numbers of videos that only one variant gets right."""

    cell: str
    first_only: int
    second_only: int
    p: float


@dataclass(frozen=True)
class Comparison:
    """Comparison of two variants on the same videos, first minus second."""

    first: str
    second: str
    family: str
    """comparisons of one family are corrected together by Holm's procedure"""
    difference: Interval
    clips: float
    """the difference as a number of videos of a split; 0 for a multi-label data set"""
    p: float
    """p value before the correction"""
    p_holm: float
    """p value after the correction of its family"""
    test: str
    """name of the test"""
    significant: bool
    """whether `p_holm` is below 1 - `level` and the interval does not contain 0"""
    verdict: str
    mcnemar: list[McNemar]
    """test of each cell that both variants have; empty for a multi-label data set"""
    detectable: float
    """smallest true difference that the test would detect with 80 % probability"""
    detectable_clips: int
    """the same as a number of videos of a split"""
    videos: int
    """mean number of videos per split"""
    groups: int | None
    seeds: int
    per_class: list[float | None] = field(default_factory=list)
    sources: list[float] = field(default_factory=list)
    """difference for each source as a mean over training runs; empty if the sources are unknown or the metric is mAP"""
    data_needed: float = 0.0
    """factor by which the data must grow to show the difference with 80 % probability; see `statistics.data_needed`"""


@dataclass(frozen=True)
class FusedPair:
    """The fusion of two streams, usually RGB and flow."""

    first: str
    second: str
    accuracy: Interval
    better: str
    """name of the more accurate of the two streams"""
    gain: Interval
    """accuracy of the fusion minus that of the better stream, on the same videos"""
    agreement: float
    """fraction of videos for which the two streams predict the same class"""
    oracle: float
    """fraction of videos that at least one of the two streams gets right"""


@dataclass(frozen=True)
class Contribution:
    """Contribution of a stream: the fusion of all streams minus the fusion without this stream."""

    stream: str
    difference: Interval
    p: float
    p_holm: float


@dataclass(frozen=True)
class FusionResult:
    """Results of fusing streams."""

    rule: str
    streams: list[str]
    pairs: list[FusedPair]
    contributions: list[Contribution] = field(default_factory=list)
    all_streams: Interval | None = None
    oracle: float | None = None
    """fraction of videos that at least one stream gets right"""
    weights: dict[str, float] = field(default_factory=dict)
    """weight of each stream, fitted on the holdout part (mean over training runs); empty if the weights are equal"""
    fitted_on: str = ""
    """description of the videos that the weights were fitted on"""
    tuned: Interval | None = None
    """accuracy of the fusion with the fitted weights on the evaluated part"""
    agreement: list[list[float]] = field(default_factory=list)
    """fraction of videos for which two streams predict the same class, as a matrix in the order of `streams`"""


@dataclass(frozen=True)
class XrayRow:
    """Scores of a network under one change of its clips."""

    network: str
    change: str
    accuracy: Interval
    difference: Interval | None
    """accuracy minus that of the natural clips, on the same videos; None for the natural clips"""
    p_holm: float | None
    """p value after Holm's correction over all changes of the network"""
    significant: bool
    same: float
    """fraction of videos whose prediction is that of the natural clips"""


@dataclass(frozen=True)
class Xray:
    """What networks use: their scores under controlled changes of the clips; see `evaluation/scoring/changes.py`."""

    rows: list[XrayRow]
    findings: dict[str, list[str]]
    """for each network, what is shown and what is not, in sentences"""


@dataclass(frozen=True)
class StudyResult:
    """The content of a report."""

    name: str
    question: str
    protocol: str
    """one line with the data, the part, the views, the selection, the videos, the seeds and the kind of interval"""
    metric: str
    """`top-1` or `mAP`"""
    part: str
    videos: int
    groups: int | None
    class_names: list[str]
    chance: float
    """accuracy of guessing"""
    level: float
    """probability of the intervals, such as 0.95"""
    variants: list[VariantResult]
    comparisons: list[Comparison]
    runs: list[RunRow]
    answer: str
    """result of the tests, in a few sentences"""
    notes: list[str] = field(default_factory=list)
    """caveats in one or two sentences each, for example about failed cells, few sources or mixed code versions"""
    fusion: FusionResult | None = None
    settings: dict[str, str] = field(default_factory=dict)
    """resolved settings of each variant's first cell, as YAML"""
    command: str = ""
    definition: str = ""
    """text of the study file; empty for `two-stream compare`"""
    environment: dict[str, str] = field(default_factory=dict)
    code_version: str = ""
    created: str = ""
    outlook: str = ""
    """what more data would show, in one sentence; empty if unknown"""
    xray: Xray | None = None
    """scores under controlled changes of the clips (`two-stream xray`, `xray: true`)"""
