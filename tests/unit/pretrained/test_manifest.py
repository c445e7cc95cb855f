"""The list of published files: valid, honest about hashes, in step with the zoo and the layouts."""

from __future__ import annotations

import hashlib
import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from two_stream import zoo
from two_stream.errors import CheckpointError, SettingsError
from two_stream.pretrained.files.manifest import (
    STARTERS,
    Manifest,
    file_hashes,
    find_manifest,
    find_mismatch,
    read_manifest,
    recorded_sha256,
)
from two_stream.pretrained.layouts import LAYOUTS
from two_stream.recognizer import input_spec

ENTRY = """
entries:
  - name: small
    title: Small
    file: w.pth
    url: https://example.org/w.pth
    licence: MIT
    modality: rgb
    layout: none
    preprocessing: {frames: 8, size: 32, value_range: [0, 1], mean: [0.5], std: [0.5]}
    classes: {count: 3, set: three}
    source: here
"""


@pytest.fixture(scope="module")
def published(repository: Path) -> Manifest:
    return read_manifest(repository / "weights" / "manifest.yaml")


def written(folder: Path, text: str) -> Path:
    path = folder / "manifest.yaml"
    path.write_text(text)
    return path


def test_files_named_by_the_milestone_are_listed(published):
    files = {entry.file for entry in published.entries}
    assert files >= {
        "resnext-101-64f-kinetics.pth",
        "Flow_Kinetics_64f.pth",
        "rgb_imagenet.pt",
        "flow_imagenet.pt",
        "SLOWFAST_8x8_R50.pkl",
        "r2plus1d_34_clip32_ig65m_from_scratch-449a7af9.pth",
        "r2plus1d_34_clip8_ig65m_from_scratch-9bae36ae.pth",
        "r2plus1d_18-91a641e6.pth",
    }


def test_a_hash_in_a_files_name_is_checked_and_every_hash_has_its_source(published):
    for entry in published.entries:
        in_name = re.search(r"-([0-9a-f]{8})\.", entry.file)
        assert entry.sha256_prefix == (in_name[1] if in_name else None), entry.name
        known = entry.sha256 or entry.sha256_prefix or entry.git_blob
        assert bool(known) == bool(entry.hash_source), entry.name
        if entry.url is None and entry.package is None:
            assert not known, f"{entry.name}: a page has no hash to compare"


def test_direct_links_end_in_the_files_name_and_are_https(published):
    for entry in published.entries:
        for url in (entry.url, *entry.mirrors):
            if url is not None:
                assert urlsplit(url).scheme == "https"
                assert url.rsplit("/", maxsplit=1)[-1] == entry.file


def test_models_exist_and_agree_with_the_file(published):
    """An entry's network is in the zoo and sees clips as the file's did; an eight-frame file may start longer clips."""
    for entry in published.entries:
        if entry.model is None:
            assert entry.name.startswith(("torchvision-", "efficientnet-lite")), (
                f"{entry.name}: which network does it fit?"
            )
            continue
        record = zoo.find(entry.model)
        assert entry.model == record.name
        assert record.options.modality == entry.modality, entry.name
        spec, told = input_spec(record.options), entry.preprocessing
        assert spec.value_range == told.value_range, entry.name
        assert spec.crop == told.size, entry.name
        assert spec.clip_length >= told.frames, entry.name
        for ours, theirs in ((spec.mean, told.mean), (spec.std, told.std)):
            assert list(ours) == pytest.approx(list(theirs) * (len(ours) // len(theirs))), entry.name


def test_packages_are_those_that_a_training_looks_for(published):
    listed = {entry.name: entry.package for entry in published.entries if entry.package}
    assert listed == {
        name.removeprefix("tf_").replace("_", "-"): package for name, package in STARTERS.items()
    }


def test_layouts_are_those_that_are_recognised(published):
    known = {layout.name for layout in LAYOUTS}
    for entry in published.entries:
        assert entry.layout in known or entry.model is None, entry.name


def test_git_ignores_what_is_fetched(repository, published):
    names = [f"weights/{entry.file}{end}" for entry in published.entries for end in ("", ".part", ".sha256")]
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", *names],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode > 1:
        pytest.skip("no git checkout")
    assert done.stdout.split() == names


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("licence: MIT", "license: MIT"), "`entries.0.licence` is missing; add it"),
        (
            ("source: here", "source: here\n    licenze: MIT"),
            "unknown key `entries.0.licenze`",
        ),
        (("url: https://example.org/w.pth", ""), "`url` or `page` is required"),
        (("url: https:", "url: ftp:"), "`entries.0.url` is 'ftp://example.org/w.pth'"),
        (("file: w.pth", "file: ../w.pth"), "`entries.0.file` is '../w.pth'"),
        (("licence: MIT", "licence: MIT\n    sha256: abc"), "`entries.0.sha256` is 'abc'"),
        (
            ("licence: MIT", f"licence: MIT\n    sha256: {'a' * 64}\n    sha256_prefix: abcdef"),
            "`sha256` does not start with `sha256_prefix`",
        ),
        (("mean: [0.5]", "mean: [0.5, 0.5]"), "mean and std must have 1 or 3 values for rgb"),
        (
            ("source: here", "source: here\n" + ENTRY.split("entries:\n")[1]),
            "name 'small' is used by two entries",
        ),
    ],
)
def test_mistakes_in_a_manifest_are_one_line(tmp_path, change, complaint):
    path = written(tmp_path, ENTRY.replace(*change))
    with pytest.raises(SettingsError) as caught:
        read_manifest(path)
    assert complaint in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_finding_and_matching(tmp_path):
    manifest = read_manifest(written(tmp_path, ENTRY))
    assert manifest.find("small") is manifest.find("w.pth")
    assert [entry.name for entry in manifest.matching("SMA")] == ["small"]
    assert manifest.matching("sma?") == []
    with pytest.raises(SettingsError, match="with the name 'smal'; did you mean `small`"):
        manifest.find("smal")


def test_the_manifest_of_the_folder_comes_before_that_of_the_package(tmp_path, monkeypatch, repository):
    assert find_manifest(repository / "weights" / "manifest.yaml").is_file()
    monkeypatch.chdir(tmp_path)
    assert find_manifest() == repository / "weights" / "manifest.yaml"
    (tmp_path / "weights").mkdir()
    mine = written(tmp_path / "weights", ENTRY)
    assert find_manifest().resolve() == mine
    with pytest.raises(SettingsError, match=r"gone\.yaml: the manifest does not exist"):
        find_manifest(Path("gone.yaml"))


def test_hashes_and_their_comparison(tmp_path):
    file = tmp_path / "w.pth"
    file.write_bytes(b"hello\n")
    found = file_hashes(file)
    assert found["sha256"] == hashlib.sha256(b"hello\n").hexdigest()
    assert found["git_blob"] == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object
    manifest = read_manifest(written(tmp_path, ENTRY))
    (entry,) = manifest.entries
    assert find_mismatch(entry, file) is None
    assert find_mismatch(entry.model_copy(update={"size": 7}), file) == "expected 7 bytes, found 6"
    assert find_mismatch(entry.model_copy(update={"git_blob": found["git_blob"]}), file) is None


def test_a_note_that_is_no_hash_is_named(tmp_path):
    (tmp_path / "w.pth.sha256").write_text("oops")
    with pytest.raises(CheckpointError, match=r"w\.pth\.sha256: expected the format of sha256sum"):
        recorded_sha256(tmp_path / "w.pth")
    assert recorded_sha256(tmp_path / "other.pth") is None
