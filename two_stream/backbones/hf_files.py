"""Reads the configuration and the preprocessing of a model of `transformers` from a folder or the hub."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from two_stream.backbones.base import reason
from two_stream.backbones.hf_architectures import ARCHITECTURES, Architecture
from two_stream.config.backbones import HfVideo
from two_stream.errors import SettingsError
from two_stream.runtime.console import note
from two_stream.runtime.text import parse_json

_PREPROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class TransformerPreprocessing:
    """Range, mean and standard deviation of the pixel values that a model expects."""

    value_range: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def resolve_architecture(options: HfVideo) -> HfVideo:
    """Return options that contain the architecture and configuration, so that the network can be built without `model`.

    Raises:
        SettingsError: `model` has no readable config.json, or one for a different kind of network.
    """
    if options.architecture is not None or options.model is None:
        return options
    path = _find(options.model, "config.json")
    if path is None:
        raise SettingsError(
            f"{options.model}: no config.json; expected a folder that `save_pretrained` wrote"
        )
    given = _json(path)
    architecture = given.get("model_type")
    if architecture not in ARCHITECTURES:
        raise SettingsError(
            f"{path}: model_type {architecture!r}; expected a video transformer: {', '.join(ARCHITECTURES)}"
        )
    fields = _defaults(ARCHITECTURES[architecture])
    chosen = {key: value for key, value in given.items() if key in fields and fields[key] != value}
    config = {key: value for key, value in chosen.items() if isinstance(value, (bool, int, float, str, list))}
    return options.model_copy(update={"architecture": architecture, "config": config | options.config})


def configuration(options: HfVideo) -> Any:
    """Return the library's configuration for resolved options.

    Raises:
        SettingsError: An unknown key or a value that the library rejects.
    """
    assert options.architecture is not None
    architecture = ARCHITECTURES[options.architecture]
    known = _defaults(architecture)
    for key in options.config:
        if key not in known:
            close = difflib.get_close_matches(key, list(known), n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}"
            raise SettingsError(f"`backbone.config`: {options.architecture} has no {key!r}; {hint}")
    from huggingface_hub.errors import StrictDataclassError

    try:
        made = _class(architecture.config)(**options.config)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise SettingsError(
            f"`backbone.config`: {options.architecture} rejects the configuration ({reason(error)})"
        ) from None
    side = getattr(made, architecture.side)
    if not isinstance(side, int):
        raise SettingsError(
            f"`backbone.config`: {architecture.side} is {side}; expected one number, the side of a square"
        )
    time, space = architecture.patch(made)
    frames = getattr(made, architecture.frames)
    if frames % time or side % space:
        raise SettingsError(
            f"`backbone.config`: {frames} frames of {side}² are not a whole number of patches of {time}×{space}²"
        )
    return made


def preprocessing(options: HfVideo) -> TransformerPreprocessing:
    """Return the values in the preprocessing file of `model`, or the authors' values if there is no such file."""
    assert options.architecture is not None
    usual = ARCHITECTURES[options.architecture]
    default = TransformerPreprocessing(usual.value_range, usual.mean, usual.std)
    if options.model is None:
        return default
    path = next((found for name in _PREPROCESSORS if (found := _find(options.model, name, quiet=True))), None)
    if path is None:
        return default
    given = _json(path)
    scale = float(given.get("rescale_factor", 1 / 255)) if given.get("do_rescale", True) else 1.0
    low = -1.0 if given.get("offset") else 0.0
    high = 255 * scale + low
    if not given.get("do_normalize", True):
        return TransformerPreprocessing((low, high), (0.0,) * 3, (1.0,) * 3)
    mean, std = given.get("image_mean", usual.mean), given.get("image_std", usual.std)
    return TransformerPreprocessing((low, high), tuple(map(float, mean)), tuple(map(float, std)))


def network_class(architecture: Architecture) -> Any:
    """Return the library's model class."""
    return _class(architecture.model)


def _class(name: str) -> Any:
    import transformers

    return getattr(transformers, name)


def _defaults(architecture: Architecture) -> dict[str, Any]:
    """Return the default values of an architecture's configuration, without the keys of `PretrainedConfig`."""
    config = _class(architecture.config)()
    common = _class("PretrainedConfig")().to_dict()
    return {key: value for key, value in config.to_dict().items() if key not in common}


def _find(model: str, name: str, *, quiet: bool = False) -> Path | None:
    """Return a file from a folder, the cache or the hub; None if the model exists but has no such file.

    Raises:
        SettingsError: The place cannot be reached, unless `quiet`.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    if name == "config.json":  # the first of a model's files
        note(f"loading {model} (`backbone.model`) from the local cache or the Hugging Face hub")
    try:
        return Path(hf_hub_download(model, name))
    except (OSError, HFValidationError, EntryNotFoundError) as error:
        if quiet or (
            isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
        ):
            return None
        named = isinstance(error, HFValidationError)
        said = "not a valid name on the hub" if named else reason(error)
        raise SettingsError(
            f"`backbone.model` {model}: no such folder, and the Hugging Face hub does not provide it ({said}); use a "
            "folder that contains config.json, or set `backbone.architecture`"
        ) from None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(found, dict):
        raise SettingsError(f"{path}: expected a JSON object")
    return found
