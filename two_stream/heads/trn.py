"""Multi-scale temporal relations.

Source: Zhou, Andonian, Oliva, Torralba, "Temporal Relational Reasoning in Videos" (arXiv 1711.08496), section 3, and
its published code (`RelationModuleMultiScale`). Each MLP is ReLU, linear, ReLU, linear as published; its output has
`hidden` values instead of one per class, and the classifier follows the sum.
"""

from __future__ import annotations

from math import comb

import torch
from torch import nn

from two_stream.config.heads import TrnHead
from two_stream.heads.base import HEADS, Head


def combination(total: int, size: int, rank: int) -> list[int]:
    """Return the subset of `range(total)` with `size` elements that has the index `rank` in lexicographic order."""
    found: list[int] = []
    for value in range(total):
        rest = size - len(found)
        following = comb(total - value - 1, rest - 1) if rest else 0  # subsets that continue with this value
        if rank < following:
            found.append(value)
        else:
            rank -= following
    return found


@HEADS.register(TrnHead)
class Trn(Head):
    """Sum of relations between 2, 3, … and all tokens; an MLP per number of tokens is applied to ordered subsets.

    At most `subsets` subsets of each size are used; if there are no more, all of them. In training, they are drawn
    independently for each batch. The published code also draws them in evaluation; here, evaluation is deterministic
    and uses subsets that are evenly spaced in the lexicographic list of all subsets. A single token is its own subset.
    """

    fixed_length = True

    def __init__(self, options: TrnHead, *, features: int, tokens: int) -> None:
        super().__init__(options, features=features, tokens=tokens)
        self.sizes = range(min(tokens, options.largest or tokens), min(1, tokens - 1), -1)
        for size in self.sizes:
            total = comb(tokens, size)
            count = min(options.subsets, total)
            ranks = [(2 * place + 1) * total // (2 * count) for place in range(count)]
            chosen = torch.tensor([combination(tokens, size, rank) for rank in ranks])
            self.register_buffer(f"subsets_{size}", chosen, persistent=False)
        width = self.features = options.hidden
        self.relations = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Linear(size * features, width), nn.ReLU(), nn.Linear(width, width))
            for size in self.sizes
        )

    def _subsets(self, size: int) -> torch.Tensor:
        """Return ordered subsets of time steps, `(subsets, size)`."""
        chosen_NS = self.get_buffer(f"subsets_{size}")
        if not self.training or comb(self.tokens, size) == len(chosen_NS):
            return chosen_NS
        order_NT = torch.rand(len(chosen_NS), self.tokens, device=chosen_NS.device).argsort(dim=1)
        return order_NT[:, :size].sort(dim=1).values

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return `(B, hidden)`."""
        self.check_tokens(x_BTD)
        sums = []
        for size, relation in zip(self.sizes, self.relations, strict=True):
            subsets_NS = self._subsets(size)
            joined_BND = x_BTD.index_select(1, subsets_NS.flatten()).reshape(
                x_BTD.shape[0], len(subsets_NS), -1
            )
            sums.append(relation(joined_BND).sum(1))
        return torch.stack(sums).sum(0)
