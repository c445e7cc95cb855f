"""Two-stream test of late-temporal checkpoints, in the words of the published `scripts/eval/combined_demo.py`.

python eval/two_stream.py --arch_rgb=rgb_resneXt3D64f101_bert10_FRMB --arch_flow=flow_resneXt3D64f101_bert10_FRMB
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Python looks beside the script first, and there this very file would stand for the package two_stream.
sys.path[:] = [str(HERE.parent), *(entry for entry in sys.path if Path(entry).resolve() != HERE)]


def run() -> int:
    """Parse the flags, score both streams and fuse them."""
    from two_stream.commands.flags import parse
    from two_stream.late_temporal.flags import TwoStreamFlags

    flags = parse(TwoStreamFlags, sys.argv[1:], "two_stream.py", "Two-stream test (combined_demo.py).")
    from two_stream.late_temporal.evaluators import evaluate_two

    evaluate_two(flags)
    return 0


if __name__ == "__main__":
    from two_stream.cli import guarded

    raise SystemExit(guarded(run, "two_stream.py"))
