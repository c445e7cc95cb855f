"""The Python interface: networks with published weights, trained runs, and scores.

The names are imported from the package, for example `from two_stream import load_run`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from two_stream import recognizer
from two_stream.config.load import validate_settings
from two_stream.config.model import ModelOptions
from two_stream.config.schema import EvaluateOptions
from two_stream.errors import ScoreError, SettingsError, TwoStreamError
from two_stream.evaluation.runs import none_of_these, run
from two_stream.evaluation.runs.lookup import Roots
from two_stream.evaluation.scores import fusion, metrics
from two_stream.evaluation.scores.files import find_scores, read_scores
from two_stream.evaluation.scoring.saliency import Method, SaliencyOptions
from two_stream.evaluation.scoring.video import clip_spans, fuse_results, score_file, top_classes
from two_stream.recognizer import Recognizer
from two_stream.runtime.console import warn
from two_stream.types import ScoreTable
from two_stream.video.decoding.memory import Source

if TYPE_CHECKING:
    from two_stream.evaluation.pictures.attention import StreamAttention
    from two_stream.evaluation.pictures.saliency import StreamSaliency
    from two_stream.studies.statistics.results import StudyResult

__all__ = [
    "Features",
    "Prediction",
    "Run",
    "compare",
    "confusion",
    "create_model",
    "fuse",
    "load_run",
    "read_scores",
]
_SHOWN = 3
"""number of classes in the text of a prediction"""


def create_model(
    name_or_options: str | ModelOptions,
    num_classes: int | None = None,
    *,
    pretrained: bool | Path | str = False,
    **options: Any,
) -> Recognizer:
    """Build a recognizer from its name, with random or published weights.

    Args:
        name_or_options: Name of a model (`two-stream models`), with `pretrained=True` also of published weights
            (`two-stream weights list`); or `ModelOptions(...)`.
        num_classes: K, the number of classes. With weights, the default is theirs; another number replaces the
            classifier by a random one.
        pretrained: True for published weights, which are downloaded if they are neither in the folder
            $TWO_STREAM_WEIGHTS nor in the cache; or a checkpoint file, or a folder with a model or run.
        **options: Fields of `ModelOptions` to change; see `recognizer.create_model`.

    Raises:
        SettingsError: Unknown name (the message suggests similar ones), or no weights are published for this model.
        CheckpointError: The weights cannot be downloaded or read, or do not fit.
    """
    from two_stream.pretrained.loading import count_classes, load_weights

    own = None
    if pretrained is True:
        from two_stream.pretrained.files.fetch import fetch_model

        name_or_options, pretrained, own = fetch_model(name_or_options)
    elif pretrained:
        own = count_classes(Path(pretrained))
    count = own if num_classes is None else num_classes
    if count is not None and (isinstance(count, bool) or not isinstance(count, int)):
        raise SettingsError(f"`num_classes` is {count!r}; expected a whole number")
    if count is None:
        raise SettingsError("`num_classes` is missing; expected the number of classes, or `pretrained`")
    model = recognizer.create_model(name_or_options, count, **options)
    if pretrained:
        load_weights(model, Path(pretrained), new_classifier=count != own)
    return model


@dataclass(frozen=True)
class Prediction:
    """Prediction for a video."""

    video: str
    class_names: list[str]
    probabilities: NDArray[np.float64]
    """probabilities of the classes `(K,)`"""
    frames: int
    """number of frames that could be decoded"""
    threshold: float = 0.0
    """least probability of the best class for which it is the label; see `two-stream evaluate --false-alarms`"""

    @property
    def label(self) -> str:
        """The most likely class, or "none of these"."""
        best = int(self.probabilities.argmax())
        return self.class_names[best] if self.probabilities[best] >= self.threshold else none_of_these.NONE

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the most likely classes with their probabilities, the best first."""
        return top_classes(self.probabilities, self.class_names, max(0, count))

    def __repr__(self) -> str:
        best = ", ".join(f"{name} {100 * share:.1f} %" for name, share in self.top(_SHOWN))
        return f"Prediction({self.video}: {self.label}; {best})"

    def _repr_html_(self) -> str:
        return _html(
            [
                ("video", self.video),
                ("label", self.label),
                *((name, f"{100 * share:.1f} %") for name, share in self.top()),
            ]
        )


@dataclass(frozen=True)
class Features:
    """Vectors of a video, one for each window: what the classifier of the network receives."""

    vectors: NDArray[np.float32]
    """`(windows, D)`"""
    first: NDArray[np.int64]
    """number (from 1) of the first image of each window"""
    last: NDArray[np.int64]
    """number of the last image of each window"""
    start: NDArray[np.float64] | None
    """start of each window in seconds; None if the video has no times"""
    end: NDArray[np.float64] | None
    """end of each window in seconds"""

    def __repr__(self) -> str:
        return (
            f"Features({' × '.join(map(str, self.vectors.shape))}, images {self.first[0]} to {self.last[-1]})"
        )


class Run(run.Run):
    """A trained network with its settings; see `load_run`."""

    def predict(self, video: Source | list[Source], *, flow: str | None = None, **options: Any) -> Any:
        """Predict the class of a video, or of each video in a list.

        Args:
            video: A video file, a folder of numbered images, an array uint8 `(T, H, W, 3)` in RGB order, or a part
                `(video, start, end)` in seconds; or a list of these, which share batches. A flow network computes flow
                from the images, unless a folder contains stored flow (`flow_x_00001.jpg`, …) and `flow` is None.
            flow: Flow algorithm: dis, farneback or tvl1; by default that of the training if it is fast, otherwise dis.
            **options: Evaluation settings to change, such as `views="single"` or `crops="center"`.

        Returns:
            A `Prediction`, or a list of them.

        Raises:
            VideoError: A video cannot be read.
            SettingsError: An option is unknown or wrong.
        """
        videos = video if isinstance(video, list) else [video]
        reading = run.reading_of(self, flow=flow, videos=videos)
        scored = run.score_each([self], videos, [self._options(options, "predict")], [reading])
        found = []
        for one, results in zip(videos, scored):
            if isinstance(results, TwoStreamError):
                raise results
            shares = fuse_results(results)
            found.append(Prediction(_name(one), self.class_names, shares, results[0].frames, self.threshold))
        return found if isinstance(video, list) else found[0]

    def _options(self, changes: Mapping[str, Any], what: str) -> EvaluateOptions:
        return validate_settings(EvaluateOptions, self.experiment.evaluate.model_dump() | dict(changes), what)

    @cached_property
    def threshold(self) -> float:
        """Threshold for "none of these" that is stored in the run folder; 0 if there is none."""
        return none_of_these.read_threshold([(self.paths.root, self.model_sha256)], "l2", None)

    def evaluate(self, part: str = "test", **options: Any) -> ScoreTable:
        """Score a part of the run's data set, and write the score file to the run folder.

        Args:
            part: `test`, `val` or `train`.
            **options: Evaluation settings to change, such as `views="single"` or `crops="center"`.

        Raises:
            DataError: The data set is not on this machine.
        """
        if part not in ("test", "val", "train"):
            raise SettingsError(f"evaluate: the part is {part!r}; expected test, val or train")
        return run.evaluate_run(self, self._options(options, "evaluate"), part)[0]  # type: ignore[arg-type]

    def features(self, video: Source, step: int | None = None) -> Features:
        """Return the vectors of sliding windows of a video, from the centre crop.

        Times and frame numbers of a part of a video are counted from the start of the part.

        Args:
            video: As for `predict`.
            step: Number of frames between the starts of windows; by default half a window.
        """
        changes = {"views": "sliding", "crops": "center", "step": step, "aggregate": "logits"}
        options, reading = self._options(changes, "features"), run.reading_of(self, videos=[video])
        result = score_file(self.model, video, options, reading, compute=Recognizer.vectors_of_normalised)
        clips = clip_spans(options, self.model.spec, result.seen, reading.sampling)
        first, last, *ends = map(np.array, zip(*(result.span(*clip) for clip in clips)))
        return Features(result.view_logits, first, last, *((None, None) if result.times is None else ends))

    def attention(self, video: Source) -> StreamAttention:
        """Return the attention of the head to each time step in the middle clip of a video.

        `pathways[0].weights` are the weights `(attention heads, time steps)`. Those of a class token do not include its
        attention to itself, so their sum is below 1.

        Raises:
            SettingsError: The head has no attention weights.
        """
        from two_stream.evaluation.pictures.attention import read_attention

        return read_attention(
            self.model,
            video,
            self.experiment.evaluate,
            run.reading_of(self, videos=[video]),
            self.class_names,
        )

    def saliency(
        self,
        video: Source,
        target: str | Sequence[str] | None = None,
        *,
        method: Method = "grad-cam",
        stage: str | None = None,
    ) -> StreamSaliency:
        """Return where in the middle clip of a video, in space and time, the network finds a class.

        `pathways[0].values` is the map `(T, H, W)`. `box` is the part of the picture that it covers.

        Args:
            video: As for `predict`.
            target: A class; or two classes, for what speaks for the first rather than the second. The default is the
                most likely class of the clip.
            method: `grad-cam` or `layer-cam`.
            stage: Stage of the backbone whose map is used (`model.backbone.stages()`); default: the last one.

        Raises:
            SettingsError: There is no such class or stage, or the network computes in int8.
        """
        from two_stream.evaluation.pictures.saliency import read_saliency

        classes = () if target is None else (target,) if isinstance(target, str) else tuple(target)
        return read_saliency(
            self.model,
            video,
            self.experiment.evaluate,
            run.reading_of(self, videos=[video]),
            self.class_names,
            SaliencyOptions(classes, method, stage or ""),
        )

    def push(self, repo: str, *, license: str, private: bool = False, video_names: bool = False) -> str:
        """Upload the run to the Hugging Face hub with a model card, and return the address of the repository.

        Args:
            repo: Repository, such as `ada/waves-rgb`; it is created if it does not exist.
            license: License of the weights, as an id of the hub: mit, apache-2.0, cc-by-4.0, …
            private: Whether to create the repository as a private one.
            video_names: Whether score files keep the names of videos and sources instead of hashes.

        Raises:
            CheckpointError: The hub cannot be reached or rejects the upload.
        """
        from two_stream.evaluation.runs.publish import Publication, push_run

        return push_run(self, Publication(repo, license, video_names), private=private)

    def _facts(self) -> list[tuple[str, str]]:
        model, spec = self.experiment.model, self.model.spec
        size, rate = "×".join(map(str, spec.size)), f" at {spec.fps:g} per second" if spec.fps else ""
        return [
            ("run", str(self.paths.root)),
            ("network", f"{model.backbone.kind} + {model.head.kind}, {model.modality}"),
            ("input", f"{spec.clip_length} frames with stride {spec.stride}{rate}, {size}"),
            ("classes", f"{len(self.class_names)}: {', '.join(self.class_names[:_SHOWN])}, …"),
            ("data", f"{self.experiment.data.dataset}, split {self.experiment.data.split}"),
            ("checkpoint", f"{self.checkpoint}, epoch {self.meta.get('epoch', '?')}"),
        ]

    def __repr__(self) -> str:
        return "\n".join(f"{name:<11}{text}" for name, text in self._facts())

    def _repr_html_(self) -> str:
        return _html(self._facts())


def load_run(path: Path | str, checkpoint: str = "best", device: str = "cpu", data_root: Roots = None) -> Run:
    """Load a run folder, or a run on the Hugging Face hub.

    Args:
        path: The run folder; or `hf://NAME/MODEL`, or `hf://NAME/MODEL@REVISION`.
        checkpoint: `best` or `last`.
        device: auto, cpu, cuda, cuda:N or mps.
        data_root: Folder of the data set's `dataset.yaml` (of stored features, of shards), or several such folders, if
            data or runs have been moved.

    Raises:
        CheckpointError: The folder is not a run folder, or the checkpoint is missing or damaged.
        SettingsError: The settings cannot be read, or the device does not exist.
    """
    found = run.load_run(path, checkpoint, device, data_root)
    return Run(**{one.name: getattr(found, one.name) for one in fields(found)})


def fuse(
    tables: Sequence[ScoreTable | Run | Path | str],
    rule: str = "l2",
    weights: Sequence[float] | None = None,
    *,
    fit: Sequence[ScoreTable | Run | Path | str] | None = None,
) -> ScoreTable:
    """Fuse score tables, score files or runs of the same videos.

    Args:
        tables: Two or more; a run stands for its newest test scores.
        rule: `l2`, `logits`, `probabilities`, `rank` or `learned`.
        weights: One weight for each table; by default all are equal.
        fit: Scores of the holdout part for each table, to fit the weights on.

    Raises:
        ScoreError: The files cannot be read or are of different videos, or the rule or the weights are wrong.
    """
    if isinstance(tables, (str, Path)) or not isinstance(tables, Sequence):
        raise ScoreError("expected a list of two or more score tables, files or runs")
    found = [_table(one) for one in tables]
    protocols = dict.fromkeys(str(table.meta.get("protocol")) for table in found)
    if len(protocols) > 1:
        warn(f"the streams were scored with different protocols: {'; '.join(protocols)}")
    return fusion.fuse(found, rule, weights, fit=None if fit is None else [_table(one, "val") for one in fit])


def compare(
    sources: Mapping[str, ScoreTable | Run | Path | str], *, baseline: str | None = None, level: float = 0.95
) -> StudyResult:
    """Compare score tables, score files or run folders of the same videos, with intervals and paired tests.

    Args:
        sources: Variants by name; each is one training run.
        baseline: Variant to compare all others with; by default the first one.
        level: Confidence level of the intervals.

    Raises:
        ScoreError: The files cannot be read or their videos, data or protocols differ.
    """
    from two_stream.studies.statistics import scored, summary

    if not isinstance(sources, Mapping) or len(sources) < 2:
        raise ScoreError("expected two or more variants by name, such as {'rgb': …, 'flow': …}")
    baseline = next(iter(sources)) if baseline is None else baseline
    if baseline not in sources:
        raise ScoreError(f"the baseline is {baseline!r}; expected one of: {', '.join(sources)}")
    if not 0.5 <= level < 1:
        raise SettingsError(f"the level is {level}; expected a number from 0.5 to below 1, such as 0.95")
    groups = {name: [scored.with_run(_table(source))] for name, source in sources.items()}
    asked = summary.Question(
        name="compare",
        question=f"Which is better: {', '.join(sources)}?",
        fusion_rule=None,
        level=level,
        command="two_stream.compare",
    )
    pairs = [(f"against {baseline}", name, baseline) for name in sources if name != baseline]
    notes = scored.check_comparable(groups)
    return summary.study_result(
        asked, scored.runs_of_variants(groups), pairs, runs=scored.run_rows(groups), notes=notes
    )


def confusion(table: ScoreTable | Run | Path | str) -> NDArray[np.int64]:
    """Return the confusion matrix `(K, K)` as counts: rows are true classes, columns are predicted classes.

    Raises:
        ScoreError: The data set is multi-label.
    """
    found = _table(table)
    if found.targets is not None:
        raise ScoreError("a confusion matrix requires one class per video, but this data set is multi-label")
    return metrics.confusion_matrix(found.logits, found.labels)


def _table(source: ScoreTable | Run | Path | str, part: str = "test") -> ScoreTable:
    """Return a table; for a run, its newest scores of the part."""
    if isinstance(source, ScoreTable):
        return source
    place = source.paths.root if isinstance(source, run.Run) else source
    if not isinstance(place, (str, Path)):
        raise ScoreError(f"found {type(source).__name__}; expected a score table, a score file or a run")
    return read_scores(find_scores(place, part), part=part)


def _name(video: Source) -> str:
    if isinstance(video, tuple):
        return f"{_name(video[0])}, {video[1]:g} to {video[2]:g} s"
    return f"array {video.shape}" if isinstance(video, np.ndarray) else str(video)


def _html(rows: Sequence[tuple[str, str]]) -> str:
    """Return a small table for notebooks."""
    cells = (f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in rows)
    return f"<table>{''.join(cells)}</table>"
