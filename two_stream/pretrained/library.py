"""Loads pretrained weights of timm and `transformers` into a backbone.

The weights are loaded once, when a training starts. The checkpoints of a run contain all weights.
"""

from __future__ import annotations

from two_stream.backbones.library import LibraryBackbone
from two_stream.config.backbones import TimmNet
from two_stream.errors import CheckpointError
from two_stream.pretrained.files.manifest import STARTERS, install_command, installed_file
from two_stream.pretrained.layouts.efficientnet_lite import rename_to_timm
from two_stream.pretrained.reading import read_state
from two_stream.recognizer import Recognizer
from two_stream.runtime.console import note


def load_library(model: Recognizer) -> str | None:
    """Load the pretrained weights of a library into the backbone if its option `pretrained` is set.

    Args:
        model: Its backbone is changed in place; head, classifier and the block of FRAB or FRMB are not.

    Returns:
        A sentence that names the source of the weights; None if no weights are requested.

    Raises:
        CheckpointError: They cannot be read or downloaded, or do not fit; names the local alternative.
    """
    backbone, options = model.backbone, model.options.backbone
    if not isinstance(backbone, LibraryBackbone) or not backbone.options.pretrained:
        return None
    file = options.weights if isinstance(options, TimmNet) else None
    package = STARTERS.get(options.name) if isinstance(options, TimmNet) and file is None else None
    if package is not None:
        file = installed_file(package)
    if file is not None:
        source = backbone.load_pretrained(rename_to_timm(read_state(file)), str(file))
        return f"the backbone starts from {source}"
    name = getattr(backbone.options, "name", None) or getattr(backbone.options, "model", "")
    note(f"loading the pretrained weights of {name} from the local cache, or by downloading them")
    try:
        return f"the backbone starts from {backbone.load_pretrained()}"
    except CheckpointError as error:
        if package is None:
            raise
        raise CheckpointError(
            f"{error}, or run `{install_command(package)}` to install the weights"
        ) from None
