"""Converts published checkpoints to run folders and back, and keeps all tensors."""

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
    """Convert a published checkpoint to a run folder; the number of classes is that of the checkpoint's classifier.

    The run has the settings of the published protocol, so `two-stream evaluate` and `predict` use this protocol.
    Tensors that the published network stores twice or never uses are kept, so that `export_checkpoint` can restore
    them.

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
        what = "of an unknown network" if layout is None else f"of a {layout.name}, which cannot be converted"
        raise CheckpointError(f"{source}: weights {what}")
    if layout is OURS:
        raise CheckpointError(
            f"{source}: the file is already a Two-Stream model; to convert it to a published format, "
            "use `--to published`"
        )
    classes = num_classes(state, layout)
    if classes is None:
        raise CheckpointError(
            f"{source}: the checkpoint has no classifier ({layout.name}); expected weights with a classifier"
        )
    if class_names is not None and len(class_names) != classes:
        raise CheckpointError(
            f"{source}: expected {classes} class names, one for each class in the file, found "
            f"{len(class_names)}"
        )
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise CheckpointError(f"{out}: the output folder exists and is not empty; choose another folder")
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
    """Convert a run or model folder to a `.pth.tar` file of the codebase that published the network.

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
            f"{source}: no published code supports a compressed network ({what}); use the run before compression"
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
    """Rename tensors of this package to the names of a layout; tensors without a name in the layout are left out."""
    published = {}
    for key, tensor in state.items():
        for theirs in layout.invert(key):
            if layout.is_pointwise(theirs):
                published[theirs] = tensor[..., None, None, None]
            else:
                published[theirs] = tensor.flatten(1) if layout.is_flattened(theirs) else tensor
    return published


def _published_settings(out: Path, model: ModelOptions, data: DataOptions | None) -> Experiment:
    """Return the settings of a run that uses the published sampling, selection and evaluation."""
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
    """Return the number of classes of a published classifier, or None if there is no classifier."""
    for key, tensor in state.items():
        if layout.translate(key) == "classifier.weight" and not layout.is_unused(key):
            return int(tensor.shape[0])
    return None


def _layout_of(source: Path, model: Recognizer, came_as: object) -> Layout:
    """Return a layout with names for all tensors, preferably `came_as`, the layout of the original checkpoint."""
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
        f"{source}: cannot be converted, because no published code supports this network "
        f"({options.backbone.kind}, {options.reduction}, "
        f"{options.head.kind})"
    )


def _same(ours: torch.Tensor | None, theirs: torch.Tensor) -> bool:
    return ours is not None and ours.shape == theirs.shape and torch.equal(ours.to(theirs.dtype), theirs)
