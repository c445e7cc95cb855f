"""What a prediction of a stream costs on paper."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from two_stream.profiling.costs import meta_model
from two_stream.recognizer import Recognizer
from two_stream.streaming.network.cells import Start
from two_stream.streaming.network.converting import convert
from two_stream.streaming.network.layers import Squeeze


def multiply_adds_per_prediction(
    model: Recognizer, *, window: int | None = None, squeeze: Squeeze = "frame", start: Start = "zeros"
) -> int:
    """Return the multiply-adds of one more prediction of a running stream, counted on the meta device.

    By the convention of `profiling.costs`; to be compared with its `multiply_adds`, which is of one clip, and so
    of one prediction of clips that slide along.

    Args:
        model: The clip network; its options count, not its weights.
        window: As for `convert`, like the rest.
        squeeze: What squeeze-and-excitation averages.
        start: What stands for the frames before the first.

    Raises:
        SettingsError: It has no stream.
    """
    twin = meta_model(model.options, model.num_classes)
    stream = convert(twin, window=window, squeeze=squeeze, start=start)
    spec = model.spec

    def frames(count: int) -> torch.Tensor:
        return torch.empty(1, spec.channels, count, *spec.size, dtype=torch.uint8, device="meta")

    stream.step(frames(stream.delay + 1))
    with FlopCounterMode(display=False) as counter:
        found = stream.step(frames(stream.stride))
    assert found.shape[1] == 1
    flops: int = counter.get_total_flops()
    return flops // 2
