"""A model with a bi-level adapter as a graph of two problems."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adapters.glue.penalties import Loss, Penalty
from adapters.glue.soundness import warn_of_frozen_head, warn_of_half
from adapters.training.partition import levels
from blo import Clip, Method, Problem, ProblemGraph, darts

__all__ = ["Penalty", "penalised", "two_level"]


def two_level(
    model: nn.Module,
    *,
    loss: Loss,
    upper_batches: Iterable[Any] | None,
    lower_batches: Iterable[Any] | None,
    upper_optimizer: torch.optim.Optimizer,
    lower_optimizer: torch.optim.Optimizer,
    method: Method | None = None,
    penalty: Penalty | Sequence[Penalty] = (),
    upper_penalty: Penalty | Sequence[Penalty] = (),
    upper_loss: Loss | None = None,
    steps: int = 1,
    accumulate: int = 1,
    upper_scheduler: Any = None,
    lower_scheduler: Any = None,
    clip: Clip | None = None,
) -> ProblemGraph:
    """Return the graph that trains an adapter on two levels.

    min over the upper parameters x of ``loss(upper batch) + upper_penalty`` at y*(x), where y*(x)
    minimises ``loss(lower batch) + penalty`` over the lower parameters. The problems are called
    "upper" and "lower".

    Args:
        model: a model with one active bi-level adapter.
        loss: ``loss(batch)``, a closure over `model`; a scalar or a dict with one under "loss".
        upper_batches: held-out data, another part of the training set than `lower_batches`.
        lower_batches: training data. None, for either: a loop of your own hands them in
            (`blo.Engine.backward`, `blo.Engine.step`).
        upper_optimizer: holds exactly ``levels(model).upper``.
        lower_optimizer: holds exactly ``levels(model).lower``.
        method: how the lower solution responds to the upper parameters; None for ``darts()``.
        penalty: added to the lower loss: a function of the model, or several.
        upper_penalty: added to the upper loss.
        upper_loss: the loss of the upper level where it is another than `loss`.
        steps: lower updates for each upper one.
        accumulate: batches averaged for one update, at both levels.
        upper_scheduler: a learning-rate scheduler of `upper_optimizer`.
        lower_scheduler: a learning-rate scheduler of `lower_optimizer`.
        clip: what the gradients of each level are clipped to before its optimizer gets them.

    Raises:
        ValueError: if the model has no such adapter, or an optimizer holds a parameter of the other
            level, a frozen one, or not all of its own.

    Example:
        >>> import torch
        >>> from adapters import BiLoraConfig, Orthogonality, levels, two_level
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> model = get_peft_model(net, BiLoraConfig(r=2, target_modules=["0"]))
        >>> split, batches = levels(model), [torch.ones(8, 4)]
        >>> graph = two_level(
        ...     model,
        ...     loss=lambda x: model(x).square().mean(),
        ...     upper_batches=batches,
        ...     lower_batches=batches,
        ...     upper_optimizer=torch.optim.AdamW(split.upper, 1e-2),
        ...     lower_optimizer=torch.optim.AdamW(split.lower, 1e-3),
        ...     penalty=Orthogonality(1e-4),
        ... )
    """
    split = levels(model)
    warn_of_half(model)
    warn_of_frozen_head(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for argument, optimizer, own in (
        ("upper_optimizer", upper_optimizer, split.upper),
        ("lower_optimizer", lower_optimizer, split.lower),
    ):
        _check_optimizer(argument, optimizer, own, names)
    return ProblemGraph(
        [
            Problem(
                "upper",
                penalised(model, loss if upper_loss is None else upper_loss, upper_penalty),
                model,
                upper_optimizer,
                upper_batches,
                reads=["lower"],
                scheduler=upper_scheduler,
                accumulate=accumulate,
                clip=clip,
            ),
            Problem(
                "lower",
                penalised(model, loss, penalty),
                model,
                lower_optimizer,
                lower_batches,
                steps=steps,
                reads=["upper"],
                method=darts() if method is None else method,
                scheduler=lower_scheduler,
                accumulate=accumulate,
                clip=clip,
            ),
        ]
    )


def penalised(model: nn.Module, loss: Loss, penalty: Penalty | Sequence[Penalty]) -> Loss:
    """Return the loss ``batch -> loss(batch) + penalty(model)``; the loss itself without a penalty.

    Args:
        model: what the penalties are computed from.
        loss: ``loss(batch)``, a closure over `model`; a scalar or a dict with one under "loss".
        penalty: a function of the model, or several, such as `Orthogonality`.

    Example:
        >>> from adapters import BiLoraConfig, Orthogonality, penalised
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> model = get_peft_model(net, BiLoraConfig(r=2, target_modules=["0"]))
        >>> loss = penalised(model, lambda x: model(x).square().mean(), Orthogonality(1e-4))
        >>> loss(torch.ones(8, 4)).shape
        torch.Size([])
    """
    penalties = [penalty] if callable(penalty) else list(penalty)
    if not penalties:
        return loss

    def whole(batch: Any) -> Any:
        value = loss(batch)
        extra = torch.stack([term(model) for term in penalties]).sum()
        if isinstance(value, Tensor):
            return value + extra
        return {**value, "loss": value["loss"] + extra}

    return whole


def _check_optimizer(
    argument: str,
    optimizer: torch.optim.Optimizer,
    own: list[nn.Parameter],
    names: dict[int, str],
) -> None:
    level = argument.removesuffix("_optimizer")
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    remedy = f"build it from levels(model).{level}"
    for stranger in held - {id(parameter) for parameter in own}:
        name = names.get(stranger)
        what = "a tensor that is no parameter of the model" if name is None else repr(name)
        raise ValueError(f"{argument} must not hold {what}, not of the {level} level; {remedy}")
    for missing in [parameter for parameter in own if id(parameter) not in held]:
        raise ValueError(f"{argument} must hold {names[id(missing)]!r}; {remedy}")
