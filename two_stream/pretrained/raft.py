"""Computes optical flow with RAFT (Teed and Deng, 2020), using torchvision's network and weights in a local file.

RAFT is used only in extraction. The weights are those of raft_small or raft_large in `torchvision.models.optical_flow`;
nothing is downloaded. All devices compute in fp32 without TF32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F
from torchvision.models.optical_flow import raft_large, raft_small

from two_stream.errors import CheckpointError, SettingsError
from two_stream.pretrained.reading import read_state
from two_stream.runtime.device import pick_device
from two_stream.runtime.files import sha256
from two_stream.video.flow import quantize

UPDATES = 12
"""Number of refinements of the flow, torchvision's default."""
_MULTIPLE, _SMALLEST = 8, 128
"""Sides must be multiples of the first (strides) and at least the second (four levels of correlations), pixels."""
_BUILDERS = {"raft_small": raft_small, "raft_large": raft_large}


@dataclass(frozen=True)
class Raft:
    """Describes a RAFT network by its weights file; implements `two_stream.video.flow.FlowNetwork`.

    `Raft.from_file` checks the file. Worker processes build the network from this description.
    """

    weights: Path
    model: Literal["raft_small", "raft_large"]
    weights_sha256: str
    device: str
    batch: int

    @classmethod
    def from_file(cls, weights: Path, *, device: str = "auto", batch: int = 8) -> Raft:
        """Read and check a file of weights.

        Args:
            weights: A state dict of torchvision's raft_small or raft_large, recognised by its keys.
            device: auto (CUDA, otherwise the CPU), cpu, cuda or cuda:N.
            batch: Pairs of frames per forward pass.

        Raises:
            CheckpointError: Missing, damaged, or not weights of RAFT.
            SettingsError: No such device, or the batch is not positive.
        """
        if batch < 1:
            raise SettingsError(f"--flow-batch is {batch}: expected 1 or more")
        if not weights.is_file():
            raise CheckpointError(f"{weights}: the file of RAFT weights does not exist; {_WHERE}")
        name = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        chosen = pick_device(name)
        state = read_state(weights)
        model: Literal["raft_small", "raft_large"] = (
            "raft_large" if any(key.startswith("mask_predictor.") for key in state) else "raft_small"
        )
        _load(model, state, weights)
        return cls(weights.absolute(), model, sha256(weights), str(chosen), batch)

    @property
    def gpus(self) -> int:
        """Number of GPUs that the network uses."""
        if not self.device.startswith("cuda"):
            return 0
        return torch.cuda.device_count() if self.device == "cuda" else 1

    def recorded(self) -> dict[str, Any]:
        """Return the settings that determine the flow."""
        return {"flow_model": self.model, "flow_weights_sha256": self.weights_sha256, "flow_updates": UPDATES}

    def maker(self, place: int, threads: int) -> RaftFlow:
        """Return the network on a device; it is loaded once for each process and device."""
        device = f"cuda:{place % max(1, torch.cuda.device_count())}" if self.device == "cuda" else self.device
        if threads:
            torch.set_num_threads(threads)
        return RaftFlow(_network(self, device), torch.device(device), self.batch)


_WHERE = (
    "torchvision publishes them: download.pytorch.org/models/raft_small_C_T_V2-01064c6d.pth and "
    "raft_large_C_T_SKHT_V2-ff5fadd5.pth"
)


@lru_cache(maxsize=2)
def _network(raft: Raft, device: str) -> nn.Module:
    found = sha256(raft.weights)
    if found != raft.weights_sha256:
        raise CheckpointError(
            f"{raft.weights}: the file has changed: expected SHA-256 {raft.weights_sha256[:12]}…, found {found[:12]}…"
        )
    return _load(raft.model, read_state(raft.weights), raft.weights).to(pick_device(device))


def _load(model: str, state: dict[str, torch.Tensor], file: Path) -> nn.Module:
    with torch.device("meta"):
        network: nn.Module = _BUILDERS[model](weights=None)
    expected = network.state_dict()
    for key, tensor in expected.items():
        if key not in state:
            raise CheckpointError(f"{file}: expected RAFT weights, but {key} is missing; {_WHERE}")
        if state[key].shape != tensor.shape:
            sizes = f"{tuple(state[key].shape)}, expected {tuple(tensor.shape)}"
            raise CheckpointError(f"{file}: expected RAFT weights, but {key} has shape {sizes}; {_WHERE}")
    strange = sorted(set(state) - set(expected))
    if strange:
        raise CheckpointError(
            f"{file}: expected RAFT weights, but {model} has no tensor {strange[0]}; {_WHERE}"
        )
    network.load_state_dict(
        {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()},
        assign=True,
    )
    return network.eval()


class RaftFlow:
    """A RAFT network on a device, which computes flow for sequences of frames."""

    def __init__(self, network: nn.Module, device: torch.device, batch: int) -> None:
        self.network = network
        self.device = device
        self.batch = batch

    def flows(self, pictures: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        """Yield the quantized flow, uint8 `(H, W, 2)`, between each RGB frame and the next."""
        stream = iter(pictures)
        waiting = list(islice(stream, 1))
        while fresh := list(islice(stream, self.batch)):
            waiting += fresh
            for flow in self.estimate(np.stack(waiting)):
                yield quantize(flow)
            waiting = waiting[-1:]

    def estimate(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the flow in pixels between consecutive RGB frames `(N, H, W, 3)`, as float32 `(N - 1, H, W, 2)`.

        Frames are padded by repeating their border pixels to a size that the network supports; then the flow is
        cropped.
        """
        height, width = pictures.shape[1:3]
        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
            x_NCHW = torch.from_numpy(pictures).to(self.device).permute(0, 3, 1, 2).float()
            x_NCHW = (x_NCHW / 255.0 - 0.5) / 0.5  # torchvision's order, for equal rounding
            left, right = _border(width)
            top, bottom = _border(height)
            x_NCHW = F.pad(x_NCHW, (left, right, top, bottom), mode="replicate").contiguous()
            found = self.network(x_NCHW[:-1], x_NCHW[1:], num_flow_updates=UPDATES)[-1]
            cut = found[:, :, top : top + height, left : left + width]
            return np.asarray(cut.permute(0, 2, 3, 1).float().cpu().numpy(), np.float32)


def _border(side: int) -> tuple[int, int]:
    """Return the padding before and after an axis of this length."""
    wanted = max(_SMALLEST, -(-side // _MULTIPLE) * _MULTIPLE)
    return (wanted - side) // 2, (wanted - side) - (wanted - side) // 2
