"""Graphs that are differentiated more than once: what has to hold while they are built and used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from blo.derivatives.objective import Objective
from blo.linear.tensors import Tensors


def refuse_cut_graph(outputs: Tensors) -> None:
    """Raise if the graph of `outputs` was cut by an operation that can be differentiated only once.

    Torch marks such a place by a node that raises when it runs, but `torch.autograd.grad` with
    inputs passes over it, and the second derivative comes out silently wrong.

    Raises:
        RuntimeError: naming the remedy (through `twice_differentiable`).
    """
    waiting = [t.grad_fn for t in outputs if t.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node.name().endswith("::Error"):
            raise RuntimeError("double backward through a once_differentiable function")
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)


@contextmanager
def twice_differentiable(
    objective: Objective, upper: Tensors, lower: Tensors
) -> Iterator[Callable[[], Tensor]]:
    """Enter the objective's scope with attention on the math kernel, for the forward pass and every
    backward pass.

    Raises:
        RuntimeError: naming the remedy, where an operation in the loss has no second derivative.
    """
    try:
        with sdpa_kernel(SDPBackend.MATH), objective.scope(upper, lower) as evaluate:
            yield evaluate
    except RuntimeError as error:
        text = str(error)
        if "is not implemented" in text or "double backward" in text:
            raise RuntimeError(
                "the lower loss has an operation without a second derivative "
                f"({text.splitlines()[0]}). "
                "Use attn_implementation='eager' or 'sdpa' and no torch.compile around the module, "
                "or a method that needs "
                "first derivatives only, such as darts()"
            ) from error
        raise
