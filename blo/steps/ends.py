"""Steps of Adam and AdamW told by where they ended.

With the moments `m` and `v` after step `t`, ``k = sqrt(1 - beta2^t)``, ``f = -lr k / (1 -
beta1^t)`` and ``q = m / (sqrt(v) + k eps)``, the step is ``f q``, and its derivative in the
gradient `g` is

    D = f [(1 - beta1) - (1 - beta2) q g / sqrt(v)] / (sqrt(v) + k eps).

The moments before it are ``(m - (1 - beta1) g) / beta1`` and ``(v - (1 - beta2) g^2) / beta2``. So
nothing of the optimizer's state need be copied before a step, where the gradient that it was taken
along is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from blo.derivatives.pullback import Gradient
from blo.linear.tensors import Tensors
from blo.steps.rules import Options

# So many elements of each tensor are worked on at a time on a CPU: what is computed of them stays
# in its cache.
BLOCK = 1 << 16


class FromEnd(NamedTuple):
    """What `from_end` returns.

    Attributes:
        weights: ``D c``; zeros where Adam has seen no gradient but zero.
        off: norms of the distance from where the step leads to where the parameters are, by parts.
        way: norms of the step.
        size: norms of the parameters.
    """

    weights: Tensors
    off: list[Tensor]
    way: list[Tensor]
    size: list[Tensor]


@dataclass(frozen=True)
class StartStates(Sequence[Mapping[str, Any]]):
    """The optimizer's state of each tensor before a step, told from that after it when asked for.

    Args:
        lower: the parameters before the step.
        handed: what the optimizer got, None for a tensor that it passed over; empty once it was
            taken.
        again: evaluates that anew.
        options: of each tensor's parameter group.
        after: the optimizer's state of each after the step.
    """

    lower: Tensors
    handed: list[Tensor | None]
    again: Callable[[], Gradient]
    options: Sequence[Options]
    after: Sequence[Mapping[str, Any]]

    def take(self) -> list[Tensor | None]:
        """Return the gradient, and let go of it."""
        found = list(self.handed or self.again())
        self.handed.clear()
        return found

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self.after)

    @overload
    def __getitem__(self, i: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Mapping[str, Any]]: ...
    def __getitem__(self, i: int | slice) -> Mapping[str, Any] | Sequence[Mapping[str, Any]]:
        """Return the state of one tensor, or of several."""
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        self.handed[:] = self.handed or self.again()
        g, state, options = self.handed[i], self.after[i], self.options[i]
        if g is None:
            return state
        num_steps = int(state["step"]) - 1
        if num_steps == 0:
            return {}
        beta1, beta2 = options["betas"]
        g = _descended(g, self.lower[i], options)
        m = state["exp_avg"].add(g, alpha=beta1 - 1).div_(beta1)
        v = state["exp_avg_sq"].addcmul(g, g, value=beta2 - 1).div_(beta2).clamp_(min=0.0)
        return {"step": num_steps, "exp_avg": m, "exp_avg_sq": v}


def tells_start(parameters: Sequence[Tensor], options: Sequence[Options]) -> bool:
    """Return whether a step of Adam or AdamW with these options can be told by its end."""
    return all(t.dtype in (torch.float32, torch.float64) for t in parameters) and all(
        not (o["amsgrad"] or o["differentiable"]) and min(map(float, o["betas"])) >= 0.1
        for o in options
    )


def from_end(states: StartStates, cotangent: Tensors, end: Tensors) -> FromEnd:
    """Return ``D c`` of the step that ended in `states.after`, and how far it led from `end`.

    Args:
        states: of the optimizer; their gradient is taken.
        cotangent: `c`.
        end: the parameters after the step.
    """
    gradient = states.take()
    steps = iter(_num_steps(gradient, states.after))
    found = FromEnd((), [], [], [])
    weights = []
    columns = zip(states.lower, states.options, states.after, cotangent, end, strict=True)
    for i, (y, options, state, c, y_end) in enumerate(columns):
        g, gradient[i] = gradient[i], None  # the vector is let go of as the weights are made
        if g is None:
            weights.append(torch.zeros_like(c))
            found.off.append(torch.linalg.vector_norm(y_end - y))
            found.way.append(torch.zeros_like(found.off[-1]))
            found.size.append(torch.linalg.vector_norm(y_end))
            continue
        step = _Step.of(options, next(steps))
        tensors = (y, state["exp_avg"], state["exp_avg_sq"], g, c, y_end)
        weight = torch.empty_like(c)
        for pieces in _blocks((*tensors, weight)):
            step.add(found, *pieces)
        weights.append(weight)
    return found._replace(weights=tuple(weights))


@dataclass(frozen=True)
class _Step:
    """The numbers of a step: `factor` is ``f`` and `shift` ``k eps``."""

    options: Options
    is_first: bool
    factor: float
    shift: float

    @staticmethod
    def of(options: Options, t: int) -> _Step:
        beta1, beta2 = map(float, options["betas"])
        k = (1 - beta2**t) ** 0.5
        factor = -float(options["lr"]) * k / (1 - beta1**t)
        return _Step(options, t == 1, factor, k * float(options["eps"]))

    def add(
        self,
        found: FromEnd,
        y: Tensor,
        m: Tensor,
        v: Tensor,
        g: Tensor,
        c: Tensor,
        end: Tensor,
        out: Tensor,
    ) -> None:
        """Write ``D c`` of some elements into `out`, and add the norms to those `found`."""
        root = v.sqrt()
        bottom = root + self.shift
        q = m / bottom
        torch.sub(end, y, out=out)
        if (decay := float(self.options["weight_decay"])) and _is_decoupled(self.options):
            out.add_(y, alpha=float(self.options["lr"]) * decay)
        out.add_(q, alpha=-self.factor)
        norm = torch.linalg.vector_norm
        found.off.append(norm(out))
        found.way.append(norm(q) * abs(self.factor))
        found.size.append(norm(end))
        beta1, beta2 = map(float, self.options["betas"])
        factor = -self.factor if self.options["maximize"] else self.factor
        if self.is_first:  # the terms in brackets cancel to this, which rounding would hide
            torch.div(c, bottom, out=out).div_(bottom).mul_(factor * (1 - beta1) * self.shift)
            out.masked_fill_(root == 0, 0.0)
            return
        q.mul_(_descended(g, y, self.options))
        whole = torch.full((), factor * (1 - beta1), dtype=q.dtype, device=q.device)
        torch.addcdiv(whole, q, root, value=-factor * (1 - beta2), out=out)
        out.mul_(c).div_(bottom)
        torch.nan_to_num(out, 0.0, 0.0, 0.0, out=out)  # where `root` is zero


def _descended(g: Tensor, y: Tensor, options: Options) -> Tensor:
    """Return what the moments are of: the gradient with its sign and coupled decay."""
    g = -g if options["maximize"] else g
    decay = 0.0 if _is_decoupled(options) else float(options["weight_decay"])
    return g.add(y, alpha=decay) if decay else g


def _is_decoupled(options: Options) -> bool:
    return bool(options["decoupled_weight_decay"])


def _num_steps(gradient: Gradient, after: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the steps of each tensor that has a gradient, with one transfer for those counted on
    a device.
    """
    pairs = zip(gradient, after, strict=True)
    counts = [torch.as_tensor(state["step"]) for g, state in pairs if g is not None]
    return [int(n) for n in torch.stack(counts).tolist()] if counts else []


def _blocks(tensors: Tensors) -> Iterator[Tensors]:
    """Yield tensors of one shape in parts that stay in the cache of a CPU, as views."""
    first = tensors[0]
    if first.device.type != "cpu" or first.numel() <= BLOCK:
        yield tensors
    elif all(t.is_contiguous() for t in tensors):
        yield from zip(*(t.view(-1).split(BLOCK) for t in tensors), strict=True)
    else:
        yield tensors
