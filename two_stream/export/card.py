"""The card of an exported file: classes, input, settings, hashes, and the result of verification."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from two_stream.config.load import validate_settings
from two_stream.config.schema import Experiment
from two_stream.errors import CheckpointError
from two_stream.types import InputSpec

KEY = "two_stream"
"""Name of the card in a file: an entry of ONNX's `metadata_props`; in the archives of torch `extra/two_stream.json`."""
FORMAT = "two_stream_export"
BATCH = "batch"
"""Name of the dimension whose size is not fixed."""
VERSION = 1
"""Raised when a reader of an older version could misread a file."""
UNSEALED = "0" * 64
"""`content_sha256` before the digest is computed."""

MOST_FRAMES, MOST_SIDE, MOST_CLASSES, MOST_NAME, MOST_NUMBERS = 2**14, 2**14, 10**6, 1000, 2**31
"""Frames of a clip, pixels of a side, classes, characters of a class name, numbers of a tensor at batch 1"""
_TYPES = ("uint8", "int32", "int64", "float16", "bfloat16", "float32", "float64", "bool")

Target = Literal["onnx", "pt2", "aoti"]


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Port(_Facts):
    """Description of an input or output of the graph."""

    name: str
    shape: tuple[int | str, ...]
    """sizes of the dimensions; `batch` stands for any batch size"""
    dtype: str
    meaning: str


class StateFacts(_Facts):
    """A state of a streaming network, which is the input `<name>` and the output `next_<name>` of the graph."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    initial: float
    """initial value of every element; minus infinity is stored as the text `-Infinity`, because JSON has no such
    number"""


class StreamFacts(_Facts):
    """Timing and states of a streaming network."""

    frames_per_step: int
    """number of input frames per step; the distance between these frames is `spec.stride` frames of the video, which is
    seen at `spec.fps` frames per second if that is given"""
    warm_up: int
    """number of steps before the first prediction; the logits of these steps are meaningless"""
    delay: int
    """number of frames before the frame that completes the first prediction"""
    receptive_field: int | None
    """number of frames on which a prediction depends; None: all earlier frames (LSTM)"""
    states: tuple[StateFacts, ...]


class Verified(_Facts):
    """Result of comparing the file with the model when the file was written."""

    clips: str
    """description of the compared clips and batch sizes"""
    largest_difference: float
    """largest absolute difference between the logits of the file and the model"""
    relative: float
    """`largest_difference` divided by the largest logit of the model"""
    limit: float | None
    """limit of `relative`; None for int8 files, which have no limit"""
    agreement: float
    """fraction of clips for which the file and the model predict the same class"""


class ExportCard(_Facts):
    """The information about an exported file that is stored in the file."""

    format: Literal["two_stream_export"] = "two_stream_export"
    version: int = VERSION
    to: Target
    kind: Literal["clip", "stream"] = "clip"
    precision: Literal["fp32", "int8"] = "fp32"
    name: str
    run: str
    """path of the run folder at the time of the export"""
    checkpoint: str
    class_names: list[str]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    spec: dict[str, Any]
    """the `InputSpec`, which describes how clips are cut from a video; normalisation is part of the graph"""
    experiment: dict[str, Any]
    """settings of the run, such as data set, sampling and views"""
    meta: dict[str, Any]
    """metadata of the checkpoint; `extraction` describes how the training frames were extracted"""
    stream: StreamFacts | None = None
    model_sha256: str
    """SHA-256 of the run's weights file"""
    content_sha256: str = UNSEALED
    """SHA-256 of the exported content; see `docs/export.md`"""
    verified: Verified | None = None
    code_version: str
    environment: dict[str, str]
    created: str

    def input_spec(self) -> InputSpec:
        """Return the input specification for clips."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in self.spec.items()
        }
        return InputSpec(**values)

    def settings(self, source: Path) -> Experiment:
        """Return the settings of the run.

        Raises:
            SettingsError: Another version wrote them; names the key.
        """
        return validate_settings(Experiment, self.experiment, source)


def parse_card(text: str, source: Path) -> ExportCard:
    """Read a card from JSON.

    Raises:
        CheckpointError: Damaged, contradictory, or of a newer version.
    """
    try:
        card = ExportCard.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole card"
        raise CheckpointError(
            f"{source}: the card of the file cannot be read (`{where}`: {first['msg']}); export the run again"
        ) from None
    if card.version > VERSION:
        raise CheckpointError(
            f"{source}: written by a newer version of two-stream (found card version {card.version}, "
            f"expected at most {VERSION}); upgrade two-stream"
        )
    problem = next(_contradictions(card), None)
    if problem is not None:
        raise CheckpointError(
            f"{source}: the card of the file is inconsistent: {problem}; export the run again"
        )
    return card


def _contradictions(card: ExportCard) -> Iterator[str]:
    """Yield descriptions of values that no exported network can have."""
    try:
        spec = TypeAdapter(InputSpec).validate_python(card.spec)
    except ValidationError as error:
        first = error.errors()[0]
        yield f"`spec.{'.'.join(map(str, first['loc']))}`: {first['msg']}"
        return
    sides = (*spec.resize, *spec.size)
    if (
        not 1 <= spec.clip_length <= MOST_FRAMES
        or not 1 <= spec.stride <= MOST_FRAMES
        or not 1 <= spec.stack <= 64
    ):
        yield f"clips of {spec.clip_length} frames, {spec.stride} apart, in stacks of {spec.stack}"
    elif not all(1 <= side <= MOST_SIDE for side in sides) or any(
        c > r for c, r in zip(spec.size, spec.resize)
    ):
        yield f"images of {spec.resize}, cut to {spec.size}"
    elif spec.fps is not None and not 0 < spec.fps <= 1000:
        yield f"videos at {spec.fps} frames per second"
    elif spec.segments and (spec.segments < 0 or spec.clip_length % spec.segments):
        yield f"{spec.clip_length} frames of {spec.segments} segments"
    elif len(spec.mean) != spec.channels or len(spec.std) != spec.channels or not all(spec.std):
        yield f"mean {spec.mean} and std {spec.std} of {spec.channels} channels"
    elif not 1 <= len(card.class_names) <= MOST_CLASSES or max(map(len, card.class_names)) > MOST_NAME:
        yield f"{len(card.class_names)} classes, or a name of more than {MOST_NAME} characters"
    elif len(set(card.class_names)) != len(card.class_names):
        yield "a duplicate class name"
    elif (card.kind == "stream") != (card.stream is not None):
        yield f"the kind is {card.kind}, and streams are {'' if card.stream else 'not '}described"
    else:
        yield from _odd_ports(card, spec)


def _odd_ports(card: ExportCard, spec: InputSpec) -> Iterator[str]:
    """Yield contradictions between the inputs and outputs on a card and its other entries."""
    stream = card.stream
    frames = spec.clip_length if stream is None else stream.frames_per_step
    states = () if stream is None else stream.states
    wanted = [
        ((BATCH, spec.channels, frames, *spec.size), "uint8"),
        *((one.shape, one.dtype) for one in states),
    ]
    if [(port.shape, port.dtype) for port in card.inputs] != wanted:
        yield f"inputs {[(*port.shape, port.dtype) for port in card.inputs][:2]}, but expected {wanted[:2]}"
        return
    wanted[0] = ((BATCH, len(card.class_names)), "float32")
    if [(port.shape, port.dtype) for port in card.outputs] != wanted:
        yield f"outputs {[(*port.shape, port.dtype) for port in card.outputs][:2]}, but expected {wanted[:2]}"
        return
    for shape, kind in ((port.shape, port.dtype) for port in (*card.inputs, *card.outputs)):
        fixed = [size for size in shape if size != BATCH]
        if kind not in _TYPES or not all(isinstance(size, int) and size >= 0 for size in fixed):
            yield f"a tensor {shape} of {kind}"
        elif math.prod(int(size) for size in fixed) > MOST_NUMBERS:
            yield f"a tensor {shape} of more than {MOST_NUMBERS:,} numbers"
    if stream is not None:
        counts = (stream.frames_per_step, stream.warm_up, stream.delay, stream.receptive_field or 0)
        if stream.frames_per_step < 1 or not all(0 <= count <= MOST_NUMBERS for count in counts):
            yield f"steps of {counts} frames"
