"""Prepares networks for scoring: folds BatchNorm, converts weights to the compute precision, and compiles."""

from __future__ import annotations

import copy
import os
import shutil
from abc import ABC
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from math import prod
from typing import Any, ClassVar, overload
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from two_stream.config.schema import EvaluateOptions, Experiment
from two_stream.errors import SettingsError, TwoStreamError
from two_stream.recognizer import Recognizer
from two_stream.runtime.console import warn
from two_stream.runtime.device import resolve_precision
from two_stream.types import InputSpec

Convolution = nn.Conv2d | nn.Conv3d
BatchNorm = nn.BatchNorm2d | nn.BatchNorm3d
_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)
FOLD_TOLERANCE = 1e-4
"""Largest difference of a folded network on its example, relative to the largest output."""


@torch.inference_mode(
    False
)  # the caller may be in it, and its tensors have no versions, which `_output_and_pairs` needs
@torch.no_grad()
def fold_batchnorm(model: nn.Module, example: torch.Tensor) -> nn.Module:
    """Return a copy in evaluation mode whose BatchNorms are folded into the convolutions before them.

    A forward pass on `example` determines which norm follows which convolution. If the outputs of the copy and the
    original differ by more than rounding, the original is returned with a warning.

    Args:
        model: Maps the example to a tensor.
        example: An input on the model's device; it may be small.
    """
    plain, example = copy.deepcopy(model).eval(), example.clone()
    before, pairs = _output_and_pairs(plain, example)
    names: dict[nn.Module, str] = {module: name for name, module in plain.named_modules()}
    for convolution, norm in pairs:
        joined = fuse_conv_bn_eval(convolution, norm)
        _replace(plain, names[convolution], joined)
        _replace(plain, names[norm], _inner_modules(norm))
    after = plain(example)
    scale = float(before.abs().max())
    if not torch.allclose(after, before, rtol=0.0, atol=FOLD_TOLERANCE * scale):
        warn("BatchNorm is not folded: the folded network would give different results")
        return model
    return plain


def lower_convolutions(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert the weights of convolutions to a smaller type in place, so that autocast does not convert them again."""
    for part in model.modules():
        if isinstance(part, _CONVOLUTIONS):
            part.to(dtype)
    return model


def compile_for_device(function: Callable[..., Any], device: torch.device) -> Callable[..., Any] | None:
    """Return a function compiled for one input size, with CUDA graphs on a GPU; None without a compiler.

    The first call compiles the function, which takes seconds to a minute. Each call overwrites the output of the
    previous call.
    """
    problem = missing_compiler(device)
    if problem:
        warn(f"not compiled: {problem}")
        return None
    # freezing makes weights constants: laid out for the kernels once, activations fused with convolutions
    options: dict[str, Any] = {"triton.cudagraphs": True} if device.type == "cuda" else {"freezing": True}
    made: Callable[..., Any] = torch.compile(function, dynamic=False, options=options)
    return made


def missing_compiler(device: torch.device) -> str:
    """Return the reason why this machine cannot compile for a device; empty if it can."""
    if device.type == "cuda":
        return "" if find_spec("triton") else "Triton is not installed (pip install triton)"
    if device.type != "cpu":
        return f"torch.compile is not used on {device.type}"
    names = (os.environ.get("CXX", ""), "g++", "clang++", "cl")
    return "" if any(map(shutil.which, names)) else "no C++ compiler found (g++ or clang++)"


def _output_and_pairs(
    model: nn.Module, example: torch.Tensor
) -> tuple[torch.Tensor, list[tuple[Convolution, BatchNorm]]]:
    """Return the output, and each convolution that is used once with the BatchNorm that receives its output."""
    made: dict[tuple[int, int], Convolution] = {}  # a later change in place (a shortcut) raises the version
    kept: list[torch.Tensor] = []  # kept alive, so that ids are unique
    calls: dict[nn.Module, int] = {}
    found: list[tuple[Convolution, BatchNorm]] = []

    def convolved(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        assert isinstance(module, _CONVOLUTIONS)
        calls[module] = calls.get(module, 0) + 1
        kept.append(output)
        made[id(output), output._version] = module

    def normalised(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(module, _NORMS)
        calls[module] = calls.get(module, 0) + 1
        convolution = made.get((id(inputs[0]), inputs[0]._version))
        if convolution is not None:
            found.append((convolution, module))

    handles = []
    for part in model.modules():
        if isinstance(part, _CONVOLUTIONS):
            handles.append(part.register_forward_hook(convolved))
        elif isinstance(part, _NORMS):
            handles.append(part.register_forward_pre_hook(normalised))
    try:
        output: torch.Tensor = model(example)
    finally:
        for handle in handles:
            handle.remove()
    once = [pair for pair in found if all(calls[part] == 1 for part in pair) and pair[1].track_running_stats]
    return output, once


def _inner_modules(norm: nn.Module) -> nn.Module:
    """Return the modules inside a norm of timm: dropout, then activation."""
    inside = [part for name, part in norm.named_children() if name in ("drop", "act")]
    return nn.Sequential(*inside) if inside else nn.Identity()


def _replace(model: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent).register_module(child, part)


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


_PREPARED: WeakKeyDictionary[nn.Module, tuple[object, nn.Module]] = WeakKeyDictionary()


def prepared_network(model: Recognizer | ClipNetwork, options: EvaluateOptions) -> nn.Module:
    """Return the result of `prepare_for_inference`, computed again only if the weights or the options have changed."""
    if not isinstance(model, Recognizer):
        return model
    weights = model.state_dict(keep_vars=True).items()
    state = [
        (name, one.data_ptr(), 0 if one.is_inference() else one._version)  # each change in place is counted
        for name, one in weights
        if isinstance(one, torch.Tensor)
    ]
    key = (state, options.fold, options.precision, options.compile)
    held, network = _PREPARED.get(model, (None, model))
    if held != key:
        network = prepare_for_inference(model, options)
        if network is not model:  # an entry that refers to its own key would never be removed
            _PREPARED[model] = (key, network)
    return network


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
