"""The look of figures: colours that colour-blind people tell apart, text that can be read, files in two themes."""

import itertools
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from two_stream.runtime import plotting
from two_stream.runtime.plotting import DARK, INK, LIGHT, MORE, SERIES, SURFACE, contrast, shades, text_on

SIGHT = {
    "typical": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
}
"""what is seen of linear RGB (Machado, Oliveira and Fernandes 2009)"""
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(color: str, sight: str) -> np.ndarray:
    """Return the CIE L*a*b* values that a person sees."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = np.cbrt(TO_XYZ @ np.clip(SIGHT[sight] @ linear, 0, 1) / (0.9505, 1.0, 1.089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHT)
def test_any_two_series_can_be_told_apart(sight):
    pairs = itertools.combinations(SERIES + MORE, 2)
    gaps = {pair: np.linalg.norm(lab(pair[0], sight) - lab(pair[1], sight)) for pair in pairs}
    assert min(gaps.values()) > 15, min(gaps, key=gaps.get)


def test_contrast_is_that_of_the_standard():
    assert contrast("white", "black") == pytest.approx(21)
    assert contrast("#767676", "white") == contrast("white", "#767676") == pytest.approx(4.54, abs=0.01)


def test_text_can_be_read_on_every_colour_in_both_themes():
    maps = [shades(color)(np.linspace(0, 1, 64)) for color in SERIES]
    for color in (*LIGHT.values(), *MORE, *np.concatenate(maps)):
        assert contrast(text_on(color), color) >= 4.5
    for light, dark in plotting._REPLACED.items():
        if light != LIGHT["muted"]:  # a colour of text and lines
            text = text_on(light)
            assert contrast(plotting._REPLACED.get(text, text), dark) >= 4.5
    assert not {to_hex(part) for made in maps for part in made} & set(plotting._REPLACED)


def test_an_svg_file_has_both_themes_and_the_same_bytes_each_time(tmp_path):
    with plotting.plain_figures():
        for name in ("a.svg", "b.svg", "c.png"):
            figure = Figure()
            figure.subplots().plot([1, 2], color=SERIES[0], label="−1")
            plotting.save_figure(figure, tmp_path / name)
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert text == (tmp_path / "b.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    assert text.count("prefers-color-scheme: dark") == 1
    for light, dark in ((SERIES[0], DARK["s1"]), (INK, DARK["ink"]), (SURFACE, DARK["surface"])):
        assert f'[style*="fill: {light}"] {{fill: {dark} !important}}' in text
    assert f"stroke: {SERIES[0]}" in text.split("</style>")[1], (
        "the rule names a colour as matplotlib writes it"
    )
    assert (tmp_path / "c.png").read_bytes()[1:4] == b"PNG"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "b.svg", "c.png"]


def test_long_names_end_in_an_ellipsis():
    assert plotting.shorten("x" * 30) == "x" * 21 + "…"
    assert plotting.shorten("a\nb") == plotting.shorten("a\nb", 99) != "a\nb"
