"""What the parameters of a graph are, they stay: hooks, places, memory, graphs that share them."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blo import Engine, Method, Problem, ProblemGraph, alternating, darts, t1t2, unrolled

MASK = torch.tensor([1.0, 0.0])


class Point(nn.Module):
    """Two numbers."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(values))


def pair(x: Point, y: Point, method: Method | None = None) -> Engine:
    """An engine of two levels over two points."""
    sgd = torch.optim.SGD
    fit = lambda _: ((y.p - x.p).square() + 0.3 * y.p * y.p.flip(0)).sum()
    error = lambda _: (y.p - 1).square().sum() + 0.1 * x.p.square().sum()
    upper = Problem("upper", error, x, sgd(x.parameters(), 0.5), [None])
    lower = Problem("lower", fit, y, sgd(y.parameters(), 0.1), [None], method=method)
    return Engine(ProblemGraph([upper, lower]))


def edit(gradient: Tensor) -> None:
    """A hook that changes the gradient in place."""
    gradient.mul_(MASK)


def points() -> tuple[Point, Point]:
    return Point(0.5, 0.7), Point(1.0, 2.0)


@pytest.mark.parametrize("level", ["upper", "lower"])
@pytest.mark.parametrize("method", [darts(), t1t2(), unrolled()])
def test_a_hook_that_changes_a_gradient_is_refused(method: Method, level: str) -> None:
    """Some evaluations would run it, others not: unrolled() trained as if it were not there."""
    x, y = points()
    engine = pair(x, y, method)
    engine.run(1)
    chosen = x if level == "upper" else y
    handle = chosen.p.register_hook(lambda g: g * MASK)
    with pytest.raises(RuntimeError, match=f"hook .* changes the gradient .* problem '{level}'"):
        engine.run(1)
    handle.remove()
    engine.run(1)
    chosen.p.register_hook(edit)
    with pytest.raises(RuntimeError, match="changes the gradient"):
        engine.run(1)


def test_a_hook_that_looks_on_and_one_without_a_hypergradient_are_let_be() -> None:
    (x, y), (u, v) = points(), points()
    seen: list[Tensor] = []
    y.p.register_hook(lambda g: seen.append(g.clone()))
    pair(x, y, darts()).run(2)
    pair(u, v, darts()).run(2)
    assert len(seen) > 1
    assert torch.equal(x.p, u.p)
    x, y = points()
    y.p.register_hook(lambda g: g * MASK)
    pair(x, y, alternating()).run(2)
    assert y.p[1].item() == 2.0


@pytest.mark.parametrize("level", ["upper", "lower"])
def test_a_hook_that_would_never_run_is_refused_and_one_that_only_watches_is_not(
    level: str,
) -> None:
    x, y = points()
    engine = pair(x, y, alternating())
    chosen = x if level == "upper" else y
    handle = chosen.p.register_post_accumulate_grad_hook(lambda p: None)
    with pytest.raises(RuntimeError, match=f"parameter 0 of problem '{level}'.*never run"):
        engine.run(1)
    handle.remove()

    def watch(parameter: Tensor) -> None:
        """Does nothing."""

    watch.only_watches = True  # type: ignore[attr-defined]
    chosen.p.register_post_accumulate_grad_hook(watch)
    engine.run(1)


@pytest.mark.parametrize("level", ["upper", "lower"])
def test_a_parameter_that_was_replaced_in_its_module_is_named(level: str) -> None:
    """The optimizer would go on moving the old one."""
    x, y = points()
    engine = pair(x, y)
    engine.run(1)
    chosen = x if level == "upper" else y
    chosen.p = nn.Parameter(chosen.p.detach().clone())
    with pytest.raises(RuntimeError, match=rf"'\d\.p' of problem '{level}' is no more in its mod"):
        engine.run(1)


def test_parameters_that_share_memory_are_refused_and_neighbours_are_not() -> None:
    memory = torch.tensor([0.5, 0.7, 1.0, 2.0])
    x, y = points()
    x.p, y.p = nn.Parameter(memory[:2]), nn.Parameter(memory[2:])
    pair(x, y).run(1)
    x.p, y.p = nn.Parameter(memory[:2]), nn.Parameter(memory[1:3])
    with pytest.raises(ValueError, match=r"parameters '0\.p' and '1\.p' share memory"):
        pair(x, y)


class Network(nn.Module):
    """A layer, and so many normalisations."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norms = nn.ModuleList(nn.BatchNorm1d(3) for _ in range(number))

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        for norm in self.norms:
            x = norm(x)
        return x


def in_two_graphs(*, shared: bool) -> Tensor:
    """Return all parameters after two rounds each of two graphs, of one lower problem or of two
    over the same modules.
    """
    torch.manual_seed(0)
    low, first, second = Network(1), Network(2), Point(0.1, 0.2, 0.3)
    data, sgd = torch.randn(8, 3), torch.optim.SGD

    def fit(_: Any) -> Tensor:
        moved = low(data) - second.p - 0.1 * first.linear.weight.sum()
        return moved.square().mean() + moved.square().square().mean()

    def lower() -> Problem:
        optimizer = sgd(low.parameters(), 0.1)
        return Problem("lower", fit, low, optimizer, [None], method=unrolled(), steps=2)

    both = lambda _: (low(data) - first(data)).square().mean()
    alone = lambda _: low(data).square().mean()
    one = Problem("upper", both, first, sgd(first.parameters(), 0.1), [None])
    other = Problem("upper", alone, second, sgd(second.parameters(), 0.1), [None])
    common = lower()
    engines = [Engine(ProblemGraph([p, common if shared else lower()])) for p in (one, other)]
    for engine in engines * 2:
        engine.run(1)
    return torch.cat([t.detach().flatten() for m in (low, first, second) for t in m.parameters()])


def test_a_problem_may_be_in_two_graphs() -> None:
    """Buffers are numbered graph by graph: the lower one's are behind those of the first upper
    network, and the only ones beside the second.
    """
    assert torch.equal(in_two_graphs(shared=True), in_two_graphs(shared=False))


def test_an_engine_is_not_copied_by_deepcopy() -> None:
    """Its losses would go on using the modules of the first."""
    with pytest.raises(TypeError, match=r"copy\.deepcopy"):
        copy.deepcopy(pair(*points()))
