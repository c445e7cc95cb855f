"""Packed views score as views copied out, whatever the chunks and batches; videos broken off are left out."""

import copy
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from two_stream.config.backbones import MobileNetV2
from two_stream.config.model import InputOptions, ModelOptions
from two_stream.errors import ScoreError
from two_stream.evaluation.scoring.score import merge_scores, score_videos
from two_stream.evaluation.scoring.views import crop_views, views_of_clip
from two_stream.recognizer import create_model
from two_stream.types import VideoViews

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["rgb", "flow"])
def model(request):
    torch.manual_seed(0)
    options = ModelOptions(
        modality=request.param,
        backbone=MobileNetV2(width=0.2),
        input=InputOptions(clip_length=4, resize=(36, 48), crop=32),
    )
    made = create_model(options, 5).eval()
    for part in made.modules():
        if isinstance(part, torch.nn.BatchNorm3d):
            part.running_var.uniform_(0.5, 2.0)
            part.running_mean.uniform_(-0.1, 0.1)
    with torch.no_grad():
        made.classifier.weight.mul_(30)
    return made


def video(model, name: str, frames: int, seed: int, *, crops: str = "ten", signed: bool = True) -> VideoViews:
    """A video of noise, a clip every two frames."""
    spec = model.spec
    noise = np.random.default_rng(seed).integers(0, 256, (frames, *spec.resize, spec.channels), np.uint8)
    item = views_of_clip(noise, crop_views(crops, spec), spec)
    rows = torch.arange(0, frames - 3, 2)[:, None] + torch.arange(4)
    return replace(
        item, id=name, clips=rows, label=seed, total_clips=len(rows), signed=signed and item.signed
    )


def cut(item: VideoViews, size: int) -> list[VideoViews]:
    """The same video in chunks of so many clips, each with frames of its own."""
    parts = []
    for start in range(0, len(item.clips), size):
        rows = item.clips[start : start + size]
        low, high = int(rows.min()), int(rows.max())
        frames = item.frames[low : high + 1].clone()
        parts.append(replace(item, frames=frames, clips=rows - low, first=start))
    return parts


def plain_logits(model, item: VideoViews) -> np.ndarray:
    """One view at a time, cut, mirrored, turned and normalised by hand, NCDHW."""
    spec = model.spec
    low, high = spec.value_range
    found = []
    for (y0, x0, y1, x1), flip in zip(item.boxes, item.flips):
        for rows in item.clips:
            frames = item.frames[rows].numpy()[:, y0:y1, x0:x1].astype(np.float64)
            if flip:
                frames = frames[:, :, ::-1].copy()
                if item.signed:
                    frames[..., 0] = 255 - frames[..., 0]
            values = (frames / 255 * (high - low) + low - np.asarray(spec.mean)) / np.asarray(spec.std)
            x = torch.from_numpy(values.transpose(3, 0, 1, 2).astype(np.float32).copy())[None]
            with torch.no_grad():
                found.append(model.forward_normalised(x)[0].numpy())
    return np.stack(found)


@pytest.mark.parametrize(("signed", "channels_last"), [(False, False), (True, True)])
def test_logits_are_those_of_copied_views(model, channels_last, signed):
    model = copy.deepcopy(model)
    items = [video(model, "a", 8, 1, signed=signed), video(model, "b", 13, 2, crops="three")]
    expected = [plain_logits(model, item) for item in items]
    if channels_last:
        model.channels_last()
    for size in (1, 2, 100):
        chunks = [part for item in items for part in cut(item, size)]
        found = score_videos(model, chunks, device=CPU, batch_views=7, keep_views=True)
        assert found.ids == ["a", "b"]
        assert found.labels.tolist() == [1, 2]
        assert found.counts.tolist() == [30, 15]
        np.testing.assert_allclose(found.view_logits, np.concatenate(expected), rtol=1e-4, atol=1e-5)
        means = [views.astype(np.float64).mean(axis=0) for views in expected]
        np.testing.assert_allclose(found.logits, means, rtol=1e-4, atol=1e-5)
    assert np.concatenate(expected).std() > 0.01


@pytest.mark.parametrize("channels_last", [False, True])
def test_logits_of_a_batch_are_bit_for_bit_those_of_its_uint8_clips(model, channels_last):
    model = copy.deepcopy(model)
    if channels_last:
        model.channels_last()
    item = video(model, "a", 9, 4)
    with torch.inference_mode():
        direct = [model(part) for part in item.views.split(8)]
    found = score_videos(model, [item], device=CPU, batch_views=8, keep_views=True)
    np.testing.assert_array_equal(found.view_logits, torch.cat(direct).numpy())


def test_half_precision_draws_what_autocast_would_round(model):
    item = video(model, "a", 6, 5)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        direct = model(item.views).float().numpy()
    found = score_videos(model, [item], device=CPU, precision="bf16", batch_views=20, keep_views=True)
    np.testing.assert_array_equal(found.view_logits, direct)


class Listed(list):
    """A loader that says which videos it left out."""

    skipped: ClassVar[list[tuple[str, str]]] = []


def test_a_video_broken_off_is_left_out_and_one_that_is_short_is_an_error(model):
    whole, broken = video(model, "whole", 8, 1), video(model, "broken", 12, 2)
    chunks = Listed([*cut(broken, 2)[:-1], whole])
    with pytest.raises(ScoreError, match="broken: only 4 of the video's 5 clips were read"):
        score_videos(model, chunks, device=CPU)
    chunks.skipped = [("broken", "frame 9 is damaged")]
    found = score_videos(model, chunks, device=CPU, keep_views=True)
    assert found.ids == ["whole"]
    alone = score_videos(model, [whole], device=CPU, keep_views=True)
    np.testing.assert_allclose(found.view_logits, alone.view_logits, rtol=1e-4, atol=1e-5)


def test_a_video_that_comes_twice_is_named(model):
    item = video(model, "twin", 12, 3)
    with pytest.raises(ScoreError, match="twin: the video occurs twice"):
        score_videos(model, [*cut(item, 2), *cut(item, 2)], device=CPU)


def test_scores_of_processes_join_in_the_order_of_the_list(model):
    items = [video(model, name, 6 + 2 * place, place) for place, name in enumerate("abcd")]
    whole = score_videos(model, items, device=CPU, keep_views=True)
    parts = [
        score_videos(model, [items[i] for i in chosen], device=CPU, keep_views=True)
        for chosen in ([1, 3], [], [0, 2])
    ]
    found = merge_scores(parts, list("abcd"))
    assert found.ids == list("abcd")
    assert found.labels.tolist() == whole.labels.tolist()
    assert found.counts.tolist() == whole.counts.tolist()
    np.testing.assert_allclose(found.logits, whole.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.view_logits, whole.view_logits, rtol=1e-4, atol=1e-5)
    assert merge_scores(parts[1:2], list("abcd")).ids == []
    assert merge_scores([parts[0], parts[1]], list("abcd")).ids == ["b", "d"]
    with pytest.raises(ScoreError, match="b: two processes scored this video"):
        merge_scores([parts[0], parts[0]], list("abcd"))
    with pytest.raises(
        ScoreError, match="d: a process scored this video, but the split list does not contain the video"
    ):
        merge_scores(parts, list("abc"))
