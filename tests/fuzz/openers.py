"""What `guarded.py` does with a file of each kind: all that a command would do with a stranger's."""

from __future__ import annotations

from pathlib import Path


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
