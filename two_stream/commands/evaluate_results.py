"""`two-stream evaluate --from-json FILE`: accuracies of a result file that another program, or `--results`, wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from two_stream.commands.common import parse
from two_stream.errors import SettingsError

SUMMARY = "Evaluate a result file of Efficient-3DCNNs or 3D-ResNets (val.json) against a list of videos."


@dataclass(frozen=True)
class ResultFlags:
    """A result file and what it is compared with."""

    from_json: Path
    """result file: the best few classes of each video, or of each of its clips"""
    truth: str | None = None
    """annotation JSON of those code bases, or a data set: its name, or its dataset.yaml"""
    subset: str = "validation"
    """which videos of an annotation JSON count"""
    split: int = 1
    """split of a data set, whose test list counts"""
    settings_root: Path = Path("settings")
    """folder of data sets given by name"""
    top: tuple[int, ...] = (1, 5)
    """k of the top-k accuracies"""
    ignore_unseen: bool = False
    """leave listed videos without a result out, as 3D-ResNets' --ignore does; else they count as missed"""
    json: bool = False
    """print JSON"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code: 1 when listed videos have no result."""
    flags = parse(ResultFlags, args, "two-stream evaluate", SUMMARY)
    from two_stream.evaluation.result_files import evaluate_results, read_results
    from two_stream.runtime.console import console, say, table, warn

    found = evaluate_results(
        read_results(flags.from_json), _truth(flags), flags.top, ignore_unseen=flags.ignore_unseen
    )
    if flags.json:
        top = {str(k): value for k, value in found.top.items()}
        console.print_json(data={**vars(found), "top": top})
        return 1 if found.unseen else 0
    rows = [[f"top-{k}", f"{100 * value:.1f}"] for k, value in found.top.items()]
    console.print(table(f"{flags.from_json}: accuracy in %", ["", "%"], rows))
    say(f"{found.counted} videos counted of {found.videos} listed in {flags.truth}")
    if found.unseen:
        how = "left out" if flags.ignore_unseen else "counted as missed"
        warn(f"{_some(found.unseen)} without a result, {how}")
    if found.unlisted:
        warn(f"{_some(found.unlisted)} with a result, but not listed: not counted")
    return 1 if found.unseen else 0


def _truth(flags: ResultFlags) -> dict[str, tuple[str, ...]]:
    if flags.truth is None:
        raise SettingsError(
            "--from-json needs --truth: an annotation JSON, or a data set's name or dataset.yaml"
        )
    if flags.truth.endswith(".json"):
        from two_stream.evaluation.result_files import read_truth

        return read_truth(Path(flags.truth), flags.subset)
    from two_stream.data.catalog import load_record
    from two_stream.data.splits import load_part

    record = load_record(flags.truth, flags.settings_root)
    modalities = record.modalities() or ["rgb"]
    videos = load_part(record, modalities[0], flags.split, "test")
    return {video.id: tuple(record.classes[label] for label in video.all_labels) for video in videos}


def _some(videos: tuple[str, ...]) -> str:
    more = f" and {len(videos) - 3} more" if len(videos) > 3 else ""
    return f"{len(videos)} {'video' if len(videos) == 1 else 'videos'} ({', '.join(videos[:3])}{more})"
