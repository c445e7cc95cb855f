"""The cells of a study: every variant on every split with every seed, each with its key.

A key is the hash of what decides a cell's weights: its settings, the code that computes and the data's lists. What may
differ without changing them (device, threads, folders, how it is evaluated) is left out.
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

from pydantic import BaseModel

from two_stream.config.load import flatten, read_yaml, validate_settings
from two_stream.config.schema import Experiment
from two_stream.config.study import Changes, Study
from two_stream.data.catalog import load_record
from two_stream.data.splits import load_part, own_validation
from two_stream.errors import SettingsError
from two_stream.runtime.device import pick_device
from two_stream.runtime.files import complete_folder, sha256, write_text
from two_stream.runtime.precision import resolve_precision
from two_stream.runtime.provenance import source_digest
from two_stream.studies.running.variants import (
    Variant,
    baseline_settings,
    merged,
    nested,
    pairs_of,
    variants_of,
)
from two_stream.training.data import fingerprint
from two_stream.training.run_folder import FREE_ON_RESUME
from two_stream.types import Modality, Part
from two_stream.video.extraction.one_video import extraction_settings

_PLACES = ("data.features", "data.dataset", "data.settings_root", "data.shards")
_RUNS = ("train.init", "compress.source", "compress.teachers")
_FREE = (*FREE_ON_RESUME, "name", "train.log_images", *_RUNS, *_PLACES)
"""settings that are no part of a key: they decide nothing, or stand in it as the hash of what they point to"""
_SHARED = {
    "data": ("dataset", "settings_root", "source", "shards", "backend", "flow", "on_error", "workers"),
    "": ("device", "threads", "deterministic"),
}
"""settings of a study's base that its baseline has too: which videos, read how, and where it runs"""
PRECISION = "precision.txt"
"""in a study's folder: what `evaluate.precision: auto` means there"""
_LISTS: tuple[Part, Part] = ("train", "test")
_OF_FEATURES = ("model.head", "model.dropout", "model.dense")
"""parts of a variant's model that its frozen backbone does not depend on"""


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    variant: str
    split: int
    seed: int
    experiment: Experiment
    key: str
    loose_key: str
    """the key without the code"""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.experiment.runs / self.experiment.name

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.variant}, split {self.split}, seed {self.seed}"


def load_study(path: Path | str) -> Study:
    """Read a study file; its paths are made relative to the working folder.

    Raises:
        SettingsError: Naming the file, the key, the value and what was expected.
    """
    path = Path(path)
    study = validate_settings(Study, read_yaml(path), path)
    if study.base is not None and not study.base.is_absolute():
        beside = path.parent / study.base
        study = study.model_copy(update={"base": beside if beside.is_file() else study.base})
    return study


def folder_of(study: Study) -> Path:
    """Return the folder that everything of a study lies in."""
    return study.out / study.name


def base_settings(study: Study) -> dict[str, Any]:
    """Return the nested settings that every variant departs from."""
    settings = read_yaml(study.base) if study.base is not None else {}
    settings = merged(settings, nested(study.settings))
    if study.demo is not None:
        where = nested({"data.dataset": str(study.demo.out / "dataset.yaml"), "data.source": "frames"})
        settings = merged(settings, where)
    kept = folder_of(study) / PRECISION
    if kept.is_file() and (settings.get("evaluate") or {}).get("precision", "auto") == "auto":
        settings = merged(settings, {"evaluate": {"precision": kept.read_text(encoding="utf-8").strip()}})
    return settings


def keep_precision(study: Study) -> None:
    """Write into a study's folder, once, which precision `auto` means on the machine that makes it.

    So its cells are scored alike on every machine of a cluster; CPUs without bf16 compute it more slowly.
    """
    kept = folder_of(study) / PRECISION
    if not kept.is_file():
        device = str(base_settings(study).get("device", "auto"))
        write_text(kept, resolve_precision("auto", pick_device(device)) + "\n")


def plan(study: Study, source: object = "study") -> list[Cell]:
    """Return the cells of a study, seed by seed, so that every variant has its first result early.

    Args:
        study: The study.
        source: What messages name, mostly its file.

    Raises:
        SettingsError: A variant's settings are wrong; names it.
        DataError: The lists of a data set cannot be read.
    """
    variants = check_study(study, source)
    return [
        _cell(study, variant, split, seed, source)
        for seed in study.seeds
        for split in study.splits
        for variant in variants
    ]


def check_study(study: Study, source: object = "study") -> list[Variant]:
    """Return a study's variants, after a look at everything that can be wrong with them without any data.

    Raises:
        SettingsError: Their settings, or what is to be compared, is wrong; names source and variant.
    """
    if set(study.name) == {"."}:
        raise SettingsError(f"{source}: `name` is {study.name!r}: expected one that a folder can have")
    with _naming(source):
        variants = variants_of(study)
    for variant in variants:
        settings = _settings_of(study, variant)
        if study.features is not None and not variant.baseline:  # what its cells cannot read is wrong now
            settings = merged(settings, {"data": {"features": "features"}})
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
    """Return the settings of a variant on a split with a seed; looks at no data.

    Raises:
        SettingsError: They are wrong; names source and variant.
    """
    return _experiment(
        study, _settings_of(study, variant), split, seed, f"{source}: variant {variant.name!r}"
    )


def _settings_of(study: Study, variant: Variant) -> dict[str, Any]:
    settings = merged(base_settings(study), variant.changes)
    if variant.baseline:
        return _of_baseline(settings)
    if study.features is not None:
        return merged(settings, {"train": {"freeze_until": _frozen(settings)}})
    return settings


def _of_baseline(base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the baseline's probe for the base's modality on the base's data."""
    settings = baseline_settings((base.get("model") or {}).get("modality", "rgb"))
    for section, names in _SHARED.items():
        given = base.get(section) or {} if section else base
        kept = {name: given[name] for name in names if name in given}
        settings = merged(settings, {section: kept} if section else kept)
    return settings


def _cell(study: Study, variant: Variant, split: int, seed: int, source: object) -> Cell:
    experiment = variant_experiment(study, variant, split, seed, source)
    with _naming(f"{source}: variant {variant.name!r}"):
        start = loose = start_of(experiment)
        taught = _taught_by(experiment)
    if variant.baseline:
        return named(experiment, variant.name, split, seed, start=(start, loose))
    if study.features is not None and study.features.backbone is not None:
        backbone = backbone_cell(study, variant, split, source)
        start, loose = backbone.key, backbone.loose_key
    extra: Any = None if study.features is None else study.features.model_dump(mode="json")
    return named(experiment, variant.name, split, seed, start=(start, loose), extra=taught or extra)


def _frozen(settings: Mapping[str, Any]) -> str:
    given = (settings.get("train") or {}).get("freeze_until")
    return given if given in ("backbone", "head") else "backbone"


def backbone_cell(study: Study, variant: Variant, split: int, source: object) -> Cell:
    """Return the run whose frozen backbone serves a variant's cells: the same one for all variants of one backbone.

    It is trained with the study's first seed.
    """
    assert study.features is not None
    changes = _without(variant.changes, _OF_FEATURES)
    kept: Changes = {key: changes[key] for key in ("model", "data") if key in changes}
    settings = merged(merged(base_settings(study), kept), nested(study.features.backbone or {}))
    where = f"{source}: `features.backbone` of variant {variant.name!r}"
    experiment = _experiment(study, settings, split, study.seeds[0], where)
    start = start_of(experiment)
    return named(experiment, "backbone", split, study.seeds[0], start=(start, start))


def _without(settings: Mapping[str, Any], names: tuple[str, ...]) -> Changes:
    """Return nested settings without some dotted keys."""
    made = merged({}, settings)
    for name in names:
        *path, last = name.split(".")
        inner = made
        for part in path:
            inner = inner.get(part, {})
        inner.pop(last, None)
    return made


def _experiment(study: Study, settings: Mapping[str, Any], split: int, seed: int, where: str) -> Experiment:
    folder = {"runs": str(folder_of(study) / "runs"), "seed": seed, "data": {"split": split}}
    experiment = validate_settings(Experiment, merged(settings, folder), where)
    if study.part == "val" and experiment.train.selection == "paper":
        raise SettingsError(f"{where}: `part: val` is the test part under `train.selection: paper`")
    return experiment


def named(
    experiment: Experiment,
    variant: str,
    split: int,
    seed: int,
    *,
    start: tuple[str, str] = ("", ""),
    extra: Any = None,
) -> Cell:
    """Return a cell with its key, its experiment named after it.

    Args:
        experiment: Resolved settings.
        variant: Name of the variant.
        split: Official split.
        seed: Seed.
        start: Hash of the weights it starts from, with the code that made them and without.
        extra: What else decides its weights.
    """
    facts = {"settings": identity(experiment), "data": data_digest(experiment), "extra": extra}
    exact, loose = (digest_of({**facts, "start": digest}) for digest in start)
    key = digest_of([exact, source_digest()])
    slug = re.sub(r"[^\w.+-]+", "_", variant).strip("_")[:60]
    name = f"{slug}-split{split}-seed{seed}-{key[:8]}"
    return Cell(variant, split, seed, experiment.model_copy(update={"name": name}), key, loose)


def digest_of(facts: Any) -> str:
    """Return the hash of plain values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def identity(experiment: Experiment) -> dict[str, Any]:
    """Return the settings that decide a run's weights, where they are not the defaults.

    So a new option of a later version, left at its default, makes no other run of it.
    """
    settings = flatten(_departures(experiment))
    return {
        key: value
        for key, value in settings.items()
        if not any(key == name or key.startswith(f"{name}.") for name in _FREE)
    }


def _departures(options: BaseModel) -> dict[str, Any]:
    """Return the values that are not their field's default, and the kind of every part."""
    plain = options.model_dump(mode="json")
    found: dict[str, Any] = {}
    for name, field in type(options).model_fields.items():
        value = getattr(options, name)
        if isinstance(value, BaseModel):
            found[name] = _departures(value)
        elif name == "kind" or value != field.get_default(call_default_factory=True):
            found[name] = plain[name]
    return found


def start_of(experiment: Experiment) -> str:
    """Return the hash of the weights a run starts from: a file, or a run folder's best; empty without any.

    Raises:
        SettingsError: There is no such file or run.
    """
    name, init = "train.init", experiment.train.init
    if init is None:
        name, init = "model.backbone.weights", getattr(experiment.model.backbone, "weights", None)
    if init is None:
        return ""
    return _weights_digest(name, init)


def _taught_by(experiment: Experiment) -> list[str]:
    """Return the hashes of the teachers' weights; none without distillation, which goes with no stored features."""
    teachers = getattr(experiment.compress, "teachers", ())
    return [_weights_digest("compress.teachers", teacher) for teacher in teachers]


def _weights_digest(name: str, where: Path) -> str:
    if where.is_file():
        return sha256(where)
    for folder in ("best", "last", "."):
        weights = complete_folder(where / folder) / "model.safetensors"
        if weights.is_file():
            return sha256(weights)
    raise SettingsError(f"`{name}` is {where}: no such file, and no run folder with weights")


def data_digest(experiment: Experiment) -> str:
    """Return the hash of a data set's lists and of how its frames were made.

    Raises:
        DataError: It is not on this machine, or a list is missing.
    """
    data = experiment.data
    return _digest(
        data.dataset, data.settings_root, experiment.model.modality, data.split, data.source, data.shards
    )


@cache
def _digest(dataset: str, root: Path, modality: Modality, split: int, source: str, shards: str | None) -> str:
    record = load_record(dataset, root)
    train, test = (load_part(record, modality, split, part, selection="paper") for part in _LISTS)
    made = (
        json.dumps(extraction_settings(record.frames_root(modality))) if source == "frames" else shards or ""
    )
    own = own_validation(record, modality, split)
    validation = [fingerprint(own, [], record.classes)] if own else []
    text = "\x1f".join([fingerprint(train, test, record.classes), source, made, *validation])
    return hashlib.sha256(text.encode()).hexdigest()
