"""Vectors over tensors of several types, against float64 arithmetic of Python's own."""

import math

import pytest
import torch

from blo.linear.tensors import add, axpy, dot, extents, length, norm, scale

TYPES = (torch.float32, torch.float64, torch.bfloat16)


def mixed(order=(0, 1, 2, 3)):
    """A vector of integers that every type holds exactly, in tensors of several types."""
    pieces = (
        torch.tensor([1.0, -2.0, 3.0]),
        torch.tensor([[4.0], [-5.0]], dtype=torch.float64),
        torch.tensor([6.0, 7.0], dtype=torch.bfloat16),
        torch.tensor(8.0),
    )
    return tuple(pieces[i] for i in order)


def numbers(x):
    return [v for t in x for v in t.double().reshape(-1).tolist()]


def types(x):
    return [t.dtype for t in x]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 1, 0), (3, 2, 0, 1)])
def test_products_and_norms_take_types_in_any_order(order):
    x = mixed(order)
    squares = math.fsum(v * v for v in numbers(x))
    assert dot(x, x).dtype == norm(x).dtype == torch.float64
    assert float(dot(x, x)) == squares
    assert float(norm(x)) == pytest.approx(math.sqrt(squares), rel=1e-15)
    assert length(x) == pytest.approx(math.sqrt(squares), rel=1e-15)


def test_the_widest_type_accumulates():
    x = (torch.full((1000,), 0.1), torch.full((1000,), 0.1, dtype=torch.float64))
    exact = math.fsum(v * v for v in numbers(x))
    assert float(dot(x, x)) == pytest.approx(exact, rel=1e-14)
    assert float(dot(tuple(reversed(x)), x)) == pytest.approx(exact, rel=1e-7)
    assert float(norm(x)) == pytest.approx(math.sqrt(exact), rel=1e-14)


def test_half_precision_products_neither_overflow_nor_round_on_the_way():
    x = (torch.tensor([300.0, 300.0], dtype=torch.float16),)
    assert float(dot(x, x)) == 180_000.0  # float16 ends at 65,504
    y = (torch.tensor([1.0078125, 1.0], dtype=torch.bfloat16),)
    assert float(dot(y, y)) == 1.0078125**2 + 1.0
    assert dot(x, x).dtype == norm(y).dtype == torch.float32


@pytest.mark.parametrize("alpha", [0.5, torch.tensor(0.5), torch.tensor(0.5, dtype=torch.float64)])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_factors_leave_types_alone(alpha, shape):
    alpha = alpha.reshape(shape) if isinstance(alpha, torch.Tensor) else alpha
    x = mixed()
    for value in (scale(alpha, x), axpy(alpha, x, x), axpy(alpha, x, scale(0.0, x))):
        assert types(value) == types(x)
    assert numbers(scale(alpha, x)) == [0.5 * v for v in numbers(x)]
    assert numbers(axpy(alpha, x, x)) == [1.5 * v for v in numbers(x)]
    assert types(add(x, x)) == types(scale([0.5] * 4, x)) == types(x)


def test_factors_of_a_tensor_are_differentiated():
    alpha = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    x = mixed()
    value = sum(t.double().sum() for t in axpy(alpha, x, x))
    (gradient,) = torch.autograd.grad(value, alpha)
    assert float(gradient) == sum(numbers(x))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("exponent", [-140, -125, -60, -30, 0, 30, 60, 120])
def test_length_has_the_right_size_at_every_size(dtype, exponent):
    x = (
        torch.tensor([3.0, 0.0], dtype=dtype) * 2.0**exponent,
        torch.tensor(4.0, dtype=dtype) * 2.0**exponent,
    )
    exact = math.hypot(*numbers(x))
    assert length(x) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("size", [5e-324, 1e-300, 1e-200, 1e-160, 1e-100, 1e100, 1e160, 1e300])
def test_length_of_float64_has_the_right_size(size):
    x = (torch.tensor([size, size, 0.0], dtype=torch.float64), torch.tensor([1e-30]) * min(size, 1))
    assert length(x) == pytest.approx(math.hypot(*numbers(x)), rel=1e-14)


def test_length_of_nothing_is_zero_and_of_what_is_not_finite_is_not_finite():
    assert length(()) == length((torch.zeros(3), torch.zeros(0))) == 0.0
    assert length((torch.tensor([1.0, math.inf]), torch.ones(2))) == math.inf
    assert length((torch.ones(2), torch.tensor([-math.inf]))) == math.inf
    assert math.isnan(length((torch.tensor([math.nan, 1.0]), torch.tensor([math.inf]))))
    assert math.isnan(length((torch.tensor([math.inf]), torch.tensor([math.nan]))))


EXTENTS = [
    torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 0.0]]),
    torch.tensor([0.0, -1.0, 2.0]),
    torch.tensor(3.0),
    torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]]),
    torch.tensor([[6e4, 6e4], [0.0, 1.0]]).half(),  # squares beyond its range
    torch.tensor([[0.0, 1e-30], [0.0, 0.0]]),  # squares that vanish
    torch.tensor([[1e30, 1e30], [1e30, 0.0]]),  # squares that overflow
    torch.zeros(4, 2),
    torch.zeros(0, 3),
    torch.zeros(()),
]


def test_extents_are_norms_and_rows_in_use_of_entries_of_any_size():
    for t, (size, num_rows) in zip(EXTENTS, extents(tuple(EXTENTS)), strict=True):
        entries = t.double().reshape(t.shape[:1].numel(), -1) if t.numel() else t.reshape(0, 1)
        exact = math.sqrt(math.fsum(v * v for v in numbers([t])))
        assert size == pytest.approx(exact, rel=1e-6)
        assert num_rows == sum(any(row) for row in entries.tolist())
