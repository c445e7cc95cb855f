"""Networks made ready for scoring: BatchNorm folded, weights in the precision that computes, compiled."""

from __future__ import annotations

import copy
from abc import ABC
from collections.abc import Callable
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
"""pixels of the example that folding is tried on: next to no work"""


_MOST_VIEWS = 16
_CPU_VALUES = 64 * 112**2
"""pixels in time and space of one view per thread; measured on ResNeXt-101 with one and two threads"""


class ClipNetwork(nn.Module, ABC):
    """A network that another runtime than ours computes, on the CPU: uint8 clips `(B, C, T, H, W)` to logits `(B, K)`.

    Attributes:
        spec: What it expects of a clip.
        source: The file it was read from, for messages.
    """

    precision: ClassVar[str] = "fp32"
    """of what comes in and goes out; there is no choice"""
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
        """Return the logits `(B, K)` of an already normalised clip.

        Where the compiler fails, the network as it is computes them, with one warning.
        """
        if self._fast is None:
            return self.model.forward_normalised(x_BCTHW)
        try:
            logits_BK: torch.Tensor = self._fast(x_BCTHW)
        except RuntimeError as error:
            if self._tried or isinstance(error, torch.OutOfMemoryError):
                raise
            reason = str(error).strip().splitlines()[0]
            warn(f"not compiled: torch.compile fails on this network here ({reason})")
            self._fast = None
            return self.model.forward_normalised(x_BCTHW)
        self._tried = True
        return logits_BK

    def forward(self, clip_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the logits `(B, K)` of a clip of pixel values 0..255."""
        return self.forward_normalised(self.model.normalised(clip_BCTHW))


def is_exact(experiment: Experiment) -> bool:
    """Whether an evaluation is one of the paper's, which is computed as published: fp32, every layer for itself."""
    data = experiment.data
    return "paper" in (data.sampling, data.augment.protocol, experiment.train.selection)


def resolved(
    options: EvaluateOptions, spec: InputSpec, device: torch.device, *, exact: bool, as_it_is: bool = False
) -> EvaluateOptions:
    """Return the options as they will be carried out: nothing `auto` any more, no folding where `exact`.

    Args:
        options: What was asked for.
        spec: Input of the network.
        device: Where it will run.
        exact: The evaluation is one of the paper's; see `is_exact`.
        as_it_is: The network computes in one way only (`Recognizer.cpu_only`): nothing is asked of it beside.
    """
    if as_it_is:
        options = options.model_copy(update={"precision": "fp32", "fold": False, "compile": False})
    return options.model_copy(
        update={
            "precision": resolve_precision(options.precision, device, exact=exact),
            "fold": options.fold and not exact,
            "batch_views": options.batch_views or usual_batch(spec, device),
        }
    )


def resolve_evaluation(
    model: Recognizer | ClipNetwork, options: EvaluateOptions, device: torch.device, *, exact: bool
) -> EvaluateOptions:
    """Return the options as a network carries them out; see `resolved`. A `ClipNetwork` is what it is.

    Raises:
        SettingsError: Another precision than a `ClipNetwork` has, or its compilation, is asked for.
    """
    if not isinstance(model, ClipNetwork):
        return resolved(options, model.spec, device, exact=exact, as_it_is=model.cpu_only)
    if options.precision not in ("auto", model.precision):
        raise SettingsError(
            f"{model.source}: `evaluate.precision` is {options.precision}, and an exported file computes as it was "
            "written; leave it out (auto)"
        )
    if options.compile:
        raise SettingsError(f"{model.source}: an exported file is not compiled; leave `evaluate.compile` out")
    fixed = options.model_copy(update={"precision": model.precision, "fold": False})
    return resolved(fixed, model.spec, device, exact=exact)


def usual_batch(spec: InputSpec, device: torch.device) -> int:
    """Return how many views of this size go through a network at once when nothing else is asked for.

    A CPU is quickest when what a layer gives is still in its caches, and the memory warm, when the next one takes it.
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
    """Return what scores in a model's place: a copy prepared as the (resolved) options say, or the model itself.

    The copy does not train and takes memory of its own; the model stays as it is.
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
    """Fold, seen on a small clip, or on one of full size for a network that takes no other."""
    try:
        found = fold_batchnorm(model, example_clip(model, _SIDE))
    except (RuntimeError, TwoStreamError):
        found = fold_batchnorm(model, example_clip(model))
    assert isinstance(found, Recognizer)
    return found


def example_clip(model: Recognizer, most: int | None = None) -> torch.Tensor:
    """Return a clip of noise `(1, C, T, H, W)`, always the same, uint8, where the model is.

    It has the size that the model expects, or where `most` is given no side longer than that.
    """
    spec = model.spec
    generator = torch.Generator().manual_seed(0)
    size = [side if most is None else min(side, most) for side in spec.size]
    shape = (1, spec.channels, spec.clip_length, *size)
    clip = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return clip.to(model.device)
