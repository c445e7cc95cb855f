"""The interpreter of `torch.export` files: torch's own answers, and nothing but them, whatever a file holds."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.runs import changed
from two_stream.cli import main as cli
from two_stream.errors import CheckpointError
from two_stream.export import load, load_stream, read_card
from two_stream.export.archives import Aoti
from two_stream.export.graph import operators
from two_stream.export.program import Program

MODEL = "models/model.json"
Change = Callable[[Any], Any]


def with_member(source: Path, folder: Path, name: str, content: bytes = b"{}") -> Path:
    target = folder / "added.pt2"
    target.write_bytes(source.read_bytes())
    with zipfile.ZipFile(target, "a") as archive:
        root = archive.namelist()[0].split("/")[0]
        archive.writestr(name.replace("ROOT", root), content)
    return target


def nodes(model: Any) -> list[Any]:
    return model["graph_module"]["graph"]["nodes"]


def conv(model: Any) -> Any:
    return next(node for node in nodes(model) if "conv3d" in node["target"])


def given(model: Any, name: str) -> Any:
    return next(one["arg"] for one in conv(model)["inputs"] if one["name"] == name)


def edit(action: Callable[[Any], Any]) -> Change:
    def change(model: Any) -> Any:
        action(model)
        return model

    return change


def refuses(path: Path, source: Path, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        Program(path, read_card(source))
    assert "\n" not in str(caught.value)


def test_it_computes_what_torch_computes(pt2_file: Path) -> None:
    card = read_card(pt2_file)
    program = Program(pt2_file, card)
    theirs = torch.export.load(pt2_file).module(check_guards=False)
    for batch in (1, 2, 5):
        clip = torch.randint(0, 256, (batch, *card.inputs[0].shape[1:]), dtype=torch.uint8)
        with torch.inference_mode():
            assert torch.equal(program(clip)[0], theirs(clip))
    again = torch.randint(0, 256, (2, *card.inputs[0].shape[1:]), dtype=torch.uint8)
    assert torch.equal(program(again)[0], program(again)[0])


def test_no_operation_of_the_list_reads_files_or_runs_code() -> None:
    for target in operators("pt2"):
        assert target == "_operator.mul" or target.startswith("torch.ops.aten."), target
        assert "file" not in target, target


def test_sizes_that_would_never_be_computed_end(pt2_file: Path, tmp_path: Path) -> None:
    """Squared forty times over, a size of 32 has more digits than there are atoms."""

    def squares(model: Any) -> Any:
        name = model["graph_module"]["graph"]["inputs"][-1]["as_tensor"]["name"]

        def node(target: str, inputs: dict[str, Any], result: str) -> dict[str, Any]:
            given = [{"name": key, "arg": value, "kind": 1} for key, value in inputs.items()]
            made = [{"as_sym_int": {"as_name": result}}]
            return {"target": target, "inputs": given, "outputs": made, "metadata": {}}

        size = {"self": {"as_tensor": {"name": name}}, "dim": {"as_int": 3}}
        made = [node("torch.ops.aten.sym_size.int", size, "n0")]
        for place in range(40):
            last = {"as_sym_int": {"as_name": f"n{place}"}}
            made.append(node("_operator.mul", {"a": last, "b": last}, f"n{place + 1}"))
        nodes(model)[:0] = made
        return model

    refuses(
        changed(pt2_file, tmp_path, MODEL, squares),
        pt2_file,
        "the graph cannot be computed .a computed size is larger",
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: conv(m).update(target="torch.ops.aten.from_file.default"), "the operation .*from_file"),
        (lambda m: conv(m).update(target="torch.hub.load"), "the operation 'torch.hub.load'"),
        (lambda m: conv(m).update(target="_operator.methodcaller"), "the operation '_operator.methodcaller'"),
        (lambda m: conv(m).update(target="torch.ops.aten.conv3d.padding"), "the operation .*conv3d.padding"),
        (
            lambda m: conv(m).update(more=1),
            "the graph in .* is invalid at `graph_module.graph.nodes.*more`",
        ),
        (
            lambda m: given(m, "stride").update(as_ints=["1"]),
            "the graph in .* is invalid at `graph_module.*as_ints.0`",
        ),
        (
            lambda m: given(m, "stride").update(as_int=1),
            r"the argument 'stride' of .* has a type that is not allowed \(several\)",
        ),
        (
            lambda m: given(m, "input").update(as_tensor={"name": "absent"}),
            "the value 'absent' is used before",
        ),
        (lambda m: conv(m)["outputs"].append(conv(m)["outputs"][0]), "two values have the same name"),
        (lambda m: given(m, "padding").update(as_ints=[10**5] * 3), "values for one clip need [0-9,]+ bytes"),
        (lambda m: nodes(m).pop(), "the output .* is not computed by any operation"),
        (
            lambda m: m["graph_module"]["signature"]["input_specs"].reverse(),
            "the inputs of the graph are not in the order",
        ),
        (lambda m: m.update(x_compile_flags=["sh"]), "the graph in .* is invalid at `x_compile_flags`"),
    ],
)
def test_a_graph_that_says_anything_else_is_refused(
    change: Callable[[Any], Any], words: str, pt2_file: Path, tmp_path: Path
) -> None:
    refuses(changed(pt2_file, tmp_path, MODEL, edit(change)), pt2_file, words)


@pytest.mark.parametrize("folder", ["weights", "constants"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda entry: entry.update(use_pickle=True), "is stored as a pickle"),
        (lambda entry: entry.update(path_name="../../x"), "is stored as a pickle"),
        (
            lambda entry: entry["tensor_meta"].update(sizes=[{"as_int": 2**40}]),
            "bytes of tensor .* do not match its shape",
        ),
        (
            lambda entry: entry["tensor_meta"].update(sizes=[{"as_name": "s0"}]),
            "has an unsupported type or layout",
        ),
        (lambda entry: entry["tensor_meta"].update(dtype=9), "has an unsupported type or layout"),
        (
            lambda entry: entry["tensor_meta"].update(storage_offset={"as_int": 8}),
            "has an unsupported type or layout",
        ),
    ],
)
def test_a_tensor_of_another_form_is_refused(
    folder: str, change: Callable[[Any], Any], words: str, pt2_file: Path, tmp_path: Path
) -> None:
    def first(config: Any) -> Any:
        change(next(iter(config["config"].values())))
        return config

    refuses(changed(pt2_file, tmp_path, f"{folder}/model_{folder}_config.json", first), pt2_file, words)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ROOT/models/model.json", "the member 'models/model.json' occurs twice"),
        ("ROOT/MODELS/model.json", "the member 'graph/MODELS/model.json'"),
        ("ROOT/data/aotinductor/model/x_compile_flags.json", "the member '.*x_compile_flags.json'"),
        ("ROOT/data/weights/model.pt", "the member '.*weights/model.pt'"),
        ("other/models/model.json", "the member 'other/models/model.json'"),
        ("ROOT/models/../x", "the member"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_exports_do_not_have_is_refused(
    name: str, words: str, pt2_file: Path, tmp_path: Path
) -> None:
    refuses(with_member(pt2_file, tmp_path, name), pt2_file, words)


def test_names_and_structures_are_not_run(pt2_file: Path, tmp_path: Path) -> None:
    """What torch would paste into code, import or evaluate is a name here, or not looked at."""
    marker = tmp_path / "ran"
    code = f"x=__import__('pathlib').Path({str(marker)!r}).touch()"

    def rename(model: Any) -> Any:
        text = json.dumps(model)
        old = model["graph_module"]["graph"]["inputs"][-1]["as_tensor"]["name"]
        renamed = json.loads(text.replace(json.dumps(old), json.dumps(code)))
        renamed["guards_code"] = [code]
        for call in renamed["graph_module"]["module_call_graph"][:1]:
            call["signature"]["in_spec"] = json.dumps(
                [1, {"type": "__enum__", "context": json.dumps([code, "os"]), "children_spec": []}]
            )
        return renamed

    file = changed(pt2_file, tmp_path, MODEL, rename)
    card = read_card(pt2_file)
    clip = torch.randint(0, 256, (2, *card.inputs[0].shape[1:]), dtype=torch.uint8)
    assert torch.equal(Program(file, card)(clip)[0], Program(pt2_file, card)(clip)[0])
    assert not marker.exists()


def test_the_example_is_never_opened(pt2_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "changed.pt2"
    with zipfile.ZipFile(pt2_file) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            wanted = info.filename.endswith("sample_inputs/model.pt")
            new.writestr(info.filename, b"\x80\x04cos\nsystem\n" if wanted else old.read(info))
    Program(target, read_card(pt2_file))


def test_compressed_members_are_refused(pt2_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "changed.pt2"
    with zipfile.ZipFile(pt2_file) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    refuses(target, pt2_file, "the member .* is compressed")


def test_a_package_is_one_by_what_it_holds(pt2_file: Path, tmp_path: Path) -> None:
    for name in ("ROOT/data/AOTInductor/model/x.json", "ROOT/data/weights/x.so"):
        file = with_member(pt2_file, tmp_path, name)
        with pytest.raises(CheckpointError, match=r"the card says pt2, but the file contains machine code"):
            load(file)


def test_machine_code_needs_trust(pt2_file: Path, tmp_path: Path, world: Path, capsys: Any) -> None:
    """The card alone is read before that; nothing is loaded."""
    card = read_card(pt2_file).model_copy(update={"to": "aoti"})
    file = tmp_path / "model.pt2"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/data/aotinductor/model/model.so", b"\x7fELF")
    Aoti().seal(file, card)
    with pytest.raises(
        CheckpointError, match=r"an AOTInductor package contains machine code.*--trust .*model.pt2"
    ):
        load(file)
    with pytest.raises(CheckpointError, match=r"`trust=True`"):
        load_stream(file)
    video = str(world / "videos" / "left" / "v_g1.mp4")
    for args in (["evaluate", str(file)], ["predict", video, "--flow", str(file)]):
        assert cli(args) == 2
        assert "if you trust its author" in capsys.readouterr().err
    trusted = load(file, trust=True)
    with pytest.raises(CheckpointError, match="cannot be loaded on this machine"):
        trusted.model(torch.zeros(1, *card.inputs[0].shape[1:], dtype=torch.uint8))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["spec"].update(clip_length=10**9), "clips of 1000000000 frames"),
        (lambda c: c["spec"].update(clip_length="many"), r"`spec.clip_length`"),
        (lambda c: c["spec"].update(resize=[10**6, 32]), r"images of \(1000000, 32\)"),
        (lambda c: c["spec"].update(crop=[64, 64]), "cut to"),
        (lambda c: c["spec"].update(segments=3), "4 frames of 3 segments"),
        (lambda c: c["spec"].update(std=[0.0, 1.0]), r"std \(0.0, 1.0\)"),
        (lambda c: c["spec"].update(mean=[0.5]), "mean"),
        (lambda c: c["spec"].update(modality="sound"), r"`spec.modality`"),
        (lambda c: c["spec"].pop("stride"), r"`spec.stride`"),
        (lambda c: c.update(class_names=[]), "0 classes"),
        (lambda c: c.update(class_names=["a", "a", "b"]), "a duplicate class name"),
        (lambda c: c["class_names"].append("one more"), "outputs"),
        (lambda c: c["inputs"][0].update(shape=["batch", 2, 4, 10**9, 32]), "inputs"),
        (lambda c: c["inputs"].clear(), "inputs"),
        (lambda c: c["outputs"][0].update(dtype="float64"), "outputs"),
        (lambda c: c.update(kind="stream"), "the kind is stream, and streams are not described"),
    ],
)
def test_a_card_that_contradicts_itself_is_one_line(
    change: Callable[[Any], Any], words: str, pt2_file: Path, tmp_path: Path
) -> None:
    file = changed(pt2_file, tmp_path, "extra/two_stream.json", edit(change))
    with pytest.raises(CheckpointError, match=f"the card of the file is inconsistent: .*{words}") as caught:
        load(file)
    assert "\n" not in str(caught.value)
