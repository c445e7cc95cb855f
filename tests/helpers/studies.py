"""Made-up studies: consistent enough to be drawn, of any size, the same on every call."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from two_stream.commands.compress.comparison import CompressionReport, LayerChange, Side
from two_stream.config.load import dump
from two_stream.config.schema import Experiment
from two_stream.evaluation.scores.files import write_scores
from two_stream.evaluation.scores.statistics import Interval
from two_stream.profiling.timing import NetworkCosts
from two_stream.studies.running.cells import StudyJob, StudyOutcome, run_job
from two_stream.studies.running.pool import Slot, Workers
from two_stream.studies.statistics.results import (
    Comparison,
    Contribution,
    FusedPair,
    FusionResult,
    McNemar,
    Published,
    RunRow,
    StudyResult,
    VariantCost,
    VariantResult,
)
from two_stream.types import ScoreTable

HEADS = ("average", "concatenation", "lstm", "nonlocal", "bert", "bert, 2 layers")
HOSTILE = (
    "<b>A|B</b> 50%",
    "under_score & $x$ #1",
    "Größe ~ ^{2}\\end",
    "a name " + "that goes on and on " * 6,
)


def made_result(
    names: tuple[str, ...] = HEADS,
    classes: int = 4,
    seeds: int = 3,
    *,
    multi_label: bool = False,
    fusion: bool = False,
) -> StudyResult:
    """Return a study of `names` against the first of them; the last is significantly better, the others are not."""
    draw = np.random.default_rng([len(names), classes, seeds])
    videos = 30 * classes
    true = np.linspace(0.62, 0.74, len(names)) + 0.01 * draw.normal(size=len(names))
    labels = [
        f"class {index + 1}" if index % 3 else f"Längere Klasse {index + 1}" for index in range(classes)
    ]
    variants = [
        _variant(place, name, float(true[place]), classes, seeds, multi_label)
        for place, name in enumerate(names)
    ]
    best = max(variant.accuracy.value for variant in variants)
    variants = [_marked(variant, best) for variant in variants]
    return StudyResult(
        name="made_heads",
        question="Does an order-aware head beat average pooling on a frozen backbone?",
        protocol=f"made split 1, test part · multi-clip × ten-crop · selection holdout · {videos} videos of 60 sources "
        f"· {seeds} seeds · 95 % intervals over sources and training runs",
        metric="mAP" if multi_label else "top-1",
        part="test",
        videos=videos,
        groups=60,
        class_names=labels,
        chance=1.2 / classes,
        level=0.95,
        variants=variants,
        comparisons=[_comparison(variant, variants[0], videos, multi_label) for variant in variants[1:]],
        runs=_runs(variants),
        answer=f"Yes for {names[-1]}: +12.1 points over {names[0]} (p = 0.004 after Holm's correction). For the other "
        "heads no difference is shown.",
        notes=[
            "Three seeds: the interval over trainings is wide.",
            "One run failed; its variant has fewer cells.",
        ],
        fusion=_fusion(names) if fusion else None,
        settings={name: _settings(name, place) for place, name in enumerate(names)},
        command="two-stream ablate settings/studies/made_heads.yaml",
        definition="name: made_heads\nquestion: Does an order-aware head beat average pooling?\nseeds: [1, 2, 3]\n",
        environment={"torch": "2.14.1", "cpu": "a processor", "platform": "Linux"},
        code_version="0.1.0-abcdef123456",
        created="2026-11-21T12:00:00",
    )


def _variant(
    place: int, name: str, accuracy: float, classes: int, seeds: int, multi_label: bool
) -> VariantResult:
    draw = np.random.default_rng([7, place])
    per_class = np.clip(accuracy + 0.15 * draw.normal(size=classes), 0, 1)
    wrong = draw.multinomial(30, np.full(classes, 1 / classes), size=classes).astype(float)
    counts = np.diag(np.round(30 * per_class)) + wrong * (1 - per_class)[:, None]
    return VariantResult(
        name=name,
        levels={"head": name},
        changes={"model.head.kind": name},
        accuracy=Interval(accuracy, accuracy - 0.045, accuracy + 0.04),
        seed_interval=Interval(accuracy, accuracy - 0.03, accuracy + 0.03) if seeds > 1 else None,
        sd=0.012 if seeds > 1 else None,
        seeds=list(range(1, seeds + 1)),
        splits=[1],
        more={"top-5": min(1.0, accuracy + 0.2), "mean class": accuracy - 0.01, "ECE": 0.05 + 0.01 * place},
        per_class=[None if index == 1 else float(value) for index, value in enumerate(per_class)],
        confusion=None if multi_label else counts.tolist(),
        histories={
            f"split 1, seed {seed}": _history(accuracy, place, seed, multi_label)
            for seed in range(1, seeds + 1)
        },
        cost=VariantCost(
            parameters=33_000_000 + 2_100_000 * place,
            multiply_adds=8_300_000_000 + 12_000_000 * (place % 4),
            views=20.0,
            latency_ms=41.0 + 1.5 * place,
            memory_mib=310.0 + 4 * place,
            device="cpu (2 threads)",
        ),
        published=Published(0.7, "Kalfaoglu et al. 2020, table 1") if place in (0, 4) else None,
        sources=[] if multi_label else list(np.clip(accuracy + 0.2 * draw.normal(size=60), 0, 1).round(1)),
    )


def _history(accuracy: float, place: int, seed: int, multi_label: bool) -> list[dict[str, float]]:
    noise = np.random.default_rng([place, seed]).normal(size=12)
    key = "val_map" if multi_label else "val_top1"
    return [
        {
            "epoch": float(epoch + 1),
            "train_loss": float(2.2 * 0.8**epoch),
            "val_loss": float(2.3 * 0.85**epoch + 0.03 * noise[epoch]),
            key: float(accuracy * (1 - 0.7 ** (epoch + 1)) + 0.01 * noise[epoch]),
        }
        for epoch in range(12)
    ]


def _marked(variant: VariantResult, best: float) -> VariantResult:
    return VariantResult(**{**vars(variant), "best": variant.accuracy.value == best})


def _comparison(variant: VariantResult, base: VariantResult, videos: int, multi_label: bool) -> Comparison:
    gap = float(variant.accuracy.value - base.accuracy.value)
    significant = bool(gap > 0.09)
    half = 0.05
    p = 0.002 if significant else 0.2 + 0.05 * abs(gap)
    named = f"{variant.name} against {base.name}: {100 * gap:+.1f} points"
    return Comparison(
        first=variant.name,
        second=base.name,
        family="every variant with average",
        difference=Interval(gap, gap - half, gap + half),
        clips=gap * videos,
        p=p,
        p_holm=min(1.0, 2 * p),
        test="t test over 60 source videos and 3 training runs, both random",
        significant=significant,
        verdict=f"{named}, better (p = {2 * p:.3f})" if significant else f"{named}, no difference shown",
        mcnemar=[]
        if multi_label
        else [McNemar(f"split 1, seed {seed}", 22 + seed, 9, p) for seed in (1, 2, 3)],
        detectable=0.07,
        detectable_clips=round(0.07 * videos),
        videos=videos,
        groups=60,
        seeds=len(variant.seeds),
        per_class=[
            None if a is None or b is None else a - b for a, b in zip(variant.per_class, base.per_class)
        ],
    )


def _runs(variants: list[VariantResult]) -> list[RunRow]:
    rows = []
    for place, variant in enumerate(variants):
        for seed in variant.seeds:
            failed = place == 1 and seed == variant.seeds[-1] and len(variant.seeds) > 1
            rows.append(
                RunRow(
                    variant=variant.name,
                    split=1,
                    seed=seed,
                    state="failed" if failed else "done",
                    run=f"runs/studies/made_heads/runs/{place:02d}-{seed}",
                    key=f"{place:02d}{seed:02d}" + "9f8e7d6c" * 7 + "0123",
                    accuracy=None if failed else variant.accuracy.value + 0.012 * (seed - 2),
                    reason="CUDA out of memory | tried to allocate <2 GiB>" if failed else "",
                    seconds=61.0 + 3 * place + seed,
                    model_sha256="ab" * 32,
                )
            )
    return rows


def _fusion(names: tuple[str, ...]) -> FusionResult:
    half = max(1, len(names) // 2)
    first, second = names[:half], names[half:] or names[:1]
    pairs = [
        FusedPair(
            first=a,
            second=b,
            accuracy=Interval(0.7 + 0.01 * i + 0.02 * j, 0.66, 0.79),
            better=b,
            gain=Interval(0.01 * (i + j), -0.02 + 0.015 * (i + j), 0.04 + 0.01 * (i + j)),
            agreement=0.71,
            oracle=0.86,
        )
        for i, a in enumerate(first)
        for j, b in enumerate(second)
    ]
    count = len(names)
    return FusionResult(
        rule="l2",
        streams=list(names),
        pairs=pairs,
        contributions=[
            Contribution(name, Interval(0.02 - 0.01 * i, -0.01, 0.04), 0.02 * (i + 1), 0.04 * (i + 1))
            for i, name in enumerate(names)
        ],
        all_streams=Interval(0.81, 0.77, 0.85),
        oracle=0.93,
        weights=dict.fromkeys(names, 1 / count),
        fitted_on="the holdout part, 120 videos",
        tuned=Interval(0.82, 0.78, 0.86),
        agreement=[[1.0 if i == j else 0.7 + 0.01 * abs(i - j) for j in range(count)] for i in range(count)],
    )


def _settings(name: str, place: int) -> str:
    kind = name.split(",")[0].replace("'", "")
    return (
        f"name: run-{place}\nseed: 1\nmodel:\n  backbone:\n    kind: resnet3d\n    depth: 10\n  head:\n"
        f"    kind: '{kind}'\n    layers: {1 + place % 3}\ntrain:\n  epochs: 12\n  freeze_until: backbone\n"
    )


CLASSES = ["wave", "clap", "turn left", "turn right"]


class Studio:
    """Makes score tables and runs of one made-up data set."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def table(
        self,
        skill: float = 1.0,
        *,
        split: int = 1,
        seed: int = 1,
        videos: int = 120,
        stream: int = 0,
        sources: bool = True,
        **meta: Any,
    ) -> ScoreTable:
        """Scores of a stream; the same split has the same videos, labels and sources in every table."""
        part = str(meta.get("part", "test"))
        labels = np.arange(videos) % len(CLASSES)
        hard = np.random.default_rng([split, len(part), 1]).normal(size=(videos, len(CLASSES)))
        own = np.random.default_rng([split, len(part), 2, seed, stream]).normal(size=(videos, len(CLASSES)))
        logits = skill * np.eye(len(CLASSES))[labels] + 0.5 * hard + 0.5 * own
        facts = {
            "dataset": "toy",
            "split": split,
            "seed": seed,
            "part": part,
            "selection": "holdout",
            "modality": "rgb",
            "views": "multi",
            "crops": "ten",
            "aggregate": "logits",
            "sampling": "standard",
            "protocol": "multi-clip × ten-crop, mean of logits",
            "precision": "fp32",
            "code_version": "0.1.0",
            "model_sha256": f"{skill}-{split}-{seed}-{stream}",
            "skipped": [],
        } | meta
        ids = [f"{CLASSES[label]}/{part}_s{split}_{place:03d}" for place, label in enumerate(labels)]
        groups = [f"s{split}g{place // 4}" for place in range(videos)] if sources else None
        return ScoreTable(ids, labels, CLASSES, logits, facts, groups=groups)

    def tables(self, skill: float = 1.0, **options: Any) -> dict[tuple[int, int], ScoreTable]:
        """A variant: two splits, three trainings each."""
        return {
            (split, seed): self.table(skill, split=split, seed=seed, **options)
            for split in (1, 2)
            for seed in (1, 2, 3)
        }

    def run(self, name: str, skill: float = 1.0, *, head: str = "average", **meta: Any) -> Path:
        """Write a run folder with test and holdout scores."""
        folder = self.root / name
        modality = str(meta.get("modality", "rgb"))
        experiment = Experiment.model_validate(
            {
                "name": name,
                "runs": str(self.root),
                "seed": meta.get("seed", 1),
                "data": {"dataset": "toy", "split": meta.get("split", 1)},
                "model": {"modality": modality, "head": {"kind": head}},
            }
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "experiment.yaml").write_text(dump(experiment))
        (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "val_top1": 0.5}) + "\n")
        for part in ("val", "test"):
            facts = {"name": name, "run": str(folder), **meta, "part": part}
            table = self.table(skill, stream=len(head) + 10 * (modality == "flow"), **facts)
            write_scores(folder / "scores" / f"{part}_multi_ten_logits.npz", table)
        return folder

    def settings(self, folder: Path) -> dict[str, Any]:
        """What a run's settings file holds."""
        return dict(yaml.safe_load((folder / "experiment.yaml").read_text()))


def run_jobs_here(
    jobs: Mapping[int, StudyJob], slots: Sequence[Slot], running: set[int], workers: Workers
) -> Iterator[tuple[int, StudyOutcome]]:
    """Replace `ablation.run_jobs`: without worker processes, which take seconds to start for each stage."""
    del slots, running, workers
    yield from ((index, run_job(job)) for index, job in jobs.items())


def made_compression() -> CompressionReport:
    """A report of a pruned run whose accuracy fell, by an amount that its 40 videos cannot show."""
    compared = replace(
        made_result(("rgb", "rgb_pruned"), seeds=1).comparisons[0],
        difference=Interval(-0.125, -0.28, 0.03),
        significant=False,
        verdict="no difference shown between rgb_pruned and rgb: -12.5 points",
        detectable=0.208,
        data_needed=2.75,
        groups=8,
        seeds=1,
    )
    costs = NetworkCosts(4_430_000, 1_100_000, 1_100_000, 106_000_000, 21.0, 20.0, 22.0, 9.4)
    half = NetworkCosts(2_610_000, 647_000, 647_000, 52_700_000, 15.4, 15.0, 16.0, 5.5)
    return CompressionReport(
        kind="prune",
        part="test",
        metric="top-1",
        protocol="made split 1, test part · multi-clip × ten-crop, mean of logits",
        device="cpu (2 threads)",
        before=Side("rgb", "runs/rgb", "runs/rgb/scores/test.npz", Interval(0.625, 0.45, 0.77), costs),
        after=Side("rgb_pruned", "runs/rgb_pruned", "runs/rgb_pruned/s.npz", Interval(0.5, 0.3, 0.7), half),
        comparison=compared,
        layers=[LayerChange("backbone.stem.conv", "64×3×7×7×7", "32×3×7×7×7", 0.0)],
        settings={"kind": "prune", "what": "channels", "target_macs": "0.5"},
        environment={"torch": "2.14.1"},
        created="2026-11-30T14:05:00+00:00",
        command="two-stream compress prune runs/rgb --what channels --target-macs 0.5",
        before_sources=[0.4, 0.6, 0.6, 0.8, 0.6, 0.6, 0.6, 0.8],
        after_sources=[0.2, 0.4, 0.6, 0.8, 0.4, 0.4, 0.4, 0.8],
    )
