"""Score files with their runs: grouping into variants, and checks that variants can be compared."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix
from pathlib import Path
from typing import Any

from two_stream.config.load import dump, flatten
from two_stream.config.schema import FREE_ON_RESUME, Experiment
from two_stream.errors import ScoreError
from two_stream.evaluation.runs.lookup import history, run_of, settings_of
from two_stream.evaluation.scores.files import find_scores, newest_scores, read_scores
from two_stream.evaluation.scores.formats import Described
from two_stream.evaluation.scores.metrics import main_value
from two_stream.evaluation.scores.tables import keep_common_videos, name_of
from two_stream.studies.statistics.comparison import Cell, seeds_by_split
from two_stream.studies.statistics.results import RunRow
from two_stream.studies.statistics.summary import VariantRuns
from two_stream.types import RunPaths, ScoreTable

_MARKS = "_. -"
"""Characters that separate words in the name of a run."""
REPLICATE = ("name", "seed", "data.split", "data.settings_root", "data.features", *FREE_ON_RESUME)
"""Settings (with everything below them) in which runs of the same variant may differ."""
_PROTOCOL = {
    "dataset": "data sets",
    "part": "parts",
    "views": "views",
    "num_clips": "numbers of clips",
    "step": "steps between clips",
    "crops": "crops",
    "aggregate": "aggregation over views",
    "sampling": "frame choice",
    "frame_order": "frame order",
    "selection": "selection of the checkpoint",
}
"""Facts of a score file that must agree if two accuracies are compared, and their names in messages."""


@dataclass(frozen=True)
class ScoredRun:
    """A score file with its run."""

    table: ScoreTable
    run: RunPaths | None
    experiment: Experiment | None

    @property
    def file(self) -> str:
        """Path of the score file."""
        return name_of(self.table)

    @property
    def cell(self) -> Cell:
        """Split and seed of the scores; if the file does not contain them, split 1 and seed 0."""
        split, seed = self.table.meta.get("split"), self.table.meta.get("seed")
        return split if isinstance(split, int) else 1, seed if isinstance(seed, int) else 0

    @property
    def key(self) -> str:
        """Key that is equal for all runs of a variant: these differ only in seed, split and settings without effect.

        A fusion, or a file whose run has no readable settings, is a separate variant.
        """
        if self.experiment is None or self.table.meta.get("kind") == "fused":
            return self.file
        return json.dumps(_variant_settings(self.experiment), sort_keys=True, default=str)

    @property
    def backbone(self) -> str | None:
        """Checksum of the backbone whose stored features were scored."""
        return (self.table.meta.get("features") or {}).get("backbone_sha256")

    @property
    def protocol(self) -> str:
        """Key that is equal for score files of the same leaderboard; it does not depend on the splits."""
        facts = [stated_fact(self.table.meta, key) for key in (*_PROTOCOL, "precision")]
        if "split" not in self.table.meta:  # of another program: only the same videos can be ranked together
            facts.append(_digest(sorted(self.table.ids)))
        return json.dumps(facts)


def _variant_settings(experiment: Experiment) -> dict[str, Any]:
    """Return the dotted settings in which variants can differ."""
    return {
        key: value
        for key, value in flatten(experiment.model_dump(mode="json")).items()
        if not any(key == free or key.startswith(f"{free}.") for free in REPLICATE)
    }


def read_scored(path: Path | str, part: str = "test", described: Described | None = None) -> ScoredRun:
    """Read a score file, or the newest one of a run folder, together with the settings of its run if available.

    Raises:
        ScoreError: The file or folder does not exist or is damaged.
    """
    return with_run(read_scores(find_scores(path, part), described, part))


def with_run(table: ScoreTable) -> ScoredRun:
    """Return a table together with its run and the settings of the run, if they are available."""
    run = run_of(table)
    return ScoredRun(table, run, settings_of(run))


def keep_common(found: Sequence[ScoredRun]) -> list[ScoredRun]:
    """Reduce the score files of each split to the videos that all of them contain."""
    reduced = list(found)
    for split in {item.cell[0] for item in found}:
        places = [place for place, item in enumerate(found) if item.cell[0] == split]
        for place, table in zip(places, keep_common_videos([found[place].table for place in places])):
            reduced[place] = replace(found[place], table=table)
    return reduced


def group_variants(
    found: Sequence[ScoredRun], groups: Mapping[str, Sequence[int]] | None = None
) -> dict[str, list[ScoredRun]]:
    """Group runs into variants: the runs of a variant have the same settings except for the seed and the split.

    Two files with the same settings, split and seed (for example with different evaluation protocols) are two variants.
    Heads that were trained on the features of different backbones are different variants too. `groups` defines variants
    explicitly: `{name: indices in found}`.

    Raises:
        ScoreError: A variant in `groups` contains the same split and seed twice.
    """
    variants: dict[str, list[ScoredRun]] = {}
    for name, places in (groups or {}).items():
        variants[name] = [found[place] for place in places]
        _check_cells(name, variants[name])
    taken = {place for places in (groups or {}).values() for place in places}
    rest: list[tuple[str, list[ScoredRun]]] = []
    for item in (entry for place, entry in enumerate(found) if place not in taken):
        own = item.key
        fitting = [
            members
            for key, members in rest
            if key == own and all(_may_join(item, member) for member in members)
        ]
        alike = (members for members in fitting if any(item.backbone == one.backbone for one in members))
        members = next(alike, next(iter(fitting), None))
        if members is None:
            rest.append((own, [item]))
        else:
            members.append(item)
    names = variant_names([members for _, members in rest], taken=list(variants))
    return variants | dict(zip(names, (members for _, members in rest), strict=True))


def _may_join(item: ScoredRun, member: ScoredRun) -> bool:
    """Return whether two files can be runs of one variant; files of the same split must have the same backbone."""
    return item.cell != member.cell and (item.cell[0] != member.cell[0] or item.backbone == member.backbone)


def _check_cells(name: str, members: Sequence[ScoredRun]) -> None:
    known: dict[Cell, ScoredRun] = {}
    for item in members:
        first = known.setdefault(item.cell, item)
        if first is not item:
            split, seed = item.cell
            raise ScoreError(
                f"group {name!r}: {item.file} and {first.file} both have split {split}, seed {seed}; expected one "
                "file for each split and seed"
            )


def variant_names(variants: Sequence[Sequence[ScoredRun]], taken: Sequence[str] = ()) -> list[str]:
    """Return a unique name for each variant: the name of its runs, with the file name and a number if needed."""
    plain = [_common_name(members) for members in variants]
    found: list[str] = []
    for name, members in zip(plain, variants, strict=True):
        stem = f"{name} ({Path(members[0].file).stem})"
        choices = [name] if plain.count(name) == 1 else [stem]
        choices += [f"{stem} {place}" for place in range(2, len(variants) + 2)]
        found.append(next(choice for choice in choices if choice not in found and choice not in taken))
    return found


def _common_name(members: Sequence[ScoredRun]) -> str:
    """Return the name of a single run, or the common start of the names of several runs."""
    names = [_own_name(item) for item in members]
    if len(names) == 1:
        return names[0]
    start = commonprefix(names)  # noqa: RUF071 - of names, not of paths
    inside = re.match(rf"(.+)[{_MARKS}]", start)
    if inside and not all(name[len(start) :].isdigit() for name in names):
        start = inside[1]  # names differ within a word: bert-s|eed1, bert-s|plit2
    for word in ("split", "seed", "run"):
        start = start.rstrip(_MARKS).removesuffix(word)
    return start.rstrip(_MARKS) or names[0]


def _own_name(item: ScoredRun) -> str:
    if item.table.meta.get("kind") == "fused":
        return Path(item.file).stem
    run = item.run.root.resolve().name if item.run is not None else Path(item.file).stem
    return str(item.table.meta.get("name") or run)


def stated_fact(meta: Mapping[str, Any], key: str) -> str:
    """Return an entry of a score file's metadata. If a fusion lacks the entry, return the entries of its streams."""
    if key in meta or not meta.get("sources"):
        return str(meta.get(key))
    return " / ".join(dict.fromkeys(stated_fact(source, key) for source in meta["sources"]))


def comparable_facts(item: ScoredRun) -> dict[str, str]:
    """Return `{plural name: value}` of the facts that must agree if the accuracies of two score files are compared.

    These are the protocol, the split, and the classes and videos, which `join` checks before a test.
    """
    table = item.table
    labels = table.labels.tolist() if table.targets is None else table.targets.tolist()
    listed = {
        "class lists": (table.class_names, f"{len(table.class_names)} classes"),
        "videos": (sorted(zip(table.ids, labels)), f"{len(table.ids)} videos"),
    }
    return {
        **{label: stated_fact(table.meta, key) for key, label in _PROTOCOL.items()},
        "splits": str(item.cell[0]),
        **{label: f"{size}, list {_digest(values)}" for label, (values, size) in listed.items()},
    }


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:6]


def check_comparable(variants: Mapping[str, Sequence[ScoredRun]], *, anyway: bool = False) -> list[str]:
    """Check that the accuracies of variants can be compared. If `anyway` is true, return notes on the differences.

    Raises:
        ScoreError: The data set, part, splits or protocol differ and `anyway` is false.
    """
    found = _differences(variants)
    if found and not anyway:
        raise ScoreError(
            f"{'; '.join(found)}; these accuracies cannot be compared; evaluate the runs in the same way, or add "
            "--anyway"
        )
    return [f"The variants are compared despite {line}." for line in found]


def _differences(variants: Mapping[str, Sequence[ScoredRun]]) -> list[str]:
    """Return a description of each difference that prevents a comparison."""
    found = []
    facts = [(comparable_facts(item), item) for members in variants.values() for item in members]
    for label in _PROTOCOL.values():
        values: dict[str, ScoredRun] = {}
        for stated, item in facts:
            values.setdefault(stated[label], item)
        if len(values) > 1:
            shown = ", ".join(f"{value} ({item.file})" for value, item in values.items())
            found.append(f"different {label}: {shown}")
    splits = {name: sorted(seeds_by_split([item.cell for item in own])) for name, own in variants.items()}
    if len({tuple(numbers) for numbers in splits.values()}) > 1:
        shown = ", ".join(
            f"{name} {' and '.join(map(str, numbers))} ({variants[name][0].file})"
            for name, numbers in splits.items()
        )
        found.append(f"different splits: {shown}")
    return found


def unknown_settings(variants: Mapping[str, Sequence[ScoredRun]]) -> list[str]:
    """Return a note for each score file whose settings are unknown; fusions are left out."""
    return [
        f"The settings of {item.file} are unknown: "
        + (
            "the file is not in a run folder."
            if item.run is None
            else f"{item.run.experiment} cannot be read."
        )
        for members in variants.values()
        for item in members
        if item.experiment is None and item.table.meta.get("kind") != "fused"
    ]


def runs_of_variants(
    groups: Mapping[str, Sequence[ScoredRun]], *, with_holdout: bool = False
) -> list[VariantRuns]:
    """Return the runs of each variant for the statistics. `with_holdout` also reads the newest holdout scores.

    Raises:
        ScoreError: A run has no holdout scores, or a score file is not in a run folder.
    """
    settings = {
        name: _variant_settings(members[0].experiment)
        for name, members in groups.items()
        if members[0].experiment is not None
    }
    found = []
    for name, members in groups.items():
        histories = {
            f"split {item.cell[0]}, seed {item.cell[1]}": history(item.run)
            for item in members
            if item.run is not None
        }
        experiment = members[0].experiment
        found.append(
            VariantRuns(
                name=name,
                levels={"variant": name},
                changes={
                    key: value
                    for key, value in settings.get(name, {}).items()
                    if any(other.get(key) != value for other in settings.values())
                },
                tables={item.cell: item.table for item in members},
                histories={cell: rows for cell, rows in histories.items() if rows},
                settings=dump(experiment) if experiment is not None else "",
                holdout={item.cell: _holdout(item) for item in members} if with_holdout else {},
            )
        )
    return found


def _holdout(item: ScoredRun) -> ScoreTable:
    if item.run is None:
        raise ScoreError(
            f"{item.file}: the file is not in a run folder, so its holdout scores are unknown; omit --fit, or use "
            "score files in run folders"
        )
    return read_scores(newest_scores(item.run.root, "val"))


def run_rows(groups: Mapping[str, Sequence[ScoredRun]]) -> list[RunRow]:
    """Return the rows of a report's list of runs."""
    return [
        RunRow(
            variant=name,
            split=item.cell[0],
            seed=item.cell[1],
            state="done",
            run=str(item.run.root) if item.run is not None else "",
            accuracy=main_value(item.table.logits, item.table),
            scores=item.file,
            model_sha256=str(item.table.meta.get("model_sha256") or ""),
        )
        for name, members in groups.items()
        for item in members
    ]
