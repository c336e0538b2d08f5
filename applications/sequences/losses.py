"""The loss of classes that come one after the other."""

import torch
import torch.nn.functional as F
from torch import Tensor


def incremental_cross_entropy(
    logits: Tensor, labels: Tensor, *, first: int, seen: int, apart: bool
) -> Tensor:
    """The mean cross-entropy among the classes that have come, a scalar.

    With ``apart``, an example of a new class competes among the new classes alone, as in SD-LoRA's
    paper: it moves no row of the head that belongs to an old one. Examples of old classes, from a
    memory, compete among all that have come (Caccia et al., 2022, arXiv:2104.05025).

    Args:
        logits: ``(batch, classes)``, with a column for each class of the sequence.
        labels: ``(batch,)``, below ``seen``.
        first: the first new class.
        seen: how many classes have come.
        apart: whether new classes compete among themselves.
    """
    logits = logits[:, :seen]
    if apart:
        old = torch.arange(seen, device=logits.device) < first
        logits = logits.masked_fill((labels >= first)[:, None] & old, -torch.inf)
    return F.cross_entropy(logits, labels)
