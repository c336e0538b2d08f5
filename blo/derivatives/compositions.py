"""Operations composed of others that torch differentiates rightly to every order, by all the names
that they are called by.

Some fused kernels save a statistic of their input and treat it as a constant when their derivative
is differentiated again: the first derivative is right, a later one silently wrong (normalisations).
Others mask a point at which a derivative is zero and lose the next one there (a power whose
exponent is a parameter, at zero), or end in NaN (logcumsumexp). `composed` says from which order on
each is wrong, and puts these in their places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _requires_grad(*args: Any, **kwargs: Any) -> bool:
    """Return whether any argument requires gradients."""
    return any(isinstance(a, Tensor) and a.requires_grad for a in (*args, *kwargs.values()))


@dataclass(frozen=True)
class Operation:
    """An operation of torch under all its names.

    Args:
        spellings: what a caller may call, each with the composition that takes the same arguments.
        nodes: the names of its nodes in a graph, where such a node is always wrong.
        applies: whether derivatives can be wrong with these arguments.
    """

    spellings: dict[Any, Callable[..., Any]]
    nodes: tuple[str, ...] = ()
    applies: Callable[..., bool] = _requires_grad


def _wide(t: Tensor) -> Tensor:
    """Return `t` in a type that statistics can be computed in."""
    return t.float() if t.dtype in (torch.bfloat16, torch.float16) else t


def _statistics(input: Tensor, dims: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor]:
    """Return the mean over `dims`, kept, and ``1 / sqrt(variance + eps)``."""
    mean = input.mean(dims, keepdim=True)
    return mean, ((input - mean).square().mean(dims, keepdim=True) + eps).rsqrt()


def _affine(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...]
) -> Tensor:
    """Return ``input * weight + bias``, both viewed in `shape`."""
    output = input if weight is None else input * _wide(weight).view(shape)
    return output if bias is None else output + _wide(bias).view(shape)


def _native_layer_norm(
    input: Tensor, normalized_shape: Any, weight: Any, bias: Any, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    shape = tuple(normalized_shape)
    input = _wide(input)
    mean, scale = _statistics(input, tuple(range(-len(shape), 0)), eps)
    return _affine((input - mean) * scale, weight, bias, shape), mean, scale


def _layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    return _native_layer_norm(input, normalized_shape, weight, bias, eps)[0]


def _normalised(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running: tuple[Tensor, Tensor] | None,
    dims: tuple[int, ...],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `input` of shape ``(batch, channels, ...)`` normalised over `dims`, or by running
    statistics, with the statistics.
    """
    shape = (1, -1) + (1,) * (input.dim() - 2)
    input = _wide(input)
    if running is None:
        mean, scale = _statistics(input, dims, eps)
    else:
        mean, scale = _wide(running[0]).view(shape), (_wide(running[1]).view(shape) + eps).rsqrt()
    return _affine((input - mean) * scale, weight, bias, shape), mean.flatten(), scale.flatten()


def _native_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Any,
    running_var: Any,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    running = None if training else (running_mean, running_var)
    dims = (0, *range(2, input.dim()))
    output, mean, scale = _normalised(input, weight, bias, running, dims, eps)
    return (output, mean, scale) if training else (output, mean[:0], scale[:0])


def _torch_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Any,
    running_var: Any,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    args = (running_mean, running_var, training, momentum, eps)
    return _native_batch_norm(input, weight, bias, *args)[0]


def _batch_norm(
    input: Tensor,
    running_mean: Any,
    running_var: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    args = (running_mean, running_var, training, momentum, eps)
    return _native_batch_norm(input, weight, bias, *args)[0]


def _torch_instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Any,
    running_var: Any,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    running = None if use_input_stats else (running_mean, running_var)
    return _normalised(input, weight, bias, running, tuple(range(2, input.dim())), eps)[0]


def _instance_norm(
    input: Tensor,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    args = (running_mean, running_var, use_input_stats, momentum, eps, True)
    return _torch_instance_norm(input, weight, bias, *args)


def _weight_norm_interface(v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    # As in torch, -1 is no dimension: one norm of all entries. Torch's own kernel on CUDA is 1.6e-4
    # off in float64 at first order, too (2.11); passes of first order are not composed, since that
    # would cost a Python call for each operation of every loss.
    dims = tuple(i for i in range(v.dim()) if dim == -1 or i != dim % v.dim())
    norm = _wide(v).square().sum(dims, keepdim=True).sqrt()
    return _wide(v) * (_wide(g) / norm), norm


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return _weight_norm_interface(v, g, dim)[0]


def _both_require_grad(input: Any, exponent: Any = None, **kwargs: Any) -> bool:
    """Return whether base and exponent are real tensors that require gradients."""
    pair = (input, exponent)
    return all(isinstance(t, Tensor) and t.requires_grad and not t.is_complex() for t in pair)


def _pow(input: Tensor, exponent: Tensor) -> Tensor:
    """``exp(exponent log(input))`` where `input` is positive."""
    input, exponent = _wide(input), _wide(exponent)
    positive = input > 0
    power = (exponent * torch.where(positive, input, 1.0).log()).exp()
    return torch.where(positive, power, torch.pow(torch.where(positive, 1.0, input), exponent))


def _float_power(input: Tensor, exponent: Tensor) -> Tensor:
    return _pow(input.double(), exponent.double())


def _logcumsumexp(input: Tensor, dim: int) -> Tensor:
    """The logsumexp of each entry and those before it: `n` times the memory."""
    rows = _wide(input).movedim(dim, -1)
    n = rows.shape[-1]
    after = torch.ones(n, n, dtype=torch.bool, device=input.device).triu(1)
    masked = rows.unsqueeze(-2).expand(*rows.shape[:-1], n, n).masked_fill(after, -torch.inf)
    return masked.logsumexp(-1).movedim(-1, dim)


def _everywhere(spellings: dict[str, Callable[..., Any]]) -> dict[Any, Callable[..., Any]]:
    """Return the spellings ``torch.NAME``, ``torch.Tensor.NAME`` and ``torch.ops.aten.NAME``."""
    table: dict[Any, Callable[..., Any]] = {}
    for name, composition in spellings.items():
        packet = getattr(torch.ops.aten, name)
        owners = [owner for owner in (torch, Tensor) if hasattr(owner, name)]
        table |= {getattr(owner, name): composition for owner in owners}
        table |= {packet: composition}
        table |= {getattr(packet, overload): composition for overload in packet.overloads()}
    return table


OPERATIONS: dict[str, Operation] = {
    "weight_norm": Operation(
        _everywhere(
            {"_weight_norm": _weight_norm, "_weight_norm_interface": _weight_norm_interface}
        ),
        ("WeightNormInterfaceBackward0",),
    ),
    # The node is right away from zero, so it is not refused where Python cannot see the call.
    "pow": Operation(
        {Tensor.__pow__: _pow, **_everywhere({"pow": _pow, "float_power": _float_power})},
        applies=_both_require_grad,
    ),
    "logcumsumexp": Operation(
        _everywhere({"logcumsumexp": _logcumsumexp}), ("LogcumsumexpBackward0",)
    ),
    "layer_norm": Operation(
        {
            F.layer_norm: _layer_norm,
            **_everywhere({"layer_norm": _layer_norm, "native_layer_norm": _native_layer_norm}),
        },
        ("NativeLayerNormBackward0", "NativeLayerNormBackwardBackward0"),
    ),
    "batch_norm": Operation(
        {
            F.batch_norm: _batch_norm,
            F.instance_norm: _instance_norm,
            **_everywhere(
                {
                    "batch_norm": _torch_batch_norm,
                    "native_batch_norm": _native_batch_norm,
                    "instance_norm": _torch_instance_norm,
                }
            ),
        },
        (
            "NativeBatchNormBackward0",
            "NativeBatchNormLegitBackward0",
            "NativeBatchNormLegitBackward1",
            "BatchNormWithUpdateBackward0",
            "CudnnBatchNormBackward0",
            "MiopenBatchNormBackward0",
        ),
    ),
}
