"""A tiny data set of frame folders: 12 videos of 3 classes, 6 sources, RGB and flow lists for two splits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from two_stream.data.catalog import Record, load_record

CLASSES = ("jump", "run", "sit down")


def _value(video: int, number: int, channel: int) -> int:
    return 20 * video + 3 * number + 5 * channel


@pytest.fixture
def frame_value() -> Callable[[int, int, int], int]:
    """The grey level of a frame of `tiny`'s flat pictures, from video, frame and channel."""
    return _value


@pytest.fixture
def tiny(tmp_path: Path) -> Record:
    """Frame folders `v_<class>_g<source>_c<n>`, 6 RGB and 5 flow frames of 12×16 pixels."""
    root = tmp_path / "frames"
    lines: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for video in range(12):
        label, source = video % 3, video // 2
        name = f"v_{CLASSES[label].replace(' ', '')}_g{source:02d}_c{video:02d}"
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(1, 7):
            write_flat(folder / f"img_{number:05d}.jpg", [_value(video, number, c) for c in (2, 1, 0)])
            if number < 6:
                write_flat(folder / f"flow_x_{number:05d}.jpg", [_value(video, number, 0)])
                write_flat(folder / f"flow_y_{number:05d}.jpg", [_value(video, number, 1)])
        for split in (1, 2):
            part = "val" if source == split else "train"
            lines.setdefault((part, split), []).append((name, label))
    for (part, split), entries in lines.items():
        for modality, frames in (("rgb", 6), ("flow", 5)):
            text = "".join(f"{name} {frames} {label}\n" for name, label in entries)
            (tmp_path / f"{part}_{modality}_split{split}.txt").write_text(text)
    (tmp_path / "dataset.yaml").write_text(
        "name: tiny\nnum_splits: 2\nframes: {rgb: frames, flow: frames}\n"
        "group: '_(g\\d+)_c\\d+$'\nclasses: [jump, run, sit down]\n"
    )
    return load_record(tmp_path / "dataset.yaml")


def write_flat(path: Path, color: list[int]) -> None:
    picture = np.full((12, 16, len(color)), color, np.uint8)
    assert cv2.imwrite(str(path), picture.squeeze(), [cv2.IMWRITE_JPEG_QUALITY, 100])
