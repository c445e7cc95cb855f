"""The look of every figure and page: colours for the light and dark themes, matplotlib settings, and saving.

People with any common form of colour blindness can tell the colours of the series apart, and all text has a contrast of
at least 4.5:1.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from two_stream.errors import printable
from two_stream.runtime.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

LIGHT = {
    "ink": "#1b1f24",
    "muted": "#5b6570",
    "grid": "#e1e5ea",
    "surface": "#ffffff",
    "page": "#f5f6f8",
    "s1": "#2563a8",
    "s2": "#c2570c",
    "s3": "#0f766e",
    "s4": "#7c3aed",
    "s5": "#9d174d",
    "warn": "#92400e",
    "warn-bg": "#fef3c7",
}
DARK = {
    "ink": "#e6e9ed",
    "muted": "#9aa5b1",
    "grid": "#333a43",
    "surface": "#1a1e24",
    "page": "#111418",
    "s1": "#6ea8e8",
    "s2": "#f0975a",
    "s3": "#4fbfae",
    "s4": "#a066ff",
    "s5": "#f24971",
    "warn": "#fcd34d",
    "warn-bg": "#3a2f10",
}
INK, MUTED, GRID, SURFACE = (LIGHT[name] for name in ("ink", "muted", "grid", "surface"))
SERIES = tuple(LIGHT[f"s{number}"] for number in range(1, 6))
"""colours of streams and other series, in this order; RGB is the first and flow the second"""
MORE = ("#56b4e9", "#e69f00", "#cc79a7")
"""three more colours (of Okabe and Ito) for figures of up to eight classes; text on them is dark"""
_THEMED = {
    LIGHT[name]: DARK[name] for name in ("ink", "muted", "grid", "surface", "s1", "s2", "s3", "s4", "s5")
}
_REPLACED = {**_THEMED, **dict(zip(MORE, ("#2477f2", "#a67c00", "#d23f6f")))}
"""colours of the dark theme that `save_figure` writes"""
STYLE: Mapping[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "two-stream",
    "font.size": 9.0,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
}
"""matplotlib parameters of every figure"""

_FONT = "DejaVu Sans"
"""matplotlib's own: Latin, Greek, Cyrillic, Hebrew, Arabic"""
_MORE_FONTS = (
    *(
        "Noto Sans CJK JP",
        "Noto Sans CJK SC",
        "Noto Sans JP",
        "Noto Sans SC",
        "Source Han Sans",
        "Droid Sans Fallback",
    ),
    *("WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "IPAGothic", "VL Gothic", "Noto Sans KR", "NanumGothic"),
    *("Hiragino Sans", "PingFang SC", "Heiti TC", "Apple SD Gothic Neo", "Arial Unicode MS"),
    *("Yu Gothic", "MS Gothic", "Microsoft YaHei", "SimHei", "Malgun Gothic", "Nirmala UI", "Leelawadee UI"),
    *("Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Thai", "Unifont"),
)
"""fallbacks for other letters, used if installed"""


@contextmanager
def plain_figures(style: Mapping[Any, Any] | None = None) -> Iterator[None]:
    """Draw with the common style of the figures; usable as a context manager or a decorator.

    The `matplotlibrc` of the current folder is ignored because it is untrusted, and `$` in names is drawn as it is.
    Each letter is drawn in the first installed font that contains it. If no font does, a box is drawn without a
    warning.

    Args:
        style: matplotlib parameters that differ from `STYLE`.
    """
    import matplotlib as mpl
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    fonts = [_FONT, *(name for name in _MORE_FONTS if name in installed)]
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph |Matplotlib currently does not support")
        mpl.rcdefaults()
        wanted: Any = {"text.parse_math": False, "font.family": fonts, **STYLE, **(style or {})}
        mpl.rcParams.update(wanted)
        yield


def contrast(one: Any, other: Any) -> float:
    """Return the contrast ratio of two colours, from 1 to 21 (WCAG 2)."""
    from matplotlib.colors import to_rgb

    lights = []
    for color in (one, other):
        red, green, blue = (
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)
        )
        lights.append(0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05)
    return max(lights) / min(lights)


def text_on(background: Any) -> str:
    """Return a colour for text on a background, with a contrast of at least 4.5:1.

    On colours that `save_figure` replaces for the dark theme, the colour of the text is replaced, too.
    """
    from matplotlib.colors import to_hex

    choice = (SURFACE, INK) if to_hex(background) in _THEMED else ("#fffffe", "#000000")
    return max(choice, key=lambda color: contrast(color, background))


def shades(color: str) -> LinearSegmentedColormap:
    """Return a colour map of one hue, from nearly white to `color`; it is the same in both themes."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    red, green, blue = to_rgb(color)
    last = red, green, max(0.0, blue - 1 / 255)  # `save_figure` replaces `color` itself
    return LinearSegmentedColormap.from_list("shades", [to_rgb(LIGHT["page"]), last])


def shorten(name: str, limit: int = 22) -> str:
    """Shorten a name to `limit` characters for a label in a figure."""
    text = printable(name)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def save_figure(figure: Figure, path: Path, dpi: int = 150) -> None:
    """Write a PNG, SVG or PDF file completely or not at all; an SVG file has colours for the dark theme, too."""
    kind = path.suffix[1:].lower()
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with atomic_path(path) as part:
        figure.savefig(part, format=kind, dpi=dpi, metadata=metadata)
        if kind == "svg":
            rules = "".join(
                f'[style*="{key}: {light}"] {{{key}: {dark} !important}}\n'
                for light, dark in _REPLACED.items()
                for key in ("fill", "stroke")
            )
            style = f"\n@media (prefers-color-scheme: dark) {{\n{rules}}}</style>"
            text = part.read_text(encoding="utf-8").replace("</style>", style, 1)
            part.write_text(text, encoding="utf-8")
