"""Saliency maps: where in a clip, in space and time, a network finds a class, or one class rather than another.

Sources: Selvaraju et al., "Grad-CAM" (arXiv 1610.02391); Jiang et al., "LayerCAM" (IEEE TIP 2021). Both were published
for images; here the gradients of a feature map are over time and space.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from two_stream.errors import SettingsError
from two_stream.evaluation.scoring.network import evaluation_mode
from two_stream.recognizer import Recognizer

Method = Literal["grad-cam", "layer-cam"]


@dataclass(frozen=True)
class SaliencyOptions:
    """What a saliency map shows."""

    classes: tuple[str, ...] = ()
    """a class, or two classes for the first rather than the second; empty: the class that is predicted"""
    method: Method = "grad-cam"
    """`grad-cam` weights the channels of the map with their mean gradients, `layer-cam` each value with its positive
    gradient"""
    stage: str = ""
    """stage of the backbone whose map is used; empty: the last one"""

    def check(self, model: Recognizer, names: Sequence[str], where: str) -> None:
        """Check that the options fit a network.

        Raises:
            SettingsError: A class or the stage is unknown, or the network has no gradients; starts with `where`.
        """
        if model.cpu_only:
            raise SettingsError(
                f"{where}: an int8 network has no gradients; use the run that it was made from"
            )
        if len(self.classes) > 2 or len(set(self.classes)) < len(self.classes):
            raise SettingsError(f"{where}: expected one class or two different ones")
        stages = [name for name, _ in model.backbone.stages()]
        for what, given, known in (
            *(("class", name, names) for name in self.classes),
            *([("stage", self.stage, stages)] if self.stage else []),
        ):
            if given not in known:
                close = difflib.get_close_matches(given, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known[:8])}"
                more = ", …" if not close and len(known) > 8 else ""
                raise SettingsError(f"{where}: there is no {what} {given!r}; {hint}{more}")

    def weights(self, names: Sequence[str]) -> torch.Tensor | None:
        """Return the weights `(K,)` of the logits: 1 for the first class, -1 for the second; None for no class."""
        if not self.classes:
            return None
        weights_K = torch.zeros(len(names))
        for name, sign in zip(self.classes, (1.0, -1.0)):
            weights_K[names.index(name)] = sign
        return weights_K

    def describe(self, predicted: str) -> str:
        """Return a text such as `Grad-CAM for climb rather than rise`."""
        method = "Grad-CAM" if self.method == "grad-cam" else "LayerCAM"
        stage = f" of {self.stage}" if self.stage else ""
        return f"{method}{stage} for {' rather than '.join(self.classes or (predicted,))}"


@dataclass(frozen=True)
class Saliency:
    """Saliency of a batch of clips."""

    maps: list[torch.Tensor]
    """map `(B, T, H, W)` of each pathway, 0 or more; T, H and W are those of the stage"""
    logits: torch.Tensor
    """`(B, K)`"""
    attention: list[torch.Tensor]
    """`Recognizer.attention` of each pathway `(B, heads, T)`; empty for a head without attention"""


def saliency_of_clips(
    model: Recognizer,
    clip_BCTHW: torch.Tensor,
    weights_K: torch.Tensor | None = None,
    *,
    method: Method = "grad-cam",
    stage: str = "",
) -> Saliency:
    """Compute the saliency maps of clips.

    The map of a pathway is `relu(sum over c of w_c * A_c)` for the activations A of the stage, with the gradient g of
    the weighted sum of logits: w is the mean of g over time and space (`grad-cam`) or `relu(g)` (`layer-cam`).

    Args:
        model: The network; its mode, weights and their gradients are not changed.
        clip_BCTHW: Clips with pixel values 0..255.
        weights_K: Weights of the logits, see `SaliencyOptions.weights`; None: the most likely class of each clip.
        method: See `SaliencyOptions`.
        stage: Name of a stage of the backbone. The default is the map that the head receives, or
            `Backbone.saliency_stage`.
    """
    stage = stage or model.backbone.saliency_stage
    found: list[tuple[torch.Tensor, ...]] = []
    # a GPU's fast LSTM has gradients in training mode only
    with (
        evaluation_mode(model),
        torch.inference_mode(False),
        torch.backends.cudnn.flags(enabled=False),
        torch.no_grad(),
    ):
        x_BCTHW = model.normalised(clip_BCTHW.to(model.device))
        if stage:
            with _gradients_from(dict(model.backbone.stages())[stage], found):
                maps = model.maps_of_normalised(x_BCTHW)
                logits_BK = model.logits_of_maps(maps)
        else:
            found.append(tuple(_leaf(one) for one in model.maps_of_normalised(x_BCTHW)))
            torch.set_grad_enabled(True)
            maps = [leaf.clone() for leaf in found[0]]
            logits_BK = model.logits_of_maps(maps)
        if weights_K is None:
            score = logits_BK.max(1).values.sum()
        else:
            score = (logits_BK * weights_K.to(logits_BK)).sum()
        leaves = [leaf for output in found for leaf in output]
        gradients = iter(torch.autograd.grad(score, leaves, allow_unused=True, materialize_grads=True))
        torch.set_grad_enabled(False)

        def read(output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            out = output if len(output) > 1 else output[0]
            return model.backbone.maps_of_stage(stage, out, x_BCTHW.shape) if stage else output

        outputs = [read(output) for output in found]
        slopes = [read(tuple(next(gradients) for _ in output)) for output in found]
        # a stage that runs twice, on two sets of images, gives channels of one map
        pathways = [
            _weighted(torch.cat(one, 1), torch.cat(two, 1), method)
            for one, two in zip(zip(*outputs), zip(*slopes), strict=True)
        ]
        return Saliency(pathways, logits_BK.detach(), _attention(model, maps))


def _weighted(x_BCTHW: torch.Tensor, gradient: torch.Tensor, method: Method) -> torch.Tensor:
    weight = gradient.mean((2, 3, 4), keepdim=True) if method == "grad-cam" else gradient.relu()
    return (weight * x_BCTHW).sum(1).relu().float()


def _leaf(x: torch.Tensor) -> torch.Tensor:
    return x.detach().requires_grad_()


@contextmanager
def _gradients_from(stage: nn.Module, found: list[tuple[torch.Tensor, ...]]) -> Iterator[None]:
    """Compute gradients from the output of a stage on; the outputs are appended to `found`."""

    def replaced(_: nn.Module, __: Any, output: Any) -> Any:
        several = isinstance(output, tuple)
        leaves = tuple(_leaf(one) for one in (output if several else (output,)))
        found.append(leaves)
        torch.set_grad_enabled(True)
        # the next layer may work in place, which a leaf does not allow
        copies = tuple(leaf.clone() for leaf in leaves)
        return copies if several else copies[0]

    handle = stage.register_forward_hook(replaced)
    try:
        yield
    finally:
        handle.remove()


def _attention(model: Recognizer, maps: list[torch.Tensor]) -> list[torch.Tensor]:
    if model.options.dense or not model.head.has_attention():
        return []
    return model.attention_of_maps([one.detach() for one in maps])
