"""Graphs that are differentiated more than once: what has to hold while they are built and used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from blo.derivatives.composed import Composing, composing, refuse_wrong
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
        self._runs_python = False
        self._graphs = [self._build(objective, wanted) for objective in objectives]
        self._own = tuple(None if g is None else g.detach() for g in mean(self._graphs))

    @classmethod
    def known(
        cls,
        objectives: Sequence[Objective],
        wanted: Tensors,
        upper: Tensors,
        lower: Tensors,
        reduction: Reduction,
        graphs: list[Gradient],
        runs_python: bool,
    ) -> GradientGraph:
        """Return the same without an evaluation, where the gradient of each loss is there in its
        graph, and whether differentiating it runs Python is known.
        """
        found = cls((), wanted, upper, lower, reduction)
        found._objectives, found._graphs, found._runs_python = objectives, graphs, runs_python
        found._own = tuple(None if g is None else g.detach() for g in mean(graphs))
        return found

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
        if self._runs_python:
            for objective, graph in zip(self._objectives, graphs, strict=True):
                with twice_differentiable(objective, self._upper, self._lower):
                    pieces.append(pulled_back(graph, inputs, weights, keep=keep))
        else:
            try:
                pieces = [pulled_back(graph, inputs, weights, keep=keep) for graph in graphs]
            except RuntimeError as error:
                _explain(error)
                raise
        return self._reduction.gradient(mean(pieces), inputs)[0]

    def _build(self, objective: Objective, wanted: Tensors) -> Gradient:
        mode = composing(2)
        with differentiable_again(), objective.scope(self._upper, self._lower) as evaluate:
            with mode:
                loss = evaluate()
            gradient, runs_python = gradient_in_graph(loss, wanted, mode)
        self._runs_python |= runs_python
        return gradient


def gradient_in_graph(loss: Tensor, wanted: Tensors, mode: Composing) -> tuple[Gradient, bool]:
    """Return the gradient of a loss in its graph, and whether Python runs where that is
    differentiated again.

    Args:
        loss: evaluated within `mode`.
        wanted: the leaves that the gradient is for, or tensors where the graph is looked at no
            further.
        mode: left again; entered for the gradient only if Python runs in it.

    Raises:
        RuntimeError: where it cannot be differentiated again.
    """
    seen = Nodes(2, wanted)
    seen.look((loss,))
    runs_python = seen.runs_python or mode.is_hooked
    with mode if runs_python else nullcontext():
        gradient = torch.autograd.grad(loss, wanted, create_graph=True, allow_unused=True)
    seen.look(gradient)
    return gradient, runs_python or seen.runs_python or mode.is_hooked


def refuse_cut_graph(outputs: Gradient, inputs: Tensors = (), *, order: int = 2) -> None:
    """Raise if the graph from `inputs` to `outputs` was cut by an operation that can be
    differentiated only once, or has one whose derivatives up to `order` are wrong in torch.

    Torch marks a cut by a node that raises when it runs, but `torch.autograd.grad` with inputs
    passes over it, and the second derivative comes out silently wrong.

    Raises:
        RuntimeError: naming the remedy (through `twice_differentiable`).
    """
    Nodes(order, inputs).look(outputs)


class Nodes:
    """The nodes of graphs, each looked at once.

    Args:
        order: up to which the graphs are differentiated.
        inputs: where they end.

    Attributes:
        runs_python: whether one of the nodes runs Python when it is differentiated, other than
            functions of this library that enter the scopes that they need themselves
            (``is_self_contained``).
    """

    def __init__(self, order: int, inputs: Tensors = ()) -> None:
        self.runs_python = False
        self._order = order
        self._sound = _SOUND.setdefault(order, set())
        self._seen = {t.grad_fn for t in inputs}

    def look(self, outputs: Gradient) -> None:
        """Look at the nodes below `outputs`; see `refuse_cut_graph`."""
        seen, sound = self._seen, self._sound
        waiting = [t.grad_fn for t in outputs if t is not None and t.grad_fn is not None]
        waiting = [node for node in dict.fromkeys(waiting) if node not in seen]
        seen.update(waiting)
        while waiting:
            node = waiting.pop()
            if type(node) not in sound:
                self._examine(node)
            for following, _ in node.next_functions:
                if following is not None and following not in seen:
                    seen.add(following)
                    waiting.append(following)

    def _examine(self, node: Any) -> None:
        name = node.name()
        refuse_wrong(name, self._order)
        if name.endswith("::Error"):
            raise RuntimeError("double backward through a once_differentiable function")
        if isinstance(node, torch.autograd.function.FunctionCtx):
            function = getattr(type(node), "_forward_cls", None)
            self.runs_python |= not getattr(function, "is_self_contained", False)
        elif (
            type(node).__name__ == name
        ):  # torch's own; nodes without a type of their own share one
            self._sound.add(type(node))


# Types of nodes, by order, that are neither refused nor run Python.
_SOUND: dict[int, set[type]] = {}


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
    objective: Objective,
    upper: Tensors,
    lower: Tensors,
    *,
    order: int = 2,
) -> Iterator[Callable[[], Tensor]]:
    """Enter the objective's scope with attention on the math kernel, and without the operations
    whose derivatives up to `order` are wrong, for the forward pass and every backward pass.

    Raises:
        RuntimeError: naming the remedy, where an operation in the loss has no second derivative.
    """
    with differentiable_again(), composing(order), objective.scope(upper, lower) as evaluate:
        yield evaluate


@contextmanager
def differentiable_again() -> Iterator[None]:
    """Run a block with attention on the math kernel and without compilation: its graphs can be
    differentiated again, where their operations have right derivatives (`composing`).

    Raises:
        RuntimeError: naming the remedy, where an operation in the loss has no second derivative.
    """
    try:
        with sdpa_kernel(SDPBackend.MATH), _uncompiled():
            yield
    except RuntimeError as error:
        _explain(error)
        raise


def _explain(error: RuntimeError) -> None:
    """Raise with the remedy if `error` is torch's about a second derivative that is not there."""
    text = str(error)
    once = ("is not implemented", "double backward", "support automatic differentiation")
    if any(words in text for words in once):
        raise RuntimeError(
            "the lower loss has an operation without a second derivative "
            f"({text.splitlines()[0]}). "
            "Use attn_implementation='eager' or 'sdpa' and no torch.compile around the module, "
            "or a method that needs first derivatives only, such as darts()"
        ) from error
