"""Graphs that are differentiated more than once: what has to hold while they are built and used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from blo.derivatives.composed import composing, refuse_wrong
from blo.derivatives.objective import Objective
from blo.derivatives.pullback import Gradient, mean, pulled_back
from blo.derivatives.reduction import LOCAL, Reduction
from blo.linear.tensors import Tensors


class GradientGraph:
    """The gradient of the mean of some losses, with the graph that products are taken on.

    One gradient when built, one product each time it is differentiated. The graph is built with
    attention on the math kernel, since no fused attention kernel can be differentiated twice.

    Args:
        objectives: the losses.
        wanted: the leaves that the gradient is for, some of ``upper + lower``.
        upper: leaves.
        lower: leaves.
        reduction: over which processes gradient and products are means, beside the losses.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        wanted: Tensors,
        upper: Tensors,
        lower: Tensors,
        reduction: Reduction = LOCAL,
    ) -> None:
        self._objectives = objectives
        self._upper, self._lower, self._wanted = upper, lower, wanted
        self._reduction = reduction
        self._graphs = [self._build(objective, wanted) for objective in objectives]
        self._own = tuple(None if g is None else g.detach() for g in mean(self._graphs))

    def gradient(self) -> tuple[Tensor | None, ...]:
        """Return the gradient, without graph; None where no loss depends on a leaf."""
        return self._reduction.gradient(self._own, self._wanted)[0]

    def product(
        self, weights: Gradient, inputs: Tensors, *, keep: bool = False
    ) -> tuple[Tensor | None, ...]:
        """Return ``d<gradient, weights>/d(inputs)``, with None for inputs that are not reached.

        Args:
            weights: one for each tensor of `wanted`; None stands for zeros.
            inputs: some of the leaves.
            keep: keep the graph for another product.
        """
        graphs = self._graphs
        self._graphs = graphs if keep else []
        pieces = []
        for objective, graph in zip(self._objectives, graphs, strict=True):
            with twice_differentiable(objective, self._upper, self._lower):
                pieces.append(pulled_back(graph, inputs, weights, keep=keep))
        return self._reduction.gradient(mean(pieces), inputs)[0]

    def _build(self, objective: Objective, wanted: Tensors) -> Gradient:
        with twice_differentiable(objective, self._upper, self._lower) as evaluate:
            gradient = torch.autograd.grad(evaluate(), wanted, create_graph=True, allow_unused=True)
            refuse_cut_graph(gradient)
        return gradient


def refuse_cut_graph(outputs: Gradient, inputs: Tensors = (), *, order: int = 2) -> None:
    """Raise if the graph from `inputs` to `outputs` was cut by an operation that can be
    differentiated only once, or has one whose derivatives up to `order` are wrong in torch.

    Torch marks a cut by a node that raises when it runs, but `torch.autograd.grad` with inputs
    passes over it, and the second derivative comes out silently wrong.

    Raises:
        RuntimeError: naming the remedy (through `twice_differentiable`).
    """
    waiting = [t.grad_fn for t in outputs if t is not None and t.grad_fn is not None]
    seen = {*waiting, *(t.grad_fn for t in inputs)}
    while waiting:
        node = waiting.pop()
        refuse_wrong(node.name(), order)
        if node.name().endswith("::Error"):
            raise RuntimeError("double backward through a once_differentiable function")
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)


def _uncompiled() -> AbstractContextManager[object]:
    """Return a context in which compiled modules run as they were written: what torch.compile makes
    of them has one derivative.
    """
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and importing it takes seconds
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


@contextmanager
def twice_differentiable(
    objective: Objective, upper: Tensors, lower: Tensors, *, order: int = 2
) -> Iterator[Callable[[], Tensor]]:
    """Enter the objective's scope with attention on the math kernel, and without the operations
    whose derivatives up to `order` are wrong, for the forward pass and every backward pass.

    Raises:
        RuntimeError: naming the remedy, where an operation in the loss has no second derivative.
    """
    try:
        with (
            sdpa_kernel(SDPBackend.MATH),
            _uncompiled(),
            composing(order),
            objective.scope(upper, lower) as evaluate,
        ):
            yield evaluate
    except RuntimeError as error:
        text = str(error)
        once = ("is not implemented", "double backward", "support automatic differentiation")
        if any(words in text for words in once):
            raise RuntimeError(
                "the lower loss has an operation without a second derivative "
                f"({text.splitlines()[0]}). "
                "Use attn_implementation='eager' or 'sdpa' and no torch.compile around the module, "
                "or a method that needs first derivatives only, such as darts()"
            ) from error
        raise
