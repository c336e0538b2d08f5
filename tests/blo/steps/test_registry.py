"""What is known of optimizer classes, by torch's own steps and by hand."""

import pytest
import torch

from blo.steps import registry
from blo.steps.optimizers import Adjoint, Tangent, UpdateMap
from blo.steps.registry import coupled_decay, register_update, sign, unwrapped
from blo.steps.rules import State


class Lion(torch.optim.Optimizer):
    """An optimizer that torch does not ship."""

    def __init__(self, params, lr, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                g = p.grad.add(p, alpha=group["weight_decay"])
                p.add_(state["exp_avg"].lerp(g, 1 - beta1).tanh(), alpha=-group["lr"])
                state["exp_avg"].lerp_(g, 1 - beta2)


def lion(y, state, g, options):
    beta1, beta2 = options["betas"]
    (m,) = state.slots
    g = g.add(y, alpha=options["weight_decay"])
    y = y.add(m.lerp(g, 1 - beta1).tanh(), alpha=-options["lr"])
    return y, State(state.num_steps + 1, (m.lerp(g, 1 - beta2),))


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """A registry of its own for each test."""
    monkeypatch.setattr(registry, "_registered", {})


def test_a_registered_rule_takes_the_steps_of_its_optimizer():
    with pytest.raises(
        TypeError, match=r"Lion cannot .*Register .*register_update\(Lion, rule, sl"
    ):
        UpdateMap(Lion)
    register_update(Lion, lion, slots={"exp_avg": 0.0}, couples_decay=True)
    p = torch.nn.Parameter(torch.randn(3))
    optimizer = Lion([p], lr=0.1, weight_decay=0.2)
    update, options = UpdateMap(Lion), (optimizer.param_groups[0],)
    iterate = update.start((p.detach().clone(),), ({},), options)
    for _ in range(5):
        states = ({k: v.clone() for k, v in optimizer.state[p].items()},)
        before, p.grad = p.detach().clone(), torch.randn(3)
        optimizer.step()
        iterate = update.step(iterate, (p.grad,), options)
        assert torch.equal(iterate.lower[0], p.detach())
        assert torch.equal(update.plain_step((before,), states, (p.grad,), options)[0], p.detach())
    assert coupled_decay(Lion, options[0]) == 0.2
    assert not update.is_adaptive


def test_subclasses_share_a_registered_rule_unless_they_step_themselves():
    class Renamed(Lion):
        pass

    class Projected(Lion):
        def step(self, closure=None):
            super().step(closure)

    register_update(Lion, lion, slots={"exp_avg": 0.0})
    UpdateMap(Renamed)
    with pytest.raises(TypeError, match="Projected cannot be taken again"):
        UpdateMap(Projected)
    register_update(Projected, lion, slots={"exp_avg": 0.0})
    UpdateMap(Projected)


def test_a_rule_that_mixes_elements_is_pushed_forward_as_it_is_pulled_back():
    def normalised(y, state, g, options):
        return y - options["lr"] * g / g.norm(), state

    register_update(Lion, normalised, slots={})
    y, g, options = (torch.zeros(3),), (torch.randn(3),), ({"lr": 0.1},)
    update = UpdateMap(Lion)
    start = update.start(y, ({},), options)
    rows = [
        update.pulled_back(start, g, options, Adjoint((row,))).gradient[0] for row in torch.eye(3)
    ]
    tangent = Tangent((torch.zeros(3, 3),), ((),))
    pushed = update.pushed_forward(start, g, options, tangent, (torch.eye(3),))
    size = g[0].norm()
    jacobian = -0.1 * (torch.eye(3) - torch.outer(g[0], g[0]) / size**2) / size
    torch.testing.assert_close(torch.stack(rows), jacobian)
    torch.testing.assert_close(pushed.lower[0].T, jacobian)


def test_slots_may_depend_on_the_options_and_be_absent_at_first():
    slots = lambda options: {"a": 1.5, "b": torch.tensor(2.0), "c": None} if options["all"] else {}
    register_update(Lion, lion, slots=slots)
    update, y = UpdateMap(Lion), torch.zeros(2)
    (state,) = update.start((y,), ({},), ({"all": True},)).states
    assert [t.tolist() for t in state.slots] == [[1.5, 1.5], 2.0]
    (state,) = update.start((y,), ({"c": y, "step": 3},), ({"all": True},)).states
    assert state.num_steps == 3
    assert len(state.slots) == 3
    assert update.start((y,), ({},), ({"all": False},)).states[0].slots == ()


@pytest.mark.parametrize(
    "arguments, slots, error, message",
    [
        ((torch.optim.SGD, lion), {}, ValueError, "got torch.optim.SGD; register a subclass"),
        ((torch.nn.Linear, lion), {}, TypeError, "optimizer must be a class derived from torch"),
        ((Lion([torch.ones(1)], 0.1), lion), {}, TypeError, "optimizer must be a class"),
        ((Lion, "lion"), {}, TypeError, "rule must be callable, got 'lion' for Lion"),
        ((Lion, lion), ["exp_avg"], TypeError, "slots must map names .* for Lion"),
        ((Lion, lion), {"exp_avg": "zero"}, TypeError, "got 'zero' for 'exp_avg' of Lion"),
        ((Lion, lion), {"a": None, "b": 0.0}, ValueError, "got None for 'a' of Lion; put it last"),
    ],
)
def test_misuse_of_the_registry_is_refused(arguments, slots, error, message):
    with pytest.raises(error, match=message):
        register_update(*arguments, slots=slots)


NAMES = ["SGD", "Adam", "AdamW", "NAdam", "Adamax", "RMSprop", "Adagrad"]
KINDS = [getattr(torch.optim, name) for name in [*NAMES, "RAdam", "Adadelta", "ASGD"]]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_decay_is_coupled_where_the_state_of_torch_sees_it(kind):
    # With a gradient of zero, coupled decay is all that the optimizer's state can be made of.
    p = torch.nn.Parameter(torch.ones(2, 2))
    more = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind([p], weight_decay=0.5, **more)
    p.grad = torch.zeros(2, 2)
    optimizer.step()
    # ASGD keeps an average of its iterates and no moment of its gradients.
    if kind is torch.optim.ASGD:
        coupled = bool((p != 1).all())
    else:
        slots = [v for v in optimizer.state[p].values() if v.shape == p.shape]
        coupled = any(bool((slot != 0).all()) for slot in slots)
    assert coupled_decay(kind, optimizer.param_groups[0]) == (0.5 if coupled else 0.0)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam])
def test_decay_that_the_group_decouples_is_not_coupled(kind):
    optimizer = kind([torch.ones(1)], weight_decay=0.5, decoupled_weight_decay=True)
    assert coupled_decay(kind, optimizer.param_groups[0]) == 0.0


def test_coupled_decay_in_a_graph_stays_in_it():
    decay = torch.tensor(0.5, requires_grad=True)
    found = coupled_decay(torch.optim.SGD, {"weight_decay": 2 * decay})
    assert torch.autograd.grad(found, decay)[0] == 2.0
    assert coupled_decay(Lion, {"weight_decay": 0.5}) is None


def test_the_sign_is_that_of_the_options():
    assert sign({"maximize": True}) == -1.0
    assert sign({"maximize": False}) == sign({}) == 1.0


class Wrapper(torch.optim.Optimizer):
    """An optimizer that hands everything on."""

    def __init__(self, optimizer, groups):
        self.optimizer, self.param_groups = optimizer, groups


def test_wrappers_are_followed_to_the_optimizer_with_the_same_groups():
    sgd = torch.optim.SGD([torch.ones(1)], lr=0.1)
    once = Wrapper(sgd, sgd.param_groups)
    assert unwrapped(Wrapper(once, list(sgd.param_groups))) is sgd
    assert unwrapped(sgd) is sgd
    other = Wrapper(sgd, [dict(group) for group in sgd.param_groups])
    assert unwrapped(other) is other
    itself = Wrapper(None, sgd.param_groups)
    itself.optimizer = itself
    assert unwrapped(itself) is itself


def test_the_optimizer_of_accelerate_is_unwrapped():
    accelerate = pytest.importorskip("accelerate")
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    prepared = accelerate.Accelerator(cpu=True).prepare(sgd)
    assert type(prepared) is not torch.optim.SGD
    assert unwrapped(prepared) is sgd
