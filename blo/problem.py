"""One node of a problem graph."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blo.derivatives.pullback import Gradient
from blo.derivatives.random_state import generators_of
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
        generators: random generators of your own that `loss` draws from (torch.Generator,
            numpy.random.Generator, random.Random), so that an evaluation is repeated with the same
            draws. Those in the modules, and those that the closure refers to, are found; so is the
            global state of torch, numpy and Python.

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
        generators: Sequence[Any] = (),
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
        self.generators = (*generators, *generators_of(loss, modules))
        self.edits_batch = False
        self.changes: tuple[int, ...] = ()
        self.parameters: tuple[Tensor, ...] = tuple(
            p for group in optimizer.param_groups for p in group["params"] if p.requires_grad
        )
        if not self.parameters:
            raise ValueError(
                f"optimizer of problem {name!r} must hold at least one parameter with "
                "requires_grad=True, got none"
            )

    def learning_rate(self) -> float:
        """Return the learning rate of the optimizer's first group; NaN where it has none."""
        lr = self.optimizer.param_groups[0].get("lr")
        return math.nan if lr is None else float(lr)

    def check_parameters(self) -> None:
        """Raise unless the optimizer holds the parameters that it held at first.

        Raises:
            RuntimeError: naming the parameter that was added, frozen or set free.
        """
        now = [p for g in self.optimizer.param_groups for p in g["params"] if p.requires_grad]
        known = {id(p) for p in self.parameters}
        if len(now) == len(known) and all(id(p) in known for p in now):
            return
        added = [tuple(p.shape) for p in now if id(p) not in known]
        lost = [tuple(p.shape) for p in self.parameters if not any(p is q for q in now)]
        what = [f"new parameters of shapes {added}"] if added else []
        what += [f"no more of the parameters of shapes {lost} (frozen?)"] if lost else []
        raise RuntimeError(
            f"the optimizer of problem {self.name!r} holds {' and '.join(what)} since the problem "
            "was made; build the Problem, the ProblemGraph and the Engine again after freezing, "
            "unfreezing or add_param_group (modules, optimizers and their states can be used again)"
        )

    def step(self, gradient: Gradient, loss: float) -> None:
        """Hand `gradient` to the optimizer, and let the scheduler follow.

        What the optimizer and its hooks edit in place is theirs alone: a gradient that shares its
        memory is copied.
        """
        for parameter, g in zip(self.parameters, owned(gradient), strict=True):
            parameter.grad = g
        self.optimizer.step()
        for parameter in self.parameters:
            parameter.grad = None
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(loss)
        elif self.scheduler is not None:
            self.scheduler.step()

    @property
    def device(self) -> torch.device:
        """The device of the problem's first parameter, where its batches go."""
        return self.parameters[0].device

    @staticmethod
    def learning_rates(options: Sequence[Mapping[str, Any]]) -> tuple[float | None, ...]:
        """Return the learning rate of each parameter in `options`; None where the optimizer chooses
        it by itself.
        """
        rates = (o.get("lr") for o in options)
        return tuple(None if lr is None else float(lr) for lr in rates)

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

    def weight_decay(self, options: Sequence[Mapping[str, Any]]) -> tuple[float, ...] | None:
        """Return the factor ``w`` of the penalty ``w/2 |p|^2`` that the optimizer adds to the loss,
        for each parameter with its `options`.

        None where it adds nothing: no decay, decoupled decay (AdamW), or an optimizer that torch
        does not ship.
        """
        if not isinstance(self.optimizer, COUPLED):
            return None
        decays = tuple(
            0.0 if o.get("decoupled_weight_decay") else float(o.get("weight_decay", 0.0))
            for o in options
        )
        return decays if any(decays) else None

    @staticmethod
    def signs(options: Sequence[Mapping[str, Any]]) -> tuple[float, ...] | None:
        """Return -1 for each parameter that the optimizer maximises the loss over, else 1; None
        where it maximises nothing.
        """
        signs = tuple(-1.0 if o.get("maximize") else 1.0 for o in options)
        return signs if -1.0 in signs else None

    def _groups(self) -> list[dict[str, Any]]:
        """Return the parameter group of each parameter, in the order of `parameters`."""
        found = {id(p): group for group in self.optimizer.param_groups for p in group["params"]}
        return [found[id(p)] for p in self.parameters]

    def __repr__(self) -> str:
        """Return the name, the size and the settings."""
        size = sum(p.numel() for p in self.parameters)
        settings = f"{size:,} parameters, steps={self.steps}, method={self.method!r}"
        return f"Problem({self.name!r}, {settings})"


def owned(gradient: Gradient) -> list[Tensor | None]:
    """Return a gradient whose tensors own their memory: those that share it, or do not fill it (an
    expanded gradient), are copied.
    """
    seen: set[int] = set()
    found: list[Tensor | None] = []
    for g in gradient:
        if g is None or g.is_sparse:
            found.append(g)
            continue
        storage = g.untyped_storage()
        whole = storage.nbytes() == g.numel() * g.element_size()
        alone = whole and storage.data_ptr() not in seen and not g.requires_grad
        found.append(g if alone else g.detach().clone(memory_format=torch.contiguous_format))
        seen.add(storage.data_ptr())
    return found


def _name(problem: str | Problem) -> str:
    return problem.name if isinstance(problem, Problem) else problem
