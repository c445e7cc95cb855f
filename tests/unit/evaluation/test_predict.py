from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn

from two_stream.config.schema import EvaluateOptions
from two_stream.data.clips.views import evaluation_clips
from two_stream.errors import ScoreError, SettingsError
from two_stream.evaluation.scoring.score import aggregate_views, score_videos
from two_stream.evaluation.scoring.views import (
    assemble_clips,
    crop_views,
    describe_views,
    protocol_slug,
    views_of_clip,
)
from two_stream.types import InputSpec, VideoViews

CPU = torch.device("cpu")
SPEC = InputSpec("rgb", 8, 1, (24, 32), 16, (0.0, 1.0), (0.5,) * 3, (0.5,) * 3)


class Mean(nn.Module):
    """Logits that name the clip: its mean pixel, its negative and a constant; remembers the batches."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.modes: list[bool] = []

    def forward(self, clip):
        assert clip.dtype == torch.uint8
        self.sizes.append(len(clip))
        self.modes.append(self.training)
        value = clip.double().mean(dim=(1, 2, 3, 4)) / 10
        return torch.stack([value, -value, torch.ones_like(value)], dim=1)


def video(name, values, label=0):
    """A video with one clip, of two equal frames, per value."""
    frames = torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 2, 2, 3)
    rows = torch.arange(len(values))[:, None].expand(-1, 2)
    return VideoViews(name, label, frames, rows, [(0, 0, 2, 2)], [False])


def score(videos, model=None, **options):
    return score_videos(model or Mean(), videos, device=CPU, **options)


def test_mean_of_logits_and_of_probabilities_by_hand():
    views = np.asarray([[2.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(aggregate_views(views), [1.0, 0.5])
    mean = (softmax([2.0, 0.0]) + softmax([0.0, 1.0])) / 2
    np.testing.assert_allclose(np.exp(aggregate_views(views, "probabilities")), mean)
    np.testing.assert_allclose(softmax(aggregate_views(views, "probabilities")), mean)
    assert np.isfinite(aggregate_views(np.asarray([[0.0, 5000.0]]), "probabilities")).all()
    with pytest.raises(SettingsError, match="unknown aggregate 'median'"):
        aggregate_views(views, "median")


@pytest.mark.parametrize("batch_views", [1, 3, 4, 100])
def test_batches_are_full_and_views_return_to_their_videos(batch_views):
    model = Mean()
    model.train()
    found = score(
        [video("a", [10, 20, 30], 1), video("b", [40]), video("c", [5, 7, 9, 11, 13, 15, 17], 2)],
        model,
        batch_views=batch_views,
        keep_views=True,
    )
    assert found.ids == ["a", "b", "c"]
    assert found.labels.tolist() == [1, 0, 2]
    assert found.counts.tolist() == [3, 1, 7]
    np.testing.assert_allclose(found.logits, [[2, -2, 1], [4, -4, 1], [1.1, -1.1, 1]], rtol=1e-6)
    expected = [1, 2, 3, 4, 0.5, 0.7, 0.9, 1.1, 1.3, 1.5, 1.7]
    np.testing.assert_allclose(found.view_logits[:, 0], expected, rtol=1e-6)
    full, rest = divmod(11, batch_views)
    assert model.sizes == [batch_views] * full + ([rest] if rest else [])
    assert model.modes == [False] * len(model.sizes)  # scored in evaluation mode …
    assert model.training  # … and put back


def test_reading_runs_at_most_one_batch_ahead():
    taken = []

    def loader():
        for place in range(6):
            taken.append(place)
            yield video(str(place), [place, place])

    class Watch(Mean):
        def forward(self, clip):
            seen.append(len(taken))
            return super().forward(clip)

    seen: list[int] = []
    score(loader(), Watch(), batch_views=4)
    assert seen == [2, 4, 6]


def test_views_are_dropped_unless_wanted_and_no_video_gives_an_empty_result():
    assert score([video("a", [1])]).view_logits is None
    assert score([]).ids == []


def test_what_cannot_be_scored_is_named():
    with pytest.raises(ScoreError, match="a: the video occurs twice"):
        score([video("a", [1]), video("a", [2])])
    empty = replace(video("hollow", [1]), boxes=[], flips=[])
    with pytest.raises(ScoreError, match="hollow: the video has no views"):
        score([empty])

    class Broken(Mean):
        def forward(self, clip):
            logits = super().forward(clip)
            logits[logits[:, 0] == 3.0] = float("nan")
            return logits

    with pytest.raises(ScoreError, match="bad: the logits are not finite"):
        score([video("good", [10]), video("bad", [20, 30])], Broken())
    with pytest.raises(SettingsError, match="unknown aggregate"):
        score([video("a", [1])], aggregate="best")


def test_clips_follow_the_options():
    assert evaluation_clips(EvaluateOptions(views="single"), SPEC, 12) == [list(range(3, 11))]
    assert len(evaluation_clips(EvaluateOptions(views="multi"), SPEC, 40)) == 5
    assert len(evaluation_clips(EvaluateOptions(views="uniform", num_clips=4), SPEC, 40)) == 4
    starts = [clip[0] for clip in evaluation_clips(EvaluateOptions(views="sliding", step=10), SPEC, 40)]
    assert starts == [1, 11, 21, 31, 33]
    assert evaluation_clips(EvaluateOptions(views="multi"), SPEC, 3) == [[1, 2, 3, 1, 2, 3, 1, 2]]
    assert evaluation_clips(EvaluateOptions(views="multi"), SPEC, 9, "paper") == [list(range(1, 9))]
    assert [len(crop_views(c, SPEC)) for c in ("center", "three", "ten")] == [1, 3, 10]


def test_protocol_is_named_and_no_two_share_a_file_name():
    assert describe_views(EvaluateOptions(precision="fp32")) == "multi-clip × ten-crop, mean of logits"
    paper = EvaluateOptions(views="single", crops="center", precision="fp32")
    assert describe_views(paper, "paper").endswith("published frame choice")
    assert describe_views(EvaluateOptions(views="uniform", num_clips=3)).startswith("3 uniform clips ×")
    assert describe_views(EvaluateOptions(views="sliding", step=4)).startswith(
        "sliding window every 4 frames"
    )
    assert protocol_slug(EvaluateOptions(precision="fp32")) == "multi_ten_logits"
    views = [("single", 10, None), ("multi", 10, None), ("uniform", 3, None), ("uniform", 10, None)]
    options = [
        EvaluateOptions(
            views=kind, num_clips=clips, step=step, crops=crops, aggregate=mean, precision=precision
        )
        for kind, clips, step in [*views, ("sliding", 10, 3), ("sliding", 10, None)]
        for crops in ("center", "ten")
        for mean in ("logits", "probabilities")
        for precision in ("fp32", "bf16")
    ]
    assert len({protocol_slug(entry) for entry in options}) == len(options)
    assert len({describe_views(entry) for entry in options}) == len(options)


def test_ten_crops_of_a_clip_are_its_boxes():
    frames = np.random.default_rng(0).integers(0, 256, (4, 24, 32, 3), dtype=np.uint8)
    views = crop_views("ten", SPEC)
    made = views_of_clip(frames, views, SPEC).views
    assert made.shape == (10, 3, 4, 16, 16)
    np.testing.assert_array_equal(made[1].permute(1, 2, 3, 0), frames[:, :16, :16])
    np.testing.assert_array_equal(made[5].permute(1, 2, 3, 0), frames[:, 4:20, 8:24][:, :, ::-1])


def test_assemble_streams_clips_and_forgets_what_is_done():
    clips = [[1, 2, 3], [3, 4, 5], [2, 2, 1], [9, 10, 9]]
    alive: list[int] = []

    def frames():
        for number in range(1, 50):
            alive.append(number)
            yield number, np.asarray([number])

    made = [[int(frame[0]) for frame in clip] for clip in assemble_clips(clips, frames())]
    assert made == [[2, 2, 1], [1, 2, 3], [3, 4, 5], [9, 10, 9]]
    assert alive[-1] == 10  # nothing is read past the last frame needed
    short = list(assemble_clips([[1, 2], [3, 4]], ((n, np.asarray([n])) for n in (1, 2, 3))))
    assert len(short) == 1


def test_sigmoids_of_several_classes_are_averaged():
    views = np.random.default_rng(5).normal(scale=3.0, size=(7, 4))
    found = aggregate_views(views, "sigmoids")
    np.testing.assert_allclose(1 / (1 + np.exp(-found)), (1 / (1 + np.exp(-views))).mean(axis=0), rtol=1e-12)
    assert np.isfinite(aggregate_views(np.asarray([[900.0, -900.0], [800.0, -800.0]]), "sigmoids")).all()
