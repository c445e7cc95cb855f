"""Writes the folder that `two-stream push` uploads: weights, settings, scores, and a model card made from them.

Nothing in the folder names a place on this machine: folders are removed from all paths. Names of videos and of their
sources are replaced by hashes, unless they are asked for.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import yaml
from safetensors.torch import load_file, save_file

from two_stream.config.load import dump, validate_settings
from two_stream.config.schema import Experiment
from two_stream.errors import SettingsError
from two_stream.evaluation.runs import none_of_these
from two_stream.evaluation.runs.lookup import checkpoint_folder, environment_of
from two_stream.evaluation.runs.run import Run
from two_stream.evaluation.scores import words
from two_stream.evaluation.scores.files import read_scores, write_scores
from two_stream.pretrained import WEIGHTS
from two_stream.pretrained.files.hub import REPO, is_on_hub, upload_run
from two_stream.pretrained.reading import read_metadata
from two_stream.runtime.console import warn
from two_stream.runtime.files import sha256 as checksum
from two_stream.runtime.files import write_checksums, write_json, write_text
from two_stream.runtime.provenance import code_version
from two_stream.runtime.text import json_text, parse_json, plural
from two_stream.types import InputSpec, ScoreTable, size_text

LICENSES = "mit, apache-2.0, cc-by-4.0, cc-by-nc-4.0, other"
CARD = "README.md"
CONFIG = "config.json"
HASHED = "sha256"
"""value of `ids` in the metadata of a score file whose names of videos and sources are hashes"""
_PLACE = re.compile(r"(?:[A-Za-z]:|~\w*|\.{1,2}|[a-z][a-z0-9+.-]*:/)?[\\/]")
"""start of a path that depends on the machine, or of an address"""
_INSIDE = re.compile(r"(?<=[\s'\"(=,:])(?:[A-Za-z]:|~\w*|\.{1,2})?[\\/](?:[^\s'\"]*[\\/])?")
_NAMES = ("class_names", "classes")


@dataclass(frozen=True)
class Publication:
    """What is published, and how."""

    repo: str
    license: str
    video_names: bool = False
    """whether score files contain the names of videos and sources instead of hashes"""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            SettingsError: The name or the license is not valid on the hub.
        """
        if not REPO.fullmatch(self.repo):
            raise SettingsError(
                f"{self.repo}: not the name of a repository; expected NAME/MODEL, such as ada/waves-rgb"
            )
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", self.license):
            raise SettingsError(
                f"the license is {self.license!r}; expected an id of the hub, such as {LICENSES}"
            )


def push_run(run: Run, wanted: Publication, *, private: bool = False) -> str:
    """Upload a run to the Hugging Face hub, and return the address of the repository.

    Raises:
        CheckpointError: See `upload_run`.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_publication(run, Path(folder), wanted)
        return upload_run(Path(folder), wanted.repo, private=private)


def write_publication(run: Run, folder: Path, wanted: Publication) -> None:
    """Write the files to upload for the best checkpoint of a run to an empty folder.

    Raises:
        ScoreError: A score file or the threshold is damaged.
    """
    sha256 = _write_weights(checkpoint_folder(run.paths.root, run.checkpoint) / WEIGHTS, folder / WEIGHTS)
    write_checksums(folder)
    tables = _write_tables(run, folder / "scores", wanted, sha256)
    dataset = str(run.meta.get("dataset") or _dataset(run, tables))
    write_text(folder / "experiment.yaml", dump(_settings(run.experiment, dataset)))
    write_json(folder / "data.json", {"name": dataset, "paths": {}})
    trained = environment_of(run.paths.root)
    if trained:
        write_json(folder / "environment.json", hide_places(trained))
    _write_threshold(run, folder, sha256)
    results = [_result(name, table) for name, table in tables.items()]
    write_json(
        folder / CONFIG,
        {
            "library_name": "two-stream",
            "model_type": "two-stream",
            "class_names": run.class_names,
            "preprocessing": asdict(run.model.spec),
            "dataset": {"name": dataset, "split": run.experiment.data.split},
            "model_sha256": sha256,
            "results": results,
            "code_version": code_version(),
        },
    )
    write_text(folder / CARD, _card(run, wanted, dataset, tables, trained))


def hash_names(table: ScoreTable) -> ScoreTable:
    """Return a table with hashes instead of the names of videos and sources."""
    if table.meta.get("ids") == HASHED:
        return table
    skipped = [_hash(str(name)) for name in table.meta.get("skipped", [])]
    return replace(
        table,
        ids=[_hash(name) for name in table.ids],
        groups=None if table.groups is None else [_hash(name) if name else "" for name in table.groups],
        meta={**table.meta, "ids": HASHED, "skipped": skipped},
    )


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def hide_places(value: Any) -> Any:
    """Return JSON values without folders in paths and without the places in addresses."""
    if isinstance(value, Mapping):
        return {key: one if key in _NAMES else hide_places(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [hide_places(one) for one in value]
    if isinstance(value, (Path, str)) and is_on_hub(value):
        return str(value)
    if isinstance(value, Path):
        return value.name
    if not isinstance(value, str):
        return value
    if _PLACE.match(value):
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return _INSIDE.sub("", value)


def _settings(experiment: Experiment, dataset: str) -> Experiment:
    plain = hide_places(experiment.model_dump())
    plain |= {"runs": "runs", "device": "cpu" if experiment.device == "cpu" else "auto"}
    plain["data"] |= {"dataset": dataset, "settings_root": "settings", "cache": None}
    return validate_settings(Experiment, plain, "published settings")


def _dataset(run: Run, tables: Mapping[str, ScoreTable]) -> str:
    named = Path(run.experiment.data.dataset)
    known = [str(table.meta["dataset"]) for table in tables.values() if table.meta.get("dataset")]
    return known[0] if known else named.parent.name if named.suffix else named.name


def _write_weights(source: Path, target: Path) -> str:
    """Copy the weights, without places in the header, and return their checksum."""
    header = read_metadata(source)
    public = dict(header)
    for key in ("model", "meta"):
        before = parse_json(header[key])
        after = hide_places(before)
        if after != before:
            public[key] = json_text(after)
    if public == header:
        shutil.copyfile(source, target)
    else:
        save_file(load_file(source), target, metadata=public)
    return checksum(target)


def _write_tables(run: Run, folder: Path, wanted: Publication, sha256: str) -> dict[str, ScoreTable]:
    """Write the score files of these weights, and return their tables, the test part and the newest ones first."""
    found = sorted(
        (run.paths.root / "scores").glob("*.npz"),
        key=lambda path: (path.name.startswith("test_"), path.stat().st_mtime_ns),
    )
    tables: dict[str, ScoreTable] = {}
    for path in reversed(found):
        table = read_scores(path)
        if table.meta.get("model_sha256") != run.model_sha256:
            warn(f"{path}: not published, because the scores are of other weights")
            continue
        meta = {key: value for key, value in table.meta.items() if key not in ("file", "skipped_reasons")}
        table.meta = hide_places(meta) | {"run": f"hf://{wanted.repo}", "model_sha256": sha256}
        table.meta |= {"checkpoint": "best", "skipped": list(meta.get("skipped", []))}
        tables[path.name] = table if wanted.video_names else hash_names(table)
        write_scores(folder / path.name, tables[path.name])
    if not tables:
        warn(
            f"{run.source}: no scores, so the model card contains no accuracy; write them with `two-stream evaluate`"
        )
    return tables


def _write_threshold(run: Run, folder: Path, sha256: str) -> None:
    path = run.paths.root / none_of_these.FILE
    if path.is_file():
        none_of_these.read_threshold([(run.paths.root, run.model_sha256)], "l2", None)
        facts = hide_places(parse_json(path.read_bytes()))
        write_json(folder / path.name, facts | {"model_sha256": sha256})


def _result(name: str, table: ScoreTable) -> dict[str, Any]:
    (line,) = words.lines([table])
    keys = ("dataset", "split", "part", "protocol")
    return {
        "file": f"scores/{name}",
        **{key: table.meta.get(key) for key in keys},
        "metric": "mAP" if line.summary.map is not None else "top-1",
        **asdict(line.summary.main),
        "videos": line.summary.videos,
        "sources": line.summary.groups,
    }


def _card(
    run: Run, wanted: Publication, dataset: str, tables: Mapping[str, ScoreTable], trained: Mapping[str, str]
) -> str:
    """Return the model card: the metadata that the hub reads, and the text."""
    lines = words.lines(list(tables.values())) if tables else []
    experiment, scored = run.experiment, lines[0].table.meta if lines else {}
    here = {key: scored[key] for key in ("device", "threads", "decoder") if scored.get(key) is not None}
    init = experiment.train.init
    templates = jinja2.Environment(  # noqa: S701 - Markdown, not HTML
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return templates.get_template("card.md").render(
        head=yaml.safe_dump(_head(run, wanted, dataset, lines), sort_keys=False, allow_unicode=True),
        run=run,
        wanted=wanted,
        model=experiment.model,
        input=_input(run.model.spec),
        data=experiment.data,
        dataset=dataset,
        version=code_version(),
        threshold=(run.paths.root / none_of_these.FILE).is_file(),
        parameters=sum(one.numel() for one in run.model.parameters()),
        train=experiment.train,
        init=None if init is None else hide_places(init),
        scores=list(zip(tables, lines)),
        metric=_metric,
        percent=words.percent,
        protocol=words.protocol_line,
        caveats=[
            f"In the {one.table.meta.get('part')} part: {text[:1].lower()}{text[1:]}"
            for one in lines
            for text in words.caveats(one)
        ],
        trained=hide_places(trained),
        scored={**scored.get("environment", {}), **here},
    )


def _head(run: Run, wanted: Publication, dataset: str, lines: Sequence[words.Line]) -> dict[str, Any]:
    """Return the metadata of the card; its results are those of the test part."""
    model, split = run.experiment.model, run.experiment.data.split
    results = []
    for line in lines:
        found = line.summary.main
        ends = f", 95 % interval {words.percent(found).partition(' ')[2]}" if found.known else ""
        value = {
            "type": "accuracy" if line.summary.map is None else "map",
            "name": f"{_metric(line)} in %{ends} ({line.table.meta.get('protocol')})",
            "value": round(100 * found.value, 2),
        }
        results.append(
            {
                "task": {"type": "video-classification", "name": "Video classification"},
                "dataset": {"name": f"{dataset}, split {split}", "type": dataset, "split": "test"},
                "metrics": [value],
            }
        )
    tested = [one for one, line in zip(results, lines) if line.table.meta.get("part") == "test"]
    name = wanted.repo.partition("/")[2]
    return {
        "license": wanted.license.lower(),
        "library_name": "two-stream",
        "pipeline_tag": "video-classification",
        "tags": ["action-recognition", "two-stream", model.modality, model.backbone.kind, model.head.kind],
        **({"model-index": [{"name": name, "results": tested}]} if tested else {}),
    }


def _metric(line: words.Line) -> str:
    return "top-1 accuracy" if line.summary.map is None else "mean average precision"


def _input(spec: InputSpec) -> list[tuple[str, str]]:
    """Return how a clip is made, as rows of a table."""
    part = (
        f": {spec.clip_length // spec.segments} from each of {spec.segments} equal parts"
        if spec.segments
        else ""
    )
    rate = f", at {spec.fps:g} frames per second" if spec.fps else ""
    apart = ", consecutive" if spec.stride == 1 else f", {spec.stride} apart"
    apart = "" if spec.segments == spec.clip_length else apart
    low, high = spec.value_range
    return [
        ("frames", "optical flow (x, y)" if spec.modality == "flow" else "RGB"),
        ("clip", f"{plural(spec.clip_length, 'frame')}{part}{apart}{rate}"),
        *([("stack", f"{spec.stack} flow fields per frame")] if spec.stack > 1 else []),
        ("resized to", f"{size_text(spec.resize)} (height × width), then cropped to {size_text(spec.size)}"),
        ("pixel values", f"{low:g} to {high:g} (0 to 255 in a picture)"),
        ("mean, std", f"{_numbers(spec.mean)}; {_numbers(spec.std)} (subtracted, then divided by)"),
    ]


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
