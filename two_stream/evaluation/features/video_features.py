"""Writes the features of videos outside a data set: one `.npy` file and one JSON file per video.

Windows are written to the file while the video is decoded, so the memory does not depend on the length of a video.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from two_stream.config.schema import EvaluateOptions
from two_stream.errors import SettingsError, TwoStreamError, VideoError
from two_stream.evaluation.features.cache import weights_sha256
from two_stream.evaluation.scoring.network import example_clip, resolve_evaluation
from two_stream.evaluation.scoring.video import VideoInput, VideoResult, clip_spans, score_sources
from two_stream.recognizer import Recognizer
from two_stream.runtime import distributed
from two_stream.runtime.console import note, progress, warn
from two_stream.runtime.files import clear_leftovers, fsync_dir, fsync_file, room_for, unfinished, write_json
from two_stream.runtime.text import json_text, parse_json
from two_stream.types import InputSpec

FACTS = "_features.json"
TABLE = "_annotations.json"
"""file with the layout `actionformer`"""


@dataclass(frozen=True)
class VideoFeatures:
    """A network and how its features of videos are computed and written."""

    model: Recognizer
    source: str
    """run folder or name of the network"""
    options: EvaluateOptions
    """views with one crop"""
    reading: VideoInput
    maps: bool = False
    """whether to write feature maps `(C, T, H, W)` of each window instead of vectors"""
    actionformer: bool = False
    """whether windows are an exact grid, and `TABLE` is written: the layout that ActionFormer and OpenTAD read"""

    def facts(self) -> dict[str, Any]:
        """Return what determines the values of the features."""
        model, options = self.model, self.options
        exact = "paper" in (self.reading.sampling, self.reading.protocol)
        done = resolve_evaluation(model, options, model.device, exact=exact)
        return {
            "format": 1,
            "network": self.source,
            "weights_sha256": weights_sha256(model.backbone if self.maps else model, skip="classifier."),
            "content": "feature maps (C, T, H, W)" if self.maps else "vectors (D)",
            "input": _given(model.spec),
            "reading": _given(self.reading) | {"mirror": None},  # there are no mirrored crops
            "evaluate": done.model_dump(
                mode="json", include={"views", "num_clips", "step", "precision", "fold"}
            ),
            "layout": "actionformer" if self.actionformer else "plain",
        }

    def shape(self) -> tuple[int, ...]:
        """Return the shape of a window.

        Raises:
            SettingsError: Feature maps of a network with several pathways are requested.
        """
        model = self.model.eval()
        with torch.inference_mode():
            clip = model.normalised(example_clip(model))
            if not self.maps:
                return tuple(model.vectors_of_normalised(clip).shape[1:])
            found = model.features_to_store(clip, maps=True)
        if len(found) > 1:
            raise SettingsError(
                f"--maps: the network has {len(found)} pathways with maps of different sizes; omit --maps"
            )
        return tuple(found[0].shape[1:])

    def grid(self, frames: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first and last image (from 1) of each window that is written."""
        spans = np.array(clip_spans(self.options, self.model.spec, frames, self.reading.sampling))
        # the last window ends with the video, usually off the grid
        kept = (spans[:, 0] - 1) % self.step == 0 if self.actionformer else slice(None)
        first, last = spans[kept].T
        return first, last

    @cached_property
    def step(self) -> int:
        """Number of images between the starts of windows."""
        spec = self.model.spec
        frames = 4 * (spec.clip_length * spec.stride + (self.options.step or 0)) + 1
        spans = clip_spans(self.options, spec, frames, self.reading.sampling)
        return spans[1][0] - spans[0][0]


def _given(options: InputSpec | VideoInput) -> dict[str, Any]:
    """Return the fields; without a frame rate, `fps` is left out, as in folders of earlier versions."""
    return {name: value for name, value in asdict(options).items() if (name, value) != ("fps", None)}


def write_video_features(
    features: VideoFeatures, sources: Sequence[tuple[str, Path]], out: Path, workers: int = 2
) -> dict[str, str]:
    """Write the features of videos below a folder, and return the reason for each video that cannot be read.

    For each video, `ID.npy` contains float32 `(windows, D)` or `(windows, C, T, H, W)`, and `ID.json` the frames and
    times of the windows. A finished video is skipped. With several processes (`torchrun`), each process takes a share.

    Raises:
        SettingsError: The folder contains features of another network or with other settings.
        ScoreError: The features are not finite.
    """
    features.grid(features.model.spec.clip_length)  # wrong views are reported before anything is written
    shape, facts = features.shape(), features.facts()
    _check_facts(out / FACTS, facts)
    share = sources[distributed.rank() :: distributed.world_size()]
    left = [(name, path) for name, path in share if not _is_finished(out, name, path)]
    if len(left) < len(share):
        note(f"{out}: {len(share) - len(left)} of {len(share)} videos are finished already")
    clear_leftovers({(out / name).parent for name, _ in left})
    files: dict[str, _RowFile] = {}

    def storage(name: str, rows: tuple[int, int]) -> _RowFile:
        files[name] = _RowFile(out / f"{name}.npy", (rows[0], *shape))
        return files[name]

    failed: dict[str, str] = {}
    places = dict(left)
    results = score_sources(
        features.model,
        left,
        features.options,
        features.reading,
        compute=partial(_maps, count=prod(shape)) if features.maps else Recognizer.vectors_of_normalised,
        workers=min(workers, len(left)),
        storage=storage,
    )
    try:
        with progress("storing features", len(left)) as advance:
            for name, result in results:
                try:
                    if isinstance(result, TwoStreamError):
                        raise result
                    _finish(features, files.pop(name), out, name, places[name], result)
                except (VideoError, OSError) as error:
                    failed[name] = str(error)
                    warn(f"left out: {error}")
                    if name in files:
                        files.pop(name).discard()
                advance()
    finally:
        for file in files.values():
            file.discard()
    if features.actionformer:
        _write_table(features, [name for name, _ in sources], out, shape[0])
    return failed


def _maps(network: Recognizer, x_BCTHW: torch.Tensor, count: int) -> torch.Tensor:
    (found,) = network.features_to_store(x_BCTHW, maps=True)
    return found.reshape(-1, count)


class _RowFile:
    """A `.npy` file whose rows are written as they are computed; it gets its name when it is complete."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path, self.shape = path, shape
        path.parent.mkdir(parents=True, exist_ok=True)
        self._part = unfinished(path)
        self._file = self._part.open("wb")
        self._start = self._write_header(shape)
        self._bytes = 4 * prod(shape[1:])

    def _write_header(self, shape: tuple[int, ...]) -> int:
        self._file.seek(0)  # numpy leaves room for another number of rows
        np.lib.format.write_array_header_1_0(
            self._file, {"descr": "<f4", "fortran_order": False, "shape": shape}
        )
        return self._file.tell()

    def __len__(self) -> int:
        return self.shape[0]

    def __setitem__(self, rows: Sequence[int], values: NDArray[np.float32]) -> None:
        with room_for(self.path):
            for row, value in zip(rows, values, strict=True):
                self._file.seek(self._start + row * self._bytes)
                self._file.write(np.ascontiguousarray(value, "<f4").tobytes())

    def finish(self, count: int) -> None:
        """Keep the first `count` rows, and give the file its name."""
        with room_for(self.path):
            self._write_header((count, *self.shape[1:]))
            self._file.truncate(self._start + count * self._bytes)
            self._file.close()
            fsync_file(self._part)
            self._part.replace(self.path)
            fsync_dir(self.path.parent)

    def discard(self) -> None:
        """Remove the unfinished file."""
        self._file.close()
        with suppress(FileNotFoundError):
            self._part.unlink()


def _finish(
    features: VideoFeatures, file: _RowFile, out: Path, name: str, path: Path, result: VideoResult
) -> None:
    windows = [result.span(*window) for window in zip(*(one.tolist() for one in features.grid(result.seen)))]
    first, last, start, end = map(list, zip(*windows))
    times = result.times
    if times is None and features.actionformer:
        file.discard()
        raise VideoError(path, "has no times, which the layout actionformer requires")
    if result.damage:
        warn(f"{path}: {result.damage}; only the frames that could be decoded were used")
    state = _file_state(path)
    file.finish(len(windows))
    facts = {
        "frames": result.frames,
        "duration": None if times is None else float(times[-1]),
        "windows": len(windows),
        "first_frame": first,
        "last_frame": last,
        "start_s": None if times is None else [round(time, 6) for time in start],
        "end_s": None if times is None else [round(time, 6) for time in end],
        "damage": result.damage,
        "file": state,
    }
    write_json(out / f"{name}.json", facts, indent=None)


def _file_state(path: Path) -> list[int]:
    """Return the size and the time of the last change of a file or folder."""
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; empty if it is missing or damaged."""
    with suppress(OSError, ValueError):
        return dict(parse_json(path.read_text(encoding="utf-8")))
    return {}


def _is_finished(out: Path, name: str, path: Path) -> bool:
    if name in (Path(FACTS).stem, Path(TABLE).stem):
        raise SettingsError(f"{path}: {name}.json is reserved for the features' settings; rename the video")
    if not path.exists() or not (out / f"{name}.npy").is_file():
        return False
    return _read(out / f"{name}.json").get("file") == _file_state(path)


def _check_facts(path: Path, facts: dict[str, Any]) -> None:
    """Write the facts, or compare them with those of an earlier call.

    Raises:
        SettingsError: They differ.
    """
    plain = parse_json(json_text(facts))
    stored = path.parent.is_dir() and next(path.parent.rglob("*.npy"), None) is not None
    if not path.is_file() or not stored:
        if stored:
            raise SettingsError(f"{path.parent}: contains other .npy files; choose another --npy")
        write_json(path, plain)
        return
    known = _read(path)
    for key, value in plain.items():
        old = known.get(key)
        names = [key]
        if isinstance(value, dict) and isinstance(old, dict):
            names = [f"{key}.{name}" for name in value if old.get(name) != value[name]] or names
        if old != value and key != "network":
            raise SettingsError(
                f"{path.parent}: contains features with another {names[0]} (see {path.name}); use the same settings, "
                "or choose another --npy"
            )


def _write_table(features: VideoFeatures, names: Sequence[str], out: Path, width: int) -> None:
    """Write an annotation file without annotations, and the settings of the grid, for ActionFormer and OpenTAD."""
    rate = features.model.spec.fps or features.reading.fps  # of the frames that the grid counts
    known = {name: _read(out / f"{name}.json") for name in names if (out / f"{name}.npy").is_file()}
    entries = {
        name: {
            "subset": "test",
            "duration": facts["duration"],
            "frame": facts["frames"] if rate is None else round(rate * facts["duration"]),
            "fps": rate or facts["frames"] / facts["duration"],
            "annotations": [],
        }
        for name, facts in known.items()
        if facts.get("duration")
    }
    spec = features.model.spec
    length = spec.clip_length * spec.stride
    grid = {
        "feat_stride": features.step,
        "num_frames": length,
        "offset_frames": length // 2,
        "default_fps": None,
        "input_dim": width,
    }
    write_json(out / TABLE, {**grid, "database": entries})
