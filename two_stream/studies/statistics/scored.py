"""Score files with the runs they are of, and which of them are one variant."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path
from typing import Any

from two_stream.config.load import flatten
from two_stream.config.schema import Experiment
from two_stream.errors import ScoreError
from two_stream.evaluation.runs.lookup import run_of, settings_of
from two_stream.evaluation.scores.files import find_scores, name_of, read_scores
from two_stream.studies.statistics.panel import Cell
from two_stream.training.run_folder import FREE_ON_RESUME
from two_stream.types import RunPaths, ScoreTable

_MARKS = "_. -"
"""Between the words of a run's name."""
REPLICATE = ("name", "seed", "data.split", "data.settings_root", "data.features", *FREE_ON_RESUME)
"""Settings (and everything below them) in which runs of one variant may differ."""


@dataclass(frozen=True)
class ScoredRun:
    """A score file and the run it is of."""

    table: ScoreTable
    run: RunPaths | None
    experiment: Experiment | None

    @property
    def file(self) -> str:
        """Its path."""
        return name_of(self.table)

    @property
    def cell(self) -> Cell:
        """Its split and seed; 1 and 0 where the file does not say."""
        meta = self.table.meta
        return _whole(meta.get("split"), 1), _whole(meta.get("seed"), 0)

    @property
    def key(self) -> str:
        """The same for runs that differ in nothing but seed, split and what does not change a result.

        A file without its run's settings is a variant of its own; so is a fusion.
        """
        if self.experiment is None or self.table.meta.get("kind") == "fused":
            return self.file
        return json.dumps(varied(self.experiment), sort_keys=True, default=str)

    @property
    def backbone(self) -> str | None:
        """Checksum of the backbone whose stored features it was scored on."""
        return (self.table.meta.get("features") or {}).get("backbone_sha256")


def _may_join(item: ScoredRun, member: ScoredRun) -> bool:
    """Tell whether two files may be runs of one variant: within a split their features come from one backbone."""
    return item.cell != member.cell and (item.cell[0] != member.cell[0] or item.backbone == member.backbone)


def varied(experiment: Experiment) -> dict[str, Any]:
    """Return the settings in which variants may differ, dotted: all but those in which runs of one variant may."""
    return {
        key: value
        for key, value in flatten(experiment.model_dump(mode="json")).items()
        if not any(key == free or key.startswith(f"{free}.") for free in REPLICATE)
    }


def read_scored(path: Path | str, part: str = "test") -> ScoredRun:
    """Read a score file, or the newest one of a run folder, with the settings of its run where they are there.

    Raises:
        ScoreError: No such file or folder, or it is damaged.
    """
    table = read_scores(find_scores(path, part))
    run = run_of(table)
    return ScoredRun(table, run, settings_of(run))


def grouped(
    found: Sequence[ScoredRun], groups: Mapping[str, Sequence[int]] | None = None
) -> dict[str, list[ScoredRun]]:
    """Bring runs of the same settings but another seed or split together, by the name of their variant.

    Two files of the same settings, split and seed (another protocol, a repetition) are two variants; heads on features
    of two backbones are, too.

    Args:
        found: The score files.
        groups: Variants by hand, name -> places in `found`; the others are grouped by their settings.

    Raises:
        ScoreError: A variant made by hand holds a split and seed twice.
    """
    taken = {place for places in (groups or {}).values() for place in places}
    made: dict[str, list[ScoredRun]] = {}
    for name, places in (groups or {}).items():
        made[name] = [found[place] for place in places]
        _refuse_doubled(name, made[name])
    rest: list[tuple[str, list[ScoredRun]]] = []
    for item in (entry for place, entry in enumerate(found) if place not in taken):
        fitting = [
            members
            for key, members in rest
            if key == item.key and all(_may_join(item, member) for member in members)
        ]
        alike = (members for members in fitting if any(item.backbone == one.backbone for one in members))
        members = next(alike, next(iter(fitting), None))
        if members is None:
            rest.append((item.key, [item]))
        else:
            members.append(item)
    names = variant_names([members for _, members in rest], taken=list(made))
    return made | dict(zip(names, (members for _, members in rest), strict=True))


def variant_names(variants: Sequence[Sequence[ScoredRun]], taken: Sequence[str] = ()) -> list[str]:
    """Return how variants are called: by their runs, else by their files; no two alike.

    Where that does not tell them apart the file's name is added, and a number where even that does not.
    """
    plain = [_common_name(members) for members in variants]
    found: list[str] = []
    for name, members in zip(plain, variants, strict=True):
        stem = f"{name} ({Path(members[0].file).stem})"
        choices = [name] if plain.count(name) == 1 else [stem]
        choices += [f"{stem} {place}" for place in range(2, len(variants) + 2)]
        found.append(next(choice for choice in choices if choice not in found and choice not in taken))
    return found


def _common_name(members: Sequence[ScoredRun]) -> str:
    """Return the run's name, of several what their names begin with alike; of a bare file its own."""
    names = [_own_name(item) for item in members]
    if len(names) == 1:
        return names[0]
    start = commonprefix(names)  # noqa: RUF071 - of names, not of paths
    inside = re.match(rf"(.+)[{_MARKS}]", start)
    if inside and not all(name[len(start) :].isdigit() for name in names):
        start = inside[1]  # names part within a word: bert-s|eed1, bert-s|plit2
    for word in ("split", "seed", "run"):
        start = start.rstrip(_MARKS).removesuffix(word)
    return start.rstrip(_MARKS) or names[0]


def _own_name(item: ScoredRun) -> str:
    if item.table.meta.get("kind") == "fused":
        return Path(item.file).stem
    run = item.run.root.resolve().name if item.run is not None else Path(item.file).stem
    return str(item.table.meta.get("name") or run)


def _refuse_doubled(name: str, members: Sequence[ScoredRun]) -> None:
    known: dict[Cell, ScoredRun] = {}
    for item in members:
        if item.cell in known:
            raise ScoreError(
                f"group {name!r}: {item.file} and {known[item.cell].file} are both split {item.cell[0]}, seed "
                f"{item.cell[1]}; expected each once"
            )
        known[item.cell] = item


def _whole(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) else otherwise
