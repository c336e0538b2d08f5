"""The layer ``dW = s B diag(w) A`` with one value w_k for each block of ranks.

Blocks are adapters side by side, ``A = [A_1; ...; A_N]`` and ``B = [B_1, ..., B_N]``: the experts
of a mixture, the tasks of a sequence. Folds into plain LoRA exactly, of the rank of all blocks
together.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from adapters.glue.factors import LoraLayer, factors
from adapters.glue.sharing import SharedVariant
from adapters.methods.diagonal import DiagonalVariant

__all__ = ["GroupedVariant", "spread"]


class GroupedVariant(DiagonalVariant, SharedVariant):
    """One adapter of one layer, ``dW = s sum_k w_k B_k A_k``, ``w = g(d)``.

    Args:
        values: g, from the shape of d, ``(blocks,)``, to the same shape.
        sizes: the rank of every block.
        start: what every entry of d starts at.
        level: the level that d belongs to.
    """

    def __init__(
        self,
        values: Callable[[Tensor], Tensor],
        *,
        sizes: Sequence[int],
        start: float,
        level: Literal["upper", "lower"] = "upper",
    ) -> None:
        super().__init__(values, start=start, level=level)
        self.sizes = list(sizes)

    def num_values(self, rank: int) -> int:
        """Return the number of blocks."""
        return len(self.sizes)

    def block_values(self, layer: LoraLayer, adapter: str) -> Tensor:
        """Return w, shape ``(blocks,)``."""
        return self.values(self.parameters(layer, adapter))

    def singular_values(self, layer: LoraLayer, adapter: str) -> Tensor:
        """Return the value of every rank, that of its block, shape ``(rank,)``."""
        return spread(self.block_values(layer, adapter), self.sizes)

    def parameters(self, layer: LoraLayer, adapter: str) -> Tensor:
        """Return d, shape ``(blocks,)``, which layers of one group share."""
        own = factors(layer, adapter).A  # the layer that keeps d may be on another device
        return super().parameters(self.keeper(layer), adapter).to(own.device)


def spread(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return each value as often as its block has ranks, ``(..., blocks)`` to ``(..., rank)``."""
    pieces = zip(values.unbind(-1), sizes, strict=True)
    return torch.cat([v.unsqueeze(-1).expand(*v.shape, size) for v, size in pieces], -1)
