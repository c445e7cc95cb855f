"""What scoring needs of a finished run, whichever network computes: a folder's recognizer or an exported file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from two_stream.config.schema import Experiment
from two_stream.data.catalog import Record, dataset_record
from two_stream.evaluation.scoring.network import ClipNetwork
from two_stream.recognizer import Recognizer
from two_stream.types import RunPaths

N_co = TypeVar("N_co", bound=Recognizer | ClipNetwork, covariant=True)


@dataclass(frozen=True)
class AnyRun(Generic[N_co]):
    """A network with the settings it was trained with, ready for scoring."""

    experiment: Experiment
    model: N_co
    class_names: list[str]
    paths: RunPaths
    """where scores go; of an exported file the folder it lies in"""
    checkpoint: str
    meta: dict[str, Any]
    """what training wrote beside the weights, for example the epoch"""

    @cached_property
    def record(self) -> Record:
        """The data set's record.

        Raises:
            DataError: It is not on this machine.
        """
        return dataset_record(self.experiment.data)

    @cached_property
    def warned(self) -> set[str]:
        """Warnings that were given and are not repeated for every video."""
        return set()

    @property
    def multi_label(self) -> bool:
        """Whether it was trained on several classes per video."""
        return bool(self.meta.get("multi_label"))

    @property
    def model_sha256(self) -> str:
        """Checksum of the weights file of the run."""
        raise NotImplementedError

    @property
    def source(self) -> str:
        """The folder or file it was read from, for messages."""
        return str(self.paths.root)

    @property
    def score_suffix(self) -> str:
        """What the names of its score files end in, so that none replaces another's."""
        return "" if self.checkpoint == "best" else f"_{self.checkpoint}"

    @property
    def facts(self) -> dict[str, Any]:
        """What its score files say in addition to, or in place of, the usual."""
        return {}
