"""Optical flow between consecutive frames, stored as the published two-stream data is: 8 bits, ±20 pixels.

A displacement of v pixels becomes round((v + 20) * 255 / 40). Rest lies at 127.5, between two values; the
published code's rounding (half to even) stores it as 128, which reads back as +0.08 pixels.
x grows to the right, y grows downwards: texture that moves right has positive x, texture that falls positive y.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from two_stream.errors import SettingsError

ALGORITHMS = ("tvl1", "dis", "farneback")
"""tvl1: TV-L1, the paper's, slow; dis: dense inverse search, medium preset, fast; farneback: Farnebäck."""
QUICK = ("dis", "farneback")
"""Computed in about a second a clip; TV-L1 takes a hundred times as long, RAFT a GPU and its weights."""
AUTO = "auto"
FLOW_BOUND = 20.0
"""Displacements beyond this many pixels are clipped."""


def computed_flow(trained: str | None, asked: str = AUTO) -> str:
    """Return the algorithm whose flow a network reads of a raw video: the one rule for every path.

    Args:
        trained: The kind of flow it was trained on; None is not known.
        asked: An algorithm, which is then taken; auto: the kind it was trained on where that is `QUICK`, else DIS.
    """
    if asked != AUTO:
        return asked
    return trained if trained in QUICK else QUICK[0]


class FlowMaker(Protocol):
    """Turns the pictures of a video into the flow between neighbours."""

    def flows(self, pictures: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        """Yield the stored flow, uint8 `(H, W, 2)`, between each RGB picture `(H, W, 3)` and the next."""
        ...


class FlowNetwork(Protocol):
    """A flow algorithm that needs weights, described so that it can be sent to other processes and machines."""

    @property
    def gpus(self) -> int:
        """GPUs of this machine that it computes on; 0 is the CPU."""
        ...

    def recorded(self) -> dict[str, Any]:
        """Return what decides its output, for the manifest."""
        ...

    def maker(self, place: int, threads: int) -> FlowMaker:
        """Return it ready for work in this process; `place` spreads jobs over GPUs, `threads` 0 leaves the CPU's."""
        ...


class FlowEstimator:
    """One optical-flow algorithm, ready for many pairs of frames of any size."""

    def __init__(self, algorithm: str = "tvl1", bound: float = FLOW_BOUND) -> None:
        """Set up an algorithm whose displacements are stored up to `bound` pixels.

        Raises:
            SettingsError: The name is unknown, or this OpenCV build lacks the algorithm.
        """
        if algorithm == "raft":
            raise SettingsError(
                "flow raft is computed at extraction only (`two-stream extract --flow raft --flow-weights FILE`); "
                f"on the fly there are {', '.join(ALGORITHMS)}"
            )
        if algorithm not in ALGORITHMS:
            raise SettingsError(f"unknown flow algorithm {algorithm!r}; known: {', '.join(ALGORITHMS)}")
        self.algorithm, self.bound = algorithm, bound
        self._estimate = _estimator(algorithm)

    def flow(self, previous: NDArray[np.uint8], current: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the flow from one grey picture `(H, W)` to the next as float32 `(H, W, 2)`, in pixels (x, y)."""
        return self._estimate(previous, current)

    def __call__(self, previous: NDArray[np.uint8], current: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the flow between two grey pictures `(H, W)` as stored: uint8 `(H, W, 2)`."""
        return quantize(self._estimate(previous, current), self.bound)

    def flows(self, pictures: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        """Yield the stored flow between each RGB picture and the next; one picture is kept at a time."""
        previous: NDArray[np.uint8] | None = None
        for picture in pictures:
            current = gray(picture)
            if previous is not None:
                yield self(previous, current)
            previous = current


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
                "this OpenCV has no TV-L1 flow: pip uninstall the other opencv packages, then "
                "pip install --force-reinstall opencv-contrib-python-headless"
            ) from None
    smallest = _SMALLEST[algorithm]

    def estimate(previous: NDArray[np.uint8], current: NDArray[np.uint8]) -> NDArray[np.float32]:
        height, width = previous.shape
        pad_y, pad_x = max(0, smallest - height), max(0, smallest - width)
        if pad_y or pad_x:  # the pyramids fail on pictures of a few pixels
            previous = _padded(previous, pad_y, pad_x)
            current = _padded(current, pad_y, pad_x)
        found: NDArray[np.float32] = method.calc(_whole(previous), _whole(current), None)
        return found[:height, :width]

    return estimate


_SMALLEST = {"dis": 64, "tvl1": 16}


def _whole(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(picture)  # DIS refuses a view


def _padded(picture: NDArray[np.uint8], down: int, right: int) -> NDArray[np.uint8]:
    made = cv2.copyMakeBorder(picture, 0, down, 0, right, cv2.BORDER_REPLICATE)
    return np.asarray(made, np.uint8)


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
    """Clip displacements in pixels to ±`bound` and map them to 0..255; values that are no number become rest."""
    clean = np.nan_to_num(np.asarray(flow, np.float32), nan=0.0, posinf=bound, neginf=-bound)
    scaled = (np.clip(clean, -bound, bound) + np.float32(bound)) * np.float32(255.0 / (2.0 * bound))
    return np.asarray(np.rint(scaled), np.uint8)


def dequantize(stored: NDArray[np.uint8], bound: float = FLOW_BOUND) -> NDArray[np.float32]:
    """Map stored values 0..255 back to displacements in pixels, float32, exact to half a step (0.08 pixels)."""
    return stored.astype(np.float32) * np.float32(2.0 * bound / 255.0) - np.float32(bound)


def gray(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn an RGB picture `(H, W, 3)` into the grey one `(H, W)` that flow is computed on."""
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.uint8)


def flow_clip(frames: NDArray[np.uint8], algorithm: str = "dis") -> NDArray[np.uint8]:
    """Return the stored flow between consecutive frames of a clip.

    Args:
        frames: uint8 `(T, H, W, 3)`, RGB.
        algorithm: One of `ALGORITHMS`.

    Returns:
        uint8 `(T - 1, H, W, 2)`: one picture fewer than frames, as in the published lists.

    Raises:
        SettingsError: The algorithm is unknown.
    """
    estimator = FlowEstimator(algorithm)
    out = np.empty((max(0, len(frames) - 1), *frames.shape[1:3], 2), np.uint8)
    for step, flow in enumerate(estimator.flows(frames)):
        out[step] = flow
    return out
