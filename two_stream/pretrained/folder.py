"""Our own model folders: weights and all it takes to build the model again, in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from two_stream.config.load import validate_settings
from two_stream.config.model import ModelOptions
from two_stream.errors import CheckpointError
from two_stream.pretrained.layouts import CARRIED
from two_stream.pretrained.reading import WEIGHTS, read_metadata, read_state, weights_file
from two_stream.recognizer import Recognizer, create_model
from two_stream.runtime.console import note
from two_stream.runtime.files import atomic_path
from two_stream.runtime.folders import CHECKSUMS, verify_checksums, write_checksums
from two_stream.runtime.text import is_utf8, json_text, parse_json
from two_stream.surgery import Alteration, alter, describe_alterations, read_alterations

FORMAT = "two_stream"
VERSION = 1
"""Raised when a reader of an older version could misread the file."""
ALTERED_VERSION = 2
"""Of a file whose network is not the one its options say: a reader of version 1 would build another."""


def write_model(
    folder: Path,
    model: Recognizer,
    meta: dict[str, Any],
    carried: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write `model.safetensors` with the model's options and `meta` in its header, and the folder's checksums.

    The file is whole or absent. To put weights and training state in place together, call it on the folder that
    `runtime.folders.replaced_folder` yields.

    Args:
        folder: Made when missing.
        model: Its state is written as it is, on whichever device.
        meta: JSON values, for example `{"class_names": [...], "epoch": 3}`.
        carried: Tensors of a published file that the model has no place for, kept for the way back.
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
        raise CheckpointError(
            f"{folder}: its path is not UTF-8, and safetensors writes to no other; choose another"
        )
    with atomic_path(folder / WEIGHTS) as part:
        save_file(tensors, part, metadata=header)
    write_checksums(folder)


def read_model(folder: Path, device: str | torch.device = "cpu") -> tuple[Recognizer, dict[str, Any]]:
    """Build the model of a folder (or run folder: its `best`, else `last`) and return it with its `meta`.

    The model is in evaluation mode on `device`, one that computes in int8 on the CPU.

    Raises:
        CheckpointError: Missing, damaged (checksum), foreign, or written by a newer version.
    """
    file = weights_file(folder)
    if (file.parent / CHECKSUMS).exists() or folder.is_dir():
        verify_checksums(file.parent)
    header = read_metadata(file)
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{file}: no model of ours; to read foreign weights use `load_weights`")
    if int(header["version"]) > ALTERED_VERSION:
        raise CheckpointError(
            f"{file}: written by a newer version (format {header['version']}, this one reads {ALTERED_VERSION}); "
            "upgrade"
        )
    options = validate_settings(ModelOptions, parse_json(header["model"]), file)
    model = create_model(options, int(header["num_classes"]))
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
        note(f"{folder}: computes in int8, which runs on the CPU")
        device = "cpu"
    return model.to(device).eval(), meta


def reshape_like(model: Recognizer, path: Path) -> None:
    """Give a newly built network's layers the sizes of a file's, where those are not the ones its options say.

    Weights are not loaded. A network that was altered already stays as it is, and files of others say nothing.

    Args:
        model: Changed in place.
        path: A file, model folder or run folder.

    Raises:
        CheckpointError: The file's network computes in another way (int8), so that it cannot be trained on; or its
            layers are not the model's.
    """
    file = weights_file(path)
    header = read_metadata(file)
    if header.get("format") != FORMAT or model.alterations:
        return
    for alteration in _alterations(header, file):
        if not (
            alteration.reshapes or alteration.cpu_only
        ):  # rounded in float: its training does that itself
            continue
        if not alteration.reshapes:
            raise CheckpointError(
                f"{file}: an {alteration.kind} network, whose weights cannot be trained on; give the run it was made "
                "from"
            )
        alter(model, alteration)


def alterations_in(path: Path) -> list[dict[str, Any]]:
    """Return how a file of ours says that its network was altered; empty for an ordinary one.

    Raises:
        CheckpointError: There is no such file, or it is damaged.
    """
    found: list[dict[str, Any]] = parse_json(read_metadata(weights_file(path)).get("altered", "[]"))
    return found


def _alterations(header: Mapping[str, str], file: Path) -> list[Alteration]:
    return read_alterations(parse_json(header.get("altered", "[]")), file)
