"""Which layers are pruned: by pattern, by place, or by a file of levels."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from two_stream.config.compress import Prune
from two_stream.config.load import nearest
from two_stream.errors import SettingsError
from two_stream.recognizer import Recognizer
from two_stream.runtime.text import parse_json

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
CLASSIFIER = "classifier"


def layers_of(model: nn.Module) -> dict[str, Layer]:
    """Return every convolution and linear layer by name, in the order of the network."""
    return {name: part for name, part in model.named_modules() if isinstance(part, KINDS)}


def chosen_layers(model: Recognizer, options: Prune) -> dict[str, Layer]:
    """Return the layers that the options name.

    Raises:
        SettingsError: They name none, or one that is not there.
    """
    found = layers_of(model)
    unknown = next((name for name in options.by_layer if name not in found), None)
    if unknown is not None:
        raise SettingsError(
            f"`compress.by_layer` names {unknown!r}, which is no convolution or linear layer of the network"
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
            f"`compress.layers` is {options.layers!r}, and no layer is left to prune; the network has {len(found)}: "
            f"{shown}, …"
        )
    return kept


def first_layers(model: Recognizer) -> set[str]:
    """Return the names of the layers that see the clip itself: one, or one per pathway."""
    _, stem = model.backbone.stages()[0]
    seen = {
        id(part)
        for part in stem.modules()
        if isinstance(part, KINDS[:3]) and part.groups == 1 and part.in_channels == model.spec.channels
    }
    return {name for name, part in model.named_modules() if id(part) in seen}


def read_levels(path: Path, names: Sequence[str], what: str = "weights") -> dict[str, float]:
    """Return the share by layer that a file says.

    Args:
        path: JSON, `{"backbone.layer1.0.conv1": 0.6}` (or with that under `levels`, as `compress sensitivity` writes
            it), or a CSV with the columns Name, Type and Sparsity of compressed-video-classification, whose rows of
            other types than Conv3d are passed over, as there.
        names: The network's layers. Those of the published code (`module.layer1.0.conv1.weight`) are found by what
            they share with ours; where others are left, as many in the file as in the network, they are taken in order.
        what: What is pruned; a file that says another thing is refused.

    Raises:
        SettingsError: Unreadable, for another kind of pruning, a share out of range, or layers that are not the
            network's.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        told, levels = _from_csv(text) if path.suffix.lower() == ".csv" else _from_json(text)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}); expected a file of levels") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SettingsError(
            f"{path}: not a file of levels; expected JSON of layer and share, or a CSV with Name, Type and Sparsity"
        ) from None
    if told not in (None, what):
        raise SettingsError(f"{path}: holds levels for {told}, and {what} are pruned; give --what {told}")
    wrong = next((name for name, level in levels.items() if not 0.0 <= level <= 1.0), None)
    if wrong is not None:
        raise SettingsError(f"{path}: {wrong} is {levels[wrong]:g}: expected a share from 0 to 1")
    return {name: level for name, level in _matched(path, levels, names).items() if level > 0}


def _matched(path: Path, levels: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    found = {theirs: _ours(theirs, names) for theirs in levels}
    unknown = [theirs for theirs, name in found.items() if name is None]
    free = [name for name in names if name.startswith("backbone.") and name not in found.values()]
    if unknown and len(unknown) != len(free):
        raise SettingsError(
            f"{path}: names {unknown[0]!r}, which is no layer of the network{nearest(unknown[0], list(names))}; "
            f"layers of other names are taken in order where the file has them all, and it has {len(unknown)} of "
            f"{len(free)}"
        )
    found |= dict(zip(unknown, free))
    return {str(found[theirs]): level for theirs, level in levels.items()}


def _ours(theirs: str, names: Sequence[str]) -> str | None:
    bare = theirs.removeprefix("module.").removesuffix(".weight")
    return next((name for name in (bare, f"backbone.{bare}") if name in names), None)


def _from_json(text: str) -> tuple[str | None, dict[str, float]]:
    value = parse_json(text)
    told = value.get("what") if "levels" in value else None
    return told, {str(name): float(level) for name, level in value.get("levels", value).items()}


def _from_csv(text: str) -> tuple[str | None, dict[str, float]]:
    rows = csv.DictReader(text.splitlines())
    return None, {row["Name"]: float(row["Sparsity"]) for row in rows if row["Type"] == "Conv3d"}


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise SettingsError(f"`compress.layers` is {text!r}: not a regular expression ({error})") from None


def layer_changes(before: nn.Module, after: nn.Module) -> list[LayerChange]:
    """Return what became of the weights of each convolution and linear layer that both networks have."""
    new = layers_of(after)
    return [
        LayerChange(
            name,
            _shape(layer),
            _shape(new[name]),
            1.0 - int(torch.count_nonzero(new[name].weight)) / new[name].weight.numel(),
        )
        for name, layer in layers_of(before).items()
        if name in new
    ]


def _shape(layer: Layer) -> str:
    return "×".join(map(str, layer.weight.shape))


@dataclass(frozen=True)
class LayerChange:
    """One layer's weights before and after."""

    name: str
    before: str
    """shape, in words"""
    after: str
    sparsity: float
    """share of the weights after that are 0"""
