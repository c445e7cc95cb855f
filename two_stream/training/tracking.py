"""Metrics of a run: `metrics.jsonl`, scalars and images in TensorBoard or other trackers, and printed lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from two_stream.config.load import flatten
from two_stream.config.schema import Experiment
from two_stream.errors import SettingsError
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
    """Write all lines of `metrics.jsonl` atomically. Numbers that are not finite become `null`.

    `epoch` starts at 1, and `step` counts optimizer steps. Keys that start with `train_` and `val_` contain the loss
    and the accuracies, as fractions, on the training and validation parts. `lr` is the learning rate. `best` is true if
    the epoch is better than all earlier ones. `skipped` and `val_skipped` count the clips that could not be read, and
    `crc32` is the checksum of the line. A linear probe has one line, with the regularisation `c`.
    """
    lines = [checked_line({key: _plain(value) for key, value in line.items()}) + "\n" for line in history]
    write_text(paths.metrics, "".join(lines))


class TrackerWriter(Protocol):
    """What a tracker of `train.trackers` does with metrics.

    An installed package adds a tracker as an entry point of the group `two_stream.trackers`: a function of the run's
    paths, its settings and the number of the first step, which returns such an object.
    """

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers by name, such as `loss/train`."""

    def image(self, name: str, picture_HW3: NDArray[np.uint8], step: int) -> None:
        """Record an RGB image."""

    def finish(self, settings: Mapping[str, bool | int | float | str], metrics: Mapping[str, float]) -> None:
        """Record the settings and the final metrics."""

    def close(self) -> None:
        """Write everything and close."""


class TensorBoard:
    """Writes event files to the run folder."""

    def __init__(self, paths: RunPaths, experiment: Experiment, first_step: int) -> None:
        del experiment
        from torch.utils.tensorboard import SummaryWriter

        # hides events from `first_step` on, which an interrupted run wrote
        self.writer: Any = SummaryWriter(str(paths.root), purge_step=first_step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers by name."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        if not any(name.startswith("step/") for name in values):
            self.writer.flush()

    def image(self, name: str, picture_HW3: NDArray[np.uint8], step: int) -> None:
        """Record an RGB image."""
        self.writer.add_image(name, picture_HW3, step, dataformats="HWC")

    def finish(self, settings: Mapping[str, bool | int | float | str], metrics: Mapping[str, float]) -> None:
        """Record the settings and the final metrics for TensorBoard's HParams page."""
        from torch.utils.tensorboard.summary import hparams

        for summary in hparams(dict(settings), dict(metrics)):  # type: ignore[no-untyped-call]
            self.writer.file_writer.add_summary(summary)
        self.scalars(metrics, 0)

    def close(self) -> None:
        """Flush and close the event file."""
        self.writer.close()


class Wandb:
    """Writes to Weights & Biases; without a network, `WANDB_MODE=offline` stores the run in its folder."""

    def __init__(self, paths: RunPaths, experiment: Experiment, first_step: int) -> None:
        try:
            import wandb
        except ImportError:
            raise SettingsError(
                "`train.trackers` names wandb, which is not installed; run: pip install 'two-stream[wandb]'"
            ) from None
        self._image = wandb.Image
        name = experiment.name if first_step == 0 else f"{experiment.name} from step {first_step}"
        self.run = wandb.init(
            project="two-stream", group=experiment.name, name=name, dir=str(paths.root), reinit="create_new"
        )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers by name."""
        self.run.log(dict(values), step=step)

    def image(self, name: str, picture_HW3: NDArray[np.uint8], step: int) -> None:
        """Record an RGB image."""
        self.run.log({name: self._image(picture_HW3)}, step=step)

    def finish(self, settings: Mapping[str, bool | int | float | str], metrics: Mapping[str, float]) -> None:
        """Record the settings and the final metrics."""
        self.run.config.update(dict(settings))
        self.run.summary.update(dict(metrics))

    def close(self) -> None:
        """Send or store everything that is recorded."""
        self.run.finish()


TRACKERS: dict[str, Callable[[RunPaths, Experiment, int], TrackerWriter]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
}


def _trackers(names: Sequence[str]) -> list[Callable[[RunPaths, Experiment, int], TrackerWriter]]:
    """Return the trackers of these names.

    Raises:
        SettingsError: A name is unknown.
    """
    others = {entry.name: entry for entry in entry_points(group="two_stream.trackers")}
    for name in names:
        if name not in TRACKERS and name not in others:
            known = ", ".join([*TRACKERS, *others])
            raise SettingsError(f"`train.trackers` contains {name!r}; expected some of: {known}")
    return [TRACKERS[name] if name in TRACKERS else others[name].load() for name in names]


class Tracker:
    """Passes metrics to the trackers of `train.trackers`, and prints one line per epoch.

    If `active` is false, it does nothing.
    """

    def __init__(
        self, paths: RunPaths, experiment: Experiment, *, first_step: int, active: bool = True
    ) -> None:
        self.experiment = experiment
        self.images = experiment.train.log_images
        self.active = active
        made = _trackers(experiment.train.trackers)
        self.writers = [make(paths, experiment, first_step) for make in made] if active else []

    def step(self, step: int, loss: float, lr: float, grad_norm: float) -> None:
        """Record one optimizer step."""
        values = {"step/loss": loss, "step/learning_rate": lr, "step/gradient_norm": grad_norm}
        for writer in self.writers:
            writer.scalars(values, step)

    def clips(self, batch: Batch, step: int) -> None:
        """Record the augmented clips of a batch as an image."""
        if self.writers and self.images and batch.ids:
            grid = clip_grid(batch.clips.cpu().numpy().astype(np.uint8))
            for writer in self.writers:
                writer.image("input/clips", grid, step)

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
        values = {tag: line[key] for key, tag in _SCALARS.items() if key in line}
        values |= {"learning_rate": line["lr"]} if "lr" in line else {}
        if self.writers and self.images and confusion is not None:
            title = f"epoch {line['epoch']}, top-1 {per_cent(line['val_top1'])}"
            with plain_figures():
                picture = _drawn(confusion_figure(confusion, class_names, title))
            for writer in self.writers:
                writer.image("validation/confusion", picture, line["step"])
        for writer in self.writers:
            writer.scalars(values, line["step"])
        say(self._sentence(line, seconds_left))

    def hparams(self, metrics: dict[str, float]) -> None:
        """Record the settings and the final metrics."""
        settings = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in flatten(self.experiment.model_dump(mode="json")).items()
        }
        finite = {f"final/{key}": value for key, value in metrics.items() if math.isfinite(value)}
        for writer in self.writers:
            writer.finish(settings, finite)

    def close(self) -> None:
        """Close the trackers."""
        for writer in self.writers:
            writer.close()

    def _sentence(self, line: dict[str, Any], seconds_left: float) -> str:
        solved = "lr" not in line
        epochs = 1 if solved else self.experiment.train.epochs
        rate = f"C {line['c']:g}" if solved else f"lr {learning_rate(line['lr'])}"
        skipped = f"  {plural(line['skipped'], 'clip')} skipped" if line["skipped"] else ""
        precision = f"  val mAP {per_cent(line['val_map'])}" if "val_map" in line else ""
        validated = (
            f"  val loss {line['val_loss']:.4f}{precision}  val top-1 {per_cent(line['val_top1'])}"
            f"  val top-5 {per_cent(line['val_top5'])}"
            if "val_loss" in line
            else ""
        )
        return (
            f"epoch {line['epoch']:>{len(str(epochs))}}/{epochs}"
            f"  train loss {line['train_loss']:.4f}  train top-1 {per_cent(line['train_top1'])}"
            f"{validated}  {rate}"
            f"  {duration(line['seconds'])}  {line['clips_per_second']:.1f} clips/s"
            f"{f'  {duration(seconds_left)} left' if seconds_left else ''}{skipped}{'  best' if line['best'] else ''}"
        )


def _drawn(figure: Figure) -> NDArray[np.uint8]:
    """Return a figure as an RGB image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba(), dtype=np.uint8)[..., :3]


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
