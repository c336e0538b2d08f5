"""Every differentiable operation of torch against differences, at orders one to three.

Order k is compared with central differences, extrapolated once, of autograd's order k - 1 along a
random direction: an error of 1e-10 or less, save where torch itself keeps a constant in float32
(hardsigmoid) or a value to seven digits (polygamma). A wrong derivative is off by 1e-2 or more.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import pytest
import torch
from operations import CASES, load, values
from torch import Tensor

from blo.derivatives.composed import WRONG, composing, wrong_orders

TOLERANCE = 1e-6
RADIUS = 3e-4

# Which of the operations that are listed as wrong a case uses.
USES = {
    **dict.fromkeys(
        [
            "layer_norm",
            "torch.layer_norm",
            "native_layer_norm",
            "aten.layer_norm",
            "nn.LayerNorm",
            "transformer layer",
        ],
        "layer_norm",
    ),
    **dict.fromkeys(
        [
            "batch_norm",
            "torch.batch_norm",
            "native_batch_norm",
            "nn.BatchNorm2d",
            "instance_norm",
            "torch.instance_norm",
            "nn.InstanceNorm2d",
        ],
        "batch_norm",
    ),
    **dict.fromkeys(
        [
            "_weight_norm",
            "_weight_norm last",
            "_weight_norm_interface",
            "parametrizations.weight_norm",
        ],
        "weight_norm",
    ),
    **dict.fromkeys(
        [
            "pow at exponent zero",
            "operator ** at exponent zero",
            "method pow at exponent zero",
            "float_power at exponent zero",
        ],
        "pow",
    ),
    **dict.fromkeys(["logcumsumexp", "method logcumsumexp"], "logcumsumexp"),
}

# By version of torch: the order at which a case raises, since torch has no such derivative.
REFUSES = {
    "2.13": dict.fromkeys(
        [
            "hardsigmoid",
            "segment_reduce",
            "cdist 1",
            "cdist 2",
            "cdist 3",
            "pdist",
            "pdist 3",
            "embedding_bag",
            "embedding_bag max",
            "embedding_bag weighted",
            "multi_margin_loss",
            "multilabel_margin_loss",
            "ctc_loss",
        ],
        2,
    )
    | {"sparse.mm": 3},
}
VERSION = ".".join(torch.__version__.split(".")[:2])


def real(t: Tensor) -> Tensor:
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t


def derivative(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], directions: Sequence[list[Tensor]]
) -> Tensor:
    """The derivative of a quadratic of the outputs along all `directions`, one after another."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    output = real(function(*inputs))
    value = (values(*output.shape, seed=5) * output).sum() + 0.3 * output.square().sum()
    for direction in directions:
        if not value.requires_grad:
            return torch.zeros_like(value)
        grads = torch.autograd.grad(
            value,
            inputs,
            create_graph=direction is not directions[-1],
            allow_unused=True,
            materialize_grads=True,
        )
        value = torch.stack([(a * b).sum() for a, b in zip(grads, direction, strict=True)]).sum()
    return value.detach()


def difference(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], directions: Sequence[list[Tensor]]
) -> Tensor:
    """The same, with the last derivative by differences."""

    def at(step: float) -> Tensor:
        moved = [a + step * b for a, b in zip(inputs, directions[-1], strict=True)]
        return derivative(function, moved, directions[:-1])

    wide, narrow = ((at(radius) - at(-radius)) / (2 * radius) for radius in (RADIUS, RADIUS / 2))
    return (4 * narrow - wide) / 3


def errors(function: Callable[..., Tensor], inputs: Sequence[Tensor], context) -> list[float]:
    """The relative errors of orders one to three, up to the first that torch refuses."""
    found = []
    for order in (1, 2, 3):
        directions = [
            [values(*t.shape, seed=50 + 7 * i + j) / 2 for j, t in enumerate(inputs)]
            for i in range(order)
        ]
        try:
            with context(order):
                got = derivative(function, inputs, directions)
        except RuntimeError:  # no such derivative
            if order == 1:
                raise
            break
        # The order below is right, if it is: it was compared before.
        with context(order):
            right = difference(function, inputs, directions)
        found.append(float((got - right).abs() / right.abs().clamp_min(1e-2)))
    return found


def wrong_from(found: list[float]) -> int | None:
    """The first order that is wrong."""
    return next((i for i, error in enumerate(found, 1) if not error < TOLERANCE), None)


def test_there_are_at_least_130_operations():
    assert len(CASES) > 350


@pytest.mark.parametrize("name", CASES)
def test_an_operation_has_the_derivatives_that_are_expected(name):
    function, inputs = CASES[name]
    found = errors(function, inputs, lambda order: nullcontext())
    expected = wrong_orders()[USES[name]] if name in USES else None
    got = wrong_from(found)
    if VERSION in WRONG:
        assert got == expected, found
        assert REFUSES[VERSION].get(name, 4) == len(found) + 1
    elif got is None and expected is not None:
        pytest.skip(f"right in torch {VERSION}: list this version in blo.derivatives.composed")
    else:
        assert got == expected, f"wrong in torch {VERSION}: list it in blo.derivatives.composed"


@pytest.mark.parametrize("name", USES)
def test_a_wrong_operation_is_right_where_it_is_composed(name):
    function, inputs = CASES[name]
    found = errors(function, inputs, composing)
    assert len(found) == 3
    assert wrong_from(found) is None, found


@pytest.mark.cuda
def test_operations_on_a_cuda_device_have_the_same_wrong_derivatives():
    """Other kernels, same table: what is not listed is right, and so is what is composed."""
    found: dict[str, list[float]] = {}
    with torch.device("cuda"):
        for name, (function, inputs) in load("cuda").items():
            try:
                found[name] = errors(function, inputs, composing)
            except RuntimeError:  # not on this device
                continue
    wrong = {name: e for name, e in found.items() if wrong_from(e) is not None}
    assert not wrong, wrong
    assert len(found) > 330
