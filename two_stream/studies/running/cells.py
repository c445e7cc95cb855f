"""The jobs of a study and their outcomes.

The outcome of a cell is stored in `<study>/cells/<run>.json`. If the score files of a cell are changed, the cell must
be run again. If the process of a job was killed, the job is resumed.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from two_stream.config.load import dump, load_experiment, parse_yaml, validate_settings
from two_stream.config.schema import Experiment, Logistic
from two_stream.errors import TwoStreamError
from two_stream.evaluation.runs.lookup import locate_data
from two_stream.runtime.files import sha256, write_json, write_text
from two_stream.runtime.text import parse_json
from two_stream.studies.running.plan import digest_of, start_digest, with_setting
from two_stream.types import Part, RunPaths

if TYPE_CHECKING:
    from two_stream.evaluation.features.cache import SharedFeatures
    from two_stream.runtime.distributed import StopRequest

Kind = Literal["train", "features"]
_UNEXPECTED = (RuntimeError, MemoryError, OSError, ValueError, ArithmeticError, LookupError, TypeError)


@dataclass(frozen=True)
class StudyJob:
    """Work for a separate process, as plain values that can be sent to the process."""

    title: str
    experiment: str
    """settings as YAML"""
    record: str
    """path of the file for the job's outcome"""
    log: str
    key: str
    loose_key: str = ""
    """like `key`, but computed without the hash of the code"""
    group: str = ""
    """jobs with the same text can run side by side in a process; see `group_of`"""
    kind: Kind = "train"
    parts: tuple[Part, ...] = ("test",)
    """parts of the data on which a trained run is scored"""
    epochs: int = 0
    """number of training epochs for the progress display; 0 for no progress"""
    run: str = ""
    out: str = ""
    """folder for stored features"""
    train_views: int = 1
    maps: bool = False
    threads: int = 0
    device: str = ""
    """device to run on; if empty, the device in the settings"""

    @property
    def target(self) -> str:
        """The folder that the job writes to."""
        return self.out or self.run

    def settings(self) -> Experiment:
        """Return the settings with the device and the threads of the job."""
        experiment = validate_settings(Experiment, parse_yaml(self.experiment, self.title), self.title)
        given: dict[str, Any] = {"device": self.device} if self.device else {}
        if self.threads and not experiment.threads:
            given["threads"] = self.threads
        return experiment.model_copy(update=given)


@dataclass(frozen=True)
class StudyOutcome:
    """The outcome of a job."""

    state: Literal["done", "failed", "interrupted"]
    key: str = ""
    """hash of the resolved settings, the code and the data"""
    reason: str = ""
    """why the job failed"""
    seconds: float = 0.0
    accuracy: float | None = None
    """accuracy on the first part that was scored"""
    scores: dict[str, list[str]] = field(default_factory=dict)
    """`{part: [score file, SHA-256 of the file]}`"""
    evaluate: str = ""
    """evaluation settings as JSON"""
    model_sha256: str = ""
    """SHA-256 of the trained weights, or of the weights that computed the stored features"""
    loose_key: str = ""
    """like `key`, but computed without the hash of the code"""
    run: str = ""
    """folder of the run or of the stored features"""

    @property
    def done(self) -> bool:
        """Whether the job has a result."""
        return self.state == "done"


def job_of(experiment: Experiment, study: Path, **facts: Any) -> StudyJob:
    """Return the job that computes a run; `facts` contains the other fields of `StudyJob`."""
    return StudyJob(
        experiment=dump(experiment),
        record=str(study / "cells" / f"{experiment.name}.json"),
        log=str(study / "logs" / f"{experiment.name}.log"),
        run=str(experiment.runs / experiment.name),
        epochs=experiment.train.epochs,
        **facts,
    )


_OF_GROUP = {
    "": {"seed", "device", "threads", "deterministic", "channels_last", "data"},
    "model": {"modality", "backbone", "reduction", "reduced_channels", "input"},
    "train": {
        "init",
        "init_part",
        "init_averaged",
        "inflate",
        "cross_modality",
        "batch_size",
        "accumulate",
        "precision",
    },
}
"""settings that determine the frozen backbone and the batches of a training on stored features"""


def group_of(experiment: Experiment) -> str:
    """Return what trainings on stored features must have in common to run side by side; empty for other trainings."""
    alone = isinstance(experiment.train.optimizer, Logistic) or experiment.compress.kind != "none"
    if experiment.data.features is None or alone:
        return ""
    sections = {name: getattr(experiment, name) if name else experiment for name in _OF_GROUP}
    found = [sections[name].model_dump(mode="json", include=keys) for name, keys in _OF_GROUP.items()]
    return digest_of(found)


def outcome_of(job: StudyJob) -> StudyOutcome | None:
    """Return the stored outcome of a job; None if the job must be run.

    A job must be run again if its settings, data or code have changed, if its score files are missing or changed, or if
    its evaluation settings have changed.
    """
    try:
        outcome = read_outcome(Path(job.record))
    except (OSError, ValueError, TypeError):
        return None
    usable = outcome.key == job.key and (not outcome.done or is_complete(job, outcome))
    return outcome if usable else None


def read_outcome(path: Path) -> StudyOutcome:
    """Read a stored outcome. Its paths are returned for the current place of the study's folder.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is damaged.
        TypeError: The file is damaged.
    """
    outcome, study = StudyOutcome(**parse_json(path.read_text(encoding="utf-8"))), path.parent.parent
    scores = {  # STUDY/runs/CELL/scores/FILE
        part: [str(study.joinpath(*Path(file).parts[-4:])), digest]
        for part, (file, digest) in dict(outcome.scores).items()
    }
    run = str(study.joinpath(*Path(outcome.run).parts[-2:])) if outcome.run else ""
    return replace(outcome, scores=scores, run=run)


def is_complete(job: StudyJob, outcome: StudyOutcome) -> bool:
    """Return whether the score files or stored features of a result exist, are unchanged and fit the job's settings."""
    if job.kind == "features":
        return _stored(job, outcome)
    if outcome.evaluate != _scoring(job.settings()) or set(job.parts) - set(outcome.scores):
        return False
    return all(
        Path(file).is_file() and sha256(Path(file)) == digest for file, digest in outcome.scores.values()
    )


def _stored(job: StudyJob, outcome: StudyOutcome) -> bool:
    from two_stream.evaluation.features.cache import FeatureCache

    try:
        FeatureCache(outcome.run)
        return outcome.model_sha256 in ("", start_digest(job.settings()))
    except TwoStreamError:
        return False


def _scoring(experiment: Experiment) -> str:
    return json.dumps(experiment.evaluate.model_dump(mode="json"), sort_keys=True)


def run_job(job: StudyJob) -> StudyOutcome:
    """Run a job in this process and store its outcome. If the job raises an error, the outcome is "failed".

    Raises:
        KeyboardInterrupt: The job was interrupted; its progress has been saved.
    """
    begin = time.monotonic()
    (outcome,) = filter(None, _steps(job))
    return _ended(job, outcome, time.monotonic() - begin)


def run_side_by_side(
    jobs: Sequence[StudyJob], logged: Callable[[StudyJob], AbstractContextManager[None]]
) -> Generator[tuple[int, StudyOutcome]]:
    """Run jobs of one group in this process, which take turns of one optimizer step.

    The jobs share the frozen backbone and the batches of stored features, and their results equal those of `run_job`.
    If a job fails unexpectedly, for example for lack of memory, it is run again alone after the others.

    Args:
        jobs: Jobs with the same `group`, or a single job.
        logged: Function that returns a context for the output of a job.

    Yields:
        The index in `jobs` of each job that ends, and its outcome.
    """
    alone = [] if len(jobs) > 1 else [0]
    if len(jobs) > 1:
        yield from _take_turns(jobs, logged, alone)
    for place in alone:
        with logged(jobs[place]):
            outcome = run_job(jobs[place])
        yield place, outcome


def _take_turns(
    jobs: Sequence[StudyJob], logged: Callable[[StudyJob], AbstractContextManager[None]], alone: list[int]
) -> Generator[tuple[int, StudyOutcome]]:
    """Run jobs in turns, and add those that failed unexpectedly to `alone`."""
    import traceback

    from two_stream.evaluation.features.cache import SharedFeatures
    from two_stream.runtime.distributed import StopRequest

    shared = SharedFeatures()
    seconds = [0.0] * len(jobs)
    with StopRequest() as stop:
        turns = {place: _steps(job, shared, stop) for place, job in enumerate(jobs)}
        while turns:
            for place, steps in list(turns.items()):
                begin, outcome = time.monotonic(), None
                with logged(jobs[place]):
                    try:
                        outcome = next(steps)
                    except _UNEXPECTED:
                        traceback.print_exc()
                        del turns[place]
                        alone.append(place)
                seconds[place] += time.monotonic() - begin
                if outcome is not None:
                    del turns[place]
                    yield place, _ended(jobs[place], outcome, seconds[place])
        if stop:  # the jobs that failed are run by the next call of the study
            alone.clear()


def _steps(
    job: StudyJob, shared: SharedFeatures | None = None, stop: StopRequest | None = None
) -> Iterator[StudyOutcome | None]:
    """Run a job. Yields None before each optimizer step, and the outcome at the end.

    With `shared`, unexpected errors are raised.
    """
    try:
        outcome = _features(job) if job.kind == "features" else (yield from _trained(job, shared, stop))
    except TwoStreamError as error:
        outcome = StudyOutcome("failed", job.key, " ".join(str(error).split()))
    except _UNEXPECTED as error:
        if shared is not None:
            raise
        import traceback

        traceback.print_exc()
        reason = " ".join(str(error).split())[:300]
        outcome = StudyOutcome("failed", job.key, f"{type(error).__name__}: {reason} (see {job.log})")
    yield outcome


def _ended(job: StudyJob, outcome: StudyOutcome, seconds: float) -> StudyOutcome:
    """Store the outcome of a job that took some seconds in this process; an interrupted job has no stored outcome."""
    if outcome.state == "interrupted":
        return outcome
    before = outcome_of(job) if outcome.done else None
    return record_outcome(job, replace(outcome, seconds=seconds + (before.seconds if before else 0.0)))


def record_outcome(job: StudyJob, outcome: StudyOutcome) -> StudyOutcome:
    """Store the outcome of a job."""
    outcome = replace(outcome, loose_key=job.loose_key, run=job.target)
    write_json(Path(job.record), asdict(outcome))
    return outcome


def _trained(
    job: StudyJob, shared: SharedFeatures | None, stop: StopRequest | None
) -> Generator[None, None, StudyOutcome]:
    from two_stream.evaluation.runs.run import evaluate_run, load_run
    from two_stream.evaluation.scores.metrics import main_value
    from two_stream.training.train import train_steps

    experiment = job.settings()
    if experiment.compress.kind != "none":
        from two_stream import compression  # noqa: F401 - registers the training extensions
    paths = RunPaths(Path(job.run))
    resumed = _resumed(experiment, paths)
    result = yield from train_steps(
        resumed or experiment, resume=resumed is not None, shared=shared, stop=stop
    )
    if result.interrupted is not None or stop:
        return StudyOutcome("interrupted", job.key)
    scores: dict[str, list[str]] = {}
    accuracy = model = None
    run = load_run(paths.root, "best", experiment.device, backbone=None if shared is None else shared.scored)
    if shared is not None:
        shared.scored = run.model.backbone
    data = run.experiment.data.model_copy(update={"features": experiment.data.features})
    run = replace(run, experiment=run.experiment.model_copy(update={"data": data}))
    for part in job.parts:
        table, path = evaluate_run(run, part=part)
        scores[part] = [str(path), sha256(path)]
        if accuracy is None:
            accuracy, model = main_value(table.logits, table), str(table.meta["model_sha256"])
    return StudyOutcome(
        "done",
        job.key,
        accuracy=accuracy,
        scores=scores,
        evaluate=_scoring(experiment),
        model_sha256=model or "",
    )


def _resumed(experiment: Experiment, paths: RunPaths) -> Experiment | None:
    """Return the settings that resume a run; None if the run must start from the beginning.

    If the evaluation settings have changed, the study stores new features in another folder. The training still resumes
    with the features it started with, which contain the same training clips. If the old features are missing, the
    training starts from the beginning.
    """
    if not paths.experiment.is_file():
        return None
    before = load_experiment(paths.experiment)
    # the key contains the hashes of the initial weights and of the teachers, so their files may only have been moved
    moved = with_setting(before, "train.init", experiment.train.init)
    moved = moved.model_copy(update={"compress": experiment.compress})
    if moved != before:
        write_text(paths.experiment, dump(moved))
    features, now = locate_data(paths, before).data.features, experiment.data.features
    if features == now or (features and now and features.resolve() == now.resolve()):
        return experiment
    if features is None or not (features / "features.json").is_file():
        shutil.rmtree(paths.root)
        return None
    return with_setting(experiment, "data.features", features)


def _features(job: StudyJob) -> StudyOutcome:
    from two_stream.evaluation.features.extract_features import write_features
    from two_stream.runtime.device import pick_device, set_deterministic, set_threads
    from two_stream.training.train import start_model

    experiment = job.settings()
    device = pick_device(experiment.device)
    set_threads(experiment.threads)
    model = start_model(experiment).to(device)
    set_deterministic(experiment.deterministic, device)
    write_features(
        model, experiment, Path(job.out), train_views=job.train_views, maps=job.maps, overwrite=True
    )
    return StudyOutcome("done", job.key, model_sha256=start_digest(experiment))


def to_wire(*values: StudyJob | StudyOutcome | int) -> bytes:
    """Encode jobs, or the number of a job and its outcome, as one line."""
    return (
        json.dumps([value if isinstance(value, int) else asdict(value) for value in values]).encode() + b"\n"
    )


def job_from(values: Mapping[str, Any]) -> StudyJob:
    """Return the job from the decoded values of a line."""
    return StudyJob(**{**values, "parts": tuple(values["parts"])})
