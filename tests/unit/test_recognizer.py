"""The joined model: pixels in, logits out; freezing, options by name, several pathways."""

from functools import partial

import pytest
import torch
from torch import nn

from tests.helpers.models import network
from two_stream.backbones.base import BACKBONES, Backbone
from two_stream.config.backbones import ResNet3d
from two_stream.config.heads import AverageHead, BertHead, ConcatHead, LstmHead
from two_stream.config.model import ModelOptions
from two_stream.errors import SettingsError
from two_stream.recognizer import create_model, input_spec
from two_stream.types import FeatureMap
from two_stream.zoo import find, list_models, records, resolve

SMALL = ResNet3d(depth=10, width=0.125, temporal_stride=4)


small = partial(
    network,
    backbone=SMALL,
    head=BertHead(heads=2),
    input={"clip_length": 8, "crop": 32},
    modality="flow",
    dropout=0.5,
)


def clip(batch=2, channels=2, frames=8):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, channels, frames, 32, 32), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("name", "at0", "at255"),
    [
        ("rgb_resneXt3D64f101", [-114.7748, -107.7354, -99.474998], [140.22519, 147.2646, 155.52499]),
        ("flow_resneXt3D64f101", [-127.5, -127.5], [127.5, 127.5]),
        ("3dresnets/resnet18", [-0.4345 / 0.2768], [0.5655 / 0.2768]),
    ],
)
def test_pixels_are_normalised_as_published(name, at0, at255):
    with torch.device("meta"):
        model = create_model(name, 2)
    model._register_normalisation()  # on the CPU
    for value, expected in ((0, at0), (255, at255)):
        x = model.normalised(torch.full((1, model.spec.channels, 1, 1, 1), value, dtype=torch.uint8))
        assert x.flatten()[: len(expected)].tolist() == pytest.approx(expected, rel=1e-6)


def test_float_pixels_mean_the_same_and_are_left_alone():
    model = small().eval()
    pixels = clip()
    floats = pixels.float()
    torch.testing.assert_close(model(floats), model(pixels), rtol=0, atol=0)
    assert torch.equal(floats, pixels.float())


@pytest.mark.parametrize("shape", [(2, 3, 8, 32, 32), (2, 8, 32, 32)])
def test_a_clip_of_the_wrong_shape_is_refused(shape):
    with pytest.raises(SettingsError, match=r"flow requires \(batch, 2, frames, height, width\)"):
        small()(torch.zeros(shape, dtype=torch.uint8))


def test_another_clip_length_is_refused_where_the_head_is_fixed_only():
    with pytest.raises(SettingsError, match="built for 2 time steps but got 4"):
        small()(clip(frames=16))
    assert small(head=LstmHead())(clip(frames=16)).shape == (2, 3)


def test_forward_is_backbone_pool_head_classifier():
    model = small(head=ConcatHead(features=None)).eval()
    x = model.normalised(clip())
    (feature,) = model.backbone(x)
    tokens = feature.tensor.mean((3, 4))
    expected = tokens.flatten(1) @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(model(clip()), expected)
    torch.testing.assert_close(model.forward_features(clip())[0], tokens.transpose(1, 2))


def test_channels_last_changes_no_number():
    model = small().eval()
    before = model(clip())
    torch.testing.assert_close(model.channels_last()(clip()), before, rtol=1e-4, atol=1e-5)
    assert model.normalised(clip()).is_contiguous(memory_format=torch.channels_last_3d)


def test_stages_cover_every_parameter_once_from_input_to_classifier():
    for reduction in ("none", "frab", "frmb"):
        model = small(reduction=reduction, reduced_channels=16)
        names = [name for name, _ in model.stages()]
        assert names[0] == "stem"
        assert names[-2:] == ["head", "classifier"]
        inside = [id(p) for _, stage in model.stages() for p in stage.parameters()]
        assert sorted(inside) == sorted(id(p) for p in model.parameters())


def test_frozen_stages_keep_weights_and_statistics():
    model = small()
    model.freeze_until("layer2")
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(clip()).square().sum().backward()
    optimizer.step()
    frozen = ("backbone.stem", "backbone.layer1", "backbone.layer2")
    for key, value in model.state_dict().items():
        if key.startswith(frozen):
            assert torch.equal(value, before[key]), key
    for key in ("backbone.layer3.0.conv1.weight", "backbone.layer3.0.bn1.running_mean", "classifier.weight"):
        assert not torch.equal(model.state_dict()[key], before[key]), key


def test_freezing_an_unknown_stage_names_the_known():
    with pytest.raises(SettingsError, match="expected one of stem, layer1, layer2, layer3, layer4, head"):
        small().freeze_until("layer9")


def test_attention_is_read_without_dropout_and_leaves_the_mode():
    model = small().train()
    (first,), (second,) = model.attention(clip()), model.attention(clip())
    assert first.shape == (2, 2, 2)
    assert torch.equal(first, second)
    assert model.training
    with pytest.raises(SettingsError, match="head average has no attention"):
        small(head=AverageHead()).attention(clip())


def test_input_departures_reach_the_spec_and_contradictions_are_refused():
    spec = input_spec(
        ModelOptions(backbone=SMALL, modality="flow", input={"crop": 96, "clip_length": 12, "stride": 2})
    )
    assert (spec.crop, spec.clip_length, spec.stride, spec.resize) == (96, 12, 2, (128, 170))
    with pytest.raises(SettingsError, match=r"`input.crop` 224 is larger than the resized frame 128×170"):
        input_spec(ModelOptions(backbone=SMALL, input={"crop": 224}))
    with pytest.raises(
        SettingsError, match=r"`input.mean` has 3 numbers; expected 2, one per channel of flow"
    ):
        input_spec(ModelOptions(backbone=SMALL, modality="flow", input={"mean": (1, 2, 3)}))


def test_options_over_a_name_keep_what_they_do_not_mention():
    options = resolve(
        "late_temporal/rgb_resneXt3D64f101_bert10_FRMB",
        modality="flow",
        head={"layers": 2},
        backbone={"temporal_stride": 8},
    )
    assert options.head == BertHead(layers=2)
    assert options.backbone.depth == 101
    assert options.backbone.temporal_stride == 8
    assert options.reduction == "frmb"
    assert resolve("3dresnets/resnet18", head={"kind": "lstm"}).head == LstmHead()
    assert resolve("3dresnets/resnet18", input={"clip_length": 32}).input.mean == (0.4345, 0.4051, 0.3775)
    assert resolve("3dresnets/resnet18", modality="flow").input.mean == (0.4345, 0.4051)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rgb_resnext3d64f101", {}, r"unknown model .*did you mean rgb_resneXt3D64f101 "),
        ("zzz", {}, r"unknown model 'zzz'; see `two-stream models`"),
        ("3dresnets/resnet18", {"modalty": "rgb"}, "unknown key `modalty`; did you mean `modality`"),
        ("3dresnets/resnet18", {"head": {"kind": "bret"}}, "unknown kind 'bret'; did you mean `bert`"),
        ("3dresnets/resnet18", {"dropout": 2}, "`dropout` is 2"),
    ],
)
def test_create_model_names_what_is_wrong(name, options, message):
    with pytest.raises(SettingsError, match=message):
        create_model(name, 5, **options)


def test_no_classes_is_refused():
    with pytest.raises(SettingsError, match="num_classes is 0"):
        create_model("3dresnets/resnet10", 0)


def test_both_names_of_a_record_lead_to_it():
    assert find("rgb_resneXt3D64f101") is find("late_temporal/rgb_resneXt3D64f101")
    assert "rgb_resneXt3D64f101_bert10_FRMB" in list_models("*bert*")
    assert "late_temporal/rgb_resneXt3D64f101_bert10_FRMB" in list_models()
    assert len({record.name for record in records()}) == len(records())
    assert [record.options.modality for record in records("flow*")] == ["flow"] * 7


class TwoPaths(Backbone):
    """A fast pathway of every frame, a slow one of every fourth."""

    channels = (4, 6)
    temporal_stride = (1, 4)
    spatial_stride = (1, 1)
    pathways = ("fast", "slow")

    def __init__(self, options, modality, stack=1):
        super().__init__(options, modality, stack)
        self.fast, self.slow = nn.Conv3d(2, 4, 1), nn.Conv3d(2, 6, 1)

    def stages(self):
        return [("fast", self.fast), ("slow", self.slow)]

    def append_block(self, channels):
        raise NotImplementedError

    replace_last_block = append_block

    def forward(self, x_BCTHW):
        return [FeatureMap(self.fast(x_BCTHW), "fast"), FeatureMap(self.slow(x_BCTHW[:, :, ::4]), "slow")]


def test_each_pathway_has_its_head_and_their_vectors_are_joined(monkeypatch):
    monkeypatch.setitem(BACKBONES._builders, "resnet3d", TwoPaths)
    model = small(head=ConcatHead(features=None)).eval()
    assert [head.tokens for head in model.heads] == [8, 2]
    assert model.classifier.in_features == 4 * 8 + 6 * 2
    tokens = model.forward_features(clip())
    assert [t.shape for t in tokens] == [(2, 8, 4), (2, 2, 6)]
    vector = torch.cat([t.transpose(1, 2).flatten(1) for t in tokens], 1)
    torch.testing.assert_close(model(clip()), model.classifier(vector))
