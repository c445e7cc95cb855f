"""`two-stream doctor`: what a bug report needs, and problems that can be repaired."""

import json

import cv2

from two_stream.cli import main
from two_stream.commands.doctor import EXTRAS


def test_it_shows_versions_devices_and_extras(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for word in (
        "versions",
        "torch ",
        "cpu threads",
        "decoders",
        "TV-L1 flow",
        "settings",
        "optional packages",
        "ray",
    ):
        assert word in shown
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["optional packages"]) == {name.replace("_", "-") for name in EXTRAS}
    assert found["problems"] == []


def test_another_opencv_package_is_a_problem_with_its_repair(monkeypatch, capsys):
    monkeypatch.delattr(cv2.optflow, "createOptFlow_DualTVL1")
    assert main(["doctor"]) == 1
    assert "problem: OpenCV has no TV-L1 flow" in " ".join(capsys.readouterr().out.split())
