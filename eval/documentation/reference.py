"""Generate the reference pages of the site from the code: `commands.md`, `settings.md` and `files.md`."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import os
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Literal, get_args, get_origin

from tables import markdown

from two_stream.cli import COMMANDS, GROUPS, main
from two_stream.config import study
from two_stream.config.schema import Experiment
from two_stream.data import catalog, splits
from two_stream.data.sources import segments, shards
from two_stream.evaluation.features import cache
from two_stream.evaluation.runs import lookup, none_of_these
from two_stream.evaluation.scores import files, formats, statistics
from two_stream.pretrained import folder
from two_stream.pretrained.files import manifest
from two_stream.studies.report import study_report
from two_stream.studies.running import cells
from two_stream.studies.statistics import results
from two_stream.training import run_folder, tracking
from two_stream.types import RunPaths, ScoreTable, VideoRecord
from two_stream.video.extraction import one_video

FORMATS: dict[str, tuple[Any, ...]] = {
    "Data set: `dataset.yaml`": (catalog, catalog.Record, catalog.Roots, catalog.First, catalog.Patterns),
    "Split lists: `train_rgb_split1.txt`": (splits, VideoRecord),
    "Sources: `groups.txt`": (catalog.read_groups,),
    "Segments: `segments.csv`": (segments, segments.Segment),
    "Extracted frames: `.done.json`": (one_video,),
    "Shards: `index.npz`": (shards, shards.ShardIndex, shards.Packed),
    "Run folder": (run_folder, RunPaths),
    "Weights: `model.safetensors`": (folder.write_model,),
    "Data of a run: `data.json`": (lookup.record_data,),
    "Metrics of a run: `metrics.jsonl`": (tracking.write_metrics,),
    "Threshold of a run: `threshold.json`": (none_of_these, none_of_these.Threshold),
    "Score file: `.npz`": (files.write_scores, ScoreTable),
    "Score files of other programs": (formats,),
    "Stored features: `features.json`": (cache, cache.FeatureFacts, cache.PartFacts, cache.StoredVideo),
    "Published weights: `weights/manifest.yaml`": (
        *(manifest, manifest.Manifest, manifest.PublishedFile),
        *(manifest.Preprocessing, manifest.WeightsClasses),
    ),
    "Study": (
        *(study.Study, study.Against, study.FeatureOptions, study.DemoData, study.Reference),
        *(cells, cells.StudyOutcome),
    ),
    "Result of a study: `report.json`": (
        *(study_report.write_study_report, results, results.StudyResult, results.VariantResult),
        *(results.VariantCost, results.Comparison, results.McNemar, results.RunRow, results.FusionResult),
        *(results.FusedPair, results.Contribution, results.Published, statistics.Interval),
    ),
}
"""Title of each format, and the modules, functions and classes whose docstrings describe it."""


def write_reference(to: Path) -> None:
    """Write the pages to a folder."""
    os.environ["COLUMNS"] = "88"
    parts = ["# Commands\n\nThe help page of every command, as `two-stream COMMAND --help` prints it.\n"]
    for group, names in GROUPS.items():
        parts.append(f"## {group}\n")
        for name in names.split():
            parts.append(f"### two-stream {name}\n\n{COMMANDS[name][:1].upper()}{COMMANDS[name][1:]}.\n")
            parts.append(f"```text\n{help_of(name)}```\n")
            examples = import_module(f"two_stream.commands.{name}").EXAMPLES
            inner = examples if isinstance(examples, dict) else ()  # sub-commands
            parts += [f"#### two-stream {name} {one}\n\n```text\n{help_of(name, one)}```\n" for one in inner]
    (to / "commands.md").write_text("\n".join(parts), encoding="utf-8")
    (to / "settings.md").write_text(settings_page(), encoding="utf-8")
    (to / "files.md").write_text(files_page(), encoding="utf-8")


def help_of(*command: str) -> str:
    """Return the help page of a command."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([*command, "--help"])
    return text.getvalue()


def settings_page() -> str:
    """Return all settings of an experiment, with the flags of `train`, their values and defaults."""
    groups = help_of("train", "--help", "all").partition("options:")[2]
    count = len(Experiment.model_fields)
    return (
        "# Settings\n\nAn experiment file sets any of these in YAML, for example `train: {epochs: 30}`; each is also "
        "a flag of `two-stream train`, for example `--train.epochs 30`. There are "
        f"{count} groups and single settings.\n\n```text\noptions:{groups}```\n"
    )


def files_page() -> str:
    """Return the formats of all files that are read or written, from the docstrings of the code."""
    parts = [
        "# File formats\n\nThis page is generated from the docstrings of the code that reads and writes the files. "
        "Settings files are described in [Settings](settings.md)."
    ]
    for title, sources in FORMATS.items():
        parts.append(f"## {title}")
        for source in sources:
            if inspect.isclass(source):
                parts.append(f"### {source.__name__}")
            parts.append(prose(source))
            if source is RunPaths:
                parts.append(markdown(("file or folder", "content"), run_files()))
            elif inspect.isclass(source):
                parts.append(markdown(("key", "type", "meaning"), fields(source)))
    return "\n\n".join(parts)


def prose(source: ModuleType | FunctionType | type) -> str:
    """Return the docstring of an object without the sections on arguments, results and errors."""
    return re.split(r"\n\n(?:Args|Returns|Raises|Attributes):\n", inspect.getdoc(source) or "")[0]


def run_files() -> Iterator[tuple[str, str]]:
    """Yield the name and the content of each file of a run folder."""
    for name, prop in vars(RunPaths).items():
        if isinstance(prop, property):
            yield f"`{getattr(RunPaths(Path()), name).name}`", inspect.getdoc(prop) or ""


def fields(owner: type) -> Iterator[tuple[str, str, str]]:
    """Yield the name, the type with its default, and the docstring of each public field of a class."""
    names = vars(sys.modules[owner.__module__])
    (tree,) = ast.parse(inspect.getsource(owner)).body
    assert isinstance(tree, ast.ClassDef)
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        kind = ast.unparse(_Plain(names).visit(node.annotation))
        default = ""
        if isinstance(node.value, ast.Constant | ast.Tuple):
            default = f" = {ast.unparse(node.value)}"
        text = (
            after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
        )
        if not node.target.id.startswith("_"):
            yield f"`{node.target.id}`", f"`{kind}{default}`".replace("|", r"\|"), " ".join(str(text).split())


class _Plain(ast.NodeTransformer):
    """Replaces aliases of a module in a type by what they stand for, without restrictions such as a pattern."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.expr:
        value = self.names.get(node.id)
        if get_origin(value) is Literal:
            return ast.parse(" | ".join(map(repr, get_args(value))), mode="eval").body
        return ast.Name(value.__origin__.__name__) if hasattr(value, "__metadata__") else node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        outer = ast.unparse(node.value)
        if outer == "Literal":
            return ast.parse(ast.unparse(node.slice).strip("()").replace(", ", " | "), mode="eval").body
        if outer == "Annotated":
            assert isinstance(node.slice, ast.Tuple)
            return self.visit(node.slice.elts[0])
        self.generic_visit(node)
        return node
