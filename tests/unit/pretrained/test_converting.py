"""Published checkpoint to a model folder of ours and back: the same tensors, bit for bit."""

from functools import partial

import pytest
import torch

from tests.helpers.models import network
from two_stream import load_run, load_weights
from two_stream.config.backbones import I3d, ResNet3d, SlowFast
from two_stream.config.heads import AverageHead, BertHead, NonLocalHead
from two_stream.errors import CheckpointError
from two_stream.pretrained import read_model, read_state, write_model
from two_stream.pretrained.converting import export_checkpoint, import_checkpoint, published_state
from two_stream.pretrained.layouts import LAYOUTS
from two_stream.pretrained.reading import read_metadata
from two_stream.recognizer import Recognizer

SMALL = {"input": {"clip_length": 16, "crop": 32}, "reduced_channels": 32}
EARLY = {"backbone": SlowFast(width=0.125, fusion="early"), "reduction": "frmb", "head": BertHead()}


def layout(name: str):
    return next(one for one in LAYOUTS if one.name.startswith(name))


small = partial(network, 5, **SMALL)


def published(tmp_path, model: Recognizer, name: str, **more: torch.Tensor):
    """What the published trainer would have saved on two GPUs."""
    state = published_state(model.state_dict(), layout(name)) | more
    path = tmp_path / "model_best.pth.tar"
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 9}, path)
    return path, state


CASES = [
    ("late_temporal SlowFast FRMB early", EARLY, {"model.head.projection.weight": torch.rand(400, 4)}),
    ("late_temporal I3D", {"backbone": I3d(width=0.125), "head": BertHead(normalize=True, heads=4)}, {}),
    ("resnet3d", {"backbone": ResNet3d(depth=10, width=0.125), "head": AverageHead()}, {}),
    (
        "late_temporal (",
        {"backbone": ResNet3d(depth=18, width=0.125), "reduction": "frmb", "head": NonLocalHead()},
        {},
    ),
]


@pytest.mark.parametrize(("name", "options", "more"), CASES, ids=[case[0] for case in CASES])
def test_there_and_back_every_tensor_is_the_same(tmp_path, name, options, more):
    source, state = published(tmp_path, small(**options), name, **more)
    report = import_checkpoint(source, tmp_path / "ours", small(**options).options)
    assert report.unused == list(more)
    names = export_checkpoint(tmp_path / "ours", tmp_path / "back.pth.tar")
    back = read_state(tmp_path / "back.pth.tar")
    assert set(back) == set(state) == set(names)
    for key, tensor in state.items():
        assert torch.equal(back[key], tensor), key


def test_the_folder_gives_the_logits_of_the_published_file(tmp_path):
    source, _ = published(tmp_path, small(**EARLY), "late_temporal SlowFast FRMB early")
    names = ["brush", "cartwheel", "catch", "chew", "clap"]
    import_checkpoint(source, tmp_path / "ours", small(**EARLY).options, names)
    model, meta = read_model(tmp_path / "ours")
    assert meta["class_names"] == names
    assert meta["source"]["file"] == "model_best.pth.tar"
    direct = Recognizer(model.options, 5).eval()
    load_weights(direct, source)
    clip = torch.randint(0, 256, (1, 3, 16, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(model(clip), direct(clip))


def test_the_folder_is_a_run_with_the_published_protocol(tmp_path):
    source, _ = published(tmp_path, small(**EARLY), "late_temporal SlowFast FRMB early")
    import_checkpoint(source, tmp_path / "my run", small(**EARLY).options, list("abcde"))
    run = load_run(tmp_path / "my run")
    assert run.class_names == list("abcde")
    settings = run.experiment
    assert settings.model == run.model.options
    assert (settings.train.selection, settings.data.sampling) == ("paper", "paper")
    assert (settings.evaluate.views, settings.evaluate.crops) == ("multi", "ten")


def test_doubled_names_that_differ_survive_the_way_back(tmp_path):
    """A file in which the two names of one parameter hold different tensors: the later counts, both come back."""
    _, state = published(tmp_path, small(**EARLY), "late_temporal SlowFast FRMB early")
    state["model.s5.pathway0_res2.conv1.weight"] = torch.full((16, 256, 1, 1, 1), 7.0)
    mapper = state.pop("mapper_slow.conv1.weight")
    torch.save({"state_dict": state | {"mapper_slow.conv1.weight": mapper}}, tmp_path / "a.pth.tar")
    import_checkpoint(tmp_path / "a.pth.tar", tmp_path / "ours", small(**EARLY).options)
    model, _ = read_model(tmp_path / "ours")
    assert torch.equal(model.state_dict()["backbone.layer4.slow.2.conv1.weight"], mapper)
    export_checkpoint(tmp_path / "ours", tmp_path / "back.pth.tar")
    assert (read_state(tmp_path / "back.pth.tar")["model.s5.pathway0_res2.conv1.weight"] == 7.0).all()


def test_a_trained_run_is_published_under_its_name(tmp_path):

    model = small(backbone=ResNet3d(depth=10, width=0.125), head=AverageHead())
    write_model(tmp_path / "run" / "best", model, {"class_names": list("abcde"), "epoch": 4})
    export_checkpoint(tmp_path / "run", tmp_path / "out.pth.tar")
    content = torch.load(tmp_path / "out.pth.tar", weights_only=True)
    assert content["epoch"] == 4
    assert torch.equal(content["state_dict"]["fc_action.weight"], model.classifier.weight)


def test_what_cannot_be_converted_is_said_in_one_line(tmp_path):
    model = small(backbone=ResNet3d(depth=10, width=0.125), head=AverageHead())
    source, _ = published(tmp_path, model, "resnet3d")

    def fails(match, call):
        with pytest.raises(CheckpointError, match=match) as raised:
            call()
        assert "\n" not in str(raised.value)

    fails(
        "expected 5 class names, .* found 2",
        lambda: import_checkpoint(source, tmp_path / "o", model.options, ["a", "b"]),
    )
    wrong = small(backbone=ResNet3d(depth=18, width=0.125), head=AverageHead()).options
    fails("missing", lambda: import_checkpoint(source, tmp_path / "o", wrong))
    assert not (tmp_path / "o").exists()
    torch.save({"state_dict": {"a": torch.zeros(2)}}, tmp_path / "strange.pth")
    fails(
        "unknown network", lambda: import_checkpoint(tmp_path / "strange.pth", tmp_path / "o", model.options)
    )
    import_checkpoint(source, tmp_path / "ours", model.options)
    fails("exists and is not empty", lambda: import_checkpoint(source, tmp_path / "ours", model.options))
    fails(
        "already a Two-Stream model",
        lambda: import_checkpoint(tmp_path / "ours", tmp_path / "o", model.options),
    )
    fails("not a Two-Stream model", lambda: export_checkpoint(source, tmp_path / "x.pth.tar"))
    odd = network(backbone=SlowFast(width=0.125), head=NonLocalHead())

    write_model(tmp_path / "odd", odd, {"class_names": list("abcde")})
    fails(
        "no published code supports this network",
        lambda: export_checkpoint(tmp_path / "odd", tmp_path / "x.pth.tar"),
    )
    assert not (tmp_path / "x.pth.tar").exists()
    assert read_metadata(tmp_path / "ours" / "best" / "model.safetensors")["format"] == "two_stream"
