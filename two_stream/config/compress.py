"""How a run is made from another one: pruned, quantised or distilled; told apart by `kind`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from two_stream.config.base import Options


class NoCompression(Options):
    """An ordinary training."""

    kind: Literal["none"] = "none"


class Prune(Options):
    """Weights or channels that matter least are taken out, and the rest trained on."""

    kind: Literal["prune"] = "prune"
    source: Path | None = None
    """run folder of the network that is pruned"""


class Quantize(Options):
    """Convolutions and linear layers compute in int8."""

    kind: Literal["quantize"] = "quantize"
    source: Path | None = None
    """run folder of the network that is quantised"""


class Distill(Options):
    """The network learns from what one or several trained ones say."""

    kind: Literal["distill"] = "distill"
    teachers: tuple[Path, ...] = ()
    """run folders of the networks to learn from"""


CompressOptions = Annotated[NoCompression | Prune | Quantize | Distill, Field(discriminator="kind")]
