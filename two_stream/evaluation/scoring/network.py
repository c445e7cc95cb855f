"""Prepares networks for scoring: folds BatchNorm, converts weights to the compute precision, and compiles."""

from __future__ import annotations

import copy
from abc import ABC
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any, ClassVar, overload

import torch
from torch import nn

from two_stream.config.schema import EvaluateOptions, Experiment
from two_stream.errors import SettingsError, TwoStreamError
from two_stream.recognizer import Recognizer
from two_stream.runtime.console import warn
from two_stream.runtime.device import resolve_precision
from two_stream.runtime.inference import compile_for_device, fold_batchnorm, lower_convolutions
from two_stream.types import InputSpec

_SIDE = 32
"""side in pixels of the example clip for folding; it is small to save time"""
_MOST_VIEWS = 16
_CPU_VALUES = 64 * 112**2
"""largest number of pixels (frames × height × width) per thread in a batch, measured with ResNeXt-101 on one and two
threads"""


class ClipNetwork(nn.Module, ABC):
    """A network that another runtime computes on the CPU, from uint8 clips `(B, C, T, H, W)` to logits `(B, K)`.

    Attributes:
        spec: Input of the network.
        source: File of the network, for messages.
    """

    precision: ClassVar[str] = "fp32"
    """precision of the inputs and outputs, which cannot be changed"""
    spec: InputSpec
    source: str

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")


class Compiled(nn.Module):
    """A recognizer whose forward pass is compiled for batches of one size."""

    def __init__(self, model: Recognizer, fast: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self._fast: Callable[..., Any] | None = fast
        self._tried = False

    def forward_normalised(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the logits `(B, K)` of normalised clips.

        If compilation fails, warn once and compute without compilation.
        """
        if self._fast is None:
            return self.model.forward_normalised(x_BCTHW)
        try:
            logits_BK: torch.Tensor = self._fast(x_BCTHW)
        except RuntimeError as error:
            if self._tried or isinstance(error, torch.OutOfMemoryError):
                raise
            reason = str(error).strip().splitlines()[0]
            warn(
                f"`evaluate.compile`: torch.compile fails for this network ({reason}); the network is not compiled"
            )
            self._fast = None
            return self.model.forward_normalised(x_BCTHW)
        self._tried = True
        return logits_BK

    def forward(self, clip_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the logits `(B, K)` of clips with pixel values 0..255."""
        return self.forward_normalised(self.model.normalised(clip_BCTHW))


def is_exact(experiment: Experiment) -> bool:
    """Return whether an evaluation reproduces the paper, and must therefore use fp32 without BatchNorm folding."""
    data = experiment.data
    return "paper" in (data.sampling, data.augment.protocol, experiment.train.selection)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Context manager that puts a model into evaluation mode and restores its previous mode on exit."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def resolve_evaluation(
    model: Recognizer | ClipNetwork, options: EvaluateOptions, device: torch.device, *, exact: bool
) -> EvaluateOptions:
    """Return evaluation options in which `auto` is replaced with values for a network on a device.

    Args:
        model: The network. A `ClipNetwork` and an int8 recognizer (`cpu_only`) have a fixed precision.
        options: Requested options.
        device: Device of the network.
        exact: Whether the evaluation reproduces the paper; see `is_exact`.

    Raises:
        SettingsError: The options request compilation or another precision for a `ClipNetwork`.
    """
    if isinstance(model, ClipNetwork):
        if options.precision not in ("auto", model.precision):
            raise SettingsError(
                f"{model.source}: `evaluate.precision` is {options.precision}, but the precision of an exported "
                "file is fixed; use auto"
            )
        if options.compile:
            raise SettingsError(
                f"{model.source}: exported files cannot be compiled; set `evaluate.compile: false`"
            )
        options = options.model_copy(update={"precision": model.precision, "fold": False})
    elif model.cpu_only:
        options = options.model_copy(update={"precision": "fp32", "fold": False, "compile": False})
    return options.model_copy(
        update={
            "precision": resolve_precision(options.precision, device, exact=exact),
            "fold": options.fold and not exact,
            "batch_views": options.batch_views or usual_batch(model.spec, device),
        }
    )


def usual_batch(spec: InputSpec, device: torch.device) -> int:
    """Return the default number of views per forward pass.

    On a CPU the batch is small, so that the output of a layer is still in the cache when the next layer reads it.
    """
    if device.type != "cpu":
        return _MOST_VIEWS
    fitting = _CPU_VALUES * torch.get_num_threads() // (spec.clip_length * prod(spec.size))
    return max(1, min(_MOST_VIEWS, fitting))


@overload
def prepare_for_inference(model: Recognizer, options: EvaluateOptions) -> Recognizer | Compiled: ...
@overload
def prepare_for_inference(model: ClipNetwork, options: EvaluateOptions) -> ClipNetwork: ...
def prepare_for_inference(
    model: Recognizer | ClipNetwork, options: EvaluateOptions
) -> Recognizer | ClipNetwork | Compiled:
    """Return the network to score with: a copy that is prepared with the resolved options, or the model itself.

    The copy is for inference only. The model is not changed.
    """
    if isinstance(model, ClipNetwork):
        return model
    device = model.device
    made = model
    if options.fold:
        made = _folded(model)
    if options.precision == "bf16" and made is not model:
        lower_convolutions(made.backbone, torch.bfloat16)
    if not options.compile:
        return made
    made = copy.deepcopy(model).eval() if made is model else made
    fast = compile_for_device(made.forward_normalised, device)
    return made if fast is None else Compiled(made, fast)


def _folded(model: Recognizer) -> Recognizer:
    """Fold BatchNorm with a small example clip, or with a clip of full size if the network requires it."""
    try:
        found = fold_batchnorm(model, example_clip(model, _SIDE))
    except (RuntimeError, TwoStreamError):
        found = fold_batchnorm(model, example_clip(model))
    assert isinstance(found, Recognizer)
    return found


def example_clip(model: Recognizer, most: int | None = None) -> torch.Tensor:
    """Return a clip of noise, uint8 `(1, C, T, H, W)`, on the model's device; its sides have at most `most` pixels."""
    spec = model.spec
    generator = torch.Generator().manual_seed(0)
    size = [side if most is None else min(side, most) for side in spec.size]
    shape = (1, spec.channels, spec.clip_length, *size)
    clip = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return clip.to(model.device)
