"""Score files of other programs: reads CSV, JSON and NumPy files into score tables, and writes tables to such files.

Wide CSV files have the header `id,label,group,<class>…`; the columns `label` and `group` are optional. Long CSV files
have the columns `id`, `class` and `score`. JSON files are lists of records (or have one record per line) with `id`,
`scores`, and optionally `label` and `group`; or they are result files of 3D-ResNets. NumPy files contain scores
`(N, K)` or `(N, clips, K)`; the ids are in the same archive, or one per line in a text file with the same name. Pickles
are not read.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from two_stream.data.catalog import Record, load_record, read_lines
from two_stream.data.splits import read_list
from two_stream.errors import ScoreError
from two_stream.evaluation.scores.result_files import read_results, read_truth
from two_stream.evaluation.scores.tables import check_table, match_ids, some_names
from two_stream.runtime.console import warn
from two_stream.runtime.files import map_array, read_arrays
from two_stream.runtime.text import parse_json, plural
from two_stream.types import ScoreTable

Kind = Literal["auto", "logits", "probabilities", "log-probabilities"]
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".npy", ".npz")
_IDS = ("id", "video", "video_id", "video_name", "name", "path", "file", "filename")
_HEADER = re.compile(rf'"?(?:{"|".join(_IDS)})"?([,;\t])', flags=re.IGNORECASE)
"""start of the header of a CSV file: the column of ids, and the character that separates columns"""
_NOT_CLASSES = {
    "pred",
    "prediction",
    "predicted",
    "index",
    "fold",
    "loss",
    "clip",
    "target",
    "y_true",
    "y_pred",
    "split",
}
_NOT_CLASSES |= {"correct", "score", "frames", "num_frames", "labels", "truth", "gt", "gt_label", ""}
"""names of columns that are probably not classes"""
_RECORDS = re.compile(r'\s*\[?\s*\{\s*"(?:id|results|class_names|label|scores)"\s*:')
SEVERAL = "|"
"""separates the labels of a video with several classes"""
_TOLERANCE = 1e-3
"""largest deviation of the sum of a video's probabilities from 1"""
_ROUNDED = 0.1
"""the same for probabilities that may be rounded, because a flag or the file states the kind; the sum becomes 1"""
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Described:
    """What a score file of another program may leave out."""

    labels: str | None = None
    """file with the label of each video, or the name of a data set"""
    classes: Path | None = None
    """file with one class name per line, in the order of the scores"""
    groups: Path | None = None
    """file with lines `id group`: the source of each video"""
    kind: Kind = "auto"
    """what the scores are"""

    def record(self) -> Record | None:
        """Return the data set that `labels` names; None if it is a file."""
        if self.labels is None or (
            Path(self.labels).is_file() and not self.labels.endswith((".yaml", ".yml"))
        ):
            return None
        return load_record(self.labels)


@dataclass
class _Rows:
    """Content of a file: one row for each video, or several rows with the same id."""

    path: Path
    ids: list[str]
    scores: NDArray[np.float64]
    """`(rows, K)`; NaN for classes that a video does not list"""
    classes: list[str] | None = None
    labels: list[str] = field(default_factory=list)
    """label of each row as text; empty if the file contains no labels"""
    groups: list[str] = field(default_factory=list)
    kind: Kind = "auto"
    is_partial: bool = False
    """whether only the best classes of each video are listed"""


def is_score_file(path: Path) -> bool:
    """Return whether the name and the first characters of a file are those of a score file."""
    if path.suffix in (".npz", ".npy") or path.suffix not in SUFFIXES:
        return path.suffix == ".npz" or (path.suffix == ".npy" and path.with_suffix(".txt").is_file())
    try:
        with path.open(encoding="utf-8-sig") as file:
            start = file.readline(1 << 16)
            start += file.read(100) if path.suffix.startswith(".json") else ""
    except (OSError, UnicodeDecodeError):
        return False
    if path.suffix.startswith(".json"):
        return _RECORDS.match(start) is not None
    found = _HEADER.match(start)
    return found is not None and len({*start.lower().split(found[1])[1:]} - {"label", "group"}) > 1


def read_foreign(
    path: Path,
    described: Described,
    part: str = "test",
    arrays: Mapping[str, NDArray[Any]] | None = None,
) -> ScoreTable:
    """Read a score file of another program; logarithms of probabilities serve as logits.

    Rows with the same id, such as the clips of a video, are averaged: logits as logits, probabilities as probabilities.

    Args:
        path: The file.
        described: What the file leaves out.
        part: Part of the data set that the scores are of.
        arrays: Content of an `.npz` file, if it was read before.

    Raises:
        ScoreError: The file is missing or damaged, or labels, class names or ids are missing; the message names the
            flag that adds them.
        DataError: A file in `described` is missing or damaged.
    """
    rows = _read(path) if arrays is None else _rows_of(path, arrays)
    if not rows.ids or "" in rows.ids:
        raise ScoreError(
            f"{path}: {'an id is empty; expected one' if rows.ids else 'the file contains no videos'}"
        )
    record = described.record()
    given = record.classes if record is not None else None
    given = _read_classes(described.classes) if described.classes is not None else given
    numbers = None if given is None else [str(number) for number in range(len(given))]
    ordered = rows.classes is None or rows.classes == given or sorted(rows.classes) == sorted(numbers or [])
    classes = _name_classes(path, rows, given)
    names = list(dict.fromkeys(rows.ids))
    labels = _labels(
        path, rows, names, described, record, classes, ordered=given is None or ordered, listed=given
    )
    targets = None
    if any(len(own) > 1 for own in labels):
        targets = np.array([np.isin(np.arange(len(classes)), own) for own in labels])
    remark = _share_rest(rows) if rows.is_partial else ""
    kind = _kind_of(path, rows, described.kind, several=targets is not None)
    logits, mean = _mean_logits(rows, names, kind, several=targets is not None)
    meta: dict[str, Any] = {
        "file": str(path),
        "name": path.stem,
        "part": part,
        "scale": "logits" if kind == "logits" else "log-probabilities",
        "protocol": ", ".join(filter(None, (kind, plural(len(classes), "class"), mean, remark))),
    }
    words = {"rgb", "flow", "rgbdiff"}.intersection(re.split(r"[\W_]+", path.stem.lower()))
    meta |= {"modality": words.pop()} if len(words) == 1 else {}
    meta |= {"dataset": record.name} if record is not None else {}
    groups = _groups(path, rows, names, described, record)
    first = np.asarray([own[0] for own in labels], dtype=np.int64)
    table = ScoreTable(names, first, classes, logits, meta, groups=groups or None, targets=targets)
    check_table(table, str(path))
    return table


def _read(path: Path) -> _Rows:
    if path.suffix not in SUFFIXES:
        pickled = " (pickles can run code when they are read)" if path.suffix in (".pkl", ".pickle") else ""
        raise ScoreError(f"{path}: not a score file{pickled}; expected one of {', '.join(SUFFIXES)}")
    try:
        if path.suffix in (".csv", ".tsv"):
            return _read_csv(path)
        return _read_json(path) if path.suffix.startswith(".json") else _read_numpy(path)
    except UnicodeDecodeError:
        raise ScoreError(f"{path}: not UTF-8 text; save the file with the encoding UTF-8") from None
    except (OSError, csv.Error) as error:
        raise ScoreError(f"{path}: cannot be read ({error})") from None


def _csv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the place (`file:line`) and the cells of each row of a CSV file, the header first; nothing if it has none.

    Raises:
        ScoreError: A row has another number of cells than the header.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        found = _HEADER.match(file.readline())
        if found is None:
            return
        file.seek(0)
        columns = 0
        for number, line in enumerate(file, start=1):
            # most files contain no quotes, and splitting is twice as fast as the reader
            row = (
                next(csv.reader([line], delimiter=found[1]))
                if '"' in line
                else line.rstrip("\r\n").split(found[1])
            )
            if row == [""]:
                continue
            where = f"{path}:{number}"
            columns = columns or len(row)
            if len(row) != columns:
                raise ScoreError(f"{where}: {len(row)} columns; expected {columns}, as in the header")
            yield where, row


def _read_csv(path: Path) -> _Rows:
    rows = _csv_rows(path)
    _, header = next(rows, ("", []))
    header = [_plain(cell) for cell in header]
    if not header:
        raise ScoreError(
            f"{path}: the first line is not a header; expected a first column {', '.join(_IDS)}, then `label` and the "
            "class names, separated by commas, semicolons or tabs"
        )
    if {"class", "score"} <= set(header):
        return _read_long(path, header, rows)
    start = 1 + len(list(itertools.takewhile(lambda name: name.lower() in ("label", "group"), header[1:])))
    ids, scores = [], []
    beside: dict[str, list[str]] = {name.lower(): [] for name in header[1:start]}
    for where, row in rows:
        ids.append(_plain(row[0]))
        for values, cell in zip(beside.values(), row[1:start], strict=True):
            values.append(_plain(cell))
        try:
            scores.append(np.array(list(map(float, row[start:]))))
        except ValueError:
            raise _wrong_number(where, header[start:], row[start:]) from None
    odd = [
        name
        for name in header[start:]
        if name.lower() in _NOT_CLASSES and name not in beside.get("label", [])
    ]
    if odd:
        raise ScoreError(f"{path}: the column {odd[0]!r} would be a class; remove it from the file")
    stacked = np.stack(scores) if scores else np.zeros((0, len(header) - start))
    groups = beside.get("group", [])
    return _Rows(path, ids, stacked, header[start:], beside.get("label", []), groups if any(groups) else [])


def _read_long(path: Path, header: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> _Rows:
    found: dict[str, dict[str, float]] = {}
    beside: dict[str, dict[str, str]] = {"label": {}, "group": {}}
    for where, row in rows:
        cells = dict(zip(header, row))
        own = found.setdefault(_plain(row[0]), {})
        if cells["class"] in own:
            raise ScoreError(
                f"{where}: a second score of {row[0]!r} for class {cells['class']!r}; expected one"
            )
        try:
            own[cells["class"]] = float(cells["score"])
        except ValueError:
            raise _wrong_number(where, [cells["class"]], [cells["score"]]) from None
        for column in beside.keys() & cells.keys():
            value = _plain(cells[column])
            if beside[column].setdefault(_plain(row[0]), value) != value:
                raise ScoreError(f"{where}: another {column} of {row[0]!r} than before; expected one")
    classes = list(dict.fromkeys(name for own in found.values() for name in own))
    for name, own in found.items():
        _all_there(f"{path}: {name!r}", own, classes)
    scores = np.array([[own[name] for name in classes] for own in found.values()])
    return _Rows(
        path, list(found), scores, classes, list(beside["label"].values()), list(beside["group"].values())
    )


def _read_json(path: Path) -> _Rows:
    """Read records, one record per line, or a result file of 3D-ResNets."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        content: Any = _json_lines(path, text) if path.suffix == ".jsonl" else parse_json(text)
    except ValueError as error:
        raise ScoreError(f"{path}: not JSON ({error})") from None
    classes: list[str] | None = None
    if isinstance(content, dict):
        if "results" in content:
            return _read_results(path)
        classes, content = content.get("class_names"), content.get("records")
    if not isinstance(content, list) or not (classes is None or isinstance(classes, list)):
        raise ScoreError(
            f'{path}: expected a list of records, such as [{{"id": "a", "label": "jump", "scores": […]}}]'
        )
    ids: list[str] = []
    scores: list[list[float]] = []
    beside: dict[str, list[str]] = {"label": [], "group": []}
    kinds: set[Kind] = set()
    names: dict[str, Kind] = {"scores": "auto", "logits": "logits", "probabilities": "probabilities"}
    for number, record in enumerate(content, start=1):
        where = f"{path}: record {number}"
        key = next((key for key in names if isinstance(record, dict) and key in record), None)
        if key is None or "id" not in record:
            raise ScoreError(
                f"{where}: expected an object with `id` and `scores` (or `logits` or `probabilities`)"
            )
        own = record[key]
        if isinstance(own, dict):
            classes = list(own) if classes is None else classes
            _all_there(where, own, classes)
            own = [own[name] for name in classes]
        if not isinstance(own, list) or not all(type(one) in (int, float) for one in own):
            raise ScoreError(f"{where}: `{key}` is {str(own)[:40]}; expected numbers")
        if scores and len(own) != len(scores[0]):
            raise ScoreError(f"{where}: {len(own)} scores; expected {len(scores[0])}, as in the first record")
        ids.append(str(record["id"]))
        scores.append(own)
        kinds.add(names[key])
        for name, values in beside.items():
            values += [str(record[name])] if record.get(name) not in (None, "") else []
    for name, values in beside.items():
        if values and len(values) < len(ids):
            raise ScoreError(
                f"{path}: {len(values)} of {len(ids)} records contain `{name}`; expected all or none"
            )
    stacked = np.array(scores, dtype=np.float64)
    kind = kinds.pop() if len(kinds) == 1 else "auto"
    return _Rows(
        path, ids, stacked, classes and list(map(str, classes)), beside["label"], beside["group"], kind
    )


def _json_lines(path: Path, text: str) -> list[Any]:
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            found += [parse_json(line)] if line.strip() else []
        except ValueError as error:
            raise ScoreError(f"{path}:{number}: not JSON ({error})") from None
    return found


def _read_results(path: Path) -> _Rows:
    """Read a result file of 3D-ResNets, which contains only the best classes of each video."""
    found = read_results(path)
    place = {
        name: column
        for column, name in enumerate(sorted({name for own in found.values() for name, _ in own}))
    }
    scores = np.full((len(found), len(place)), np.nan)
    for row, own in zip(scores, found.values()):
        for name, score in own:
            row[place[name]] = score
    return _Rows(path, list(found), scores, list(place), kind="probabilities", is_partial=True)


def _read_numpy(path: Path) -> _Rows:
    """Read an array `(N, K)` or `(N, clips, K)`, with the ids from its archive or from the text file next to it."""
    try:
        arrays = {"scores": map_array(path)} if path.suffix == ".npy" else read_arrays(path)
    except ValueError as error:
        raise ScoreError(
            f"{path}: {error}; expected plain arrays without Python objects, so write ids as np.array(ids, dtype=str)"
        ) from None
    return _rows_of(path, arrays)


def _rows_of(path: Path, arrays: Mapping[str, NDArray[Any]]) -> _Rows:
    names: dict[str, Kind] = {
        "scores": "auto",
        "logits": "logits",
        "probabilities": "probabilities",
        "arr_0": "auto",
    }
    key = next((key for key in names if key in arrays), None)
    if key is None:
        raise ScoreError(f"{path}: found the arrays {', '.join(arrays)}; expected `scores` and `ids`")
    beside = path.with_suffix(".txt")
    if "ids" not in arrays and not beside.is_file():
        raise ScoreError(f"{path}: the ids of the videos are missing; write one per line to {beside}")
    ids = [str(name) for name in arrays["ids"]] if "ids" in arrays else list(filter(None, read_lines(beside)))
    scores = arrays[key]
    if scores.ndim not in (2, 3) or scores.dtype.kind not in "fiu" or len(scores) != len(ids):
        raise ScoreError(
            f"{path}: the scores have shape {scores.shape} and type {scores.dtype}; expected numbers of shape "
            f"({len(ids)}, classes) or ({len(ids)}, clips, classes), because there are {len(ids)} ids"
        )
    clips = scores.shape[1] if scores.ndim == 3 else 1
    rows = _Rows(
        path,
        np.repeat(ids, clips).tolist(),
        scores.reshape(-1, scores.shape[-1]).astype(np.float64),
        kind=names[key],
    )
    for name in ("labels", "groups"):
        values = arrays.get(name, np.zeros(0))
        if values.size not in (0, len(ids)):
            raise ScoreError(
                f"{path}: {values.size} values in `{name}` for {len(ids)} ids; expected one for each id"
            )
        setattr(rows, name, list(map(str, np.repeat(values, clips).tolist())))
    if "class_names" in arrays:
        rows.classes = list(map(str, arrays["class_names"].tolist()))
    return rows


def _name_classes(path: Path, rows: _Rows, given: list[str] | None) -> list[str]:
    """Return the class names, and put the scores into the order of the given names."""
    own, count = rows.classes, rows.scores.shape[1]
    if own is None and given is None:
        raise ScoreError(f"{path}: the class names are missing; add --classes with a file of {count} names")
    classes = own or given or []
    if len(classes) != count or count < 2 or len(set(classes)) < count:
        doubled = [name for name, times in Counter(classes).items() if times > 1]
        found = (
            f"two classes named {doubled[0]!r}"
            if doubled
            else f"{count} scores, {plural(len(classes), 'class name')}"
        )
        raise ScoreError(
            f"{path}: found {found}; expected two or more classes, each with its own name and score"
        )
    if own is None or given is None or own == given:
        return classes
    wanted = given
    if not set(own) <= set(given):
        wanted = [str(number) for number in range(len(given))]
        if set(own) != set(wanted):
            unknown = some_names([name for name in own if name not in given])
            raise ScoreError(f"{path}: {unknown} is not among the {len(given)} classes; use the same names")
    if not rows.is_partial:
        _all_there(str(path), own, wanted)
    place: dict[str, int] = {name: column for column, name in enumerate(own)}
    padded = np.column_stack([rows.scores, np.full(len(rows.ids), np.nan)])
    rows.scores = padded[:, np.array([place.get(name, count) for name in wanted])]
    return given


def _share_rest(rows: _Rows) -> str:
    """Divide the rest of the probability equally among the classes that a video does not list; return a remark."""
    missing = np.isnan(rows.scores)
    rest = np.maximum(0.0, 1 - np.nansum(rows.scores, axis=1)) / np.maximum(1, missing.sum(axis=1))
    rows.scores = np.where(missing, rest[:, None], rows.scores)
    least = missing.shape[1] - int(missing.sum(axis=1).max())
    return f"only the best {plural(least, 'class')} of each video known" if missing.any() else ""


def _kind_of(path: Path, rows: _Rows, stated: Kind, *, several: bool) -> Kind:
    """Return what the scores are: what a flag or the file states, or else what the numbers show."""
    from scipy.special import logsumexp  # slow to import

    scores, wanted = rows.scores, rows.kind if stated == "auto" else stated
    fits: dict[Kind, NDArray[np.bool_]] = {
        "probabilities": np.asarray(((scores >= 0) & (scores <= 1 + _TOLERANCE)).all(axis=1)),
        "log-probabilities": np.asarray((scores <= _TOLERANCE).all(axis=1)),
    }
    for name, fit in fits.items():  # several classes have independent probabilities
        if fit.any() and not several:
            sums = scores.sum(axis=1) if name == "probabilities" else np.exp(logsumexp(scores, axis=1))
            fit &= np.abs(sums - 1) <= (_TOLERANCE if wanted == "auto" else _ROUNDED)
    kind: Kind = wanted
    if wanted == "auto":
        kind = next((kind for kind, fit in fits.items() if fit.all()), "logits")
        if kind == "logits" and (scores >= 0).all() and (scores <= 1).all():
            warn(
                f"{path}: the scores are from 0 to 1, but their sums are not 1, so they are used as logits; if they "
                "are rounded probabilities, add --kind probabilities"
            )
    finite = np.isfinite(scores) | ((kind == "log-probabilities") & np.isneginf(scores))
    bad = np.flatnonzero(~finite.all(axis=1))
    if bad.size:
        raise ScoreError(f"{path}: a score of {rows.ids[bad[0]]!r} is not finite; expected finite numbers")
    bad = np.flatnonzero(~fits[kind]) if kind in fits else bad
    if bad.size:
        row = scores[bad[0]]
        who = "the file" if stated == "auto" else "--kind"
        total = (row if kind == "probabilities" else np.exp(row)).sum()
        raise ScoreError(
            f"{path}: the scores of {rows.ids[bad[0]]!r} are not {kind}, as {who} states: they are from "
            f"{row.min():.4g} to {row.max():.4g}, and their probabilities have the sum {total:.4g}"
        )
    return kind


def _mean_logits(
    rows: _Rows, names: Sequence[str], kind: Kind, *, several: bool
) -> tuple[NDArray[np.float64], str]:
    """Return logits `(N, K)` of the videos, and a remark if videos have several rows."""
    from scipy.special import logit, logsumexp  # slow to import

    scores, remark = rows.scores, ""
    if len(names) == len(rows.ids) and kind == "log-probabilities" and not several:
        return np.maximum(scores - logsumexp(scores, axis=1, keepdims=True), np.log(_TINY)), ""
    scores = np.exp(scores) if kind == "log-probabilities" else scores
    if kind != "logits" and not several:
        scores = scores / scores.sum(axis=1, keepdims=True)
    if len(names) < len(rows.ids):
        place = {name: row for row, name in enumerate(names)}
        of_row = np.asarray([place[name] for name in rows.ids])
        sums = np.zeros((len(names), scores.shape[1]))
        np.add.at(sums, of_row, scores)
        counts = np.bincount(of_row)
        scores = sums / counts[:, None]
        number = f"{counts.min()}" + (f" to {counts.max()}" if counts.min() < counts.max() else "")
        if counts.min() == 1:
            doubled = [names[row] for row in np.flatnonzero(counts > 1).tolist()]
            warn(
                f"{rows.path}: {some_names(doubled)} have several rows, which are averaged; others have only one"
            )
        remark = f"mean of {'logits' if kind == 'logits' else 'probabilities'} over {number} rows per video"
    if kind != "logits":
        scores = logit(np.clip(scores, _TINY, 1 - 1e-16)) if several else np.log(np.maximum(scores, _TINY))
    return scores, remark


def _labels(
    path: Path,
    rows: _Rows,
    names: Sequence[str],
    described: Described,
    record: Record | None,
    classes: Sequence[str],
    *,
    ordered: bool,
    listed: Sequence[str] | None,
) -> list[list[int]]:
    """Return the class numbers of each video: from the file, or else from `described.labels`.

    Numbers in the file count the classes in the order of the file, if this order is known (`ordered`). Numbers in
    another file count the classes in the order of `listed`.
    """
    own: list[list[int]] = []
    if rows.labels:
        found = dict(zip(rows.ids, rows.labels))
        for name, label in zip(rows.ids, rows.labels):
            if found[name] != label:
                raise ScoreError(
                    f"{path}: {name!r} has the labels {label!r} and {found[name]!r}; expected one label"
                )
        own = _label_numbers(path, {name: found[name] for name in names}, classes, numbered=ordered)
    if described.labels is None:
        if not own:
            raise ScoreError(
                f"{path}: the labels are missing; add a column `label`, or --labels with a file or the name of a data "
                "set"
            )
        return own
    known = _known_labels(described.labels, record)
    if not own:
        texts = _look_up(path, names, known, described.labels, "label")
        return _label_numbers(path, dict(zip(names, texts)), classes, numbered=listed is not None)
    place = match_ids(names, list(known))
    stated = {name: known[place[name]] for name in names if name in place}
    rows_of = dict(zip(names, own))
    for name, other in zip(stated, _label_numbers(path, stated, classes, numbered=listed is not None)):
        mine = rows_of[name]
        if mine != other:
            raise ScoreError(
                f"{path}: the label of {name!r} is {classes[mine[0]]!r}, but {classes[other[0]]!r} in "
                f"{described.labels}; remove the wrong one"
            )
    return own


def _known_labels(labels: str, record: Record | None) -> dict[str, str]:
    if record is not None:
        return _labels_of(record)
    if labels.endswith(".json"):
        return {name: SEVERAL.join(own) for name, own in read_truth(Path(labels), None).items()}
    return _read_pairs(Path(labels), "label")


def _groups(
    path: Path, rows: _Rows, names: Sequence[str], described: Described, record: Record | None
) -> list[str]:
    if described.groups is not None:
        return _look_up(path, names, _read_pairs(described.groups, "group"), str(described.groups), "group")
    if rows.groups:
        found = dict(zip(rows.ids, rows.groups))
        return [found[name] for name in names]
    return [record.group_of(name) for name in names] if record is not None else []


def _look_up(path: Path, names: Sequence[str], listed: Mapping[str, str], where: str, what: str) -> list[str]:
    own = match_ids(names, list(listed))
    lacking = [name for name in names if name not in own]
    if lacking:
        many = f"{len(lacking)} of {plural(len(names), 'video')}"
        raise ScoreError(f"{path}: {where} contains no {what} for {many}: {some_names(lacking)}")
    return [listed[own[name]] for name in names]


def _labels_of(record: Record) -> dict[str, str]:
    """Return the class names of all videos of a data set."""
    found: dict[str, str] = {}
    for modality in record.modalities() or ["rgb"]:
        for split in range(1, record.num_splits + 1):
            for path in (
                record.list_path("train", modality, split),
                record.list_path("test", modality, split),
            ):
                for video in (
                    read_list(path, least_frames=0, multi_label=record.multi_label) if path.is_file() else ()
                ):
                    found[video.id] = SEVERAL.join(record.classes[label] for label in video.all_labels)
    if not found:
        raise ScoreError(
            f"{record.folder}: the data set has no split lists; prepare it, or name a file with --labels"
        )
    return found


def _read_pairs(path: Path, column: str) -> dict[str, str]:
    """Read `{id: value}` from a CSV file with a header, or from lines `id value` or `id number value`."""
    lines = read_lines(path)  # reports a missing file
    rows = _csv_rows(path)
    _, header = next(rows, ("", []))
    if header:
        names = [cell.strip().lower() for cell in header]
        if column not in names:
            raise ScoreError(f"{path}: the header has no column `{column}`; found {', '.join(header)}")
        pairs = [(_plain(row[0]), _plain(row[names.index(column)])) for _, row in rows]
    else:
        between = r"[\s,;]+(?:\d+[\s,;]+)?" if column == "label" else r"[\s,;]+"
        found = [re.fullmatch(rf"(.+?){between}([^\s,;]+)", line.strip()) for line in lines if line.strip()]
        if None in found:
            raise ScoreError(
                f"{path}: entry {found.index(None) + 1} is not `id {column}`; expected one video per line"
            )
        pairs = [(match[1], match[2]) for match in found if match]
    values: dict[str, str] = {}
    for name, value in pairs:
        if values.setdefault(name, value) != value:
            raise ScoreError(
                f"{path}: {name!r} has the {column}s {values[name]!r} and {value!r}; expected one"
            )
    return values


def _read_classes(path: Path) -> list[str]:
    """Read class names, one per line; lines may start with a number, as in UCF101's `classInd.txt`."""
    lines = [line.strip() for line in read_lines(path) if line.strip()]
    numbered = [match for line in lines if (match := re.fullmatch(r"(\d+)[\s,;]+(.+)", line))]
    pairs = sorted((int(match[1]), match[2]) for match in numbered)
    if len(pairs) == len(lines) and [number - pairs[0][0] for number, _ in pairs] == list(range(len(pairs))):
        return [name for _, name in pairs]
    return lines


def _label_numbers(
    path: Path, labels: Mapping[str, str], classes: Sequence[str], *, numbered: bool
) -> list[list[int]]:
    """Return the class numbers of each video; labels are class names, or else numbers from 0 if this order is known."""
    place = {name: number for number, name in enumerate(classes)}
    parts = [[label] if label in place else label.split(SEVERAL) for label in labels.values()]
    whole = [re.fullmatch(r"(\d+)(?:\.0+)?", one) for own in parts for one in own]
    if any(one in place for own in parts for one in own) or not all(whole):
        for name, own in zip(labels, parts):
            if unknown := [one for one in own if one not in place]:
                raise ScoreError(
                    f"{path}: the label of {name!r} is {unknown[0]!r}, which is not a class; expected a class name, "
                    f"such as {classes[0]!r}, or for all videos a number from 0 to {len(classes) - 1}"
                )
        return [sorted(place[one] for one in own) for own in parts]
    found = [sorted(int(float(one)) for one in own) for own in parts]
    least, most = min(map(min, found)), max(map(max, found))
    if most >= len(classes):
        name = next(name for name, own in zip(labels, found) if max(own) >= len(classes))
        hint = "; these labels seem to count from 1" if least == 1 and most == len(classes) else ""
        raise ScoreError(f"{path}: the label of {name!r} is {most}; expected 0 to {len(classes) - 1}{hint}")
    if not numbered:
        raise ScoreError(
            f"{path}: the labels are numbers, and the classes may be in another order; use class names as labels, or "
            "add --classes with a file of names in the order of the numbers"
        )
    if least == 1 and most == len(classes) - 1 > 1:
        warn(f"{path}: no video has label 0; if the labels count from 1, the results are wrong")
    return found


def _all_there(where: str, found: Iterable[str], classes: Sequence[str]) -> None:
    known = set(found)
    lacking = [name for name in classes if name not in known]
    if lacking:
        raise ScoreError(f"{where}: no score for {some_names(lacking)}; expected a score for each class")


def _wrong_number(where: str, classes: Sequence[str], cells: Sequence[str]) -> ScoreError:
    for name, cell in zip(classes, cells):
        try:
            float(cell)
        except ValueError:
            comma = " with a decimal point" if re.fullmatch(r"-?\d+,\d+", cell.strip()) else ""
            return ScoreError(f"{where}: the score of class {name!r} is {cell!r}; expected a number{comma}")
    return ScoreError(f"{where}: expected numbers")


def _plain(cell: str) -> str:
    """Return the text of a cell; `csv_text` writes `'` before a text that a spreadsheet would treat as a formula."""
    cell = cell.strip()
    return cell[1:] if cell[:1] == "'" and cell[1:2] in tuple("=+-@") else cell
