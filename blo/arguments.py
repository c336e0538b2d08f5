"""Checks of the arguments of problems, graphs and engines, with errors that name the argument, its
value and the remedy.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from blo.derivatives.random_state import is_generator, modules_named_by
from blo.derivatives.sharded import fully_sharded, is_sharded
from blo.methods.context import Requirements
from blo.steps.clipping import Clip
from blo.steps.registry import unwrapped

# Wrappers that average gradients in hooks of backward(), which the engine never calls.
WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel")


def described(value: object) -> str:
    """Return what a value is in a few words, on one line."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {getattr(value, '__name__', '?')}"
    if value is None or isinstance(value, (str, int, float, torch.dtype)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        kinds = ", ".join(described(v) for v in value[:3])
        return f"a {type(value).__name__} of {kinds or 'nothing'}{', ...' * (len(value) > 3)}"
    text = repr(value)
    short = len(text) <= 60 and "\n" not in text and " at 0x" not in text
    return text if short else f"an object of type {type(value).__name__}"


def check_name(name: Any) -> None:
    """Raise ValueError unless `name` is a string that is not empty, and can stand in messages and
    in keys such as "problem <- lower problem".
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"name must be a non-empty string, got {described(name)}")
    if "<-" in name or not name.isprintable():
        raise ValueError(f"name must be printable and without '<-', got {name!r}")


def check_loss(loss: Any, name: str) -> None:
    """Raise TypeError unless `loss` can be called with a batch."""
    if not callable(loss):
        remedy = "; give the function, not its value" if isinstance(loss, Tensor) else ""
        raise TypeError(
            f"loss must be callable, got {described(loss)} for problem {name!r}{remedy}"
        )
    if isinstance(loss, type):
        raise TypeError(
            f"loss must be a function of a batch, got {described(loss)} for problem {name!r}; "
            "make an object of it, and call that in a function of the batch"
        )
    if isinstance(loss, nn.modules.loss._Loss):
        raise TypeError(
            f"loss must be a function of a batch, got the criterion {type(loss).__name__} for "
            f"problem {name!r}; write lambda batch: criterion(net(batch[0]), batch[1])"
        )
    try:
        inspect.signature(loss).bind(None)
    except TypeError:
        raise TypeError(
            f"loss must take one argument, the batch, got {described(loss)} with the arguments "
            f"{inspect.signature(loss)} for problem {name!r}"
        ) from None
    except ValueError:  # a built-in function without a signature
        return


def modules_of(module: Any, name: str) -> tuple[nn.Module, ...]:
    """Return the modules of a problem.

    Raises:
        TypeError: unless they are modules.
    """
    given = module if isinstance(module, (list, tuple)) else (module,)
    if given and all(isinstance(m, nn.Module) for m in given):
        return tuple(given)
    remedy = ""
    if any(isinstance(m, Tensor) for m in given) or inspect.isgenerator(module):
        remedy = "; give the module that holds the parameters, or nn.ParameterList([...])"
    elif any(isinstance(m, type) for m in given):
        remedy = "; make an object of it"
    elif any(callable(m) for m in given):
        remedy = "; the function is the loss, the module is what holds the parameters it uses"
    raise TypeError(
        f"module must be a torch.nn.Module or a sequence of them, got {described(module)} for "
        f"problem {name!r}{remedy}"
    )


def check_optimizer(optimizer: Any, name: str) -> None:
    """Raise unless `optimizer` is one, with options that are finite."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        remedy = ""
        if isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer):
            remedy = f"; write {optimizer.__name__}(module.parameters(), lr=...)"
        elif hasattr(optimizer, "optimizer"):
            remedy = "; give the scheduler as scheduler=, and its optimizer here"
        elif isinstance(optimizer, (list, tuple)):
            remedy = "; several learning rates are groups of one optimizer"
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, got {described(optimizer)} for problem "
            f"{name!r}{remedy}"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError(
            f"optimizer of problem {name!r} must take step() without a closure, got LBFGS; use "
            "a first-order optimizer"
        )
    for group in optimizer.param_groups:
        for key, value in group.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(
                    f"the optimizer of problem {name!r} has {key}={value}, which is not finite; "
                    "give it a number"
                )


def check_count(argument: str, value: Any, name: str) -> None:
    """Raise ValueError unless `value` is an integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(
            f"{argument} must be an integer of at least 1, got {described(value)} for problem "
            f"{name!r}"
        )


def refuse_wrapped(name: str, loss: Any, given: Sequence[nn.Module]) -> None:
    """Raise if a module is wrapped, or its parameters sharded, for another way to train in several
    processes.

    Raises:
        TypeError: naming the wrapper, with the remedy.
    """
    for module in (*given, *modules_named_by(loss)):
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
        known = {id(p) for part in fully_sharded(module) for p in part.parameters()}
        if any(is_sharded(p) and id(p) not in known for p in module.parameters()):
            raise TypeError(
                f"a module of problem {name!r} has distributed parameters (DTensor) that are not "
                "those of fully_shard, such as tensor parallelism's or a part of a sharded model; "
                "give the model that fully_shard was called on, or one whose parameters are whole "
                "on each process: the Engine averages over the processes itself"
            )


def check_batches(batches: Any, reads: Any, accumulate: int, name: str) -> None:
    """Raise unless `batches` can be iterated and are no single batch, or are None and all else is
    as it must be then.
    """
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
    if batches is None:
        return
    got = f"got {described(batches)} for problem {name!r}"
    if isinstance(batches, type) or not isinstance(batches, Iterable):
        remedy = "a problem without data takes batches=[None]"
        if isinstance(batches, type):
            remedy = "make an object of it"
        elif isinstance(batches, Dataset):
            remedy = "write DataLoader(dataset, batch_size=...)"
        elif callable(batches):
            remedy = "give what it returns, or a list of it"
        raise TypeError(f"batches must be iterable, {got}; {remedy}")
    pair = isinstance(batches, tuple) and len(batches) > 1
    pair = pair and all(isinstance(b, Tensor) for b in batches)
    if pair and len({(t.shape, t.dtype) for t in batches}) > 1:
        raise TypeError(f"batches must be several batches, {got}; write [batch] if this is one")
    if isinstance(batches, (Tensor, str, bytes, Mapping)):
        raise TypeError(f"batches must be several batches, {got}; write [batch] if this is one")


def check_flag(argument: str, value: Any, name: str) -> None:
    """Raise TypeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(
            f"{argument} must be True or False, got {described(value)} for problem {name!r}"
        )


def names_of(reads: Any, name: str) -> tuple[str, ...] | None:
    """Return the names of the problems that a loss is declared to read.

    Raises:
        TypeError: unless they are a list of names or problems.
    """
    if reads is None:
        return None
    items = reads if isinstance(reads, (list, tuple, set, frozenset)) else (None,)
    names = [r if isinstance(r, str) else getattr(r, "name", None) for r in items]
    if not all(isinstance(n, str) for n in names):
        one = f"; write reads=[{reads!r}]" if isinstance(reads, str) else ""
        raise TypeError(
            f"reads must be a list of names of problems, got {described(reads)} for problem "
            f"{name!r}{one}"
        )
    return tuple(n for n in names if isinstance(n, str))


def check_method(method: Any, name: str) -> None:
    """Raise TypeError unless `method` is a hypergradient method."""
    is_method = not isinstance(method, type) and callable(getattr(method, "response", None))
    if is_method and isinstance(getattr(method, "requirements", None), Requirements):
        return
    remedy = ""
    if isinstance(method, type) or inspect.isfunction(method):
        remedy = f"; call it, such as {method.__name__}()"
    elif isinstance(method, str):
        remedy = "; methods are objects: write from blo import cg, and method=cg(10)"
    elif is_method:
        remedy = "; its requirements must be a Requirements"
    raise TypeError(
        f"method must be a hypergradient method such as darts() or cg(10), got {described(method)} "
        f"for problem {name!r}{remedy}"
    )


def check_scheduler(scheduler: Any, optimizer: torch.optim.Optimizer, name: str) -> None:
    """Raise unless `scheduler` is None or a scheduler of `optimizer`."""
    if scheduler is None:
        return
    methods = ("step", "state_dict", "load_state_dict")
    whole = all(callable(getattr(scheduler, m, None)) for m in methods)
    if isinstance(scheduler, (type, torch.optim.Optimizer)) or not whole:
        raise TypeError(
            f"scheduler must be a learning-rate scheduler, got {described(scheduler)} for problem "
            f"{name!r}; it needs step(), state_dict() and load_state_dict(), such as "
            "StepLR(optimizer, 10)"
        )
    its = getattr(scheduler, "optimizer", None)
    if isinstance(its, torch.optim.Optimizer) and unwrapped(its) is not unwrapped(optimizer):
        raise ValueError(
            f"scheduler of problem {name!r} is a {type(scheduler).__name__} of another optimizer; "
            "make it with the optimizer of this problem"
        )


def check_generators(generators: Any, name: str) -> None:
    """Raise TypeError unless `generators` is a sequence of random generators."""
    items: Sequence[Any] = generators if isinstance(generators, (list, tuple)) else (None,)
    if not all(is_generator(g) for g in items):
        remedy = "; write generators=[generator]" if is_generator(generators) else ""
        raise TypeError(
            "generators must be a list of the types torch.Generator, random.Random, "
            "numpy.random.Generator or numpy.random.RandomState, got "
            f"{described(generators)} for problem {name!r}{remedy}"
        )


def options_of(options: Any, name: str) -> dict[str, Any]:
    """Return the functions of options by name.

    Raises:
        TypeError: unless they are a dictionary.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise TypeError(
            "options must be a dictionary of functions by the names of options, got "
            f"{described(options)} for problem {name!r}; write options={{'lr': function}}"
        )
    return dict(options)


def check_values(parameters: Sequence[Tensor], name: str) -> None:
    """Raise ValueError unless all parameters are finite."""
    if not parameters:
        return
    with torch.no_grad():
        place = parameters[0].device
        finite = [torch.isfinite(p).all().to(place) for p in parameters]
        if bool(torch.stack(finite).all()):
            return
    i = next(i for i, f in enumerate(finite) if not bool(f))
    raise ValueError(
        f"parameter {i} in the optimizer of problem {name!r}, of shape "
        f"{tuple(parameters[i].shape)}, is not finite; its initial values are damaged (a broken "
        "checkpoint?): load or initialise it again"
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
            f"start must be a function without arguments, got {described(start)} for "
            f"problem {name!r}"
        )
    for option, function in options.items():
        if not callable(function):
            raise TypeError(
                f"options[{option!r}] must be a function without arguments, got "
                f"{described(function)} for problem {name!r}; a fixed value belongs in the "
                "optimizer"
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
            f"clip must be a Clip such as Clip(norm=1.0), got {described(clip)} for "
            f"problem {name!r}"
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


def refuse_silent_hooks(name: str, parameters: Sequence[Tensor]) -> None:
    """Raise where a parameter has a hook that would never run
    (``register_post_accumulate_grad_hook``): gradients are computed without being accumulated. One
    that only watches plain backward passes says so by an attribute ``only_watches``.

    Raises:
        RuntimeError: with the remedy.
    """
    for i, parameter in enumerate(parameters):
        for hook in (getattr(parameter, "_post_accumulate_grad_hooks", None) or {}).values():
            if not getattr(hook, "only_watches", False):
                raise RuntimeError(
                    f"a hook (register_post_accumulate_grad_hook) of parameter {i} of problem "
                    f"{name!r}, of shape {tuple(parameter.shape)}, would never run: gradients are "
                    "computed without being accumulated; use optimizer.register_step_pre_hook, or "
                    "give a hook that only watches plain backward passes the attribute "
                    "only_watches = True"
                )


def refuse_hooks(name: str, parameters: Sequence[Tensor], tried: set[int]) -> None:
    """Raise where a hook of a parameter (``register_hook``) changes its gradient: it runs in some
    evaluations and not in others, and no method differentiates it.

    Args:
        name: of the problem.
        parameters: of the problem.
        tried: the numbers of the hooks that were looked at, each of which is called with zeros
            once; those of new ones are added.

    Raises:
        RuntimeError: with the remedy.
    """
    for i, parameter in enumerate(parameters):
        hooks = parameter._backward_hooks or {}
        for number in [n for n in hooks if n not in tried]:
            tried.add(number)
            with torch.no_grad():
                given = torch.zeros_like(parameter)
                returned = hooks[number](given)
            if given._version or not (returned is None or returned is given):
                raise RuntimeError(
                    f"a hook (register_hook) changes the gradient of parameter {i} of problem "
                    f"{name!r}, of shape {tuple(parameter.shape)}, which the methods do not see: "
                    "put it in the loss, such as mask * y + ((1 - mask) * y).detach() for elements "
                    "that stay, or clip by Problem(clip=Clip(...))"
                )
