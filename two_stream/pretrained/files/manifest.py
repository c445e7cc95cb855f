"""The list of published weights: where each file is, how it is recognised, what it was trained for."""

from __future__ import annotations

import hashlib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from two_stream.config.base import Options, PositiveInt
from two_stream.config.load import nearest, read_yaml, validate_settings
from two_stream.errors import CheckpointError, SettingsError
from two_stream.pretrained.starter import installed_file

MANIFEST = Path("weights") / "manifest.yaml"
RECORDED = ".sha256"
"""What is added to a file's name for the file that keeps its hash from the day it was fetched."""

_Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Hex40 = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
_Prefix = Annotated[str, Field(pattern=r"^[0-9a-f]{6,63}$")]
_Url = Annotated[str, Field(pattern=r"^(https?|file)://\S+$")]


class Preprocessing(Options):
    """How the clips looked that the network was trained on."""

    frames: PositiveInt
    """frames of a clip"""
    size: PositiveInt
    """height and width of the crop, pixels"""
    value_range: tuple[float, float]
    """of a pixel before mean and standard deviation"""
    mean: tuple[float, ...]
    std: tuple[float, ...]


class WeightsClasses(Options):
    """What the classifier tells apart."""

    count: PositiveInt
    set: str
    """name of the set of classes"""


class PublishedFile(Options):
    """One published file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    title: str
    file: Annotated[str, Field(pattern=r"^[\w][\w.+-]*$")]
    """local file name"""
    url: _Url | None = None
    """direct link; none where there is only a page"""
    page: _Url | None = None
    """page from which a person may fetch it"""
    mirrors: tuple[_Url, ...] = ()
    package: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")] | None = None
    """package of the Python index that brings the file"""
    sha256: _Hex64 | None = None
    sha256_prefix: _Prefix | None = None
    """first digits of the SHA-256, as torch.hub puts them into a file's name"""
    git_blob: _Hex40 | None = None
    """id of the file in the git repository that publishes it (SHA-1 of `blob <size>\\0` and the content)"""
    size: PositiveInt | None = None
    """bytes"""
    hash_source: str | None = None
    """who says so"""
    licence: str
    """of the weights where it is stated, else of the code that publishes them, else `unknown`"""
    model: str | None = None
    """a network of the zoo that the file fits"""
    modality: Literal["rgb", "flow"]
    layout: str
    """how its tensors are named"""
    preprocessing: Preprocessing
    classes: WeightsClasses
    source: str
    """paper and code"""
    notes: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> PublishedFile:
        if self.url is None and self.page is None:
            raise ValueError(f"{self.name}: neither `url` nor `page`; say where the file comes from")
        if self.sha256 and self.sha256_prefix and not self.sha256.startswith(self.sha256_prefix):
            raise ValueError(f"{self.name}: `sha256_prefix` is not how `sha256` begins")
        channels = 3 if self.modality == "rgb" else 2
        if {len(self.preprocessing.mean), len(self.preprocessing.std)} - {1, channels}:
            raise ValueError(f"{self.name}: {self.modality} has {channels} channels; mean and std differ")
        return self

    @property
    def published_hash(self) -> str:
        """How well a download can be checked: `sha256`, `git`, the first digits of a SHA-256, or `no`."""
        if self.sha256:
            return "sha256"
        if self.git_blob:
            return "git"
        return f"{len(self.sha256_prefix)} digits" if self.sha256_prefix else "no"


class Manifest(Options):
    """All published files that are known."""

    entries: tuple[PublishedFile, ...]

    @field_validator("entries")
    @classmethod
    def _unique(cls, entries: tuple[PublishedFile, ...]) -> tuple[PublishedFile, ...]:
        for what in ("name", "file"):
            values = [getattr(entry, what) for entry in entries]
            doubled = next((value for value in values if values.count(value) > 1), None)
            if doubled:
                raise ValueError(f"{what} {doubled!r} is given twice")
        return entries

    def find(self, name: str) -> PublishedFile:
        """Return the entry of that name, or whose file is so called.

        Raises:
            SettingsError: There is none; the nearest name is given.
        """
        for entry in self.entries:
            if name in (entry.name, entry.file):
                return entry
        raise SettingsError(
            f"no published weights are called {name!r}{nearest(name, [entry.name for entry in self.entries])}"
        )

    def matching(self, pattern: str) -> list[PublishedFile]:
        """Return the entries whose name, file, model or title matches a shell pattern or contains the word."""
        word = pattern.lower()
        return [
            entry
            for entry in self.entries
            if any(
                fnmatchcase(text.lower(), word) or (not set("*?[") & set(word) and word in text.lower())
                for text in (entry.name, entry.file, entry.model or "", entry.title)
            )
        ]


def find_manifest(given: Path | None = None) -> Path:
    """Return the manifest to read: the given one, else that of the working folder, else that of the checkout.

    Raises:
        SettingsError: There is none.
    """
    if given is not None:
        if given.is_file():
            return given
        raise SettingsError(f"{given}: no such manifest")
    checkout = Path(__file__).resolve().parents[3] / MANIFEST
    for path in (MANIFEST, checkout):
        if path.is_file():
            return path
    raise SettingsError(
        f"no {MANIFEST} here nor beside the package; run this in a checkout of two-stream or name one (--manifest FILE)"
    )


def read_published(path: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        SettingsError: Naming the file, the key, the value and what was expected.
    """
    return validate_settings(Manifest, read_yaml(path), path)


def local_file(entry: PublishedFile, folder: Path) -> Path:
    """Return where a file is: in the folder, else in its installed package; where neither, its place in the folder."""
    file = folder / entry.file
    installed = installed_file(entry.package) if entry.package and not file.is_file() else None
    return installed or file


def hashes(file: Path) -> dict[str, str]:
    """Return a file's SHA-256 and the id that git gives it, in hexadecimal, reading it once.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        with file.open("rb") as opened:
            size = file.stat().st_size
            whole = hashlib.sha256()
            blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            while block := opened.read(1 << 20):
                whole.update(block)
                blob.update(block)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from None
    return {"sha256": whole.hexdigest(), "git_blob": blob.hexdigest()}


def mismatch(entry: PublishedFile, file: Path, found: dict[str, str] | None = None) -> str | None:
    """Compare a file with what is published of it; none when all agrees, else expected and actual in one line."""
    size = file.stat().st_size
    if entry.size is not None and size != entry.size:
        return f"expected {entry.size} bytes, got {size}"
    found = found or hashes(file)
    if entry.sha256 and found["sha256"] != entry.sha256:
        return f"expected sha256 {entry.sha256}, got {found['sha256']}"
    if entry.sha256_prefix and not found["sha256"].startswith(entry.sha256_prefix):
        return f"expected sha256 {entry.sha256_prefix}…, got {found['sha256']}"
    if entry.git_blob and found["git_blob"] != entry.git_blob:
        return f"expected git blob {entry.git_blob}, got {found['git_blob']}"
    return None


def recorded(file: Path) -> str | None:
    """Return the SHA-256 that was noted when the file was fetched, or none.

    Raises:
        CheckpointError: The note is not in the form of `sha256sum`.
    """
    note = file.with_name(file.name + RECORDED)
    if not note.is_file():
        return None
    words = note.read_text(encoding="utf-8", errors="replace").split()
    if not words or len(words[0]) != 64 or set(words[0].lower()) - set("0123456789abcdef"):
        raise CheckpointError(f"{note}: no line of sha256sum in it; delete it and fetch the file again")
    return words[0].lower()
