"""A linear head on frozen features, fitted to its minimum."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from blo import CG
from blo.linear.tensors import Tensors

TOLERANCE = 1e-6
MAX_STEPS = 100
MAX_PRODUCTS = 60
SUFFICIENT = 1e-4


@dataclass(frozen=True)
class Examples:
    """Features ``(n, d)`` in float64 and answers: ``(n, classes)`` probabilities of each class, or
    ``(n, 1)`` decimals for regression. ``together`` numbers what they were taken from ``(n,)``,
    such as the sentence of a word, where that is not each its own.
    """

    features: Tensor
    answers: Tensor
    together: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)

    def select(self, positions: Tensor) -> "Examples":
        """Some of the examples."""
        units = None if self.together is None else self.together[positions]
        return Examples(self.features[positions], self.answers[positions], units)

    def joined(self, other: "Examples") -> "Examples":
        """These examples, then the others."""
        return Examples(
            torch.cat([self.features, other.features]), torch.cat([self.answers, other.answers])
        )

    @property
    def units(self) -> Tensor:
        """From 0 the number of what each example was taken from ``(n,)``: itself unless known."""
        if self.together is None:
            return torch.arange(len(self))
        numbers: Tensor = self.together.unique(return_inverse=True)[1]
        return numbers

    @property
    def ones(self) -> Tensor:
        """A weight of one for each example."""
        return self.features.new_ones(len(self))

    @property
    def zero_head(self) -> Tensor:
        """The head of zeros ``(d, classes)``."""
        return self.features.new_zeros(self.features.shape[1], self.answers.shape[1])


def losses(head: Tensor, examples: Examples) -> Tensor:
    """The loss of each example ``(n,)``: cross-entropy, or half the squared error."""
    outputs = examples.features @ head
    if examples.answers.shape[1] == 1:
        return 0.5 * (outputs - examples.answers).square().sum(-1)
    return -(examples.answers * outputs.log_softmax(-1)).sum(-1)


def mean_loss(head: Tensor, examples: Examples) -> float:
    """The mean of `losses`."""
    return float(losses(head, examples).mean())


def accuracy(head: Tensor, examples: Examples) -> float:
    """The share of examples whose most probable class is found.

    For regression the Pearson correlation.
    """
    outputs = examples.features @ head
    if examples.answers.shape[1] == 1:
        return float(torch.corrcoef(torch.cat([outputs, examples.answers], 1).T)[0, 1])
    return float((outputs.argmax(-1) == examples.answers.argmax(-1)).double().mean())


def objective(
    head: Tensor, examples: Examples, weights: Tensor, *, ridge: float, centre: Tensor | None = None
) -> Tensor:
    """``1/n sum_i weights_i loss_i(head) + ridge/2 |head - centre|^2``, centre 0 unless given."""
    away = head if centre is None else head - centre
    fitted = (weights * losses(head, examples)).sum() / len(examples)
    return fitted + 0.5 * ridge * away.square().sum()


def fit(
    examples: Examples,
    weights: Tensor,
    *,
    ridge: float,
    centre: Tensor | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """The head ``(d, classes)`` that minimises `objective`, by Newton steps with a line search.

    With ``P = softmax(X W)`` the gradient is ``X^T diag(w) (P - Y) / n + ridge (W - centre)`` and a
    product with the Hessian ``X^T diag(w) (P * XV - P * sum(P * XV)) / n + ridge V``. Stops at a
    gradient of at most 1e-6. The ridge holds for every entry, so the minimum is one point.

    Args:
        examples: what is fitted.
        weights: of each example ``(n,)``, none negative.
        ridge: greater than 0.
        centre: the head that the ridge pulls to.
        start: where to start; a head that is near saves steps.

    Raises:
        FloatingPointError: the minimum was not reached, such as after features that are not finite.
    """
    x, y, share = examples.features, examples.answers, (weights / len(examples))[:, None]
    linear = y.shape[1] == 1
    pull = examples.zero_head if centre is None else centre
    head = pull if start is None else start

    def value(at: Tensor) -> float:
        return float(objective(at, examples, weights, ridge=ridge, centre=centre))

    now = value(head)
    for _ in range(MAX_STEPS):
        found = x @ head
        if not linear:
            found = found.softmax(-1)
        gradient = x.T @ (share * (found - y)) + ridge * (head - pull)
        size = float(gradient.norm())
        if size <= TOLERANCE:
            return head

        def product(v: Tensors, found: Tensor = found) -> Tensors:
            moved = x @ v[0]
            if not linear:
                moved = found * moved
                moved = moved - found * moved.sum(-1, keepdim=True)
            return (x.T @ (share * moved) + ridge * v[0],)

        accurate = min(0.1, math.sqrt(size))
        step = CG(MAX_PRODUCTS, rtol=accurate)(product, (-gradient,)).value[0]
        slope, length = float((gradient * step).sum()), 1.0
        while length > 1e-8:
            following = value(head + length * step)
            if following <= now + SUFFICIENT * length * slope:
                break
            length /= 2
        else:
            if size <= 1e3 * TOLERANCE:
                return head
            break
        head, now = head + length * step, following
    raise FloatingPointError(
        f"the head on frozen features did not reach its minimum: gradient {size:.2g} after "
        f"{MAX_STEPS} Newton steps; are all features finite?"
    )
