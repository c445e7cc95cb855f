"""Loads checkpoints into models, and reports how each tensor was used."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from two_stream.errors import CheckpointError
from two_stream.pretrained.folder import reshape_like
from two_stream.pretrained.layouts import recognise_layout, strip_wrappers
from two_stream.pretrained.reading import read_state, weights_file
from two_stream.recognizer import Recognizer

_ENDS = ("classifier", "head", "reduction")
"""Parts after the backbone."""


@dataclass
class LoadReport:
    """Result of loading a checkpoint. `unexpected`, `dropped` and `unused` contain names of tensors in the file."""

    path: str
    format: str
    """name of the layout of the file"""
    used: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """tensors of the model that keep their initial values"""
    unexpected: list[str] = field(default_factory=list)
    """tensors that are in the file, but not in the model"""
    reshaped: dict[str, str] = field(default_factory=dict)
    """for each tensor that was reshaped, a description of the change"""
    dropped: list[str] = field(default_factory=list)
    """tensors that were ignored because the model has a new classifier or other new parts"""
    unused: list[str] = field(default_factory=list)
    """tensors in the file that neither the published network nor ours uses, such as losses and averages"""

    def __str__(self) -> str:
        parts = [f"{len(self.used)} tensors used"]
        parts += (
            [f"{len(self.missing)} keep their initial values ({_few(self.missing)})"] if self.missing else []
        )
        parts += [f"{len(self.dropped)} left out ({_few(self.dropped)})"] if self.dropped else []
        parts += [f"{len(self.reshaped)} reshaped"] if self.reshaped else []
        parts += [f"{len(self.unused)} never read ({_few(self.unused)})"] if self.unused else []
        return f"{self.path}: {self.format}: {', '.join(parts)}"


def count_classes(path: Path) -> int | None:
    """Return the number of classes of a checkpoint; None if it has no classifier, or is of an unknown network.

    Raises:
        CheckpointError: The file cannot be read.
    """
    state, _ = strip_wrappers(read_state(weights_file(path)))
    layout = recognise_layout(state)
    biases = (
        len(tensor) for key, tensor in state.items() if layout and layout.translate(key) == "classifier.bias"
    )
    return next(biases, None)


def load_weights(
    model: Recognizer,
    path: Path | str,
    *,
    part: Literal["all", "backbone"] = "all",
    new_classifier: bool = False,
    cross_modality: bool = False,
    inflate: bool = False,
    averaged: bool = False,
) -> LoadReport:
    """Load a checkpoint into a model. Every tensor must fit, except for the parts that a flag allows to differ.

    Args:
        model: Changed in place; unchanged after an error. If the checkpoint is of a run with pruned channels, these
            are first removed from the model.
        path: A file of this package or of a known codebase, a model folder or a run folder.
        part: `backbone` ignores the head and classifier of the checkpoint, even if they would fit.
        new_classifier: Ignore the parts after the backbone that differ: a classifier of a different size, a different
            kind of head, a block of FRAB or FRMB. The backbone must still fit.
        cross_modality: RGB weights for a flow network: average the first convolution over RGB, and repeat it over the
            flow channels (Wang et al., arXiv 1507.02159).
        inflate: 2D weights for a 3D network: repeat each kernel over time and divide by its length, so that a constant
            clip gives the response of its image (Carreira and Zisserman, arXiv 1705.07750).
        averaged: See `read_state`.

    Raises:
        CheckpointError: Unreadable, of an unknown layout, or not fitting; names the most likely cause.
    """
    file = weights_file(Path(path))
    reshape_like(model, file)
    state, beside = strip_wrappers(read_state(file, averaged=averaged))
    layout = recognise_layout(state)
    if layout is None:
        raise CheckpointError(f"{file}: the weights belong to an unknown network (first keys: {_few(state)})")
    if layout.flat and not inflate:
        raise CheckpointError(
            f"{file}: 2D weights ({layout.name}) do not fit a 3D network; to inflate the weights, set `inflate`"
        )
    report = LoadReport(str(file), layout.name, unused=beside)
    incoming: dict[str, torch.Tensor] = {}
    theirs: dict[str, str] = {}
    for key, tensor in state.items():
        ours = layout.translate(key)
        if layout.is_unused(key):
            report.unused.append(key)
        elif ours is None:
            report.unexpected.append(key)
        else:
            incoming[ours], theirs[ours] = tensor, key
    fitting = _Fitting(model, report, cross_modality, inflate)
    loose = {*(_ENDS if new_classifier else ()), *(("classifier", "head") if part == "backbone" else ())}
    wanted = {
        k: v for k, v in incoming.items() if part == "all" or _part(model, k) not in ("classifier", "head")
    }
    fitted, misfits = fitting.fit(wanted)
    if new_classifier:
        _leave_out_new_parts(model, incoming, fitted, misfits)
    expected = model.state_dict()
    report.used = [key for key in expected if key in fitted]
    report.missing = [k for k in expected if k not in fitted and not k.endswith("num_batches_tracked")]
    report.reshaped = {key: how for key, how in report.reshaped.items() if key in fitted}
    report.unexpected += [theirs[key] for key in incoming if key not in expected]
    _require_fit(model, report, misfits, theirs, loose)
    report.dropped = [theirs[key] for key in incoming if key not in fitted]
    report.unexpected = []
    model.load_state_dict(fitted, strict=False)
    return report


class _Fitting:
    """Reshapes the tensors of a checkpoint for the model, if the shapes are equivalent or a flag allows it."""

    def __init__(self, model: Recognizer, report: LoadReport, cross_modality: bool, inflate: bool) -> None:
        self.expected = model.state_dict()
        self.report = report
        self.cross_modality = cross_modality
        self.inflate = inflate
        self.first = _first_convolutions(model)

    def fit(self, incoming: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Return the tensors that fit, and for each of the other tensors a description of the mismatch."""
        fitted: dict[str, torch.Tensor] = {}
        misfits: dict[str, str] = {}
        for key, tensor in incoming.items():
            if key not in self.expected:
                continue
            shape = self.expected[key].shape
            changed = self._reshaped(key, tensor, shape)
            if changed.shape == shape:
                fitted[key] = changed
            else:
                misfits[key] = f"{_shape(tensor.shape)} in the file, {_shape(shape)} in the model"
                if key in self.first and not self.cross_modality and tensor.shape[1] == 3 != shape[1]:
                    misfits[key] += "; for RGB weights in a flow network set `cross_modality`"
        return fitted, misfits

    def _reshaped(self, key: str, tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        if tensor.ndim == 5 and len(shape) == 2 and tensor.shape[2:].numel() == 1:
            tensor = tensor.flatten(1)
            self.report.reshaped[key] = "pointwise convolution as a linear layer"
        if tensor.ndim == 2 and len(shape) == 5 and shape[2] == 1 and tensor.numel() == shape.numel():
            tensor = tensor.view(shape)
            self.report.reshaped[key] = "linear layer as a convolution over the whole map"
        if self.inflate and tensor.ndim == 4 and len(shape) == 5:
            tensor = tensor.unsqueeze(2).expand(-1, -1, shape[2], -1, -1) / shape[2]
            self.report.reshaped[key] = f"inflated over {shape[2]} frames"
        if self.cross_modality and key in self.first and tensor.shape[1] == 3 != shape[1]:
            tensor = tensor.mean(1, keepdim=True).expand(-1, shape[1], *tensor.shape[2:])
            before = self.report.reshaped.get(key)
            how = f"averaged over RGB, repeated over {shape[1]} channels"
            self.report.reshaped[key] = f"{before}; {how}" if before else how
        return tensor


def _first_convolutions(model: Recognizer) -> set[str]:
    """Return the weight names of the layers whose input is the clip."""
    _, stem = model.backbone.stages()[0]
    seen = {
        id(part.weight)
        for part in stem.modules()
        if isinstance(part, (nn.Conv2d, nn.Conv3d))
        and part.groups == 1
        and part.in_channels == model.spec.channels
    }
    return {name for name, parameter in model.named_parameters() if id(parameter) in seen}


def _part(model: Recognizer, key: str) -> str:
    if key.startswith("classifier."):
        return "classifier"
    if key.startswith(("heads.", "standards.")):  # a head is trained on standardised tokens
        return "head"
    if key.startswith(tuple(f"backbone.{prefix}" for prefix in model.backbone.reduced)):
        return "reduction"
    return "backbone"


def _leave_out_new_parts(
    model: Recognizer,
    incoming: dict[str, torch.Tensor],
    fitted: dict[str, torch.Tensor],
    misfits: dict[str, str],
) -> None:
    """Remove the classifier, head and reduction block from the loaded tensors if they do not match the model.

    A head with the same keys but other shapes is not removed, so that the mismatch is reported as an error.
    """
    for part in ("classifier", "reduction", "head"):
        wanted = {key for key in model.state_dict() if _part(model, key) == part}
        given = {key for key in incoming if _part(model, key) == part}
        same_keys = _counted(wanted) == _counted(given)
        if same_keys and (part == "head" or not wanted & misfits.keys()):
            continue
        for key in wanted | given:
            fitted.pop(key, None)
            misfits.pop(key, None)


def _counted(keys: set[str]) -> set[str]:
    return {key for key in keys if not key.endswith("num_batches_tracked")}


def _require_fit(
    model: Recognizer,
    report: LoadReport,
    misfits: dict[str, str],
    theirs: dict[str, str],
    loose: Collection[str],
) -> None:
    """Raise an error with the most likely cause if the checkpoint does not fit; parts in `loose` may be missing."""
    trunk = [key for key in model.state_dict() if _part(model, key) == "backbone"]
    absent = [key for key in trunk if key in report.missing and key not in misfits]
    if 2 * len(absent) > len(_counted(set(trunk))):
        raise CheckpointError(
            f"{report.path}: the weights ({report.format}) belong to a different network: the "
            "model's backbone is "
            f"{model.options.backbone.kind}, and {len(absent)} of its tensors are not in the file "
            f"({_few(absent)})"
        )
    if misfits and all(key.startswith("classifier.") for key in misfits):
        key = next(iter(misfits))
        raise CheckpointError(
            f"{report.path}: the classifier does not fit ({theirs[key]}: {misfits[key]}); "
            "to train a new classifier, set `new_classifier`"
        )
    if misfits:
        key = next(iter(misfits))
        more = f" and {len(misfits) - 1} more" if len(misfits) > 1 else ""
        replaced = not loose and {_part(model, key) for key in misfits} <= {"classifier", "reduction"}
        hint = "; to initialise the parts after the backbone, set `new_classifier`" if replaced else ""
        raise CheckpointError(
            f"{report.path}: the weights ({report.format}) belong to a different network: "
            f"{theirs[key]}: {misfits[key]}{more}{hint}"
        )
    missing = [key for key in report.missing if _part(model, key) not in loose]
    ours = {their: our for our, their in theirs.items()}
    unexpected = [k for k in report.unexpected if k not in ours or _part(model, ours[k]) not in loose]
    if missing or unexpected:
        parts = [f"{len(missing)} of the model's tensors are missing ({_few(missing)})"] if missing else []
        parts += (
            [f"{len(unexpected)} tensors of the file are not in the model ({_few(unexpected)})"]
            if unexpected
            else []
        )
        new = [*missing, *(ours.get(key, key) for key in unexpected)]
        fresh = not loose and all(_part(model, key) != "backbone" for key in new)
        hint = "; to initialise these parts, set `new_classifier`" if fresh else ""
        raise CheckpointError(f"{report.path}: {report.format}: {' and '.join(parts)}{hint}")


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _shape(shape: torch.Size) -> str:
    return "×".join(str(size) for size in shape) or "a scalar"
