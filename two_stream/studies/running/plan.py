"""The cells of a study (every variant on every split with every seed) and their keys.

The key of a cell is the hash of everything that determines its weights: the settings, the code and the lists of the
data set. Settings that do not change the weights, such as the device or the evaluation, are not part of the key.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from two_stream.config.load import departures, flatten, read_yaml, validate_settings
from two_stream.config.schema import Experiment
from two_stream.config.study import Changes, Study
from two_stream.data.catalog import load_record
from two_stream.data.splits import load_part, own_validation
from two_stream.errors import SettingsError
from two_stream.runtime.device import pick_device, resolve_precision
from two_stream.runtime.files import complete_folder, sha256, write_text
from two_stream.runtime.provenance import source_digest
from two_stream.studies.running.variants import (
    Variant,
    baseline_settings,
    merge_settings,
    nest_settings,
    pairs_of,
    variants_of,
)
from two_stream.training.data import fingerprint
from two_stream.training.run_folder import FREE_ON_RESUME
from two_stream.types import Modality, Part
from two_stream.video.frames import extraction_settings

_PLACES = ("data.features", "data.dataset", "data.settings_root", "data.shards")
_RUNS = ("train.init", "compress.source", "compress.teachers")
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

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.experiment.runs / self.experiment.name

    @property
    def title(self) -> str:
        """Title of the cell in messages."""
        return f"{self.variant}, split {self.split}, seed {self.seed}"


def load_study(path: Path | str) -> Study:
    """Read a study file. A relative path `base` is searched in the folder of the file, then in the working directory.

    Raises:
        SettingsError: The file is invalid.
    """
    path = Path(path)
    study = validate_settings(Study, read_yaml(path), path)
    if study.base is not None and not study.base.is_absolute():
        base = path.parent / study.base
        study = study.model_copy(update={"base": base if base.is_file() else study.base})
    return study


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
    return [
        _cell(study, variant, split, seed, source)
        for seed in study.seeds
        for split in study.splits
        for variant in variants
    ]


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
    settings = baseline_settings((base.get("model") or {}).get("modality", "rgb"))
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
    return experiment


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
    data = experiment.data
    lists = _digest(
        data.dataset, data.settings_root, experiment.model.modality, data.split, data.source, data.shards
    )
    facts = {"settings": identity(experiment), "data": lists, "extra": extra}
    exact, loose = (digest_of({**facts, "start": digest}) for digest in start)
    key = digest_of([exact, source_digest()])
    slug = re.sub(r"[^\w.+-]+", "_", variant).strip("_")[:60]
    name = f"{slug}-split{split}-seed{seed}-{key[:8]}"
    return Cell(variant, split, seed, experiment.model_copy(update={"name": name}), key, loose)


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
    record = load_record(dataset, root)
    train, test = (load_part(record, modality, split, part, selection="paper") for part in _LISTS)
    made = (
        json.dumps(extraction_settings(record.frames_root(modality))) if source == "frames" else shards or ""
    )
    own = own_validation(record, modality, split)
    validation = [fingerprint(own, [], record.classes)] if own else []
    text = "\x1f".join([fingerprint(train, test, record.classes), source, made, *validation])
    return hashlib.sha256(text.encode()).hexdigest()
