"""Notices that both levels of an adapter are trained by one backward pass."""

import warnings

import torch
from torch import nn

__all__ = ["JointWatch"]


class _Watched:
    """A hook of a parameter that tells the watch of a plain backward pass, and no more."""

    only_watches = True

    def __init__(self, watch: "JointWatch", level: str) -> None:
        self._watch = watch
        self._level = level

    def __call__(self, parameter: torch.Tensor) -> None:
        self._watch.seen(self._level)


class JointWatch:
    """Warns once when one plain backward pass reaches the parameters of both levels.

    ``loss.backward()`` adds to ``.grad`` of all parameters at once, so that an optimizer that holds
    them trains both levels jointly, on the same data. The two-level methods of `blo` use
    `torch.autograd.grad`, which adds to no ``.grad``, and are not seen here.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._pass: dict[str, int] = {}
        self._warned = False

    def over(self, parameter: nn.Parameter, level: str) -> None:
        """Watch a parameter of one level."""
        if parameter.is_meta:
            return
        flag = parameter.requires_grad
        parameter.requires_grad_(True)  # torch asks for it; a frozen adapter may be set free later
        parameter.register_post_accumulate_grad_hook(_Watched(self, level))
        parameter.requires_grad_(flag)

    def seen(self, level: str) -> None:
        """Note that a backward pass has reached a parameter of this level."""
        self._pass[level] = torch._C._current_graph_task_id()
        if self._warned or len({*self._pass.values()}) != 1 or len(self._pass) != 2:
            return
        self._warned = True
        warnings.warn(
            f"a plain backward pass has reached both levels of a {self._kind} adapter: an "
            "optimizer that holds both trains them jointly, on the same data. Two levels are "
            "trained by adapters.trainer.TwoLevelTrainer in place of Trainer, or by "
            f"adapters.two_level and blo.Engine; {self._kind}(joint=True) says that joint training "
            "is meant",
            stacklevel=2,
        )
