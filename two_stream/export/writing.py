"""Writes exported files: captures the graph, compares it with the model, and adds the card.

A file gets its final name only after the comparison has passed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import nn

from two_stream.config.schema import EvaluateOptions, Experiment
from two_stream.errors import ExportError, SettingsError
from two_stream.evaluation.runs.publish import hide_places
from two_stream.evaluation.runs.run import AnyRun, Run, extraction_of, mirror_of_run
from two_stream.evaluation.scoring.network import is_exact, prepare_for_inference, resolve_evaluation
from two_stream.export.card import ExportCard, Port, StateFacts, StreamFacts, Target, Verified
from two_stream.export.formats import SUFFIXES, format_by_name
from two_stream.export.graph import EXAMPLE_BATCH, Exportable, Format, Session, capture_graph, free_shape
from two_stream.export.onnx_format import Int8Options, quantize_onnx
from two_stream.export.verifying import TOLERANCE, compare, compare_steps, noise_clips, run_clips
from two_stream.pretrained import read_model
from two_stream.recognizer import Recognizer, create_model
from two_stream.runtime.console import note, warn
from two_stream.runtime.files import atomic_path, temporary_folder
from two_stream.runtime.provenance import code_version, environment
from two_stream.types import Part, RunPaths

_CLIPS = 4
"""Number of clips for the comparison with the model in fp32."""
_STEPS = 6
"""Number of compared steps of a stream, after those that warm up."""
_STREAMS = (1, 3)
"""Batch sizes of the compared streams; the example has `EXAMPLE_BATCH`."""
_PIXELS = "pixels 0..255 of a clip, {order}; frames, resizing and crop as in `spec`; normalised inside"
_ORDERS = {"rgb": "red, green, blue", "flow": "x, y"}

Check = Callable[[Session, Exportable], Verified]


def export_run(
    run: AnyRun[Recognizer],
    to: Target = "onnx",
    out: Path | None = None,
    *,
    int8: Int8Options | None = None,
    public: bool = False,
) -> tuple[Path, ExportCard]:
    """Write the network of a run to a file that can be used without this package, and verify the file.

    The graph maps uint8 clips `(B, C, T, H, W)` of any batch size to logits `(B, K)`, and includes the preprocessing.
    Weights and activations are fp32, unless `int8` is given. BatchNorm is folded as in `evaluate`.

    Args:
        run: A loaded run.
        to: `onnx`, `pt2` (torch.export) or `aoti` (compiled for this kind of processor).
        out: File to write; default: `RUN/model` with the format's suffix.
        int8: Options for 8-bit weights and activations; ONNX only.
        public: Leave out the folders of this machine from the card.

    Returns:
        The path of the file, and its card.

    Raises:
        ExportError: The format does not support the network, or the file gives different logits.
        SettingsError: A package or compiler is missing, or int8 was requested for another format.
    """
    if run.model.cpu_only:
        raise SettingsError(
            f"{run.paths.root}: an int8 run uses kernels of torch that cannot be exported; export "
            "the original fp32 run with --to onnx --int8"
        )
    form = _checked_format(to, int8)
    path = _checked_path(out or run.paths.own / f"model{'.int8' if int8 else ''}{SUFFIXES[to]}", to)
    network = plain_copy(run)
    clips, what = _clips(run, _CLIPS if int8 is None else int8.clips)
    example = noise_clips(run.model.spec, EXAMPLE_BATCH)
    exportable = Exportable(network, (example,), ("clip",), ("logits",))
    card = _card(run, to, exportable, public=public)
    card = card.model_copy(update={"precision": "int8" if int8 else "fp32"})

    def check(session: Session, made_of: Exportable) -> Verified:
        found = compare(session, made_of, clips)
        return found.verified(f"{what}, in batches of 1 and 3", None if int8 else TOLERANCE)

    def change(source: Path, target: Path) -> None:
        assert int8 is not None
        quantize_onnx(source, target, _clips(run, int8.clips, "train")[0], int8)

    return path, _write(form, exportable, card, (path, check), change if int8 else None)


def _write(
    form: Format,
    exportable: Exportable,
    card: ExportCard,
    goal: tuple[Path, Check],
    change: Callable[[Path, Path], None] | None = None,
) -> ExportCard:
    """Write the file next to its destination, verify it, add the card and rename it; an error leaves no file."""
    path, check = goal
    note(f"exporting {card.name} as a graph ({card.to})")
    program = capture_graph(exportable)
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
        form.read_card(built)  # a file that cannot be read back is not kept
        with atomic_path(path) as part:
            built.replace(part)
    return sealed


def _clips(run: AnyRun[Recognizer], count: int, part: Part = "val") -> tuple[torch.Tensor, str]:
    """Return clips of the run's data set, or of noise if it is not available, and a description of the clips."""
    clips = run_clips(run, count, part)
    if clips is None:
        return noise_clips(run.model.spec, count, seed=int(part == "val")), f"{count} clips of noise"
    return clips, f"{len(clips)} clips of the {part} part of {run.record.name}"


def _checked_format(to: Target, int8: Int8Options | None = None) -> Format:
    """Return a format after checking that this machine can write files of this format."""
    form = format_by_name(to)
    form.check()
    if int8 is not None and to != "onnx":
        raise SettingsError(
            f"--int8 is supported only for ONNX, but --to is {to}; omit --int8 or use --to onnx"
        )
    return form


def _checked_path(path: Path, to: Target) -> Path:
    """Return the path of the file to write, after checking its suffix."""
    if path.is_dir():
        raise SettingsError(f"{path}: found a folder, expected a file such as {path / 'model'}{SUFFIXES[to]}")
    suffix = Path(SUFFIXES[to]).suffix or SUFFIXES[to]
    if path.suffix != suffix:
        raise SettingsError(
            f"{path}: expected the suffix {suffix} for format {to}; use {path.with_suffix(suffix)}"
        )
    return path


def plain_copy(run: AnyRun[Recognizer]) -> Recognizer:
    """Return a copy of the network on the CPU in fp32, with contiguous weights and folded BatchNorm."""
    copied = copy.deepcopy(run.model).cpu().float().eval()
    copied.memory_format = torch.preserve_format
    for weight in (*copied.parameters(), *copied.buffers()):
        weight.data = weight.data.contiguous()
    plain = EvaluateOptions(precision="fp32")
    options = resolve_evaluation(copied, plain, torch.device("cpu"), exact=is_exact(run.experiment))
    made = prepare_for_inference(copied, options)
    assert isinstance(made, Recognizer)
    return made.requires_grad_(False)


def _card(run: AnyRun[Recognizer], to: Target, exportable: Exportable, *, public: bool) -> ExportCard:
    """Return the card of a file, before the file is written and compared."""
    shown = hide_places if public else _unchanged
    spec = run.model.spec
    pixels = _PIXELS.format(order=_ORDERS[spec.modality])
    logits = "one per class, in the order of `class_names`; larger is likelier"
    mirror = mirror_of_run(run)
    # exported files have one precision and are not compiled by torch
    evaluate = run.experiment.evaluate.model_copy(update={"precision": "auto", "compile": False})
    experiment = run.experiment.model_copy(update={"evaluate": evaluate})
    known = {"extraction": extraction_of(run), "mirror": mirror.allowed, "mirror_labels": mirror.labels}
    return ExportCard(
        to=to,
        name=run.experiment.name,
        run=str(shown(run.paths.root)),
        checkpoint=run.checkpoint,
        class_names=run.class_names,
        inputs=_ports(
            exportable, exportable.input_names, exportable.inputs, (pixels, "a state of the step before")
        ),
        outputs=_ports(
            exportable,
            exportable.output_names,
            exportable.run(exportable.inputs),
            (logits, "a state for the next step"),
        ),
        spec=asdict(spec),
        experiment=shown(experiment.model_dump(mode="json")),
        meta=shown({**run.meta, **known}),
        model_sha256=run.model_sha256,
        code_version=code_version(),
        environment=environment(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _unchanged(value: Any) -> Any:
    return value


def _ports(
    exportable: Exportable,
    names: tuple[str, ...],
    values: tuple[torch.Tensor, ...],
    meanings: tuple[str, str],
) -> tuple[Port, ...]:
    """Return descriptions of the inputs or outputs; `meanings` are the descriptions of the first one and of a state."""
    return tuple(
        Port(name=name, shape=free_shape(value, axis), dtype=_type_name(value), meaning=meanings[place > 0])
        for place, (name, value, axis) in enumerate(zip(names, values, exportable.axes, strict=True))
    )


def _type_name(value: torch.Tensor) -> str:
    """Return the name of the type of a tensor, for example `float32`."""
    return str(value.dtype).removeprefix("torch.")


class StepModule(Protocol):
    """A step network, whose `forward` maps `(frames, *states)` to `(logits, *states)`."""

    frames_per_step: int
    warm_up: int

    def initial_states(self, batch: int, height: int, width: int) -> list[torch.Tensor]:
        """Return the initial states for a batch of streams."""

    def state_names(self) -> list[str]:
        """Return the names of the states."""


@dataclass(frozen=True)
class Timing:
    """Delay and receptive field of a step network; see `StreamFacts`."""

    delay: int
    receptive_field: int | None


def export_stream(
    run: AnyRun[Recognizer],
    step: nn.Module,
    timing: Timing,
    to: Target = "onnx",
    out: Path | None = None,
    *,
    public: bool = False,
) -> tuple[Path, ExportCard]:
    """Write the step network of a run's stream, with the states as inputs and outputs; see `export_run`.

    The file and the module are compared for consecutive steps; each of them uses its own states.

    Args:
        run: The run that the step network was made from.
        step: A `StepModule` in evaluation mode, on the CPU in fp32 (`plain_copy`).
        timing: Its delay and receptive field.
        to: The format.
        out: File to write; default: `RUN/stream` with the format's suffix.
        public: Leave out the folders of this machine from the card.

    Raises:
        ExportError: As for `export_run`; or an initial state is not constant.
        SettingsError: As for `export_run`.
    """
    form = _checked_format(to)
    path = _checked_path(out or run.paths.own / f"stream{SUFFIXES[to]}", to)
    spec, module = run.model.spec, cast(StepModule, step)
    names = module.state_names()
    begun = {batch: module.initial_states(batch, *spec.size) for batch in (*_STREAMS, EXAMPLE_BATCH)}
    axes = tuple(batch_axis(one, two) for one, two in zip(begun[1], begun[EXAMPLE_BATCH], strict=True))
    steps = module.warm_up + _STEPS
    clip = noise_clips(replace(spec, clip_length=module.frames_per_step * steps), max(_STREAMS))
    frames = torch.split(clip, module.frames_per_step, dim=2)
    exportable = Exportable(
        step,
        (frames[0][:EXAMPLE_BATCH].contiguous(), *begun[EXAMPLE_BATCH]),
        ("frames", *names),
        ("logits", *(f"next_{name}" for name in names)),
        axes,
    )
    states = zip(names, begun[EXAMPLE_BATCH], axes, strict=True)
    facts = StreamFacts(
        frames_per_step=module.frames_per_step,
        warm_up=module.warm_up,
        delay=timing.delay,
        receptive_field=timing.receptive_field,
        states=tuple(_state(name, value, axis) for name, value, axis in states),
    )
    card = _card(run, to, exportable, public=public).model_copy(update={"kind": "stream", "stream": facts})

    def check(session: Session, made_of: Exportable) -> Verified:
        what = f"{_STEPS} steps of noise after {module.warm_up} warm-up steps, for batches of 1 and 3 streams"
        found = []
        for batch in _STREAMS:
            mine = [part[:batch].contiguous() for part in frames]
            compared = compare_steps(session, made_of, mine, tuple(begun[batch]), module.warm_up)
            found.append(compared.verified(what))
        return max(found, key=lambda one: one.relative)

    return path, _write(form, exportable, card, (path, check))


def batch_axis(one: torch.Tensor, several: torch.Tensor) -> int | None:
    """Return the batch dimension of a state, or None for a state that all streams share."""
    grown = [place for place, (a, b) in enumerate(zip(one.shape, several.shape, strict=True)) if a != b]
    return grown[0] if grown else None


def _state(name: str, value: torch.Tensor, axis: int | None) -> StateFacts:
    first = value.flatten()[0]
    if not bool((value == first).all()):
        raise ExportError(
            f"state {name!r} of the stream has different initial values; expected the same value in all elements"
        )
    return StateFacts(name=name, shape=free_shape(value, axis), dtype=_type_name(value), initial=float(first))


@dataclass(frozen=True)
class BareModel(AnyRun[Recognizer]):
    """A model of the zoo with random weights."""

    @property
    def model_sha256(self) -> str:
        """An empty string, because there is no weights file."""
        return ""


def named_model(name: str, num_classes: int) -> BareModel:
    """Create a model of the zoo with random weights and numbers as class names.

    Raises:
        SettingsError: The zoo has no model of this name.
    """
    model = create_model(name, num_classes).eval()
    warn(f"{name} has random weights; use the file only to test the export and the speed of the network")
    return BareModel(
        experiment=Experiment(name=name.replace("/", "-"), model=model.options),
        model=model,
        class_names=[str(label) for label in range(num_classes)],
        paths=RunPaths(Path()),
        checkpoint="",
        meta={},
    )


def stored_model(folder: Path) -> Run:
    """Load a model folder with `model.safetensors`, such as a folder written by `weights convert`.

    Raises:
        CheckpointError: The folder does not contain a Two-Stream model.
    """
    model, meta = read_model(folder)
    names = meta.get("class_names") or range(model.num_classes)
    return Run(
        experiment=Experiment(name=folder.resolve().name, model=model.options),
        model=model,
        class_names=[str(name) for name in names],
        paths=RunPaths(folder.resolve().parent),
        checkpoint=folder.resolve().name,
        meta=meta,
    )
