"""Clip network in, stream network out: the same weights, no training.

Source of the idea: Hedegaard and Iosifidis, "Continual 3D Convolutional Neural Networks for Real-time Processing of
Videos" (arXiv 2106.00050). Their networks compute every product of a kernel with every frame when the frame comes and
add them up later; ours keep the frames and compute each output once.
"""

from __future__ import annotations

from two_stream.backbones import Backbone
from two_stream.backbones.library import LibraryBackbone
from two_stream.backbones.timm_net import TimmBackbone
from two_stream.errors import SettingsError
from two_stream.recognizer import Recognizer
from two_stream.streaming.network.cells import Start
from two_stream.streaming.network.graph import Builder, graph_maps
from two_stream.streaming.network.heads import add_heads
from two_stream.streaming.network.images import image_maps
from two_stream.streaming.network.layers import Squeeze
from two_stream.streaming.network.recognizer import StreamRecognizer
from two_stream.streaming.network.rules import CellChoice


def convert(
    model: Recognizer, *, window: int | None = None, squeeze: Squeeze = "frame", start: Start = "zeros"
) -> StreamRecognizer:
    """Return a network that takes frames one by one (or many at a time) and shares the model's weights.

    The model is switched to evaluation. It may have its BatchNorms folded away and its weights in bfloat16
    (`evaluation.network.ready`). With zero padding the stream's predictions are those that the clip network gives of
    the whole stream as one long clip, a window of it for each; squeeze-and-excitation differs, see `squeeze`.

    Args:
        model: A trained clip network.
        window: Frames that a prediction is of, as a clip's; None is the model's clip length, and for an LSTM everything
            since the stream began.
        squeeze: What squeeze-and-excitation (X3D) averages. `frame`: each frame by itself, which costs no delay and
            differs from the clip network by design. `clip`: the window that begins with the frame; each of these
            layers waits for it.
        start: What stands for the frames before the first and behind the last: `zeros`, every layer's own padding as
            in a clip, or `replicate`, the first (last) input of every layer again and again.

    Raises:
        SettingsError: A layer or head has no stream; the message names it and says why.
    """
    for name, value, expected in (
        ("squeeze", squeeze, ("frame", "clip")),
        ("start", start, ("zeros", "replicate")),
    ):
        if value not in expected:
            raise SettingsError(f"`{name}` {value!r}: expected {' or '.join(expected)}")
    if window is not None and window < 1:
        raise SettingsError(f"`window` {window}: expected a number of frames, 1 or more")
    if model.cpu_only:
        raise SettingsError("int8 networks have no stream; convert the network that this one was made from")
    model.eval()
    builder = Builder()
    choice = CellChoice(squeeze, start, window or model.spec.clip_length)
    add_heads(model, _backbone_maps(model.backbone, choice, builder), window, builder)
    return StreamRecognizer(model, builder.nodes)


def _backbone_maps(backbone: Backbone, choice: CellChoice, builder: Builder) -> list[int]:
    """Add a backbone's cells and return the numbers of its maps."""
    if isinstance(backbone, TimmBackbone):
        return image_maps(backbone, choice, builder)
    if isinstance(backbone, LibraryBackbone):
        raise SettingsError(
            f"backbone {backbone.options.kind} has no stream: every frame attends to all frames of its clip"
        )
    return graph_maps(backbone, choice, builder)
