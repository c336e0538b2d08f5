"""Options of the optimizer as functions of other tensors, against differences through torch's own
optimizers.
"""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from blo.steps.optimizers import Adjoint, Iterate, Tangent, UpdateMap, options_in_graph

NUM_STEPS = 5
SHAPES = [(3, 2), ()]
# Each case: the class, its plain options, and those that are differentiated, a number each.
CASES = [
    (torch.optim.SGD, {}, {"lr": 0.3, "weight_decay": 0.1}),
    (torch.optim.SGD, {"lr": 0.3}, {"momentum": 0.9, "dampening": 0.4}),
    (torch.optim.SGD, {"nesterov": True, "maximize": True}, {"lr": 0.3, "momentum": 0.8}),
    (torch.optim.Adam, {}, {"lr": 0.1, "beta1": 0.8, "beta2": 0.9, "eps": 0.01}),
    (torch.optim.Adam, {"amsgrad": True}, {"lr": 0.1, "weight_decay": 0.2, "beta2": 0.6}),
    (torch.optim.AdamW, {}, {"lr": 0.1, "weight_decay": 0.2, "beta1": 0.0}),
    (torch.optim.NAdam, {"momentum_decay": 0.1}, {"lr": 0.1, "beta1": 0.8, "beta2": 0.9}),
    (
        torch.optim.NAdam,
        {"decoupled_weight_decay": True},
        {"lr": 0.1, "weight_decay": 0.2, "momentum_decay": 0.1, "eps": 0.01},
    ),
    (
        torch.optim.Adamax,
        {"maximize": True},
        {"lr": 0.1, "weight_decay": 0.1, "beta1": 0.8, "beta2": 0.3, "eps": 0.01},
    ),
    (torch.optim.RMSprop, {}, {"lr": 0.1, "weight_decay": 0.1, "eps": 0.01}),
    (torch.optim.RMSprop, {"centered": True}, {"lr": 0.1, "momentum": 0.7, "alpha": 0.8}),
    (torch.optim.Adagrad, {}, {"lr": 0.1, "weight_decay": 0.1, "lr_decay": 0.2, "eps": 0.01}),
]
IDS = [f"{kind.__name__}-{'-'.join([*plain, *free])}" for kind, plain, free in CASES]
cases = pytest.mark.parametrize("kind, plain, free", CASES, ids=IDS)


@pytest.fixture(autouse=True)
def doubles():
    """Double precision for what NAdam keeps in torch's default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def settings(plain: dict, free: dict) -> dict:
    """The options as torch takes them."""
    options = {"lr": 0.1, **plain, **free}
    beta1, beta2 = options.pop("beta1", 0.8), options.pop("beta2", 0.9)
    return {**options, "betas": (beta1, beta2)} if "beta1" in free or "beta2" in free else options


def in_graph(optimizer, plain: dict, free: dict) -> tuple[dict, tuple[Tensor, ...]]:
    """The options with a leaf for each free one, and the leaves."""
    leaves = {name: torch.tensor(value, requires_grad=True) for name, value in free.items()}
    group = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    return {**group, **settings(plain, leaves)}, tuple(leaves.values())


class Descent:
    """Five steps on ``<a, sin(y)>``, by torch or by the update map."""

    def __init__(self, kind, plain: dict) -> None:
        self.kind, self.plain = kind, plain
        self.start = tuple(torch.randn(shape) for shape in SHAPES)
        self.slopes = [tuple(torch.randn(shape) for shape in SHAPES) for _ in range(NUM_STEPS)]

    def optimizer(self, free: dict):
        parameters = [torch.nn.Parameter(t.clone()) for t in self.start]
        return self.kind(parameters, foreach=False, **settings(self.plain, free)), parameters

    def by_torch(self, free: dict) -> Tensor:
        """The end of the steps, as one vector."""
        optimizer, parameters = self.optimizer(free)
        for slopes in self.slopes:
            for p, a in zip(parameters, slopes, strict=True):
                p.grad = (a * p.cos()).detach()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in parameters])

    def gradient(self, t: int, lower) -> tuple[Tensor, ...]:
        return tuple(a * y.cos() for a, y in zip(self.slopes[t], lower, strict=True))


def differences(value: Callable[[dict], Tensor], free: dict, h: float = 1e-6) -> list[Tensor]:
    """The derivative in each free option, one-sided to second order where that is zero."""
    found = []
    for name, x in free.items():
        at = lambda k, name=name, x=x: value({**free, name: x + k * h})
        if x == 0:
            found.append((4 * at(1) - 3 * value(free) - at(2)) / (2 * h))
        else:
            found.append((at(1) - at(-1)) / (2 * h))
    return found


@cases
def test_steps_are_differentiable_in_the_options(kind, plain, free):
    descent = Descent(kind, plain)
    optimizer, _ = descent.optimizer(free)
    options, variables = in_graph(optimizer, plain, free)
    update = UpdateMap(kind)
    iterate = update.start(descent.start, [{}] * len(SHAPES), [options] * len(SHAPES))
    for t in range(NUM_STEPS):
        gradient = descent.gradient(t, iterate.lower)
        iterate = update.step(iterate, gradient, [options] * len(SHAPES))
    end = torch.cat([y.flatten() for y in iterate.lower])
    torch.testing.assert_close(end.detach(), descent.by_torch(free), rtol=1e-12, atol=1e-12)
    expected = torch.stack(differences(descent.by_torch, free), dim=1)
    found = [torch.autograd.grad(e, variables, retain_graph=True) for e in end]
    torch.testing.assert_close(
        torch.stack([torch.stack(row) for row in found]), expected, rtol=1e-6, atol=1e-7
    )


@cases
def test_cotangents_and_tangents_of_the_options_are_those_of_the_steps(kind, plain, free):
    descent = Descent(kind, plain)
    optimizer, _ = descent.optimizer(free)
    options, variables = in_graph(optimizer, plain, free)
    update, each = UpdateMap(kind), [options] * len(SHAPES)
    assert {id(t) for t in options_in_graph(each)} == {id(t) for t in variables}
    iterates = [update.start(descent.start, [{}] * len(SHAPES), each)]
    gradients = [descent.gradient(t, [torch.zeros(s) for s in SHAPES]) for t in range(NUM_STEPS)]
    for gradient in gradients:
        iterates.append(detached(update.step(iterates[-1], gradient, each)))
    cotangent = tuple(torch.randn(shape) for shape in SHAPES)
    expected = along_fixed_gradients(descent, free, gradients, cotangent)
    adjoint, total = Adjoint(cotangent), [torch.zeros(()) for _ in variables]
    for iterate, gradient in zip(reversed(iterates[:-1]), reversed(gradients), strict=True):
        adjoint, _, _, of_options = update.pulled_back(iterate, gradient, each, adjoint, variables)
        total = [a + b for a, b in zip(total, of_options, strict=True)]
    torch.testing.assert_close(torch.stack(total), expected, rtol=1e-6, atol=1e-7)

    n = len(variables)
    tangent = Tangent(
        tuple(torch.zeros(n, *y.shape) for y in iterates[0].lower),
        tuple(tuple(torch.zeros(n, *t.shape) for t in s.slots) for s in iterates[0].states),
    )
    no_gradient = tuple(torch.zeros(n, *shape) for shape in SHAPES)
    for iterate, gradient in zip(iterates[:-1], gradients, strict=True):
        if not iterate.states[0].slots:
            tangent = Tangent(tangent.lower, ((),) * len(SHAPES))
        tangent = update.pushed_forward(
            iterate, gradient, each, tangent, no_gradient, variables, tuple(torch.eye(n))
        )
    columns = zip(tangent.lower, cotangent, strict=True)
    pushed = torch.stack([(z.reshape(n, -1) @ c.flatten()) for z, c in columns]).sum(0)
    torch.testing.assert_close(pushed, expected, rtol=1e-6, atol=1e-7)


def along_fixed_gradients(descent: Descent, free: dict, gradients, cotangent) -> Tensor:
    def value(free: dict) -> Tensor:
        optimizer, parameters = descent.optimizer(free)
        for gradient in gradients:
            for p, g in zip(parameters, gradient, strict=True):
                p.grad = g.clone()
            optimizer.step()
        ends = zip(parameters, cotangent, strict=True)
        return sum((p.detach() * c).sum() for p, c in ends)

    return torch.stack(differences(value, free))


def detached(iterate: Iterate) -> Iterate:
    states = tuple(s._replace(slots=tuple(t.detach() for t in s.slots)) for s in iterate.states)
    return Iterate(tuple(y.detach() for y in iterate.lower), states)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.RMSprop])
def test_a_momentum_of_zero_is_differentiated(kind):
    descent, free = Descent(kind, {"lr": 0.1}), {"momentum": 0.0, "weight_decay": 0.0}
    optimizer, _ = descent.optimizer(free)
    options, variables = in_graph(optimizer, {"lr": 0.1}, free)
    update = UpdateMap(kind)
    iterate = update.start(descent.start, [{}] * len(SHAPES), [options] * len(SHAPES))
    for t in range(NUM_STEPS):
        gradient = descent.gradient(t, iterate.lower)
        iterate = update.step(iterate, gradient, [options] * len(SHAPES))
    found = torch.autograd.grad(sum(y.sum() for y in iterate.lower), variables)
    expected = differences(lambda free: descent.by_torch(free).sum(), free)
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-5, atol=1e-7)
    assert found[0].abs() > 1e-3


def test_a_momentum_of_zero_with_dampening_is_refused():
    descent, free = Descent(torch.optim.SGD, {"lr": 0.1}), {"momentum": 0.0}
    options, _ = in_graph(descent.optimizer(free)[0], {"lr": 0.1, "dampening": 0.5}, free)
    update, each = UpdateMap(torch.optim.SGD), [options] * len(SHAPES)
    start = update.start(descent.start, [{}] * len(SHAPES), each)
    with pytest.raises(ValueError, match=r"momentum is .* 0 while dampening is not.*dampening=0"):
        update.step(start, descent.gradient(0, start.lower), each)


def test_groups_that_share_an_option_share_its_cotangent():
    lr, update = torch.tensor(0.1, requires_grad=True), UpdateMap(torch.optim.SGD)
    optimizer = torch.optim.SGD([torch.ones(1)], lr=0.1)
    each = [{**optimizer.param_groups[0], "lr": factor * lr} for factor in (1, 2)]
    start = update.start((torch.ones(2), torch.ones(3)), ({}, {}), each)
    gradient, ones = (torch.ones(2), torch.ones(3)), Adjoint((torch.ones(2), torch.ones(3)))
    pullback = update.pulled_back(start, gradient, each, ones, (lr,))
    assert pullback.options[0].item() == -(2 + 2 * 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_options_in_double_precision_leave_the_type_of_the_parameters(dtype):
    for kind, plain, free in CASES:
        optimizer, _ = Descent(kind, plain).optimizer(free)
        options, variables = in_graph(optimizer, plain, free)
        lower = tuple(torch.randn(shape, dtype=dtype) for shape in SHAPES)
        update, each = UpdateMap(kind), [options] * len(SHAPES)
        end = update.step(update.start(lower, [{}] * len(SHAPES), each), lower, each)
        assert [y.dtype for y in end.lower] == [dtype] * len(SHAPES)
        adjoint = Adjoint(tuple(torch.ones_like(y) for y in lower))
        pullback = update.pulled_back(
            update.start(lower, [{}] * len(SHAPES), each), lower, each, adjoint, variables
        )
        assert all(t.dtype == torch.float64 for t in pullback.options)


def test_options_that_are_tensors_without_graph_leave_none():
    optimizer, parameters = Descent(torch.optim.Adam, {}).optimizer({"lr": torch.tensor(0.1)})
    each = [optimizer.param_groups[0]] * len(SHAPES)
    assert options_in_graph(each) == ()
    lower = tuple(p.detach() for p in parameters)
    update = UpdateMap(torch.optim.Adam)
    end = update.step(update.start(lower, [{}] * len(SHAPES), each), lower, each)
    assert not any(y.requires_grad for y in end.lower)


def test_a_learning_rate_of_none_is_refused_where_it_is_needed():
    optimizer = torch.optim.SGD([torch.ones(1)], lr=0.1)
    options = copy.copy(optimizer.param_groups[0])
    options["lr"] = None
    update = UpdateMap(torch.optim.SGD)
    start = update.start((torch.ones(1),), ({},), (options,))
    assert update.step(start, (None,), (options,)).lower == start.lower
    with pytest.raises(ValueError, match=r"learning rate is None: .* such as cg\(10\)"):
        update.step(start, (torch.ones(1),), (options,))
