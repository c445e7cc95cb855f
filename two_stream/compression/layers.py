"""Selection of the layers to prune: by a pattern, by their position, or by a file of levels."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from two_stream.config.compress import Prune
from two_stream.config.load import nearest
from two_stream.errors import SettingsError
from two_stream.recognizer import Recognizer
from two_stream.runtime.text import parse_json, plural

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
CLASSIFIER = "classifier"


def layers_of(model: nn.Module) -> dict[str, Layer]:
    """Return all convolutions and linear layers by name, in the order of the network."""
    return {name: part for name, part in model.named_modules() if isinstance(part, KINDS)}


def chosen_layers(model: Recognizer, options: Prune) -> dict[str, Layer]:
    """Return the layers that the options select.

    Raises:
        SettingsError: The options select no layer, or contain the name of a layer that does not exist.
    """
    found = layers_of(model)
    unknown = next((name for name in options.by_layer if name not in found), None)
    if unknown is not None:
        raise SettingsError(
            f"`compress.by_layer`: {unknown!r} is not a convolution or linear layer of the network"
            f"{nearest(unknown, list(found))}"
        )
    if options.by_layer:
        return {name: layer for name, layer in found.items() if name in options.by_layer}
    pattern = _pattern(options.layers)
    first = first_layers(model) if options.skip_first else set()
    kept = {
        name: layer
        for name, layer in found.items()
        if pattern.search(name) and name not in first and not (options.skip_classifier and name == CLASSIFIER)
    }
    if not kept:
        shown = ", ".join(list(found)[:4])
        raise SettingsError(
            f"`compress.layers` is {options.layers!r}, which leaves no layer to prune; expected a pattern for "
            f"some of the network's {plural(len(found), 'layer')}: {shown}, …"
        )
    return kept


def first_layers(model: Recognizer) -> set[str]:
    """Return the names of the layers whose input is the clip, one for each pathway."""
    _, stem = model.backbone.stages()[0]
    seen = {
        id(part)
        for part in stem.modules()
        if isinstance(part, KINDS[:3]) and part.groups == 1 and part.in_channels == model.spec.channels
    }
    return {name for name, part in model.named_modules() if id(part) in seen}


def read_levels(path: Path, names: Sequence[str], what: str = "weights") -> dict[str, float]:
    """Read a file of levels: the fraction to prune for each layer.

    Args:
        path: A JSON file such as `{"backbone.layer1.0.conv1": 0.6}`, or with this mapping under the key `levels`, as
            `compress sensitivity` writes it. A CSV file of compressed-video-classification with the columns Name, Type
            and Sparsity can also be read; only its Conv3d rows are used.
        names: Names of the network's layers. Names of the published code, such as `module.layer1.0.conv1.weight`, are
            matched to these names. If there are as many unknown names as unmatched layers, unknown names are assigned
            in order.
        what: What is pruned. A file for another kind of pruning is rejected.

    Raises:
        SettingsError: The file cannot be read or is for another kind of pruning, a fraction is out of range, or layers
            are unknown.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        kind, levels = _from_csv(text) if path.suffix.lower() == ".csv" else _from_json(text)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}); expected a file of levels") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SettingsError(
            f"{path}: not a file of levels; expected JSON with a fraction for each layer, or a CSV file with the "
            "columns Name, Type and Sparsity"
        ) from None
    if kind not in (None, what):
        raise SettingsError(
            f"{path}: the file contains levels for pruning {kind}, but {what} are pruned; use --what {kind}"
        )
    wrong = next((name for name, level in levels.items() if not 0.0 <= level <= 1.0), None)
    if wrong is not None:
        raise SettingsError(
            f"{path}: the level of {wrong} is {levels[wrong]:g}; expected a fraction from 0 to 1"
        )
    return {name: level for name, level in _matched(path, levels, names).items() if level > 0}


def _matched(path: Path, levels: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    found = {theirs: _ours(theirs, names) for theirs in levels}
    unknown = [theirs for theirs, name in found.items() if name is None]
    free = [name for name in names if name.startswith("backbone.") and name not in found.values()]
    if unknown and len(unknown) != len(free):
        raise SettingsError(
            f"{path}: {unknown[0]!r} is not a layer of the network{nearest(unknown[0], list(names))}; unknown "
            "names are assigned by position only if there is one for each unmatched layer: the file has "
            f"{plural(len(unknown), 'unknown name')} for {plural(len(free), 'layer')}"
        )
    found |= dict(zip(unknown, free))
    return {str(found[theirs]): level for theirs, level in levels.items()}


def _ours(theirs: str, names: Sequence[str]) -> str | None:
    bare = theirs.removeprefix("module.").removesuffix(".weight")
    return next((name for name in (bare, f"backbone.{bare}") if name in names), None)


def _from_json(text: str) -> tuple[str | None, dict[str, float]]:
    value = parse_json(text)
    kind = value.get("what") if "levels" in value else None
    return kind, {str(name): float(level) for name, level in value.get("levels", value).items()}


def _from_csv(text: str) -> tuple[str | None, dict[str, float]]:
    rows = csv.DictReader(text.splitlines())
    return None, {row["Name"]: float(row["Sparsity"]) for row in rows if row["Type"] == "Conv3d"}


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise SettingsError(
            f"`compress.layers` is {text!r}, which is not a valid regular expression ({error})"
        ) from None
