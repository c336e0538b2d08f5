"""Normalisations composed of operations whose third derivatives are right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class third_order_norms(TorchFunctionMode):  # noqa: N801 - used as a context manager
    """Within the block, layer and batch normalisation are composed of elementary operations.

    Torch's fused kernels have wrong third derivatives (silently; pytorch issues 175754 and 186256),
    which an attached solution needs.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace the two functions and pass all others through."""
        kwargs = kwargs or {}
        if func is torch.nn.functional.layer_norm:
            return _layer_norm(*args, **kwargs)
        if func is torch.nn.functional.batch_norm:
            return _batch_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    centred = input - input.mean(dims, keepdim=True)
    output = centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()
    output = output if weight is None else output * weight
    return output if bias is None else output + bias


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    dims = (0, *range(2, input.dim()))
    shape = [1, -1] + [1] * (input.dim() - 2)
    if training:
        mean = input.mean(dims)
        variance = (input - mean.view(shape)).square().mean(dims)
    else:
        assert running_mean is not None
        assert running_var is not None
        mean, variance = running_mean, running_var
    output = (input - mean.view(shape)) * (variance.view(shape) + eps).rsqrt()
    output = output if weight is None else output * weight.view(shape)
    return output if bias is None else output + bias.view(shape)
