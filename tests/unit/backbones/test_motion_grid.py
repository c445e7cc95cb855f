"""Motion on a grid against counts by hand, and as a network like any other."""

import numpy as np
import pytest
import torch

from two_stream.backbones import motion_grid
from two_stream.config.model import ModelOptions
from two_stream.errors import SettingsError
from two_stream.recognizer import Recognizer
from two_stream.streaming import convert
from two_stream.video.flow import FLOW_BOUND, dequantize


def grid(**options: object) -> Recognizer:
    head = {"kind": "moments", "maximum": True, "parts": 3, "differences": 0}
    fields = {
        "backbone": {"kind": "motion_grid"},
        "modality": "flow",
        "head": head,
        "dropout": 0.0,
        **options,
    }
    return Recognizer(ModelOptions.model_validate(fields), 2).eval()


def flow(frames: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (2, 2, frames, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("height", "width"), [(12, 16), (112, 112), (13, 18)])
def test_cells_are_means_in_pixels_of_flow(height, width):
    model, clip = grid(), flow(5, height, width)
    (tokens,) = model.forward_features(clip)
    assert tokens.shape == (2, 5, 36)
    x, y = dequantize(clip.numpy()[:, 0]), dequantize(clip.numpy()[:, 1])
    for quantity, values in enumerate((x, y, np.hypot(x, y))):
        for row in range(3):
            for column in range(4):
                rows = slice(row * height // 3, (row + 1) * height // 3)
                columns = slice(column * width // 4, (column + 1) * width // 4)
                found = tokens[:, :, quantity * 12 + row * 4 + column]
                cell = values[:, :, rows, columns].mean((2, 3))
                np.testing.assert_allclose(found.numpy(), cell, rtol=1e-4, atol=1e-4)


def test_a_mirrored_clip_has_the_mirrored_grid():
    model, clip = grid(), flow(3, 12, 16)
    mirrored = clip.flip(4)
    mirrored[:, 0] = 255 - mirrored[:, 0]
    (tokens,) = model.forward_features(clip)
    (other,) = model.forward_features(mirrored)
    sign = torch.tensor([-1.0, 1.0, 1.0]).view(3, 1, 1)
    turned = tokens.unflatten(2, (3, 3, 4)).flip(4) * sign
    torch.testing.assert_close(other.unflatten(2, (3, 3, 4)), turned, rtol=1e-5, atol=1e-5)


def test_the_bound_is_that_of_stored_flow():
    assert motion_grid.FLOW_BOUND == FLOW_BOUND


def test_more_cells_than_pixels_share_them():
    model = grid(backbone={"kind": "motion_grid", "rows": 5, "columns": 5})
    clip = flow(2, 2, 3)
    (tokens,) = model.forward_features(clip)
    values = torch.from_numpy(dequantize(clip.numpy()))
    torch.testing.assert_close(tokens[:, :, 0], values[:, 0, :, 0, 0], rtol=1e-5, atol=1e-5)


def test_it_has_nothing_to_learn_and_a_stream():
    model = grid()
    assert [name for name, _ in model.named_parameters()] == ["classifier.weight", "classifier.bias"]
    frames, stream = flow(30, 12, 16), convert(model)
    found = torch.cat([stream.step(part) for part in frames.split(7, 2)], 1)
    wanted = torch.stack([model(frames[:, :, begin : begin + 16]) for begin in range(15)], 1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_rgb_and_reductions_are_refused():
    with pytest.raises(
        SettingsError,
        match=r"^backbone motion_grid requires optical flow, .* rgb; set `model.modality: flow`$",
    ):
        grid(modality="rgb")
    with pytest.raises(SettingsError, match=r"^backbone motion_grid has no block .*`model.reduction: none`$"):
        grid(reduction="frab")


def test_it_sees_whole_frames():
    spec = grid().spec
    assert spec.size == spec.resize == (128, 170)
