"""Checkpoints in and out: nothing but tensors is read, everything fits or is named."""

import os
import pickle
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.models import network
from two_stream import cli
from two_stream.config.backbones import MobileNetV2, ResNet3d
from two_stream.config.heads import AverageHead, BertHead, LstmHead
from two_stream.errors import CheckpointError
from two_stream.pretrained import WEIGHTS, load_weights, read_model, read_state, write_model
from two_stream.recognizer import Recognizer

small = partial(
    network,
    backbone=ResNet3d(depth=18, width=0.125),
    head=AverageHead(),
    input={"clip_length": 16, "crop": 32},
)


def kenshohara(model: Recognizer, prefix: str = "") -> dict[str, torch.Tensor]:
    """The state of a plain network under the names 3D-ResNets gives it."""
    names = {"backbone.stem.0.": "conv1.", "backbone.stem.1.": "bn1.", "classifier.": "fc."}

    def theirs(key: str) -> str:
        for ours, other in names.items():
            if key.startswith(ours):
                return prefix + key.replace(ours, other)
        return prefix + key.removeprefix("backbone.")

    return {theirs(key): value.clone() for key, value in model.state_dict().items()}


def saved(tmp_path, state, name="model_best.pth.tar"):
    torch.save({"epoch": 1, "state_dict": state, "best_prec1": 50.0}, tmp_path / name)
    return tmp_path / name


def same(a: Recognizer, b: Recognizer) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("prefix", ["", "module."])
def test_foreign_weights_land_where_they_belong(tmp_path, prefix):
    source, model = small(seed=1), small(seed=2)
    report = load_weights(model, saved(tmp_path, kenshohara(source, prefix)))
    assert same(source, model)
    assert report.format.startswith("resnet3d")
    assert len(report.used) == len(model.state_dict())
    assert report.missing == report.unexpected == report.dropped == []
    assert report.reshaped == {}


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize(
    "prefix",
    [
        "model.",
        "net.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model.net._orig_mod.",
        "backbone.",
    ],
)
def test_what_trainers_put_before_the_names_is_taken_off(tmp_path, prefix, ours):
    """Lightning's, torch.compile's and encoders' keys, alone and in one another, ours and a published network's."""
    source, model = small(seed=1), small(seed=2)
    state = source.state_dict() if ours else kenshohara(source)
    load_weights(model, saved(tmp_path, {prefix + key: value for key, value in state.items()}))
    assert same(source, model)


def test_averaged_weights_of_torch_load_and_those_beside_raw_ones_are_mentioned(tmp_path, capsys):
    raw, averaged = small(seed=1), small(seed=2)
    swa = torch.optim.swa_utils.AveragedModel(averaged)
    model = small(seed=3)
    load_weights(model, saved(tmp_path, swa.state_dict()))
    assert same(averaged, model)
    inside = {f"model.{key}": value for key, value in raw.state_dict().items()}
    inside |= {f"ema_model.{key}": value for key, value in averaged.state_dict().items()}
    report = load_weights(model, saved(tmp_path, inside | {"loss.weight": torch.ones(2)}))
    assert same(raw, model)
    assert "never read (ema_model." in str(report)
    assert "loss.weight" in report.unused
    both = {"state_dict": raw.state_dict(), "state_dict_ema": averaged.state_dict()}
    torch.save(both, tmp_path / "timm.pth")
    load_weights(model, tmp_path / "timm.pth")
    assert same(raw, model)
    assert "the averaged weights in `state_dict_ema` are not read" in capsys.readouterr().err


def test_names_of_no_known_network_stay_as_they_are(tmp_path):
    with pytest.raises(CheckpointError, match=r"unknown network \(first keys: model.odd.weight\)"):
        load_weights(small(), saved(tmp_path, {"model.odd.weight": torch.ones(2)}))


@pytest.mark.parametrize(
    "args", [["predict", "FILE"], ["predict", "FILE", "--rgb", "x"], ["evaluate", "FILE"]]
)
@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_a_checkpoint_given_as_a_video_or_run_is_called_one(tmp_path, capsys, name, args):
    file = tmp_path / name
    save_file({"a": torch.ones(2)}, file) if name.endswith("tensors") else torch.save(
        {"a": torch.ones(2)}, file
    )
    assert cli.main([str(file) if arg == "FILE" else arg for arg in args]) == 2
    said = capsys.readouterr().err.strip()
    what = "video" if args[0] == "predict" else "run"
    assert said == (
        f"two-stream: {file}: found a checkpoint, expected a {what}; convert it to a run with `two-stream weights "
        f"convert {file} --model MODEL --out RUN`"
    )


def test_model_folder_round_trip(tmp_path):
    model = small(head=BertHead(heads=4), modality="flow", seed=3)
    model.channels_last()
    write_model(tmp_path / "best", model, {"class_names": ["a", "b", "ü"], "epoch": 4})
    again, meta = read_model(tmp_path)  # the run folder leads to its best
    assert same(model, again)
    assert again.options == model.options
    assert not again.training
    assert meta == {"class_names": ["a", "b", "ü"], "epoch": 4}
    fresh = small(head=BertHead(heads=4), modality="flow", seed=4)
    assert load_weights(fresh, tmp_path).format == "two_stream"
    assert same(model, fresh)


def test_a_flipped_byte_is_noticed(tmp_path):
    write_model(tmp_path, small(), {})
    file = tmp_path / WEIGHTS
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        read_model(tmp_path)


def test_read_model_refuses_foreign_and_newer_files(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="not a Two-Stream model"):
        read_model(tmp_path / "x.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "y.safetensors", {"format": "two_stream", "version": "99"})
    with pytest.raises(CheckpointError, match="newer version"):
        read_model(tmp_path / "y.safetensors")


class Payload:
    def __reduce__(self):
        return (os.system, ("touch PWNED",))


def test_a_malicious_pickle_is_refused_and_nothing_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, save in (
        ("model_best.pth.tar", torch.save),
        ("plain.pth", lambda obj, path: path.write_bytes(pickle.dumps(obj, protocol=2))),
    ):
        path = tmp_path / name
        save({"state_dict": {"conv1.weight": Payload()}}, path)
        with pytest.raises(CheckpointError) as caught:
            read_state(path)
        assert "rejected" in str(caught.value)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"empty file \(0 bytes\)"),
        (b"hello, I am a text file\n" * 9, "not a checkpoint"),
        (b"PK\x03\x04 cut short", "damaged PyTorch file"),
        (b"\x80\x02\xff\xff", "rejected or damaged"),
        ((64).to_bytes(8, "little") + b'{"a":', "damaged safetensors file"),
    ],
)
def test_what_is_no_checkpoint_is_named_in_one_line(tmp_path, content, message):
    path = tmp_path / "model_best.pth.tar"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_state(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_truncated_files_are_damaged(tmp_path):
    torch_file = saved(tmp_path, kenshohara(small()))
    save_file(kenshohara(small()), tmp_path / "m.safetensors")
    for path in (torch_file, tmp_path / "m.safetensors"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(CheckpointError, match=r"damaged .* perhaps truncated"):
            read_state(path)


def test_missing_paths_and_odd_contents(tmp_path):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        read_state(tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match=r"expected a run folder with model\.safetensors"):
        read_state(tmp_path)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="found a list"):
        read_state(tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "no.pth")
    with pytest.raises(CheckpointError, match="expected weights in one of the keys state_dict"):
        read_state(tmp_path / "no.pth")
    save_file({"unknown.weight": torch.zeros(2)}, tmp_path / "u.safetensors")
    with pytest.raises(CheckpointError, match=r"unknown network \(first keys: unknown.weight\)"):
        load_weights(small(), tmp_path / "u.safetensors")


def test_wrong_depth_and_wrong_classes_name_the_cause_and_leave_the_model_alone(tmp_path):
    model = small(seed=5)
    twin = small(seed=5)
    deeper = saved(tmp_path, kenshohara(small(backbone=ResNet3d(depth=34, width=0.125))), "deep.pth")
    with pytest.raises(
        CheckpointError, match=r"tensors of the file are not in the model \(layer1.2.conv1.weight"
    ):
        load_weights(model, deeper)
    wider = saved(tmp_path, kenshohara(small(backbone=ResNet3d(depth=18, width=0.25))), "wide.pth")
    with pytest.raises(
        CheckpointError, match=r"belong to a different network: conv1\.weight: 16×3×7×7×7 in the file"
    ):
        load_weights(model, wider)
    with pytest.raises(
        CheckpointError, match=r"classifier does not fit \(fc.weight: 7×64 .*`new_classifier`"
    ):
        load_weights(model, saved(tmp_path, kenshohara(small(classes=7)), "seven.pth"))
    assert same(model, twin)


def test_new_classifier_keeps_the_rest(tmp_path):
    source, model, before = small(classes=7, seed=1), small(seed=2), small(seed=2)
    report = load_weights(model, saved(tmp_path, kenshohara(source)), new_classifier=True)
    assert report.dropped == ["fc.weight", "fc.bias"]
    assert report.missing == ["classifier.weight", "classifier.bias"]
    assert torch.equal(model.classifier.weight, before.classifier.weight)
    assert torch.equal(model.backbone.stem[0].weight, source.backbone.stem[0].weight)
    same_size = small(seed=2)
    assert not load_weights(same_size, saved(tmp_path, kenshohara(small())), new_classifier=True).missing


@pytest.mark.parametrize("reduction", ["frab", "frmb"])
def test_a_plain_network_starts_a_reduced_one_with_another_head(tmp_path, reduction):
    source = small(classes=7, seed=1)
    path = saved(tmp_path, kenshohara(source))
    model = small(head=BertHead(heads=4), reduction=reduction, reduced_channels=32, seed=2)
    with pytest.raises(CheckpointError):
        load_weights(model, path)
    report = load_weights(model, path, new_classifier=True)
    assert torch.equal(model.backbone.layer4[0].conv2.weight, source.backbone.layer4[0].conv2.weight)
    fresh = {key.split(".")[0] if key[0] != "b" else key.split(".")[1] for key in report.missing}
    assert fresh == {"heads", "classifier", "reduction" if reduction == "frab" else "layer4"}
    assert all(key.startswith("backbone.layer4.1.") for key in report.missing if ".layer4." in key)


def test_a_missing_head_hints_at_new_classifier_a_missing_layer_does_not(tmp_path):
    path = saved(tmp_path, kenshohara(small()))
    with pytest.raises(CheckpointError, match=r"tensors are missing \(heads.0.lstm.*`new_classifier`"):
        load_weights(small(head=LstmHead(hidden=64)), path)
    state = kenshohara(small())
    del state["layer2.0.conv1.weight"]
    for flag in (False, True):
        with pytest.raises(CheckpointError, match=r"missing \(backbone.layer2.0.conv1.weight\)$"):
            load_weights(small(), saved(tmp_path, state), new_classifier=flag)


def test_cross_modality_averages_rgb_and_repeats(tmp_path):
    source, model = small(seed=1), small(modality="flow", seed=2)
    path = saved(tmp_path, kenshohara(source))
    with pytest.raises(CheckpointError, match="set `cross_modality`"):
        load_weights(model, path)
    report = load_weights(model, path, cross_modality=True)
    rgb, flow = source.backbone.stem[0].weight, model.backbone.stem[0].weight
    torch.testing.assert_close(flow[:, 0], (rgb[:, 0] + rgb[:, 1] + rgb[:, 2]) / 3)
    assert torch.equal(flow[:, 0], flow[:, 1])
    assert list(report.reshaped) == ["backbone.stem.0.weight"]


def test_inflated_resnet_answers_a_still_clip_as_the_image(tmp_path):
    from torchvision.models import resnet18

    torch.manual_seed(0)
    flat = resnet18(num_classes=3).eval()
    torch.save(flat.state_dict(), tmp_path / "r18.pth")
    model = small(backbone=ResNet3d(depth=18), modality="rgb").eval()
    with pytest.raises(CheckpointError, match="set `inflate`"):
        load_weights(model, tmp_path / "r18.pth")
    report = load_weights(model, tmp_path / "r18.pth", inflate=True)
    assert len(report.used) == len(model.state_dict())
    image = torch.randn(1, 3, 32, 32)
    still = image.unsqueeze(2).expand(-1, -1, 17, -1, -1)
    expected = torch.relu(flat.bn1(flat.conv1(image)))
    torch.testing.assert_close(model.backbone.stem[:3](still)[:, :, 8], expected, rtol=1e-4, atol=1e-5)
    deep = flat.layer4[1].conv2.weight
    torch.testing.assert_close(model.backbone.layer4[1].conv2.weight.sum(2), deep)


def test_inflation_and_cross_modality_together(tmp_path):
    from torchvision.models import resnet18

    flat = resnet18(num_classes=3)
    torch.save(flat.state_dict(), tmp_path / "r18.pth")
    model = small(backbone=ResNet3d(depth=18), modality="flow")
    load_weights(model, tmp_path / "r18.pth", inflate=True, cross_modality=True)
    expected = flat.conv1.weight.mean(1) / 7
    torch.testing.assert_close(model.backbone.stem[0].weight[:, 1, 3], expected)
    stacked = small(backbone=ResNet3d(depth=18), modality="flow", input={"stack": 5})
    report = load_weights(stacked, tmp_path / "r18.pth", inflate=True, cross_modality=True)
    assert "repeated over 10 channels" in report.reshaped["backbone.stem.0.weight"]
    for channel in range(10):
        torch.testing.assert_close(stacked.backbone.stem[0].weight[:, channel, 3], expected)


def test_torchvision_mobilenet_fits_whole(tmp_path):
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    flat = mobilenet_v2(num_classes=3)
    torch.save(flat.state_dict(), tmp_path / "m.pth")
    model = small(backbone=MobileNetV2(width=1.0))
    report = load_weights(model, tmp_path / "m.pth", inflate=True)
    assert len(report.used) == len(model.state_dict())
    torch.testing.assert_close(
        model.backbone.layer7[0].conv[3].weight.sum(2), flat.features[17].conv[1][0].weight
    )
    torch.testing.assert_close(
        model.backbone.layer1[0].conv[3].weight[:, :, 0], flat.features[1].conv[1].weight
    )
    torch.testing.assert_close(model.backbone.layer7[0].conv[7].bias, flat.features[17].conv[3].bias)


def test_report_reads_as_one_line(tmp_path):
    text = str(
        load_weights(small(seed=2), saved(tmp_path, kenshohara(small(classes=7))), new_classifier=True)
    )
    assert "120 tensors used" in text
    assert "2 keep their initial values (classifier.weight, classifier.bias)" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "where",
    [
        "state_dict_ema",
        "ema_state_dict",
        "model_ema",
        "ema",
        "EMA",
        "averaged_model",
        "swa_state_dict",
        "ema-model",
    ],
)
def test_averaged_weights_are_taken_when_they_are_asked_for(tmp_path, capsys, where):
    raw, averaged, model = small(seed=1), small(seed=2), small(seed=3)
    for kept in (averaged.state_dict(), {"module": averaged.state_dict(), "decay": 0.9}):
        torch.save({"state_dict": raw.state_dict(), where: kept, "ema_decay": 0.9}, tmp_path / "both.pth")
        load_weights(model, tmp_path / "both.pth")
        assert same(raw, model)
        assert (
            f"the averaged weights in `{where}` are not read; to use them, set `train.init_averaged"
            in capsys.readouterr().err
        )
        load_weights(model, tmp_path / "both.pth", averaged=True)
        assert same(averaged, model)
        torch.save({where: kept, "optimizer": {"lr": 0.1}}, tmp_path / "alone.pth")
        load_weights(small(seed=3), tmp_path / "alone.pth")
        assert "because the file has no other weights" in capsys.readouterr().err


def test_averaged_weights_among_the_others_and_absent_ones(tmp_path, capsys):
    raw, averaged, model = small(seed=1), small(seed=2), small(seed=3)
    for plain, mean in (("", "ema."), ("model.", "ema_model."), ("", "averaged_model.module.")):
        names = {f"{plain}{key}": value for key, value in raw.state_dict().items()}
        names |= {f"{mean}{key}": value for key, value in averaged.state_dict().items()}
        file = saved(tmp_path, names)
        report = str(load_weights(model, file))
        assert same(raw, model)
        assert mean.split(".")[0] in capsys.readouterr().err + report
        load_weights(model, file, averaged=True)
        assert same(averaged, model)
    torch.save({"state_dict": raw.state_dict(), "ema": 0.9}, tmp_path / "raw.pth")
    with pytest.raises(CheckpointError, match="expected averaged weights"):
        load_weights(model, tmp_path / "raw.pth", averaged=True)
    assert capsys.readouterr().err == ""
    load_weights(model, tmp_path / "raw.pth")
    assert same(raw, model)
    assert capsys.readouterr().err == ""


def test_averaged_weights_of_a_run_of_ours(tmp_path):
    raw, averaged, model = small(seed=1), small(seed=2), small(seed=3)
    write_model(tmp_path / "last", raw, {})
    torch.save({"holds": "trained", "other": averaged.state_dict()}, tmp_path / "last" / "state.pt")
    load_weights(model, tmp_path / "last")
    assert same(raw, model)
    load_weights(model, tmp_path / "last", averaged=True)
    assert same(averaged, model)
    torch.save({"holds": "averaged", "other": averaged.state_dict()}, tmp_path / "last" / "state.pt")
    load_weights(model, tmp_path / "last", averaged=True)
    assert same(raw, model)
    torch.save({"holds": "trained", "other": None}, tmp_path / "last" / "state.pt")
    with pytest.raises(
        CheckpointError, match=r"the run has no averaged weights, because it was trained without `train\.ema`"
    ):
        load_weights(model, tmp_path / "last", averaged=True)
