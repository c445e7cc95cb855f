"""The BERT head with fused attention against the same head that forms the matrix of scores.

    python eval/benchmarks/attention.py [--quick] [--rounds 5] [--threads 2]

Published heads multiply queries and keys, take a softmax and multiply by the values, one after another. Both
sides have the same weights, and their vectors are compared before anything is timed. 8 tokens are what a 64-frame clip
has under a 3D ResNeXt-101; 256 stand for long clips, where the matrix of scores begins to matter.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable

import torch
from common import Row, finish, flags, interleaved, median_of, ratio_of
from torch import nn

from two_stream.config.heads import BertHead
from two_stream.heads.bert import Attention, Bert

FEATURES = 512
BATCHES = {8: 64, 256: 4}
"""clips per batch, by tokens"""


class PlainAttention(Attention):
    """Scores, softmax, product."""

    def forward(self, x_BTD: torch.Tensor, kept_BT: torch.Tensor | None) -> torch.Tensor:
        """See `Attention.forward`; without masked tokens."""
        assert kept_BT is None, "both sides keep every token"
        y = self.weights(x_BTD) @ self._split(self.value(x_BTD))
        out_BTD: torch.Tensor = self.output(y.transpose(1, 2).flatten(2))
        return out_BTD


def step(head: nn.Module, tokens: torch.Tensor) -> Callable[[], None]:
    """Return a forward and backward pass."""

    def run() -> None:
        head.zero_grad()
        head(tokens).square().mean().backward()

    return run


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    given = flags(__doc__, argv)
    rows = []
    for tokens, clips in ({8: 2} if given.smoke else BATCHES).items():
        torch.manual_seed(0)
        fused = Bert(BertHead(keep=1.0, dropout=0.0), features=FEATURES, tokens=tokens).train()
        plain = copy.deepcopy(fused)
        for module in plain.modules():
            if type(module) is Attention:
                module.__class__ = PlainAttention
        x_BTD = torch.randn(clips, tokens, FEATURES)
        with torch.no_grad():
            error = float((fused(x_BTD) - plain(x_BTD)).abs().max() / plain(x_BTD).abs().max())
        times = interleaved({"plain": step(plain, x_BTD), "fused": step(fused, x_BTD)}, rounds=given.rounds)
        rates = {side: clips / median_of(seconds) for side, seconds in times.items()}
        rows.append(
            Row(
                f"BERT head, forward and backward, {tokens} tokens",
                "scores, softmax, product",
                rates["plain"],
                rates["fused"],
                ratio_of(times, "plain", "fused"),
                note=f"fp32, batch {clips}; vectors agree to {error:.0e}",
                unit="clips/s",
                problem="" if error < 1e-4 else f"vectors differ by {error:.1e}",
            )
        )
    return finish("attention", rows, given)


if __name__ == "__main__":
    sys.exit(main())
