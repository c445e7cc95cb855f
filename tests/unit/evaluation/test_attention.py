"""Where a head looks: the numbers drawn are the model's own for the clip that the picture names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from two_stream.cli import main as cli
from two_stream.config.backbones import MobileNetV2, SlowFast
from two_stream.config.heads import AverageHead, BertHead
from two_stream.config.load import dump
from two_stream.config.model import InputOptions, ModelOptions
from two_stream.config.schema import DataOptions, EvaluateOptions, Experiment
from two_stream.errors import FullDiskError, VideoError
from two_stream.evaluation.pictures.attention import Pathway, StreamAttention, draw_attention, read_attention
from two_stream.evaluation.scoring.video import VideoInput
from two_stream.pretrained import write_model
from two_stream.recognizer import Recognizer, create_model
from two_stream.video.decoding.reader import open_video
from two_stream.video.flow import FlowEstimator, to_gray

NAMES = ["left", "right", "stay"]
HEIGHT, WIDTH, FPS = 48, 64, 10
RESIZE, CROP = (36, 48), 32
TOP, LEFT = 2, 8
"""upper left corner of the centre crop in the resized frame"""
MULTI = EvaluateOptions(views="multi", crops="ten")
READING = VideoInput(short_side=None)


def write_video(path: Path, pictures: list[np.ndarray]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv444p"
        for picture in pictures:
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def moving(frames: int, step: int = 2) -> list[np.ndarray]:
    texture = cv2.resize(
        np.random.default_rng(1).integers(0, 256, (12, 50, 3), dtype=np.uint8), (200, HEIGHT)
    )
    return [np.ascontiguousarray(texture[:, 60 + step * n : 60 + step * n + WIDTH]) for n in range(frames)]


def model_of(modality: str = "rgb", head: object = None, seed: int = 0, **backbone: object) -> Recognizer:
    torch.manual_seed(seed)
    options = ModelOptions(
        modality=modality,
        backbone=MobileNetV2(width=0.25, temporal_stride=2, **backbone),
        head=head or BertHead(heads=2, hidden=16),
        input=InputOptions(clip_length=8, resize=RESIZE, crop=CROP),
    )
    model = create_model(options, num_classes=3)
    with torch.no_grad():
        for part in model.heads.parameters():
            part.mul_(8)  # a fresh head looks everywhere alike
    return model.eval()


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("attention") / "clip.mp4", moving(27))


@pytest.fixture(scope="module")
def run_folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    tokens = BertHead(heads=2, hidden=16, class_token=False)
    heads = {"rgb": None, "flow": None, "pooled": AverageHead(), "tokens": tokens}
    for seed, (name, head) in enumerate(heads.items()):
        model = model_of("flow" if name == "flow" else "rgb", head, seed)
        data = DataOptions(dataset="none", settings_root=root)
        experiment = Experiment(name=name, runs=root, model=model.options, data=data, evaluate=MULTI)
        write_model(root / name / "best", model, {"class_names": NAMES, "epoch": 1})
        (root / name / "experiment.yaml").write_text(dump(experiment))
    return root


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that are saved, in their order."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(self, *args, **options):
        figures.append(self)
        save(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def texts(figure: Figure) -> list[str]:
    own = [text.get_text() for text in figure.texts]
    return own + [text.get_text() for axis in figure.axes for text in axis.texts]


def heat_maps(figure: Figure) -> list:
    """The axes of the heat maps: those whose rows are named after heads."""
    return [axis for axis in figure.axes if [t.get_text() for t in axis.get_yticklabels()][:1] == ["head 1"]]


def bars_of(figure: Figure) -> list:
    return [axis for axis in figure.axes if axis.get_xlabel()]


def clip_by_hand(path: Path, numbers: list[int], modality: str) -> torch.Tensor:
    """Decode, resize and cut without the code under test."""
    with open_video(path) as opened:
        frames = opened.read([number - 1 for number in range(1, opened.num_frames + 1)])
    if modality == "flow":
        estimate = FlowEstimator("dis")
        wanted = [estimate(to_gray(frames[number - 1]), to_gray(frames[number])) for number in numbers]
    else:
        wanted = [frames[number - 1] for number in numbers]
    small = np.stack([cv2.resize(frame, RESIZE[::-1]) for frame in wanted])
    cut = small[:, TOP : TOP + CROP, LEFT : LEFT + CROP]
    return torch.from_numpy(np.ascontiguousarray(cut.transpose(3, 0, 1, 2)))[None]


# 27 pictures: three clips of 8, the free 3 before and after them, the middle clip is frames 10 to 17;
# 26 flow frames: the free 2, middle clip 10 to 17
@pytest.mark.parametrize("modality", ["rgb", "flow"])
def test_weights_are_the_models_for_the_middle_clip(video, modality):
    model = model_of(modality)
    stream = read_attention(model, video, MULTI, READING, NAMES)
    assert stream.numbers == list(range(10, 18))
    assert (stream.clip, stream.clips, stream.times[1], stream.modality) == (2, 3, 0.1, modality)
    clip = clip_by_hand(video, stream.numbers, modality)
    expected = model.attention(clip)[0][0].numpy()
    (pathway,) = stream.pathways
    np.testing.assert_allclose(pathway.weights, expected, rtol=1e-5)
    assert np.ptp(pathway.weights) > 0.05, "weights that are all alike would prove nothing"
    assert pathway.frames == [[10, 11], [12, 13], [14, 15], [16, 17]]
    assert pathway.shown == [11, 13, 15, 17]
    assert set(stream.pictures) == {11, 13, 15, 17}
    shares = model(clip)[0].detach().double().softmax(0)
    assert stream.guess == (NAMES[int(shares.argmax())], pytest.approx(float(shares.max()), rel=1e-5))


def test_of_two_clips_the_first_is_drawn_and_short_videos_are_looped(tmp_path):
    model = model_of()
    two = write_video(tmp_path / "two.mp4", moving(19))
    assert read_attention(model, two, MULTI, READING, NAMES).numbers == list(range(2, 10))
    short = write_video(tmp_path / "short.mp4", moving(5))
    stream = read_attention(model, short, MULTI, READING, NAMES)
    assert stream.numbers == [1, 2, 3, 4, 5, 1, 2, 3]
    assert stream.pathways[0].frames == [[1, 2], [3, 4], [5, 1], [2, 3]]
    single = write_video(tmp_path / "single.mp4", moving(1))
    with pytest.raises(VideoError, match="too few frames"):
        read_attention(model_of("flow"), single, MULTI, READING, NAMES)


def test_published_frame_choice_is_followed(video):
    paper = VideoInput(short_side=None, sampling="paper")
    stream = read_attention(model_of(), video, EvaluateOptions(views="single"), paper, NAMES)
    assert stream.numbers == list(range(10, 18))  # (27 - 8) // 2 frames before it
    multi = read_attention(model_of(), video, MULTI, paper, NAMES)
    assert multi.numbers == list(range(10, 18))  # three of 8 from frame 2 on


def test_thumbnails_are_the_crop_of_the_named_frames(tmp_path):
    """Each frame has a grey level of its own and red margins that the centre crop leaves out."""
    pictures = []
    for number in range(8):
        picture = np.full((HEIGHT, WIDTH, 3), 30 + 20 * number, np.uint8)
        picture[:, :8] = picture[:, -8:] = (255, 0, 0)
        pictures.append(picture)
    path = write_video(tmp_path / "grey.mp4", pictures)
    stream = read_attention(model_of(), path, MULTI, READING, NAMES)
    assert sorted(stream.pictures) == [2, 4, 6, 8]
    for number, picture in stream.pictures.items():
        assert picture.shape == (288, 288, 3)  # 32×32 of 36×48 is a square of 48×64 too
        inside = picture[20:-20, 20:-20].astype(int)
        assert abs(inside - (30 + 20 * (number - 1))).max() <= 4


def test_flow_is_drawn_in_the_colour_of_its_direction(tmp_path):
    hues = []
    for step in (2, -2):  # the texture moves left, then right
        path = write_video(tmp_path / f"{step}.mp4", moving(9, step))
        stream = read_attention(model_of("flow"), path, MULTI, READING, NAMES)
        middle = np.stack([p[100:188, 100:188] for p in stream.pictures.values()]).reshape(-1, 1, 3)
        hsv = cv2.cvtColor(middle, cv2.COLOR_RGB2HSV).reshape(-1, 3)
        hues.append(np.median(hsv[:, 0]))
        assert np.median(hsv[:, 2]) > 150, "two pixels of movement are lengthened until they show"
    left, right = hues  # hue 0 (or 180) is left, 90 right
    assert min(left, 180 - left) < 12
    assert abs(right - 90) < 12


def test_each_pathway_has_its_own_windows(video):
    options = ModelOptions(
        backbone=SlowFast(width=0.125),
        head=BertHead(heads=2, hidden=16),
        input=InputOptions(clip_length=16, resize=RESIZE, crop=CROP),
    )
    model = create_model(options, num_classes=3)
    stream = read_attention(model, video, EvaluateOptions(views="single"), READING, NAMES)
    by_name = {pathway.name: pathway for pathway in stream.pathways}
    assert by_name["slow"].frames == [list(range(6, 14)), list(range(14, 22))]
    assert by_name["fast"].frames == [[n, n + 1] for n in range(6, 22, 2)]
    assert (by_name["slow"].weights.shape, by_name["fast"].weights.shape) == ((2, 2), (2, 8))


def made_up(weights, frames, **changes) -> StreamAttention:
    pathway = Pathway("main", frames, np.asarray(weights, np.float64))
    given = {"modality": "rgb", "numbers": [n for step in frames for n in step], "clip": 1, "clips": 1}
    given |= {"times": np.arange(999) / 10, "guess": ("$wave$", 0.755), "pathways": [pathway]}
    given |= {"head": "bert", "class_token": True}
    given |= {"pictures": {n: np.full((9, 12, 3), n, np.uint8) for n in pathway.shown}}
    return StreamAttention(**{**given, **changes})


def test_picture_holds_the_numbers_the_frames_and_the_mean(tmp_path, drawn):
    stream = made_up([[0.5, 0.25], [0.125, 0.0625]], [[3, 4, 5], [6, 7, 8]])
    draw_attention(tmp_path / "a.png", "v.mp4: wave, 80.0 %", "by RGB", [stream])
    (figure,) = drawn
    (heat,) = heat_maps(figure)
    np.testing.assert_allclose(heat.images[0].get_array(), [[50, 25], [12.5, 6.25]])
    assert [text.get_text() for text in heat.texts] == ["50.0", "25.0", "12.5", "6.2"]
    (bars,) = bars_of(figure)
    np.testing.assert_allclose([bar.get_height() for bar in bars.patches], [31.25, 15.625])
    np.testing.assert_allclose(bars.lines[0].get_ydata(), [100 / 3] * 2)
    labels = [label.get_text() for label in bars.get_xticklabels()]
    assert labels == ["3–5\n0.20–0.50 s", "6–8\n0.50–0.80 s"]
    assert "; 53 % is the class token's attention to itself" in bars.get_xlabel()
    film = figure.axes[0]
    assert [image.get_array()[0, 0, 0] for image in film.images] == [4, 7]
    assert [patch.get_x() < 0 for patch in film.patches] == [True], "the border is around the first step"
    said = texts(figure)
    assert "v.mp4: wave, 80.0 %" in said
    assert "RGB: this view alone says $wave$, 76 %" in said
    assert "clip 1 of 1, centre crop: frames 3 to 8" in said
    written = cv2.imread(str(tmp_path / "a.png"))
    assert written is not None
    assert written.std() > 20


def test_without_class_token_an_even_share_is_one_step_of_all(tmp_path, drawn):
    stream = made_up([[0.7, 0.3]], [[1], [2]], class_token=False, times=None)
    draw_attention(tmp_path / "a.svg", "t", "s", [stream])
    (bars,) = bars_of(drawn[0])
    np.testing.assert_allclose(bars.lines[0].get_ydata(), [50, 50])
    assert bars.get_xlabel() == "frames of each step"
    assert [label.get_text() for label in bars.get_xticklabels()] == ["1", "2"]


def test_looped_and_strided_clips_say_so(tmp_path, drawn):
    strided = made_up([[0.5, 0.4]], [[1, 3], [5, 7]])
    looped = made_up([[0.5, 0.4]], [[1, 2, 3], [4, 1, 2]], modality="flow")
    draw_attention(tmp_path / "a.pdf", "t", "s", [strided, looped])
    said = texts(drawn[0])
    assert "clip 1 of 1, centre crop: frames 1 to 7, every 2nd" in said
    expected = "clip 1 of 1, centre crop: flow frames 1 to 4, looped to 6; hue: direction, brightness: length"
    assert expected in said
    labels = [label.get_text() for label in bars_of(drawn[0])[1].get_xticklabels()]
    assert labels == ["1–3\n0.00–0.30 s", "4, 1–2\n0.30 s"]
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


def test_picture_is_whole_or_the_old_one(tmp_path, monkeypatch):
    out = tmp_path / "a.png"
    out.write_bytes(b"old")

    def full_disk(self, path, **options):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full_disk)
    with pytest.raises(FullDiskError, match="no space left on the disk; the previous content is kept"):
        draw_attention(out, "t", "s", [made_up([[0.5, 0.4]], [[1], [2]])])
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


def test_command_stacks_both_streams(video, run_folders, tmp_path, drawn, capsys):
    out = tmp_path / "new" / "both.png"
    runs = ["--rgb", str(run_folders / "rgb"), "--flow", str(run_folders / "flow"), "--device", "cpu"]
    plan = ["--crops", "center", "--json", "-"]
    assert cli(["predict", str(video), *runs, *plan, "--attention", str(out)]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["attention"] == str(out)
    assert out.read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    expected = [
        read_attention(model_of(name, seed=seed), video, MULTI, VideoInput(), NAMES).pathways[0].weights
        for seed, name in enumerate(("rgb", "flow"))
    ]
    for axis, weights in zip(heat_maps(figure), expected, strict=True):
        np.testing.assert_allclose(axis.images[0].get_array(), 100 * weights, rtol=1e-4)
        numbers = [float(text.get_text()) for text in axis.texts]
        np.testing.assert_allclose(numbers, 100 * weights.ravel(), atol=0.051)
    best = result["top"][0]
    said = texts(figure)
    assert f"clip.mp4: {best['class']}, {100 * best['probability']:.1f} %" in said
    below = "Below: the attention of bert's class token in the middle clip"
    assert f"by RGB (3 views) and flow (3 views), fused by l2. {below}" in said
    assert "clip 2 of 3, centre crop: frames 10 to 17" in said


def test_caption_is_of_the_head_that_attends(video, run_folders, drawn, tmp_path):
    runs = ["--rgb", str(run_folders / "rgb"), "--rgb", str(run_folders / "tokens"), "--crops", "center"]
    out = tmp_path / "a.png"
    assert cli(["predict", str(video), *runs, "--device", "cpu", "--attention", str(out)]) == 0
    said = texts(drawn[0])
    assert any(
        line.endswith("Below: the attention of bert's class token and head bert in the middle clip")
        for line in said
    )
    with_token, without = (axis.get_xlabel() for axis in bars_of(drawn[0]))
    assert with_token.endswith("% is the class token's attention to itself")
    assert without == "frames and seconds of each step"


def test_several_videos_go_into_a_folder(run_folders, tmp_path, capsys):
    videos = [write_video(tmp_path / name / "v.mp4", moving(8)) for name in ("a", "b")]
    folder = tmp_path / "out"
    command = ["predict", *map(str, videos), "--rgb", str(run_folders / "rgb"), "--attention", str(folder)]
    assert cli([*command, "--crops", "center", "--device", "cpu"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["v.png", "v_2.png"]
    assert f"attention: {folder / 'v.png'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("out", "count", "complaint"),
    [
        ("a.gif", 1, "a.gif: expected a file name ending in .png, .pdf, .svg"),
        ("a", 1, "a: expected a file name ending in .png, .pdf, .svg"),
        ("a.png", 2, "a.png: expected a folder for 2 videos; use a name without .png"),
        ("file/b.png", 1, "b.png: cannot write to"),
        ("file/deep/c.svg", 1, "c.svg: cannot write to"),
        ("file", 2, "file: cannot write to"),
        ("v0.png", 1, "v0.png: this is the input video; choose another file name"),
    ],
)
def test_unusable_target_is_said_before_any_run_is_read(tmp_path, capsys, out, count, complaint):
    (tmp_path / "file").write_text("no folder")
    videos = [tmp_path / f"v{index}.png" for index in range(count)]
    for path in videos:
        path.write_text("not read either")
    command = ["predict", *map(str, videos), "--rgb", str(tmp_path / "no_run")]
    before = sorted(tmp_path.rglob("*"))
    assert cli([*command, "--attention", str(tmp_path / out)]) == 2
    message = capsys.readouterr().err
    assert complaint in message
    assert message.startswith("two-stream: --attention ")
    assert message.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_head_without_attention_is_refused_before_scoring(video, run_folders, tmp_path, capsys, monkeypatch):
    def scored(*args):
        raise AssertionError("the video was scored")

    monkeypatch.setattr("two_stream.evaluation.runs.run.score_sources", scored)
    run = run_folders / "pooled"
    out = tmp_path / "a.png"
    assert cli(["predict", str(video), "--rgb", str(run), "--device", "cpu", "--attention", str(out)]) == 2
    expected = f"two-stream: --attention with --rgb {run}: head average has no attention; use "
    assert re.fullmatch(rf"{re.escape(expected)}.*\bbert\b.*\n", capsys.readouterr().err)
    assert not out.exists()
