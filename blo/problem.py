"""One node of a problem graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blo import arguments
from blo.batches import version
from blo.derivatives.pullback import Gradient
from blo.derivatives.random_state import generators_of
from blo.derivatives.sharded import is_sharded
from blo.evaluation import Loss
from blo.methods.context import Method
from blo.methods.named import darts
from blo.steps.clipping import Clip, clipped
from blo.steps.optimizers import UpdateMap
from blo.steps.registry import coupled_decay, is_plain, sign, unwrapped


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
            that can be iterated again. None: a loop of your own hands them in (`Engine.backward`,
            `Engine.step`), and `reads` must be declared.
        steps: updates of this problem for one update of the problems above it.
        reads: names of the other problems whose parameters `loss` depends on. Found by probing one
            batch if None; a declaration that the probe contradicts is an error. With batches that
            are handed in, the probe comes with the first of them.
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
        start: a function without arguments that returns tensors in the shapes of this problem's
            parameters, which are set to them before the first of the `steps` of every round. It may
            depend on parameters of problems above (a meta-learned initialisation): `unrolled` and
            `forward_mode` through all steps differentiate it, other methods leave its derivative
            out.
        keep_state: keep the optimizer's state where `start` is called; it begins anew unless set.
        options: functions without arguments, by the name of an option of the optimizer ("lr",
            "weight_decay", "momentum", "betas" ...), called before every step, whose values the
            optimizer gets in all its groups. They may depend on parameters of problems above:
            methods that take the optimizer's steps again (`unrolled`, `forward_mode`, `sama`) are
            differentiated in them.
        clip: what the gradient is clipped to before the optimizer gets it, a part of the step that
            those methods differentiate.

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
        batches: Iterable[Any] | None,
        *,
        steps: int = 1,
        reads: Sequence[str | Problem] | None = None,
        method: Method | None = None,
        scheduler: Any = None,
        accumulate: int = 1,
        through_response: bool = True,
        generators: Sequence[Any] = (),
        start: Callable[[], Sequence[Tensor]] | None = None,
        keep_state: bool = False,
        options: Mapping[str, Callable[[], Any]] | None = None,
        clip: Clip | None = None,
    ) -> None:
        arguments.check_name(name)
        arguments.check_loss(loss, name)
        modules = arguments.modules_of(module, name)
        arguments.refuse_wrapped(name, loss, modules)
        arguments.check_optimizer(optimizer, name)
        arguments.check_count("steps", steps, name)
        arguments.check_count("accumulate", accumulate, name)
        arguments.check_batches(batches, reads, accumulate, name)
        arguments.check_flag("through_response", through_response, name)
        arguments.check_flag("keep_state", keep_state, name)
        method = darts() if method is None else method
        arguments.check_method(method, name)
        arguments.check_scheduler(scheduler, optimizer, name)
        arguments.check_generators(generators, name)
        functions = arguments.options_of(options, name)
        arguments.check_step(name, optimizer, scheduler, start, functions, clip)
        self.name = name
        self.loss = loss
        self.modules = modules
        self.optimizer = optimizer
        self.batches = batches
        self.steps = steps
        self.reads = arguments.names_of(reads, name)
        self.method = method
        self.scheduler = scheduler
        self.accumulate = accumulate
        self.through_response = through_response
        self.start = start
        self.keep_state = keep_state
        self.option_functions = functions
        self.clip = clip
        self.generators = (*generators, *generators_of(loss, modules))
        self.edits_batch = False
        self.draws = False
        self.computed_in: torch.dtype | None = None
        self.unrecorded: set[str] = set()
        self._tried_hooks: set[int] = set()
        self.parameters = self._held()
        arguments.check_parameters(name, self.parameters)
        arguments.check_values(self.parameters, name)

    @property
    def optimizer_class(self) -> type:
        """The class of the optimizer, that inside a wrapper where it is wrapped."""
        return type(unwrapped(self.optimizer))

    def begin(self) -> None:
        """Set the parameters to the `start`, where there is one, and the optimizer's state with
        them.

        Raises:
            ValueError: if `start` returns other shapes or non-finite values.
        """
        if self.start is None:
            return
        with torch.no_grad():
            values = tuple(self.start())
            shapes, wanted = ([tuple(t.shape) for t in v] for v in (values, self.parameters))
            if shapes != wanted:
                raise ValueError(
                    f"start of problem {self.name!r} must return tensors in the shapes of its "
                    f"parameters, {wanted}, got {shapes}"
                )
            for parameter, value in zip(self.parameters, values, strict=True):
                parameter.copy_(value)
        if not self.keep_state:
            for parameter in self.parameters:
                self.optimizer.state.pop(parameter, None)

    def set_options(self) -> None:
        """Hand the optimizer the present values of the options that are functions.

        Raises:
            ValueError: for a momentum of exactly 0 that is differentiated: torch keeps no buffer
                there, on which the derivative depends.
        """
        if not self.option_functions:
            return
        with torch.no_grad():
            for name, function in self.option_functions.items():
                value = _plain(function())
                if name == "momentum" and value == 0 and self._differentiates_options:
                    raise ValueError(
                        f"options['momentum'] of problem {self.name!r} is exactly 0, where "
                        f"{self.optimizer_class.__name__} keeps no buffer and {self.method!r} "
                        "cannot differentiate the steps in it; keep it above 0, by a sigmoid or an "
                        "exponential"
                    )
                for group in self.optimizer.param_groups:
                    group[name] = value

    @property
    def _differentiates_options(self) -> bool:
        return "options" in self.method.requirements.differentiates

    def learning_rate(self) -> float:
        """Return the learning rate of the optimizer's first group; NaN where it has none."""
        lr = self.optimizer.param_groups[0].get("lr")
        return math.nan if lr is None else float(lr)

    def check_parameters(self) -> None:
        """Raise unless the optimizer holds the parameters that it held at first, none of them with
        a hook that would never run.

        Raises:
            RuntimeError: naming the parameter that was added, frozen, set free or given a hook.
        """
        arguments.refuse_changed(self.name, self.parameters, self._held())
        arguments.refuse_silent_hooks(self.name, self.parameters)

    def check_hooks(self) -> None:
        """Raise if a hook of a parameter changes its gradient.

        Raises:
            RuntimeError: naming the parameter.
        """
        arguments.refuse_hooks(self.name, self.parameters, self._tried_hooks)

    def hand(self, gradient: Gradient) -> list[Tensor | None]:
        """Put `gradient` where the optimizer looks for it, in the ``.grad`` of the parameters, and
        return what is there.

        What the optimizer and its hooks edit in place is theirs alone: a gradient that shares its
        memory is copied.
        """
        handed = owned(gradient)
        for parameter, g in zip(self.parameters, handed, strict=True):
            parameter.grad = g
        return handed

    def step(self, gradient: Gradient, loss: float) -> bool:
        """Let the optimizer step along `gradient`, clipped if that was asked for, and let the
        scheduler follow. Return whether the gradient was left as it was.
        """
        handed = self.hand(gradient if self.clip is None else clipped(gradient, self.clip))
        before = [0 if g is None else version(g) for g in handed]
        self.optimizer.step()
        columns = zip(self.parameters, handed, before, strict=True)
        untouched = all(p.grad is g and (g is None or version(g) == n) for p, g, n in columns)
        for parameter in self.parameters:
            parameter.grad = None
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(loss)
        elif self.scheduler is not None:
            self.scheduler.step()
        return untouched

    def tells_start(self) -> bool:
        """Return whether the optimizer's states before a step can be told from those after it,
        unless the gradient is edited in the step.
        """
        if self.clip is not None or self.option_functions or not is_plain(self.optimizer):
            return False
        return UpdateMap(self.optimizer_class).tells_start(self.parameters, self.options())

    @property
    def device(self) -> torch.device:
        """The device of the problem's first parameter, where its batches go."""
        return self.parameters[0].device

    @staticmethod
    def learning_rates(options: Sequence[Mapping[str, Any]]) -> tuple[float | None, ...]:
        """Return the learning rate of each parameter in `options`; None where the optimizer chooses
        it by itself.
        """
        rates = {id(o): o.get("lr") for o in _once(options)}
        known = {key: None if lr is None else float(lr) for key, lr in rates.items()}
        return tuple(known[id(o)] for o in options)

    def options(self) -> tuple[dict[str, Any], ...]:
        """Return the options of each parameter's group, without the parameters.

        One dictionary a group; tensors in it are copied, since schedulers change them in place.
        """
        held = {
            id(group): {
                k: v.detach().clone() if isinstance(v, Tensor) else v
                for k, v in group.items()
                if k != "params"
            }
            for group in self.optimizer.param_groups
        }
        return tuple(held[id(group)] for group in self._groups())

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

        None where it adds nothing: no decay, decoupled decay (AdamW), or an optimizer of which
        nothing is known.
        """
        known = {
            id(o): float(coupled_decay(self.optimizer_class, o) or 0.0) for o in _once(options)
        }
        return tuple(known[id(o)] for o in options) if any(known.values()) else None

    @staticmethod
    def signs(options: Sequence[Mapping[str, Any]]) -> tuple[float, ...] | None:
        """Return -1 for each parameter that the optimizer maximises the loss over, else 1; None
        where it maximises nothing.
        """
        known = {id(o): sign(o) for o in _once(options)}
        return tuple(known[id(o)] for o in options) if -1.0 in known.values() else None

    def _held(self) -> tuple[Tensor, ...]:
        """Return the parameters that the optimizer holds and that are trained."""
        groups = self.optimizer.param_groups
        return tuple(p for group in groups for p in group["params"] if p.requires_grad)

    def _groups(self) -> list[dict[str, Any]]:
        """Return the parameter group of each parameter, in the order of `parameters`."""
        found = {id(p): group for group in self.optimizer.param_groups for p in group["params"]}
        return [found[id(p)] for p in self.parameters]

    def __repr__(self) -> str:
        """Return the name, the size and the settings."""
        size = sum(p.numel() for p in self.parameters)
        settings = f"{size:,} parameters, steps={self.steps}, method={self.method!r}"
        return f"Problem({self.name!r}, {settings})"


def _once(options: Sequence[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """Return the options of each group once; the parameters of a group share theirs."""
    return {id(o): o for o in options}.values()


def _plain(value: Any) -> Any:
    """Return the value of an option as the optimizer gets it: plain numbers."""
    if isinstance(value, (tuple, list)):
        return tuple(_plain(v) for v in value)
    return float(value) if isinstance(value, Tensor) else value


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
        if is_sharded(g):  # without memory of its own to compare
            found.append(g.detach().clone())
            continue
        storage = g.untyped_storage()
        whole = storage.nbytes() == g.numel() * g.element_size()
        alone = whole and storage.data_ptr() not in seen and not g.requires_grad
        found.append(g if alone else g.detach().clone(memory_format=torch.contiguous_format))
        seen.add(storage.data_ptr())
    return found
