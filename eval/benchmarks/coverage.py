"""Do the intervals cover and the verdicts hold? Every one that is printed, on made-up data sets with a known truth.

    python eval/benchmarks/coverage.py                # the tables of docs/statistics.md (half an hour on two cores)
    python eval/benchmarks/coverage.py --sets 200     # a quick look
    python eval/benchmarks/coverage.py --only fusion boards
    python eval/benchmarks/coverage.py --tables       # print the tables from the JSON of the last whole run

Hits come from a latent normal model: video, source, source by variant, training and training by source have effects
of their own. Sources have the same size (8 videos), sizes of a Pareto law of exponent 1.3, one source with 40 % of all
videos, or the sizes of the 478 sources of HMDB51's first test split. A cell is a share of data sets with its 95 %
interval in the JSON; with three trainings or more both sources and trainings are drawn, with one the truth is that of
the very networks.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

from two_stream.evaluation.scores import metrics
from two_stream.evaluation.scores.metrics import gain, summarise
from two_stream.evaluation.scores.statistics import Sample, difference_of, estimate_mean, holm
from two_stream.runtime.files import write_json
from two_stream.runtime.provenance import environment
from two_stream.types import ScoreTable

OUT = Path(__file__).resolve().parent / "results" / "coverage.json"
SHAPES = ("equal", "Pareto", "one with 40 %")
SOURCES = (3, 5, 10, 20, 60)
ACCURACIES = (0.5, 0.67, 0.9, 0.97)
TRAININGS = (1, 3, 5)
HMDB51 = {
    1: 157,
    2: 95,
    3: 102,
    4: 33,
    5: 27,
    6: 18,
    7: 6,
    8: 9,
    9: 8,
    10: 4,
    11: 5,
    12: 2,
    13: 1,
    14: 5,
    15: 1,
    16: 2,
    18: 1,
    21: 1,
    28: 1,
}
"""sources by their number of test clips, split 1"""
Hits = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class World:
    """Where hits come from: numbers of things, and standard deviations of normal effects (video 1, noise 0.7)."""

    sources: int
    shape: str = "equal"
    trainings: int = 1
    accuracy: float = 0.67
    own: float = 0.3
    """how much sources differ in what a variant makes of them"""
    training: float = 0.1
    """how much trainings differ"""
    both: float = 0.2
    """how much trainings differ in what they make of a source"""

    def units(self, rng: np.random.Generator) -> Index:
        """Return the source `(V,)` of each video of one data set."""
        sizes = np.full(self.sources, 8)
        if self.shape == "Pareto":
            sizes = np.maximum(1, np.round((rng.pareto(1.3, self.sources) + 1) * 8 * 0.3 / 1.3)).astype(int)
        elif self.shape == "one with 40 %":
            sizes[0] = round(0.4 / 0.6 * 8 * (self.sources - 1))
        elif self.shape == "HMDB51":
            sizes = np.repeat(list(HMDB51), list(HMDB51.values()))
        return np.repeat(np.arange(len(sizes)), sizes)

    def hits(self, unit: Index, rng: np.random.Generator, gains: tuple[float, ...] = (0.0,)) -> list[Hits]:
        """Return hits `(V, S)` of variants, each with the world's accuracy plus its gain."""
        sources = int(unit.max()) + 1
        many = self.trainings > 1
        shared = rng.normal(size=(len(unit), 1)) + 0.7 * rng.normal(size=(sources, 1))[unit]
        deviation = np.sqrt(1 + 0.49 + self.own**2 + many * self.training**2 + self.both**2 + 0.49)
        found = []
        for more in gains:
            own = self.own * rng.normal(size=(sources, 1))[unit]
            training = many * self.training * rng.normal(size=(1, self.trainings))
            both = self.both * rng.normal(size=(sources, self.trainings))[unit]
            noise = 0.7 * rng.normal(size=(len(unit), self.trainings))
            place = norm.ppf(self.accuracy + more) * deviation
            found.append((place + shared + own + training + both + noise > 0).astype(np.float64))
        return found


@dataclass
class Cell:
    """Counts of one claim in one world."""

    claim: str
    world: str
    sets: int = 0
    held: int = 0
    """intervals that hold the truth"""
    false: int = 0
    """verdicts that are wrong"""
    unknown: int = 0
    """data sets without an interval, by its sentence"""
    width: float = 0.0
    effective: float = 0.0
    more: dict[str, float] = field(default_factory=dict)

    def add(self, *, held: bool, false: bool = False, width: float = 0.0, effective: float = 0.0) -> None:
        """Count one data set."""
        self.sets += 1
        self.held += held
        self.false += false
        self.width += width
        self.effective += effective

    def to_json(self) -> dict[str, Any]:
        """Return shares with their own 95 % intervals."""
        count = max(self.sets, 1)
        ends = {
            name: [float(end) for end in binomtest(value, count).proportion_ci(method="wilson")]
            for name, value in (("coverage", self.held), ("false", self.false))
        }
        return {
            "claim": self.claim,
            "world": self.world,
            "sets": self.sets,
            "unknown": self.unknown,
            "coverage": self.held / count,
            "coverage_interval": ends["coverage"],
            "false": self.false / count,
            "false_interval": ends["false"],
            "width": self.width / count,
            "effective": self.effective / count,
        }


def worlds() -> Iterator[tuple[str, World]]:
    """Yield every world of accuracies and differences, with its name."""
    shapes = [*itertools.product(SOURCES, SHAPES), (478, "HMDB51")]
    for (sources, shape), trainings, accuracy in itertools.product(shapes, TRAININGS, ACCURACIES):
        name = f"{sources} sources, {shape}, {trainings} training{'s' if trainings > 1 else ''}, {100 * accuracy:.0f} %"
        yield name, World(sources, shape, trainings, accuracy)


def accuracies(sets: int) -> Iterator[Cell]:
    """Accuracy of a variant, and the difference of two that are equally good."""
    for name, world in worlds():
        rng = np.random.default_rng(20261130)
        share, gap = Cell("accuracy", name), Cell("difference", name)
        for _ in range(sets):
            unit = world.units(rng)
            first, second = world.hits(unit, rng, (0.0, 0.0))
            sample = Sample.even(unit)
            found = estimate_mean(first, sample)
            ends = found.share_interval()
            if len(unit) < 2 or not ends.known:
                share.unknown += 1
                continue
            held = ends.low <= world.accuracy <= ends.high
            share.add(held=held, width=ends.high - ends.low, effective=found.effective)
            test = difference_of(first, second, sample)
            out = not test.interval.low <= 0 <= test.interval.high
            gap.add(
                held=not out,
                false=out and test.p < 0.05,
                width=test.interval.high - test.interval.low,
                effective=found.effective,
            )
        yield from (share, gap)


def _table(hits: Hits, unit: Index, labels: Index, classes: int) -> ScoreTable:
    """Return a score table with these hits; a miss is for the next class."""
    logits = np.zeros((len(labels), classes))
    logits[np.arange(len(labels)), np.where(hits > 0, labels, (labels + 1) % classes)] = 1.0
    names = [f"c{number}" for number in range(classes)]
    groups = [f"g{number}" for number in unit]
    return ScoreTable(
        [f"v{number}" for number in range(len(labels))], labels, names, logits, {}, groups=groups
    )


def mean_class(sets: int) -> Iterator[Cell]:
    """Mean class accuracy, of classes with sources of their own that differ in accuracy."""
    for (classes, each), shape, accuracy in itertools.product(
        ((5, 2), (5, 4), (5, 12), (51, 9)), SHAPES, ACCURACIES
    ):
        world = World(each, shape, accuracy=accuracy)
        rng = np.random.default_rng(20261130)
        cell = Cell(
            "mean class accuracy", f"{classes} classes of {each} sources, {shape}, {100 * accuracy:.0f} %"
        )
        shifts = np.linspace(-0.5, 0.5, classes)
        truth = float(norm.cdf(norm.ppf(accuracy) + shifts).mean())
        for _ in range(sets if classes < 51 else sets // 4):
            parts = [world.units(rng) for _ in range(classes)]
            label = np.repeat(np.arange(classes), [len(part) for part in parts])
            unit = np.concatenate(parts) + each * label
            sources = classes * each
            source = np.sqrt(0.25) * rng.normal(size=sources)[unit]
            latent = norm.ppf(accuracy) + shifts[label] + source + np.sqrt(0.75) * rng.normal(size=len(unit))
            found = summarise(_table(latent > 0, unit, label, classes), top=(1,)).mean_class
            assert found is not None
            if not found.known:
                cell.unknown += 1
                continue
            cell.add(held=found.low <= truth <= found.high, width=found.high - found.low)
        yield cell


def mean_average_precision(sets: int) -> Iterator[Cell]:
    """MAP of five classes, several per video."""

    def drawn(
        sources: int, shape: str, strength: float, rng: np.random.Generator
    ) -> tuple[Hits, NDArray[np.bool_], Index]:
        unit = World(sources, shape).units(rng)
        liking = rng.normal(size=(sources, 5))[unit]
        targets = 0.5 * liking + rng.normal(size=(len(unit), 5)) > 0.6
        bias = 0.5 * rng.normal(size=(sources, 5))[unit]
        return strength * targets + bias + rng.normal(size=(len(unit), 5)), targets, unit

    for sources, shape, strength in itertools.product((5, 10, 20, 60), SHAPES, (1.0, 2.5)):
        rng = np.random.default_rng(20261130)
        big = drawn(20_000, "equal", strength, rng)
        truth = metrics.mean_average_precision(big[0], big[1])
        cell = Cell("mAP", f"{sources} sources, {shape}, mAP {100 * truth:.0f} %")
        for _ in range(sets // 2):
            logits, targets, unit = drawn(sources, shape, strength, rng)
            ids = [f"v{number}" for number in range(len(unit))]
            groups = [f"g{number}" for number in unit]
            labels = targets.argmax(axis=1).astype(np.int64)
            table = ScoreTable(ids, labels, list("abcde"), logits, {}, groups=groups, targets=targets)
            found = summarise(table, top=(1,)).map
            assert found is not None
            if not found.known:
                cell.unknown += 1
                continue
            cell.add(held=found.low <= truth <= found.high, width=found.high - found.low)
        yield cell


def fusion(sets: int) -> Iterator[Cell]:
    """The gain of a fusion that is exactly as good as the better of two streams, equal or ten points apart."""
    for (sources, shape), apart in itertools.product(
        [*itertools.product(SOURCES[1:], SHAPES), (478, "HMDB51")], (0.0, 0.1)
    ):
        world = World(sources, shape)
        rng = np.random.default_rng(20261130)
        cell = Cell("fusion", f"{sources} sources, {shape}, streams {100 * apart:.0f} points apart")
        above = below = 0
        for _ in range(sets):
            unit = world.units(rng)
            label = np.zeros(len(unit), np.int64)
            tables = [
                _table(hits[:, 0], unit, label, 2) for hits in world.hits(unit, rng, (0.0, -apart, 0.0))
            ]
            found = gain(tables[2], tables[:2])
            above, below = above + (found.low > 0), below + (found.high < 0)
            held = found.low <= 0 <= found.high
            cell.add(held=held, false=not held, width=found.high - found.low)
        cell.more = {"above": above / cell.sets, "below": below / cell.sets}
        yield cell


def boards(sets: int) -> Iterator[Cell]:
    """Ten equal variants: is any told from the best?"""
    for (sources, shape), trainings in itertools.product(
        [*itertools.product((5, 10, 20, 60), SHAPES)], (3, 5)
    ):
        world = World(sources, shape, trainings)
        rng = np.random.default_rng(20261130)
        cell = Cell("board of 10", f"{sources} sources, {shape}, {trainings} trainings")
        for _ in range(sets // 2):
            unit = world.units(rng)
            hits = world.hits(unit, rng, (0.0,) * 10)
            best = max(range(10), key=lambda place: hits[place].mean())
            pairs = list(itertools.combinations(range(10), 2))
            ps = holm([difference_of(hits[one], hits[two], Sample.even(unit)).p for one, two in pairs])
            wrong = any(p < 0.05 for pair, p in zip(pairs, ps, strict=True) if best in pair)
            cell.add(held=not wrong, false=wrong)
        yield cell


def few_trainings(sets: int) -> Iterator[Cell]:
    """Two equal variants of one or two trainings, tested as if their difference were that of every training."""
    for trainings, spread in itertools.product((1, 2), (0.05, 0.1)):
        world = World(478, "HMDB51", 3, training=spread)
        rng = np.random.default_rng(20261130)
        cell = Cell("training runs unseen", f"{trainings} of HMDB51's size, spread {spread}")
        for _ in range(sets):
            unit = world.units(rng)
            first, second = (hits[:, :trainings] for hits in world.hits(unit, rng, (0.0, 0.0)))
            test = difference_of(first, second, Sample.even(unit))
            cell.add(held=test.interval.low <= 0 <= test.interval.high, false=test.p < 0.05)
        yield cell


def independent(sets: int) -> Iterator[Cell]:
    """One training, every video its own source: McNemar's exact test of two equal variants."""
    for videos, accuracy in itertools.product((20, 60, 400), ACCURACIES):
        world = World(videos, accuracy=accuracy)
        rng = np.random.default_rng(20261130)
        share, gap = (
            Cell(claim, f"{videos} videos, {100 * accuracy:.0f} %") for claim in ("accuracy", "McNemar")
        )
        for _ in range(sets):
            unit = np.arange(videos)
            first, second = world.hits(unit, rng, (0.0, 0.0))
            ends = estimate_mean(first, Sample.even(unit)).share_interval()
            share.add(held=ends.low <= accuracy <= ends.high, width=ends.high - ends.low, effective=videos)
            test = difference_of(first, second, Sample.even(unit))
            out = not test.interval.low <= 0 <= test.interval.high
            gap.add(held=not out, false=test.p < 0.05, width=test.interval.high - test.interval.low)
        yield from (share, gap)


CLAIMS: dict[str, Callable[[int], Iterator[Cell]]] = {
    "accuracies": accuracies,
    "mean-class": mean_class,
    "map": mean_average_precision,
    "fusion": fusion,
    "boards": boards,
    "independent": independent,
    "few-trainings": few_trainings,
}


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the cells as the Markdown tables of docs/statistics.md: ranges over accuracies."""

    def share(values: Sequence[float], *, worst: bool = False) -> str:
        low, high = (f"{100 * end:.1f}" for end in (min(values), max(values)))
        return high if worst or low == high else f"{low}–{high}"

    known = [row for row in rows if row["sets"]]
    lines = [
        "| sources | sizes | accuracy covered, 1, 3, 5 training runs | equal variants “differ”, at most |",
        "|---|---|---|---|",
    ]
    for sources, shape in [*itertools.product(SOURCES, SHAPES), (478, "HMDB51")]:
        cells = []
        for claim, key in (("accuracy", "coverage"), ("difference", "false")):
            own = [
                [
                    row[key]
                    for row in known
                    if row["claim"] == claim
                    and row["world"].startswith(f"{sources} sources, {shape}, {count} tr")
                ]
                for count in TRAININGS
            ]
            cells.append(", ".join(share(values, worst=key == "false") if values else "–" for values in own))
        lines.append(f"| {sources} | {shape} | {cells[0]} | {cells[1]} |")
    lines += ["", "| interval or verdict | worlds | covered | wrong, at most |", "|---|---|---|---|"]
    rest = [
        row
        for row in known
        if row["claim"] not in ("accuracy", "difference") or "training" not in row["world"]
    ]
    for claim, world in dict.fromkeys((row["claim"], row["world"].split(",")[0]) for row in rest):
        alike = [row for row in rest if row["claim"] == claim and row["world"].split(",")[0] == world]
        wrong = (
            share([row["false"] for row in alike], worst=True)
            if claim not in ("mAP", "mean class accuracy")
            else "–"
        )
        lines.append(f"| {claim} | {world} | {share([row['coverage'] for row in alike])} | {wrong} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Simulate, print a line per cell, and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", type=int, default=2000, help="data sets per cell")
    parser.add_argument("--only", nargs="+", choices=list(CLAIMS), default=list(CLAIMS), help="claims")
    parser.add_argument("--out", type=Path, default=None, help="JSON to write")
    parser.add_argument("--tables", action="store_true", help="print the tables of the last whole run")
    given = parser.parse_args(argv)
    if given.tables:
        print(tables(json.loads(OUT.read_text(encoding="utf-8"))["rows"]))
        return 0
    start, rows = time.monotonic(), []
    for name in given.only:
        for cell in CLAIMS[name](given.sets):
            row = cell.to_json() | cell.more
            rows.append(row)
            told = ", ".join(f"{key} {100 * row[key]:.1f} %" for key in ("coverage", "false", "width"))
            print(
                f"{cell.claim}: {cell.world}: {told if cell.sets else 'no interval'}",
                *cell.more.values(),
                flush=True,
            )
    out = given.out or (OUT if given.only == list(CLAIMS) and given.sets >= 2000 else None)
    if out is not None:
        facts = {"sets": given.sets, "seconds": round(time.monotonic() - start), "environment": environment()}
        write_json(out, {**facts, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
