"""Operations that torch differentiates wrongly, composed of operations that it differentiates
rightly, or refused.

`WRONG` says which, as measured by the test that compares every derivative with differences of the
one before. `composing` puts the compositions in their place while a graph is built, and
`refuse_wrong` is the net below it, for calls that Python does not see (TorchScript, C++).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from blo.derivatives.compositions import OPERATIONS, Operation

# By version of torch: the lowest order from which the derivatives of an operation are wrong. The
# newest version listed speaks for versions that are not.
WRONG: dict[str, dict[str, int]] = {
    "2.13": {"weight_norm": 2, "pow": 2, "layer_norm": 3, "batch_norm": 3, "logcumsumexp": 3},
}


def wrong_orders(version: str = torch.__version__) -> dict[str, int]:
    """Return the entry of `WRONG` for a version of torch, or the newest one."""
    newest = max(WRONG, key=lambda listed: tuple(int(part) for part in listed.split(".")))
    return WRONG.get(".".join(version.split(".")[:2]), WRONG[newest])


@cache
def _table(order: int) -> dict[Any, Operation]:
    """Return the operations that are wrong up to `order`, by all their spellings."""
    return {
        spelling: OPERATIONS[name]
        for name, wrong_from in wrong_orders().items()
        if wrong_from <= order
        for spelling in OPERATIONS[name].spellings
    }


@cache
def _nodes(order: int) -> dict[str, str]:
    """Return the names of the operations that are wrong up to `order`, by those of their nodes."""
    listed = wrong_orders().items()
    return {n: name for name, low in listed if low <= order for n in OPERATIONS[name].nodes}


def composing(order: int) -> Composing:
    """Return a context for building a graph that will be differentiated up to `order` times, in
    which no operation has a wrong derivative.

    The operations that have one are composed of elementary ones, whatever they are called by.
    Their values, types, errors and running statistics stay torch's: the operation itself is called
    beside its composition, without graph. Costs a call of a Python function for each call of torch.

    Example:
        >>> import torch
        >>> from torch.nn.functional import layer_norm
        >>> x = torch.randn(2, 3, requires_grad=True)
        >>> layer_norm(x, (3,)).grad_fn.name()
        'NativeLayerNormBackward0'
        >>> with composing(3):
        ...     layer_norm(x, (3,)).grad_fn.name()
        'MulBackward0'
    """
    return Composing(_table(order))


# Returns the hooks for saved tensors that are set now.
_hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks


def refuse_wrong(node: str, order: int) -> None:
    """Raise if a graph with a node of this name has wrong derivatives up to `order`.

    Raises:
        RuntimeError: naming the operation and the remedy.
    """
    name = _nodes(order).get(node)
    if name is None:
        return
    remedy = (
        "use products=FiniteDifference() or a method of first derivatives, such as darts()"
        if order == 2
        else "set through_response=False on the problem above, which needs this order"
    )
    raise RuntimeError(
        f"torch's derivatives of {name} ({node}) are wrong from order {wrong_orders()[name]} on, "
        f"and order {order} is needed; call it from Python, so that it can be composed of other "
        f"operations (TorchScript and C++ hide it), or {remedy}"
    )


class Composing(TorchFunctionMode):
    """The context of `composing`.

    Attributes:
        is_hooked: whether a call came while hooks for saved tensors were set: what was saved then
            is computed by Python when the graph is differentiated (activation checkpointing).
    """

    def __init__(self, table: dict[Any, Operation]) -> None:
        super().__init__()
        self.is_hooked = False
        self._table = table

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace the functions in the table and pass all others through."""
        kwargs = kwargs or {}
        if not (self.is_hooked or torch.compiler.is_compiling()):
            self.is_hooked = _hooks(True) is not None
        if func is torch.autograd.grad:
            return self._grad(*args, **kwargs)
        operation = self._table.get(func)
        if (
            operation is None
            or not torch.is_grad_enabled()
            or not operation.applies(*args, **kwargs)
        ):
            return func(*args, **kwargs)
        with torch.no_grad():
            plain = func(*args, **kwargs)
        composed = operation.spellings[func](*args, **kwargs)
        if isinstance(plain, Tensor):
            return composed.to(plain.dtype)
        return tuple(c.to(p.dtype) for c, p in zip(composed, plain, strict=True))

    def _grad(
        self, outputs: Any, inputs: Any, materialize_grads: bool = False, **options: Any
    ) -> tuple[Tensor | None, ...]:
        """Return ``torch.autograd.grad(...)``, taken inside the block.

        Torch leaves the block for the length of a call, and activation checkpointing runs the
        forward pass again in this one. A call on edges of the graph is not handed to the block.
        """
        if not all(isinstance(t, Tensor) and t.requires_grad for t in (*outputs, *inputs)):
            options["materialize_grads"] = materialize_grads
            plain: tuple[Tensor | None, ...] = torch.autograd.grad(outputs, inputs, **options)
            return plain
        ends: Any = [[get_gradient_edge(t) for t in tensors] for tensors in (outputs, inputs)]
        with self:
            grads: tuple[Tensor | None, ...] = torch.autograd.grad(*ends, **options)
        if not materialize_grads:
            return grads
        pairs = zip(grads, inputs, strict=True)
        return tuple(torch.zeros_like(t) if g is None else g for g, t in pairs)
