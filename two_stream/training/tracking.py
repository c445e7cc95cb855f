"""Metrics of a run: `metrics.jsonl`, TensorBoard scalars and images, and one printed line per epoch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from two_stream.config.load import flatten
from two_stream.config.schema import Experiment
from two_stream.runtime.console import say
from two_stream.runtime.files import checked_line, write_text
from two_stream.runtime.plotting import SERIES, plain_figures, shades, shorten, text_on
from two_stream.runtime.text import duration, learning_rate, per_cent, plural
from two_stream.types import Batch, RunPaths

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLOW_ZERO = 127.5
"""pixel value of zero motion"""
MAX_CLASSES_WITH_NAMES = 60
TIME_FIELDS = ("seconds", "clips_per_second", "crc32")
"""fields of a line in `metrics.jsonl` that differ between runs with equal results; `crc32` is the checksum of the
line"""
_SCALARS = {
    "train_loss": "loss/train",
    "val_loss": "loss/val",
    "train_top1": "accuracy/train_top1",
    "val_top1": "accuracy/val_top1",
    "val_top5": "accuracy/val_top5",
    "val_map": "accuracy/val_map",
    "clips_per_second": "speed/clips_per_second",
    "skipped": "data/skipped",
}


def write_metrics(paths: RunPaths, history: list[dict[str, Any]]) -> None:
    """Write all lines of `metrics.jsonl` atomically. Numbers that are not finite become `null`."""
    lines = [checked_line({key: _plain(value) for key, value in line.items()}) + "\n" for line in history]
    write_text(paths.metrics, "".join(lines))


class Tracker:
    """Writes TensorBoard events and prints one line per epoch. If `active` is false, it does nothing."""

    def __init__(
        self, paths: RunPaths, experiment: Experiment, *, first_step: int, active: bool = True
    ) -> None:
        self.experiment = experiment
        self.images = experiment.train.log_images
        self.writer: Any = None
        self.active = active
        if active:
            from torch.utils.tensorboard import SummaryWriter

            # hides events from `first_step` on, which an interrupted run wrote
            self.writer = SummaryWriter(str(paths.root), purge_step=first_step)

    def step(self, step: int, loss: float, lr: float, grad_norm: float) -> None:
        """Record one optimizer step."""
        if self.writer is not None:
            self.writer.add_scalar("step/loss", loss, step)
            self.writer.add_scalar("step/learning_rate", lr, step)
            self.writer.add_scalar("step/gradient_norm", grad_norm, step)

    def clips(self, batch: Batch, step: int) -> None:
        """Record the augmented clips of a batch as an image."""
        if self.writer is not None and self.images and batch.ids:
            pixels = batch.clips.cpu().numpy().astype(np.uint8)
            self.writer.add_image("input/clips", clip_grid(pixels), step, dataformats="HWC")

    def epoch(
        self,
        line: dict[str, Any],
        confusion: NDArray[np.int64] | None,
        class_names: list[str],
        seconds_left: float,
    ) -> None:
        """Record and print a finished epoch."""
        if not self.active:
            return
        for key, tag in ((key, tag) for key, tag in _SCALARS.items() if key in line):
            self.writer.add_scalar(tag, line[key], line["step"])
        if "lr" in line:
            self.writer.add_scalar("learning_rate", line["lr"], line["step"])
        if self.images and confusion is not None:
            title = f"epoch {line['epoch']}, top-1 {per_cent(line['val_top1'])}"
            with plain_figures():
                figure = confusion_figure(confusion, class_names, title)
                self.writer.add_figure("validation/confusion", figure, line["step"], close=False)
        self.writer.flush()
        say(self._sentence(line, seconds_left))

    def hparams(self, metrics: dict[str, float]) -> None:
        """Record the settings and the final metrics for TensorBoard's HParams page."""
        if self.writer is None:
            return
        from torch.utils.tensorboard.summary import hparams

        settings = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in flatten(self.experiment.model_dump(mode="json")).items()
        }
        finite = {f"final/{key}": value for key, value in metrics.items() if math.isfinite(value)}
        for summary in hparams(settings, finite):  # type: ignore[no-untyped-call]
            self.writer.file_writer.add_summary(summary)
        for key, value in finite.items():
            self.writer.add_scalar(key, value, 0)
        self.writer.flush()

    def close(self) -> None:
        """Flush and close the event file."""
        if self.writer is not None:
            self.writer.close()

    def _sentence(self, line: dict[str, Any], seconds_left: float) -> str:
        solved = "lr" not in line
        epochs = 1 if solved else self.experiment.train.epochs
        rate = f"C {line['c']:g}" if solved else f"lr {learning_rate(line['lr'])}"
        skipped = f"  {plural(line['skipped'], 'clip')} skipped" if line["skipped"] else ""
        precision = f"  val mAP {per_cent(line['val_map'])}" if "val_map" in line else ""
        return (
            f"epoch {line['epoch']:>{len(str(epochs))}}/{epochs}"
            f"  train loss {line['train_loss']:.4f}  train top-1 {per_cent(line['train_top1'])}"
            f"  val loss {line['val_loss']:.4f}{precision}  val top-1 {per_cent(line['val_top1'])}"
            f"  val top-5 {per_cent(line['val_top5'])}"
            f"  {rate}"
            f"  {duration(line['seconds'])}  {line['clips_per_second']:.1f} clips/s"
            f"{f'  {duration(seconds_left)} left' if seconds_left else ''}{skipped}{'  best' if line['best'] else ''}"
        )


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def flow_to_rgb(flow_HW2: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return quantized flow as RGB: the hue is the direction of motion (red: to the right), the saturation the speed.

    Pixels without motion are white. The saturation is full at half the largest speed that a flow component can store.
    """
    vector = flow_HW2.astype(np.float32) - FLOW_ZERO
    speed, angle = cv2.cartToPolar(vector[..., 0].copy(), vector[..., 1].copy(), angleInDegrees=True)
    speed = np.where(speed < 1.0, 0.0, speed)  # 127 and 128 both mean no motion
    hsv = np.stack([angle, np.clip(speed / (FLOW_ZERO / 2), 0.0, 1.0), np.ones_like(angle)], axis=-1)
    rgb = cv2.cvtColor(hsv.astype(np.float32), cv2.COLOR_HSV2RGB)
    return np.asarray(np.rint(rgb * 255.0), dtype=np.uint8)


def clip_grid(clips_BCTHW: NDArray[np.uint8], *, clips: int = 4, frames: int = 8) -> NDArray[np.uint8]:
    """Return one image of clips, `(clips * H, frames * W, 3)`: a row of evenly spaced frames for each clip.

    Flow is drawn with `flow_to_rgb`; for stacked flow fields, only the first field is drawn.
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
    """Draw a confusion matrix.

    Colours show fractions of the true class's videos. With up to 20 classes, cells contain counts.

    Call this function and render the figure within `plain_figures`.
    """
    from matplotlib.figure import Figure

    class_names = [shorten(name) for name in class_names]
    count = len(class_names)
    side = float(np.clip(2.5 + 0.32 * count, 4.0, 16.0))
    figure = Figure(figsize=(side, side), dpi=100, layout="constrained")
    axes = figure.subplots()
    shares = confusion_KK / np.maximum(confusion_KK.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, vmin=0.0, vmax=1.0, cmap=shades(SERIES[2]))
    figure.colorbar(image, ax=axes, fraction=0.046)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    axes.grid(visible=False)
    if count <= MAX_CLASSES_WITH_NAMES:
        axes.set_xticks(range(count), class_names, rotation=90, fontsize=7)
        axes.set_yticks(range(count), class_names, fontsize=7)
    if count <= 20:
        for row, column in zip(*np.nonzero(confusion_KK), strict=True):
            color = text_on(image.to_rgba(shares[row, column]))
            axes.text(
                column, row, str(confusion_KK[row, column]), ha="center", va="center", fontsize=7, color=color
            )
    return figure
