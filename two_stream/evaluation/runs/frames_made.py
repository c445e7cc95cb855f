"""How the frames were made that a network learned from, and what is said where those it reads now differ."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field

from two_stream.config.load import validate_settings
from two_stream.config.schema import DataOptions
from two_stream.data.catalog import Record
from two_stream.data.sources.shards import load_index, shard_storage
from two_stream.errors import DataError
from two_stream.types import Modality
from two_stream.video.extraction.one_video import extraction_settings
from two_stream.video.flow import ALGORITHMS, AUTO, FLOW_BOUND

_Side = Annotated[int, Field(ge=8, le=16384)]


class FramesMade(BaseModel):
    """What decides a displacement's value, of the settings that frames were extracted with."""

    model_config = ConfigDict(frozen=True)  # extraction records more

    flow: str | None = None
    """kind of flow; None is not known"""
    flow_bound: Annotated[float, Field(gt=0, le=1000)] = FLOW_BOUND
    short_side: _Side | None = 256
    size: tuple[_Side, _Side] | None = None


def frames_made(settings: object, source: str) -> FramesMade:
    """Read recorded settings.

    Raises:
        SettingsError: A value is none that extraction writes; names `source` and the key.
    """
    known: Any = settings or {}
    if isinstance(known, dict) and known.get("flow") == "none":
        known = known | {"flow": None}
    return validate_settings(FramesMade, known, f"{source}: how its frames were made")


def made_now(data: DataOptions, record: Record, modality: Modality) -> dict[str, Any] | None:
    """Return the settings by which the frames are made that these options read; None where nothing says so.

    Raises:
        DataError: The frames or shards are not on this machine.
    """
    if data.source == "videos":
        return {"flow": data.flow, "short_side": record.short_side}
    if data.source == "shards" and data.shards is not None:
        packed = load_index(shard_storage(data.shards, modality)).settings
        if packed.get("source") == "videos":
            return {"flow": packed.get("flow"), "short_side": packed.get("short_side")}
        if packed.get("extraction"):
            return cast(dict[str, Any], packed["extraction"])  # read by `frames_made`
        with suppress(DataError):  # packed by an earlier version, perhaps from the frames that are there now
            return extraction_settings(record.frames_root(modality))
        return None
    return extraction_settings(record.frames_root(modality))


def other_flow(name: str, trained: str | None, computed: str, asked: str = AUTO) -> str | None:
    """Return what is to be said of a flow network that reads `computed` flow of a raw video; None: nothing."""
    if trained is None and asked == AUTO:
        return (
            f"{name}: nothing says which kind of flow it was trained on; it reads {computed} here, and "
            f"--flow-algorithm {' or '.join(kind for kind in ALGORITHMS if kind != computed)} if asked for"
        )
    if trained in (None, computed):
        return None
    advice = (
        f"--flow-algorithm {trained} is closer (Python: `reading_of(run, flow={trained!r})`)"
        if trained in ALGORITHMS
        else f"`two-stream extract --flow {trained}` and `two-stream evaluate` are closer"
    )
    return f"{name}: was trained on {trained} flow and reads {computed} here; {advice}"


def other_frames(
    run: str, then: FramesMade, now: FramesMade, record: Record, modality: Modality
) -> str | None:
    """Return what is to be said of a network whose data set has other frames than it was trained on; None: nothing."""
    keys = [key for key in FramesMade.model_fields if modality == "flow" or not key.startswith("flow")]
    first = next((key for key in keys if getattr(then, key) != getattr(now, key)), None)
    if first is None:
        return None
    old, new = (f"{first} {getattr(made, first)}" for made in (then, now))
    return f"{run}: was trained on frames of {old}, and those of {record.name} are of {new}; extract them as they were"
