"""What is known of an optimizer class: its update rule, its weight decay, and what it wraps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import optimizer as optimizers

from blo.linear.tensors import Tensors
from blo.steps import pullbacks, rules, together
from blo.steps.pullbacks import ByGradient
from blo.steps.rules import Initial, Options, Scalar, Slots, Step, number
from blo.steps.together import ClosedForm


@dataclass(frozen=True)
class Rule:
    """What is known of an optimizer class.

    Args:
        step: its update of one tensor.
        slots: from the options of a tensor's group to the entries of its state that are carried on,
            with what they are before the optimizer has written them.
        couples_decay: whether ``weight_decay * parameter`` is added to the gradient, unless the
            group says that the decay is decoupled.
        untouched: from the slots and the options to the elements that have seen no gradient but
            zero; None for a step that is not divided by the size of the gradients seen.
        by_gradient: the step pulled back to its gradient alone (`blo.steps.pullbacks`), its options
            plain numbers; None, or a result of None, for automatic differentiation.
        closed: the step of many tensors at once and its pull-back to all that it is a function of
            (`blo.steps.together`), its options plain numbers; None for automatic differentiation.
        by_end: from the options of a group to those of Adam, where the step is told by where it
            ended (`blo.steps.ends`); None where it is not.
    """

    step: Step
    slots: Callable[[Options], Slots]
    couples_decay: bool = False
    untouched: Callable[[Tensors, Options], Tensor] | None = None
    by_gradient: ByGradient | None = None
    closed: ClosedForm | None = None
    by_end: Callable[[Options], Options] | None = None


def register_update(
    optimizer: type[torch.optim.Optimizer],
    rule: Step,
    *,
    slots: Slots | Callable[[Options], Slots],
    couples_decay: bool = False,
) -> None:
    """Make the steps of an optimizer class known to the methods that take them again (`unrolled`,
    `forward_mode`, `sama`, `evolution`).

    The engine compares the first step that the optimizer takes with what the rule says. A class
    that was registered before gets the new rule; subclasses share it if they inherit ``step``.

    Args:
        optimizer: the class.
        rule: ``rule(y, state, g, options) -> (y, state)``, out of place and differentiable:
            from a parameter, a `State`, its gradient and the options of its group, to the parameter
            after the step and ``State(state.num_steps + 1, new slots)``. `State.num_steps` counts
            from the entry "step" of the optimizer's state, and is 0 at the start of a record where
            there is none.
        slots: names of the entries of the optimizer's state of a parameter that the rule reads, in
            the order in which `State.slots` has them, with what each is before the first step: a
            number that fills a tensor in the parameter's shape, a tensor that is taken as it is, or
            None for an entry that is missing from `State.slots` until the optimizer has written it
            (only the last may). A function of the options if the entries depend on them.
        couples_decay: whether the optimizer adds ``weight_decay * parameter`` to the gradient, as
            torch's SGD does. Methods that solve for the lower minimum then add the penalty
            ``weight_decay / 2 |y|^2`` to the loss.

    Raises:
        TypeError, ValueError: naming the argument, its value and the remedy.

    Example:
        >>> from blo.steps.rules import State
        >>> class Lion(torch.optim.Optimizer):
        ...     def step(self, closure=None):
        ...         ...  # state["exp_avg"], in place
        >>> def lion(y, state, g, options):
        ...     beta1, beta2 = options["betas"]
        ...     (m,) = state.slots
        ...     y = y - options["lr"] * m.lerp(g, 1 - beta1).sign()
        ...     return y, State(state.num_steps + 1, (m.lerp(g, 1 - beta2),))
        >>> register_update(Lion, lion, slots={"exp_avg": 0.0})
    """
    if not (isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer)):
        raise TypeError(
            f"optimizer must be a class derived from torch.optim.Optimizer, got {optimizer!r}"
        )
    if optimizer in SHIPPED:
        raise ValueError(
            f"optimizer must not be one whose rule is known, got torch.optim.{optimizer.__name__}; "
            "register a subclass with its own step"
        )
    if not callable(rule):
        raise TypeError(f"rule must be callable, got {rule!r} for {optimizer.__name__}")
    if not callable(slots):
        _check_slots(slots, optimizer.__name__)
    _registered[optimizer] = Rule(
        rule, slots if callable(slots) else _Constant(dict(slots)), couples_decay
    )


def known_rule(optimizer: type) -> Rule | None:
    """Return what `rule_of` does; None if nothing is known."""
    for base in optimizer.__mro__:
        known = _registered.get(base) or SHIPPED.get(base)
        if known is not None:
            return known if _own_step(optimizer) is _own_step(base) else None
    return None


def rule_of(optimizer: type) -> Rule:
    """Return what is known of an optimizer class: its own entry, or that of the nearest class it
    derives from, if it takes that one's step.

    Raises:
        TypeError: if nothing is known, naming the classes that are.
    """
    known = known_rule(optimizer)
    if known is not None:
        return known
    names = ", ".join(f"torch.optim.{kind.__name__}" for kind in SHIPPED)
    name = optimizer.__qualname__
    raise TypeError(
        f"the steps of {optimizer.__module__}.{name} cannot be taken again: only those of {names} "
        f"and of registered classes can. Register its update, register_update({name}, rule, "
        "slots=...), use one of them for the lower problem, or a method that does not look at the "
        "optimizer, such as cg(10) or darts(scale=...)"
    )


def coupled_decay(optimizer: type, options: Options) -> Scalar | None:
    """Return the factor ``w`` of the penalty ``w/2 |y|^2`` that the optimizer adds to the loss of a
    tensor: a plain number, or a tensor if the option is in a graph.

    0 without decay and where it is decoupled (AdamW); None for a class of which nothing is known.
    Unlike a step, decay is taken to be that of the class derived from even where ``step`` is not.

    Args:
        optimizer: the class.
        options: of the tensor's group.

    Example:
        >>> optimizer = torch.optim.SGD([torch.ones(1)], weight_decay=0.1)
        >>> coupled_decay(torch.optim.SGD, optimizer.param_groups[0])
        0.1
    """
    for base in optimizer.__mro__:
        known = _registered.get(base) or SHIPPED.get(base)
        if known is None and base not in COUPLED:
            continue
        if known is not None and not known.couples_decay:
            return 0.0
        if options.get("decoupled_weight_decay") or "weight_decay" not in options:
            return 0.0
        return number(options, "weight_decay")
    return None


def sign(options: Options) -> float:
    """Return -1 if the optimizer maximises the loss of a tensor with these options, else 1.

    Example:
        >>> sign(torch.optim.SGD([torch.ones(1)], maximize=True).param_groups[0])
        -1.0
    """
    return -1.0 if options.get("maximize") else 1.0


def unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer inside wrappers such as accelerate's: while one holds another torch
    optimizer as ``.optimizer``, with the very same parameter groups, that one is taken.

    Example:
        >>> optimizer = torch.optim.SGD([torch.ones(1)], lr=0.1)
        >>> unwrapped(optimizer) is optimizer
        True
    """
    inner = getattr(optimizer, "optimizer", None)
    if not isinstance(inner, torch.optim.Optimizer) or inner is optimizer:
        return optimizer
    mine, theirs = optimizer.param_groups, inner.param_groups
    if len(mine) != len(theirs) or any(a is not b for a, b in zip(mine, theirs, strict=True)):
        return optimizer
    return unwrapped(inner)


def num_hooks(optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """Return how many hooks are called before and after the steps of an optimizer, its own."""
    names = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    before, after = (len(getattr(optimizer, name, ())) for name in names)
    return before, after


def has_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether anything is called before or after the steps of an optimizer."""
    return any(num_hooks(optimizer))


def is_plain(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a step of an optimizer is its class's alone: no wrapper, no hook, its own or
    of all optimizers, and no other `step` put in its place but by a scheduler, which counts.
    """
    for_all = (optimizers._global_optimizer_pre_hooks, optimizers._global_optimizer_post_hooks)
    placed = vars(optimizer).get("step")
    is_own = placed is None or getattr(placed, "_wrapped_by_lr_sched", False)
    whole = unwrapped(optimizer) is optimizer
    return whole and is_own and not has_hooks(optimizer) and not any(for_all)


@dataclass(frozen=True)
class _Constant:
    """Slots that do not depend on the options."""

    slots: Slots

    def __call__(self, options: Options) -> Slots:
        return self.slots


def _check_slots(slots: Slots, optimizer: str) -> None:
    if not isinstance(slots, Mapping):
        raise TypeError(
            "slots must map names of the optimizer's state to initial values, or be a function of "
            f"the options that returns such a mapping, got {slots!r} for {optimizer}"
        )
    for position, (name, value) in enumerate(slots.items()):
        if not _is_initial(value):
            raise TypeError(
                "the initial value of a slot must be a number, a tensor, or None for an entry that "
                f"is absent at first, got {value!r} for {name!r} of {optimizer}"
            )
        if value is None and position < len(slots) - 1:
            raise ValueError(
                f"only the last slot may be absent at first, got None for {name!r} of {optimizer}; "
                "put it last"
            )


def _is_initial(value: Initial | Any) -> bool:
    if isinstance(value, bool):
        return False
    return value is None or isinstance(value, int | float | Tensor)


def _own_step(optimizer: type) -> Any:
    """Return the method `step` under the hooks that torch wraps it in."""
    return inspect.unwrap(optimizer.step)  # type: ignore[attr-defined]


def _second_moment_zero(slots: Tensors, options: Options) -> Tensor:
    return slots[1] == 0


def _sum_zero(slots: Tensors, options: Options) -> Tensor:
    return slots[0] == 0


def _norm_least(slots: Tensors, options: Options) -> Tensor:
    """Return where the largest gradient of Adamax is no more than the `eps` added to each."""
    u = slots[1]
    return u <= torch.as_tensor(options["eps"], dtype=u.dtype, device=u.device).detach()


SHIPPED: Mapping[type, Rule] = {
    torch.optim.SGD: Rule(
        rules.sgd,
        rules.sgd_slots,
        True,
        by_gradient=pullbacks.sgd_by_gradient,
        closed=together.SGD,
    ),
    torch.optim.AdamW: Rule(
        rules.adamw,
        rules.adam_slots,
        False,
        _second_moment_zero,
        pullbacks.adamw_by_gradient,
        together.ADAMW,
        lambda options: {"decoupled_weight_decay": True, **options},
    ),
    torch.optim.Adam: Rule(
        rules.adam,
        rules.adam_slots,
        True,
        _second_moment_zero,
        pullbacks.adam_by_gradient,
        together.ADAM,
        lambda options: options,
    ),
    torch.optim.NAdam: Rule(rules.nadam, rules.nadam_slots, True, _second_moment_zero),
    torch.optim.Adamax: Rule(rules.adamax, rules.adamax_slots, True, _norm_least),
    torch.optim.RMSprop: Rule(rules.rmsprop, rules.rmsprop_slots, True, _sum_zero),
    torch.optim.Adagrad: Rule(rules.adagrad, rules.adagrad_slots, True, _sum_zero),
}

# Torch's other optimizers that add ``weight_decay * parameter`` to the gradient, unless the group
# says that it is decoupled.
COUPLED = (torch.optim.RAdam, torch.optim.Adadelta, torch.optim.ASGD)

_registered: dict[type, Rule] = {}
