"""The jobs of a study, ordered by their dependencies: backbones, stored features, cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from two_stream.config.schema import Experiment, TrainOptions
from two_stream.config.study import Study
from two_stream.errors import SettingsError
from two_stream.profiling.costs import meta_model
from two_stream.studies.running.cells import StudyJob, job_of
from two_stream.studies.running.plan import Cell, backbone_cell, digest_of, folder_of, name_cell, start_digest
from two_stream.studies.running.variants import Variant, variants_of
from two_stream.types import Part

_OF_WEIGHTS = (
    "init",
    "init_part",
    "init_averaged",
    "inflate",
    "cross_modality",
    "new_classifier",
    "precision",
    "freeze_until",
)
"""training settings that determine the weights and the precision of a frozen backbone"""


@dataclass(frozen=True)
class StudyStage:
    """Jobs of a study that do not depend on each other."""

    what: str
    jobs: list[StudyJob]
    rows: list[str]
    """row name in the live table for each job"""


def parts_of(study: Study, experiment: Experiment) -> tuple[Part, ...]:
    """Return the parts that a cell is scored on: the part to compare, and the holdout if streams are fused."""
    holdout = experiment.train.selection == "holdout" and study.fusion != "none" and study.part != "val"
    return (study.part, "val") if holdout else (study.part,)


def stages_of(study: Study, cells: Sequence[Cell], source: object) -> list[StudyStage]:
    """Return all jobs that the cells require, finished or not."""
    folder = folder_of(study)
    if study.features is None:
        return [_cells(study, cells, [cell.experiment for cell in cells], folder)]
    variants = {variant.name: variant for variant in variants_of(study)}
    _check_maps(study, cells, source)
    backbones: dict[str, StudyJob] = {}
    caches: dict[str, StudyJob] = {}
    ready: list[Experiment] = []
    for cell in cells:
        if variants[cell.variant].baseline:  # the baseline does not use stored features
            ready.append(cell.experiment)
            continue
        backbone, cache, experiment = _frozen(study, variants[cell.variant], cell, source)
        if backbone is not None:
            backbones[backbone.key] = backbone
        caches[cache.key] = cache
        ready.append(experiment)
    return [
        *([_stage("backbones", backbones.values())] if backbones else []),
        _stage("features", caches.values()),
        _cells(study, cells, ready, folder),
    ]


def _check_maps(study: Study, cells: Sequence[Cell], source: object) -> None:
    """Check that no head requires feature maps if the study stores only tokens.

    Raises:
        SettingsError: A head requires feature maps.
    """
    if study.features is None or study.features.maps:
        return
    options = {cell.variant: cell.experiment.model for cell in cells}
    for name, model in options.items():
        if any(getattr(head, "needs_maps", False) for head in meta_model(model, 2).heads):
            raise SettingsError(
                f"{source}: variant {name!r}: the head requires feature maps, but the study stores only tokens; "
                "set `features: {maps: true}`"
            )


def _stage(what: str, jobs: Iterable[StudyJob]) -> StudyStage:
    listed = list(jobs)
    return StudyStage(what, listed, [job.title for job in listed])


def _cells(study: Study, cells: Sequence[Cell], ready: Sequence[Experiment], folder: Path) -> StudyStage:
    jobs = [
        job_of(
            experiment,
            folder,
            title=cell.title,
            key=cell.key,
            loose_key=cell.loose_key,
            parts=parts_of(study, experiment),
        )
        for cell, experiment in zip(cells, ready, strict=True)
    ]
    return StudyStage("cells", jobs, [cell.variant for cell in cells])


def _frozen(
    study: Study, variant: Variant, cell: Cell, source: object
) -> tuple[StudyJob | None, StudyJob, Experiment]:
    """Return the job of a cell's backbone (if it is trained), the job of its features, and settings that use them."""
    assert study.features is not None
    folder, options = folder_of(study), study.features
    train = cell.experiment.train
    backbone = None
    start = loose = start_digest(cell.experiment)
    if options.backbone is not None:
        first = backbone_cell(study, variant, cell.split, source)
        backbone = job_of(
            first.experiment,
            folder,
            title=f"backbone, split {cell.split}",
            key=first.key,
            loose_key=first.loose_key,
            parts=(study.part,),
        )
        start, loose = first.key, first.loose_key
        train = train.model_copy(update={"init": first.folder, "init_part": "backbone"})
    experiment = cell.experiment.model_copy(update={"train": train})
    cache = _cache(study, experiment, cell.split, (start, loose))
    data = experiment.data.model_copy(update={"features": Path(cache.out)})
    return backbone, cache, experiment.model_copy(update={"data": data})


def _cache(study: Study, experiment: Experiment, split: int, start: tuple[str, str]) -> StudyJob:
    """Return the job that stores the features of a backbone; all heads and seeds share these features."""
    assert study.features is not None
    plain = experiment.model.model_copy(
        update={"head": type(experiment.model)().head, "dropout": 0.0, "standardize": False}
    )
    train = {name: getattr(experiment.train, name) for name in _OF_WEIGHTS}
    shared = experiment.model_copy(
        update={"model": plain, "seed": study.seeds[0], "train": TrainOptions().model_copy(update=train)}
    )
    views = digest_of([study.features.model_dump(mode="json"), experiment.evaluate.model_dump(mode="json")])
    cell = name_cell(shared, "features", split, study.seeds[0], start=start, extra=views)
    folder = folder_of(study)
    renamed = shared.model_copy(update={"name": cell.experiment.name})
    return job_of(
        renamed,
        folder,
        title=f"features, split {split}",
        key=cell.key,
        loose_key=cell.loose_key,
        kind="features",
        out=str(folder / "features" / cell.experiment.name),
        train_views=study.features.train_views,
        maps=study.features.maps,
    )
