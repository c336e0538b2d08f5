"""One weight a source: what the upper level moves, and the weights that follow from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Form = Literal["softmax", "non_negative", "floor"]
FORMS: tuple[Form, ...] = ("softmax", "non_negative", "floor")


@dataclass(frozen=True)
class Weights:
    """Weights of sources of the given sizes, as a function of upper values ``a``.

    With shares ``q_s = n_s / n``, all forms start at one for every source:

    - softmax: ``w_s = p_s / q_s``, ``p = softmax(a + log q)``, which is the source's share of the
      mixture; the mean weight of an example is 1;
    - floor: ``floor + (1 - floor) w_s`` with the former ``w_s``: no source is lost;
    - non_negative: ``w_s = a_s``, kept at 0 or above by projection; 0 drops the source.

    Args:
        sizes: examples of each source ``(sources,)``.
        form: one of the three.
        floor: the least weight of ``floor``.

    Raises:
        ValueError: there is no such form.
    """

    sizes: Tensor
    form: Form = "softmax"
    floor: float = 0.1

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, got {self.form!r}")

    @property
    def least(self) -> float:
        """What no weight is below."""
        return self.floor if self.form == "floor" else 0.0

    @property
    def most(self) -> Tensor:
        """What no weight is above ``(sources,)``: where a source is the whole mixture."""
        sizes = self.sizes.double()
        if self.form == "non_negative":
            return torch.full_like(sizes, torch.inf)
        whole = sizes.sum() / sizes
        return whole if self.form == "softmax" else self.floor + (1 - self.floor) * whole

    @property
    def start(self) -> Tensor:
        """The upper values at which every weight is one."""
        sizes = self.sizes.double()
        return torch.ones_like(sizes) if self.form == "non_negative" else torch.zeros_like(sizes)

    def __call__(self, upper: Tensor) -> Tensor:
        """The weights ``(sources,)``."""
        if self.form == "non_negative":
            return upper
        shares = self.sizes.to(upper) / self.sizes.sum()
        weights = (upper + shares.log()).softmax(-1) / shares
        return weights if self.form == "softmax" else self.floor + (1 - self.floor) * weights

    def projected(self, upper: Tensor) -> Tensor:
        """The nearest upper values that are allowed."""
        return upper.clamp(min=0) if self.form == "non_negative" else upper


def probabilities(weights: Tensor, sizes: Tensor) -> Tensor:
    """The share of each source in the mixture: ``w_s n_s / sum_r w_r n_r``."""
    found = weights.double() * sizes.double()
    return found / found.sum()


def membership(
    groups: list[list[int]], number: int, *, times: Sequence[float] | None = None
) -> Tensor:
    """``(examples, sources)``: 1/k where the example belongs to a source, and to k in all.

    The weight of an example is the mean of the weights of its sources; ``times`` that, where it
    stands for others that were not drawn.
    """
    result = torch.zeros(len(groups), number, dtype=torch.float64)
    for row, members in enumerate(groups):
        for source in members:
            result[row, source] += (1.0 if times is None else times[row]) / len(members)
    return result
