"""`two-stream compress sensitivity RUN`: which layers bear pruning, and shares by layer for a budget."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from two_stream.commands.flags import parse, split_positional
from two_stream.config.compress import Prune
from two_stream.errors import SettingsError

if TYPE_CHECKING:
    from two_stream.compression.sensitivity import LevelChoice, Sensitivity

PROG = "two-stream compress sensitivity"
DESCRIPTION = (
    "Prune one layer after another to several shares, score the same clips each time, and write a table and a picture "
    "into RUN/sensitivity. With a budget, also choose a share for each layer; `two-stream compress prune RUN --levels "
    "FILE` takes them."
)
_FOLDER = "sensitivity"


@dataclass(frozen=True)
class SensitivityFlags:
    """What is measured, on what, and for which budget."""

    what: Literal["weights", "channels"] = "weights"
    """single weights, or whole channels"""
    levels: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    """shares that a layer loses"""
    importance: Literal["l1", "l2", "bn", "random"] = "l1"
    """channels: what they are ranked by"""
    layers: str = ""
    """regular expression of layer names; empty: every convolution and linear layer but the classifier"""
    part: Literal["val", "train", "test"] = "val"
    """videos that are scored; val: the holdout. Choosing by the test list would tell nothing about other videos"""
    clips: int | None = None
    """how many videos, drawn once; none: all of the part"""
    seed: int = 0
    """of that draw"""
    parameters: float | None = None
    """budget: share of the parameters that may be left"""
    macs: float | None = None
    """budget: share of the multiply-adds that may be left (channels)"""
    latency: float | None = None
    """budget: share of a view's time on this machine's CPU that may be left (channels)"""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice"""
    out: Path | None = None
    """folder to write; none: `RUN/sensitivity`"""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """print JSON instead of a table"""


def main(args: list[str]) -> int:
    """Run the method and return its exit code.

    Raises:
        TwoStreamError: A flag is wrong, the run or its data cannot be read, or the budget cannot be met.
    """
    name, rest = split_positional(args, PROG, "the run folder", "demo/runs/rgb --parameters 0.5")
    flags = parse(SensitivityFlags, rest, f"{PROG} RUN", DESCRIPTION)
    assert name is not None  # without it only --help gets here, and that has exited
    budget = _budget(flags)
    _check(flags)
    from two_stream.compression.channels import check_narrowable
    from two_stream.compression.sensitivity import choose_levels, fixed_clips, measure_sensitivity
    from two_stream.evaluation.runs.run import load_run
    from two_stream.runtime.device import set_threads

    set_threads(flags.threads)
    run = load_run(name)
    if any(not alteration.reshapes for alteration in run.model.alterations):
        raise SettingsError(f"{name}: an int8 run cannot be pruned; give the run it was made from")
    options = Prune(what=flags.what, importance=flags.importance, layers=flags.layers)
    if flags.what == "channels":
        check_narrowable(run.model, options)
    found = measure_sensitivity(
        run,
        options,
        flags.levels,
        fixed_clips(run, flags.part, flags.clips, flags.seed),
        part=flags.part,
        seed=flags.seed,
        latency=flags.latency is not None,
    )
    folder = flags.out or run.paths.root / _FOLDER
    _write(found, folder)
    choice = None if budget is None else choose_levels(run.model, found, options, *budget)
    _show(found, choice, folder, name, as_json=flags.as_json)
    return 0


def _budget(flags: SensitivityFlags) -> tuple[Any, float] | None:
    """Return the budget's measure and share."""
    given = [(key, getattr(flags, key)) for key in ("parameters", "macs", "latency")]
    asked = [(key, share) for key, share in given if share is not None]
    if len(asked) > 1:
        raise SettingsError(f"{PROG}: --{asked[0][0]} and --{asked[1][0]} are two budgets; keep one")
    if not asked:
        return None
    key, share = asked[0]
    if not 0 < share < 1:
        raise SettingsError(f"{PROG}: --{key} is {share:g}: expected a share above 0 and below 1")
    if flags.what == "weights" and key != "parameters":
        raise SettingsError(
            f"{PROG}: --{key} is met by taking out channels (--what channels): weights of 0 are computed like any "
            "others"
        )
    return key, share


def _check(flags: SensitivityFlags) -> None:
    most = 1.0 if flags.what == "weights" else 0.99
    if not flags.levels or any(not 0 < level <= most for level in flags.levels):
        raise SettingsError(
            f"{PROG}: --levels {' '.join(map(str, flags.levels))}: expected shares above 0 and up to {most:g}"
        )
    if list(flags.levels) != sorted(set(flags.levels)):
        raise SettingsError(f"{PROG}: --levels {' '.join(map(str, flags.levels))}: expected rising shares")
    if flags.clips is not None and flags.clips < 1:
        raise SettingsError(f"{PROG}: --clips is {flags.clips}: expected 1 or more")
    if flags.what == "weights" and flags.importance != "l1":
        raise SettingsError(f"{PROG}: --importance is for --what channels; weights go by their size")


def _write(found: Sensitivity, folder: Path) -> None:
    from dataclasses import asdict

    from two_stream.compression.sensitivity import draw_sensitivity
    from two_stream.runtime.files import write_json, write_text

    stem = folder / found.what
    columns = ("layer", "level", "top1", "top5", "loss", "parameters", "multiply_adds", "latency_ms", "map")
    rows = [asdict(point) for point in (found.base, *found.points)]
    lines = [",".join("" if row[key] is None else str(row[key]) for key in columns) for row in rows]
    write_text(stem.with_suffix(".csv"), "\n".join([",".join(columns), *lines]) + "\n")
    write_json(stem.with_suffix(".json"), asdict(found))
    for suffix in (".png", ".svg"):
        draw_sensitivity(found, stem.with_suffix(suffix))


def _show(found: Sensitivity, choice: LevelChoice | None, folder: Path, run: str, *, as_json: bool) -> None:
    from dataclasses import asdict

    from two_stream.runtime.console import console, say, table
    from two_stream.runtime.files import write_json

    file = folder / f"levels_{found.what}.json"
    if choice is not None:
        write_json(file, {"what": found.what, "run": found.run, **asdict(choice)})
    if as_json:
        console.print_json(
            data={"sensitivity": asdict(found), "choice": None if choice is None else asdict(choice)}
        )
        return
    levels = sorted({point.level for point in found.points})
    columns = ["layer", *(f"{100 * level:g} %" for level in levels)]
    rows = []
    for layer, points in found.by_robustness:
        cells = {point.level: f"{point.loss:.3f} ({100 * point.top1:.1f})" for point in points}
        rows.append([layer, *(cells.get(level, "–") for level in levels)])
    console.print(table(f"loss (top-1 in %) where a layer loses {found.what}", columns, rows))
    say(
        f"whole network: loss {found.base.loss:.3f}, top-1 {100 * found.base.top1:.1f} %; {found.clips} clips of the "
        f"{found.part} part, the layers that bear most first"
    )
    if found.fixed:
        say(f"{len(found.fixed)} layers keep their channels, which reach the last map: {found.fixed[0]}, …")
    if found.shared:
        one, other = next(iter(found.shared.items()))
        say(f"{len(found.shared)} layers share their channels with others, such as {one} with {other}")
    say(f"table and picture: {folder / found.what}.csv, .json, .png, .svg")
    if choice is not None:
        say(
            f"{len(choice.levels)} layers pruned leave {100 * choice.reached:.1f} % of the {choice.measure} "
            f"(budget {100 * choice.budget:g} %): {file}"
        )
        what = "" if found.what == "weights" else " --what channels"
        say(f"next: two-stream compress prune {run}{what} --levels {file}")
