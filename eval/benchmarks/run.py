"""Run every benchmark and print one table of the targets.

    python eval/benchmarks/run.py [--quick] [--only NAME …] [--readme]

Each script runs in a process of its own, one after another, and leaves `results/<name>.json` (with --quick
`results/quick/<name>.json`); this one gathers their rows in `summary.json` beside them; with --only, the other rows are
those measured last. With --readme the table in `eval/benchmarks/README.md` is written anew. A script that is missing,
fails or disagrees with its baseline is a row that says so; those are named at the end, and the exit code is 1. A target
that is not reached is not an error.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from common import COLUMNS, RESULTS, Row, machine, markdown_table, read_rows, text_table

from two_stream.runtime.files import write_json, write_text

HERE = Path(__file__).resolve().parent
README = HERE / "README.md"
BEGIN, END = "<!-- table: begin (run.py --readme) -->", "<!-- table: end -->"
QUICK_SECONDS, FULL_SECONDS = 590, 3600
"""What all quick scripts may take together, and each full one; a script that is not done then is ended."""


@dataclass(frozen=True)
class Script:
    """A benchmark and the rows of the milestone's table that it owes."""

    name: str
    owed: tuple[str, ...]
    """what is measured, as the milestone says it"""
    extra: bool = False
    """runs only in full, or when named"""


SCRIPTS = (
    Script(
        "loading",
        (
            "training clips read per second, same pixels",
            "the same with libjpeg's scaled decoding",
            "the same from packed shards",
        ),
    ),
    Script("video_reading", ("a 64-frame clip at random from a 1,000-frame H.264 file",)),
    Script(
        "evaluation",
        (
            "ten-crop multi-clip evaluation, ResNeXt-101 BERT FRMB, bf16",
            "the same, exact fp32",
            "peak memory of ten-crop evaluation, 1,000 frames",
        ),
    ),
    Script("training_step", ("training step, ResNeXt-101 64 frames, bf16",)),
    Script("roofline", ("convolution-bound forward, R3D-18 32×112², bf16",)),
    Script("extraction", ("TV-L1 + JPEG extraction with 2 processes",)),
    Script("start_up", ("start of a run to first training step", "start of `predict` to the first frame")),
    Script(
        "streaming",
        (
            "multiply-adds of a prediction, CoX3D-M",
            "CPU time of a prediction, CoX3D-M",
            "peak memory of a stream",
        ),
    ),
    Script("attention", (), extra=True),
    Script("exports", (), extra=True),
    Script("web_page", (), extra=True),
    Script("head_study", (), extra=True),
    Script("memory_format", (), extra=True),
    Script("quantisation", (), extra=True),
    Script("score_files", (), extra=True),
    Script("big_lists", (), extra=True),
    Script("gpu", (), extra=True),
)


def run_script(script: Script, quick: bool, folder: Path, limit: float) -> list[Row]:
    """Run one benchmark for `limit` seconds at most and return its rows, or rows that say what went wrong."""
    path = HERE / f"{script.name}.py"
    if not path.is_file():
        return _problem(script, "no such script")
    command = [sys.executable, str(path), "--out", str(folder), *(["--quick"] if quick else [])]
    begun = time.time()
    try:
        done = subprocess.run(
            command, cwd=HERE.parents[1], capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return _problem(script, f"not done after {limit:.0f} s")
    result = folder / f"{script.name}.json"
    if not result.is_file() or result.stat().st_mtime < begun - 1:
        lines = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        if done.returncode == 0:  # it had nothing to measure here, and said why
            print(f"  {lines[-1]}", flush=True)
            return [] if not script.owed else _problem(script, lines[-1])
        return _problem(script, f"failed: {lines[-1][:160]}")
    try:
        rows = read_rows(json.loads(result.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        return _problem(script, f"its JSON has no rows that can be read ({error})")
    if done.returncode and not any(row.problem for row in rows):
        rows += _problem(script, f"ended with exit code {done.returncode}")
    if sum(row.target is not None for row in rows) < len(script.owed):
        rows += [
            Row(what, "", None, None, None, problem=f"{script.name}.py gave no such row")
            for what in script.owed[sum(row.target is not None for row in rows) :]
        ]
    return rows


def kept_rows(path: Path) -> list[Row]:
    """Return the rows of an earlier measurement that is not repeated now."""
    return read_rows(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []


def _problem(script: Script, reason: str) -> list[Row]:
    names = script.owed or (script.name,)
    return [Row(what, f"({script.name}.py)", None, None, None, problem=reason) for what in names]


def write_readme(table: str, facts: dict[str, object], quick: bool) -> None:
    """Replace the text between the markers of the README."""
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{README}: the markers {BEGIN} and {END} are not there")
    where = (
        f"The table was written on {facts['date']}{' with `--quick`' if quick else ''}, on a machine with "
        f"{facts['processors']} processors ({facts['cpu']}) and a load average of {facts['load']}, with "
        f"two-stream {facts['two-stream']}, torch {facts['torch']}, OpenCV {facts['opencv-contrib-python-headless']} "
        f"and PyAV {facts['av']}."
    )
    write_text(README, f"{before}{BEGIN}\n\n{table}\n\n{where}\n\n{END}{after}")


def main(argv: list[str] | None = None) -> int:
    """Run, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="under ten minutes on two cores")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="scripts to run")
    parser.add_argument("--readme", action="store_true", help="write the table into the README")
    given = parser.parse_args(argv)
    unknown = set(given.only) - {script.name for script in SCRIPTS}
    if unknown:
        parser.error(f"unknown benchmark {sorted(unknown)[0]}; known: {', '.join(s.name for s in SCRIPTS)}")
    folder = RESULTS / "quick" if given.quick else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [
        script
        for script in SCRIPTS
        if (script.name in given.only if given.only else not (given.quick and script.extra))
    ]
    rows: list[Row] = []
    seconds: dict[str, float] = {}
    begun = time.monotonic()
    for script in SCRIPTS:
        if script not in chosen:
            rows += kept_rows(folder / f"{script.name}.json")
            continue
        print(f"{script.name} …", flush=True)
        start = time.monotonic()
        limit = QUICK_SECONDS - (start - begun) if given.quick else FULL_SECONDS
        rows += run_script(script, given.quick, folder, max(1.0, limit))
        seconds[script.name] = round(time.monotonic() - start, 1)
    print(f"\n{text_table(rows)}\n")
    facts = machine()
    listed = [{**asdict(row), "reached": row.reached} for row in rows]
    summary = folder / "summary.json"
    write_json(
        summary,
        {"quick": given.quick, "columns": COLUMNS, "rows": listed, "seconds": seconds, "environment": facts},
    )
    aimed = [row for row in rows if row.target is not None]
    wrong = [row for row in rows if row.problem]
    unmeasured = f", {len(wrong)} rows without a figure that counts" if wrong else ""
    print(
        f"{sum(row.reached is True for row in aimed)} of {len(aimed)} targets reached{unmeasured}; {summary}"
    )
    print("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
    if given.readme:
        write_readme(markdown_table(rows), facts, given.quick)
        print(README)
    for row in wrong:
        print(f"FAILED {row.name} {row.against}: {row.problem}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
