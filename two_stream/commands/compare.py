"""`two-stream compare RUN|FILE …`: compares runs on the same videos, with statistics."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from two_stream.commands.flags import JoinFlags, parse
from two_stream.commands.output import print_json
from two_stream.config.load import nearest
from two_stream.errors import ScoreError, SettingsError
from two_stream.runtime.console import note, say
from two_stream.runtime.files import keep_inputs

if TYPE_CHECKING:
    from two_stream.studies.statistics.results import StudyResult
    from two_stream.studies.statistics.scored import ScoredRun

SUMMARY = (
    "Compare runs or score files on the same videos: confidence intervals, paired tests, and the smallest difference "
    "that could be detected."
)
EXAMPLES = ("compare demo/runs/rgb demo/runs/flow", "compare demo/runs/rgb demo/runs/flow --out compare.html")


@dataclass(frozen=True)
class _CompareFlags(JoinFlags):
    sources: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN|SCORES …")]] = ()
    """score files, or run folders, whose newest scores are used; runs that differ only in seed or split form one
    variant"""
    group: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=RUN,RUN")] = ()
    """define a variant explicitly: its name, and runs to treat as repetitions of each other"""
    names: str | None = None
    """names of the variants, separated by commas; variants from --group come first"""
    baseline: str | None = None
    """variant to compare all other variants with: its name, or its number from 1; if omitted, the first variant"""
    all_pairs: bool = False
    """compare all pairs of variants"""
    fuse: Literal["l2", "logits", "probabilities", "rank"] | None = None
    """also fuse RGB and flow variants with this rule, in pairs and all together"""
    fit: bool = False
    """fit the weights of the fusion on the holdout scores of the runs"""
    part: Literal["test", "val"] = "test"
    """for run folders: part of the data set whose scores are used"""
    anyway: bool = False
    """compare runs even if their data sets, splits or protocols differ; the report contains a warning"""
    level: float = 0.95
    """confidence level of the intervals; tests use the significance level 1 - LEVEL"""
    out: Path | None = None
    """report to write (.html); files with the same name and the endings .md, .csv, .json and .tex are also written"""
    json: bool = False
    """print JSON instead of tables"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    flags = parse(_CompareFlags, args, "two-stream compare", SUMMARY, EXAMPLES)
    result = _result(flags, args)
    if flags.json:
        print_json(asdict(result))
    else:
        from two_stream.studies.report.tables import print_study, settings_line

        print_study(result)
        line = settings_line(result)
        if line:
            say(line if flags.out else f"{line} (--out FILE.html shows the values)")
    if flags.out is not None:
        from two_stream.studies.report.study_report import write_study_report

        for place, path in enumerate(write_study_report(result, flags.out)):
            (note if flags.json else say)(f"{path}" if place else f"open {path}")
    return 0


def _result(flags: _CompareFlags, args: Sequence[str]) -> StudyResult:
    from two_stream.studies.statistics.scored import (
        check_comparable,
        run_rows,
        runs_of_variants,
        unknown_settings,
    )
    from two_stream.studies.statistics.summary import Question, study_result

    if not 0.5 <= flags.level < 1:
        raise SettingsError(f"--level is {flags.level}: expected a number from 0.5 to below 1, such as 0.95")
    if flags.fit and flags.fuse is None:
        raise SettingsError("--fit needs a fusion rule; add --fuse, or omit --fit")
    groups = _variants(flags)
    notes = [*check_comparable(groups, anyway=flags.anyway), *unknown_settings(groups)]
    reduced = (item.table.meta.get("common") for members in groups.values() for item in members)
    notes += [f"The results are for {text}." for text in dict.fromkeys(filter(None, reduced))]
    names = list(groups)
    if len(names) < 2:
        raise SettingsError(
            f"only one variant ({names[0]}), because runs that differ only in seed or split form one variant; expected "
            "two or more: add a run with other settings, or define the variants with --group A=RUN B=RUN"
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


def _variants(flags: _CompareFlags) -> dict[str, list[ScoredRun]]:
    """Return a dictionary from the name of each variant to its score files."""
    from two_stream.studies.statistics.scored import group_variants, keep_common, read_scored

    by_hand: dict[str, list[Path]] = {}
    for text in flags.group:
        name, equals, listed = text.partition("=")
        paths = [Path(part) for part in listed.split(",") if part]
        if not (name and equals and paths) or name in by_hand:
            raise SettingsError(f"--group is {text!r}: expected NAME=RUN,RUN with a unique name")
        by_hand[name] = paths
    paths = [path for members in by_hand.values() for path in members] + list(flags.sources)
    if not paths:
        raise ScoreError("no run or score file given; for example: two-stream compare runs/bert runs/average")
    doubled = next((path for place, path in enumerate(paths) if path in paths[:place]), None)
    if doubled is not None:
        raise ScoreError(f"{doubled}: the same run or file is given twice; remove one of the two")
    if flags.out is not None:
        from two_stream.studies.report.study_report import study_files  # imports matplotlib

        keep_inputs(study_files(flags.out), paths)
    found = [read_scored(path, flags.part, flags.described()) for path in paths]
    found = keep_common(found) if flags.common else found
    places = {name: [paths.index(path) for path in members] for name, members in by_hand.items()}
    groups = group_variants(found, places)
    if flags.names is None:
        return groups
    names = [name.strip() for name in flags.names.split(",")]
    if len(names) != len(groups) or len(set(names)) < len(names) or not all(names):
        raise SettingsError(
            f"--names is {flags.names!r}: expected {len(groups)} different names, one for each of {', '.join(groups)}"
        )
    return dict(zip(names, groups.values(), strict=True))


def _pairs(names: list[str], flags: _CompareFlags) -> list[tuple[str, str, str]]:
    """Return the comparisons as (family, first, second): each variant with the baseline, or all pairs."""
    if flags.all_pairs:
        if flags.baseline is not None:
            raise SettingsError("--all-pairs and --baseline cannot be combined; omit one of them")
        return [("all pairs", one, two) for place, one in enumerate(names) for two in names[place + 1 :]]
    baseline = names[0]
    if flags.baseline is not None:
        baseline = flags.baseline
        if baseline not in names and baseline.isdigit() and 1 <= int(baseline) <= len(names):
            baseline = names[int(baseline) - 1]
        if baseline not in names:
            raise SettingsError(
                f"--baseline is {baseline!r}: expected the name or number of a variant{nearest(baseline, names)}"
            )
    return [(f"against {baseline}", name, baseline) for name in names if name != baseline]
