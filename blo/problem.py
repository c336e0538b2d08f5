"""One node of a problem graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blo.evaluation import Loss
from blo.methods.context import Method
from blo.methods.named import darts

# Torch's optimizers that add ``weight_decay * parameter`` to the gradient, unless the group says
# that it is decoupled.
COUPLED = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.RMSprop,
    torch.optim.ASGD,
)


class Problem:
    """A loss, the parameters that minimise it, and how they are updated.

    Args:
        name: unique in its graph.
        loss: ``loss(batch)``, a closure over modules; returns a scalar tensor or a dict that holds
            one under "loss".
        module: the module, or modules, that hold the parameters. Several problems may name the same
            module.
        optimizer: any torch optimizer; the parameters in its groups are this problem's. Groups,
            state and hooks are kept.
        batches: what `loss` is called with, one after the other: a DataLoader, a list, anything
            that can be iterated again.
        steps: updates of this problem for one update of the problems above it.
        reads: names of the other problems whose parameters `loss` depends on. Found by probing one
            batch if None; a declaration that the probe contradicts is an error.
        method: how this problem's solution responds to the problems above it that it reads.
        scheduler: a learning-rate scheduler of `optimizer`, stepped after each update.
        accumulate: number of batches whose gradients are averaged for one update, the
            hypergradient's included.
        through_response: for a problem that reads one below it. True: its Hessian sees the response
            of the problems below (exact). False: they are taken as constant, cheaper and biased;
            the graph warns.

    Raises:
        TypeError, ValueError: naming the argument, its value and the remedy.

    Example:
        >>> import torch
        >>> weight = torch.nn.Linear(1, 1, bias=False)
        >>> loss = lambda batch: (weight(batch) - 1).square().mean()
        >>> sgd = torch.optim.SGD(weight.parameters(), 0.1)
        >>> Problem("fit", loss, weight, sgd, [torch.ones(4, 1)], steps=2)
        Problem('fit', 1 parameters, steps=2, method=OneStep(scale=None, products=...))
    """

    def __init__(
        self,
        name: str,
        loss: Loss,
        module: nn.Module | Sequence[nn.Module],
        optimizer: torch.optim.Optimizer,
        batches: Iterable[Any],
        *,
        steps: int = 1,
        reads: Sequence[str | Problem] | None = None,
        method: Method | None = None,
        scheduler: Any = None,
        accumulate: int = 1,
        through_response: bool = True,
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ValueError(f"name must be a non-empty string, got {name!r}")
        if not callable(loss):
            raise TypeError(f"loss must be callable, got {loss!r} for problem {name!r}")
        modules = (module,) if isinstance(module, nn.Module) else tuple(module)
        if not modules or not all(isinstance(m, nn.Module) for m in modules):
            raise TypeError(
                f"module must be a torch.nn.Module or a sequence of them, got {module!r} for "
                f"problem {name!r}"
            )
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer, got {optimizer!r} for problem {name!r}"
            )
        if isinstance(optimizer, torch.optim.LBFGS):
            raise TypeError(
                f"optimizer of problem {name!r} must take step() without a closure, got LBFGS; use "
                "a first-order optimizer"
            )
        if not isinstance(batches, Iterable):
            raise TypeError(
                f"batches must be iterable, got {type(batches).__name__} for problem {name!r}; "
                "a problem without data takes batches=[None]"
            )
        for argument, value in (("steps", steps), ("accumulate", accumulate)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(
                    f"{argument} must be an integer of at least 1, got {value!r} for problem "
                    f"{name!r}"
                )
        method = darts() if method is None else method
        if not callable(getattr(method, "response", None)):
            raise TypeError(
                f"method must be a hypergradient method such as darts() or cg(10), got {method!r} "
                f"for problem {name!r}"
            )
        self.name = name
        self.loss = loss
        self.modules = modules
        self.optimizer = optimizer
        self.batches = batches
        self.steps = steps
        self.reads = None if reads is None else tuple(_name(r) for r in reads)
        self.method = method
        self.scheduler = scheduler
        self.accumulate = accumulate
        self.through_response = through_response
        self.parameters: tuple[Tensor, ...] = tuple(
            p for group in optimizer.param_groups for p in group["params"] if p.requires_grad
        )
        if not self.parameters:
            raise ValueError(
                f"optimizer of problem {name!r} must hold at least one parameter with "
                "requires_grad=True, got none"
            )
        _refuse_unfit(name, self.parameters)

    @property
    def device(self) -> torch.device:
        """The device of the problem's first parameter, where its batches go."""
        return self.parameters[0].device

    def learning_rates(self) -> tuple[float, ...]:
        """Return the optimizer's current learning rate of each parameter."""
        return tuple(float(group["lr"]) for group in self._groups())

    def options(self) -> tuple[dict[str, Any], ...]:
        """Return the options of each parameter's group, without the parameters.

        Tensors among them are copied, since schedulers change them in place.
        """
        return tuple(
            {
                k: v.detach().clone() if isinstance(v, Tensor) else v
                for k, v in g.items()
                if k != "params"
            }
            for g in self._groups()
        )

    def optimizer_states(self) -> tuple[dict[str, Any], ...]:
        """Return a copy of the optimizer's state of each parameter; empty before its first step."""
        return tuple(
            {
                k: v.detach().clone() if isinstance(v, Tensor) else v
                for k, v in self.optimizer.state.get(p, {}).items()
            }
            for p in self.parameters
        )

    def coupled_weight_decay(self) -> tuple[float, ...] | None:
        """Return the factor ``w`` of the penalty ``w/2 |p|^2`` that the optimizer adds to the loss,
        for each parameter.

        None where it adds nothing: no decay, decoupled decay (AdamW), or an optimizer that torch
            does not ship.
        """
        if not isinstance(self.optimizer, COUPLED):
            return None
        decays = tuple(
            0.0 if group.get("decoupled_weight_decay") else float(group.get("weight_decay", 0.0))
            for group in self._groups()
        )
        return decays if any(decays) else None

    def sign(self) -> float:
        """Return -1 if the optimizer maximises the loss, else 1."""
        return -1.0 if self.optimizer.param_groups[0].get("maximize") else 1.0

    def _groups(self) -> list[dict[str, Any]]:
        """Return the parameter group of each parameter, in the order of `parameters`."""
        found = {id(p): group for group in self.optimizer.param_groups for p in group["params"]}
        return [found[id(p)] for p in self.parameters]

    def __repr__(self) -> str:
        """Return the name, the size and the settings."""
        size = sum(p.numel() for p in self.parameters)
        settings = f"{size:,} parameters, steps={self.steps}, method={self.method!r}"
        return f"Problem({self.name!r}, {settings})"


def _refuse_unfit(name: str, parameters: Iterable[Tensor]) -> None:
    """Raise unless all parameters are real, dense and have values."""
    for i, p in enumerate(parameters):
        if nn.parameter.is_lazy(p):
            found, remedy = "one without a shape", "call the lazy module once before"
        elif p.is_meta:
            found, remedy = "one on the meta device", "load the weights onto a device before"
        elif p.is_complex():
            found = f"{p.dtype}"
            remedy = (
                "keep the real and imaginary parts as real parameters (torch.view_as_real), and "
                "build the complex tensor in the loss"
            )
        elif p.layout != torch.strided:
            found, remedy = f"{p.layout}", "use a dense parameter (to_dense())"
        else:
            continue
        raise TypeError(
            f"parameters of problem {name!r} must be real and dense tensors with values, got "
            f"{found} for number {i} of its optimizer; {remedy}"
        )


def _name(problem: str | Problem) -> str:
    return problem.name if isinstance(problem, Problem) else problem
