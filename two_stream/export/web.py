"""Writes a folder of static files that runs an exported network in a browser, with ONNX Runtime Web.

The page reads `model.json`, which contains what it needs from the card and the settings of the run.
"""

from __future__ import annotations

import atexit
import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from two_stream.data.clips.sampling import evaluation_protocol, sampling_of
from two_stream.data.clips.transforms import view_spec
from two_stream.errors import ExportError, SettingsError
from two_stream.evaluation.runs.run import AnyRun, aggregation_of, reading_of
from two_stream.evaluation.scoring.views import crop_views
from two_stream.export.card import ExportCard
from two_stream.recognizer import Recognizer
from two_stream.runtime.console import note
from two_stream.runtime.files import cache_folder, replaced_folder, write_cached, write_text
from two_stream.runtime.plotting import DARK, LIGHT
from two_stream.runtime.text import json_text, parse_json
from two_stream.types import InputSpec

VERSION = "1.30.0"
"""version of ONNX Runtime Web"""
PACKAGE = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""digest of the package in npm's registry"""
RUNTIME = {
    "ort.wasm.bundle.min.mjs": "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
    "ort-wasm-simd-threaded.wasm": "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
}
"""files of the runtime and their digests: the module, and the machine code"""
CDN = "https://cdn.jsdelivr.net"
FORMAT = "two_stream_web"
FACTS, NETWORK = "model.json", "model.onnx"
VIDEOS = (".mp4", ".m4v", ".mov", ".webm", ".ogv")
_TEMPLATES = Path(__file__).parent / "templates"
_PAGES = ("index.html", "style.css", "page.js", "frames.js", "video.js", "worker.js")
_OWN = {*_PAGES, FACTS, NETWORK, *RUNTIME, "checksums.json", *(f"example{suffix}" for suffix in VIDEOS)}
_STANDARD = ("single", "multi", "uniform", "sliding")
_SEGMENTS = ("segments-single", "segments-twice", "segments-uniform")
_PROTOCOLS = (*_STANDARD, *_SEGMENTS, "paper-single", "paper-multi")
"""protocols of `sample_clips` that `frames.js` computes"""
_SEGMENT_DISTANCE = 4
"""least distance between segments of several frames in the images of a camera, as in `two-stream stream`"""


class WebPage(NamedTuple):
    """A written folder."""

    folder: Path
    card: ExportCard
    size: int
    """bytes of all files that the page loads from the folder"""


def export_web(
    run: AnyRun[Recognizer],
    out: Path,
    export: Callable[[Path], tuple[Path, ExportCard]],
    runtime: str = "npm",
    example: Path | None = None,
) -> WebPage:
    """Write the page of a network. An earlier page is replaced when the new one is complete.

    Args:
        run: An RGB run.
        out: The folder to write.
        export: Writes the verified ONNX file to a path, and returns it with its card.
        runtime: `npm` (downloads the package), `cdn` (the page loads the files from jsDelivr), or a folder.
        example: A video that the page offers.

    Raises:
        SettingsError: The folder contains other files, a file is missing, or the page cannot run such a network.
        ExportError: The runtime cannot be downloaded; or as for `export_run`.
    """
    clip, views, live = _clip_facts(run), _views(run, run.experiment.evaluate.crops), _views(run, "center")
    _check_folder(out)
    if example is not None and (not example.is_file() or example.suffix.lower() not in VIDEOS):
        raise SettingsError(f"{example}: expected a video file for browsers ({', '.join(VIDEOS)})")
    files = find_runtime(runtime)
    with replaced_folder(out) as folder:
        path, card = export(folder / NETWORK)
        for source in files.values():
            if source is not None:
                shutil.copyfile(source, folder / source.name)
        if example is not None:
            shutil.copyfile(example, folder / f"example{example.suffix.lower()}")
        module, wasm = (_runtime_file(name, source) for name, source in files.items())
        reading = reading_of(run)
        facts = {
            "format": FORMAT,
            "name": card.name,
            "class_names": card.class_names,
            "multi_label": run.multi_label,
            "precision": card.precision,
            "input": card.inputs[0].name,
            "shape": [1 if size == "batch" else size for size in card.inputs[0].shape],
            "stored": {"short_side": reading.short_side, "size": reading.size},
            "fps": reading.fps,
            "clip": clip,
            "aggregate": aggregation_of(run.experiment.evaluate, run.multi_label),
            "mirror_labels": reading.mirror.labels,
            "views": live if card.stream else views,
            "live": {**live, "window": _window(run.model.spec)},
            "stream": card.stream.model_dump(mode="json") if card.stream else None,
            "network": {"url": NETWORK, "bytes": path.stat().st_size, "integrity": integrity_of(path)},
            "runtime": {"version": VERSION, "module": module, "wasm": wasm},
            "example": f"example{example.suffix.lower()}" if example else None,
        }
        write_text(folder / FACTS, json_text(facts, indent=1) + "\n")
        for name in _PAGES:
            write_text(folder / name, _page(name, f" {CDN}" if runtime == "cdn" else ""))
    return WebPage(out, card, sum(file.stat().st_size for file in out.iterdir()))


def _clip_facts(run: AnyRun[Recognizer]) -> dict[str, Any]:
    """Return how the clips of a video are chosen; raise an error for networks that the page cannot run."""
    spec, evaluate = run.model.spec, run.experiment.evaluate
    if spec.modality == "flow":
        raise SettingsError(
            f"{run.source}: a flow network cannot run in a browser, because the page computes no flow; use an RGB run"
        )
    sampling = sampling_of(spec, run.experiment.data.sampling)
    protocol, count = evaluation_protocol(sampling, evaluate.views, evaluate.num_clips)
    if protocol not in _PROTOCOLS:
        raise SettingsError(
            f"{run.source}: the page does not know the frame choice {protocol!r} (`data.sampling: {sampling}`); use a "
            "run with `data.sampling` standard or paper"
        )
    return {
        "protocol": protocol,
        "length": spec.clip_length,
        "stride": spec.stride,
        "segments": spec.segments,
        "clips": count,
        "step": evaluate.step,
    }


def _views(run: AnyRun[Recognizer], crops: str) -> dict[str, Any]:
    """Return the size of resized frames, and the boxes `[y0, x0, y1, x1, mirrored]` of the crops."""
    reading = reading_of(run)
    spec = view_spec(run.model.spec, crops, whole=reading.whole_frame)
    boxes = [[*view.box, view.flip] for view in crop_views(crops, spec, reading.mirror)]
    return {"resize": spec.resize, "boxes": boxes}


def _window(spec: InputSpec) -> list[int]:
    """Return which of the newest frames of a camera form a clip, as in `two-stream stream`."""
    segments = spec.segments or spec.clip_length
    frames = spec.clip_length // segments
    apart = spec.stride if frames == 1 else max(_SEGMENT_DISTANCE, frames * spec.stride)
    return [start * apart + place * spec.stride for start in range(segments) for place in range(frames)]


def _check_folder(out: Path) -> None:
    """Check that a folder is missing, empty, or an earlier page, which may be replaced.

    Raises:
        SettingsError: It contains another file, or is a file.
    """
    if out.exists() and not out.is_dir():
        raise SettingsError(f"{out}: is a file; expected the folder to write the page to")
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if not names:
        return
    strange = [name for name in names if name not in _OWN]
    try:
        known = parse_json((out / FACTS).read_text(encoding="utf-8")).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        known = False
    if strange or not known:
        raise SettingsError(
            f"{out / (strange or names)[0]}: this file is not part of an earlier page, so the folder is not replaced; "
            "choose another folder with --out"
        )


def _page(name: str, cdn: str) -> str:
    """Return the text of a file of the page."""
    policy = (
        f"default-src 'none'; connect-src 'self'{cdn}; script-src 'self' blob: 'wasm-unsafe-eval'; "
        "worker-src 'self' blob:; style-src 'self'; img-src 'self' data:; media-src 'self' blob:; base-uri 'none'; "
        "form-action 'none'"
    )
    text = (_TEMPLATES / name).read_text(encoding="utf-8").replace("@policy@", policy)
    for theme, colours in (("@light@", LIGHT), ("@dark@", DARK)):
        text = text.replace(theme, " ".join(f"--{key}: {value};" for key, value in colours.items()))
    return text


def integrity_of(path: Path, algorithm: str = "sha384") -> str:
    """Return the digest of a file as in the attribute `integrity` of HTML, for example `sha384-…`."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, algorithm).digest()
    return f"{algorithm}-{base64.b64encode(digest).decode()}"


def _runtime_file(name: str, source: Path | None) -> dict[str, str]:
    if source is None:
        return {"url": f"{CDN}/npm/onnxruntime-web@{VERSION}/dist/{name}", "integrity": RUNTIME[name]}
    return {"url": name, "integrity": integrity_of(source)}


def find_runtime(runtime: str) -> dict[str, Path | None]:
    """Return the files of ONNX Runtime Web; None for files that the page loads from a CDN.

    Raises:
        SettingsError: The folder does not contain them.
        ExportError: The package cannot be downloaded, or is damaged.
    """
    if runtime == "cdn":
        return dict.fromkeys(RUNTIME)
    if runtime != "npm":
        folders = [Path(runtime), Path(runtime, "dist"), Path(runtime, "package", "dist")]
        found = next((one for one in folders if all((one / name).is_file() for name in RUNTIME)), None)
        if found is None:
            raise SettingsError(
                f"--runtime {runtime}: expected npm, cdn, or a folder with {' and '.join(RUNTIME)} (the unpacked "
                f"package onnxruntime-web {VERSION})"
            )
        return {name: found / name for name in RUNTIME}
    cache = cache_folder()
    if cache is None:
        cache = Path(tempfile.mkdtemp(prefix="two-stream-"))
        atexit.register(shutil.rmtree, cache, ignore_errors=True)
    kept = cache / f"onnxruntime-web-{VERSION}"
    if not all((kept / name).is_file() and integrity_of(kept / name) == RUNTIME[name] for name in RUNTIME):
        _download(kept)
    return {name: kept / name for name in RUNTIME}


def _download(folder: Path) -> None:
    """Download the package with npm, check it, and store the files of the runtime in a folder."""
    asked = f"onnxruntime-web@{VERSION}"
    remedy = f"unpack {asked} yourself and give its folder with --runtime FOLDER, or use --runtime cdn"
    npm = shutil.which("npm")
    if npm is None:
        raise ExportError(f"npm, which downloads {asked}, is not installed; install Node.js, {remedy}")
    note(f"downloading {asked} with npm")
    with tempfile.TemporaryDirectory() as place:
        command = [npm, "pack", asked, "--ignore-scripts", "--pack-destination", place]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
        packed = next(Path(place).glob("*.tgz"), None)
        if done.returncode or packed is None:
            lines = [line for line in done.stderr.splitlines() if line.startswith("npm error")]
            reason = lines[0].removeprefix("npm error").strip() if lines else f"exit code {done.returncode}"
            raise ExportError(f"npm cannot download {asked} ({reason}); {remedy}")
        if integrity_of(packed, "sha512") != PACKAGE:
            raise ExportError(f"npm downloaded another {asked} than expected (its SHA-512 differs); {remedy}")
        with tarfile.open(packed) as archive:
            for name in RUNTIME:
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None
                if not write_cached(folder / name, member.read()):
                    raise ExportError(
                        f"{folder / name}: cannot be written; set TWO_STREAM_CACHE to another folder"
                    )
