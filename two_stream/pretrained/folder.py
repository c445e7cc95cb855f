"""Reads and writes model folders. One safetensors file contains the weights and all options that build the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from two_stream.backbones.base import Backbone, LibraryBackbone
from two_stream.config.backbones import TimmNet
from two_stream.config.load import validate_settings
from two_stream.config.model import ModelOptions
from two_stream.errors import CheckpointError
from two_stream.pretrained.files.manifest import STARTERS, install_command, installed_file
from two_stream.pretrained.layouts import CARRIED
from two_stream.pretrained.layouts.efficientnet_lite import rename_to_timm
from two_stream.pretrained.reading import WEIGHTS, read_metadata, read_state, weights_file
from two_stream.recognizer import Recognizer
from two_stream.runtime.console import note
from two_stream.runtime.files import CHECKSUMS, atomic_path, verify_checksums, write_checksums
from two_stream.runtime.text import is_utf8, json_text, parse_json
from two_stream.surgery import Alteration, alter, describe_alterations, read_alterations


def load_library(model: Recognizer) -> str | None:
    """Load the pretrained weights of a library into the backbone if its option `pretrained` is set.

    Args:
        model: Its backbone is changed in place; head, classifier and the block of FRAB or FRMB are not.

    Returns:
        A sentence that names the source of the weights; None if no weights are requested.

    Raises:
        CheckpointError: They cannot be read or downloaded, or do not fit; names the local alternative.
    """
    backbone, options = model.backbone, model.options.backbone
    if not isinstance(backbone, LibraryBackbone) or not backbone.options.pretrained:
        return None
    file = options.weights if isinstance(options, TimmNet) else None
    package = STARTERS.get(options.name) if isinstance(options, TimmNet) and file is None else None
    if package is not None:
        file = installed_file(package)
    if file is not None:
        source = backbone.load_pretrained(rename_to_timm(read_state(file)), str(file))
        return f"the backbone starts from {source}"
    name = getattr(backbone.options, "name", None) or getattr(backbone.options, "model", "")
    note(
        f"loading the pretrained weights of {name} from the local cache (they are downloaded if they are not there)"
    )
    try:
        return f"the backbone starts from {backbone.load_pretrained()}"
    except CheckpointError as error:
        if package is None:
            raise
        raise CheckpointError(
            f"{error}, or run `{install_command(package)}` to install the weights"
        ) from None


FORMAT = "two_stream"
VERSION = 1
"""Increased when a reader of an older version could misread the file."""
ALTERED_VERSION = 2
"""Version of files with a compressed network, which a reader of version 1 would not build correctly."""


def write_model(
    folder: Path,
    model: Recognizer,
    meta: dict[str, Any],
    carried: Mapping[str, torch.Tensor] | None = None,
    *,
    checksums: bool = True,
) -> None:
    """Write `model.safetensors`, whose header contains the model's options and `meta`, and the checksums of the folder.

    The texts in the header are `format`, `version`, `model` (the options as JSON), `num_classes`, `meta` (JSON: class
    names, epoch, extraction of the training frames) and, for a compressed network, `altered`. The file is written
    atomically.

    Args:
        folder: Created if missing. To replace the weights and the training state together, pass the folder that
            `runtime.files.replaced_folder` yields.
        model: The model, on any device.
        meta: JSON values, for example `{"class_names": [...], "epoch": 3}`.
        carried: Tensors of a published file that the model does not use; `export_checkpoint` restores them.
        checksums: Whether to write the checksums.
    """
    state: Mapping[str, Any] = model.state_dict()
    for alteration in model.alterations:
        state = alteration.tensors(state)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    tensors |= {CARRIED + key: tensor.detach().cpu().clone() for key, tensor in (carried or {}).items()}
    header = {
        "format": FORMAT,
        "version": str(ALTERED_VERSION if model.alterations else VERSION),
        "model": model.options.model_dump_json(),
        "num_classes": str(model.num_classes),
        "meta": json_text(meta),
    }
    if model.alterations:
        header["altered"] = json.dumps(describe_alterations(model))
    if not is_utf8(folder):
        raise CheckpointError(f"{folder}: safetensors requires a path in UTF-8; choose another folder")
    with atomic_path(folder / WEIGHTS) as part:
        save_file(tensors, part, metadata=header)
    if checksums:
        write_checksums(folder)


def read_model(
    folder: Path, device: str | torch.device = "cpu", backbone: Backbone | None = None
) -> tuple[Recognizer, dict[str, Any]]:
    """Return the model and the `meta` of a model folder, or of `best` (or else `last`) in a run folder.

    The weights are loaded into `backbone`, if it is given: a backbone that was built with the same options.

    The model is in evaluation mode on `device`; int8 models are always on the CPU.

    Raises:
        CheckpointError: Missing, damaged (checksum), without a Two-Stream model, or written by a newer version.
    """
    file = weights_file(folder)
    if (file.parent / CHECKSUMS).exists() or folder.is_dir():
        verify_checksums(file.parent)
    header = read_metadata(file)
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{file}: the file is not a Two-Stream model; use `load_weights` for other weights"
        )
    if int(header["version"]) > ALTERED_VERSION:
        raise CheckpointError(
            f"{file}: written by a newer version of two-stream (found format {header['version']}, "
            f"expected at most {ALTERED_VERSION}); upgrade two-stream"
        )
    options = validate_settings(ModelOptions, parse_json(header["model"]), file)
    model = Recognizer(options, int(header["num_classes"]), backbone)
    alterations = _alterations(header, file)
    for alteration in alterations:
        alter(model, alteration)
    state: dict[str, Any] = {k: v for k, v in read_state(file).items() if not k.startswith(CARRIED)}
    for alteration in reversed(alterations):
        state = alteration.state(state)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{file}: {str(error).splitlines()[-1].strip()}") from None
    meta: dict[str, Any] = parse_json(header["meta"])
    if model.cpu_only and torch.device(device).type != "cpu":
        note(f"{folder}: an int8 network always runs on the CPU")
        device = "cpu"
    return model.to(device).eval(), meta


def reshape_like(model: Recognizer, path: Path) -> None:
    """Change the layer sizes of a new network to those of a pruned network in a file, without loading weights.

    If the network has already been compressed, or the file is from another codebase, nothing is changed.

    Args:
        model: Changed in place.
        path: A file, model folder or run folder.

    Raises:
        CheckpointError: The file contains an int8 network, which cannot be trained; or its layers differ.
    """
    file = weights_file(path)
    header = read_metadata(file)
    if header.get("format") != FORMAT or model.alterations:
        return
    for alteration in _alterations(header, file):
        if alteration.reshapes:
            alter(model, alteration)
        elif alteration.cpu_only:  # others are rounded in float, which their training does itself
            raise CheckpointError(
                f"{file}: an {alteration.kind} network cannot be trained; use the run before compression"
            )


def alterations_in(path: Path) -> list[dict[str, Any]]:
    """Return descriptions of how the network in a file was compressed, or an empty list if it was not compressed.

    Raises:
        CheckpointError: Missing or damaged.
    """
    found: list[dict[str, Any]] = parse_json(read_metadata(weights_file(path)).get("altered", "[]"))
    return found


def _alterations(header: Mapping[str, str], file: Path) -> list[Alteration]:
    return read_alterations(parse_json(header.get("altered", "[]")), file)
