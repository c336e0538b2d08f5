"""The two levels on frozen features, solved exactly: weights above, a linear head below."""

from dataclasses import dataclass

import torch
from torch import Tensor

from applications.weighting.heads import Examples, fit, losses, mean_loss, objective
from applications.weighting.weights import Form, Weights
from blo import Method, cg, hypergradient


@dataclass(frozen=True)
class Sources:
    """Examples of several sources; ``members`` is the `membership` ``(n, sources)``, whose rows sum
    to 1, or to more where an example stands for others of its source, which were not drawn.
    """

    examples: Examples
    members: Tensor

    @property
    def sizes(self) -> Tensor:
        """Examples of each source, all that it has; of k sources one counts 1/k in each."""
        return self.members.sum(0)

    def __len__(self) -> int:
        return self.members.shape[1]

    def fit(self, weights: Tensor, *, ridge: float, start: Tensor | None = None) -> Tensor:
        """The head fitted to the sources under one weight each."""
        return fit(self.examples, self.rows(weights), ridge=ridge, start=start)

    def normalised(self, weights: Tensor) -> Tensor:
        """The weights times what makes the mean weight of an example 1."""
        return weights * self.sizes.sum() / (weights * self.sizes).sum()

    def rows(self, weights: Tensor) -> Tensor:
        """The weight of each example ``(n,)``, of mean 1 where every source has the weight 1."""
        times = len(self.examples) / float(self.members.sum())
        return times * (self.members @ weights)


@dataclass(frozen=True)
class Search:
    """How the weights are searched.

    Args:
        form: of the weights.
        floor: of the form ``floor``.
        ridge: of the head.
        lr: of Adam on the upper values.
        max_steps: upper steps.
        method: how the head responds to the weights.
    """

    form: Form = "softmax"
    floor: float = 0.1
    ridge: float = 1e-2
    lr: float = 0.5
    max_steps: int = 15
    method: Method = cg(15)


@dataclass(frozen=True)
class Trace:
    """The upper steps of one search, from 0: weights ``(steps + 1, sources)``, the loss of each
    head on the target examples that the search saw, and on those held out (empty without any);
    ``head`` is the last.
    """

    weights: Tensor
    target: Tensor
    held_out: Tensor
    head: Tensor


def weight_gradient(
    sources: Sources,
    target: Examples,
    upper: Tensor,
    head: Tensor,
    *,
    weights: Weights,
    ridge: float,
    method: Method,
) -> tuple[Tensor, float]:
    """The hypergradient with respect to the upper values, and the loss on the target.

    Upper: the mean loss of the head on the target. Lower: ``1/n sum_i (M w(a))_i loss_i(head) +
    ridge/2 |head|^2``, of which ``head`` is the minimiser.
    """
    result = hypergradient(
        lambda x, y: losses(y[0], target).mean(),
        lambda x, y: objective(y[0], sources.examples, sources.rows(weights(x[0])), ridge=ridge),
        (upper,),
        (head,),
        method=method,
    )
    return result.grads[0], float(result.upper_loss)


def search(
    sources: Sources,
    target: Examples,
    settings: Search,
    *,
    steps: int | None = None,
    held_out: Examples | None = None,
) -> Trace:
    """One search: after every upper step of Adam the head is fitted anew to its minimum."""
    weights = Weights(sources.sizes, settings.form, settings.floor)
    upper = weights.start.requires_grad_()
    optimizer = torch.optim.Adam([upper], lr=settings.lr)
    head: Tensor | None = None
    traced, on_target, on_held_out = [], [], []
    count = settings.max_steps if steps is None else steps
    for step in range(count + 1):
        now = weights(upper.detach().clone())  # the optimizer changes its values in place
        head = sources.fit(now, ridge=settings.ridge, start=head)
        traced.append(now)
        if held_out is not None:
            on_held_out.append(mean_loss(head, held_out))
        if step == count:
            on_target.append(mean_loss(head, target))
            break
        upper.grad, loss = weight_gradient(
            sources,
            target,
            upper.detach(),
            head,
            weights=weights,
            ridge=settings.ridge,
            method=settings.method,
        )
        on_target.append(loss)
        optimizer.step()
        with torch.no_grad():
            upper.copy_(weights.projected(upper))
    assert head is not None
    return Trace(torch.stack(traced), torch.tensor(on_target), torch.tensor(on_held_out), head)
