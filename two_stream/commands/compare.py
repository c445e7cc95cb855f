"""`two-stream compare RUN|FILE …`: which of any runs is better, on the same videos, with statistics."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from two_stream.commands.flags import parse

if TYPE_CHECKING:
    from two_stream.studies.statistics.results import StudyResult
    from two_stream.studies.statistics.scored import ScoredRun

SUMMARY = "Compare runs or score files on the same videos: intervals, paired tests, what could be seen."


@dataclass(frozen=True)
class CompareFlags:
    """What is compared with what."""

    sources: tyro.conf.Positional[tuple[Path, ...]] = ()
    """run folders (their newest scores) or score files; runs of the same settings but another seed or split become one
    variant"""
    group: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=RUN,RUN")] = ()
    """variants by hand: runs that differ in seed or split only, though their settings say otherwise"""
    names: str | None = None
    """names of the variants, separated by commas, those by hand first"""
    baseline: str | None = None
    """variant that every other is compared with: its name, or its place from 1; none: the first"""
    all_pairs: bool = False
    """compare every two variants"""
    fuse: Literal["l2", "logits", "probabilities", "rank"] | None = None
    """also fuse RGB with flow variants by this rule, and all together"""
    fit: bool = False
    """search weights of the fusion on the holdout scores of the runs"""
    part: Literal["test", "val"] = "test"
    """which scores of a run folder are compared"""
    anyway: bool = False
    """compare in spite of different data sets, splits or protocols, and say so"""
    level: float = 0.95
    """coverage of the intervals; 1 - level is the level of the tests"""
    out: Path | None = None
    """report to write (.html)"""
    json: bool = False
    """print everything as JSON instead of tables"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    flags = parse(CompareFlags, args, "two-stream compare", SUMMARY)
    from two_stream.runtime.console import console, note, say

    result = _result(flags, args)
    if flags.json:
        console.print_json(data=asdict(result))
    else:
        from two_stream.studies.report.terminal import print_study

        print_study(result)
    if flags.out is not None:
        from two_stream.studies.report.study_report import write_study_report

        for path in write_study_report(result, flags.out):
            (note if flags.json else say)(str(path))
    return 0


def _result(flags: CompareFlags, args: Sequence[str]) -> StudyResult:
    from two_stream.errors import SettingsError
    from two_stream.studies.statistics.scored import check_comparable, run_rows, runs_of_variants
    from two_stream.studies.statistics.summary import Question, study_result

    if not 0.5 <= flags.level < 1:
        raise SettingsError(f"--level is {flags.level}: expected a share from 0.5 to below 1, such as 0.95")
    if flags.fit and flags.fuse is None:
        raise SettingsError("--fit searches the weights of a fusion; say which with --fuse, or leave it out")
    groups = _variants(flags)
    notes = check_comparable(groups, anyway=flags.anyway)
    names = list(groups)
    if len(names) < 2:
        raise SettingsError(
            f"one variant ({names[0]}) is nothing to compare; give another run, or name groups with --group"
        )
    asked = Question(
        name="compare",
        question=f"Which is better: {', '.join(names[:-1])} or {names[-1]}?",
        fusion_rule=flags.fuse,
        level=flags.level,
        command=shlex.join(["two-stream", "compare", *args]),
    )
    return study_result(
        asked,
        runs_of_variants(groups, with_holdout=flags.fit),
        _pairs(names, flags),
        runs=run_rows(groups),
        notes=notes,
    )


def _variants(flags: CompareFlags) -> dict[str, list[ScoredRun]]:
    """Return the score files by variant, named as asked for."""
    from two_stream.errors import ScoreError, SettingsError
    from two_stream.studies.statistics.scored import group_variants, read_scored

    by_hand: dict[str, list[Path]] = {}
    for text in flags.group:
        name, equals, listed = text.partition("=")
        paths = [Path(part) for part in listed.split(",") if part]
        if not (name and equals and paths) or name in by_hand:
            raise SettingsError(f"--group is {text!r}: expected NAME=RUN,RUN with a name of its own")
        by_hand[name] = paths
    paths = [path for members in by_hand.values() for path in members] + list(flags.sources)
    if not paths:
        raise ScoreError("no run or score file given; for example: two-stream compare runs/bert runs/average")
    doubled = next((path for place, path in enumerate(paths) if path in paths[:place]), None)
    if doubled is not None:
        raise ScoreError(f"{doubled}: given twice; a run says nothing when compared with itself")
    found = [read_scored(path, flags.part) for path in paths]
    places: dict[str, list[int]] = {}
    for name, members in by_hand.items():
        places[name] = [paths.index(path) for path in members]
    groups = group_variants(found, places)
    if flags.names is None:
        return groups
    names = [name.strip() for name in flags.names.split(",")]
    if len(names) != len(groups) or len(set(names)) < len(names) or not all(names):
        raise SettingsError(
            f"--names is {flags.names!r}: expected {len(groups)} different names, for {', '.join(groups)}"
        )
    return dict(zip(names, groups.values(), strict=True))


def _pairs(names: list[str], flags: CompareFlags) -> list[tuple[str, str, str]]:
    """Return what is compared: each variant with the baseline, or every two; first minus second."""
    from two_stream.config.load import nearest
    from two_stream.errors import SettingsError

    if flags.all_pairs:
        if flags.baseline is not None:
            raise SettingsError("--all-pairs and --baseline contradict each other; keep one")
        return [("all pairs", one, two) for place, one in enumerate(names) for two in names[place + 1 :]]
    baseline = names[0]
    if flags.baseline is not None:
        baseline = flags.baseline
        if baseline not in names and baseline.isdigit() and 1 <= int(baseline) <= len(names):
            baseline = names[int(baseline) - 1]
        if baseline not in names:
            raise SettingsError(f"--baseline is {baseline!r}: no such variant{nearest(baseline, names)}")
    return [(f"against {baseline}", name, baseline) for name in names if name != baseline]
