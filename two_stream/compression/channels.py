"""Channel pruning with torch-pruning, which finds the layers whose channels must be removed together.

The method is from Fang et al., "DepGraph: Towards Any Structural Pruning" (arXiv 2301.12900). The last feature map of
each pathway keeps its width, so the head and the classifier do not change. With shortcut A (which appends zero
channels), the residual stream shares its channels with the last feature map, so only the inner layers of the blocks are
narrowed.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from two_stream.backbones.base import Backbone
from two_stream.compression.layers import Layer, chosen_layers, first_layers, layers_of
from two_stream.config.compress import Prune
from two_stream.errors import SettingsError
from two_stream.profiling.costs import multiply_adds
from two_stream.recognizer import Recognizer
from two_stream.runtime.console import note
from two_stream.surgery import alter
from two_stream.surgery.narrowed import Narrowed, find_narrowing

REFUSED = {
    "shufflenet_3d": "its channels are shuffled between groups, so each channel depends on other channels",
    "shufflenetv2_3d": "half of its channels skip each block and all channels are then shuffled, so all channels "
    "depend on each other",
    "timm": "its layers are from a library, and model files cannot store a narrowed version of them",
    "hf_video": "it is a transformer from a library, which has no channels that can be removed separately",
    "torchvision": "its layers are from a library, and model files cannot store a narrowed version of them",
    "motion_grid": "it has no weights",
}
"""Backbones whose channels cannot be removed, with the reason."""
_SIDE = 64
"""side in pixels of the clip for tracing; the full size is used if the network does not accept this size"""
_LARGEST = (0.98, 0.9, 0.8, 0.6)
"""start values of the search for a budget; with a global ranking, layers that would lose all channels lose none, so a
smaller fraction can remove more channels"""
_SEARCH = 9
"""number of bisection steps in the search for a fraction that meets a budget; the precision is 1/500"""


def narrow_channels(model: Recognizer, options: Prune) -> None:
    """Remove channels of a backbone on the CPU, in place. The remaining channels keep their weights.

    Raises:
        SettingsError: torch-pruning is not installed, the backbone cannot be narrowed, no layer is selected, or the
            budget cannot be met.
    """
    check_narrowable(model, options)
    before = multiply_adds(model)
    if not remove_channels(model, options):
        raise SettingsError(
            f"no channel of {model.options.backbone.kind} would be removed with "
            f"`compress.amount: {options.amount:g}`: the amount is too small for these layers, or the layers "
            "belong to the last feature map, which keeps its width; use a larger amount or other layers"
        )
    after = multiply_adds(model)
    note(
        f"channels removed: from {before / 1e9:.4g} to {after / 1e9:.4g} G multiply-adds ({100 * after / before:.1f} %)"
    )


def remove_channels(model: Recognizer, options: Prune) -> bool:
    """Remove channels as `narrow_channels` does, but without messages, and return whether any channel was removed.

    Raises:
        SettingsError: The remaining layers do not fit together, or the budget cannot be met.
    """
    if options.target_macs is None:
        made, narrowed = _pruned(model, options, options.amount)
    else:
        made, narrowed = _within(model, options, options.target_macs * multiply_adds(model))
    if not narrowed.sizes:
        return False
    alter(model, narrowed)
    model.load_state_dict(made.state_dict())
    if model.memory_format is not torch.preserve_format:
        model.channels_last()
    return True


def check_narrowable(model: Recognizer, options: Prune) -> None:
    """Check that channels of a network can be removed.

    Raises:
        SettingsError: The channels cannot be removed, see `narrow_channels`.
    """
    kind = model.options.backbone.kind
    if kind in REFUSED:
        raise SettingsError(
            f"channels of backbone {kind} cannot be removed: {REFUSED[kind]}; prune weights instead "
            "(`compress.what: weights`)"
        )
    _torch_pruning()
    if not any(name.startswith("backbone.") for name in chosen_layers(model, options)):
        raise SettingsError(
            f"`compress.layers` is {options.layers!r}, which matches no layer of the backbone; expected a pattern "
            "for backbone layers, because only their channels can be removed"
        )


def _within(model: Recognizer, options: Prune, budget: float) -> tuple[Recognizer, Narrowed]:
    """Return the network that meets a budget of multiply-adds with the smallest fraction of removed channels."""
    best, low, high = None, 0.0, 0.0
    lowest = multiply_adds(model)
    for high in _LARGEST:
        made = _pruned(model, options, high)
        lowest = min(lowest, multiply_adds(made[0]))
        if lowest <= budget:
            best = made
            break
    if best is None:
        raise SettingsError(
            f"`compress.target_macs` is {options.target_macs:g}, but with these layers the lowest possible value "
            f"is {lowest / multiply_adds(model):.3f}; use a larger target or more layers"
        )
    for _ in range(_SEARCH):
        share = (low + high) / 2
        made = _pruned(model, options, share)
        if multiply_adds(made[0]) <= budget:
            best, high = made, share
        else:
            low = share
    return best


def _pruned(model: Recognizer, options: Prune, share: float) -> tuple[Recognizer, Narrowed]:
    """Return a copy of the model without a fraction of its channels, and the alteration that describes the copy.

    Raises:
        SettingsError: The remaining layers do not fit together.
    """
    made = copy.deepcopy(model).eval().requires_grad_(True)
    traced = _Ends(made.backbone).eval()
    kind = model.options.backbone.kind
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            torch.manual_seed(0)  # for random importance
            _prune(made, traced, options, share)
        narrowed = find_narrowing(model, made)
        if any(size == 0 for sizes in narrowed.sizes.values() for size in sizes.values()):
            raise SettingsError(
                f"`compress.round_to` is {options.round_to}, which would leave a layer without channels; use a "
                "smaller value"
            )
        with torch.no_grad():
            traced(_clip(made))
    except (RuntimeError, IndexError, ZeroDivisionError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SettingsError(
            f"channels of backbone {kind} cannot be removed with these settings ({reason}); prune its weights "
            "instead (`compress.what: weights`)"
        ) from None
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(flags[name])
    made.alterations = [*model.alterations, narrowed]
    return made, narrowed


def _prune(made: Recognizer, traced: _Ends, options: Prune, share: float) -> None:
    tp = _torch_pruning()
    layers = layers_of(made)
    chosen = chosen_layers(made, options)
    kept = [layer for name, layer in layers.items() if name.startswith("backbone.") and name not in chosen]
    levels = options.by_layer or dict.fromkeys(chosen, share)
    groups = _groups(layers.values())
    by_layer = {layers[name]: min(level, _most(layers[name], groups)) for name, level in levels.items()}
    if options.by_layer:
        kept = []
    together = options.scope == "global"
    if options.skip_first:
        kept += [layers[name] for name in first_layers(made)]
    pruner = tp.pruner.BasePruner(
        traced,
        _clip(made),
        importance=_importance(tp, options.importance),
        global_pruning=together,
        pruning_ratio=share if together else 0.0,
        pruning_ratio_dict=None if together else by_layer,
        max_pruning_ratio=_LARGEST[0],
        ignored_layers=[*traced.ends, *kept],
        round_to=options.round_to if options.round_to > 1 else None,
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
        channel_groups={},
    )
    pruner.step()


def _groups(layers: Iterable[Layer]) -> int:
    """Return the largest number of groups of a convolution that is not depthwise; 1 if no convolution is grouped."""
    convolutions = [layer for layer in layers if not isinstance(layer, nn.Linear)]
    return max((int(one.groups) for one in convolutions if one.groups < one.out_channels), default=1)


def _most(layer: Layer, groups: int) -> float:
    """Return the largest fraction of a layer's channels whose removal leaves one channel per group.

    With larger fractions, torch-pruning removes nothing.
    """
    width = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return max(0.0, 1.0 - 1.001 * groups / width)


def _importance(tp: Any, name: str) -> Any:
    if name == "bn":
        return tp.importance.BNScaleImportance()
    if name == "random":
        return tp.importance.RandomImportance()
    return tp.importance.GroupMagnitudeImportance(p=1 if name == "l1" else 2)


class _Ends(nn.Module):
    """A backbone followed by layers that are not pruned, so that the channels of its last maps are kept."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.ends = nn.ModuleList(nn.BatchNorm3d(width) for width in backbone.channels)

    def forward(self, x_BCTHW: torch.Tensor) -> list[torch.Tensor]:
        """Return the maps of all pathways."""
        return [end(found.tensor) for end, found in zip(self.ends, self.backbone(x_BCTHW), strict=True)]


def _clip(model: Recognizer) -> torch.Tensor:
    """Return a normalised clip of noise, small if the network accepts a small clip, otherwise of full size."""
    spec = model.spec
    height, width = spec.size
    for size in ((min(_SIDE, height), min(_SIDE, width)), spec.size):
        shape = (1, spec.channels, spec.clip_length, *size)
        clip = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad():
                model.backbone(clip)
        except RuntimeError:  # the clip is smaller than the kernel of a layer
            continue
        return clip
    return clip


def _torch_pruning() -> Any:
    try:
        import torch_pruning
    except ImportError:
        raise SettingsError(
            "removing channels requires torch-pruning; install it with `pip install 'two-stream[compression]'`"
        ) from None
    return torch_pruning
