"""The result of a study as plain values, written by the statistics and read by every form of the report.

Accuracies are fractions (0 to 1); differences are first minus second. A *cell* is one run: a variant on one split
with one seed.
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
    """hash of resolved settings, code and data"""
    accuracy: float | None = None
    """top-1 accuracy on the evaluated part (mAP for a multi-label set)"""
    reason: str = ""
    seconds: float | None = None
    """duration of training and evaluation"""
    scores: str = ""
    model_sha256: str = ""


@dataclass(frozen=True)
class VariantCost:
    """Cost of one view, measured on one machine for all variants."""

    parameters: int
    multiply_adds: int
    """multiply-adds of one view"""
    views: float | None
    """views per video, as evaluated"""
    latency_ms: float | None
    """median forward pass of one view"""
    memory_mib: float | None
    """peak of the forward pass above the memory in use before"""
    device: str = ""


@dataclass(frozen=True)
class Published:
    """A published accuracy for comparison."""

    value: float
    """fraction, from 0 to 1"""
    source: str


@dataclass(frozen=True)
class VariantResult:
    """One variant over its cells."""

    name: str
    levels: dict[str, str]
    """its level of every factor of the study's grid"""
    changes: dict[str, Any]
    """dotted setting -> value, where it differs from the study's base"""
    accuracy: Interval
    """mean over splits and seeds; 95 % interval over source videos and, with several seeds, training runs"""
    seed_interval: Interval | None
    """95 % t interval of the mean over seeds alone, on these videos; None with one seed"""
    sd: float | None
    seeds: list[int]
    splits: list[int]
    more: dict[str, float | None] = field(default_factory=dict)
    """other measures by name (top-5, mean class, ECE), means over cells"""
    per_class: list[float | None] = field(default_factory=list)
    """accuracy (multi-label: average precision) by class, mean over cells; None if a class has no video"""
    confusion: list[list[float]] | None = None
    """mean counts over cells, row true, column predicted; None: multi-label"""
    histories: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    """by cell ("split 1, seed 2"): the rows of `metrics.jsonl`"""
    cost: VariantCost | None = None
    published: Published | None = None
    best: bool = False
    """whether no variant has a higher mean; not a test"""


@dataclass(frozen=True)
class McNemar:
    """Discordant videos of one cell and the exact two-sided test."""

    cell: str
    first_only: int
    second_only: int
    p: float


@dataclass(frozen=True)
class Comparison:
    """One pair of variants on the same videos, first minus second."""

    first: str
    second: str
    family: str
    """comparisons of one family share Holm's correction"""
    difference: Interval
    clips: float
    """the difference in videos of a split's part; 0 for a multi-label set"""
    p: float
    """p value of the main test, uncorrected"""
    p_holm: float
    test: str
    significant: bool
    """whether p_holm is below 1 - level and 0 outside the interval"""
    verdict: str
    mcnemar: list[McNemar]
    """per shared cell; empty for a multi-label set"""
    detectable: float
    """smallest true difference that would be detected with 80 % probability"""
    detectable_clips: int
    videos: int
    """number of videos of a split's part, averaged over splits"""
    groups: int | None
    seeds: int
    per_class: list[float | None] = field(default_factory=list)


@dataclass(frozen=True)
class FusedPair:
    """An RGB and a flow variant fused."""

    first: str
    second: str
    accuracy: Interval
    better: str
    """the better of the two alone"""
    gain: Interval
    """fused minus the better one, paired"""
    agreement: float
    oracle: float
    """fraction of videos that at least one gets right"""


@dataclass(frozen=True)
class Contribution:
    """Contribution of a stream: the fusion of all minus that without it."""

    stream: str
    difference: Interval
    p: float
    p_holm: float


@dataclass(frozen=True)
class FusionResult:
    """Streams fused: every RGB × flow pair, or N given streams."""

    rule: str
    streams: list[str]
    pairs: list[FusedPair]
    contributions: list[Contribution] = field(default_factory=list)
    all_streams: Interval | None = None
    oracle: float | None = None
    """fraction of videos that at least one of all streams gets right"""
    weights: dict[str, float] = field(default_factory=dict)
    """by stream, found on the holdout part (a mean over training runs); empty: equal"""
    fitted_on: str = ""
    """videos that the weights were fitted on"""
    tuned: Interval | None = None
    """accuracy with those weights on the evaluated part"""
    agreement: list[list[float]] = field(default_factory=list)
    """fraction of videos on which two streams predict the same class, in the order of `streams`"""


@dataclass(frozen=True)
class StudyResult:
    """The content of a report."""

    name: str
    question: str
    protocol: str
    """data, part, views, selection, videos, seeds, kind of interval: one line"""
    metric: str
    """`top-1` or `mAP`"""
    part: str
    videos: int
    groups: int | None
    class_names: list[str]
    chance: float
    level: float
    variants: list[VariantResult]
    comparisons: list[Comparison]
    runs: list[RunRow]
    answer: str
    """answer of the tests, in one to three sentences"""
    notes: list[str] = field(default_factory=list)
    """caveats, one sentence each (failed cells, few sources, test-selected, mixed code versions …)"""
    fusion: FusionResult | None = None
    settings: dict[str, str] = field(default_factory=dict)
    """by variant: resolved settings of its first cell, as YAML"""
    command: str = ""
    definition: str = ""
    """the study file's text; empty for `two-stream compare`"""
    environment: dict[str, str] = field(default_factory=dict)
    code_version: str = ""
    created: str = ""
