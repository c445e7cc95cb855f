"""Weights that another library publishes for its own networks: ImageNet's of timm, those of `transformers`.

They are read once, when a training starts; a run's own weights are whole, so nothing is fetched afterwards.
"""

from __future__ import annotations

from two_stream.backbones.library import LibraryBackbone
from two_stream.config.backbones import TimmNet
from two_stream.errors import CheckpointError
from two_stream.pretrained.layouts.efficientnet_lite import timm_names
from two_stream.pretrained.reading import read_state
from two_stream.pretrained.starter import STARTERS, how_to_install, installed_file
from two_stream.recognizer import Recognizer
from two_stream.runtime.console import note


def load_library(model: Recognizer) -> str | None:
    """Fill the backbone with its library's weights where its options ask for them (`pretrained`).

    Args:
        model: Its backbone is filled in place; head, classifier and the block of FRAB or FRMB stay fresh.

    Returns:
        A sentence that says where the weights came from; none where none are asked for.

    Raises:
        CheckpointError: They cannot be read or fetched, or do not fit; one line that names the local alternative.
    """
    backbone, options = model.backbone, model.options.backbone
    if not isinstance(backbone, LibraryBackbone) or not backbone.options.pretrained:
        return None
    file = options.weights if isinstance(options, TimmNet) else None
    package = STARTERS.get(options.name) if isinstance(options, TimmNet) and file is None else None
    if package is not None:
        file = installed_file(package)
    if file is not None:
        source = backbone.load_pretrained(timm_names(read_state(file)), str(file))
        return f"the backbone starts from {source}"
    name = getattr(backbone.options, "name", None) or getattr(backbone.options, "model", "")
    note(f"the settings ask for the weights of {name}: from this machine's cache, else from the network")
    try:
        return f"the backbone starts from {backbone.load_pretrained()}"
    except CheckpointError as error:
        if package is None:
            raise
        raise CheckpointError(f"{error}, and `{how_to_install(package)}` brings them") from None
