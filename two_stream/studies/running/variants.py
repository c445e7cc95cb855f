"""The variants of a study, and the pairs of variants that are compared."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from two_stream.config.load import flatten, nearest, read_yaml
from two_stream.config.study import SEPARATOR, Against, Changes, Study
from two_stream.errors import SettingsError

VARIANT = "variant"
"""Name of the factor whose levels are the entries of `variants`."""
BASELINE = "baseline"
"""Name of the baseline variant (`baseline: true`), also used as its level of every factor."""
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
