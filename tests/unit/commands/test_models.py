"""`two-stream models`, and names that no command knows."""

import json

import pytest

from two_stream.commands import models, profile
from two_stream.config.backbones import ResNet3d
from two_stream.config.model import ModelOptions
from two_stream.errors import SettingsError


def test_pattern_lists_what_matches(capsys):
    assert models.main(["*bert10_FRMB", "--json", "--num-classes", "51"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"]: row["parameters"] for row in rows} == {
        "rgb_resneXt3D64f101_bert10_FRMB": 47_377_907,
        "flow_resneXt3D64f101_bert10_FRMB": 47_377_907 - 64 * 343,
    }
    assert {row["input"] for row in rows} == {"64×112²"}


def test_table_names_the_source(capsys):
    models.main(["efficient3d/mobilenetv2_0.2x", "--num-classes", "27"])
    single = capsys.readouterr().out
    assert "0.23 M parameters with 27 classes, 0.05 G multiply-adds per clip" in single
    assert "source     Efficient-3DCNNs" in single
    models.main(["efficient3d/mobilenetv2_*"])
    text = capsys.readouterr().out
    assert "4 models (400 classes)" in text
    assert "efficient3d/mobilenetv2_0.45x" in text


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("rgb_slowfast64f_50_bert10_FRMB_late", ["512×8×7×7 + 256×32×7×7", "512 + 256"]),
        ("rgb_slowfast64f_50_bert10_FRMB_early", ["512×8×7×7 + 128×32×7×7", "640"]),
        ("rgb_I3D64f", ["1024×8×7×7"]),
        ("rgb_r2plus1d_64f_34_bert10", ["512×8×7×7"]),
    ],
)
def test_every_kind_of_network_shows_its_stages(name, shapes, capsys):
    models.main([name])
    shown = " ".join(capsys.readouterr().out.split())
    assert all(shape in shown for shape in shapes)


def test_one_model_as_json_has_stages_and_options(capsys):
    models.main(["3dresnets/resnet10", "--json", "--num-classes", "700"])
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 14_758_524
    assert found["multiply_adds"] / 1e9 == pytest.approx(5.653953, rel=1e-6)
    assert found["stages"][0]["name"] == "stem"
    assert ModelOptions.model_validate(found["options"]).backbone == ResNet3d(depth=10)


def test_unknown_name_is_one_line():
    for command in (models, profile):
        with pytest.raises(SettingsError, match="unknown model 'resnet_10'; did you mean"):
            command.main(["resnet_10"])
