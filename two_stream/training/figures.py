"""Pictures for TensorBoard: a grid of input clips, flow as a colour wheel, a confusion matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from two_stream.errors import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLOW_ZERO = 127.5
"""pixel value of no motion"""
MAX_CLASSES_WITH_NAMES = 60


def flow_to_rgb(flow_HW2: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Show quantised flow as a colour wheel: hue is the direction (red right, towards +x), saturation the speed.

    A still pixel is white; full saturation is half the largest speed that 0..255 can hold in one direction.
    """
    vector = flow_HW2.astype(np.float32) - FLOW_ZERO
    speed, angle = cv2.cartToPolar(vector[..., 0].copy(), vector[..., 1].copy(), angleInDegrees=True)
    speed = np.where(speed < 1.0, 0.0, speed)  # 127 and 128 both stand for no motion
    hsv = np.stack([angle, np.clip(speed / (FLOW_ZERO / 2), 0.0, 1.0), np.ones_like(angle)], axis=-1)
    rgb = cv2.cvtColor(hsv.astype(np.float32), cv2.COLOR_HSV2RGB)
    return np.asarray(np.rint(rgb * 255.0), dtype=np.uint8)


def clip_grid(clips_BCTHW: NDArray[np.uint8], *, clips: int = 4, frames: int = 8) -> NDArray[np.uint8]:
    """Lay clips out as rows of evenly spread frames, `(rows * H, columns * W, 3)`; flow as a colour wheel.

    Of a stack of flow fields the first is shown.
    """
    chosen = clips_BCTHW[:clips]
    length = chosen.shape[2]
    times = np.unique(np.linspace(0, length - 1, min(frames, length)).round().astype(int))
    rows = []
    for clip_CTHW in chosen:
        images = [clip_CTHW[:, time].transpose(1, 2, 0) for time in times]
        rows.append(
            np.concatenate([i if i.shape[-1] == 3 else flow_to_rgb(i[..., :2]) for i in images], axis=1)
        )
    return np.concatenate(rows, axis=0)


def confusion_figure(confusion_KK: NDArray[np.int64], class_names: list[str], title: str) -> Figure:
    """Draw a confusion matrix: colour is the share of the true class, numbers are clips where they fit.

    Called, and turned into pixels, under `plain_figures`.
    """
    from matplotlib.figure import Figure

    class_names = [printable(name) for name in class_names]
    count = len(class_names)
    side = float(np.clip(2.5 + 0.32 * count, 4.0, 16.0))
    figure = Figure(figsize=(side, side), dpi=100, layout="constrained")
    axes = figure.subplots()
    shares = confusion_KK / np.maximum(confusion_KK.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, vmin=0.0, vmax=1.0, cmap="Blues")
    figure.colorbar(image, ax=axes, fraction=0.046)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    if count <= MAX_CLASSES_WITH_NAMES:
        axes.set_xticks(range(count), class_names, rotation=90, fontsize=7)
        axes.set_yticks(range(count), class_names, fontsize=7)
    if count <= 20:
        for row, column in zip(*np.nonzero(confusion_KK), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(
                column, row, str(confusion_KK[row, column]), ha="center", va="center", fontsize=7, color=color
            )
    return figure
