"""Figures that look the same wherever they are drawn."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

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
"""asked for the letters that it lacks, where they are installed"""


@contextmanager
def plain_figures(style: Mapping[Any, Any] | None = None) -> Iterator[None]:
    """Draw with matplotlib's own defaults and a style over them; use it as a `with` block or as a decorator.

    matplotlib reads a `matplotlibrc` of the current folder, which may be a stranger's. `$` in a name is text here.
    Letters come from the first installed font that has them; one that none has is a box, without a warning.

    Args:
        style: Parameters by their names in matplotlib.
    """
    import matplotlib as mpl
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    fonts = [_FONT, *(name for name in _MORE_FONTS if name in installed)]
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph |Matplotlib currently does not support")
        mpl.rcdefaults()
        wanted: Any = {"text.parse_math": False, "font.family": fonts, **(style or {})}
        mpl.rcParams.update(wanted)
        yield
