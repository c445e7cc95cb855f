"""Key tables of published checkpoints: known names, both directions, and that no two layouts claim one file."""

import pickle
from itertools import product

import numpy as np
import pytest
import torch

from two_stream import load_weights, zoo
from two_stream.config.backbones import I3d, R2Plus1d, SlowFast
from two_stream.config.heads import AverageHead, BertHead
from two_stream.config.model import ModelOptions
from two_stream.errors import CheckpointError
from two_stream.pretrained.converting import published_state
from two_stream.pretrained.layouts import LAYOUTS, OURS, recognise_layout
from two_stream.recognizer import Recognizer

BY_NAME = {layout.name: layout for layout in LAYOUTS}


@pytest.mark.parametrize(
    ("layout", "theirs", "ours"),
    [
        ("PySlowFast SlowFast", "s1_fuse.conv_f2s.weight", "backbone.stem.lateral.0.weight"),
        (
            "PySlowFast SlowFast",
            "s4.pathway1_res5.branch2.b_bn.running_var",
            "backbone.layer3.fast.5.bn2.running_var",
        ),
        (
            "PySlowFast SlowFast",
            "s2.pathway0_res0.branch1_bn.bias",
            "backbone.layer1.slow.0.downsample.1.bias",
        ),
        ("PySlowFast SlowFast (Caffe2)", "t_res_conv1_bn_riv", "backbone.stem.fast.1.running_var"),
        ("PySlowFast SlowFast (Caffe2)", "res4_3_branch2c_bn_s", "backbone.layer3.slow.3.bn3.weight"),
        (
            "PySlowFast SlowFast (Caffe2)",
            "t_res3_3_branch2c_bn_subsample_w",
            "backbone.layer2.lateral.0.weight",
        ),
        ("PySlowFast SlowFast (Caffe2)", "pred_b", "classifier.bias"),
        (
            "late_temporal (LateTemporalModeling3DCNN)",
            "bert.transformer_blocks.0.output_sublayer.norm.a_2",
            "heads.0.blocks.0.norm2.weight",
        ),
        ("2D MobileNetV2 (torchvision)", "features.4.conv.1.0.weight", "backbone.layer3.0.conv.3.weight"),
        ("2D MobileNetV2 (torchvision)", "features.1.conv.1.weight", "backbone.layer1.0.conv.3.weight"),
    ],
)
def test_known_names(layout, theirs, ours):
    assert BY_NAME[layout].translate(theirs) == ours
    assert theirs in BY_NAME[layout].invert(ours)


def test_unknown_names_have_no_translation():
    assert all(layout.translate("ema.decay") is None for layout in LAYOUTS)
    assert all(layout.invert("ema.decay") == [] for layout in LAYOUTS)


def test_every_pair_reads_back_what_it_writes():
    for layout in LAYOUTS:
        for theirs, ours in layout.pairs:
            assert layout.translate(theirs) == ours, layout.name
            assert theirs in layout.invert(ours), layout.name


@pytest.mark.parametrize("record", zoo.records("late_temporal/*"), ids=lambda record: record.alias)
def test_every_published_network_has_one_layout_that_names_all_of_it(record):
    with torch.device("meta"):
        model = Recognizer(record.options, 51)
    state = model.state_dict()
    found = []
    for layout in LAYOUTS:
        theirs = published_state(state, layout)
        if (
            layout is not OURS
            and all(layout.invert(key) for key in state)
            and recognise_layout(theirs) is layout
        ):
            found.append(layout.name)
    assert [name for name in found if name.startswith("late_temporal")][:1] == found[:1]
    assert found


def caffe2_blobs(model: Recognizer) -> dict[str, np.ndarray]:
    """A model zoo file made from a model: blobs by Caffe2's names, with what its trainer keeps beside them."""
    layout = BY_NAME["PySlowFast SlowFast (Caffe2)"]
    blobs = {}
    for key, tensor in model.state_dict().items():
        for name in layout.invert(key):
            if "res4_22" not in name and not key.endswith("num_batches_tracked"):
                blobs[name] = tensor.numpy()
                blobs[f"{name}_momentum"] = np.zeros_like(tensor.numpy())
    return blobs | {"lr": np.float32(0.1), "model_iter": np.int64(7)}


def test_caffe2_zoo_file_gives_the_logits_of_the_model_it_was_made_from(tmp_path):
    options = ModelOptions(
        backbone=SlowFast(width=0.125), head=AverageHead(), input={"clip_length": 16, "crop": 32}
    )
    source, model = Recognizer(options, 5).eval(), Recognizer(options, 5).eval()
    with torch.no_grad():
        for number, tensor in enumerate(source.state_dict().values()):
            if tensor.ndim:  # values of their own, so that no two tensors can be exchanged unnoticed
                tensor += 0.01 * torch.rand(tensor.shape, generator=torch.Generator().manual_seed(number))
    path = tmp_path / "SLOWFAST_8x8_R50.pkl"
    with path.open("wb") as file:
        pickle.dump({"blobs": caffe2_blobs(source)}, file, protocol=2)
    report = load_weights(model, path)
    assert report.format == "PySlowFast SlowFast (Caffe2)"
    x = torch.randint(0, 256, (1, 3, 16, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(model(x), source(x))


@pytest.mark.parametrize(("fusion", "reduction"), list(product(("late", "early"), ("frab", "frmb"))))
def test_kinetics_slowfast_starts_each_published_variant(tmp_path, fusion, reduction):
    tiny = {"width": 0.125, "fusion": fusion}
    plain = Recognizer(
        ModelOptions(backbone=SlowFast(width=0.125), head=AverageHead(), input={"clip_length": 16}), 400
    )
    layout = BY_NAME["PySlowFast SlowFast"]
    torch.save({"model_state": published_state(plain.state_dict(), layout), "epoch": 3}, tmp_path / "a.pyth")
    model = Recognizer(
        ModelOptions(
            backbone=SlowFast(**tiny),
            reduction=reduction,
            reduced_channels=32,
            head=BertHead(),
            input={"clip_length": 16},
        ),
        51,
    )
    with pytest.raises(CheckpointError, match="new_classifier"):
        load_weights(model, tmp_path / "a.pyth")
    report = load_weights(model, tmp_path / "a.pyth", new_classifier=True)
    fresh = {key.split(".")[0] for key in report.missing}
    assert fresh == ({"classifier", "heads", "backbone"})
    kept = [key for key in report.missing if key.startswith("backbone.")]
    assert all(key.startswith(tuple(f"backbone.{p}" for p in model.backbone.reduced)) for key in kept)
    for key in ("backbone.stem.fast.0.weight", "backbone.layer4.slow.1.conv2.weight"):
        assert torch.equal(model.state_dict()[key], plain.state_dict()[key])


def test_weights_of_another_backbone_are_named_as_such(tmp_path):
    r2plus1d = ModelOptions(backbone=R2Plus1d(depth=18, width=0.125), head=AverageHead())
    i3d = ModelOptions(backbone=I3d(width=0.125), head=AverageHead())
    state = published_state(
        Recognizer(r2plus1d, 5).state_dict(), BY_NAME["late_temporal R(2+1)D (LateTemporalModeling3DCNN)"]
    )
    torch.save({"state_dict": state}, tmp_path / "model_best.pth.tar")
    for classes, new_classifier in ((5, False), (7, False), (7, True)):
        with pytest.raises(CheckpointError, match=r"R\(2\+1\)D .* backbone is i3d") as raised:
            load_weights(
                Recognizer(i3d, classes), tmp_path / "model_best.pth.tar", new_classifier=new_classifier
            )
        assert "\n" not in str(raised.value)


def test_kinetics_i3d_gives_its_own_400_class_logits(tmp_path):
    """Pytorch-i3d averages pairs of tokens, classifies each pair and averages the logits."""
    torch.manual_seed(0)
    options = zoo.resolve(
        "kinetics/i3d_rgb", backbone={"width": 0.125}, input={"crop": 32, "clip_length": 32}
    )
    source = Recognizer(options, 400).eval()
    state = published_state(source.state_dict(), BY_NAME["I3D (pytorch-i3d)"])
    assert state["logits.conv3d.weight"].ndim == 5
    torch.save(state, tmp_path / "rgb_imagenet.pt")
    model = Recognizer(options, 400).eval()
    load_weights(model, tmp_path / "rgb_imagenet.pt")
    x = torch.randn(1, 3, 32, 32, 32)
    with torch.inference_mode():
        map_BCTHW = source.backbone(x)[0].tensor
        pairs = torch.nn.functional.avg_pool3d(map_BCTHW, (2, 1, 1), stride=1)
        logits = torch.nn.functional.conv3d(pairs, state["logits.conv3d.weight"], state["logits.conv3d.bias"])
        torch.testing.assert_close(model.forward_normalised(x), logits.mean((2, 3, 4)), rtol=1e-4, atol=1e-4)


def test_torchvision_r2plus1d_18_gives_its_logits(tmp_path):
    from torchvision.models.video import r2plus1d_18

    torch.manual_seed(0)
    theirs = r2plus1d_18(num_classes=400).eval()
    torch.save(theirs.state_dict(), tmp_path / "r2plus1d_18-91a641e6.pth")
    model = Recognizer(zoo.resolve("kinetics/r2plus1d_18"), 400).eval()
    report = load_weights(model, tmp_path / "r2plus1d_18-91a641e6.pth")
    assert report.format == "R(2+1)D (torchvision, IG-65M)"
    x = torch.randn(1, 3, 8, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(model.forward_normalised(x), theirs(x), rtol=1e-4, atol=1e-5)
