"""Masks on the input dimension of A and the output dimension of B.

``A' = A diag(m_A)`` and ``B' = diag(m_B) B`` with independent entries that are 1 with probability
1 - p and 0 otherwise. The rank dimension is never masked, so that ``B' A'`` keeps its rank and an
entry of it is zero with probability ``2 p - p^2``.

Reference: Lin et al. (2024), arXiv:2404.09610.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapters.glue.factors import Factors, LoraLayer, factors

__all__ = ["MASK_LOGIT", "Masks", "factors_in_use", "mask_logit", "masks_of"]

MASK_LOGIT = "lora_mask_logit"
"""The layer's dictionary (adapter -> parameter) of the learned rates."""


@dataclass
class Masks:
    """The masks of one adapter of one layer, drawn anew by every forward pass.

    One pair for a layer and a batch: all rows and tokens see the same. The draws come from torch's
    global generator of the factors' device, so that whoever restores its state, as the engine does
    before it evaluates a loss again, gets the same masks.

    Args:
        rate: p, in [0, 1); where the rate is learned, what it starts at.
        inverted: divide each mask by 1 - p, so that ``B' A'`` has the mean ``B A``.
        learned: draw relaxed masks, differentiable in the logit of p.
        temperature: of the relaxed masks, above 0; they are binary in the limit 0.
        switch: on, off, or None for on while the layer is in training mode.
    """

    rate: float
    inverted: bool = False
    learned: bool = False
    temperature: float = 0.1
    switch: bool | None = None

    def on(self, *, training: bool) -> bool:
        """Return whether the forward pass draws masks."""
        return training if self.switch is None else self.switch

    def apply(self, A: Tensor, B: Tensor, logit: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return ``A diag(m_A)`` and ``diag(m_B) B`` for new masks.

        Args:
            A: ``(rank, in)``.
            B: ``(out, rank)``.
            logit: ``log(p / (1 - p))``, one element, where the rate is learned.
        """
        return A * self.draw(A[0], logit), B * self.draw(B[:, 0], logit)[:, None]

    def draw(self, like: Tensor, logit: Tensor | None) -> Tensor:
        """Return one mask of the shape, device and type of `like`.

        Binary with a fixed rate. With a learned one, the binary concrete variable
        ``sigmoid((log u - log(1 - u) - logit) / temperature)``, u uniform, which exceeds 1/2 with
        probability 1 - p.

        Reference: Maddison, Mnih and Teh (2017), arXiv:1611.00712; Gal, Hron and Kendall (2017),
            arXiv:1705.07832.
        """
        dtype = torch.promote_types(like.dtype, torch.float32)
        uniform = torch.rand(like.shape, dtype=dtype, device=like.device)
        if logit is None:
            mask = (uniform >= self.rate).to(dtype)
        else:
            noise = torch.logit(uniform, eps=torch.finfo(dtype).eps)
            mask = torch.sigmoid((noise - logit.to(dtype)) / self.temperature)
        if self.inverted:
            mask = mask / self.kept(logit)
        return mask.to(like.dtype)

    def kept(self, logit: Tensor | None) -> float | Tensor:
        """Return ``1 - p``."""
        return 1 - self.rate if logit is None else torch.sigmoid(-logit)

    def expected(self, logit: Tensor | None) -> float | Tensor:
        """Return what ``B A`` is multiplied by while the masks are off: the mean of ``m_B m_A``.

        ``(1 - p)^2``, or 1 with inverted masks. Relaxed masks have that mean up to their
        temperature.
        """
        return 1.0 if self.inverted else self.kept(logit) ** 2


def masks_of(layer: LoraLayer, adapter: str) -> Masks | None:
    """Return the masks on the factors of one adapter of one layer, or None without them."""
    masks: Masks | None = getattr(layer.lora_variant.get(adapter), "masks", None)
    return masks


def mask_logit(layer: LoraLayer, adapter: str) -> Tensor | None:
    """Return the logit of a learned mask rate, shape ``(1,)``, or None where it is fixed."""
    logits = getattr(layer, MASK_LOGIT, None)
    if logits is None or adapter not in logits:
        return None
    logit: Tensor = logits[adapter]
    return logit


def factors_in_use(layer: LoraLayer, adapter: str) -> Factors:
    """Return the tensors of one adapter as a forward pass uses them.

    `factors` without LoRA Dropout. With it, A and B under new masks while those are on, and
    multiplied by the masks' mean while they are off.
    """
    plain = factors(layer, adapter)
    masks = masks_of(layer, adapter)
    if masks is None:
        return plain
    assert isinstance(layer, nn.Module)
    logit = mask_logit(layer, adapter)
    if masks.on(training=layer.training):
        A, B = masks.apply(plain.A, plain.B, logit)
        return plain._replace(A=A, B=B)
    return plain if masks.inverted else plain._replace(B=plain.B * masks.expected(logit))
