"""What is not one of our exports, damaged, or could do more than compute: one line each, and nothing of it is run."""

import hashlib
import shutil
import sys
import zipfile

import pytest
import torch

from tests.helpers.runs import changed
from two_stream.cli import main as cli
from two_stream.errors import CheckpointError, SettingsError
from two_stream.export import load, read_card
from two_stream.export.card import KEY, UNSEALED


def _video(world):
    return str(world / "videos" / "left" / "v_g1.mp4")


def _one_line(capsys) -> str:
    found = capsys.readouterr().err
    assert found.count("\n") == 1, found
    return found


@pytest.mark.parametrize("place", [0.3, 0.6, 0.999])
@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_changed_byte_is_found(kind, place, request, tmp_path):
    source = request.getfixturevalue(f"{kind}_file")
    content = bytearray(source.read_bytes())
    content[int(place * len(content))] ^= 0xFF
    file = tmp_path / source.name
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged|cannot be read|without a Two-Stream card"):
        load(file)


@pytest.mark.parametrize("kind", [pytest.param("onnx", marks=pytest.mark.slow), "pt2"])
def test_a_cut_file_is_found(kind, request, tmp_path, world, capsys):
    source = request.getfixturevalue(f"{kind}_file")
    file = tmp_path / source.name
    file.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    capsys.readouterr()  # what the fixture printed
    assert cli(["predict", _video(world), "--rgb", str(file)]) == 2
    assert str(file) in _one_line(capsys)


def test_a_foreign_onnx_file_is_one_line(onnx_file, tmp_path, world, capsys):
    import onnx

    model = onnx.load(str(onnx_file))
    del model.metadata_props[:]
    file = tmp_path / "foreign.onnx"
    onnx.save(model, str(file))
    assert cli(["predict", _video(world), "--rgb", str(file)]) == 2
    assert (
        "found an ONNX file without a Two-Stream card, expected a file written by `two-stream export`"
        in _one_line(capsys)
    )
    assert cli(["evaluate", str(file)]) == 2
    assert "without a Two-Stream card" in _one_line(capsys)


def test_other_files_are_one_line(tmp_path, world, capsys):
    empty, text, archive = (tmp_path / name for name in ("empty.onnx", "text.onnx", "other.pt2"))
    empty.write_bytes(b"")
    text.write_text("hello")
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("a/b", "c")
    for file, words in (
        (empty, "is empty"),
        (text, "damaged, or not an ONNX file"),
        (archive, "without a Two-Stream card"),
    ):
        assert cli(["evaluate", str(file)]) == 2
        assert words in _one_line(capsys)
    assert cli(["evaluate", str(tmp_path / "absent.onnx")]) == 2
    assert "no such run folder" in _one_line(capsys)


def test_a_wrong_stream_is_one_line(pt2_file, world, capsys):
    assert cli(["predict", _video(world), "--rgb", str(pt2_file)]) == 2
    assert "this run uses flow; pass it with --flow" in _one_line(capsys)


def test_what_an_exported_file_cannot_do_is_one_line(pt2_file, world, capsys):
    flow = ["--flow", str(pt2_file)]
    assert cli(["predict", _video(world), *flow, "--attention", "a.png"]) == 2
    assert "an exported file returns only logits" in _one_line(capsys)
    assert cli(["predict", _video(world), *flow, "--device", "cuda"]) == 2
    assert "exported files run only on the CPU" in _one_line(capsys)
    assert cli(["evaluate", str(pt2_file), "--precision", "bf16"]) == 2
    assert "`evaluate.precision` is bf16, but the precision of an exported file is fixed" in _one_line(capsys)
    assert cli(["evaluate", str(pt2_file), "--compile"]) == 2
    assert "exported files cannot be compiled" in _one_line(capsys)


@pytest.mark.parametrize("name", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_said_before_anything_runs(name, world, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, name, None)
    assert cli(["export", str(world / "rgb")]) == 2
    assert f'{name}, which is not installed: pip install "two-stream[export]"' in _one_line(capsys)


def test_a_missing_compiler_is_said_before_anything_runs(world, monkeypatch, capsys):
    monkeypatch.setattr("two_stream.evaluation.scoring.network.shutil.which", lambda _: None)
    assert cli(["export", str(world / "rgb"), "--to", "aoti"]) == 2
    assert "no C++ compiler found (g++ or clang++); install a compiler, or export to pt2" in _one_line(capsys)


def test_wrong_words_of_the_command_are_one_line(world, tmp_path, capsys):
    rgb = str(world / "rgb")
    for args, words in (
        (["no_such_model"], "expected a run folder, a model folder or the name of a model"),
        ([rgb, "--to", "pt2", "--out", str(tmp_path)], "found a folder, expected a file"),
        ([rgb, "--to", "pt2", "--out", "a.onnx"], "expected the suffix .pt2 for format pt2; use a.pt2"),
        ([rgb, "--to", "pt2", "--int8"], "--int8 is supported only for ONNX, but --to is pt2"),
        ([rgb, "--stream", "--int8"], "--int8 and --stream cannot be combined"),
        ([rgb, "--int8", "--calibration-clips", "0"], "--calibration-clips is 0: expected 1 or more"),
    ):
        assert cli(["export", *args]) == 2, args
        assert words in _one_line(capsys)


def test_clips_of_another_shape_are_refused(pt2_file):
    with pytest.raises(SettingsError, match=r"expected uint8 \(batch, 2, 4, 32, 32\)"):
        load(pt2_file).model(torch.zeros(1, 2, 4, 16, 16, dtype=torch.uint8))


def test_a_newer_card_is_refused(pt2_file, tmp_path):
    file = changed(pt2_file, tmp_path, "extra/two_stream.json", lambda card: card | {"version": 2})
    with pytest.raises(CheckpointError, match="written by a newer version"):
        read_card(file)


def _resealed(source, target, change):
    """Change a graph and seal it as ours: the digest is no signature."""
    import onnx

    card, model = read_card(source), onnx.load(str(source))
    change(onnx, model)
    del model.metadata_props[:]
    text = card.model_copy(update={"content_sha256": UNSEALED}).model_dump_json()
    model.metadata_props.add(key=KEY, value=text)
    content = model.SerializeToString()
    digest = hashlib.sha256(content).hexdigest()
    target.write_bytes(content.replace(UNSEALED.encode(), digest.encode(), 1))
    return target


def _endless_loop(onnx, model):
    helper, kinds = onnx.helper, onnx.TensorProto
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info(name, kind, [])
            for name, kind in (("i", kinds.INT64), ("go", kinds.BOOL), ("x", kinds.FLOAT))
        ],
        [
            helper.make_tensor_value_info(name, kind, [])
            for name, kind in (("on", kinds.BOOL), ("y", kinds.FLOAT))
        ],
    )
    model.graph.initializer.append(helper.make_tensor("yes", kinds.BOOL, [], [True]))
    model.graph.initializer.append(helper.make_tensor("start", kinds.FLOAT, [], [0.0]))
    model.graph.node.append(helper.make_node("Loop", ["", "yes", "start"], ["never"], body=body))


def _external(onnx, model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "../../etc/passwd"), ("offset", "0"), ("length", "4")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def _foreign_operator(onnx, model):
    model.opset_import.add(domain="com.microsoft", version=1)
    model.graph.node[0].domain = "com.microsoft"


def _function(onnx, model):
    node = onnx.helper.make_node("Identity", ["a"], ["b"])
    model.functions.append(onnx.helper.make_function("mine", "f", ["a"], ["b"], [node], []))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_endless_loop, "a graph in Loop"),
        (_external, "weights in other files"),
        (_foreign_operator, "the operator com.microsoft::"),
        (_function, "the function 'f'"),
        (
            lambda onnx, model: setattr(model.graph.node[0], "op_type", "RandomNormal"),
            "the operator RandomNormal",
        ),
    ],
)
def test_a_resealed_onnx_file_that_could_do_more_is_refused(change, words, onnx_file, tmp_path):
    with pytest.raises(CheckpointError, match=words):
        load(_resealed(onnx_file, tmp_path / "model.onnx", change))


def test_the_bytes_that_were_checked_are_the_ones_that_run(onnx_file, tmp_path):
    """A file that changes after it was read is checked again."""
    file = shutil.copy(onnx_file, tmp_path / "model.onnx")
    run = load(file)
    _resealed(onnx_file, tmp_path / "model.onnx", _endless_loop)
    with pytest.raises(CheckpointError, match="a graph in Loop"):
        run.model(torch.zeros(1, *run.card.inputs[0].shape[1:], dtype=torch.uint8))
