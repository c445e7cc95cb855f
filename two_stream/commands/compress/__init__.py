"""`two-stream compress {prune,sensitivity,quantize,distill} RUN`: a smaller or faster run made from a trained one."""

from __future__ import annotations

import sys
from importlib import import_module

from two_stream.config.load import nearest
from two_stream.errors import SettingsError

SUMMARY = "Make a smaller or faster run from a trained one, and say what it costs in accuracy."
METHODS = {
    "prune": "take out the weights or channels that matter least, and train on",
    "sensitivity": "find out which layers bear pruning, and choose levels for a budget",
    "quantize": "compute in int8, calibrated on clips or trained for it",
    "distill": "train a network on what one or several others say",
}


def main(args: list[str]) -> int:
    """Run the command and return its exit code.

    Raises:
        SettingsError: No such method; and whatever the method raises.
    """
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(_help())
        return 0
    method, rest = args[0], args[1:]
    if method not in METHODS:
        raise SettingsError(f"two-stream compress: unknown method {method!r}{nearest(method, list(METHODS))}")
    code: int = import_module(f"two_stream.commands.compress.{method}").main(rest)
    return code


def _help() -> str:
    width = max(map(len, METHODS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in METHODS.items()]
    return (
        "usage: two-stream compress METHOD RUN [FLAGS]\n\n"
        f"{SUMMARY}\nWhat comes out is an ordinary run: evaluate, fuse, compare and studies take it.\n\n"
        + "\n".join(lines)
        + "\n\n`two-stream compress METHOD --help` shows a method's flags.\n"
    )
