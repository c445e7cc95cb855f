"""The variants of a study, and its cells (every variant on every split with every seed) with their keys.

The key of a cell is the hash of everything that determines its weights: the settings, the code and the lists of the
data set. Settings that do not change the weights, such as the device or the evaluation, are not part of the key.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel

from two_stream.config.load import (
    departures,
    dump,
    find_settings,
    flatten,
    nearest,
    read_yaml,
    validate_settings,
)
from two_stream.config.schema import FREE_ON_RESUME, DataOptions, Experiment
from two_stream.config.study import SEPARATOR, Against, Changes, Study
from two_stream.data.catalog import RECORD_FILE, dataset_record
from two_stream.data.sources.shards import is_url, shard_facts
from two_stream.data.splits import fingerprint, load_part, own_validation
from two_stream.errors import DataError, SettingsError
from two_stream.evaluation.runs.lookup import place_of, recorded_paths
from two_stream.runtime.device import pick_device, resolve_precision
from two_stream.runtime.files import complete_folder, sha256, write_json, write_text
from two_stream.runtime.provenance import source_digest
from two_stream.runtime.text import parse_json
from two_stream.types import Modality, Part
from two_stream.video.frames import extraction_settings

VARIANT = "variant"
"""Name of the factor whose levels are the entries of `variants`."""
BASELINE = "baseline"
"""Name of the baseline variant (`baseline: true`), also used as its level of every factor."""
STUDY, PLACES = "study.yaml", "data.json"
"""files in a study's folder, from which the study can be continued; see `keep_study`"""
M = TypeVar("M", bound=BaseModel)
MOST_TRAININGS = 10_000
"""largest number of training runs of one study"""


@dataclass(frozen=True)
class Variant:
    """A variant of the study's base experiment."""

    name: str
    levels: dict[str, str]
    changes: dict[str, Any] = field(default_factory=dict)
    """nested settings that override the study's base"""
    baseline: bool = False
    """whether this is the baseline, which uses its own settings instead of the study's base"""


def variants_of(study: Study) -> list[Variant]:
    """Return all combinations of the study's levels, except the excluded ones.

    Raises:
        SettingsError: There are too many variants, two variants have the same name, or an excluded variant does not
            exist.
    """
    factors: dict[str, dict[str, Changes]] = {VARIANT: study.variants} if study.variants else {}
    factors |= {factor: _levels(factor, given) for factor, given in study.grid.items()}
    number = math.prod(map(len, factors.values())) * len(study.seeds) * len(study.splits)
    if number > MOST_TRAININGS:
        raise SettingsError(
            f"the study has {number:,} training runs (variants × seeds × splits); expected at most "
            f"{MOST_TRAININGS:,}; use fewer variants, seeds or splits"
        )
    found = []
    for combination in itertools.product(*(levels.items() for levels in factors.values())):
        names = [name for name, _ in combination]
        changes: dict[str, Any] = {}
        for _, level in combination:
            changes = merge_settings(changes, nest_settings(level))
        found.append(Variant(SEPARATOR.join(names), dict(zip(factors, names)), changes))
    if study.baseline:
        found.append(Variant(BASELINE, dict.fromkeys(factors, BASELINE), baseline=True))
    known = [variant.name for variant in found]
    for key, names in (("exclude", study.exclude), ("published", list(study.published))):
        for name in names:
            if name not in known:
                raise SettingsError(f"`{key}` names {name!r}, which is not a variant{nearest(name, known)}")
    kept = [variant for variant in found if variant.name not in study.exclude]
    twice = next((name for name in known if known.count(name) > 1), None)
    if twice is not None:
        raise SettingsError(
            f"two variants have the same name, {twice!r}; expected unique names; rename their levels"
        )
    if not kept:
        raise SettingsError(
            "`exclude` removes all variants; expected at least one variant that is not excluded"
        )
    return kept


def _levels(factor: str, given: Mapping[str, Changes] | Sequence[Any]) -> dict[str, Changes]:
    """Return the levels of a factor by name.

    If the levels are listed as values of a setting, their names are the values.
    """
    if isinstance(given, Mapping):
        return dict(given)
    names = [_shown(value) for value in given]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SettingsError(
            f"`grid.{factor}` has the level {twice!r} twice; expected unique levels; remove one of them"
        )
    return {name: {factor: value} for name, value in zip(names, given)}


def _shown(value: Any) -> str:
    if isinstance(value, Mapping) and "kind" in value:
        return str(value["kind"])
    if isinstance(value, (bool, Mapping, list)) or value is None:
        return yaml.safe_dump(value, default_flow_style=True).splitlines()[0]
    return str(value)


def nest_settings(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Convert settings with dotted keys (`model.head.kind: lstm`) into nested settings.

    Raises:
        SettingsError: A key occurs twice, for example both dotted and nested.
    """
    made: dict[str, Any] = {}
    for key, value in changes.items():
        *path, last = str(key).split(".")
        inner = nest_settings(value) if isinstance(value, Mapping) else value
        for part in reversed([*path, last]):
            inner = {part: inner}
        twice = sorted(flatten(made).keys() & flatten(inner).keys())
        if twice:
            raise SettingsError(
                f"`{twice[0]}` is set twice, as a dotted key and as a nested key; remove one of them"
            )
        made = merge_settings(made, inner)
    return made


def merge_settings(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings with the changes applied.

    A section whose `kind` changes is replaced completely, because its other settings belong to the old kind. All other
    sections are merged.
    """
    made = dict(copy.deepcopy(dict(base)))
    for key, value in changes.items():
        old = made.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            other = "kind" in value and "kind" in old and value["kind"] != old["kind"]
            made[key] = merge_settings({} if other else old, value)
        else:
            made[key] = copy.deepcopy(value)
    return made


def pairs_of(study: Study, variants: Sequence[Variant]) -> list[tuple[str, str, str]]:
    """Return `(family, first, second)` for each comparison of the study.

    Raises:
        SettingsError: A family has no pairs, or contains an unknown variant, factor or level.
    """
    if len(variants) < 2:
        raise SettingsError(
            f"there is only one variant ({variants[0].name}), so there is nothing to compare; add another variant"
        )
    families = study.compare or [Against(baseline=variants[0].name)]
    found = []
    for place, family in enumerate(families):
        pairs = _pairs(family, variants, f"compare[{place}]")
        title = family.name or _title(family)
        found += [(title, first, second) for first, second in pairs]
    return found


def _title(family: Against) -> str:
    if family.pairs:
        return "chosen pairs"
    what = "every pair" if family.baseline is None else f"against {family.baseline}"
    return what + (f" ({family.factor})" if family.factor else "")


def _pairs(family: Against, variants: Sequence[Variant], where: str) -> list[tuple[str, str]]:
    names = [variant.name for variant in variants]
    if family.pairs:
        for name in itertools.chain.from_iterable(family.pairs):
            _known(name, names, f"{where}.pairs")
        return family.pairs
    chosen = _within(family, variants, where)
    if family.factor is None:
        plain = [variant.name for variant in chosen]
        if family.baseline is None:
            found = [(b, a) for a, b in itertools.combinations(plain, 2)]
        else:
            _known(family.baseline, plain, f"{where}.baseline")
            found = [(name, family.baseline) for name in plain if name != family.baseline]
    else:
        found = _along(family, chosen, where)
    if not found:
        raise SettingsError(
            f"`{where}` selects fewer than two variants, so there is nothing to compare; expected two or more"
        )
    return found


def _within(family: Against, variants: Sequence[Variant], where: str) -> list[Variant]:
    factors = list(variants[0].levels)
    for factor, level in family.within.items():
        _known(factor, factors, f"{where}.within")
        levels = list(dict.fromkeys(variant.levels[factor] for variant in variants))
        _known(level, levels, f"{where}.within.{factor}")
    return [
        variant
        for variant in variants
        if all(variant.levels[factor] == level for factor, level in family.within.items())
    ]


def _along(family: Against, variants: Sequence[Variant], where: str) -> list[tuple[str, str]]:
    """Return the pairs of variants that differ only in the factor of `family`."""
    factor = family.factor or ""
    _known(factor, list(variants[0].levels), f"{where}.factor")
    levels = list(dict.fromkeys(variant.levels[factor] for variant in variants))
    if family.baseline is not None:
        _known(family.baseline, levels, f"{where}.baseline")
    found = []
    for one, other in itertools.permutations(variants, 2):
        alike = all(one.levels[name] == other.levels[name] for name in one.levels if name != factor)
        later = levels.index(one.levels[factor]) > levels.index(other.levels[factor])
        if alike and (other.levels[factor] == family.baseline if family.baseline else later):
            found.append((one.name, other.name))
    return found


def _known(name: str, known: list[str], where: str) -> None:
    if name not in known:
        raise SettingsError(f"`{where}`: {name!r} does not exist{nearest(name, known)}")


SETTINGS = Path(__file__).with_name("baseline.yaml")


def baseline_settings(stream: str) -> dict[str, Any]:
    """Return the nested settings of a baseline stream."""
    every = read_yaml(SETTINGS)
    return merge_settings(every["common"], every[stream])


_PLACES = ("data.features", "data.dataset", "data.settings_root", "data.shards")
_RUNS = ("train.init", "compress.source", "compress.teachers", "model.backbone.weights")
_FREE = (*FREE_ON_RESUME, "name", "train.log_images", *_RUNS, *_PLACES)
"""settings that are not part of a key: they do not affect the weights, or the key contains the hash of the files that
they refer to"""
_SHARED = {
    "data": ("dataset", "settings_root", "source", "shards", "backend", "flow", "on_error", "workers"),
    "": ("device", "threads", "deterministic"),
}
"""settings that the baseline takes from the study's base: the videos, how they are read, and the device"""
PRECISION = "precision.txt"
"""file in a study's folder with the precision that replaces `evaluate.precision: auto`"""
_LISTS: tuple[Part, Part] = ("train", "test")
_OF_FEATURES = ("model.head", "model.dropout", "model.dense")
"""settings of a model that do not affect its frozen backbone"""


@dataclass(frozen=True)
class Cell:
    """A run of a study: one variant on one split with one seed."""

    variant: str
    split: int
    seed: int
    experiment: Experiment
    key: str
    loose_key: str
    data: str = ""
    """hash of the lists of the data set, of the extraction of its frames and of the initial weights"""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.experiment.runs / self.experiment.name

    @property
    def title(self) -> str:
        """Title of the cell in messages."""
        return f"{self.variant}, split {self.split}, seed {self.seed}"


class KeptStudy(Study):
    """A study that is continued from the files in its own folder, which may have been moved; see `keep_study`."""

    places: dict[str, Path]
    """where the files that the settings name are now, by `setting=value`"""
    cells: dict[str, str]
    """`Cell.data` of each cell when the study was run, by title"""


def load_study(
    path: Path | str, changes: Mapping[str, Any] | None = None, roots: Sequence[Path] = ()
) -> Study:
    """Read a study file. A relative `base` is looked up in the file's folder, the working directory, then by name.

    Args:
        path: The file, or the `study.yaml` in the folder of a study.
        changes: Settings that replace those of the file.
        roots: Folders of data sets and runs that the study uses, for a study in its own folder; see `locate_data`.

    Raises:
        SettingsError: The file is invalid, or `roots` contains a folder that the study does not use.
        DataError: The study is in its own folder, and a file that it uses is not found.
    """
    path = Path(path)
    mapping = read_yaml(path) | dict(changes or {})
    if path.name == STUDY and path.with_name(PLACES).is_file():
        return _kept_study(path, mapping, roots)
    if roots:
        raise SettingsError(
            f"{path}: --data-root is for the folder of a study; pass this folder, or change the paths in the file"
        )
    study = validate_settings(Study, mapping, path)
    if study.base is not None and not study.base.is_absolute():
        base = path.parent / study.base
        found = base if base.is_file() else find_settings(str(study.base), "experiments")
        study = study.model_copy(update={"base": found})
    return study


def keep_study(study: Study, cells: Sequence[Cell]) -> None:
    """Write to a study's folder what is needed to continue the study from any folder: its settings and their places."""
    if isinstance(study, KeptStudy):
        return
    folder, places = folder_of(study), {}
    for cell in cells:
        for setting, value in _named_files(cell.experiment):
            path, name = Path(value), ""
            if setting == "data.dataset":
                record = dataset_record(cell.experiment.data)
                path, name = record.folder / RECORD_FILE, record.name
            if path.exists():
                places[f"{setting}={value}"] = {**place_of(path, folder), "name": name}
    own = {"base": None, "demo": None, "settings": base_settings(study)}
    write_text(folder / STUDY, dump(study.model_copy(update=own)))
    write_json(folder / PLACES, {"places": places, "cells": {cell.title: cell.data for cell in cells}})


def _named_files(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """Yield the setting and the value of each file and folder that the settings name."""
    for setting in (*_PLACES, *_RUNS):
        section, _, name = setting.rpartition(".")
        value = getattr(attrgetter(section)(experiment), name, None)
        if setting == "data.settings_root" or value is None or is_url(str(value)):
            continue
        yield from ((setting, str(one)) for one in (value if isinstance(value, tuple) else (value,)))


def _kept_study(path: Path, mapping: Mapping[str, Any], roots: Sequence[Path]) -> KeptStudy:
    """Return a study from the `study.yaml` in its folder, with the places of the files that it uses."""
    folder = path.resolve().parent if path.parent.name in ("", "..") else path.parent
    try:
        kept = parse_json(path.with_name(PLACES).read_bytes())
        recorded = {
            str(key): (str(one["name"]), recorded_paths(folder, one)) for key, one in kept["places"].items()
        }
        cells = {str(title): str(data) for title, data in kept["cells"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise SettingsError(
            f"{path.with_name(PLACES)}: cannot be read; run the original study file with --out {folder.parent}"
        ) from None
    places: dict[str, Path] = {}
    for key, (name, tried) in recorded.items():
        own = [root / RECORD_FILE if root.is_dir() else root for root in roots] if name else roots
        tried = [*(one for one in own if name or one.name == tried[-1].name), *tried]
        found = (one for one in tried if one.exists() and (not name or read_yaml(one).get("name") == name))
        place = next(found, None)
        if place is None:
            what = f" (data set {name!r})" if name else ""
            raise DataError(
                f"{folder}: `{key.replace('=', '` is ')}{what}: not found; tried {', '.join(map(str, tried))}; name "
                "the folder with --data-root"
            )
        places[key] = place
    unused = [root for root in roots if not {root, root / RECORD_FILE} & {*places.values()}]
    if unused:
        raise SettingsError(f"{unused[0]}: found no data set and no run of the study {folder} there")
    given = {**mapping, "out": folder.parent, "name": folder.name, "places": places, "cells": cells}
    return validate_settings(KeptStudy, given, path)


def _with_places(study: Study, experiment: Experiment) -> Experiment:
    """Return the settings of a cell with the places of the files that they name, if the study was moved."""
    if not isinstance(study, KeptStudy):
        return experiment
    found: dict[str, list[Path]] = {}
    for setting, value in _named_files(experiment):
        if f"{setting}={value}" in study.places:
            found.setdefault(setting, []).append(study.places[f"{setting}={value}"])
    for setting, paths in found.items():
        old = attrgetter(setting)(experiment)
        experiment = with_setting(
            experiment, setting, tuple(paths) if isinstance(old, tuple) else type(old)(paths[0])
        )
    return experiment


def with_setting(options: M, setting: str, value: Any) -> M:
    """Return settings with another value of a dotted setting, which is not validated."""
    section, _, rest = setting.partition(".")
    inner = with_setting(getattr(options, section), rest, value) if rest else value
    return options.model_copy(update={section: inner})


def folder_of(study: Study) -> Path:
    """Return the folder of a study."""
    return study.out / study.name


def base_settings(study: Study) -> dict[str, Any]:
    """Return the nested settings that all variants start from."""
    settings = read_yaml(study.base) if study.base is not None else {}
    settings = merge_settings(settings, nest_settings(study.settings))
    if study.demo is not None:
        where = nest_settings({"data.dataset": str(study.demo.out / "dataset.yaml"), "data.source": "frames"})
        settings = merge_settings(settings, where)
    stored = folder_of(study) / PRECISION
    if stored.is_file() and (settings.get("evaluate") or {}).get("precision", "auto") == "auto":
        settings = merge_settings(
            settings, {"evaluate": {"precision": stored.read_text(encoding="utf-8").strip()}}
        )
    return settings


def keep_precision(study: Study) -> None:
    """Store the precision that `auto` resolves to on the first machine that runs the study.

    All machines of a cluster then score the study's cells with the same precision.
    """
    stored = folder_of(study) / PRECISION
    if not stored.is_file():
        device = str(base_settings(study).get("device", "auto"))
        write_text(stored, resolve_precision("auto", pick_device(device)) + "\n")


def plan_cells(study: Study, source: object = "study") -> list[Cell]:
    """Return the cells of a study, ordered by seed so that every variant has a first result early.

    Raises:
        SettingsError: The settings of a variant are invalid.
        DataError: The split lists of the data set cannot be read.
    """
    variants = check_study(study, source)
    cells = [
        _cell(study, variant, split, seed, source)
        for seed in study.seeds
        for split in study.splits
        for variant in variants
    ]
    before = study.cells if isinstance(study, KeptStudy) else {}
    for cell in cells:
        if before.get(cell.title, cell.data) != cell.data:
            raise SettingsError(
                f"{source}: {cell.title}: the lists or frames of {cell.experiment.data.dataset}, or the initial "
                "weights, are not those of the study; name the right folder with --data-root, or run the study file to "
                "use other data"
            )
    return cells


def check_study(study: Study, source: object = "study") -> list[Variant]:
    """Check the settings and comparisons of a study without reading data, and return its variants.

    Raises:
        SettingsError: The settings or the comparisons are invalid.
    """
    if set(study.name) == {"."}:
        raise SettingsError(f"{source}: `name` is {study.name!r}; expected a valid folder name")
    with _naming(source):
        variants = variants_of(study)
    for variant in variants:
        settings = _settings_of(study, variant)
        if study.features is not None and not variant.baseline:  # report settings that need frames now
            settings = merge_settings(settings, {"data": {"features": "features"}})
        _experiment(study, settings, study.splits[0], study.seeds[0], f"{source}: variant {variant.name!r}")
    with _naming(source):
        pairs_of(study, variants)
    return variants


@contextmanager
def _naming(source: object) -> Iterator[None]:
    try:
        yield
    except SettingsError as error:
        raise SettingsError(f"{source}: {error}") from None


def variant_experiment(study: Study, variant: Variant, split: int, seed: int, source: object) -> Experiment:
    """Return the settings of a variant for a split and a seed, without reading data.

    Raises:
        SettingsError: The settings are invalid.
    """
    where = f"{source}: variant {variant.name!r}"
    return _experiment(study, _settings_of(study, variant), split, seed, where)


def _settings_of(study: Study, variant: Variant) -> dict[str, Any]:
    settings = merge_settings(base_settings(study), variant.changes)
    if variant.baseline:
        return _of_baseline(settings)
    if study.features is not None:
        given = (settings.get("train") or {}).get("freeze_until")
        until = given if given in ("backbone", "head") else "backbone"
        return merge_settings(settings, {"train": {"freeze_until": until}})
    return settings


def _of_baseline(base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a baseline probe with the modality and the data of the study's base."""
    flow = (base.get("model") or {}).get("modality") == "flow"
    settings = baseline_settings("flow" if flow else "rgb")
    for section, names in _SHARED.items():
        given = base.get(section) or {} if section else base
        kept = {name: given[name] for name in names if name in given}
        settings = merge_settings(settings, {section: kept} if section else kept)
    return settings


def _cell(study: Study, variant: Variant, split: int, seed: int, source: object) -> Cell:
    experiment = variant_experiment(study, variant, split, seed, source)
    with _naming(f"{source}: variant {variant.name!r}"):
        start = loose = start_digest(experiment)
        taught = _taught_by(experiment)
    if variant.baseline:
        return name_cell(experiment, variant.name, split, seed, start=(start, loose))
    if study.features is not None and study.features.backbone is not None:
        backbone = backbone_cell(study, variant, split, source)
        start, loose = backbone.key, backbone.loose_key
    extra: Any = None if study.features is None else study.features.model_dump(mode="json")
    return name_cell(experiment, variant.name, split, seed, start=(start, loose), extra=taught or extra)


def backbone_cell(study: Study, variant: Variant, split: int, source: object) -> Cell:
    """Return the cell that trains the backbone of a variant with the study's first seed.

    Variants with the same backbone share the cell.
    """
    assert study.features is not None
    changes = _without(variant.changes, _OF_FEATURES)
    kept: Changes = {key: changes[key] for key in ("model", "data") if key in changes}
    settings = merge_settings(
        merge_settings(base_settings(study), kept), nest_settings(study.features.backbone or {})
    )
    where = f"{source}: `features.backbone` of variant {variant.name!r}"
    experiment = _experiment(study, settings, split, study.seeds[0], where)
    start = start_digest(experiment)
    return name_cell(experiment, "backbone", split, study.seeds[0], start=(start, start))


def _without(settings: Mapping[str, Any], names: tuple[str, ...]) -> Changes:
    """Return nested settings without the given dotted keys."""
    made = merge_settings({}, settings)
    for name in names:
        *path, last = name.split(".")
        inner = made
        for part in path:
            inner = inner.get(part, {})
        inner.pop(last, None)
    return made


def _experiment(study: Study, settings: Mapping[str, Any], split: int, seed: int, where: str) -> Experiment:
    folder = {"runs": str(folder_of(study) / "runs"), "seed": seed, "data": {"split": split}}
    experiment = validate_settings(Experiment, merge_settings(settings, folder), where)
    if study.part == "val" and experiment.train.selection == "paper":
        raise SettingsError(
            f"{where}: `part: val` cannot be used with `train.selection: paper`, which validates "
            "on the test part; set `part: test`, or another `train.selection`"
        )
    return _with_places(study, experiment)


def name_cell(
    experiment: Experiment,
    variant: str,
    split: int,
    seed: int,
    *,
    start: tuple[str, str] = ("", ""),
    extra: Any = None,
) -> Cell:
    """Return a cell with its key; the name of its experiment contains the key.

    `start` contains two hashes of the initial weights, with and without the code that trained them. `extra` contains
    other values that determine the cell's weights.
    """
    options = experiment.data
    lists = _digest(
        options.dataset,
        options.settings_root,
        experiment.model.reads,
        options.split,
        options.source,
        options.shards,
    )
    facts = {"settings": identity(experiment), "data": lists, "extra": extra}
    exact, loose = (digest_of({**facts, "start": digest}) for digest in start)
    key = digest_of([exact, source_digest()])
    slug = re.sub(r"[^\w.+-]+", "_", variant).strip("_")[:60]
    name = f"{slug}-split{split}-seed{seed}-{key[:8]}"
    data = digest_of([lists, start[1]])
    return Cell(variant, split, seed, experiment.model_copy(update={"name": name}), key, loose, data)


def digest_of(facts: Any) -> str:
    """Return the SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def identity(experiment: Experiment) -> dict[str, Any]:
    """Return the settings that determine a run's weights and differ from their defaults.

    New options of a later version therefore do not change the key as long as they have their defaults.
    """
    settings = flatten(departures(experiment))
    return {
        key: value
        for key, value in settings.items()
        if not any(key == name or key.startswith(f"{name}.") for name in _FREE)
    }


def start_digest(experiment: Experiment) -> str:
    """Return the hash of a run's initial weights (a file, or the best weights of a run folder); empty without weights.

    Raises:
        SettingsError: The file or run folder does not exist.
    """
    name, init = "train.init", experiment.train.init
    if init is None:
        name, init = "model.backbone.weights", getattr(experiment.model.backbone, "weights", None)
    if init is None:
        return ""
    return _weights_digest(name, init)


def _taught_by(experiment: Experiment) -> list[str]:
    """Return the hashes of the teachers' weights; an empty list without distillation."""
    teachers = getattr(experiment.compress, "teachers", ())
    return [_weights_digest("compress.teachers", teacher) for teacher in teachers]


def _weights_digest(name: str, where: Path) -> str:
    if where.is_file():
        return sha256(where)
    for folder in ("best", "last", "."):
        weights = complete_folder(where / folder) / "model.safetensors"
        if weights.is_file():
            return sha256(weights)
    raise SettingsError(f"`{name}`: {where} is neither a file nor a run folder with weights; check the path")


@cache
def _digest(dataset: str, root: Path, modality: Modality, split: int, source: str, shards: str | None) -> str:
    """Return the hash of a data set's split lists and of the extraction settings of its frames."""
    record = dataset_record(DataOptions(dataset=dataset, settings_root=root))
    train, test = (load_part(record, modality, split, part, selection="paper") for part in _LISTS)
    made = shards or ""  # a URL
    if source == "frames":
        made = json.dumps(extraction_settings(record.frames_root(modality)))
    elif source == "shards" and not is_url(made):
        packed = shard_facts(made, modality)
        made = json.dumps({name: packed[name] for name in packed if name not in ("location", "code_version")})
    own = own_validation(record, modality, split)
    validation = [fingerprint(own, [], record.classes)] if own else []
    text = "\x1f".join([fingerprint(train, test, record.classes), source, made, *validation])
    return hashlib.sha256(text.encode()).hexdigest()
