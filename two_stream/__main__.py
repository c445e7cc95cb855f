"""`python -m two_stream` is the `two-stream` command."""

import sys
from pathlib import Path

if not sys.flags.safe_path and Path(sys.path[0]).resolve() != Path(__file__).resolve().parents[1]:
    del sys.path[0]  # the current folder: its files may be untrusted

from two_stream.cli import run

if __name__ == "__main__":
    run()
