"""Seconds and memory of fusing the scores of two streams: 20,000 videos × 400 classes.

    python eval/benchmarks/score_files.py [--quick] [--rounds 5]

`two-stream fuse` reads both files, fuses them, and computes intervals and a paired test. The baseline is a numpy script
that only loads the two files, adds the normalised logits and prints the accuracy. Both are commands, in turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import Row, finish, flags, interleaved, median_of

from two_stream.evaluation.scores.files import write_table
from two_stream.types import ScoreTable

TARGET_SECONDS, TARGET_MEMORY = 5.0, 1024.0
"""seconds, and MiB"""
PLAIN = """
import sys
import numpy as np
total = 0
for path in sys.argv[1:]:
    found = np.load(path)
    total = total + found["logits"] / np.linalg.norm(found["logits"], axis=1, keepdims=True)
print((total.argmax(axis=1) == found["labels"]).mean())
"""


def write_streams(folder: Path, videos: int, classes: int) -> None:
    """Write the scores of two streams as score files and as CSV files."""
    labels = np.random.default_rng(0).integers(0, classes, videos)
    for seed, name in enumerate(("rgb", "flow"), start=1):
        logits = np.random.default_rng(seed).normal(size=(videos, classes))
        logits[np.arange(videos), labels] += 2.5
        table = ScoreTable(
            [f"v{number}" for number in range(videos)],
            labels,
            [f"class {number}" for number in range(classes)],
            logits.round(5),
            {"part": "test", "modality": name},
            groups=[f"g{number // 4}" for number in range(videos)],
        )
        for suffix in (".npz", ".csv"):
            write_table(folder / f"{name}{suffix}", table)


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    given = flags(__doc__, argv)
    videos, classes = (2000, 40) if given.smoke else (20_000, 400)
    printed: dict[str, list[str]] = {}
    memory: dict[str, list[float]] = {}

    def command(name: str, *args: str) -> None:
        process = subprocess.Popen(args, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        printed.setdefault(name, []).append(process.stdout.read())
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, name
        memory.setdefault(name, []).append(used.ru_maxrss / 1024)

    with tempfile.TemporaryDirectory() as folder:
        write_streams(Path(folder), videos, classes)
        files = {
            suffix: [f"{folder}/{name}.{suffix}" for name in ("rgb", "flow")] for suffix in ("npz", "csv")
        }
        fuse = [sys.executable, "-m", "two_stream", "fuse", "--json"]
        sides = {
            "numpy": lambda: command("numpy", sys.executable, "-c", PLAIN, *files["npz"]),
            "npz": lambda: command("npz", *fuse, *files["npz"]),
            "csv": lambda: command("csv", *fuse, *files["csv"]),
        }
        times = interleaved(sides, rounds=given.rounds, warm=0 if given.smoke else 1)
    found = {name: json.loads(printed[name][0])["streams"][2]["top"]["1"]["value"] for name in ("npz", "csv")}
    alike = abs(float(printed["numpy"][0]) - found["npz"]) < 1e-12 and found["npz"] == found["csv"]
    problem = "" if alike else f"accuracies differ: {printed['numpy'][0].strip()}, {found}"
    size = f"{videos:,} videos × {classes} classes"
    plain, own, table = (median_of(times[name]) for name in ("numpy", "npz", "csv"))
    used = max(memory["npz"])
    note = f"ratio is seconds; {size}; accuracies agree"
    rows = [
        Row(
            "fuse two score files",
            "numpy: load, add, compare",
            plain,
            own,
            own,
            TARGET_SECONDS,
            note,
            "s",
            at_most=True,
        ),
        Row(
            "the same, peak memory", "", None, used, used, TARGET_MEMORY, "ratio is MiB", "MiB", at_most=True
        ),
        Row(
            "the same from CSV files",
            "numpy on score files",
            plain,
            table,
            None,
            None,
            f"{max(memory['csv']):.0f} MiB",
            "s",
        ),
    ]
    if problem:
        rows[0] = Row(rows[0].name, rows[0].against, None, None, None, TARGET_SECONDS, problem=problem)
    return finish("score_files", rows, given, seconds=times, memory=memory)


if __name__ == "__main__":
    sys.exit(main())
