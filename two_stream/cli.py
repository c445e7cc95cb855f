"""The `two-stream` command: finds the asked-for stage, loads it, and turns errors into one line and an exit code."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from importlib import import_module

from two_stream.errors import TwoStreamError, loader_killed
from two_stream.runtime import distributed

COMMANDS = {
    "demo": "write a small data set, train both streams, evaluate, fuse and report",
    "prepare": "class folders or official split files -> a data set's record and split lists",
    "extract": "videos -> folders of frames and optical flow",
    "pack": "frame folders or videos -> shards that are read several times as fast, from a disk or object storage",
    "check": "examine videos, frame folders and split lists for what would spoil a run",
    "auto": "from a prepared data set to the best answer: check, baseline, both streams, fusion, report",
    "baseline": "the accuracy that a network must beat: linear classifiers on features that nobody trained",
    "train": "train one stream on one split",
    "features": "store what a frozen backbone gives for every video, for heads to train and be scored on",
    "evaluate": "score the videos of a split with a trained run",
    "fuse": "combine the score files of two or more streams",
    "ablate": "run what is missing of a study and say with statistics what it shows",
    "compare": "which of any runs or score files is better, on the same videos, with statistics",
    "leaderboard": "rank all score files below a folder, and say which the tests cannot tell apart",
    "compress": "prune, quantise or distil a run into a smaller or faster one",
    "predict": "say what happens in a video, from RGB, flow or both",
    "stream": "say what happens in a camera, an RTSP or HTTP stream or a long file, frame by frame",
    "export": "a network with its preprocessing as ONNX, torch.export or AOTInductor, compared with the model",
    "report": "one self-contained page of what runs and scores show",
    "profile": "parameters, multiply-adds, speed and memory of a model",
    "models": "list the named models, or show one",
    "weights": "list, fetch, verify and convert published checkpoints",
}
"""Every command and its one line; tests/contract compares it with the modules in `commands/`."""


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit code: 0 done, 1 done with failures, 2 wrong input, 130 Ctrl-C."""
    args = sys.argv[1:] if argv is None else argv
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(_help())
        return 0
    if args[0] in ("-V", "--version"):
        from two_stream.runtime.provenance import code_version

        sys.stdout.write(f"two-stream {code_version()}\n")
        return 0
    name, rest = args[0], args[1:]
    if name not in COMMANDS:
        return _complain(f"unknown command {name!r}{_nearest(name)}")
    return guarded(lambda: import_module(f"two_stream.commands.{name}").main(rest))


def guarded(action: Callable[[], int], prog: str = "two-stream") -> int:
    """Run a command and return its exit code; an error that a person can mend is one line after the program's name."""
    try:
        code = action()
        sys.stdout.flush()
    except TwoStreamError as error:
        return error.exit_code if error.told else _complain(str(error), error.exit_code, prog=prog)
    except KeyboardInterrupt:
        return _complain("interrupted", 130, prog=prog)
    except BrokenPipeError:  # the reader (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a read-only folder, a folder where a file is expected
        named = f"{error.filename}: " if error.filename else ""
        return _complain(f"{named}{error.strerror or error}", 1, prog=prog)
    except RuntimeError as error:
        if killed := loader_killed(error):  # torch says so wherever the process just is
            return _complain(killed, 1, prog=prog)
        if type(error).__name__ != "OutOfMemoryError":  # torch's; not imported here
            raise
        return _complain(f"{str(error).splitlines()[0]} (try a smaller batch)", 1, prog=prog)
    return int(code)


def run() -> None:
    """Entry point of the console script."""
    os.environ["PYTHONSAFEPATH"] = "1"  # no Python that this one starts reads modules from the current folder
    for stream in (sys.stdout, sys.stderr):  # a Windows code page has no bars, and not every class's name
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    distributed.exit_process(main())


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return (
        "usage: two-stream COMMAND [ARGUMENTS]\n\n"
        "Two-stream video action recognition: train, evaluate, fuse, compare.\n\n"
        + "\n".join(lines)
        + "\n\n`two-stream COMMAND --help` shows a command's flags. Start with `two-stream demo`.\n"
    )


def _nearest(name: str) -> str:
    from two_stream.config.load import nearest

    return nearest(name, list(COMMANDS))


def _complain(message: str, code: int = 2, prog: str = "two-stream") -> int:
    prefix = "" if message.startswith((f"{prog} ", f"{prog}: ")) else f"{prog}: "  # flag errors have it
    sys.stderr.write(f"{prefix}{message}\n")
    return code
