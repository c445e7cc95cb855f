"""timm's networks on differences of frames and on flow as a picture, against the 2D network run by hand."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from two_stream.backbones.timm_net import create
from two_stream.backbones.timm_time import shifted
from two_stream.config.backbones import TimmNet
from two_stream.config.model import ModelOptions
from two_stream.errors import SettingsError
from two_stream.pretrained import load_library
from two_stream.recognizer import Recognizer

SIDE, FRAMES = 64, 6
DIFFERENCES = ("alone", "beside")


def network(
    modality: str = "rgb", *, reduction: str = "none", input: dict | None = None, **options: object
) -> Recognizer:
    torch.manual_seed(0)
    given = {"name": "test_resnet", **options}
    model = Recognizer(
        ModelOptions(
            backbone=TimmNet.model_validate(given),
            modality=modality,
            reduction=reduction,
            reduced_channels=16,
            input={"crop": SIDE, "clip_length": FRAMES, "segments": 0, **(input or {})},
        ),
        3,
    )
    with torch.no_grad():  # timm starts the last norm of a block at zero
        for name, value in model.backbone.state_dict().items():
            if value.is_floating_point() and value.ndim == 1:
                value.uniform_(0.8, 1.2) if "weight" in name or "var" in name else value.normal_(0, 0.1)
    return model.eval()


def by_hand(model: Recognizer, channels: int = 3):
    """timm's own network with the weights of ours."""
    net = create(TimmNet(name="test_resnet"), channels)
    ours = model.backbone.state_dict()
    names = {"stem.0.": "conv1.", "stem.1.": "bn1."}
    state = {
        next((b + k[len(a) :] for a, b in names.items() if k.startswith(a)), k): v for k, v in ours.items()
    }
    net.load_state_dict({key.replace(".layer.", "."): value for key, value in state.items()})
    return net.eval()


def pixels(channels: int = 3, frames: int = FRAMES, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(
        0, 256, (batch, channels, frames, SIDE, SIDE), dtype=torch.uint8, generator=generator
    )


def normalised(x: torch.Tensor, mean: tuple, std: tuple) -> torch.Tensor:
    mean_, std_ = (torch.tensor(value).reshape(-1, 1, 1, 1) for value in (mean, std))
    return (x.float() / 255 - mean_) / std_


@pytest.mark.parametrize("difference", DIFFERENCES)
@torch.no_grad()
def test_a_pair_is_its_first_frame_and_twice_its_clamped_difference(difference: str) -> None:
    model = network(difference=difference)
    net, x = by_hand(model), pixels()
    seen = normalised(x, (0.5,) * 3, (0.5,) * 3)
    maps = []
    for pair in range(FRAMES // 2):
        first, second = seen[:, :, 2 * pair], seen[:, :, 2 * pair + 1]
        change = torch.minimum(torch.maximum(2 * (second - first), torch.tensor(-1.0)), torch.tensor(1.0))
        assert (change.abs() == 1).any()
        assert (change.abs() < 1).any()
        parts = [net.forward_features(change)]
        if difference == "beside":
            parts.insert(0, net.forward_features(first))
        maps.append(torch.cat(parts, 1))
    (tokens,) = model.forward_features(x)
    wanted = torch.stack(maps, 2).mean((3, 4)).transpose(1, 2)
    torch.testing.assert_close(tokens, wanted, rtol=1e-4, atol=1e-5)
    assert model.backbone.num_tokens(FRAMES) == (FRAMES // 2,) == (tokens.shape[1],)
    assert model.backbone.channels == (tokens.shape[2],)


@torch.no_grad()
def test_the_shift_is_between_pairs_and_apart_for_frames_and_differences() -> None:
    """The first block of the first stage by hand: frames are shifted among frames, differences among differences."""
    model = network(difference="beside", tsm=0.125)
    x, backbone = pixels(), model.backbone
    seen = normalised(x, (0.5,) * 3, (0.5,) * 3)
    given: list[torch.Tensor] = []
    inner = backbone.layer1[0].conv1.layer
    inner.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    model.forward_features(x)
    first, second = seen[:, :, ::2], seen[:, :, 1::2]
    for images, got in zip((first, (2 * (second - first)).clamp(-1, 1)), given, strict=True):
        before = backbone.stem(images.transpose(1, 2).flatten(0, 1))
        torch.testing.assert_close(got, shifted(before, FRAMES // 2, 0.125), rtol=1e-4, atol=1e-5)
        assert not torch.equal(got, before)


@torch.no_grad()
def test_a_flow_picture_is_x_y_and_magnitude() -> None:
    """5 of ±20 stored pixels are 1; no motion is black in the third channel, and 10 pixels fill it."""
    model = network("flow", picture=True)
    net, x = by_hand(model), pixels(2)
    seen = normalised(x, (0.5, 0.5), (0.125, 0.125))
    magnitude = (seen[:, 0] ** 2 + seen[:, 1] ** 2).sqrt() - 1
    picture = torch.stack((seen[:, 0], seen[:, 1], magnitude), 1).clamp(-1, 1)
    assert (picture[:, 2] < 1).any()
    wanted = torch.stack([net.forward_features(frame) for frame in picture.unbind(2)], 2)
    (tokens,) = model.forward_features(x)
    torch.testing.assert_close(tokens, wanted.mean((3, 4)).transpose(1, 2), rtol=1e-4, atol=1e-5)
    still = torch.full_like(x, 128)
    inside: list[torch.Tensor] = []
    model.backbone.stem.register_forward_pre_hook(lambda _, inputs: inside.append(inputs[0]))
    model.forward_features(still)
    moved = still.clone()
    moved[:, 0] = round(255 * (0.5 + 10 / 40))
    model.forward_features(moved)
    assert inside[0][:, 2].unique().numpy() == pytest.approx(-1, abs=0.03)
    assert inside[1][:, [0, 2]].unique().numpy() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("options", [{"picture": True}, {"difference": "beside"}], ids=str)
def test_rgb_weights_apply_as_they_are(tmp_path, options: dict) -> None:
    theirs = create(TimmNet(name="test_resnet"), 3).eval()
    file = tmp_path / "weights.safetensors"
    save_file(theirs.state_dict(), file)
    model = network("flow" if "picture" in options else "rgb", pretrained=True, weights=file, **options)
    load_library(model)
    state = model.backbone.state_dict()
    assert torch.equal(state["stem.0.0.weight"], theirs.conv1[0].weight)
    for name in ("layer1.0.conv1.weight", "layer3.0.conv2.weight"):
        assert torch.equal(state[name], theirs.state_dict()[name])


@pytest.mark.parametrize("reduction", ["none", "frab", "frmb"])
@pytest.mark.parametrize("options", [{"picture": True}, *({"difference": d} for d in DIFFERENCES)], ids=str)
def test_reductions_learn(options: dict, reduction: str) -> None:
    modality = "flow" if "picture" in options else "rgb"
    model = network(modality, reduction=reduction, **options).train()
    x = pixels(2 if modality == "flow" else 3)
    F.cross_entropy(model(x), torch.tensor([0, 2])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any() or parameter.ndim < 2, name
    (tokens,) = model.eval().forward_features(x)
    frames = FRAMES if modality == "flow" else FRAMES // 2
    seen = 2 if options.get("difference") == "beside" else 1
    width = {"none": 96 * seen, "frab": 16, "frmb": 16 * seen}[reduction]
    assert tokens.shape == (2, frames, width)
    assert model.backbone.channels == (width,)
    with torch.no_grad():
        assert torch.allclose(model(x)[:1], model(x[:1]), rtol=1e-4, atol=1e-5)  # clips are apart


@pytest.mark.parametrize(
    ("modality", "options", "input_", "message"),
    [
        ("rgb", {"difference": "alone"}, {"clip_length": 5}, r"`input.clip_length` 5 is not an even number"),
        (
            "rgb",
            {"difference": "beside"},
            {"clip_length": 6, "segments": 6},
            r"`input.clip_length` 6 is not a multiple of twice `input.segments` 6",
        ),
        (
            "flow",
            {"difference": "alone"},
            {},
            r"`backbone.difference: alone` is only for RGB; remove `difference` for",
        ),
        (
            "flow",
            {"picture": True},
            {"stack": 2},
            r"`backbone.picture` uses one flow field, .*stack` is 2; set `input.stack` to 1",
        ),
    ],
    ids=str,
)
def test_what_it_cannot_see_is_one_line(modality: str, options: dict, input_: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        network(modality, input=input_, **options)
    assert "\n" not in str(caught.value)


def test_differences_of_an_inflated_network_are_refused() -> None:
    with pytest.raises(ValueError, match="`difference` uses pairs of frames, but `inflate` uses all frames"):
        TimmNet(difference="alone", inflate=True)
