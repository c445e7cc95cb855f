"""ActivityNet: `activity_net.v1-3.min.json`, untrimmed videos with segments in seconds."""

from __future__ import annotations

from pathlib import Path

from two_stream.data.prepare.adapters.annotations import Annotations
from two_stream.data.prepare.adapters.codebase_json import read_codebase_json
from two_stream.data.prepare.adapters.reading import find_file


def read_activitynet(path: Path) -> Annotations:
    """Read the official file (or the folder it lies in): every annotated segment is an entry of its own.

    Labels follow the leaves of the taxonomy, as in 3D-ResNets-PyTorch `datasets/activitynet.py`, unless the file has
    `labels`. `fps`, where 3D-ResNets' scripts have added it, goes for videos whose own time stamps cannot be read.
    Videos are called `v_<id>` or `<id>`.

    Raises:
        DataError: Missing, no whole JSON, or a wrong value; names the key.
    """
    file = find_file(path, "activity_net*.json", "*.json") if path.is_dir() else path
    return read_codebase_json(file, prefix="v_")
