"""Writing an export: graph, comparison with the model, card; the file is whole and right, or absent."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch

from two_stream.config.schema import EvaluateOptions, Experiment
from two_stream.errors import SettingsError
from two_stream.evaluation.runs.run import AnyRun, extraction_of, mirror_of_run
from two_stream.evaluation.scoring.network import is_exact, prepare_for_inference, resolve_evaluation
from two_stream.export.card import ExportCard, Port, Target, Verified
from two_stream.export.clips import noise_clips, run_clips
from two_stream.export.formats import SUFFIXES, Format
from two_stream.export.graph import EXAMPLE_BATCH, Exportable, Session, free_shape, program_of
from two_stream.export.int8 import Int8Options, quantized
from two_stream.export.opening import format_by_name
from two_stream.export.verifying import TOLERANCE, compare
from two_stream.recognizer import Recognizer
from two_stream.runtime.console import note
from two_stream.runtime.files import atomic_path, temporary_folder
from two_stream.runtime.provenance import code_version, environment
from two_stream.types import Part

CLIPS = 4
"""that the file and the model are compared on in fp32"""
_PIXELS = "pixels 0..255 of a clip, {order}; frames chosen, resized and cut as `spec` says; normalised inside"
_ORDERS = {"rgb": "red, green, blue", "flow": "x, y"}

Check = Callable[[Session, Exportable], Verified]


def export_run(
    run: AnyRun[Recognizer], to: Target = "onnx", out: Path | None = None, *, int8: Int8Options | None = None
) -> tuple[Path, ExportCard]:
    """Write a run's network as a file that computes without our code, and compare it with the network.

    Preprocessing is inside: uint8 clips `(B, C, T, H, W)` of any batch to logits `(B, K)`. Weights and activations are
    fp32 unless `int8` is given; BatchNorm is folded where `evaluate` folds it.

    Args:
        run: A loaded run.
        to: `onnx`, `pt2` (torch.export) or `aoti` (compiled for this kind of processor).
        out: The file; default: `RUN/model` with the format's ending.
        int8: How to write 8-bit weights and activations; ONNX alone.

    Returns:
        The file and its card.

    Raises:
        ExportError: The network cannot be written in this format, or the file computes something else.
        SettingsError: A package or compiler is not there, or int8 is asked of another format.
    """
    if run.model.cpu_only:
        raise SettingsError(
            f"{run.paths.root}: computes in int8 by torch's own kernels, which no file can hold; export the run it was "
            "made from, to ONNX with --int8"
        )
    form = checked_format(to, int8)
    path = out or run.paths.root / f"model{'.int8' if int8 else ''}{SUFFIXES[to]}"
    check_name(path, to)
    network = plain_copy(run)
    clips, what = _clips(run, CLIPS if int8 is None else int8.clips)
    example = noise_clips(run.model.spec, EXAMPLE_BATCH)
    exportable = Exportable(network, (example,), ("clip",), ("logits",))
    card = card_of(run, to, exportable).model_copy(update={"precision": "int8" if int8 else "fp32"})

    def check(session: Session, made_of: Exportable) -> Verified:
        found = compare(session, made_of, clips)
        return found.verified(f"{what}, in batches of 1 and 3", None if int8 else TOLERANCE)

    def change(source: Path, target: Path) -> None:
        assert int8 is not None
        quantized(source, target, _clips(run, int8.clips, "train")[0], int8)

    return path, written(form, exportable, card, (path, check), change if int8 else None)


def written(
    form: Format,
    exportable: Exportable,
    card: ExportCard,
    goal: tuple[Path, Check],
    change: Callable[[Path, Path], None] | None = None,
) -> ExportCard:
    """Build beside the goal, compare, seal, and put in place; what is not right is not left behind."""
    path, check = goal
    note(f"writing {card.name} as a graph ({card.to})")
    program = program_of(exportable)
    with temporary_folder(path) as folder:
        built = folder / f"graph{SUFFIXES[card.to]}"
        form.write(program, exportable, built)
        if change is not None:
            changed = built.with_name(f"changed{SUFFIXES[card.to]}")
            change(built, changed)
            built = changed
        verified = check(form.open(built), exportable)
        sealed = card.model_copy(update={"verified": verified})
        form.seal(built, sealed)
        form.read_card(built)  # what cannot be read back is not put in place
        with atomic_path(path) as part:
            built.replace(part)
    return sealed


def _clips(run: AnyRun[Recognizer], count: int, part: Part = "val") -> tuple[torch.Tensor, str]:
    """Return clips of the run's data set where it is here, else of noise; and what they are."""
    clips = run_clips(run, count, part)
    if clips is None:
        return noise_clips(run.model.spec, count, seed=int(part == "val")), f"{count} clips of noise"
    return clips, f"{len(clips)} clips of the {part} part of {run.record.name}"


def checked_format(to: Target, int8: Int8Options | None = None) -> Format:
    """Return a format that this machine can write.

    Raises:
        SettingsError: A package or compiler is not there, or int8 is asked of another format than ONNX.
    """
    form = format_by_name(to)
    form.check()
    if int8 is not None and to != "onnx":
        raise SettingsError(f"int8 is written to ONNX alone; --to is {to}. Leave one of them out")
    return form


def check_name(path: Path, to: Target) -> None:
    """Refuse a file name that does not end as the format's files do.

    Raises:
        SettingsError: Names the right ending.
    """
    if path.is_dir():
        raise SettingsError(
            f"{path}: is a folder; give the file to write, for example {path / 'model'}{SUFFIXES[to]}"
        )
    ending = Path(f"model{SUFFIXES[to]}").suffix
    if path.suffix != ending:
        raise SettingsError(
            f"{path}: a file of format {to} ends in {ending}; give {path.with_suffix(ending)}"
        )


def plain_copy(run: AnyRun[Recognizer]) -> Recognizer:
    """Return a copy for the CPU in fp32, folded as `evaluate` would, its weights in the usual order."""
    copied = copy.deepcopy(run.model).cpu().float().eval()
    copied.memory_format = torch.preserve_format
    for weight in (*copied.parameters(), *copied.buffers()):
        weight.data = weight.data.contiguous()
    plain = EvaluateOptions(precision="fp32")
    options = resolve_evaluation(copied, plain, torch.device("cpu"), exact=is_exact(run.experiment))
    made = prepare_for_inference(copied, options)
    assert isinstance(made, Recognizer)
    return made.requires_grad_(False)


def card_of(run: AnyRun[Recognizer], to: Target, exportable: Exportable) -> ExportCard:
    """Return the card of a file before it is written and compared."""
    spec = run.model.spec
    with torch.no_grad():
        outputs = exportable.run(exportable.inputs)
    meanings = {"logits": "one per class, in the order of `class_names`; larger is likelier"}
    first = exportable.input_names[0]
    pixels = _PIXELS.format(order=_ORDERS[spec.modality])
    mirror = mirror_of_run(run)
    known = {"extraction": extraction_of(run), "mirror": mirror.allowed, "mirror_labels": mirror.labels}
    return ExportCard(
        to=to,
        name=run.experiment.name,
        run=str(run.paths.root),
        checkpoint=run.checkpoint,
        class_names=run.class_names,
        inputs=tuple(
            _port(name, value, axis, pixels if name == first else "a state of the step before")
            for name, value, axis in zip(
                exportable.input_names, exportable.inputs, exportable.axes, strict=True
            )
        ),
        outputs=tuple(
            _port(name, value, axis, meanings.get(name, "a state for the next step"))
            for name, value, axis in zip(exportable.output_names, outputs, exportable.axes, strict=True)
        ),
        spec=asdict(spec),
        experiment=_as_exported(run.experiment).model_dump(mode="json"),
        meta={**run.meta, **known},
        model_sha256=run.model_sha256,
        code_version=code_version(),
        environment=environment(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _as_exported(experiment: Experiment) -> Experiment:
    """Return the settings as the file carries them out: it has one precision and is not compiled by torch."""
    evaluate = experiment.evaluate.model_copy(update={"precision": "auto", "compile": False})
    return experiment.model_copy(update={"evaluate": evaluate})


def _port(name: str, value: torch.Tensor, axis: int | None, meaning: str) -> Port:
    return Port(name=name, shape=free_shape(value, axis), dtype=type_name(value), meaning=meaning)


def type_name(value: torch.Tensor) -> str:
    """Return the type of a tensor's numbers, for example `float32`."""
    return str(value.dtype).removeprefix("torch.")
