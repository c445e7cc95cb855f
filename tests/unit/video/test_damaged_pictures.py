"""Pictures that decode from damaged data are named; intact ones, however written, never are; nothing is said bare."""

from __future__ import annotations

import io
import os

import cv2
import numpy as np
import pytest
from PIL import Image

from two_stream.errors import VideoError
from two_stream.video import damage
from two_stream.video.doctor import examine_frame_folders
from two_stream.video.frames import FLAGS, FramePatterns, decode_with_damage, read_frames, read_picture


def drawn(height=120, width=160):
    """A picture as busy as a photograph, and flat in a corner."""
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    picture = cv2.GaussianBlur(noise, (7, 7), 2)
    picture[: height // 4, : width // 2] = 128
    return picture


def encoded(picture, form, **options):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, form, **options)
    return file.getvalue()


def restarted(picture):
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_RST_INTERVAL, 4])[1].tobytes()


FORMS = {
    "baseline": lambda p: encoded(p, "JPEG", quality=90),
    "opencv": lambda p: cv2.imencode(".jpg", p)[1].tobytes(),
    "optimised": lambda p: encoded(p, "JPEG", quality=85, optimize=True),
    "gray": lambda p: encoded(p[..., 0], "JPEG", quality=80),
    "restarts": restarted,
    "png": lambda p: encoded(p, "PNG"),
    "webp": lambda p: encoded(p, "WEBP", quality=80),
    "lossless_webp": lambda p: encoded(p, "WEBP", lossless=True),
    "jp2": lambda p: cv2.imencode(".jp2", p)[1].tobytes(),
    "tiff": lambda p: cv2.imencode(".tiff", p)[1].tobytes(),
    "gif": lambda p: encoded(p, "GIF"),
}


def damage_of(content):
    try:
        return decode_with_damage(content, "x", FLAGS["rgb"])[1]
    except VideoError as error:
        return error.reason


@pytest.mark.parametrize("form", FORMS)
def test_a_zeroed_stretch_is_noticed_wherever_it_lies(form, capfd):
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # as the OpenCV backend does
    content = FORMS[form](drawn())
    assert damage_of(content) == ""
    for part in (0.4, 0.5, 0.6, 0.7):
        at = int(len(content) * part)
        assert damage_of(content[:at] + bytes(200) + content[at + 200 :]), (form, part)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("form", ["baseline", "optimised", "gray", "restarts"])
def test_half_a_jpeg_with_an_end_is_noticed(form, capfd):
    content = FORMS[form](drawn())
    said = damage_of(content[: len(content) // 2] + b"\xff\xd9")
    assert said.startswith("Corrupt JPEG data:")
    assert capfd.readouterr().err == ""


def test_intact_pictures_of_any_encoder_are_not_named(capfd):
    exif = Image.Exif()
    exif[0x9286] = "a comment"
    flats = [np.full((700, 900, 3), level, np.uint8) for level in (0, 77, 128, 255)]
    for picture in (drawn(), *flats):
        for form, write in FORMS.items():
            assert damage_of(write(picture)) == "", form
        for options in (
            {"progressive": True},
            {"quality": 10},
            {"quality": 100, "subsampling": 0},
            {"exif": exif, "icc_profile": bytes(300), "comment": bytes(200)},
        ):
            assert damage_of(encoded(picture, "JPEG", **options)) == "", options
        cmyk = io.BytesIO()
        Image.fromarray(picture).convert("CMYK").save(cmyk, "JPEG")
        assert damage_of(cmyk.getvalue()) == ""
    assert capfd.readouterr().err == ""


def test_words_of_decoders_are_taken_and_others_passed_on(capfd):
    with damage.capture_decoder_messages() as words:
        os.write(2, b"Corrupt JPEG data: 3 extraneous bytes before marker 0xd9\n\x1b[2Kanother thread's\n")
    assert words == ["Corrupt JPEG data: 3 extraneous bytes before marker 0xd9"]
    assert capfd.readouterr().err == "\x1b[2Kanother thread's\n"
    with damage.capture_decoder_messages() as words:
        os.write(2, b"libpng warning: iCCP: known incorrect sRGB profile\n")
    assert damage.find_picture_damage(b"\x89PNG", words, 1) == ""
    assert capfd.readouterr().err == ""


def test_reading_warns_once_with_the_name_and_not_without_end(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(damage, "_warned", set())
    content = FORMS["baseline"](drawn())
    content = content[: len(content) // 2] + b"\xff\xd9"
    paths = [tmp_path / f"img_{number:05d}.jpg" for number in range(1, 31)]
    for path in paths:
        path.write_bytes(content)
        for _ in range(2):
            read_picture(path, FLAGS["rgb"])
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith(f"warning: {paths[0]}: the image is damaged (Corrupt JPEG data: premature end")
    assert len(said) == 6
    assert said[-1].endswith("`two-stream check --decode` to list them all")


def test_check_names_the_samples(tmp_path, shared, capfd):
    """Two files of issue 17 (cases/README.md): libjpeg only murmured."""
    names = ("middle_zeroed.bin", "cut_half_eoi.bin")
    if not (shared / "cases" / "images").is_dir():
        pytest.skip("../shared/cases is not on this machine")
    for number, name in enumerate(names, 1):
        content = (shared / "cases" / "images" / name).read_bytes()
        (tmp_path / f"img_{number:05d}.jpg").write_bytes(content)
    assert examine_frame_folders([tmp_path], modalities=["rgb"], processes=0) == []
    found = examine_frame_folders([tmp_path], modalities=["rgb"], processes=0, decode=True)
    assert [(f.kind, f.severity, f.subject) for f in found] == [
        ("damaged", "error", str(tmp_path / f"img_{number:05d}.jpg")) for number in (1, 2)
    ]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["jpeg_60k", "png_bomb60k", "png_bomb_valid", "pnm_bomb"])
def test_samples_of_too_many_pixels_are_refused_by_name(shared, name):
    sample = shared / "cases" / "images" / f"{name}.bin"
    if not sample.exists():
        pytest.skip("../shared/cases is not on this machine")
    with pytest.raises(VideoError, match=rf"{name}\.bin: the image has more than 67108864 pixels"):
        read_picture(sample, cv2.IMREAD_COLOR)


def test_frames_of_another_size_are_named(tmp_path):
    def write(name, height, width):
        cv2.imwrite(str(tmp_path / name), drawn(height, width)[..., 0])

    patterns = FramePatterns("i{}.png", "x{}.png", "y{}.png")
    for number in range(1, 4):
        write(f"i{number}.png", 24, 32)
    write("i2.png", 32, 24)
    for number in range(1, 3):
        write(f"x{number}.png", 24, 32)
        write(f"y{number}.png", 24, 32)
    write("y2.png", 12, 16)
    found = examine_frame_folders([tmp_path], patterns=patterns, processes=0, decode=True)
    assert [(f.kind, f.severity, f.subject, f.detail) for f in found] == [
        ("size_mismatch", "error", str(tmp_path / name), f"is {size}, other frames of the folder 32×24")
        for name, size in (("i2.png", "24×32"), ("y2.png", "16×12"))
    ]
    with pytest.raises(VideoError, match=r"i2\.png: is 24×32, other frames of the folder 32×24"):
        read_frames(tmp_path, [1, 2, 3], "rgb", patterns)
    assert read_frames(tmp_path, [1, 2, 3], "rgb", patterns, resize=(24, 24)).shape == (3, 24, 24, 3)
    with pytest.raises(VideoError, match=r"y2\.png: the image has a different size"):
        read_frames(tmp_path, [1, 2], "flow", patterns, resize=(24, 24))
