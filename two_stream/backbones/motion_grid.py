"""Mean motion in the cells of a grid: a backbone without weights, used as the baseline for flow networks."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from two_stream.backbones.base import BACKBONES, Backbone
from two_stream.config.backbones import MotionGrid
from two_stream.errors import SettingsError
from two_stream.types import InputSpec, Modality

FLOW_BOUND = 20.0
"""flow in pixels at the grey levels 0 (negative) and 255 (`two_stream.video.flow`)"""


class CellMeans(nn.Module):
    """Mean of x, y and magnitude over each cell of a grid: `(B, 2, T, H, W)` to `(B, 3 * rows * columns, T, 1, 1)`.

    The first channels are x in all cells, row by row, followed by y in all cells and the magnitude in all cells. Cell i
    of n spans the pixels `i * H // n` to `(i + 1) * H // n`, so the sizes of cells differ by at most one pixel. In a
    frame with fewer pixels than cells, cells share pixels.
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows = rows
        self.columns = columns

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the means in the units of the input."""
        moved = torch.cat((x_BCTHW, torch.linalg.vector_norm(x_BCTHW, dim=1, keepdim=True)), dim=1)
        height, width = moved.shape[3:]
        cells = [
            moved[:, :, :, top:bottom, left:right].mean((3, 4))
            for top, bottom in _spans(height, self.rows)
            for left, right in _spans(width, self.columns)
        ]
        return torch.stack(cells, dim=2).flatten(1, 2)[..., None, None]


def _spans(size: int, parts: int) -> list[tuple[int, int]]:
    edges = [part * size // parts for part in range(parts + 1)]
    return [(begin, max(begin + 1, end)) for begin, end in pairwise(edges)]


@BACKBONES.register(MotionGrid)
class MotionGridNet(Backbone):
    """A network with `CellMeans` as its only stage; outputs one token per flow frame."""

    modalities = ("flow",)
    reductions = ("none",)

    def __init__(self, options: MotionGrid, modality: Modality, stack: int = 1) -> None:
        super().__init__(options, modality, stack)
        if stack > 1:
            raise SettingsError(
                f"`backbone.kind: motion_grid` accepts one flow field, but `input.stack` is {stack}; set "
                "`input.stack` to 1"
            )
        self.grid = CellMeans(options.rows, options.columns)
        self.channels = (3 * options.rows * options.columns,)
        self.temporal_stride = (1,)
        self.spatial_stride = (1,)

    @classmethod
    def default_input(cls, options: MotionGrid, modality: Modality) -> InputSpec:
        """Return full frames of flow in pixels per frame, from -20 to 20, with 0 at grey level 127.5.

        Raises:
            SettingsError: The modality is not flow.
        """
        del options
        if modality != "flow":
            raise SettingsError(
                f"backbone motion_grid requires optical flow, but `model.modality` is {modality}; set "
                "`model.modality: flow`"
            )
        return InputSpec(
            modality=modality,
            clip_length=16,
            stride=1,
            resize=(128, 170),
            crop=(128, 170),
            value_range=(-FLOW_BOUND, FLOW_BOUND),
            mean=(0.0, 0.0),
            std=(1.0, 1.0),
        )

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return grid."""
        return [("grid", self.grid)]

    def append_block(self, channels: int) -> None:
        """Raise an error, because this network has no blocks.

        Raises:
            SettingsError: Always.
        """
        raise SettingsError(
            f"backbone motion_grid has no block that could reduce its features to {channels}; "
            "set `model.reduction: none`"
        )

    def replace_last_block(self, channels: int) -> None:
        """Raise the same error as `append_block`."""
        self.append_block(channels)
