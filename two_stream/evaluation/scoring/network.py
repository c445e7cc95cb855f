"""Prepares networks for scoring: folds BatchNorm, converts weights to the compute precision, compiles."""

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
from two_stream.runtime.inference import compile_for_device, fold_batchnorm, lower_convolutions
from two_stream.runtime.precision import resolve_precision
from two_stream.types import InputSpec

_SIDE = 32
"""side in pixels of the example for folding; small to save time"""
_MOST_VIEWS = 16
_CPU_VALUES = 64 * 112**2
"""largest number of pixels (frames × height × width) of a batch per thread; measured with ResNeXt-101 on one and two
threads"""


class ClipNetwork(nn.Module, ABC):
    """A network of another runtime, on the CPU: maps uint8 clips `(B, C, T, H, W)` to logits `(B, K)`.

    Attributes:
        spec: Its input.
        source: Its file, for messages.
    """

    precision: ClassVar[str] = "fp32"
    """type of the inputs and outputs; fixed"""
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
        """Return the logits `(B, K)` of a normalised clip; if compilation fails, compute without it and warn once."""
        if self._fast is None:
            return self.model.forward_normalised(x_BCTHW)
        try:
            logits_BK: torch.Tensor = self._fast(x_BCTHW)
        except RuntimeError as error:
            if self._tried or isinstance(error, torch.OutOfMemoryError):
                raise
            reason = str(error).strip().splitlines()[0]
            warn(f"not compiled: torch.compile fails for this network ({reason})")
            self._fast = None
            return self.model.forward_normalised(x_BCTHW)
        self._tried = True
        return logits_BK

    def forward(self, clip_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the logits `(B, K)` of a clip of pixel values 0..255."""
        return self.forward_normalised(self.model.normalised(clip_BCTHW))


def is_exact(experiment: Experiment) -> bool:
    """Whether an evaluation reproduces the paper and is computed as published: in fp32, without folding."""
    data = experiment.data
    return "paper" in (data.sampling, data.augment.protocol, experiment.train.selection)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and back into its previous mode on exit."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def resolve_evaluation(
    model: Recognizer | ClipNetwork, options: EvaluateOptions, device: torch.device, *, exact: bool
) -> EvaluateOptions:
    """Replace `auto` in evaluation options by values for a network on a device.

    Args:
        model: A `ClipNetwork` and an int8 recognizer (`cpu_only`) compute in one way only.
        options: Requested options.
        device: Device of the network.
        exact: Whether the evaluation reproduces the paper and does not fold; see `is_exact`.

    Raises:
        SettingsError: The options ask for compilation or another precision of a `ClipNetwork`.
    """
    if isinstance(model, ClipNetwork):
        if options.precision not in ("auto", model.precision):
            raise SettingsError(
                f"{model.source}: `evaluate.precision` is {options.precision}, but that of an exported file is "
                "fixed; use auto"
            )
        if options.compile:
            raise SettingsError(
                f"{model.source}: exported files are not compiled; turn off `evaluate.compile`"
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

    A CPU is fastest when the output of a layer is still in its caches when the next layer reads it.
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
    """Return the network to score with: a copy prepared by the (resolved) options, or the model itself.

    The copy is for inference only and uses its own memory; the model is not changed.
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
    """Fold BatchNorm with a small example clip, or one of full size if the network accepts no other."""
    try:
        found = fold_batchnorm(model, example_clip(model, _SIDE))
    except (RuntimeError, TwoStreamError):
        found = fold_batchnorm(model, example_clip(model))
    assert isinstance(found, Recognizer)
    return found


def example_clip(model: Recognizer, most: int | None = None) -> torch.Tensor:
    """Return a fixed clip of noise, uint8 `(1, C, T, H, W)`, on the model's device; sides of at most `most` pixels."""
    spec = model.spec
    generator = torch.Generator().manual_seed(0)
    size = [side if most is None else min(side, most) for side in spec.size]
    shape = (1, spec.channels, spec.clip_length, *size)
    clip = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return clip.to(model.device)
