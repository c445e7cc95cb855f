"""The `two-stream` command: imports the requested subcommand and turns errors into one line and an exit code."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable
from importlib import import_module

from two_stream.errors import TwoStreamError, loader_killed
from two_stream.runtime import distributed

COMMANDS = {
    "demo": "write a small data set, train both streams, evaluate, fuse and report",
    "prepare": "write a data set's record and split lists from class folders or official split files",
    "extract": "extract frames and optical flow from videos",
    "pack": "pack frame folders or videos into shards, which are several times as fast to read",
    "check": "check videos, frame folders and split lists for problems",
    "auto": "run everything on a prepared data set: check, baseline, both streams, fusion, report",
    "baseline": "compute the accuracy to beat: linear classifiers on fixed features",
    "train": "train one stream on one split",
    "features": "store the features of a frozen backbone for all videos, so that heads train without the backbone",
    "evaluate": "score the videos of a split with a trained run",
    "reproduce": "score a run again as a stored score file was computed, and say whether the result is the same",
    "scores": "convert score files to CSV, JSON or NumPy arrays, also those of other programs",
    "fuse": "combine the score files of two or more streams",
    "ablate": "run the missing parts of a study and report its statistics",
    "compare": "compare runs or score files on the same videos, with statistics",
    "xray": "score runs on shuffled, reversed and otherwise changed clips, to see what they use",
    "leaderboard": "rank all score files below a folder, with significance tests",
    "board": "write a page that lists all runs below a folder, to filter, sort and compare them",
    "compress": "make a smaller or faster run by pruning, quantization or distillation",
    "predict": "recognise the action in a video from RGB, flow or both",
    "stream": "recognise actions in a camera, RTSP or HTTP stream or long file, frame by frame",
    "export": "export a network with its preprocessing as ONNX, torch.export or AOTInductor, and verify it",
    "push": "upload a run with its scores and a model card to the Hugging Face hub",
    "report": "write one self-contained page about runs and scores",
    "profile": "measure parameters, multiply-adds, speed and memory of a model",
    "settings": "list, show and copy the settings files of experiments and studies",
    "doctor": "show versions, devices, decoders and optional packages, for bug reports",
    "models": "list the named models, or show one",
    "weights": "list, fetch, verify and convert published checkpoints",
}
"""Every command and its summary; a contract test compares it with the modules in `commands/`."""
GROUPS = {
    "Data": "demo prepare extract pack check",
    "Train": "settings auto baseline train features compress",
    "Measure": "evaluate reproduce scores fuse report profile",
    "Compare": "ablate compare xray leaderboard board",
    "Use": "predict stream export push models weights doctor",
}
"""The commands of each heading of the overview."""


def main(argv: list[str] | None = None) -> int:
    """Run a command line; return 0 for success, 1 for a failure, 2 for wrong input and 130 for Ctrl-C."""
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
    """Run a command and return its exit code; an error that the user can fix is printed as one line."""
    try:
        code = action()
        sys.stdout.flush()
    except TwoStreamError as error:
        return error.exit_code if error.shown_elsewhere else _complain(str(error), error.exit_code, prog=prog)
    except KeyboardInterrupt:
        return _complain("interrupted", 130, prog=prog)
    except BrokenPipeError:  # the reader (head, less) has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a read-only folder, a folder where a file is expected
        named = f"{error.filename}: " if error.filename else ""
        return _complain(f"{named}{error.strerror or error}", 1, prog=prog)
    except RuntimeError as error:
        if killed := loader_killed(error):  # torch raises it from a signal handler
            return _complain(killed, 1, prog=prog)
        if type(error).__name__ != "OutOfMemoryError":  # torch's class; torch is not imported here
            raise
        return _complain(f"{str(error).splitlines()[0]} (try a smaller batch)", 1, prog=prog)
    return int(code)


def run() -> None:
    """Entry point of the console script."""
    os.environ["PYTHONSAFEPATH"] = "1"  # child processes import no modules from the current folder
    for stream in (sys.stdout, sys.stderr):  # a Windows code page lacks some characters
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    distributed.exit_process(main())


def _help() -> str:
    from two_stream.runtime.text import hanging

    width = shutil.get_terminal_size().columns
    most = max(map(len, COMMANDS))
    groups = [
        f"{title}:\n{hanging([(name, COMMANDS[name]) for name in names.split()], width, least=most)}"
        for title, names in GROUPS.items()
    ]
    return (
        "usage: two-stream COMMAND [ARGUMENTS]\n\n"
        "Two-stream video action recognition: train, evaluate, fuse, compare.\n\n"
        + "\n".join(groups)
        + "\n`two-stream COMMAND --help` shows the flags. Start with `two-stream demo`.\n"
    )


def _nearest(name: str) -> str:
    from two_stream.config.load import nearest

    return nearest(name, list(COMMANDS))


def _complain(message: str, code: int = 2, prog: str = "two-stream") -> int:
    # errors about flags already begin with the command's name
    prefix = "" if message.startswith((f"{prog} ", f"{prog}: ")) else f"{prog}: "
    line = f"{prefix}{message}"
    if sys.stderr.isatty():
        from two_stream.runtime.console import wrapped

        line = wrapped(line, shutil.get_terminal_size().columns)
    sys.stderr.write(f"{line}\n")
    return code
