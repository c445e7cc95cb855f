"""Flow measured on texture moved by a known number of pixels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from two_stream.errors import SettingsError
from two_stream.video.flow import ALGORITHMS, FLOW_BOUND, FlowEstimator, dequantize, quantize


def textured(height=120, width=140, seed=0):
    noise = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def moved(dx, dy):
    """Two grey windows (64, 72) of one texture; the second shows it moved dx to the right and dy down."""
    big = textured()
    return big[28:92, 34:106], big[28 - dy : 92 - dy, 34 - dx : 106 - dx]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("shift", [(3, 0), (-4, 0), (0, 3), (0, -2), (2, -3)])
def test_flow_of_a_known_displacement(algorithm, shift):
    before, after = moved(*shift)
    flow = FlowEstimator(algorithm).flow(before, after)
    assert flow.shape == (64, 72, 2)
    np.testing.assert_allclose(np.median(flow, axis=(0, 1)), shift, atol=0.15)
    stored = FlowEstimator(algorithm)(before, after)
    assert stored.dtype == np.uint8
    np.testing.assert_allclose(np.median(dequantize(stored), axis=(0, 1)), shift, atol=0.25)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_rest_is_stored_as_128(algorithm):
    before, _ = moved(0, 0)
    stored = FlowEstimator(algorithm)(before, before)
    tolerance = 1 if algorithm == "farneback" else 0  # its float noise straddles 127.5
    np.testing.assert_allclose(stored.astype(int), 128, atol=tolerance)


def test_quantisation_is_the_published_one():
    pixels = np.array([-20, -19.95, -10, 0, 0.05, 10, 19.95, 20])
    np.testing.assert_array_equal(quantize(pixels), [0, 0, 64, 128, 128, 191, 255, 255])
    expected = [np.rint((v + 20) * 255 / 40) for v in np.linspace(-20, 20, 777)]
    np.testing.assert_array_equal(quantize(np.linspace(-20, 20, 777)), expected)


def test_displacements_beyond_the_bound_are_clipped():
    np.testing.assert_array_equal(
        quantize(np.array([-500, -20.1, 20.1, 1e9, np.inf, -np.inf])), [0, 0, 255, 255, 255, 0]
    )
    assert quantize(np.array([np.nan]))[0] == 128


def test_dequantisation_inverts_every_stored_value():
    stored = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(quantize(dequantize(stored)), stored)
    values = np.random.default_rng(1).uniform(-FLOW_BOUND, FLOW_BOUND, 500)
    assert np.abs(dequantize(quantize(values)) - values).max() <= 20 / 255 + 1e-5


def test_a_clip_of_n_frames_has_n_minus_one_flows():
    big = textured()
    frames = np.stack([np.repeat(big[28:92, 34 - 2 * k : 106 - 2 * k, None], 3, axis=2) for k in range(4)])
    flow = np.stack(list(FlowEstimator("dis").flows(frames)))
    assert flow.shape == (3, 64, 72, 2)
    np.testing.assert_allclose(np.median(dequantize(flow), axis=(1, 2)), [(2, 0)] * 3, atol=0.2)
    for step in range(3):
        alone = FlowEstimator("dis")(frames[step, ..., 0], frames[step + 1, ..., 0])
        np.testing.assert_array_equal(flow[step], alone)
    assert list(FlowEstimator("dis").flows(frames[:1])) == []
    assert list(FlowEstimator("dis").flows(frames[:0])) == []


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (9, 40), (15, 200)])
def test_tiny_pictures_do_not_break_an_algorithm(algorithm, size):
    flow = FlowEstimator(algorithm)(np.full(size, 40, np.uint8), np.full(size, 40, np.uint8))
    np.testing.assert_array_equal(flow, np.full((*size, 2), 128))


def test_a_stream_gives_the_flow_of_each_pair():
    frames = np.random.default_rng(2).integers(0, 255, (4, 32, 40, 3)).astype(np.uint8)
    flows = list(FlowEstimator("farneback").flows(iter(frames)))
    np.testing.assert_array_equal(flows, list(FlowEstimator("farneback").flows(frames)))
    assert list(FlowEstimator("dis").flows(frames[:1])) == []


def test_an_unknown_algorithm_is_named():
    with pytest.raises(SettingsError, match="unknown flow algorithm 'lucas'; known: tvl1, dis, farneback"):
        FlowEstimator("lucas")


def test_raft_on_the_fly_is_refused_with_what_to_do():
    with pytest.raises(SettingsError, match=r"only in extraction \(`two-stream extract --flow raft"):
        FlowEstimator("raft")
