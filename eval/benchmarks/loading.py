"""Training clips read per second by one worker: a plain loader against ours, from JPEG folders, shards and videos.

    python eval/benchmarks/loading.py [--quick] [--rounds 5]

64 frames of 340×256 JPEG (12 to 16 KiB each, as frames of compressed videos are) become 128×170 and then a random crop
of 112², mirrored or not. The plain loader is what people write: every image opened, resized, cropped and flipped with
PIL, made a float tensor, joined at the end. PIL averages when it shrinks, which the published code and ours do not, so
ours are compared pixel by pixel with a second plain loader, the same but for OpenCV's resize; its speed is told too.
The same frames as H.264 files are read without and with `data.cache`, which an earlier epoch has filled.
All run in one worker process of torch's DataLoader; what is timed is the time between the first and the last batch, so
that starting the worker does not count.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from common import Row, finish, flags
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import to_tensor

from two_stream.config.schema import AugmentOptions, DataOptions
from two_stream.data.catalog import Record, load_record
from two_stream.data.clips.dataset import ClipDataset, open_clips
from two_stream.data.clips.loader import clip_loader
from two_stream.data.demo import codec_here, encode
from two_stream.data.packing import PackOptions, pack
from two_stream.data.sources.files import FrameFolders
from two_stream.data.splits import load_part
from two_stream.types import InputSpec, VideoRecord

FRAMES, HEIGHT, WIDTH, QUALITY, BATCH = 72, 256, 340, 90, 4
SPEC = InputSpec("rgb", 64, 1, (128, 170), 112, (0.0, 255.0), (0.0,) * 3, (1.0,) * 3)
AUGMENT = AugmentOptions(crop="random")


def write_data(root: Path, videos: int) -> tuple[Record, float]:
    """Write frame folders of a moving texture; return their record and the mean size of a frame in KiB."""
    rng = np.random.default_rng(0)
    sizes = []
    (root / "videos").mkdir()
    for video in range(videos):
        folder = root / "frames" / f"v{video:03d}"
        folder.mkdir(parents=True)
        pictures = []
        scene = sum(
            cv2.resize(rng.normal(0, sigma, (size, size, 3)), (900, 900), interpolation=cv2.INTER_CUBIC)
            for size, sigma in ((12, 45), (60, 22), (200, 7))
        )
        scene = np.clip(scene + 120, 0, 255).astype(np.uint8)
        for frame in range(FRAMES):
            y, x = 40 + 3 * frame, 30 + 4 * frame
            path = folder / f"img_{frame + 1:05d}.jpg"
            picture = np.ascontiguousarray(scene[y : y + HEIGHT, x : x + WIDTH])
            cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
            sizes.append(path.stat().st_size)
            pictures.append(np.ascontiguousarray(picture[..., ::-1]))
        encode(root / "videos" / f"v{video:03d}.mp4", pictures, codec_here())
    listed = "".join(f"v{video:03d} {FRAMES} 0\n" for video in range(videos))
    (root / "train_rgb_split1.txt").write_text(listed)
    (root / "dataset.yaml").write_text(
        "name: speed\nframes: {rgb: frames}\nvideos: videos\nshort_side: null\nclasses: [x]\n"
    )
    return load_record(root), float(np.mean(sizes)) / 1024


class PlainDataset(Dataset[torch.Tensor]):
    """One float clip per video, image by image. Which frames, crop and flip is told, so that pixels can be compared."""

    def __init__(self, root: Path, drawn: ClipDataset, opencv: bool) -> None:
        self.root, self.drawn, self.opencv = root, drawn, opencv

    def __len__(self) -> int:
        return len(self.drawn)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return `(C, T, H, W)`, 0 to 1."""
        record, numbers, view, _ = self.drawn.planned(index)
        y0, x0, y1, x1 = view.box
        images = []
        for number in numbers:
            image = Image.open(self.root / record.id / f"img_{number:05d}.jpg").convert("RGB")
            size = (SPEC.resize[1], SPEC.resize[0])
            if self.opencv:
                image = Image.fromarray(cv2.resize(np.asarray(image), size))
            else:
                image = image.resize(size, Image.Resampling.BILINEAR)
            image = image.crop((x0, y0, x1, y1))
            if view.flip:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            images.append(to_tensor(image).unsqueeze(1))
        return torch.cat(images, dim=1)


def plain_loader(record: Record, records: list[VideoRecord], opencv: bool = False) -> Iterable[torch.Tensor]:
    """Return the batches of a plain loader, in the order of the list."""
    drawn = ClipDataset(FrameFolders(record, "rgb"), records, SPEC, DataOptions(augment=AUGMENT), epoch=1)
    dataset = PlainDataset(record.frames_root("rgb"), drawn, opencv)
    return DataLoader(dataset, batch_size=BATCH, num_workers=1, worker_init_fn=lambda _: cv2.setNumThreads(0))


def our_loader(record: Record, records: list[VideoRecord], **data: Any) -> Any:
    """Return the batches of the training loader."""
    options = DataOptions(workers=1, augment=AUGMENT, **data)
    return clip_loader(open_clips(options, SPEC, records, record, epoch=1), BATCH)


def rate(loader: Iterable[Any]) -> float:
    """Return clips per second between the first and the last batch."""
    stamps = [time.perf_counter() for _ in loader]
    return BATCH * (len(stamps) - 1) / (stamps[-1] - stamps[0])


def by_id(loader: Any) -> dict[str, torch.Tensor]:
    """Return the clips of our loader by video."""
    return {name: clip for batch in loader for name, clip in zip(batch.ids, batch.clips)}


def distance(
    record: Record, records: list[VideoRecord], opencv: bool, sides: dict[str, dict[str, Any]]
) -> dict[str, float]:
    """Return the mean distance of each of our ways from a plain loader, in grey levels."""
    plain = torch.cat(list(plain_loader(record, records, opencv)))
    theirs = {r.id: (clip * 255).round().short() for r, clip in zip(records, plain)}
    found = {}
    for name, data in sides.items():
        clips = by_id(our_loader(record, records, **data))
        gaps = [(clips[key].short() - theirs[key]).abs().float().mean().item() for key in theirs]
        found[name] = float(np.mean(gaps))
    return found


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    given = flags(__doc__, argv, threads=1)
    with tempfile.TemporaryDirectory() as folder:
        videos = 2 * BATCH if given.smoke else 16 if given.quick else 48
        record, kib = write_data(Path(folder), videos)
        pack(record, "rgb", Path(folder) / "shards", PackOptions(processes=0))
        records = load_part(record, "rgb", 1, "train", selection="paper")
        sides: dict[str, dict[str, Any]] = {
            "same pixels": {},
            "scaled decoding": {"scaled_decoding": True},
            "packed shards": {"source": "shards", "shards": f"{folder}/shards"},
        }
        films: dict[str, dict[str, Any]] = {
            "videos": {"source": "videos"},
            "cached videos": {"source": "videos", "cache": f"{folder}/cache"},
        }
        some = records[: 2 * BATCH]
        gaps, from_pil = (distance(record, some, opencv, sides) for opencv in (True, False))
        read, kept = (by_id(our_loader(record, records, **data)) for data in films.values())
        unequal = "" if all(torch.equal(read[key], kept[key]) for key in read) else "the cache changes pixels"
        ways = {**sides, **films}
        rates: dict[str, list[float]] = {name: [] for name in ("plain", "plain, OpenCV resize", *ways)}
        for turn in range(given.rounds + 1):
            turns = {"plain": rate(plain_loader(record, records))}
            turns["plain, OpenCV resize"] = rate(plain_loader(record, records, opencv=True))
            turns |= {name: rate(our_loader(record, records, **data)) for name, data in ways.items()}
            for name, value in turns.items():
                if turn:  # the first turn fills the page cache
                    rates[name].append(value)
    rows = []
    for name, title, target in (
        ("same pixels", "training clips read per second, same pixels", 2.2),
        ("scaled decoding", "the same with libjpeg's scaled decoding", 2.8),
        ("packed shards", "the same from packed shards", 6.0),
    ):
        wrong = name != "scaled decoding" and gaps[name] > 0
        note = f"mean distance from OpenCV's resize {gaps[name]:.2f}, from PIL's {from_pil[name]:.2f} grey levels"
        problem = "pixels differ from the plain loader with OpenCV's resize" if wrong else ""
        rows.append(row(title, "the plain loader", rates["plain"], rates[name], target, note, problem))
    plain = rates["plain, OpenCV resize"]
    against = "the plain loader with OpenCV's resize"
    rows += [row(name, against, plain, rates[name], None, "", "") for name in sides]
    for name in ("videos", "packed shards"):
        title = "training clips read per second from videos, from `data.cache` in later epochs"
        rows.append(row(title, name, rates[name], rates["cached videos"], None, "", unequal))
    return finish("loading", rows, given, frame_kib=round(kib, 1), videos=len(records), rates=rates)


def row(
    title: str,
    against: str,
    plain: list[float],
    ours: list[float],
    target: float | None,
    note: str,
    problem: str,
) -> Row:
    """Return a line of the table from the rates of neighbouring turns."""
    ratio = float(np.median([a / b for a, b in zip(ours, plain)]))
    return Row(
        title,
        against,
        float(np.median(plain)),
        float(np.median(ours)),
        ratio,
        target,
        note,
        unit="clips/s",
        problem=problem,
    )


if __name__ == "__main__":
    sys.exit(main())
