"""The cache of decoded frames and flow: equal frames, whatever happens to its files."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from two_stream.config.schema import DataOptions
from two_stream.data.catalog import Record, load_record
from two_stream.data.clips.dataset import ClipDataset, make_source
from two_stream.data.demo import DemoOptions, encode, render
from two_stream.data.sources import cache as caching
from two_stream.data.sources.cache import CachedVideos, FrameCache
from two_stream.data.sources.files import VideoFiles
from two_stream.types import InputSpec, Modality, VideoRecord
from two_stream.video.frames import Region

SIZE = (24, 32)
BOX = (2, 3, 18, 27)
REGIONS = [
    None,
    Region((2, 3, 22, 31), (20, 28)),
    Region(BOX, (12, 12)),
    Region(BOX, (12, 12), direct=True),
]


@pytest.fixture
def filmed(tmp_path: Path) -> Record:
    (tmp_path / "videos").mkdir()
    for group in (1, 2):
        options = DemoOptions(min_frames=25, max_frames=25)
        encode(tmp_path / "videos" / f"rise_g{group}.mp4", render("rise", group, 1, options), "mpeg4")
    (tmp_path / "dataset.yaml").write_text("name: filmed\nvideos: videos\nshort_side: 36\nclasses: [a, b]\n")
    return load_record(tmp_path)


def plain(record: Record, modality: Modality = "rgb") -> VideoFiles:
    return VideoFiles(record, modality, "pyav", "dis")


def cached(record: Record, folder: Path, modality: Modality = "rgb", limit: int = 10**9) -> CachedVideos:
    return CachedVideos(plain(record, modality), FrameCache(folder, limit))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The videos that were opened to fill the cache."""
    found: list[Path] = []
    real = caching.open_video

    def open_video(path: Path, backend: str):
        found.append(path)
        return real(path, backend)

    monkeypatch.setattr(caching, "open_video", open_video)
    return found


@pytest.mark.parametrize("modality", ["rgb", "flow"])
@pytest.mark.parametrize("region", REGIONS, ids=["whole", "crop", "scaled", "direct"])
def test_frames_equal_those_of_the_video_and_are_decoded_once(filmed, tmp_path, opened, modality, region):
    source, files = cached(filmed, tmp_path / "cache", modality), plain(filmed, modality)
    for numbers in ([5, 2, 2], [2, 3, 5, 9]):
        assert (
            source.read("rise_g1", numbers, SIZE, region) == files.read("rise_g1", numbers, SIZE, region)
        ).all()
    assert len(opened) == 2
    later = cached(filmed, tmp_path / "cache", modality)
    assert (
        later.read("rise_g1", [9, 2, 3, 5], SIZE, region) == files.read("rise_g1", [9, 2, 3, 5], SIZE, region)
    ).all()
    assert len(opened) == 2, "a later run decodes nothing"
    assert not (later.read("rise_g2", [2], SIZE) == later.read("rise_g1", [2], SIZE)).all()


def test_other_videos_sizes_and_changed_files_are_kept_apart(filmed, tmp_path, opened):
    source = cached(filmed, tmp_path / "cache")
    before = source.read("rise_g1", [4], SIZE)
    assert source.read("rise_g1", [4], (12, 16)).shape == (1, 12, 16, 3)
    other = filmed.videos_root() / "rise_g2.mp4"
    other.replace(source.videos.path("rise_g1"))
    after = source.read("rise_g1", [4], SIZE)
    assert (after != before).any()
    assert (after == plain(filmed).read("rise_g1", [4], SIZE)).all()
    assert len(opened) == 3


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "foreign"])
def test_damaged_cache_files_are_computed_again(filmed, tmp_path, opened, damage):
    source = cached(filmed, tmp_path / "cache")
    expected = source.read("rise_g1", [1, 2, 3], SIZE)
    (file,) = (tmp_path / "cache").glob("*/*")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    changed = {"flipped": bytes(content), "cut": bytes(content[:-40]), "empty": b"", "foreign": b"x" * 900}
    file.write_bytes(changed[damage])
    for _ in range(2):
        assert (source.read("rise_g1", [1, 2, 3], SIZE) == expected).all()
    assert len(opened) == 2


def test_a_full_cache_keeps_what_it_has_and_says_so_once(filmed, tmp_path, opened, capsys):
    frame = SIZE[0] * SIZE[1] * 3
    source = cached(filmed, tmp_path / "cache", limit=2 * frame)
    files = plain(filmed)
    for _ in range(2):
        for numbers in ([1, 2], [3, 4]):
            assert (source.read("rise_g1", numbers, SIZE) == files.read("rise_g1", numbers, SIZE)).all()
    assert len(opened) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("reached its limit") == 1
    assert "`data.cache_gigabytes`" in said


def test_a_folder_that_cannot_be_written_only_warns(filmed, tmp_path, capsys):
    (tmp_path / "cache").write_text("a file")
    source = cached(filmed, tmp_path / "cache")
    assert (source.read("rise_g1", [1], SIZE) == plain(filmed).read("rise_g1", [1], SIZE)).all()
    assert "cannot be written" in capsys.readouterr().err


def test_many_writers_of_one_file(filmed, tmp_path):
    files = plain(filmed)
    expected = files.read("rise_g1", range(1, 26), SIZE)

    def work(seed: int) -> bool:
        source, draw = cached(filmed, tmp_path / "cache"), np.random.default_rng(seed)
        equal = True
        for _ in range(12):
            numbers = draw.integers(1, 26, 4).tolist()
            equal &= bool((source.read("rise_g1", numbers, SIZE) == expected[np.array(numbers) - 1]).all())
        return equal

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    (file,) = (tmp_path / "cache").glob("*/*")
    assert len(FrameCache(file.parent, 1).read(file.name, range(1, 26))) > 15


FILL = """
import sys
from pathlib import Path
import numpy as np
from two_stream.data.sources.cache import FrameCache

cache = FrameCache(Path(sys.argv[1]), 10**12)
print("ready", flush=True)
while True:
    for number in np.random.permutation(40) + 1:
        cache.write("how/video", {int(number): np.full((900, 900, 3), number, np.uint8)})
"""


@pytest.mark.integration
def test_writers_killed_at_any_moment_leave_only_whole_frames(tmp_path):
    draw, file = np.random.default_rng(0), tmp_path / "how" / "video"
    for _ in range(4):
        file.unlink(missing_ok=True)
        writers = [
            subprocess.Popen([sys.executable, "-c", FILL, str(tmp_path)], stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:
            time.sleep(draw.uniform(0.005, 0.03))
            writer.kill()
            writer.communicate()
        found = FrameCache(tmp_path, 1).read("how/video", range(1, 41))
        assert found
        for number, frame in found.items():
            assert frame.shape == (900, 900, 3)
            assert (frame == number).all()
        missing = {n: np.full((900, 900, 3), n, np.uint8) for n in range(1, 41) if n not in found}
        FrameCache(tmp_path, 10**12).write("how/video", missing)
        assert len(FrameCache(tmp_path, 1).read("how/video", range(1, 41))) == 40


def test_settings_choose_the_cache(filmed, tmp_path):
    source = make_source(filmed, "rgb", DataOptions(source="videos", cache=tmp_path / "cache"))
    assert isinstance(source, CachedVideos)
    with pytest.raises(ValueError, match="set `source: videos`, or remove `cache`"):
        DataOptions(cache=tmp_path)


@pytest.mark.parametrize("once", [False, True])
def test_training_clips_are_the_same(filmed, tmp_path, opened, once):
    augment = {"crop": "multiscale", "flip": 0.5}
    options = {"source": "videos", "augment": augment, "resize_once": once}
    records = [VideoRecord(name, 25, 0, name) for name in ("rise_g1", "rise_g2")]
    spec = InputSpec("rgb", 25, 1, SIZE, 16, (0.0, 255.0), (0.0,) * 3, (1.0,) * 3)
    for epoch in range(3):
        clips = []
        for cache in (None, tmp_path / "cache"):
            data = DataOptions(**options, cache=cache)
            dataset = ClipDataset(make_source(filmed, "rgb", data), records, spec, data, epoch=epoch)
            clips.append([dataset[number].clip for number in range(2)])
        assert all(torch.equal(*pair) for pair in zip(*clips, strict=True))
    assert len(opened) == 2, "every frame is decoded in the first epoch only"
