"""What a mirror does to labels: training, several labels per video, and the ten crops of an evaluation."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers.clip_batches import centred_batches, train_batches
from two_stream.config.schema import AugmentOptions, DataOptions, EvaluateOptions, Experiment, TrainOptions
from two_stream.data.catalog import Mirror, Record, mirror_note, mirror_of
from two_stream.data.clips.dataset import ClipDataset, ClipItem
from two_stream.data.clips.loader import collate_clips
from two_stream.data.clips.views import ViewDataset, ViewLoader, collate_views
from two_stream.data.sources.files import ClipSource
from two_stream.data.splits import load_part
from two_stream.evaluation.scoring.score import score_videos
from two_stream.evaluation.scoring.views import describe_views
from two_stream.types import InputSpec, VideoRecord
from two_stream.video.frames import Region

SPEC = InputSpec("rgb", 4, 1, (8, 12), 6, (0.0, 255.0), (0.0,) * 3, (1.0,) * 3)
CLASSES = ["left", "right", "wait"]
PAIRS = Mirror(labels=(1, 0, 2))
FLIP = AugmentOptions(crop="center", flip=1.0)


class Pictures(ClipSource):
    """Whole frames in memory, one array `(T, H, W, C)` per video."""

    def __init__(self, videos: dict[str, np.ndarray]) -> None:
        super().__init__("rgb")
        self.videos = videos

    def read(
        self, video_id: str, numbers: Sequence[int], resize: tuple[int, int], region: Region | None = None
    ) -> np.ndarray:
        frames = self.videos[video_id][[number - 1 for number in numbers]]
        if region is not None:
            y0, x0, y1, x1 = region.box
            frames = frames[:, y0:y1, x0:x1]
        return np.ascontiguousarray(frames)


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (9, 8, 12, 3), np.uint8)


def record(**facts: object) -> Record:
    return Record(name="swipes", classes=CLASSES, **facts)  # type: ignore[arg-type]


def item(
    videos: dict[str, np.ndarray],
    video: VideoRecord,
    mirror: Mirror | None = None,
    multi_label: int = 0,
    augment: AugmentOptions | None = FLIP,
) -> ClipItem:
    options = DataOptions() if augment is None else DataOptions(augment=augment)
    epoch = None if augment is None else 0
    data = ClipDataset(
        Pictures(videos), [video], SPEC, options, epoch=epoch, mirror=mirror, multi_label=multi_label
    )
    made = data[0]
    assert isinstance(made, ClipItem)
    return made


def test_a_mirrored_training_clip_has_the_class_of_its_mirror_image():
    videos = {"v": noise()}
    for label, mirrored in ((0, 1), (1, 0), (2, 2)):
        video = VideoRecord("v", 9, label)
        assert item(videos, video, mirror=PAIRS).label == mirrored
        assert item(videos, video).label == label
    centred = item(videos, VideoRecord("v", 9, 0), PAIRS, augment=None)
    assert centred.label == 0  # it is not mirrored


def test_nothing_is_mirrored_where_the_record_forbids_it():
    videos = {"v": noise()}
    video = VideoRecord("v", 9, 0)
    kept = item(videos, video, mirror=Mirror(allowed=False))
    flipped = item(videos, video)
    assert kept.label == 0
    assert torch.equal(kept.clip, flipped.clip.flip(-1))
    assert not torch.equal(kept.clip, flipped.clip)


def test_several_labels_become_one_row_and_are_mirrored_too():
    videos = {"a": noise(), "b": noise(1)}
    first = item(videos, VideoRecord("a", 9, 0, labels=(0, 2)), mirror=PAIRS, multi_label=3)
    second = item(videos, VideoRecord("b", 9, 2, labels=(2,)), mirror=PAIRS, multi_label=3)
    batch, failures = collate_clips([first, second])
    assert batch is not None
    assert not failures
    assert batch.labels.dtype == torch.float32
    assert batch.labels.tolist() == [[0, 1, 1], [0, 0, 1]]
    single, _ = collate_clips([item(videos, VideoRecord("a", 9, 2))])
    assert single is not None
    assert (single.labels.dtype, single.labels.tolist()) == (torch.int64, [2])


class Half(nn.Module):
    """Logits of the picture's left and right half and of its middle column: a mirror exchanges the first two."""

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        x = clip.double()
        left, right = x[..., :3].mean((1, 2, 3, 4)), x[..., 3:].mean((1, 2, 3, 4))
        # not mirror-symmetric, so that plain and mirrored crops differ and the exchange is seen
        return torch.stack([left + 0.3 * right, right, x[..., 2:4].mean((1, 2, 3, 4))], 1).float()


def scored(videos: dict[str, np.ndarray], mirror: Mirror, crops: str = "ten"):
    records = [VideoRecord(name, 9, 0) for name in videos]
    options = EvaluateOptions(views="uniform", num_clips=2, crops=crops)  # type: ignore[arg-type]
    data = ViewDataset(Pictures(videos), records, SPEC, options, mirror=mirror, chunk_bytes=5 * 8 * 12 * 3)
    loader = ViewLoader(data, [[i] for i in range(len(data))], collate_views, DataOptions(workers=0))
    return score_videos(Half(), loader, device=torch.device("cpu"), batch_views=7, keep_views=True)


def test_ten_crops_of_a_video_and_of_its_mirror_image_give_exchanged_logits():
    picture = noise()
    found = scored({"v": picture, "mirrored": picture[:, :, ::-1]}, PAIRS)
    video, image = found.logits
    np.testing.assert_allclose(image, video[[1, 0, 2]], rtol=1e-6)
    assert abs(video[0] - video[1]) > 0.1
    assert found.view_logits is not None
    first, second = found.view_logits[:20], found.view_logits[20:]
    # crop i of the video and crop i of the mirror image's own mirror image are the same pixels
    np.testing.assert_allclose(second[10:][:, [1, 0, 2]], first[:10], rtol=1e-6)
    np.testing.assert_allclose(first[10:][:, [1, 0, 2]], second[:10], rtol=1e-6)
    plain = scored({"v": picture, "mirrored": picture[:, :, ::-1]}, Mirror()).logits
    assert not np.allclose(plain[1], plain[0][[1, 0, 2]])  # without the exchange the two disagree


def test_without_mirror_images_five_crops_are_left_and_the_protocol_says_so():
    picture = noise()
    ten = scored({"v": picture}, Mirror())
    five = scored({"v": picture}, Mirror(allowed=False))
    assert (ten.counts.tolist(), five.counts.tolist()) == ([20], [10])
    assert ten.view_logits is not None
    np.testing.assert_array_equal(five.view_logits, ten.view_logits[:10])
    options = EvaluateOptions(precision="fp32")
    assert "five-crop (ten-crop without mirror images)" in describe_views(
        options, mirror=Mirror(allowed=False)
    )
    assert describe_views(options, mirror=PAIRS).endswith("mirrored classes exchanged")
    single = EvaluateOptions(crops="center")
    assert (
        describe_views(single, mirror=PAIRS)
        == describe_views(single, mirror=Mirror(allowed=False))
        == describe_views(single)
    )


def test_paper_mirrors_as_published_and_a_note_says_it():
    pairs = record(mirror_pairs=(("left", "right"),))
    never = record(mirror=False)
    assert mirror_of(pairs) == PAIRS
    assert mirror_of(never) == Mirror(allowed=False)
    assert mirror_of(record()) == mirror_of(pairs, "paper") == mirror_of(never, "paper") == Mirror()
    assert mirror_note(record(), "paper", True) is None
    assert mirror_note(pairs, "standard", True) is None
    assert mirror_note(pairs, "paper", False) is None
    assert "keep their class" in str(mirror_note(pairs, "paper", True))
    assert "`mirror: false`" in str(mirror_note(never, "paper", True))


@pytest.mark.parametrize("labels", [(0,), (1, 2), (0, 1)])
def test_mirroring_twice_gives_the_labels_back(labels):
    assert PAIRS.of(PAIRS.of(labels)) == labels


def test_the_loaders_take_the_facts_from_the_record(tiny: Record) -> None:
    """All clips mirrored: `jump` and `run` exchange, `sit down` stays; validation clips are as they are."""
    facts = {"mirror_pairs": (("jump", "run"),), "multi_label": True}
    several = tiny.model_copy(update=facts)
    videos = [VideoRecord(r.id, r.num_frames, r.label, labels=(r.label,)) for r in everything(tiny)]
    chosen = Experiment(
        data=DataOptions(workers=0, augment=AugmentOptions(flip=1.0)), train=TrainOptions(batch_size=4)
    )
    spec = InputSpec("rgb", 4, 1, (12, 16), 8, (0.0, 255.0), (0.0,) * 3, (1.0,) * 3)
    own = {r.id: r.label for r in videos}
    for batch in train_batches(chosen, spec, videos, several, epoch=0):
        expected = [several.mirror_labels[own[name]] for name in batch.ids]
        assert batch.labels.dtype == torch.float32
        assert batch.labels.argmax(1).tolist() == expected
        assert batch.labels.sum(1).tolist() == [1.0] * len(batch.ids)
    for batch in centred_batches(chosen, spec, videos, several):
        assert batch.labels.argmax(1).tolist() == [own[name] for name in batch.ids]
    paper = chosen.data.model_copy(update={"augment": AugmentOptions(flip=1.0, protocol="paper")})
    published = chosen.model_copy(update={"data": paper})
    for batch in train_batches(published, spec, videos, several, epoch=0):
        assert batch.labels.argmax(1).tolist() == [own[name] for name in batch.ids]


def everything(record: Record) -> list[VideoRecord]:
    return load_part(record, "rgb", 1, "train", selection="paper")
