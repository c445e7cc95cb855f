"""Single-clip test of a late-temporal checkpoint, in the words of the published `scripts/eval/spatial_demo_bert.py`.

python eval/single_clip.py --arch=flow_resneXt3D64f101_bert10_FRMB --split=2
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Python looks beside the script first, and there a two_stream.py would stand for the package.
sys.path[:] = [str(HERE.parent), *(entry for entry in sys.path if Path(entry).resolve() != HERE)]


def run() -> int:
    """Parse the flags and score."""
    from two_stream.commands.flags import parse
    from two_stream.late_temporal.flags import OneStreamFlags

    flags = parse(OneStreamFlags, sys.argv[1:], "single_clip.py", "Single-clip test (spatial_demo_bert.py).")
    from two_stream.late_temporal.evaluators import evaluate_one

    evaluate_one(flags, "single")
    return 0


if __name__ == "__main__":
    from two_stream.cli import guarded

    raise SystemExit(guarded(run, "single_clip.py"))
