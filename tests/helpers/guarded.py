"""Opens files one after another, each in a child of its own that may read, compute and refuse, and nothing else.

    python -m tests.helpers.guarded KIND FIRST < paths        # one path a line

FIRST is a good file: what opening it imports is what any file may import. One line per file on standard output:
`opened`, `refused MESSAGE`, `raised ERROR`, `did WHAT` (an audit event that reading does not need), `signal N`.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS, BYTES = 20, 2 * 2**30
_NEVER = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "pty.spawn",
    "socket.connect",
    "socket.bind",
    "ctypes.dlopen",
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.chmod",
    "shutil.rmtree",
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def exported(path: Path) -> None:
    """Load an exported network and send a clip of zeros through it."""
    import torch

    from two_stream.export import load

    torch.set_num_threads(1)
    run = load(path)
    run.model(torch.zeros(1, *run.card.inputs[0].shape[1:], dtype=torch.uint8))


def scores(path: Path) -> None:
    """Read a score file."""
    from two_stream.evaluation.scores.files import read_scores

    read_scores(path)


def settings(path: Path) -> None:
    """Read an experiment."""
    from two_stream.config.load import load_experiment

    load_experiment(path)


def shards(path: Path) -> None:
    """Read the first and last pictures of every video that an index names; `path` is the index."""
    from two_stream.data.sources.shards import ShardSource
    from two_stream.errors import VideoError

    source = ShardSource(str(path.parent.parent), "rgb")
    refused = None
    for name, video in list(source.index.videos.items())[:20]:
        try:
            source.read(name, [1, 2, max(video.frames - 1, 1), video.frames], (16, 24))
        except VideoError as error:  # of one video: training leaves it out
            refused = refused or error
    if refused is not None:
        raise refused


OPENERS: dict[str, Callable[[Path], None]] = {
    "exported": exported,
    "scores": scores,
    "settings": settings,
    "shards": shards,
}
"""By kind of file: all that a command would do with a stranger's."""


def main() -> None:
    """Read paths, write outcomes."""
    kind, first = sys.argv[1:3]
    opened = OPENERS[kind]
    opened(Path(first))  # all imports, and torch's own files, are read once here
    known = {*sys.modules, "unicodedata"}  # a part of Python that some texts need
    for line in sys.stdin:
        sys.stdout.write(f"{_outcome(opened, Path(line.rstrip()), known)}\n")
        sys.stdout.flush()


def _outcome(opened: Callable[[Path], Any], path: Path, known: set[str]) -> str:
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(told)
        _child(opened, path, known, tell)
    os.close(tell)
    with os.fdopen(told, errors="replace") as pipe:
        text = pipe.read(400)
    _, status = os.waitpid(child, 0)
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else text.replace("\n", "⏎")


def _child(opened: Callable[[Path], Any], path: Path, known: set[str], tell: int) -> None:
    def end(text: str) -> None:
        os.write(tell, text.encode(errors="replace")[:400])
        os._exit(0)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[2], int) and args[2] & _WRITES:
            end(f"did open {args[0]!r} for writing")
        elif event == "import" and args[0] not in known:
            end(f"did import {args[0]}")
        elif event in _NEVER:
            end(f"did {event} {args!r:.200}")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    signal.alarm(3 * SECONDS)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.addaudithook(hook)
    from two_stream.errors import TwoStreamError

    try:
        opened(path)
    except TwoStreamError as error:
        end(f"refused {error}")
    except BaseException as error:  # noqa: BLE001 - a traceback is what this looks for
        end(f"raised {type(error).__name__}: {error}")
    end("opened")


if __name__ == "__main__":
    main()
