"""What a problem is made of, refused with the remedy where it does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blo.derivatives.random_state import modules_named_by
from blo.steps.clipping import Clip

# Wrappers that average gradients in hooks of backward(), which the engine never calls.
WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel")


def check_parts(name: str, loss: Any, modules: Any, optimizer: Any, method: Any) -> None:
    """Raise unless name, loss, modules, optimizer and method are of the right kinds."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"name must be a non-empty string, got {name!r}")
    if not callable(loss):
        raise TypeError(f"loss must be callable, got {loss!r} for problem {name!r}")
    if not modules or not all(isinstance(m, nn.Module) for m in modules):
        raise TypeError(
            f"module must be a torch.nn.Module or a sequence of them, got {modules!r} for "
            f"problem {name!r}"
        )
    _refuse_wrapped(name, (*modules, *modules_named_by(loss)))
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, got {optimizer!r} for problem {name!r}"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError(
            f"optimizer of problem {name!r} must take step() without a closure, got LBFGS; use "
            "a first-order optimizer"
        )
    if not callable(getattr(method, "response", None)):
        raise TypeError(
            f"method must be a hypergradient method such as darts() or cg(10), got {method!r} "
            f"for problem {name!r}"
        )


def _refuse_wrapped(name: str, modules: Iterable[nn.Module]) -> None:
    """Raise if a module is wrapped, or its parameters sharded, for another way to train in several
    processes.

    Raises:
        TypeError: naming the wrapper, with the remedy.
    """
    for module in modules:
        for part in module.modules():
            names = {c.__name__ for c in type(part).__mro__ if c.__module__.startswith("torch.")}
            for wrapper in names.intersection(WRAPPERS):
                sharded = wrapper != "DistributedDataParallel"
                raise TypeError(
                    f"a module of problem {name!r} is wrapped in {wrapper}, whose gradients are "
                    "averaged by backward() alone and not here; "
                    + (
                        "give the model before it was wrapped"
                        if sharded
                        else "give its .module, in the loss too"
                    )
                    + ": the Engine averages over the processes itself"
                )
        if any(
            type(p).__name__ == "DTensor" or hasattr(p, "_local_tensor")
            for p in module.parameters()
        ):
            raise TypeError(
                f"a module of problem {name!r} has sharded parameters (DTensor: fully_shard, or "
                "tensor parallelism), of which torch.autograd.grad returns gradients that no "
                "process has reduced; give a model whose parameters are whole on each process: the "
                "Engine averages over the processes itself"
            )


def check_pace(name: str, batches: Any, reads: Any, steps: Any, accumulate: Any) -> None:
    """Raise unless there are batches, or a declaration in their place, and counts are positive."""
    if batches is not None and not isinstance(batches, Iterable):
        raise TypeError(
            f"batches must be iterable, got {type(batches).__name__} for problem {name!r}; "
            "a problem without data takes batches=[None]"
        )
    if batches is None and reads is None:
        raise ValueError(
            f"batches is None for problem {name!r}, so that its loss cannot be probed: declare "
            "reads=[...], the problems whose parameters the loss uses; a problem without data "
            "takes batches=[None]"
        )
    if batches is None and accumulate != 1:
        raise ValueError(
            f"accumulate must be 1 where batches are handed in, got {accumulate!r} for problem "
            f"{name!r}; as many are averaged as are handed in at a time"
        )
    for argument, value in (("steps", steps), ("accumulate", accumulate)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(
                f"{argument} must be an integer of at least 1, got {value!r} for problem {name!r}"
            )


def check_step(
    name: str,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    start: Any,
    options: Mapping[str, Callable[[], Any]],
    clip: Any,
) -> None:
    """Raise unless what the steps are made of is of the right kinds and known to the optimizer."""
    if start is not None and not callable(start):
        raise TypeError(
            f"start must be a function without arguments, got {start!r} for problem {name!r}"
        )
    for option, function in options.items():
        if not callable(function):
            raise TypeError(
                f"options[{option!r}] must be a function without arguments, got {function!r} for "
                f"problem {name!r}; a fixed value belongs in the optimizer"
            )
        if any(option not in group for group in optimizer.param_groups):
            known = sorted(set(optimizer.param_groups[0]) - {"params"})
            raise ValueError(
                f"options[{option!r}] is not an option of {type(optimizer).__name__}, the "
                f"optimizer of problem {name!r}; it has {known}"
            )
    if "lr" in options and scheduler is not None:
        raise ValueError(
            f"problem {name!r} has a scheduler and options['lr'], which both set the "
            "learning rate; multiply them in the function, or leave one out"
        )
    if clip is not None and not isinstance(clip, Clip):
        raise TypeError(
            f"clip must be a Clip such as Clip(norm=1.0), got {clip!r} for problem {name!r}"
        )


def check_parameters(name: str, parameters: Sequence[Tensor]) -> None:
    """Raise unless there are parameters, all of them real, dense and with values."""
    if not parameters:
        raise ValueError(
            f"optimizer of problem {name!r} must hold at least one parameter with "
            "requires_grad=True, got none"
        )
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


def refuse_changed(name: str, known: Sequence[Tensor], now: Sequence[Tensor]) -> None:
    """Raise unless an optimizer holds the same parameters `now` as at first.

    Raises:
        RuntimeError: naming the parameter that was added, frozen or set free.
    """
    before, after = {id(p) for p in known}, {id(p) for p in now}
    if before == after:
        return
    added = [tuple(p.shape) for p in now if id(p) not in before]
    lost = [tuple(p.shape) for p in known if id(p) not in after]
    what = [f"new parameters of shapes {added}"] if added else []
    what += [f"no more of the parameters of shapes {lost} (frozen?)"] if lost else []
    raise RuntimeError(
        f"the optimizer of problem {name!r} holds {' and '.join(what)} since the problem "
        "was made; build the Problem, the ProblemGraph and the Engine again after freezing, "
        "unfreezing or add_param_group (modules, optimizers and their states can be used again)"
    )
