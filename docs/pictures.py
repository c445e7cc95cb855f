"""Draw the diagrams of the documentation, `docs/pictures/*.svg`, in the colours of all figures.

python docs/pictures.py            # write the files
python docs/pictures.py --check    # write nothing; exit with 1 if a file is outdated

The frames are those of a video of the demo (class `climb`), drawn as shapes. Clips and statistics are computed by the
functions that the commands use. The docstring of a function that draws is the title of its picture.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from two_stream.data.clips.sampling import sample_clips
from two_stream.data.demo import disc_state
from two_stream.evaluation.scores.statistics import Sample, difference_of, estimate_mean
from two_stream.runtime.files import write_text
from two_stream.runtime.plotting import DARK, LIGHT

FOLDER = Path(__file__).resolve().parent / "pictures"
WIDTH = 600  # pixels, of every diagram; a phone shows it at 60 %, so the smallest text has 13
FONT = 'system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"DejaVu Sans",sans-serif'
COLOURS = ("ink", "muted", "grid", "surface", "page", "s1", "s2", "s3", "s4")
KINDS = {"text": ("ink", 14, 400), "title": ("ink", 14, 600), "note": ("muted", 13, 400)}
TIP = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
DRAW: dict[str, tuple[Callable[[Drawing], None], int]] = {}
Box = tuple[float, float, float, float]
_LIGHT, _DARK = ("".join(f".{name}{{fill:{theme[name]}}}.{name}-line{{stroke:{theme[name]}}}" for name in COLOURS)
                 for theme in (LIGHT, DARK))
STYLE = f"text{{font-family:{FONT}}}{_LIGHT}@media(prefers-color-scheme:dark){{{_DARK}}}"
"""class `s1` fills with a colour, `s1-line` draws lines in it"""


class Drawing:
    """An SVG file. Colours are names of `plotting.LIGHT`; positions and sizes are in pixels."""

    def __init__(self, height: int, title: str) -> None:
        size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img"'
        self.parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}><title>{escape(title)}</title>',
                      f'<style>{STYLE}</style><defs>{TIP}<path d="M0 0 8 4 0 8z" class="muted"/></marker></defs>']
        self.rect(0.5, 0.5, WIDTH - 1, height - 1, "surface grid-line", rx=8)

    def add(self, tag: str, inside: str = "", **attributes: Any) -> None:
        """Add an element; `class_` and `stroke_width` become `class` and `stroke-width`."""
        values = [(name.strip("_").replace("_", "-"), value) for name, value in attributes.items()]
        words = (f' {name}="{round(value, 1) if isinstance(value, float) else value}"' for name, value in values)
        self.parts.append(f"<{tag}{''.join(words)}>{inside}</{tag}>")

    def text(self, x: float, y: float, words: str, kind: str = "text", at: str = "start", colour: str = "") -> None:
        """Add lines of text of a kind in `KINDS`; `y` is the first base line."""
        usual, size, weight = KINDS[kind]
        look = {"text_anchor": at, "class_": colour or usual, "font_size": size, "font_weight": weight}
        for number, line in enumerate(words.split("\n") if words else ()):
            self.add("text", escape(line), x=x, y=y + 17 * number, **look)

    def rect(self, x: float, y: float, width: float, height: float, classes: str, **more: Any) -> None:
        self.add("rect", x=x, y=y, width=width, height=height, class_=classes, **{"rx": 2, **more})

    def dot(self, x: float, y: float, r: float, classes: str) -> None:
        self.add("circle", cx=x, cy=y, r=r, class_=classes)

    def line(self, *points: float, colour: str = "muted", width: float = 1.5, **more: Any) -> None:
        """Add a line through the points x1, y1, x2, y2, …"""
        pairs = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(points[::2], points[1::2]))
        self.add("polyline", points=pairs, fill="none", class_=f"{colour}-line", stroke_width=width, **more)

    def box(self, x: float, y: float, width: float, height: float, words: str, colour: str = "muted") -> Box:
        """Add a box with a bold line of text, and smaller lines below it."""
        self.rect(x, y, width, height, f"page {colour}-line", rx=6, stroke_width=1.5)
        for number, line in enumerate(words.split("\n")):
            top = y + height / 2 + 5 - 8.5 * words.count("\n") + 17 * number
            self.text(x + width / 2, top, line, "note" if number else "title", "middle")
        return x, y, width, height

    def join(self, *boxes: Box) -> None:
        """Add an arrow from each box to the next one, to the right or down."""
        for (x, y, width, height), (to_x, to_y, to_width, to_height) in zip(boxes, boxes[1:]):
            right = to_x > x + width and to_y < y + height + 60
            start = (x + width, y + height / 2) if right else (x + width / 2, y + height)
            end = (to_x - 1, to_y + to_height / 2) if right else (to_x + to_width / 2, to_y - 1)
            self.line(*start, *end, marker_end="url(#tip)")

    def frame(self, x: float, y: float, width: float, time: float, flow: bool = False, flip: bool = False) -> None:
        """Add a frame of the demo's video, or its optical flow; `time` is in cycles of the motion."""
        height = 0.75 * width
        self.rect(x, y, width, height, "grid muted-line", stroke_width=0.7)
        for side, start in enumerate(np.array([[0.72, 0.3, 0.1, 0.0], [0.8, 0.0, 0.4, 0.3]])):
            (now, size, turn), (later, _, _) = (disc_state("climb", side, start, t) for t in (time, time + 0.4))
            cx, cy, r = x + width * (0.25 + 0.5 * (side ^ flip)), y + height * now, height * size / 2
            for aside in (-0.5, 0, 0.5) if flow else ():
                self.line(cx + aside * r, cy, cx + aside * r, y + height * later, colour="s2", marker_end="url(#tip)")
            if not flow:
                across, up = np.sin(2 * np.pi * turn) * (-1) ** flip, np.cos(2 * np.pi * turn)
                self.dot(cx, cy, r, ("muted", "ink")[side])
                self.line(cx, cy, cx + r * float(across), cy - r * float(up), colour="surface")


def picture(height: int) -> Callable[[Callable[[Drawing], None]], None]:
    """Register a function that draws `docs/pictures/NAME.svg`."""
    return lambda draws: DRAW.update({draws.__name__: (draws, height)})


@picture(440)
def clip(draw: Drawing) -> None:
    """A video, its clips, crops and views"""
    left, step = 25, 22
    draw.text(left, 30, "A video of 25 frames", "title")
    (chosen,) = sample_clips("train", 25, 8, stride=2, offset=6)
    for number in range(25):
        draw.frame(left + number * step, 42, step - 2, number / 12)
        look = "s3 s3-line" if number + 1 in chosen else "surface muted-line"
        draw.rect(left + number * step + 4, 136, 12, 12, look)
    for number, one in enumerate(sample_clips("multi", 25, 8), 1):
        first, last = left + (one[0] - 1) * step + 1, left + one[-1] * step - 3
        draw.line(first, 64, first, 74, last, 74, last, 64, colour="s1")
        draw.text((first + last) / 2, 92, f"clip {number}", at="middle", colour="s1")
    draw.text(left, 116, "Test clips: 8 frames, stride 1, side by side (views: multi)", "note")
    draw.text(left, 170, "A training clip: 8 frames, stride 2 (every second frame), random start", "note")
    draw.text(left, 210, "Crops of each frame in a clip", "title")
    for flip, words in enumerate(("centre and four corners: five crops", "mirrored: five more crops")):
        x = left + 290 * flip
        draw.text(x, 232, words, "note")
        draw.frame(x, 242, 220, 0.2, flip=bool(flip))
        for dx, dy, colour in ((0, 0, "s3"), (93, 0, "s3"), (0, 38, "s3"), (93, 38, "s3"), (46, 19, "s1")):
            draw.rect(x + dx, 242 + dy, 127, 127, f"{colour}-line", fill="none", stroke_width=2.5)
    draw.text(left, 428, "3 clips × 10 crops = 30 views. The scores of the views are averaged.")


@picture(466)
def two_streams(draw: Drawing) -> None:
    """Two streams: an RGB network and a flow network, and the fusion of their scores"""
    video = draw.box(210, 16, 180, 40, "video file")
    fusion = draw.box(190, 406, 220, 44, "fusion\none score per class", "s3")
    for x, colour, name, what in ((150, "s1", "RGB", "RGB frames"), (450, "s2", "flow", "optical flow")):
        draw.join(video, (x - 84, 88, 168, 0))
        for number in range(3):
            draw.frame(x - 84 + 14 * number, 92 + 8 * number, 140, 0.05 + 0.1 * number, flow=name == "flow")
        draw.text(x, 234, f"clips of {what}", "note", "middle")
        network = draw.box(x - 120, 262, 240, 54, f"{name} stream\nbackbone + temporal head", colour)
        draw.join((x - 100, 240, 200, 0), network, draw.box(x - 120, 342, 240, 36, "score file", colour), fusion)


@picture(416)
def heads(draw: Drawing) -> None:
    """How a backbone and a temporal head fit together"""
    boxes = []
    for name, colour, words in (
        ("clip", "muted", "(B, C, T, H, W): 64 frames of 112 × 112\npixels, RGB (C = 3) or flow (C = 2)"),
        ("backbone", "s1", "3D ResNet, ResNeXt, I3D, SlowFast, X3D,\n2D networks of timm, …"),
        ("reduction", "s4", "optional, reduces the features: FRAB adds\na block, FRMB replaces the last block"),
        ("tokens", "muted", "(B, T, D): one vector per time step, which\nis the mean over the positions in a frame"),
        ("temporal head", "s2", "average, moments, concatenation, LSTM,\nnon-local, BERT: (B, D), one vector per clip"),
        ("classifier", "s3", "dropout and a linear layer\n(B, K): logits, one score per class"),
    ):
        boxes.append(draw.box(25, 18 + 67 * len(boxes), 160, 44, name, colour))
        draw.text(210, boxes[-1][1] + 18, words, "note")
    draw.join(*boxes)


@picture(300)
def sources(draw: Drawing) -> None:
    """A split divides the sources of a data set into parts"""
    draw.text(30, 30, "One split: all videos of a source are in the same part", "title")
    x, number = 30, 0
    parts = (("training part", 5, "s1", "trains the weights"), ("holdout", 2, "s4", "chooses\nthe epoch"))
    for name, count, colour, use in (*parts, ("test part", 3, "s3", "used once, at the end")):
        draw.text(x + 26 * count - 4, 60, name, "title", "middle", colour)
        draw.text(x + 26 * count - 4, 224, use, "note", "middle")
        for _ in range(count):
            draw.box(x, 72, 44, 110, "", colour)
            for video in range(3 + (7 * number) % 3):
                draw.dot(x + 22, 88 + 17 * video, 6, colour)
            number, x = number + 1, x + 52
            draw.text(x - 30, 200, f"g{number:02d}", "note", "middle")
        x += 12
    for first, last, colour, words in ((30, 398, "s1", "training list"), (418, 566, "s3", "test list")):
        draw.line(first, 250, last, 250, colour=colour)
        draw.text((first + last) / 2, 268, words, "note", "middle")
    draw.text(30, 290, "Dot: a video. Box: a source, for example the film that its clips were cut from.", "note")


@picture(216)
def features(draw: Drawing) -> None:
    """The backbone computes the features once; all heads are trained on them"""
    stored = draw.box(277, 78, 150, 60, "stored features\nfeatures/rgb", "s4")
    draw.join(draw.box(15, 78, 80, 60, "videos"), draw.box(119, 78, 134, 60, "backbone\nfrozen, runs once", "s1"), stored)
    for y, name in ((16, "average"), (86, "LSTM"), (156, "BERT")):
        draw.join(stored, draw.box(462, y, 122, 44, f"{name}\nseeds 1, 2, 3", "s2"))


@picture(280)
def study(draw: Drawing) -> None:
    """A study: variants, splits, seeds and cells"""
    draw.text(128, 32, "variant", "note", "end")
    for row, (name, colour) in enumerate((("average", "s1"), ("LSTM", "s2"), ("BERT", "s3"))):
        draw.text(128, 97 + 56 * row, name, "title", "end", colour)
        draw.join((480, 68 + 56 * row, 14, 46), (519, 68 + 56 * row, 0, 46))
        draw.text(526, 97 + 56 * row, "mean", colour=colour)
        for column in range(6):
            x = 167 + 190 * (column // 3) + 52 * (column % 3)
            draw.rect(x - 23, 68 + 56 * row, 46, 46, colour)
            draw.text(x, 58, "" if row else f"seed {column % 3 + 1}", "note", "middle")
    for split in (1, 2):
        draw.text(29 + 190 * split, 32, f"split {split}", "title", "middle")
    draw.text(25, 262, "A square is a cell: one training run of a variant, on one split, with one seed.", "note")


@picture(460)
def streaming(draw: Drawing) -> None:
    """Sliding clips compute a frame many times, a stream computes it once"""
    left, step, no = 112, 39, "surface grid-line"
    draw.text(20, 30, "Sliding clips: every clip is computed from its first frame on", "title")
    for row in range(4):
        draw.text(left - 12, 64 + 28 * row, f"clip {row + 1}", "note", "end")
        for frame in range(12):
            draw.rect(left + step * frame, 48 + 28 * row, 22, 22, "s2" if row <= frame < row + 8 else no)
    draw.text(left, 176, "Frames 4 to 8 are computed four times.", "note")
    draw.text(20, 214, "A stream: a step computes only what is new", "title")
    for row, (name, new, oldest) in enumerate((("frames", 11, 9), ("layer 1", 10, 8), ("tokens", 9, 5))):
        y = 236 + 52 * row
        draw.text(left - 12, y + 16, name, "note", "end")
        for back in (0, 1, 2) if row else ():
            draw.line(left + step * (new + 1 - back) + 11, y - 30, left + step * new + 11, y, colour="s1")
        for place in range(new + 1):
            look = "s1 s1-line" if place == new else "page s1-line" if place >= oldest else no
            draw.rect(left + step * place, y, 22, 22, look)
    first, last = left + step * 5, left + step * 9 + 22
    draw.line(first, 368, first, 376, last, 376, last, 368)
    draw.join((first, 376, last - first, 0), (first, 395, last - first, 0))
    draw.text((first + last) / 2, 412, "head: window of the newest 5 tokens → prediction", at="middle")
    draw.text(20, 444, "Filled: computed in this step. Blue outline: state, kept from earlier steps.", "note")


@picture(420)
def compression(draw: Drawing) -> None:
    """Four ways to make a network smaller or faster"""
    panels = (("Weights set to 0", "prune --what weights:\nsame shapes, same time"),
              ("Channels removed", "prune --what channels:\nsmaller and faster"),
              ("8 bits per weight", "quantize: a quarter of the\nfile size, int8 arithmetic"),
              ("A student learns from teachers", "distill: a small network is\ntrained on teachers' scores"))
    for number, (title, words) in enumerate(panels):
        x, y = 30 + 290 * (number % 2), 30 + 205 * (number // 2)
        draw.text(x, y, title, "title")
        draw.text(x, y + 154, words, "note")
        for (row, column), value in np.ndenumerate(np.random.default_rng(0).normal(size=(6, 8))) if number < 2 else ():
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


@picture(266)
def export(draw: Drawing) -> None:
    """Export: a run becomes a file that runs without two-stream"""
    run, check = draw.box(20, 18, 150, 56, "run\nruns/rgb", "s1"), draw.box(430, 18, 150, 56, "check\nlogits of the run", "s4")
    file = draw.box(205, 18, 190, 56, "file\nnetwork, weights, card", "s3")
    draw.join(run, file, check)
    kinds = (("model.onnx", "ONNX Runtime:\nC++, other languages"), ("model.pt2", "torch, without our code"))
    for number, (name, words) in enumerate((*kinds, ("model.aoti.pt2", "machine code for one\nkind of processor"))):
        draw.join((300, 18, 0, 56), draw.box(20 + 195 * number, 138, 170, 40, name))
        draw.text(105 + 195 * number, 198, words, "note", "middle")
    draw.text(20, 250, "Input: uint8 clips (batch, C, T, H, W). Output: logits (batch, K).", "note")


RIGHT = ((8, 7, 7, 6, 8, 5, 7, 4, 6, 8, 3, 6), (6, 6, 7, 7, 6, 4, 4, 4, 5, 6, 4, 4))
"""variants A and B: number of correct videos of twelve sources with eight videos each"""


@picture(470)
def statistics(draw: Drawing) -> None:
    """Two variants and their paired difference over 12 sources"""
    sample = Sample.even(np.repeat(np.arange(12), 8))
    hits = [(np.arange(8) < np.array(right)[:, None]).astype(float).reshape(-1, 1) for right in RIGHT]
    one, two = (estimate_mean(values, sample).share_interval() for values in hits)
    found, gaps = difference_of(*hits, sample), tuple(a - b for a, b in zip(*RIGHT))
    axes = (240, 206, range(30, 101, 10), "correct videos of a source, in %"), (420, 84, range(-20, 41, 10), "A − B of a source, in points")
    for y, rise, ticks, label in axes:
        for tick in ticks:
            x = 50 + 500 * (tick - ticks[0]) / (ticks[-1] - ticks[0])
            draw.line(x, y - rise, x, y, colour="grid" if tick else "muted", width=1)
            draw.text(x, y + 17, f"{tick}", "note", "middle")
        draw.text(WIDTH / 2, y + 36, label, "note", "middle")
    for name, colour, y, interval, counts, (*_, ticks, _), form, more in (
        ("A", "s1", 90, one, RIGHT[0], axes[0], ".1f", ""), ("B", "s2", 208, two, RIGHT[1], axes[0], ".1f", ""),
        ("A − B", "s3", 388, found.interval, gaps, axes[1], "+.1f", f", p = {found.p:.3f}"),
    ):
        seen: Counter[int] = Counter()
        low, middle, high = (100 * end for end in (interval.low, interval.value, interval.high))
        draw.text(20, y - 62, f"{name}: {middle:{form}} [{low:{form}}, {high:{form}}]{more}", "title", colour=colour)
        first, last, mean, *dots = (50 + 500 * (value - ticks[0]) / (ticks[-1] - ticks[0])
                                    for value in (low, high, middle, *(12.5 * count for count in counts)))
        for x, count in zip(dots, counts):
            draw.dot(x, y - 11 * seen[count], 4.5, f"{colour} surface-line")
            seen[count] += 1
        draw.line(first, y + 18, last, y + 18, colour=colour, width=3)
        draw.dot(mean, y + 18, 6, f"{colour} surface-line")


def main(argv: list[str] | None = None) -> int:
    """Write the files, or check that they are up to date."""
    check, stale = "--check" in (sys.argv[1:] if argv is None else argv), 0
    for name, (draws, height) in DRAW.items():
        draw, path = Drawing(height, draws.__doc__ or ""), FOLDER / f"{name}.svg"
        draws(draw)
        text = "\n".join((*draw.parts, "</svg>\n"))
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale += 1
            print(f"{path}: outdated; run `python docs/pictures.py`" if check else path)
            if not check:
                write_text(path, text)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
