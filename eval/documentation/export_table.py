"""Export every family of the zoo under every head to ONNX and torch.export, and write `docs/export-table.md`.

    cd eval/documentation
    python export_table.py                       # all (half an hour on two cores)
    python export_table.py --only i3d 'timm *'   # only these rows; the others stay as the page has them
    python export_table.py --only x3d --aoti     # AOTInductor too (minutes a row)
    python export_table.py --check               # write nothing; exit code 1 if the page is outdated
    python export_table.py --operators           # what a file may hold: every row, head, stream, timm module

A row is a network of the family with few layers and small clips: the operations are those of the large ones. Each is
exported by `two_stream.export.export_run`, which compares the file with the model on batches of 1 and 3 clips and
rejects what differs by more than 1e-4 of the largest logit.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tables import ROOT, TABLE, markdown, update

from two_stream.config.load import validate_settings
from two_stream.config.model import ModelOptions
from two_stream.config.schema import Experiment
from two_stream.errors import TwoStreamError
from two_stream.export import export_run
from two_stream.export.card import Target
from two_stream.export.graph import Exportable, capture_graph, error_line, silence_torch
from two_stream.export.onnx_format import to_onnx_model
from two_stream.export.verifying import noise_clips
from two_stream.export.writing import BareModel, batch_axis
from two_stream.heads import HEADS as EVERY_HEAD
from two_stream.recognizer import Recognizer, create_model
from two_stream.runtime.files import write_text
from two_stream.streaming import StepNetwork, convert
from two_stream.types import RunPaths

PAGE = ROOT / "docs" / "export-table.md"
OPERATORS = ROOT / "two_stream" / "export"
HEADS = ("average", "lstm", "bert")
TARGETS: tuple[Target, ...] = ("onnx", "pt2", "aoti")
YES = "yes"
UNTRIED = "–"


@dataclass(frozen=True)
class Case:
    """A family, or a variant of one whose graph has other operations."""

    name: str
    backbone: dict[str, Any]
    input: dict[str, Any] = field(default_factory=lambda: {"crop": 32, "clip_length": 16, "resize": [32, 32]})
    more: dict[str, Any] = field(default_factory=dict)
    """options of the model beside backbone, head and input"""

    def options(self, head: str) -> ModelOptions:
        """Return the model under a head."""
        given = {"backbone": self.backbone, "head": {"kind": head}, "input": self.input, **self.more}
        return validate_settings(ModelOptions, given, self.name)


_SIXTY_FOUR = {"crop": 64, "clip_length": 16, "resize": [64, 64]}
_FRAMES = {"crop": 64, "clip_length": 4, "resize": [64, 64]}
_IMAGES = {"clip_length": 2}
_TINY = {"hidden_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2}

CASES = (
    Case("resnet3d", {"kind": "resnet3d", "depth": 10}),
    Case("resnet3d, shortcut A", {"kind": "resnet3d", "depth": 18, "shortcut": "A", "width": 0.25}),
    Case("resnet3d, preactivation", {"kind": "resnet3d", "depth": 18, "preactivation": True, "width": 0.25}),
    Case("resnext3d", {"kind": "resnext3d", "depth": 50}),
    Case("resnext3d, FRAB", {"kind": "resnext3d", "depth": 50}, more={"reduction": "frab"}),
    Case("resnext3d, FRMB", {"kind": "resnext3d", "depth": 50}, more={"reduction": "frmb"}),
    Case("r2plus1d", {"kind": "r2plus1d", "depth": 18, "width": 0.25}),
    Case("i3d", {"kind": "i3d", "width": 0.25}, _SIXTY_FOUR),
    Case("slowfast, late", {"kind": "slowfast", "width": 0.25}, {**_SIXTY_FOUR, "clip_length": 32}),
    Case(
        "slowfast, early",
        {"kind": "slowfast", "width": 0.25, "fusion": "early"},
        {**_SIXTY_FOUR, "clip_length": 32},
    ),
    Case("slow", {"kind": "slow", "width": 0.25}, _SIXTY_FOUR),
    Case("slow, i3d", {"kind": "slow", "width": 0.25, "variant": "i3d"}, _SIXTY_FOUR),
    Case("mobilenet_3d", {"kind": "mobilenet_3d", "width": 0.5}, _SIXTY_FOUR),
    Case("mobilenetv2_3d", {"kind": "mobilenetv2_3d", "width": 0.45}, _SIXTY_FOUR),
    Case("shufflenet_3d", {"kind": "shufflenet_3d"}, _SIXTY_FOUR),
    Case("shufflenetv2_3d", {"kind": "shufflenetv2_3d", "width": 0.25}, _SIXTY_FOUR),
    Case("squeezenet_3d", {"kind": "squeezenet_3d"}, _SIXTY_FOUR),
    Case("squeezenet_3d, dense", {"kind": "squeezenet_3d"}, _SIXTY_FOUR, {"dense": True}),
    Case("c3d", {"kind": "c3d", "width": 0.25}, {}),
    Case("csn", {"kind": "csn", "depth": 26, "width": 0.5}, _SIXTY_FOUR),
    Case("densenet3d", {"kind": "densenet3d"}, _SIXTY_FOUR),
    Case("x3d", {"kind": "x3d", "depth": 1.0}, _SIXTY_FOUR),
    Case("timm resnet, TSN", {"kind": "timm", "name": "resnet18"}, _FRAMES),
    Case(
        "timm resnet, TSM", {"kind": "timm", "name": "resnet18", "tsm": 0.125}, {**_FRAMES, "clip_length": 8}
    ),
    Case("timm resnet, inflated", {"kind": "timm", "name": "resnet18", "inflate": True}, _SIXTY_FOUR),
    Case("timm convnext", {"kind": "timm", "name": "convnext_atto"}, _FRAMES),
    Case("timm efficientnet", {"kind": "timm", "name": "efficientnet_b0"}, _FRAMES),
    Case("timm mobilenetv3", {"kind": "timm", "name": "mobilenetv3_small_050"}, _FRAMES),
    Case("timm vit", {"kind": "timm", "name": "vit_tiny_patch16_224"}, _IMAGES),
    Case("timm swin", {"kind": "timm", "name": "swin_tiny_patch4_window7_224"}, _IMAGES),
    Case("torchvision mc3_18", {"kind": "torchvision", "name": "mc3_18"}),
    Case("torchvision s3d", {"kind": "torchvision", "name": "s3d"}),
    Case("torchvision swin3d_t", {"kind": "torchvision", "name": "swin3d_t"}),
    *(
        Case(f"torchvision {name}", {"kind": "torchvision", "name": name, "frames": 16, "image_size": 32})
        for name in ("mvit_v1_b", "mvit_v2_s")
    ),
    *(
        Case(
            f"transformers {name}",
            {"kind": "hf_video", "architecture": name, "config": {**_TINY, **config}},
            {},
        )
        for name, config in (
            ("videomae", {"intermediate_size": 96}),
            ("timesformer", {"intermediate_size": 96}),
            ("vivit", {"intermediate_size": 96}),
            ("vjepa2", {"frames_per_clip": 16, "crop_size": 64}),
        )
    ),
)
"""Every kind of backbone that the zoo names, and what differs within one."""

Found = dict[tuple[str, str], dict[str, str]]
"""By case and head, by target: `yes`, `–`, or why not."""


def model_of(case: Case, head: str) -> Recognizer:
    """Build a row's network, its BatchNorms half settled on noise so that its logits tell clips apart.

    Wholly settled on a few small clips, they would divide by next to nothing and blow rounding up.

    Raises:
        SettingsError: Case and head do not go together.
    """
    torch.manual_seed(0)
    model = create_model(case.options(head), num_classes=5)
    norms = [m for m in model.modules() if isinstance(m, (torch.nn.BatchNorm2d, torch.nn.BatchNorm3d))]
    for norm in norms:
        norm.momentum = 0.5
    for turn in range(60):  # until they do; narrow depthwise networks take many
        with torch.no_grad():
            model.train()(noise_clips(model.spec, 4, seed=3 + turn))
            logits = model.eval()(noise_clips(model.spec, 3, seed=2))
        if float(logits.std(0).max()) > 1e-2 * float(logits.abs().max()):
            return model
    raise AssertionError(f"{case.name}, {head}: logits that do not depend on the clip prove nothing")


def exported(case: Case, head: str, to: Target) -> str:
    """Return `yes`, or why a row does not export."""
    try:
        model = model_of(case, head)
        names = [str(label) for label in range(5)]
        run = BareModel(Experiment(model=model.options), model, names, RunPaths(Path()), "", {})
        with tempfile.TemporaryDirectory() as folder:
            export_run(run, to, Path(folder) / ("model.onnx" if to == "onnx" else "model.pt2"))
    except TwoStreamError as error:
        return str(error).replace("|", "/").replace("\n", " ")
    return YES


def read_table(page: str) -> Found:
    """Return what a page's table says."""
    written = TABLE.search(page)
    assert written is not None
    cells = [
        [cell.strip() for cell in row.strip("|").split("|")] for row in written["table"].splitlines()[2:]
    ]
    return {(row[0], row[1]): dict(zip(TARGETS, row[2:], strict=True)) for row in cells}


def table(found: Found) -> str:
    """Return the Markdown table, in the order of the cases."""
    keys = [(case.name, head) for case in CASES for head in HEADS]
    rows = ([*key, *(found.get(key, {}).get(to, UNTRIED) for to in TARGETS)] for key in keys)
    return markdown(["backbone", "head", *TARGETS], rows)


def sweep(
    patterns: list[str],
    targets: tuple[Target, ...],
    found: Found,
    done: Callable[[Found], object] = lambda _: None,
) -> Found:
    """Return a table with the rows that match made anew; `done` gets it after each backbone."""
    made = {key: dict(row) for key, row in found.items()}
    for case in CASES:
        if patterns and not any(fnmatchcase(case.name, pattern) for pattern in patterns):
            continue
        for head in HEADS:
            row = made.setdefault((case.name, head), {})
            for to in targets:
                row[to] = exported(case, head, to)
            print(f"{case.name}, {head}: {', '.join(f'{to} {row[to]}' for to in targets)}", flush=True)
        done(made)
    return made


_OTHER_HEADS: tuple[dict[str, Any], ...] = (
    *({"kind": kind} for kind in EVERY_HEAD if kind not in HEADS),
    {"kind": "nonlocal", "over": "time", "pool": "average"},
    {"kind": "moments", "maximum": True, "parts": 3},
    {"kind": "bert", "class_token": False, "normalize": True},
    {"kind": "lstm", "bidirectional": True},
    {"kind": "average", "features": 8},
    {"kind": "average", "window": 2},
)
_TIMM = {"kind": "timm", "name": "test_resnet"}
_INPUTS: tuple[dict[str, Any], ...] = (
    {"backbone": {"kind": "motion_grid"}, "modality": "flow"},
    {"backbone": {**_TIMM, "picture": True}, "modality": "flow"},
    {"backbone": {**_TIMM, "difference": "alone"}},
    {"backbone": {**_TIMM, "difference": "beside"}, "standardize": True},
    {"backbone": _TIMM, "input": {**CASES[0].input, "segments": 8, "stack": 5}, "modality": "flow"},
)


def operators(say: Callable[[str], object] = print) -> tuple[set[str], set[str]]:
    """Return every operation of the graphs of every row, head, stream and module of timm: in pt2 and in ONNX files."""
    pt2, onnx = set[str](), {"QuantizeLinear", "DequantizeLinear"}
    for name, build in _graphs():
        before = len(pt2), len(onnx)
        try:
            with silence_torch(), torch.no_grad():
                program = build()
            pt2 |= _written(program)
            onnx |= {node.op_type for node in to_onnx_model(program).graph.node}
        except Exception as error:  # noqa: BLE001 - what does not export has no operations
            say(f"{name}: {error_line(error)[:100]}")
        say(f"{name}: {len(pt2) - before[0]} of pt2 and {len(onnx) - before[1]} of ONNX more")
    return pt2, onnx


def _written(program: torch.export.ExportedProgram) -> set[str]:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    with zipfile.ZipFile(buffer) as archive:
        member = next(one for one in archive.namelist() if one.endswith("models/model.json"))
        nodes = json.loads(archive.read(member))["graph_module"]["graph"]["nodes"]
    return {node["target"] for node in nodes if node["target"].startswith(("torch.ops.aten.", "_operator."))}


def _graphs() -> Iterator[tuple[str, Callable[[], torch.export.ExportedProgram]]]:
    import timm

    def ours(options: dict[str, Any], name: str, *, stream: bool = False) -> torch.export.ExportedProgram:
        model = (
            create_model(validate_settings(ModelOptions, options, name), num_classes=5)
            .eval()
            .requires_grad_(False)
        )
        if not stream:
            return capture_graph(Exportable(model, (noise_clips(model.spec, 2),), ("clip",), ("logits",)))
        step = StepNetwork(convert(model)).eval()
        states = step.initial_states(2, *model.spec.size)
        single = step.initial_states(1, *model.spec.size)
        axes = [batch_axis(one, two) for one, two in zip(single, states, strict=True)]
        frames = noise_clips(replace(model.spec, clip_length=step.frames_per_step), 2)
        return capture_graph(Exportable(step, (frames, *states), ("frames",), ("logits",), tuple(axes)))

    def theirs(name: str) -> torch.export.ExportedProgram:
        net = timm.create_model(name, num_classes=5).eval().requires_grad_(False)
        images = torch.zeros(2, *timm.data.resolve_model_data_config(net)["input_size"])
        return torch.export.export(net, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))

    for case in CASES:
        whole = {"backbone": case.backbone, "input": case.input, **case.more}
        yield case.name, partial(ours, whole, case.name)
        yield f"{case.name}, stream", partial(ours, whole, case.name, stream=True)
    for options in (
        *(
            {"backbone": CASES[0].backbone, "head": head}
            for head in ({"kind": "lstm"}, {"kind": "bert"}, *_OTHER_HEADS)
        ),
        *_INPUTS,
    ):
        whole = {"input": {**CASES[0].input, "segments": 0}, "head": {"kind": "moments"}, **options}
        yield str(options), partial(ours, whole, "head")
        yield f"{options}, stream", partial(ours, whole, "head", stream=True)
    for module in timm.list_modules():
        names = timm.list_models(module=module)
        small = [
            name
            for mark in ("test_", "atto", "femto", "pico", "nano", "tiny", "xx", "xs", "_s", "_b0")
            for name in names
            if mark in name
        ]
        if names:
            yield f"timm {module}", partial(theirs, (small or names)[0])


def main(argv: list[str] | None = None) -> int:
    """Sweep and write, or check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="rows by name or pattern")
    parser.add_argument("--aoti", action="store_true", help="AOTInductor too")
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    parser.add_argument("--operators", action="store_true", help="write the operations that files may hold")
    given = parser.parse_args(argv)
    if given.operators:
        for to, found in zip(("pt2", "onnx"), operators(), strict=True):
            write_text(OPERATORS / f"operators_{to}.txt", "\n".join(sorted(found)) + "\n")
        return 0
    found = read_table(PAGE.read_text(encoding="utf-8"))
    targets = TARGETS if given.aoti else TARGETS[:2]

    def write(made: Found) -> int:
        return update([PAGE], lambda _: table(made), check=given.check)

    return write(sweep(given.only, targets, found, (lambda _: None) if given.check else write))


if __name__ == "__main__":
    sys.exit(main())
