"""matplotlib settings for figures that look the same on every machine."""

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
"""fallbacks for other letters, used if installed"""


@contextmanager
def plain_figures(style: Mapping[Any, Any] | None = None) -> Iterator[None]:
    """Draw with matplotlib's defaults and a style; usable as a context manager or a decorator.

    The `matplotlibrc` of the current folder is ignored because it is untrusted, and `$` in names is drawn as it is.
    Each letter is drawn in the first installed font that contains it. If no font does, a box is drawn without a
    warning.

    Args:
        style: matplotlib parameters.
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
