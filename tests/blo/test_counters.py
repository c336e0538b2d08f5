"""What the records count, against the calls that were made: every evaluation of a loss is a
gradient, every derivative of a gradient is a product, those of solves inside other solves included.
"""

import pytest
import torch
from oracles import GRAPHS, NestedQuadratics

import blo

CHAIN = {"x": ["y", "z"], "y": ["x"], "z": ["y"]}
TWO = {"x": ["y"], "y": ["x"]}
MIDDLE = GRAPHS["3, middle reads below"]
ALL = GRAPHS["4, all read all"]


class Calls:
    """The calls to a graph's losses and to `torch.autograd.grad`, while it is entered.

    A call to `torch.autograd.grad` for a scalar that a loss returned is a gradient. One for any
    other is a product; those in the updates of optimizers, whose functions hold no loss, are not
    counted.
    """

    def __init__(self, monkeypatch, problems):
        self.losses = self.gradients = self.others = 0
        self._returned = []
        taken = torch.autograd.grad
        for problem in problems:
            problem.loss = self._observed(problem.loss)

        def grad(outputs, inputs, *args, **kwargs):
            (first, *_) = (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)
            if isinstance(first, torch.autograd.graph.GradientEdge):  # the same call, passed on
                return taken(outputs, inputs, *args, **kwargs)
            # By its memory: the library may hold a view of what the loss returned.
            if any(first.data_ptr() == known.data_ptr() for known in self._returned):
                self.gradients += 1
            else:
                self.others += 1
            return taken(outputs, inputs, *args, **kwargs)

        monkeypatch.setattr(torch.autograd, "grad", grad)

    def _observed(self, loss):
        def observed(batch):
            self.losses += 1
            value = loss(batch)
            self._returned = [*self._returned[-50:], value]
            return value

        return observed


def counted(monkeypatch, reads, method, num_rounds=2, **settings):
    """The calls in some rounds, and the last record."""
    nested = NestedQuadratics(reads, size=2)
    values, _ = nested.solve()
    problems = nested.problems(values, method, lr=0.01, **settings)
    engine = blo.Engine(blo.ProblemGraph(problems))
    calls = Calls(monkeypatch, problems)
    record = engine.run(num_rounds)
    return calls, record


METHODS = {
    "darts": blo.darts(),
    "darts, one-sided": blo.darts(one_sided=True),
    "t1t2": blo.t1t2(),
    "dense": blo.dense(),
    "cg": blo.cg(10),
    "minres": blo.minres(10),
    "neumann": blo.neumann(4, scale=0.1),
    "soba": blo.soba(),
    "f2sa": blo.f2sa(3),
}
# Their steps are taken again, with derivatives of the optimizer's update among the calls.
STEPPED = {
    "sama": blo.sama(),
    "unrolled": blo.unrolled(),
    "unrolled(1)": blo.unrolled(1),
    "unrolled, checkpointed": blo.unrolled(checkpoint=True),
    "forward_mode": blo.forward_mode(),
}
NESTED = {k: METHODS[k] for k in ("darts", "t1t2", "dense", "cg", "minres", "neumann")}


@pytest.mark.parametrize("reads", [TWO, CHAIN], ids=["two levels", "chain"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_gradients_and_products_are_the_calls_made(monkeypatch, reads, method):
    calls, record = counted(monkeypatch, reads, method, steps=2)
    assert (record.num_gradients, record.num_products) == (calls.gradients, calls.others)
    assert calls.gradients == calls.losses


@pytest.mark.parametrize("method", STEPPED.values(), ids=STEPPED)
def test_gradients_of_steps_taken_again_are_the_losses_evaluated(monkeypatch, method):
    calls, record = counted(monkeypatch, TWO, method, steps=3)
    assert record.num_gradients == calls.gradients == calls.losses
    if method == blo.unrolled():  # one pass through the graph of all steps, a product a step
        assert record.num_products == 2 * 3
        assert calls.others == 2
    else:
        assert record.num_products <= calls.others


@pytest.mark.parametrize(
    "method, reads",
    [
        *(pytest.param(m, MIDDLE, id=f"three levels, {k}") for k, m in NESTED.items()),
        *(pytest.param(NESTED[k], ALL, id=f"four levels, {k}") for k in ("darts", "t1t2", "cg")),
    ],
)
def test_solves_inside_other_solves_are_counted(monkeypatch, reads, method):
    calls, record = counted(monkeypatch, reads, method, num_rounds=1)
    assert (record.num_gradients, record.num_products) == (calls.gradients, calls.others)
    assert calls.gradients == calls.losses


class Solves:
    """A solver that counts its solves."""

    def __init__(self, num_products):
        self.count, self._solver = 0, blo.CG(num_products, rtol=1e-30)

    def __call__(self, matvec, rhs, init=None):
        self.count += 1
        return self._solver(matvec, rhs, init)


@pytest.mark.parametrize("num_products", [1, 2, 3])
def test_a_response_over_another_takes_one_solve_and_two_a_product(num_products):
    nested = NestedQuadratics(MIDDLE, size=3)
    values, _ = nested.solve()
    problems = {p.name: p for p in nested.problems(values, blo.cg(1), lr=0.01)}
    solves = {name: Solves(num_products) for name in ("y", "z")}
    for name, solver in solves.items():
        problems[name].method = blo.Implicit(solver)
    blo.Engine(blo.ProblemGraph(list(problems.values()))).run(1)
    assert solves["y"].count == 1
    # One in each of the two hypergradients; one in the gradient of the middle problem, and two in
    # each of its products, the mixed one among them.
    assert solves["z"].count == 2 + 1 + 2 * (num_products + 1)


@pytest.mark.parametrize("method", [blo.sama(), blo.unrolled(), blo.forward_mode()], ids=repr)
def test_gradients_of_steps_inside_solves_are_counted(monkeypatch, method):
    calls, record = counted(monkeypatch, MIDDLE, method, num_rounds=1, steps=2)
    assert record.num_gradients == calls.gradients == calls.losses


@pytest.mark.parametrize("method", [blo.darts(), blo.t1t2(), blo.cg(5)], ids=repr)
def test_an_accumulated_gradient_counts_once(monkeypatch, method):
    nested = NestedQuadratics(TWO, size=2)
    values, _ = nested.solve()
    problems = nested.problems(values, method, lr=0.01)
    for p in problems:
        p.accumulate = 3
    engine = blo.Engine(blo.ProblemGraph(problems))
    calls = Calls(monkeypatch, problems)
    record = engine.run(2)
    assert 3 * record.num_gradients == calls.gradients == calls.losses
    assert 3 * record.num_products == calls.others
