"""Class names keep their letters in videos and figures, and no name is too odd to draw."""

from __future__ import annotations

import unicodedata
import warnings

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from two_stream.evaluation.pictures import annotate
from two_stream.evaluation.report.page import confusion
from two_stream.runtime import plotting
from two_stream.runtime.plotting import plain_figures

ODD = ("", "\udce9", "\x1b[31m", "a\nb", "\u202eabc", "हिन्दी", "ไทย", "😀", "e\u0301", "x" * 500, "$\\frac{$")
letters = pytest.mark.skipif(not hasattr(cv2, "FontFace"), reason="OpenCV 4 draws the letters of ASCII alone")


def written(text, line=28):
    picture = np.zeros((60, 320, 3), np.uint8)
    annotate.draw_text(picture, text, (3, 40), line, (255, 255, 255))
    return picture


@letters
@pytest.mark.parametrize("text", ["élan", "прыжок", "跳ぶ", "안녕", "שלום"])
def test_letters_are_kept(text):
    drawn = written(text)
    assert drawn.any()
    for place in range(len(text)):
        other = text[:place] + "?" + text[place + 1 :]
        assert (drawn != written(other)).any(), other
    np.testing.assert_array_equal(drawn, written(unicodedata.normalize("NFD", text)))


def test_what_is_written_from_the_right_is_drawn_so():
    assert annotate._from_the_left("שלום עולם 70 %") == "םלוע םולש 70 %"
    assert annotate._from_the_left("a אב b") == "a בא b"


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("face", ["own", "none"])
def test_no_text_is_too_odd(text, face, monkeypatch):
    if face == "none":
        monkeypatch.setattr(annotate, "_FACE", None)
    drawn = written(text, line=11)
    assert not drawn[:, 318:].any()  # shortened to fit
    if text:
        assert drawn.any()


def test_without_that_font_accents_are_left_out(monkeypatch):
    monkeypatch.setattr(annotate, "_FACE", None)
    np.testing.assert_array_equal(written("élan"), written("elan"))
    np.testing.assert_array_equal(written("跳ぶ"), written("??"))


def test_figures_are_silent_about_letters_and_ask_other_fonts(tmp_path, monkeypatch):
    rare = "\u20e5\u1d8e"  # in STIX, which matplotlib brings, and not in DejaVu Sans

    def drawn(text):
        with plain_figures():
            figure = Figure(figsize=(3, 1))
            figure.text(0.1, 0.5, text)
            figure.savefig(tmp_path / "a.png")
        return (tmp_path / "a.png").read_bytes()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        without = drawn(rare)
        for text in ("跳ぶ", "हिन्दी", "$\\frac{$", "\x1b[31m"):
            drawn(text)
        monkeypatch.setattr(plotting, "_MORE_FONTS", ("No Such Font", "STIXGeneral"))
        assert drawn(rare) != without


def test_names_in_the_figures_of_a_report_are_text_and_nothing_else():
    drawn = confusion(np.eye(3, dtype=np.int64), ["$\\frac{$", "\x1b[31mred", "\udce9"])
    assert ">$\\frac{$</text>" in drawn
    assert ">\\x1b[31mred</text>" in drawn
    assert ">\\udce9</text>" in drawn
    assert "\x1b" not in drawn
