"""Models without a run: folders of weights, and named models with random ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from two_stream.config.schema import Experiment
from two_stream.evaluation.runs.run import AnyRun, Run
from two_stream.pretrained import read_model
from two_stream.recognizer import Recognizer, create_model
from two_stream.runtime.console import warn
from two_stream.types import RunPaths


@dataclass(frozen=True)
class BareModel(AnyRun[Recognizer]):
    """A named model as it is built; it has learned nothing."""

    @property
    def model_sha256(self) -> str:
        """Empty: there is no file of weights."""
        return ""


def named_model(name: str, num_classes: int) -> BareModel:
    """Build a model of the zoo, with random weights and numbers for class names.

    Raises:
        SettingsError: There is no such name.
    """
    model = create_model(name, num_classes).eval()
    warn(f"{name} has random weights here: the file shows that it exports, and how fast it is")
    return BareModel(
        experiment=Experiment(name=name.replace("/", "-"), model=model.options),
        model=model,
        class_names=[str(label) for label in range(num_classes)],
        paths=RunPaths(Path()),
        checkpoint="",
        meta={},
    )


def stored_model(folder: Path) -> Run:
    """Load a model folder (`model.safetensors`, as `weights convert` writes it).

    Raises:
        CheckpointError: It holds no model of ours.
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
