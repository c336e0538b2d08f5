"""Clipping against torch's own functions, its derivatives against differences."""

import pytest
import torch

from blo.steps.clipping import Clip, clipped, clipping_pulled_back, clipping_pushed_forward

SHAPES = [(3, 2), (4,), ()]
CLIPS = [Clip(norm=0.5), Clip(norm=100.0), Clip(value=0.5), Clip(norm=2.0, value=0.3)]
clips = pytest.mark.parametrize("clip", CLIPS, ids=str)


def tensors(dtype=torch.float64):
    return tuple(torch.randn(shape, dtype=dtype) for shape in SHAPES)


def by_torch(gradient, clip):
    """What torch makes of the gradient, in place."""
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    for p, g in zip(parameters, gradient, strict=True):
        p.data = torch.zeros_like(p) if g is None else torch.zeros_like(g)
        p.grad = None if g is None else g.clone()
    if clip.norm is not None:
        torch.nn.utils.clip_grad_norm_(parameters, clip.norm)
    if clip.value is not None:
        torch.nn.utils.clip_grad_value_(parameters, clip.value)
    return [p.grad for p in parameters]


def differences(gradient, clip, direction, h=1e-6):
    at = lambda k: by_torch([g + k * h * d for g, d in zip(gradient, direction, strict=True)], clip)
    return [(a - b) / (2 * h) for a, b in zip(at(1), at(-1), strict=True)]


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@clips
def test_the_clipped_gradient_has_the_bits_of_torch(clip, dtype, attached):
    gradient = tensors(dtype)
    expected = by_torch((gradient[0], None, gradient[2]), clip)
    given = (gradient[0].requires_grad_(attached), None, gradient[2])
    first, none, last = clipped(given, clip)
    assert none is None
    assert torch.equal(first.detach(), expected[0])
    assert torch.equal(last.detach(), expected[2])
    assert last.dtype == dtype


@clips
def test_tangents_are_differences_of_torch(clip):
    gradient, directions = tensors(), [tensors() for _ in range(2)]
    stacked = tuple(torch.stack(column) for column in zip(*directions, strict=True))
    found = clipping_pushed_forward(gradient, clip, stacked)
    for k, direction in enumerate(directions):
        for f, e in zip(found, differences(gradient, clip, direction), strict=True):
            torch.testing.assert_close(f[k], e, rtol=1e-7, atol=1e-8)


@clips
def test_cotangents_are_adjoint_to_differences_of_torch(clip):
    gradient, direction, cotangent = tensors(), tensors(), tensors()
    pulled = clipping_pulled_back(gradient, clip, cotangent)
    dot = lambda xs, ys: float(sum((x * y).sum() for x, y in zip(xs, ys, strict=True)))
    expected = dot(cotangent, differences(gradient, clip, direction))
    assert dot(pulled, direction) == pytest.approx(expected, rel=1e-7)


def test_tensors_without_gradient_are_passed_over():
    gradient, cotangent = tensors(), tensors()
    clip = Clip(norm=0.5)
    given = (gradient[0], None, gradient[2])
    pulled = clipping_pulled_back(given, clip, (cotangent[0], None, None))
    alone = clipping_pulled_back(
        (gradient[0], gradient[2]), clip, (cotangent[0], torch.zeros(()).double())
    )
    assert pulled[1] is None
    assert torch.equal(pulled[0], alone[0])
    tangents = tuple(t[None] for t in cotangent)
    assert clipping_pushed_forward(given, clip, tangents)[1] is tangents[1]


def test_second_derivatives_are_those_of_differences_also_beside_a_zero_tensor():
    gradient = (torch.tensor([1.0, -2.0]).double(), torch.zeros(2).double())
    cotangent, direction = tensors()[:2], tuple(torch.randn(2).double() for _ in range(2))
    cotangent = (cotangent[0][0], cotangent[1][:2])
    inputs = tuple(g.clone().requires_grad_() for g in gradient)
    value = sum(
        (c * t).sum() for c, t in zip(cotangent, clipped(inputs, Clip(norm=0.5)), strict=True)
    )
    grads = torch.autograd.grad(value, inputs, create_graph=True)
    dots = sum((g * d).sum() for g, d in zip(grads, direction, strict=True))
    found = torch.autograd.grad(dots, inputs)

    def gradient_at(h):
        moved = tuple(g + h * d for g, d in zip(gradient, direction, strict=True))
        return clipping_pulled_back(moved, Clip(norm=0.5), cotangent)

    for f, a, b in zip(found, gradient_at(1e-6), gradient_at(-1e-6), strict=True):
        torch.testing.assert_close(f, (a - b) / 2e-6, rtol=1e-7, atol=1e-8)


def test_a_gradient_of_zero_and_a_gradient_of_nothing_stay():
    zeros = tuple(torch.zeros(shape) for shape in SHAPES)
    pulled = clipping_pulled_back(zeros, Clip(norm=1.0), tuple(torch.ones_like(t) for t in zeros))
    assert all(torch.equal(p, torch.ones_like(p)) for p in pulled)
    assert clipped((None, None), Clip(norm=1.0)) == (None, None)
    assert clipping_pulled_back((None,), Clip(value=1.0), (None,)) == (None,)


@pytest.mark.parametrize("bound", [0.0, -1.0, float("inf"), float("nan")])
def test_bounds_must_be_positive_numbers(bound):
    with pytest.raises(ValueError, match="norm must be a number above 0, got"):
        Clip(norm=bound)
    with pytest.raises(ValueError, match="value must be a number above 0, got"):
        Clip(value=bound)


def test_a_clip_needs_a_bound():
    with pytest.raises(ValueError, match=r"Clip\(norm=1.0\) or Clip\(value=1.0\)"):
        Clip()
