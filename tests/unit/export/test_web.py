"""Folders of web pages: what they contain, what they refuse, and that nothing else is replaced or left half-written."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.helpers.runs import made_run
from two_stream.cli import main as cli
from two_stream.errors import ExportError
from two_stream.evaluation.runs.run import load_run
from two_stream.export import web
from two_stream.export.card import ExportCard
from two_stream.export.formats import read_card

PIN = re.compile(r"sha384-[A-Za-z0-9+/]{64}")


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """A folder with stand-ins for the files of ONNX Runtime Web, as in the unpacked package."""
    folder = tmp_path / "onnxruntime-web" / "dist"
    folder.mkdir(parents=True)
    for name in web.RUNTIME:
        (folder / name).write_text(f"stand-in for {name}")
    return folder.parent


@pytest.fixture
def card(onnx_file: Path) -> ExportCard:
    return read_card(onnx_file)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(argv: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """Return the last line of the error, without the name of the program."""
    assert cli(argv) == code
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("two-stream")]) == 1
    return lines[-1].removeprefix("two-stream: ")


def test_a_folder_has_everything_that_the_page_needs(
    world: Path, runtime: Path, tmp_path: Path, capsys
) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    out, example = tmp_path / "page", tmp_path / "clip.MP4"
    example.write_bytes(b"video")
    flags = ["--to", "web", "--out", str(out), "--runtime", str(runtime), "--example", str(example)]
    assert cli(["export", str(world / "rgb"), *flags]) == 0
    assert f"python -m http.server --directory {out}" in capsys.readouterr().out
    files = files_of(out)
    own = [name for name, content in files.items() if str(world).encode() in content]
    assert own == [], "a page is public, so it names no folder of this machine"
    assert set(files) == {
        *web._PAGES,
        *web.RUNTIME,
        "model.json",
        "model.onnx",
        "example.mp4",
        "checksums.json",
    }
    facts = json.loads(files["model.json"])
    run = load_run(world / "rgb")
    assert facts["class_names"] == run.class_names
    assert (facts["input"], facts["shape"], facts["views"]["resize"]) == ("clip", [1, 3, 4, 32, 32], [36, 48])
    assert facts["views"]["boxes"] == [[2, 0, 34, 32, False], [2, 8, 34, 40, False], [2, 16, 34, 48, False]]
    assert facts["live"] == {"resize": [36, 48], "boxes": [[2, 8, 34, 40, False]], "window": [0, 1, 2, 3]}
    assert (facts["clip"]["protocol"], facts["clip"]["length"], facts["example"]) == (
        "multi",
        4,
        "example.mp4",
    )
    for name, file in zip(web.RUNTIME, (facts["runtime"]["module"], facts["runtime"]["wasm"])):
        assert (file["url"], file["integrity"]) == (name, web.integrity_of(runtime / "dist" / name))
    page = files["index.html"].decode()
    assert "https:" not in page  # nothing is loaded from elsewhere
    assert "default-src 'none'" in page
    assert not any(
        b"@light@" in text or b"@policy@" in text for name, text in files.items() if name in web._PAGES
    )
    example.write_bytes(b"another video")  # an earlier page is replaced
    assert cli(["export", str(world / "rgb"), *flags]) == 0
    assert (out / "example.mp4").read_bytes() == b"another video"


def test_a_page_with_a_cdn_names_its_files_and_their_digests(
    world: Path, card: ExportCard, tmp_path: Path
) -> None:
    def export(path: Path) -> tuple[Path, ExportCard]:
        path.write_bytes(b"network")
        return path, card

    web.export_web(load_run(world / "rgb"), tmp_path / "page", export, "cdn")
    files = files_of(tmp_path / "page")
    assert not set(files) & set(web.RUNTIME)
    runtime = json.loads(files["model.json"])["runtime"]
    for name, file in zip(web.RUNTIME, (runtime["module"], runtime["wasm"])):
        assert file["url"] == f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{web.VERSION}/dist/{name}"
        assert PIN.fullmatch(file["integrity"])
    assert "connect-src 'self' https://cdn.jsdelivr.net;" in files["index.html"].decode()


def test_networks_that_the_page_cannot_run_are_refused(
    world: Path, runtime: Path, tmp_path: Path, capsys
) -> None:
    flags = ["--to", "web", "--runtime", str(runtime), "--out", str(tmp_path / "page")]
    line = refused(["export", str(world / "flow"), *flags], capsys)
    told = "a flow network cannot run in a browser, because the page computes no flow; use an RGB run"
    assert line == f"{world / 'flow'}: {told}"
    run = made_run(tmp_path / "spread")
    settings = run / "experiment.yaml"
    settings.write_text(
        settings.read_text()
        .replace("sampling: standard", "sampling: co3d")
        .replace("views: multi", "views: uniform")
    )
    assert "the page does not know the frame choice 'co3d-even'" in refused(
        ["export", str(run), *flags], capsys
    )
    assert not (tmp_path / "page").exists()


def test_other_files_are_never_replaced(world: Path, runtime: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "page"
    flags = ["export", str(world / "rgb"), "--to", "web", "--runtime", str(runtime), "--out", str(out)]
    out.write_text("notes")
    assert refused(flags, capsys).startswith(f"{out}: is a file; expected the folder")
    out.unlink()
    out.mkdir()
    for names in (["notes.txt"], ["index.html"], ["model.json", "index.html"]):
        for name in names:
            (out / name).write_text("{}")
        before = files_of(out)
        line = refused(flags, capsys)
        first = "notes.txt" if "notes.txt" in before else sorted(before)[0]
        told = (
            "this file is not part of an earlier page, so the folder is not replaced; choose another folder"
        )
        assert line == f"{out / first}: {told} with --out"
        assert files_of(out) == before
    (out / "model.json").write_text(json.dumps({"format": web.FORMAT}))
    assert "notes.txt" in refused(flags, capsys)
    run = made_run(tmp_path / "run")
    assert str(run / "best") in refused([*flags[:-1], str(run)], capsys)


@pytest.mark.parametrize("problem", [KeyboardInterrupt, ExportError("the file gives other logits")])
def test_nothing_is_left_after_an_interruption(world: Path, runtime: Path, tmp_path: Path, problem) -> None:
    out = tmp_path / "pages" / "page"

    def export(path: Path) -> tuple[Path, ExportCard]:
        path.write_bytes(b"half a network")
        raise problem

    with pytest.raises((KeyboardInterrupt, ExportError)):
        web.export_web(load_run(world / "rgb"), out, export, str(runtime))
    assert list(out.parent.iterdir()) == []


def test_an_absent_runtime_is_told(world: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TWO_STREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    flags = ["export", str(world / "rgb"), "--to", "web", "--out", str(tmp_path / "page")]
    line = refused([*flags, "--runtime", str(tmp_path)], capsys)
    assert f"--runtime {tmp_path}: expected npm, cdn, or a folder with ort.wasm.bundle.min.mjs and" in line
    assert "npm, which downloads onnxruntime-web@1.30.0, is not installed" in refused(flags, capsys, 1)
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code E404' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    line = refused(flags, capsys, 1)
    assert "npm cannot download onnxruntime-web@1.30.0 (code E404); unpack" in line
    npm.write_text("#!/bin/sh\necho changed > onnxruntime-web-1.30.0.tgz\n")
    with pytest.raises(ExportError, match="its SHA-512 differs"):
        web.find_runtime("npm")
    assert not (tmp_path / "page").exists()


def test_flags_of_pages_are_only_for_pages(world: Path, tmp_path: Path, capsys) -> None:
    line = refused(["export", str(world / "rgb"), "--runtime", "cdn"], capsys)
    assert line == "two-stream export: --runtime and --example are only for --to web; omit them"
    flags = [
        "--to",
        "web",
        "--runtime",
        "cdn",
        "--out",
        str(tmp_path / "page"),
        "--example",
        str(tmp_path / "no.mp4"),
    ]
    assert "no.mp4: expected a video file for browsers (.mp4, .m4v" in refused(
        ["export", str(world / "rgb"), *flags], capsys
    )


def test_the_window_of_a_camera_spreads_segments_as_a_stream_does() -> None:
    from two_stream.types import InputSpec

    def window(length: int, stride: int, segments: int) -> list[int]:
        return web._window(
            InputSpec("rgb", length, stride, (36, 48), 32, (0.0, 1.0), (0.0,) * 3, (1.0,) * 3, segments)
        )

    assert window(4, 2, 0) == [0, 2, 4, 6]
    assert window(4, 3, 4) == [0, 3, 6, 9]
    assert window(6, 1, 2) == [0, 1, 2, 4, 5, 6]
    assert window(6, 2, 2) == [0, 2, 4, 6, 8, 10]


@pytest.mark.network
def test_the_digests_are_those_of_the_package() -> None:
    assert re.fullmatch(r"sha512-[A-Za-z0-9+/]{86}==", web.PACKAGE)
    try:
        files = web.find_runtime("npm")
    except ExportError as error:
        pytest.skip(f"ONNX Runtime Web is not available: {error}")
    assert {name: web.integrity_of(path) for name, path in files.items() if path} == web.RUNTIME
