"""Optical flow between consecutive frames, stored with 8 bits for ±20 pixels, as in the published two-stream data.

A displacement of v pixels is stored as round((v + 20) * 255 / 40). Zero maps to 127.5, which is stored as 128 as in the
published code, and is read as +0.08 pixels. x increases to the right and y increases downwards, so motion to the right
has positive x and downward motion has positive y.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from two_stream.errors import SettingsError

ALGORITHMS = ("tvl1", "dis", "farneback")
"""tvl1: TV-L1, the paper's, slow; dis: dense inverse search, medium preset, fast; farneback: Farnebäck."""
QUICK = ("dis", "farneback")
"""Algorithms that take about a second per clip; TV-L1 takes a hundred times as long, RAFT needs a GPU and weights."""
AUTO = "auto"
FLOW_BOUND = 20.0
"""Displacements beyond this many pixels are clipped."""


def choose_flow_algorithm(trained: str | None, asked: str = AUTO) -> str:
    """Return the flow algorithm for a network that reads raw videos; all commands use this function.

    Args:
        trained: The algorithm it was trained on; None if unknown.
        asked: An algorithm to use; auto: the one it was trained on if that is `QUICK`, otherwise DIS.
    """
    if asked != AUTO:
        return asked
    return trained if trained in QUICK else QUICK[0]


class FlowMaker(Protocol):
    """Computes the flow between consecutive images of a video."""

    def flows(self, pictures: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        """Yield the flow between each RGB image `(H, W, 3)` and the next, in its stored form, uint8 `(H, W, 2)`."""
        ...


class FlowNetwork(Protocol):
    """A flow network and its weights, in a form that can be sent to other processes and machines."""

    @property
    def gpus(self) -> int:
        """Number of GPUs of this machine that the network uses; 0 if it runs on the CPU."""
        ...

    def recorded(self) -> dict[str, Any]:
        """Return the settings that determine the flow, for the manifest."""
        ...

    def maker(self, place: int, threads: int) -> FlowMaker:
        """Load the network in this process; `place` selects a GPU, `threads` sets the CPU threads (0: unchanged)."""
        ...


class FlowEstimator:
    """Computes optical flow with one algorithm, for frames of any size.

    Args:
        algorithm: One of `ALGORITHMS`.
        bound: Displacements beyond this many pixels are clipped.

    Raises:
        SettingsError: The name is unknown, or this OpenCV build lacks the algorithm.
    """

    def __init__(self, algorithm: str = "tvl1", bound: float = FLOW_BOUND) -> None:
        if algorithm == "raft":
            raise SettingsError(
                "flow raft is supported only in extraction (`two-stream extract --flow raft --flow-weights FILE`); "
                f"for raw videos use one of {', '.join(ALGORITHMS)}"
            )
        if algorithm not in ALGORITHMS:
            raise SettingsError(f"unknown flow algorithm {algorithm!r}; known: {', '.join(ALGORITHMS)}")
        self.algorithm, self.bound = algorithm, bound
        self._estimate = _estimator(algorithm)

    def flow(self, previous: NDArray[np.uint8], current: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the flow (x, y) in pixels between two grey images `(H, W)`, as float32 `(H, W, 2)`."""
        return self._estimate(previous, current)

    def __call__(self, previous: NDArray[np.uint8], current: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the flow between two grey images `(H, W)` in its stored form, uint8 `(H, W, 2)`."""
        return quantize(self._estimate(previous, current), self.bound)

    def flows(self, pictures: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        """Yield the flow between each RGB image and the next, in its stored form."""
        for previous, current in pairwise(map(to_gray, pictures)):
            yield self(previous, current)


def _estimator(algorithm: str) -> Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.float32]]:
    if algorithm == "farneback":
        return _farneback
    vision: Any = cv2  # OpenCV's type stubs lack the contrib modules
    if algorithm == "dis":
        method = vision.DISOpticalFlow_create(vision.DISOPTICAL_FLOW_PRESET_MEDIUM)
    else:
        try:
            method = vision.optflow.DualTVL1OpticalFlow_create()
        except AttributeError:
            raise SettingsError(
                "the installed OpenCV does not contain TV-L1 flow; uninstall all opencv packages "
                "with pip, then run "
                "pip install --force-reinstall opencv-contrib-python-headless"
            ) from None
    smallest = 64 if algorithm == "dis" else 16  # the pyramids fail on images of fewer pixels

    def pad(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        down, right = (max(0, smallest - side) for side in picture.shape)
        if down or right:
            picture = np.asarray(
                cv2.copyMakeBorder(picture, 0, down, 0, right, cv2.BORDER_REPLICATE), np.uint8
            )
        return np.ascontiguousarray(picture)  # DIS rejects a view

    def estimate(previous: NDArray[np.uint8], current: NDArray[np.uint8]) -> NDArray[np.float32]:
        height, width = previous.shape
        flow: NDArray[np.float32] = method.calc(pad(previous), pad(current), None)
        return flow[:height, :width]

    return estimate


def _farneback(previous: NDArray[np.uint8], current: NDArray[np.uint8]) -> NDArray[np.float32]:
    found = cv2.calcOpticalFlowFarneback(
        previous,
        current,
        None,  # type: ignore[call-overload]
        pyr_scale=0.5,
        levels=3,
        winsize=15,
        iterations=3,
        poly_n=5,
        poly_sigma=1.2,
        flags=0,
    )
    return np.asarray(found, np.float32)


def quantize(flow: NDArray[np.floating[Any]], bound: float = FLOW_BOUND) -> NDArray[np.uint8]:
    """Clip displacements in pixels to ±`bound`, and map them to 0..255; NaN is treated as zero displacement."""
    clean = np.nan_to_num(np.asarray(flow, np.float32), nan=0.0, posinf=bound, neginf=-bound)
    scaled = (np.clip(clean, -bound, bound) + np.float32(bound)) * np.float32(255.0 / (2.0 * bound))
    return np.asarray(np.rint(scaled), np.uint8)


def dequantize(stored: NDArray[np.uint8], bound: float = FLOW_BOUND) -> NDArray[np.float32]:
    """Map stored values 0..255 to float32 displacements in pixels; the error is at most half a step (0.08 pixels)."""
    return stored.astype(np.float32) * np.float32(2.0 * bound / 255.0) - np.float32(bound)


def to_gray(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert an RGB image `(H, W, 3)` to the grey image `(H, W)` from which flow is computed."""
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.uint8)
