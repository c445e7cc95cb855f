"""Random changes of a clip's pixels: colours, RandAugment, erasing. One draw for all frames of a clip.

The operations are torchvision's, on uint8. Their random numbers come from the clip's own generator, so they depend on
(seed, epoch, video id) alone, like crops and flips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from two_stream.config.augment import AugmentOptions
from two_stream.data.clips.transforms import drawn_box
from two_stream.types import Frames, InputSpec

NO_MOTION = 128
"""pixel value of flow that stands still"""
_ERASED_RATIO = (0.3, 1 / 0.3)
"""width to height of an erased box"""


def change_pixels(
    frames_THWC: Frames, options: AugmentOptions, spec: InputSpec, rng: np.random.Generator
) -> Frames:
    """Change the pixels of a clip as the options say; without any of these options it comes back as it is.

    Args:
        frames_THWC: uint8 `(T, H, W, C)`, cropped and mirrored already.
        options: Colours are changed of RGB only; settings for a flow network refuse them.
        spec: Modality and normalisation: an erased box of RGB has the mean that is subtracted.
        rng: The clip's generator.
    """
    if options.colours and spec.modality == "rgb":
        clip_TCHW = torch.from_numpy(np.ascontiguousarray(frames_THWC)).permute(0, 3, 1, 2)
        with _seeded(rng):
            for change in _colour_changes(options):
                clip_TCHW = change(clip_TCHW)
        frames_THWC = np.ascontiguousarray(clip_TCHW.permute(0, 2, 3, 1).numpy())
    if options.erase and rng.random() < options.erase:
        size = (frames_THWC.shape[1], frames_THWC.shape[2])
        box = drawn_box(size, options.erase_area, _ERASED_RATIO, rng)
        if box is not None:
            frames_THWC = frames_THWC.copy()  # what was read may be a view of something larger
            frames_THWC[:, box[0] : box[2], box[1] : box[3]] = erased_value(spec)
    return frames_THWC


def erased_value(spec: InputSpec) -> list[int]:
    """Return the pixel value of an erased box per channel: no motion, or the mean that normalisation subtracts."""
    if spec.modality == "flow":
        return [NO_MOTION] * spec.channels
    low, high = spec.value_range
    return [min(255, max(0, round(255 * (mean - low) / (high - low)))) for mean in spec.mean]


def _colour_changes(options: AugmentOptions) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    from torchvision.transforms import v2

    jitter = {name: getattr(options, name) for name in ("brightness", "contrast", "saturation", "hue")}
    if any(jitter.values()):
        yield v2.ColorJitter(**jitter)
    if options.grayscale:
        yield v2.RandomGrayscale(options.grayscale)
    if options.rand_augment:
        yield v2.RandAugment(
            options.rand_augment,
            options.rand_magnitude,
            interpolation=v2.InterpolationMode.BILINEAR,
            fill=NO_MOTION,
        )


@contextmanager
def _seeded(rng: np.random.Generator) -> Iterator[None]:
    """Let torch's generator, from which torchvision draws, follow the clip's, and put it back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**63)))
        yield
