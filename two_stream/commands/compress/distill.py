"""`two-stream compress distill RUN [RUN …] --student …`: a network learns from what trained ones say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from two_stream.commands.compress.common import (
    OVERWRITE,
    PART,
    RESUME,
    derived,
    source_experiment,
    take_part,
    train_and_report,
    trained_on,
)
from two_stream.commands.flags import take_flag, take_value
from two_stream.config.compress import Distill
from two_stream.config.load import load_experiment
from two_stream.config.schema import Experiment
from two_stream.errors import SettingsError

PROG = "two-stream compress distill"
DESCRIPTION = (
    "Train a network, the student, on its labels and on what trained runs, the teachers, make of the same moments, and "
    "report it beside the first teacher. Teachers come first or after --teachers. MARS: an RGB student, a flow "
    "teacher, --vector-weight 50 --student-weight 1 --distill-weight 0."
)
_STUDENT = (
    str,
    Field(
        description="an experiment file, a run folder (its network is trained on) or a name of the zoo (with the first "
        "teacher's data, input and training)"
    ),
)
_OWN = {"student": _STUDENT, "part": PART, "resume": RESUME, "overwrite": OVERWRITE}
_TAKEN = ("--teachers", "--compress.teachers")


def main(args: list[str]) -> int:
    """Run the method and return its exit code.

    Raises:
        TwoStreamError: A flag is wrong, teacher and student do not go together, or what training and scoring raise.
    """
    again = ["two-stream", "compress", "distill", *args]
    resume, args = take_flag(args, "--resume")
    overwrite, args = take_flag(args, "--overwrite")
    part, args = take_part(args, PROG)
    student, args = take_value(args, "--student", PROG)
    teachers, rest = _teachers(args)
    wants_help = "-h" in args or "--help" in args
    if not wants_help:
        _complain(teachers, student)
    default = Experiment() if wants_help or student is None else _student(student, teachers[0])
    experiment = derived(default, Distill(teachers=teachers), rest, f"{PROG} RUN", DESCRIPTION, _OWN)
    options = experiment.compress
    if not isinstance(options, Distill):
        raise SettingsError(f"{PROG}: --compress.kind is {options.kind}: expected distill")
    return train_and_report(experiment, teachers[0], part, again, resume=resume, overwrite=overwrite)


def _teachers(args: list[str]) -> tuple[tuple[Path, ...], list[str]]:
    """Take the teachers off: what comes before the first flag, and after `--teachers`."""
    found: list[Path] = []
    rest: list[str] = []
    taking = True
    for arg in args:
        if arg.startswith("-"):
            taking = arg in _TAKEN
            if not taking:
                rest.append(arg)
        elif taking:
            found.append(Path(arg))
        else:
            rest.append(arg)
    return tuple(found), rest


def _complain(teachers: tuple[Path, ...], student: str | None) -> None:
    example = f"for example: {PROG} demo/runs/flow --student demo/runs/rgb"
    if not teachers:
        raise SettingsError(f"{PROG}: the run folder of a teacher is missing; {example}")
    if student is None:
        raise SettingsError(
            f"{PROG}: --student is missing: an experiment file, a run folder or a name of the zoo; {example}"
        )


def _student(given: str, teacher: Path) -> Experiment:
    """Return the settings of the student's run: of a file, of a run that is trained on, or of a named network."""
    path = Path(given)
    taught = source_experiment(teacher)
    if path.suffix in (".yaml", ".yml"):
        experiment = load_experiment(path)
        return experiment.model_copy(update={"name": f"{experiment.name}_distilled"})
    if path.is_dir():
        experiment = source_experiment(path)
        return trained_on(experiment, path, f"{experiment.name}_distilled")
    if path.is_file():
        raise SettingsError(
            f"{PROG}: --student {given} is no experiment file (.yaml): expected one, a run folder or a name of the zoo"
        )
    from two_stream import zoo

    model = zoo.resolve(given, modality=taught.model.modality)
    model = model.model_copy(update={"input": taught.model.input})
    fresh: dict[str, Any] = {"init": None, "init_part": "all", "freeze_until": None}
    fresh |= dict.fromkeys(("cross_modality", "inflate", "new_classifier", "init_averaged"), False)
    return taught.model_copy(
        update={
            "name": f"{taught.name}_distilled",
            "runs": teacher.parent,
            "model": model,
            "train": taught.train.model_copy(update=fresh),
            "data": taught.data.model_copy(update={"features": None}),
        }
    )
