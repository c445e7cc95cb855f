"""The picture of a sensitivity analysis: a curve per layer."""

from __future__ import annotations

from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

from two_stream.compression.sensitivity import Sensitivity
from two_stream.runtime.files import atomic_path
from two_stream.runtime.plotting import plain_figures

_LEGEND = 30
"""layers that still fit in a legend"""
_DPI = 150


@plain_figures()
def draw_sensitivity(found: Sensitivity, target: Path) -> None:
    """Draw top-1 and loss against the share taken out; early layers are dark, late ones light.

    Args:
        found: What was measured.
        target: PNG, SVG or PDF file.
    """
    layers = found.layers
    shown = len(layers) <= _LEGEND
    figure = Figure(figsize=(10 if shown else 7, max(4.0, 0.17 * len(layers) if shown else 4)))
    figure.set_layout_engine("constrained")
    axes = figure.subplots(1, 2)
    colours = colormaps["viridis"]
    for place, layer in enumerate(layers):
        rows = [found.base, *(point for point in found.points if point.layer == layer)]
        colour = colours(place / max(1, len(layers) - 1))
        share = [100 * point.level for point in rows]
        axes[0].plot(share, [100 * p.top1 for p in rows], "o-", ms=3, lw=1, color=colour, label=layer)
        axes[1].plot(share, [p.loss for p in rows], "o-", ms=3, lw=1, color=colour)
    for axis, title in zip(axes, ("top-1 accuracy in %", "loss"), strict=True):
        axis.set_xlabel(f"{found.what} of the layer taken out in %")
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    figure.suptitle(f"{found.run}: {found.clips} clips of the {found.part} part", fontsize=10)
    if shown:
        figure.legend(loc="outside right upper", fontsize=6)
    with atomic_path(target) as part:
        figure.savefig(part, format=target.suffix[1:].lower(), dpi=_DPI)
