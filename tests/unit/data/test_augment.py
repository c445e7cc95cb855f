"""Augmentation: boxes as torchvision draws them, pixels as its operations make them, one draw for every frame."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import transforms as torchvision_transforms
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from two_stream.config.schema import AugmentOptions, Experiment
from two_stream.data.clips.transforms import (
    CORNERS,
    change_pixels,
    corner_box,
    draw_view,
    erased_value,
    resized_box,
)
from two_stream.types import InputSpec, Modality

FRAME = (30, 40)


def spec(modality: Modality = "rgb", mean: float = 100.0) -> InputSpec:
    channels = 3 if modality == "rgb" else 2
    return InputSpec(modality, 4, 1, FRAME, 16, (0.0, 255.0), (mean,) * channels, (1.0,) * channels)


def clip(modality: Modality = "rgb", frames: int = 4) -> np.ndarray:
    """The same picture in every frame: what differs afterwards was drawn apart."""
    channels = 3 if modality == "rgb" else 2
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, channels), dtype=np.uint8)
    return np.stack([picture] * frames)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class _Draws:
    """Stands in for torch in torchvision's box: the same draws from a numpy generator."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator
        self.log, self.exp = torch.log, torch.exp
        self.tensor = torch.tensor

    def empty(self, _: int) -> Any:
        return SimpleNamespace(
            uniform_=lambda low, high: torch.tensor(
                self.generator.uniform(float(low), float(high)), dtype=torch.float64
            )
        )

    def randint(self, low: int, high: int, size: tuple[int, ...]) -> torch.Tensor:
        return torch.tensor(int(self.generator.integers(low, high)))


@pytest.mark.parametrize(("area", "ratio"), [((0.25, 1.0), (0.75, 4 / 3)), ((0.9, 1.0), (3.0, 4.0))])
def test_resized_box_is_torchvisions(
    monkeypatch: pytest.MonkeyPatch, area: tuple[float, float], ratio: tuple[float, float]
) -> None:
    """With equal draws; the second case never fits, so that the box in the centre is taken."""
    image = torch.zeros(3, *FRAME)
    for seed in range(50):
        monkeypatch.setattr(torchvision_transforms, "torch", _Draws(rng(seed)))
        y0, x0, height, width = torchvision_transforms.RandomResizedCrop.get_params(
            image, list(area), list(ratio)
        )
        box = resized_box(FRAME, area, ratio, rng(seed))
        assert box == (y0, x0, y0 + height, x0 + width)
    assert (
        resized_box(FRAME, area, ratio, rng(1)) != resized_box(FRAME, area, ratio, rng(2)) or area[0] == 0.9
    )


@pytest.mark.parametrize("crop", ["corner", "multiscale_random", "resized", "short_side"])
def test_drawn_boxes_lie_inside_and_vary(crop: str) -> None:
    options = AugmentOptions.model_validate({"crop": crop, "flip": 0.0, "scales": (1.0, 0.5)})
    boxes = {draw_view(options, spec(), rng(seed)).box for seed in range(200)}
    assert all(0 <= y0 < y1 <= 30 and 0 <= x0 < x1 <= 40 for y0, x0, y1, x1 in boxes)
    sides = {(y1 - y0, x1 - x0) for y0, x0, y1, x1 in boxes}
    if crop == "resized":
        shares = [h * w / 1200 for h, w in sides]
        assert 0.24 < min(shares) < 0.4
        assert 0.8 < max(shares) <= 1.0
        return
    assert all(height == width for height, width in sides)
    expected = {30, 15} if crop != "short_side" else set(range(24, 31))  # 30 / 1.25 to 30
    assert {height for height, _ in sides} == expected
    if crop == "corner":
        assert boxes == {corner_box(FRAME, (side, side), place) for side in (30, 15) for place in CORNERS}


def jitter(**options: Any) -> np.ndarray:
    return change_pixels(clip(), AugmentOptions(**options), spec(), rng(5))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_colour_jitter_is_torchvisions_with_one_factor_per_clip(name: str) -> None:
    made = jitter(**{name: 0.4})
    assert not np.array_equal(made, clip())
    assert all(np.array_equal(frame, made[0]) for frame in made)
    change = getattr(functional, f"adjust_{name}")
    picture = torch.from_numpy(clip()[0]).permute(2, 0, 1)
    low, high = (-0.4, 0.4) if name == "hue" else (0.6, 1.4)

    def error(factor: float) -> float:
        other = change(picture, float(factor)).permute(1, 2, 0).numpy()
        return float(np.abs(other.astype(int) - made[0]).mean())

    assert min(error(factor) for factor in np.linspace(low, high, 1601)) < 0.6, (
        "no factor explains the change"
    )


def test_grayscale_is_torchvisions() -> None:
    picture = torch.from_numpy(clip()[0]).permute(2, 0, 1)
    expected = functional.rgb_to_grayscale(picture, num_output_channels=3).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(jitter(grayscale=1.0), np.stack([expected] * 4))


def test_rand_augment_is_torchvisions_with_the_clips_seed() -> None:
    different = 0
    for seed in range(30):
        made = change_pixels(clip(), AugmentOptions(rand_augment=2), spec(), rng(seed))
        assert all(np.array_equal(frame, made[0]) for frame in made), "an operation drawn apart"
        torch.manual_seed(int(rng(seed).integers(2**63)))
        change = v2.RandAugment(2, 9, interpolation=v2.InterpolationMode.BILINEAR, fill=128)
        expected = change(torch.from_numpy(clip()[0]).permute(2, 0, 1)).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(made[0], expected)
        different += not np.array_equal(made[0], clip()[0])
    assert different > 20


@pytest.mark.parametrize("modality", ["rgb", "flow"])
def test_erasing_fills_one_box_of_every_frame(modality: Modality) -> None:
    options = AugmentOptions(erase=1.0)
    before = clip(modality)
    kept = before.copy()
    sizes = []
    for seed in range(100):
        made = change_pixels(before, options, spec(modality), rng(seed))
        fill = 128 if modality == "flow" else 100
        changed = (made != before).any(axis=(0, 3))
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        box = (slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        assert (made[box] == fill).all()
        assert all(np.array_equal(frame, made[0]) for frame in made)
        sizes.append(len(rows) * len(columns) / 256)
    assert 0.01 < min(sizes) < 0.06
    assert 0.2 < max(sizes) <= 0.36
    assert np.array_equal(before, kept), "the frames that were read must stay as they are"


def test_erased_value_is_the_mean_in_pixels() -> None:
    unit = InputSpec("rgb", 4, 1, FRAME, 16, (0.0, 1.0), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert erased_value(unit) == [124, 116, 104]
    assert erased_value(spec("flow", mean=0.0)) == [128, 128]


def test_draws_depend_on_the_clips_generator_alone() -> None:
    options = AugmentOptions(brightness=0.4, rand_augment=1, erase=0.5)
    torch.manual_seed(1)
    first = change_pixels(clip(), options, spec(), rng(3))
    after = float(torch.rand(1))
    torch.manual_seed(2)
    assert np.array_equal(first, change_pixels(clip(), options, spec(), rng(3)))
    assert not np.array_equal(first, change_pixels(clip(), options, spec(), rng(4)))
    torch.manual_seed(1)
    assert float(torch.rand(1)) == after, "torch's own generator moved"


def test_nothing_asked_for_changes_nothing() -> None:
    frames = clip()
    assert change_pixels(frames, AugmentOptions(), spec(), rng()) is frames


def test_colours_are_refused_for_flow_and_erasing_is_not() -> None:
    flow = {"model": {"modality": "flow"}}
    with pytest.raises(
        ValueError, match=r"`data.augment.hue` changes colours, which flow does not have"
    ) as caught:
        Experiment.model_validate({**flow, "data": {"augment": {"hue": 0.1}}})
    assert "crops, flips and `erase`" in str(caught.value)
    Experiment.model_validate({**flow, "data": {"augment": {"erase": 0.3, "crop": "resized"}}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"area": (0.9, 0.3)}, "smaller number first"),
        ({"short_sides": (0.5, 1.2)}, "expected 1 or more"),
        ({"hue": 0.7}, "less than or equal to 0.5"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentOptions.model_validate(options)
    assert math.isfinite(AugmentOptions().ratio[1])
