"""RAFT flow: torchvision's own output in, the published 8 bits out; wrong files are named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.models.optical_flow import Raft_Small_Weights, raft_small

from two_stream.errors import CheckpointError, SettingsError
from two_stream.pretrained.raft import Raft, RaftFlow
from two_stream.video.extraction.one_video import ExtractOptions
from two_stream.video.flow import quantize


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return raft_small(weights=None).eval()


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("raft") / "small.pth"
    torch.save(network.state_dict(), path)
    return path


def pictures(count, height, width):
    return np.random.default_rng(0).integers(0, 255, (count, height, width, 3)).astype(np.uint8)


def direct(network, frames, padding=(0, 0, 0, 0)):
    """torchvision's own preprocessing and call, all pairs in one batch."""
    x = torch.from_numpy(frames).permute(0, 3, 1, 2)
    one, two = Raft_Small_Weights.DEFAULT.transforms()(x[:-1], x[1:])
    with torch.inference_mode():
        found = network(*(F.pad(part, padding, mode="replicate") for part in (one, two)))[-1]
    return found.permute(0, 2, 3, 1).numpy()


def test_flow_is_that_of_torchvision(network, weights):
    frames = pictures(3, 128, 136)
    maker = Raft.from_file(weights, device="cpu", batch=2).maker(0, 0)
    expected = direct(network, frames)
    np.testing.assert_array_equal(maker.estimate(frames), expected)
    stored = np.stack(list(maker.flows(iter(frames))))
    np.testing.assert_array_equal(stored, quantize(expected))
    assert stored.shape == (2, 128, 136, 2)


def test_sizes_that_do_not_suit_are_continued_by_their_border(network, weights):
    frames = pictures(2, 100, 133)
    found = Raft.from_file(weights, device="cpu").maker(0, 0).estimate(frames)
    expected = direct(network, frames, (1, 2, 14, 14))  # to 128×136
    np.testing.assert_array_equal(found, expected[:, 14:114, 1:134])


class Counting(torch.nn.Module):
    """Says by how much the first picture's grey level differs from the second's."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, one, two, num_flow_updates):
        self.batches.append(len(one))
        return [torch.round(((two - one) * 127.5)[:, :2])]


@pytest.mark.parametrize(
    "count, batches", [(0, []), (1, []), (2, [1]), (4, [3]), (5, [3, 1]), (8, [3, 3, 1])]
)
def test_every_pair_is_there_once_in_order(count, batches):
    network = Counting()
    levels = np.cumsum(np.arange(count)).astype(np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (count, 8, 9, 3))
    flows = list(RaftFlow(network, torch.device("cpu"), 3).flows(np.ascontiguousarray(f) for f in frames))
    assert network.batches == batches
    assert len(flows) == max(0, count - 1)
    for step, flow in enumerate(flows):
        np.testing.assert_array_equal(flow, quantize(np.full((8, 9, 2), step + 1.0)))


def test_what_is_recorded(weights):
    raft = Raft.from_file(weights, device="cpu")
    recorded = ExtractOptions(flow="raft", network=raft).recorded()
    assert recorded["flow"] == "raft"
    assert recorded["flow_model"] == "raft_small"
    assert recorded["flow_weights_sha256"] == raft.weights_sha256
    assert len(raft.weights_sha256) == 64
    assert raft.gpus == 0
    assert "flow_model" not in ExtractOptions(flow="dis").recorded()


def test_wrong_weights_are_one_line(weights, tmp_path):
    state = torch.load(weights, weights_only=True)
    del state["update_block.flow_head.conv2.bias"]
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(
        CheckpointError, match=r"expected RAFT weights, but update_block.flow_head.conv2.bias is missing"
    ):
        Raft.from_file(tmp_path / "short.pth")
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="expected RAFT weights"):
        Raft.from_file(tmp_path / "other.pth")
    with pytest.raises(
        CheckpointError, match="the file of RAFT weights does not exist; torchvision publishes them"
    ):
        Raft.from_file(tmp_path / "absent.pth")
    with pytest.raises(SettingsError, match="--flow-batch is 0"):
        Raft.from_file(weights, batch=0)


def test_changed_weights_are_noticed_by_the_worker(weights, tmp_path):
    copied = tmp_path / "w.pth"
    copied.write_bytes(weights.read_bytes())
    raft = Raft.from_file(copied, device="cpu")
    torch.save({"fc.weight": torch.zeros(2, 2)}, copied)
    with pytest.raises(CheckpointError, match="expected SHA-256"):
        raft.maker(0, 0)
