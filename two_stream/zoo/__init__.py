"""Named models: a table of records. Names are looked up in the table, not parsed."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase
from typing import Any

from pydantic import BaseModel

from two_stream.config.load import validate_settings
from two_stream.config.model import ModelOptions
from two_stream.errors import SettingsError
from two_stream.zoo import co3d, families, kinetics, late_temporal, modern, torchvision
from two_stream.zoo.record import ModelRecord

_RECORDS: dict[str, ModelRecord] = {
    record.name: record
    for home in (late_temporal, kinetics, families, co3d, modern, torchvision)
    for record in home.RECORDS
}
_ALIASES = {record.alias: record for record in _RECORDS.values() if record.alias}


def records(pattern: str = "*") -> list[ModelRecord]:
    """Return the records with a name that matches a shell pattern, in the order of the table."""
    return [
        record
        for record in _RECORDS.values()
        if fnmatchcase(record.name, pattern) or (record.alias and fnmatchcase(record.alias, pattern))
    ]


def list_models(pattern: str = "*") -> list[str]:
    """Return the model names that match a shell pattern, for example `"*bert*"`; `create_model` accepts them."""
    names = [*_ALIASES, *_RECORDS]
    return [name for name in names if fnmatchcase(name, pattern)]


def find(name: str) -> ModelRecord:
    """Return the record with a given name or alias.

    Raises:
        SettingsError: Unknown name; suggests similar ones.
    """
    record = _RECORDS.get(name) or _ALIASES.get(name)
    if record is not None:
        return record
    by_lower = {known.lower(): known for known in list_models()}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=3, cutoff=0.5)
    hint = (
        f"did you mean {' or '.join(by_lower[known] for known in close)}?"
        if close
        else "see `two-stream models`"
    )
    raise SettingsError(f"unknown model {name!r}; {hint}")


def resolve(name_or_options: str | ModelOptions, **changes: Any) -> ModelOptions:
    """Return the options of a named model, or the given options, with some fields changed.

    Raises:
        SettingsError: Unknown name, key or value.
    """
    named = isinstance(name_or_options, str)
    options = find(name_or_options).options if isinstance(name_or_options, str) else name_or_options
    if not changes:
        return options
    source = f"model {name_or_options}" if named else "model options"
    base = options.model_dump()
    if (changes.get("modality", options.modality) == "flow") != (options.reads == "flow"):
        base["input"].update(_other_modality(base["input"]))
    return validate_settings(ModelOptions, _merge(base, changes), source)


def _other_modality(input_: dict[str, Any]) -> dict[str, Any]:
    """Return the normalisation for the other modality: flow uses the first two values of RGB, as in 3D-ResNets."""
    return {
        name: values[:2] if values is not None and len(values) == 3 else None
        for name, values in ((name, input_[name]) for name in ("mean", "std"))
    }


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Merge changes into settings; a part of a different kind replaces the old one completely."""
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(value, BaseModel):
            value = value.model_dump()  # a complete part replaces the old one
        elif isinstance(value, dict) and isinstance(base.get(key), dict):
            same = value.get("kind", base[key].get("kind")) == base[key].get("kind")
            value = _merge(base[key], value) if same else value
        merged[key] = value
    return merged


__all__ = ["ModelRecord", "find", "list_models", "records", "resolve"]
