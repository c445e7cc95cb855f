"""Loads the networks named on a command line: run folders, and files that `two-stream export` wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from two_stream.config.load import load_experiment, validate_settings
from two_stream.config.schema import EvaluateOptions
from two_stream.errors import SettingsError

if TYPE_CHECKING:
    from two_stream.config.schema import Experiment
    from two_stream.evaluation.runs.run import AnyRun


def load_network(
    path: Path,
    checkpoint: str = "best",
    device: str = "auto",
    trust: Sequence[Path] = (),
    data_root: Sequence[Path] = (),
) -> AnyRun[Any]:
    """Load a run (see `find_run`) or a file of `two-stream export`; only files in `trust` may contain machine code.

    Raises:
        TwoStreamError: The path is neither of these, or it cannot be read.
    """
    from two_stream.evaluation.runs.lookup import locate_data

    if path.is_file():
        from two_stream.export import load
        from two_stream.pretrained.kinds import refuse_checkpoint

        refuse_checkpoint(path, "run")
        run = load(path, device, trust=any(path.resolve() == one.resolve() for one in trust))
        return replace(run, experiment=locate_data(run.paths, run.experiment, data_root))
    from two_stream.evaluation.runs.run import load_run

    return load_run(path, checkpoint, device, data_root)


def network_settings(path: Path) -> Experiment:
    """Return the settings of a run folder or an exported file, without loading its network.

    Raises:
        CheckpointError: The path is neither of these.
        SettingsError: The settings are invalid.
    """
    if path.is_file():
        from two_stream.export import read_card
        from two_stream.pretrained.kinds import refuse_checkpoint

        refuse_checkpoint(path, "run")
        return read_card(path).settings(path)
    return run_settings(path)


def run_settings(path: Path) -> Experiment:
    """Return the settings of a run folder, with the places of its data on this machine.

    Raises:
        CheckpointError: The path is not a run folder.
        SettingsError: The settings are invalid.
    """
    from two_stream.evaluation.runs.lookup import locate_data, run_paths

    paths = run_paths(path)
    return locate_data(paths, load_experiment(paths.experiment))


def check_modality(run: AnyRun[Any], path: Path, modality: str) -> None:
    """Reject a run that was passed with the flag of the other modality.

    Raises:
        SettingsError: The modality differs; the message names the right flag.
    """
    found = run.model.spec.modality
    if found != modality:
        raise SettingsError(f"--{modality} {path}: this run uses {found}; pass it with --{found}")


def evaluation_options(run: AnyRun[Any], given: Mapping[str, Any], command: str) -> EvaluateOptions:
    """Return the evaluation options of a run with changes by flags.

    Raises:
        SettingsError: A value is wrong, or a flag belongs to other views.
    """
    settings = run.experiment.evaluate.model_dump() | dict(given)
    for key, views in (("num_clips", "uniform"), ("step", "sliding")):
        if key in given and settings["views"] != views:
            flag = "--" + key.replace("_", "-")
            raise SettingsError(
                f"{flag} applies only to {views} views, but {run.source} is scored with {settings['views']} views;"
                f" add --views {views} or omit {flag}"
            )
    return validate_settings(EvaluateOptions, settings, command)
