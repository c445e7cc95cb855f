"""Published files of every format are read, what is in them never runs, and what is no checkpoint is named."""

import argparse
import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from two_stream.errors import CheckpointError
from two_stream.pretrained.reading import Dtype, Name, Numbers, Refused, read_caffe2, read_state

WEIGHT = torch.arange(24.0).reshape(2, 3, 4)


def refused(path: Path) -> str:
    """Read a file that must not be read, and return the one line of complaint after its name."""
    with pytest.raises(CheckpointError) as caught:
        read_state(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


class Bomb:
    """Leaves a file behind when it is unpickled with anything but care."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


# -- PyTorch files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "inner", ["state_dict", "model_state_dict", "model_state", "model", "net", "weights"]
)
def test_weights_are_found_beside_the_trainers_bookkeeping(tmp_path, legacy, inner):
    path = tmp_path / "checkpoint.pyth"
    content = {
        "epoch": np.int64(196),
        "best_prec1": np.float64(77.25),
        "history": np.arange(3.0),
        inner: {"module.s1.weight": WEIGHT, "module.steps": torch.tensor(7)},
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
        "cfg": "MODEL:\n  ARCH: slowfast\n",
        "args": argparse.Namespace(lr=0.1, arch="slowfast"),
    }
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    state = read_state(path)
    assert list(state) == ["s1.weight", "steps"]
    assert torch.equal(state["s1.weight"], WEIGHT)
    assert state["steps"].item() == 7


def test_a_state_dict_of_numpy_arrays_becomes_tensors(tmp_path):
    array = np.arange(6, dtype=">f4").reshape(2, 3)
    torch.save({"state_dict": {"a": array, "b": np.asfortranarray(array)}}, tmp_path / "n.pth")
    state = read_state(tmp_path / "n.pth")
    assert torch.equal(state["a"], torch.arange(6.0).reshape(2, 3))
    assert torch.equal(state["b"], state["a"])


def test_old_numpy_spelling_and_text_of_python_2(tmp_path):
    """`numpy.core`, and a scalar whose bytes Python 2 wrote as text that is no UTF-8."""
    number = np.float64(-1.7).tobytes()
    scalar = (
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbU\x08" + number + b"tR"
    )
    torch.save({"state_dict": {"a": WEIGHT}, "best": "HERE"}, tmp_path / "new.pth")
    pickled = b"X\x04\x00\x00\x00HERE"
    old = tmp_path / "old.pth"
    with zipfile.ZipFile(tmp_path / "new.pth") as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            assert name != "new/data.pkl" or pickled in data
            target.writestr(name, data.replace(pickled, scalar))
    assert torch.equal(read_state(old)["a"], WEIGHT)


def test_torch_files_that_hold_objects_are_refused(tmp_path):
    torch.save(
        {"state_dict": {"a": WEIGHT}, "names": np.array(["x", None], dtype=object)}, tmp_path / "o.pth"
    )
    assert refused(tmp_path / "o.pth").startswith(
        "rejected, the file contains an array of objects; expected numbers"
    )
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")
    message = refused(tmp_path / "whole.pth")
    assert "the file contains the Python object `torch.nn.modules.linear.Linear`" in message
    assert message.endswith("save its `state_dict()` again with torch.save")


def test_protocol_4_says_what_to_do(tmp_path):
    torch.save({"state_dict": {"a": WEIGHT}}, tmp_path / "p4.pth", pickle_protocol=4)
    assert "pickle protocol 4" in refused(tmp_path / "p4.pth")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["weight", "beside"])
def test_a_malicious_checkpoint_is_refused_and_nothing_runs(tmp_path, legacy, place):
    marker, path = tmp_path / "PWNED", tmp_path / "model_best.pth.tar"
    content = {"state_dict": {"a": WEIGHT}, "epoch": 3}
    if place == "weight":
        content["state_dict"]["a"] = Bomb(marker)
    else:
        content["best_prec1"] = Bomb(marker)
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert refused(path).startswith("rejected, the file contains the Python object `posix.system`")
    assert not marker.exists()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_truncated_torch_files(tmp_path, legacy):
    path = tmp_path / "cut.pth"
    torch.save({"a": torch.randn(500)}, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for keep in (0.95, 0.5, 0.02):
        path.write_bytes(whole[: int(len(whole) * keep)])
        assert "damaged" in refused(path)


# -- Caffe2 files ----------------------------------------------------------------------------------------------------


def blobs() -> dict[str, object]:
    rng = np.random.default_rng(0)
    return {
        "conv1_w": rng.normal(size=(4, 3, 1, 7, 7)).astype(np.float32),
        "res2_0_branch2a_bn_rm": rng.normal(size=4).astype(np.float64),
        "conv1_w_momentum": np.zeros((4, 3, 1, 7, 7), np.float32),
        "lr": np.array([0.1], np.float32),
        "model_iter": np.array([5], np.int64),
        "labels": np.array([1, 2], np.int64),
        "comment": "trained by hand",
    }


@pytest.mark.parametrize("protocol", range(6))
def test_caffe2_files_of_every_protocol(tmp_path, protocol):
    path = tmp_path / "model_best.pth.tar"  # the content tells, not the name
    path.write_bytes(pickle.dumps({"blobs": blobs(), "cfg": "x"}, protocol=protocol))
    state = read_state(path)
    assert list(state) == ["conv1_w", "res2_0_branch2a_bn_rm"]
    for name, tensor in state.items():
        assert torch.equal(tensor, torch.from_numpy(blobs()[name])), name
        tensor += 1.0  # owns its memory


def python2(name: bytes, shape: bytes, data: bytes, text: bool) -> bytes:
    """An array as Python 2's numpy pickled it: bytes as a string, of protocol 0 or of protocol 2."""
    if text:
        quoted = repr(data)[1:].encode()
        return (
            b"(dp1\nS'blobs'\np2\n(dp3\nS'" + name + b"'\np4\ncnumpy.core.multiarray\n_reconstruct\np5\n"
            b"(cnumpy\nndarray\np6\n(I0\ntp7\nS'b'\np8\ntp9\nRp10\n(I1\n("
            + shape
            + b"tp11\ncnumpy\ndtype\np12\n"
            b"(S'f4'\np13\nI0\nI1\ntp14\nRp15\n(I3\nS'<'\np16\nNNNI-1\nI-1\nI0\ntp17\nbI00\nS"
            + quoted
            + b"\n"
            b"p18\ntp19\nbss."
        )
    long = struct.pack("<I", len(data))
    return (
        b"\x80\x02}q\x01U\x05blobsq\x02}q\x03U" + bytes([len(name)]) + name + b"q\x04cnumpy.core.multiarray\n"
        b"_reconstruct\nq\x05cnumpy\nndarray\nq\x06K\x00\x85U\x01b\x87Rq\x07(K\x01(" + shape + b"tcnumpy\ndtype\n"
        b"q\x08U\x02f4K\x00K\x01\x87Rq\x09(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + long + data + b"tbss."
    )  # fmt: skip


@pytest.mark.parametrize("text", [False, True], ids=["protocol 2", "protocol 0"])
def test_caffe2_files_of_python_2(tmp_path, text):
    values = np.linspace(-2, 2, 80, dtype="<f4").reshape(2, 40)
    shape = b"I2\nI40\n" if text else b"K\x02K\x28"
    path = tmp_path / "SLOWFAST_8x8_R50.pkl"
    path.write_bytes(python2(b"t_conv1_w", shape, values.tobytes(), text))
    state = read_state(path)
    assert list(state) == ["t_conv1_w"]
    np.testing.assert_array_equal(state["t_conv1_w"].numpy(), values)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_bomb_in_a_caffe2_file_never_goes_off(tmp_path, protocol):
    marker, path = tmp_path / "PWNED", tmp_path / "SLOWFAST_8x8_R50.pkl"
    path.write_bytes(pickle.dumps({"blobs": {**blobs(), "pred_w": Bomb(marker)}}, protocol=protocol))
    assert refused(path).startswith("rejected, the file contains the Python object `posix.system`")
    assert not marker.exists()


HOSTILE = {
    "eval": b"cbuiltins\neval\n(S'1'\ntR.",
    "attribute of an admitted module": b"cnumpy\nload\n(S'/etc/passwd'\ntR.",
    "dotted name": b"cnumpy\nndarray.tofile\n.",
    "array of a class": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntS'b'\ntR.",
    "called array": b"cnumpy\nndarray\n((I9\nttR.",
    "changed function": b"cnumpy.core.multiarray\n_reconstruct\n(dS'x'\nI1\nsb.",
    "objects": b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR.",
    "records": b"cnumpy\ndtype\n(S'V16'\nI0\nI1\ntR.",
    "shape without content": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I1000000\n"
    b"tcnumpy\ndtype\n(S'f4'\ntRI00\nS'abcd'\ntb.",
    "other encoding": b"c_codecs\nencode\n(S'x'\nS'zlib_codec'\ntR.",
    "outside": b"Psomewhere\n.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused(tmp_path, name):
    path = tmp_path / "x.pkl"
    path.write_bytes(b"(dS'blobs'\n(dS'a'\n" + HOSTILE[name][:-1] + b"ss.")
    assert refused(path).startswith("rejected, the file ")


def test_stand_ins_cannot_be_changed_by_a_file():
    name = Name("numpy.ndarray")
    with pytest.raises(Refused, match=r"the file tries to set the state of `numpy\.ndarray`"):
        name.__setstate__({"_make": os.system})
    with pytest.raises(AttributeError):
        name.other = 1
    with pytest.raises(Refused, match="records"):
        Dtype("f4").__setstate__((3, "<", (Dtype("f4"), (2,)), None, None, -1, -1, 0))
    with pytest.raises(Refused, match="12 bytes"):
        Numbers().fill((2,), Dtype("f4"), b"0" * 12, "C")


def test_truncated_and_other_pickles(tmp_path):
    path = tmp_path / "SLOWFAST_8x8_R50.pkl"
    whole = pickle.dumps({"blobs": blobs()}, protocol=2)
    for keep in (0.99, 0.5, 0.01):
        path.write_bytes(whole[: int(len(whole) * keep)])
        assert "damaged" in refused(path)
    path.write_bytes(pickle.dumps({"epoch": 3, "acc": 0.5}))
    assert (
        refused(path) == "found a pickle of a dictionary of epoch, acc, expected a Caffe2 model with `blobs`"
    )
    path.write_bytes(pickle.dumps([1, 2]))
    assert refused(path) == "found a pickle of list, expected a Caffe2 model with `blobs`"
    path.write_bytes(pickle.dumps({"blobs": {"lr": np.ones(1)}}))
    assert refused(path) == "expected tensors, found none"
    path.write_bytes(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60))  # a string of an exabyte
    assert "damaged" in refused(path)
    path.write_bytes(pickle.dumps({"blobs": {"a": np.zeros(2, np.complex64)}}))
    assert "expected numbers" in refused(path)


def test_caffe2_reader_alone_reports_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_caffe2(tmp_path / "none.pkl")


# -- files that are something else -------------------------------------------------------------------------------------


def archive(names: list[str], mode: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    return made.getvalue()


def zipped(**members: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as out:
        for name, data in members.items():
            out.writestr(name.replace("__", "/").replace("_DOT_", "."), data)
    return made.getvalue()


FOREIGN = {
    "html": (b"\n<!DOCTYPE html>\n<html><body>404</body></html>", "looks like an HTML page: the download link is dead"),
    "html after a comment": (b"<!-- x --><HTML lang='en'>", "looks like an HTML page"),
    "drive warning": (b"<html><head><title>Google Drive - Virus scan warning", "looks like an HTML page"),
    "s3": (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "looks like an XML error page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "a git-lfs pointer"),
    "tar": (archive(["a/b.jpg", "c.jpg"], "w"), "an ordinary tar archive (of a/b.jpg, c.jpg); unpack it first"),
    "oldest torch": (archive(["sys_info", "pickle", "storages"], "w"), "in the tar format of PyTorch's first"),
    "tar.gz": (archive(["a.jpg"], "w:gz"), "a gzip archive; unpack it first"),
    "gzip": (gzip.compress(b"x" * 99), "a gzip archive; unpack it first"),
    "zip": (zipped(readme_DOT_txt=b"x"), "found a zip archive with readme.txt, expected a checkpoint; unpack the"),
    "npz": (zipped(a_DOT_npy=b"x"), "found a numpy archive (.npz)"),
    "torchscript": (zipped(m__constants_DOT_pkl=b"", m__data_DOT_pkl=b""), "found a TorchScript program"),
    "npy": (b"\x93NUMPY\x01\x00v\x00", "a numpy array"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file (Keras, TensorFlow)"),
    "onnx": (b"\x08\x06\x12\x07pytorch\x1a\x051.4.0:\xd2\xd8\x01", "an ONNX model"),
    "tensorflow graph": (b"\n\x30\n\x06inputs\x12\x0bPlaceholder*\x0b\n\x05dtype", "a TensorFlow graph"),
    "tensorflow index": (bytes(90) + bytes.fromhex("57fb808b247547db"), "the index of a TensorFlow checkpoint"),
    "tensorflow pointer": (b'model_checkpoint_path: "model.ckpt-1"\n', "the index of a TensorFlow checkpoint"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(20), "a TensorFlow Lite model"),
    "torch7": (b"\x04\0\0\0\x01\0\0\0\x03\0\0\0V 1\x12\0\0\0nn.Sequential", "a Torch7 (Lua) file"),
    "text": (b"conv1.weight 0.1 0.2\n" * 9, "not a checkpoint (expected a safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_other_files_are_called_by_their_name(tmp_path, name):
    content, expected = FOREIGN[name]
    path = tmp_path / "model_best.pth.tar"
    path.write_bytes(content)
    assert refused(path).startswith(expected)
