"""Converts published checkpoints to run folders and back, without losing tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from two_stream import zoo
from two_stream.config.load import dump
from two_stream.config.model import ModelOptions
from two_stream.config.schema import AugmentOptions, DataOptions, EvaluateOptions, Experiment, TrainOptions
from two_stream.errors import CheckpointError
from two_stream.pretrained.folder import read_model, write_model
from two_stream.pretrained.layouts import CARRIED, LAYOUTS, OURS, Layout, recognise_layout, strip_wrappers
from two_stream.pretrained.loading import LoadReport, load_weights
from two_stream.pretrained.reading import read_state, weights_file
from two_stream.recognizer import Recognizer, create_model
from two_stream.runtime.files import atomic_path, replaced_folder, sha256


def import_checkpoint(
    source: Path,
    out: Path,
    model: str | ModelOptions,
    class_names: list[str] | None = None,
    data: DataOptions | None = None,
    *,
    averaged: bool = False,
) -> LoadReport:
    """Write a published checkpoint as a run folder with the number of classes of its classifier.

    The settings of the run are the published protocol, which `two-stream evaluate` and `predict` then use. Tensors
    that the published network stores twice or never uses are kept, so that `export_checkpoint` restores all of them.

    Args:
        source: A checkpoint of a known layout.
        out: Folder to write; it must not exist or be empty.
        model: The network of the checkpoint: its name in the zoo, or its options.
        class_names: Names of the classes, in the order of the classifier.
        data: Data set and split of the training, if known.
        averaged: See `read_state`.

    Raises:
        CheckpointError: Unreadable, of an unknown layout, or not matching the model or the class names.
    """
    source = weights_file(source)
    state, _ = strip_wrappers(read_state(source, averaged=averaged))
    layout = recognise_layout(state)
    if layout is None or layout.flat:
        what = "of an unknown network" if layout is None else f"of a {layout.name}: nothing to convert"
        raise CheckpointError(f"{source}: weights {what}")
    if layout is OURS:
        raise CheckpointError(f"{source}: already a Two-Stream model; use `--to published` to publish it")
    classes = num_classes(state, layout)
    if classes is None:
        raise CheckpointError(f"{source}: has no classifier ({layout.name})")
    if class_names is not None and len(class_names) != classes:
        raise CheckpointError(f"{source}: {classes} classes in the file, {len(class_names)} names given")
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise CheckpointError(f"{out}: already exists; choose another folder")
    recognizer = create_model(model, classes)
    report = load_weights(recognizer, source, averaged=averaged)
    back = published_state(recognizer.state_dict(), layout)
    carried = {key: tensor for key, tensor in state.items() if not _same(back.get(key), tensor)}
    meta = {
        "class_names": class_names or [f"class {index}" for index in range(classes)],
        "layout": layout.name,
        "source": {"file": source.name, "sha256": sha256(source)},
    }
    with replaced_folder(out) as part:
        (part / "experiment.yaml").write_text(dump(_published_settings(out, recognizer.options, data)))
        write_model(part / "best", recognizer, meta, carried)
    return report


def export_checkpoint(source: Path, out: Path) -> list[str]:
    """Write a run or model folder as the `.pth.tar` of the code that published its network.

    Args:
        source: A run folder (its best checkpoint) or a model folder.
        out: File to write: `{"state_dict", "arch", "epoch", "best_prec1"}`.

    Returns:
        The names of the written tensors.

    Raises:
        CheckpointError: No published code supports this network, or the folder contains no Two-Stream model.
    """
    model, meta = read_model(source)
    if model.alterations:
        what = ", ".join(alteration.kind for alteration in model.alterations)
        raise CheckpointError(
            f"{source}: no published code supports a compressed network ({what}); use the run it was made from"
        )
    layout = _layout_of(source, model, meta.get("layout"))
    state = published_state(model.state_dict(), layout)
    kept = read_state(weights_file(source))
    state |= {key.removeprefix(CARRIED): kept[key] for key in kept if key.startswith(CARRIED)}
    record = next((one for one in zoo.records() if one.options == model.options), None)
    content = {
        "state_dict": {key: tensor.detach().cpu() for key, tensor in state.items()},
        "arch": (record.alias or record.name) if record else "",
        "epoch": int(meta.get("epoch", 0)),
        "best_prec1": float(meta.get("top1", 0.0)) * 100.0,
    }
    with atomic_path(out) as part:
        torch.save(content, part)
    return list(state)


def published_state(state: Mapping[str, torch.Tensor], layout: Layout) -> dict[str, torch.Tensor]:
    """Return our tensors under the names of a layout, without those that it has no name for."""
    published = {}
    for key, tensor in state.items():
        for theirs in layout.invert(key):
            if layout.is_pointwise(theirs):
                published[theirs] = tensor[..., None, None, None]
            else:
                published[theirs] = tensor.flatten(1) if layout.is_flattened(theirs) else tensor
    return published


def _published_settings(out: Path, model: ModelOptions, data: DataOptions | None) -> Experiment:
    """Return the settings of a run with the published sampling, selection and evaluation."""
    published = {"sampling": "paper", "augment": AugmentOptions(protocol="paper")}
    return Experiment(
        name=re.sub(r"[^\w.+-]", "_", out.resolve().name),
        runs=out.parent,
        model=model,
        data=(data or DataOptions()).model_copy(update=published),
        train=TrainOptions(selection="paper"),
        evaluate=EvaluateOptions(views="multi", crops="ten"),
    )


def num_classes(state: Mapping[str, torch.Tensor], layout: Layout) -> int | None:
    """Return the number of classes of a published classifier; None if there is no classifier."""
    for key, tensor in state.items():
        if layout.translate(key) == "classifier.weight" and not layout.is_unused(key):
            return int(tensor.shape[0])
    return None


def _layout_of(source: Path, model: Recognizer, came_as: object) -> Layout:
    """Return the layout a model was imported from, or the first one that recognises all its tensors."""
    ours = model.state_dict()
    candidates = sorted(LAYOUTS, key=lambda layout: layout.name != came_as)
    for layout in candidates:
        if layout is OURS or layout.flat or not layout.writable:
            continue
        theirs = published_state(ours, layout)
        covered = all(layout.invert(key) for key in ours)
        if covered and recognise_layout(theirs) is layout:
            return layout
    options = model.options
    raise CheckpointError(
        f"{source}: no published code supports this network ({options.backbone.kind}, {options.reduction}, "
        f"{options.head.kind}), so it cannot be converted"
    )


def _same(ours: torch.Tensor | None, theirs: torch.Tensor) -> bool:
    return ours is not None and ours.shape == theirs.shape and torch.equal(ours.to(theirs.dtype), theirs)
