"""Draw the diagrams of the documentation, `docs/pictures/*.svg`, in the colours of all figures.

The frames are those of a video of the demo (class `climb`), drawn as shapes. Clips and statistics are computed by the
functions that the commands use. The docstring of a function that draws is the title of its picture.
"""

from __future__ import annotations

from collections import Counter
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tables import ROOT

from two_stream.data.clips.sampling import sample_clips
from two_stream.data.demo import disc_state
from two_stream.evaluation.scores.statistics import Sample, difference_of, estimate_mean
from two_stream.runtime.files import write_text
from two_stream.runtime.plotting import DARK, LIGHT

FOLDER = ROOT / "docs" / "pictures"
WIDTH = 600  # pixels, of every diagram; a phone shows it at 60 %, so the smallest text has 13
FONT = 'system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"DejaVu Sans",sans-serif'
KINDS = {"text": ("ink", 14, 400), "title": ("ink", 14, 600), "note": ("muted", 13, 400)}
LOOKS = {"#": "s1 s1-line", "o": "page s1-line", ".": "surface grid-line", "x": "s2", "t": "s3 s3-line"}
_LIGHT, _DARK = (
    "".join(
        f".{name}{{fill:{theme[name]}}}.{name}-line{{stroke:{theme[name]}}}"
        for name in ("ink", "muted", "grid", "surface", "page", "s1", "s2", "s3", "s4")
    )
    for theme in (LIGHT, DARK)
)  # class `s1` fills with a colour, `s1-line` draws lines in it
HEAD = (
    f"<style>text{{font-family:{FONT}}}{_LIGHT}@media(prefers-color-scheme:dark){{{_DARK}}}</style><defs>"
    '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
    '<path d="M0 0 8 4 0 8z" class="muted"/></marker></defs>'
)
Box = tuple[float, float, float, float]


class Drawing:
    """An SVG file. Colours are names of `plotting.LIGHT`; positions and sizes are in pixels."""

    def __init__(self, height: int, title: str) -> None:
        size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img"'
        self.parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}><title>{escape(title)}</title>', HEAD]
        self.rect(0.5, 0.5, WIDTH - 1, height - 1, "surface grid-line", rx=8)

    def add(self, tag: str, inside: str = "", **attributes: Any) -> None:
        """Add an element; `class_` and `stroke_width` become `class` and `stroke-width`."""
        values = [(name.strip("_").replace("_", "-"), value) for name, value in attributes.items()]
        words = (
            f' {name}="{round(value, 1) if isinstance(value, float) else value}"' for name, value in values
        )
        self.parts.append(f"<{tag}{''.join(words)}>{inside}</{tag}>")

    def text(
        self, x: float, y: float, words: str, kind: str = "text", at: str = "start", colour: str = ""
    ) -> None:
        """Add lines of text of a kind in `KINDS`; `y` is the first base line."""
        usual, size, weight = KINDS[kind]
        look = {"text_anchor": at, "class_": colour or usual, "font_size": size, "font_weight": weight}
        for number, line in enumerate(words.split("\n")):
            self.add("text", escape(line), x=x, y=y + 17 * number, **look)

    def rect(self, x: float, y: float, width: float, height: float, classes: str, **more: Any) -> None:
        """Add a rectangle of some classes."""
        self.add("rect", x=x, y=y, width=width, height=height, class_=classes, **{"rx": 2, **more})

    def squares(self, x: float, y: float, step: float, size: float, looks: str) -> None:
        """Add a row of squares, each of a look in `LOOKS`."""
        for number, look in enumerate(looks):
            self.rect(x + step * number, y, size, size, LOOKS[look])

    def dot(self, x: float, y: float, r: float, classes: str) -> None:
        """Add a filled circle."""
        self.add("circle", cx=x, cy=y, r=r, class_=classes)

    def line(self, *points: float, colour: str = "muted", width: float = 1.5, **more: Any) -> None:
        """Add a line through the points x1, y1, x2, y2 and so on."""
        pairs = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(points[::2], points[1::2]))
        self.add("polyline", points=pairs, fill="none", class_=f"{colour}-line", stroke_width=width, **more)

    def box(self, x: float, y: float, width: float, height: float, words: str, colour: str = "muted") -> Box:
        """Add a box with a bold line of text, and smaller lines below it."""
        self.rect(x, y, width, height, f"page {colour}-line", rx=6, stroke_width=1.5)
        for number, line in enumerate(words.split("\n") if words else ()):
            top = y + height / 2 + 5 - 8.5 * words.count("\n") + 17 * number
            self.text(x + width / 2, top, line, "note" if number else "title", "middle")
        return x, y, width, height

    def join(self, *boxes: Box) -> None:
        """Add an arrow from each box to the next one, to the right or down."""
        for (x, y, width, height), (to_x, to_y, to_width, to_height) in pairwise(boxes):
            right = to_x > x + width and to_y < y + height + 60
            start = (x + width, y + height / 2) if right else (x + width / 2, y + height)
            end = (to_x - 1, to_y + to_height / 2) if right else (to_x + to_width / 2, to_y - 1)
            self.line(*start, *end, marker_end="url(#tip)")

    def frame(
        self, x: float, y: float, width: float, time: float, flow: bool = False, flip: bool = False
    ) -> None:
        """Add a frame of the demo's video, or its optical flow; `time` is in cycles of the motion."""
        height = 0.75 * width
        self.rect(x, y, width, height, "grid muted-line", stroke_width=0.7)
        for side, start in enumerate(np.array([[0.72, 0.3, 0.1, 0.0], [0.8, 0.0, 0.4, 0.3]])):
            (now, size, turn), (later, _, _) = (
                disc_state("climb", side, start, t) for t in (time, time + 0.4)
            )
            cx, cy, r = x + width * (0.25 + 0.5 * (side ^ flip)), y + height * now, height * size / 2
            for aside in (-0.5, 0, 0.5) if flow else ():
                self.line(
                    cx + aside * r,
                    cy,
                    cx + aside * r,
                    y + height * later,
                    colour="s2",
                    marker_end="url(#tip)",
                )
            if not flow:
                across, up = np.sin(2 * np.pi * turn) * (-1) ** flip, np.cos(2 * np.pi * turn)
                self.dot(cx, cy, r, ("muted", "ink")[side])
                self.line(cx, cy, cx + r * float(across), cy - r * float(up), colour="surface")


def clip(draw: Drawing) -> None:
    """A video, its clips, crops and views."""
    draw.text(25, 30, "A video of 25 frames", "title")
    for number in range(25):
        draw.frame(25 + number * 22, 42, 20, number / 12)
    for number, one in enumerate(sample_clips("multi", 25, 8), 1):
        first, last = 4 + one[0] * 22, 22 + one[-1] * 22
        draw.line(first, 64, first, 74, last, 74, last, 64, colour="s1")
        draw.text((first + last) / 2, 92, f"clip {number}", at="middle", colour="s1")
    draw.text(25, 116, "Test clips: 8 frames, stride 1, side by side (views: multi)", "note")
    (chosen,) = sample_clips("train", 25, 8, stride=2, offset=6)
    draw.squares(29, 136, 22, 12, "".join("t" if number in chosen else "." for number in range(1, 26)))
    draw.text(25, 170, "A training clip: 8 frames, stride 2 (every second frame), random start", "note")
    draw.text(25, 210, "Crops of each frame in a clip", "title")
    for flip, words in enumerate(("centre and four corners: five crops", "mirrored: five more crops")):
        x = 25 + 290 * flip
        draw.text(x, 232, words, "note")
        draw.frame(x, 242, 220, 0.2, flip=bool(flip))
        for dx, dy, colour in ((0, 0, "s3"), (93, 0, "s3"), (0, 38, "s3"), (93, 38, "s3"), (46, 19, "s1")):
            draw.rect(x + dx, 242 + dy, 127, 127, f"{colour}-line", fill="none", stroke_width=2.5)
    draw.text(25, 428, "3 clips × 10 crops = 30 views. The scores of the views are averaged.")


def two_streams(draw: Drawing) -> None:
    """Two streams: an RGB network and a flow network, and the fusion of their scores."""
    video = draw.box(210, 16, 180, 40, "video file")
    fusion = draw.box(190, 406, 220, 44, "fusion\none score per class", "s3")
    for x, colour, name, what in ((150, "s1", "RGB", "RGB frames"), (450, "s2", "flow", "optical flow")):
        draw.join(video, (x - 84, 88, 168, 0))
        for number in range(3):
            draw.frame(x - 84 + 14 * number, 92 + 8 * number, 140, 0.05 + 0.1 * number, flow=name == "flow")
        draw.text(x, 234, f"clips of {what}", "note", "middle")
        network = draw.box(x - 120, 262, 240, 54, f"{name} stream\nbackbone + temporal head", colour)
        draw.join(
            (x - 100, 240, 200, 0), network, draw.box(x - 120, 342, 240, 36, "score file", colour), fusion
        )


def heads(draw: Drawing) -> None:
    """How a backbone and a temporal head fit together."""
    boxes: list[Box] = []
    for name, colour, words in (
        ("clip", "muted", "(B, C, T, H, W): 64 frames of 112 × 112\npixels, RGB (C = 3) or flow (C = 2)"),
        ("backbone", "s1", "3D ResNet, ResNeXt, I3D, SlowFast, X3D,\n2D networks of timm, …"),
        (
            "reduction",
            "s4",
            "optional, reduces the features: FRAB adds\na block, FRMB replaces the last block",
        ),
        (
            "tokens",
            "muted",
            "(B, T, D): one vector per time step, which\nis the mean over the positions in a frame",
        ),
        (
            "temporal head",
            "s2",
            "average, moments, concatenation, LSTM,\nnon-local, BERT: (B, D), one vector per clip",
        ),
        ("classifier", "s3", "dropout and a linear layer\n(B, K): logits, one score per class"),
    ):
        boxes.append(draw.box(25, 18 + 67 * len(boxes), 160, 44, name, colour))
        draw.text(210, boxes[-1][1] + 18, words, "note")
    draw.join(*boxes)


def sources(draw: Drawing) -> None:
    """A split divides the sources of a data set into parts."""
    parts = (
        ("training part", 30, 5, "s1", "trains the weights"),
        ("holdout", 302, 2, "s4", "chooses\nthe epoch"),
    )
    for name, left, count, colour, use in (*parts, ("test part", 418, 3, "s3", "used once, at the end")):
        draw.text(left + 26 * count - 4, 36, name, "title", "middle", colour)
        draw.text(left + 26 * count - 4, 180, use, "note", "middle")
        for x in range(left, left + 52 * count, 52):
            draw.box(x, 48, 44, 110, "", colour)
            for video in range(3 + x % 3):
                draw.dot(x + 22, 64 + 17 * video, 6, colour)
    for first, last, colour, words in ((30, 398, "s1", "training list"), (418, 566, "s3", "test list")):
        draw.line(first, 210, last, 210, colour=colour)
        draw.text((first + last) / 2, 228, words, "note", "middle")
    draw.text(
        30, 257, "Dot: a video. Box: a source, for example the film that its clips were cut from.", "note"
    )


def features(draw: Drawing) -> None:
    """The backbone computes the features once; all heads are trained on them."""
    backbone = draw.box(119, 78, 134, 60, "backbone\nfrozen, runs once", "s1")
    stored = draw.box(277, 78, 150, 60, "stored features\nfeatures/rgb", "s4")
    draw.join(draw.box(15, 78, 80, 60, "videos"), backbone, stored)
    for y, name in ((16, "average"), (86, "LSTM"), (156, "BERT")):
        draw.join(stored, draw.box(462, y, 122, 44, f"{name}\nseeds 1, 2, 3", "s2"))


def study(draw: Drawing) -> None:
    """A study: variants, splits, seeds and cells."""
    draw.text(128, 32, "variant", "note", "end")
    for split in (1, 2):
        draw.text(29 + 190 * split, 32, f"split {split}", "title", "middle")
        for seed in (1, 2, 3):
            draw.text(190 * split + 52 * seed - 75, 58, f"seed {seed}", "note", "middle")
    for y, name, colour, look in (
        (68, "average", "s1", "#"),
        (124, "LSTM", "s2", "x"),
        (180, "BERT", "s3", "t"),
    ):
        draw.text(128, y + 29, name, "title", "end", colour)
        draw.squares(144, y, 52, 46, 3 * look)
        draw.squares(334, y, 52, 46, 3 * look)
        draw.join((480, y, 14, 46), (519, y, 0, 46))
        draw.text(526, y + 29, "mean", colour=colour)
    draw.text(
        25, 262, "A square is a cell: one training run of a variant, on one split, with one seed.", "note"
    )


def streaming(draw: Drawing) -> None:
    """Sliding clips compute a frame many times, a stream computes it once."""
    draw.text(20, 30, "Sliding clips: every clip is computed from its first frame on", "title")
    draw.text(112, 176, "Frames 4 to 8 are computed four times.", "note")
    draw.text(20, 214, "A stream: a step computes only what is new", "title")
    clips = [(48 + 28 * row, f"clip {row + 1}", "." * row + "xxxxxxxx" + "." * (4 - row)) for row in range(4)]
    layers = ((236, "frames", ".........oo#"), (288, "layer 1", "........oo#"), (340, "tokens", ".....oooo#"))
    for y, name, looks in (*clips, *layers):
        draw.text(100, y + 16, name, "note", "end")
        draw.squares(112, y, 39, 22, looks)
    for y, new in ((288, 513), (340, 474)):
        for back in (-39, 0, 39):
            draw.line(new + back, y - 30, new, y, colour="s1")
    draw.line(307, 368, 307, 376, 485, 376, 485, 368)
    draw.join((307, 376, 178, 0), (307, 395, 178, 0))
    draw.text(396, 412, "head: window of the newest 5 tokens → prediction", at="middle")
    draw.text(20, 444, "Filled: computed in this step. Blue outline: state, kept from earlier steps.", "note")


def compression(draw: Drawing) -> None:
    """Four ways to make a network smaller or faster."""
    panels = (
        ("Weights set to 0", "prune --what weights:\nsame shapes, same time"),
        ("Channels removed", "prune --what channels:\nsmaller and faster"),
        ("8 bits per weight", "quantize: a quarter of the\nfile size, int8 arithmetic"),
        ("A student learns from teachers", "distill: a small network is\ntrained on teachers' scores"),
    )
    for number, (title, words) in enumerate(panels):
        x, y = 30 + 290 * (number % 2), 30 + 205 * (number // 2)
        draw.text(x, y, title, "title")
        draw.text(x, y + 154, words, "note")
        for (row, column), value in (
            np.ndenumerate(np.random.default_rng(0).normal(size=(6, 8))) if number < 2 else ()
        ):
            gone, size = row in (1, 4) if number else abs(value) < 0.7, 3 + 2.2 * min(abs(float(value)), 2.0)
            draw.dot(x + 14 + 22 * column, y + 22 + 20 * row, size, "page grid-line" if gone else "s1")
    steps = [(44.5 + 22 * k + side, 360 - 12 * k) for k in range(9) for side in (-11, 11)]
    draw.line(*(value for point in steps for value in point), colour="s2", width=2.5)
    draw.line(33.5, 366, 231.5, 258, stroke_dasharray="4 3")
    draw.text(130, 276, "float", "note", "middle")
    draw.text(180, 336, "int8", "note", colour="s2")
    student = draw.box(470, 288, 100, 40, "student", "s3")
    for y, name, colour in ((256, "RGB teacher", "s1"), (314, "flow teacher", "s2")):
        draw.join(draw.box(320, y, 120, 46, name, colour), student)


def export(draw: Drawing) -> None:
    """Export: a run becomes a file that runs without two-stream."""
    file = draw.box(205, 18, 190, 56, "file\nnetwork, weights, card", "s3")
    draw.join(
        draw.box(20, 18, 150, 56, "run\nruns/rgb", "s1"),
        file,
        draw.box(430, 18, 150, 56, "check\nlogits of the run", "s4"),
    )
    kinds = (("model.onnx", "ONNX Runtime:\nC++, other languages"), ("model.pt2", "torch, without our code"))
    for number, (name, words) in enumerate(
        (*kinds, ("model.aoti.pt2", "machine code for one\nkind of processor"))
    ):
        draw.join((300, 18, 0, 56), draw.box(20 + 195 * number, 138, 170, 40, name))
        draw.text(105 + 195 * number, 198, words, "note", "middle")
    draw.text(20, 250, "Input: uint8 clips (batch, C, T, H, W). Output: logits (batch, K).", "note")


def statistics(draw: Drawing) -> None:
    """Two variants and their paired difference over 12 sources."""
    right = (
        (8, 7, 7, 6, 8, 5, 7, 4, 6, 8, 3, 6),
        (6, 6, 7, 7, 6, 4, 4, 4, 5, 6, 4, 4),
    )  # of 8 videos in each source
    sample = Sample.even(np.repeat(np.arange(12), 8))
    first, second = (
        (np.arange(8) < np.array(counts)[:, None]).astype(float).reshape(-1, 1) for counts in right
    )
    one, two = (estimate_mean(values, sample).share_interval() for values in (first, second))
    found, gaps = difference_of(first, second, sample), tuple(a - b for a, b in zip(*right))
    for y, rise, least, width, label in (
        (240, 206, 30, 70, "correct videos of a source, in %"),
        (420, 84, -20, 60, "A − B of a source, in points"),
    ):
        for tick in range(least, least + width + 1, 10):
            x = 50 + 500 / width * (tick - least)
            draw.line(x, y - rise, x, y, colour="grid" if tick else "muted", width=1)
            draw.text(x, y + 17, f"{tick}", "note", "middle")
        draw.text(WIDTH / 2, y + 36, label, "note", "middle")
    for name, colour, y, interval, counts, least, scale, form, more in (
        ("A", "s1", 90, one, right[0], 30, 500 / 70, ".1f", ""),
        ("B", "s2", 208, two, right[1], 30, 500 / 70, ".1f", ""),
        ("A − B", "s3", 388, found.interval, gaps, -20, 500 / 60, "+.1f", f", p = {found.p:.3f}"),
    ):
        low, middle, high = (100 * end for end in (interval.low, interval.value, interval.high))
        draw.text(
            20, y - 62, f"{name}: {middle:{form}} [{low:{form}}, {high:{form}}]{more}", "title", colour=colour
        )
        seen: Counter[int] = Counter()
        for count in counts:
            draw.dot(50 + scale * (12.5 * count - least), y - 11 * seen[count], 4.5, f"{colour} surface-line")
            seen[count] += 1
        start, mean, end = (50 + scale * (value - least) for value in (low, middle, high))
        draw.line(start, y + 18, end, y + 18, colour=colour, width=3)
        draw.dot(mean, y + 18, 6, f"{colour} surface-line")


HEIGHTS = {
    clip: 440,
    two_streams: 466,
    heads: 416,
    sources: 272,
    features: 216,
    study: 280,
    streaming: 460,
    compression: 420,
    export: 266,
    statistics: 470,
}


def main(folder: Path = FOLDER) -> None:
    """Write all files."""
    for draws, height in HEIGHTS.items():
        draw = Drawing(height, (draws.__doc__ or "").rstrip("."))
        draws(draw)
        write_text(folder / f"{draws.__name__}.svg", "\n".join((*draw.parts, "</svg>\n")))


if __name__ == "__main__":
    main()
