"""Update maps against the optimizers of torch: their values by their own steps, the derivatives by
differences of those.
"""

import copy

import pytest
import torch
from torch import Tensor

from blo.steps.optimizers import Adjoint, Iterate, State, Tangent, UpdateMap

SHAPES = [(3, 2), (4,)]
SGD_OPTIONS = [
    {},
    {"weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.4, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True},
    {"maximize": True},
]
ADAM_OPTIONS = [
    {},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "decoupled_weight_decay": True},
    {"amsgrad": True, "betas": (0.5, 0.6)},
    {"maximize": True, "weight_decay": 0.1, "eps": 1e-2},
]
NADAM_OPTIONS = [
    {},
    {"weight_decay": 0.1, "momentum_decay": 0.1, "betas": (0.5, 0.7)},
    {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True, "eps": 1e-2},
]
ADAMAX_OPTIONS = [{}, {"weight_decay": 0.1, "maximize": True, "betas": (0.5, 0.4), "eps": 1e-2}]
RMSPROP_OPTIONS = [
    {},
    {"weight_decay": 0.1, "maximize": True, "eps": 1e-2},
    {"momentum": 0.9, "alpha": 0.5},
    {"momentum": 0.9, "centered": True, "weight_decay": 0.1},
    {"centered": True, "alpha": 0.9},
]
ADAGRAD_OPTIONS = [
    {},
    {"lr_decay": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-2},
    {"weight_decay": 0.1, "maximize": True},
]
ADAMW_OPTIONS = [
    {},
    {"weight_decay": 0.1, "amsgrad": True},
    {"maximize": True, "betas": (0.0, 0.9)},
]
CASES = [
    *[(torch.optim.SGD, {"lr": 0.3, **o}) for o in SGD_OPTIONS],
    *[(torch.optim.Adam, {"lr": 0.1, **o}) for o in ADAM_OPTIONS],
    *[(torch.optim.AdamW, {"lr": 0.1, **o}) for o in ADAMW_OPTIONS],
    *[(torch.optim.NAdam, {"lr": 0.1, **o}) for o in NADAM_OPTIONS],
    *[(torch.optim.Adamax, {"lr": 0.1, **o}) for o in ADAMAX_OPTIONS],
    *[(torch.optim.RMSprop, {"lr": 0.1, **o}) for o in RMSPROP_OPTIONS],
    *[(torch.optim.Adagrad, {"lr": 0.1, **o}) for o in ADAGRAD_OPTIONS],
]
IDS = [f"{kind.__name__}-{'-'.join(o) or 'plain'}" for kind, o in CASES]
cases = pytest.mark.parametrize("kind, settings", CASES, ids=IDS)


def tensors(dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return tuple(torch.randn(shape, dtype=dtype) for shape in SHAPES)


def prepared(kind, settings, *, num_steps: int, dtype=torch.float64):
    """A torch optimizer after some steps, with its parameters."""
    parameters = [torch.nn.Parameter(t) for t in tensors(dtype)]
    optimizer = kind(parameters, **{"foreach": False, **settings})
    for _ in range(num_steps):
        stepped(optimizer, parameters, tensors(dtype))
    return optimizer, parameters


def stepped(optimizer, parameters, gradient) -> None:
    for parameter, g in zip(parameters, gradient, strict=True):
        parameter.grad = None if g is None else g.clone()
    optimizer.step()


def start_of(optimizer, parameters) -> tuple[UpdateMap, Iterate, tuple]:
    update = UpdateMap(type(optimizer))
    options = tuple(optimizer.param_groups[0] for _ in parameters)
    states = [copy.deepcopy(optimizer.state.get(p, {})) for p in parameters]
    lower = tuple(p.detach().clone() for p in parameters)
    return update, update.start(lower, states, options), options


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@cases
def test_steps_have_the_bits_of_torch(kind, settings, dtype):
    optimizer, parameters = prepared(kind, settings, num_steps=0, dtype=dtype)
    update, iterate, options = start_of(optimizer, parameters)
    for t in range(6):
        gradient = tensors(dtype)
        gradient = (None, gradient[1]) if t in (0, 3) else gradient
        optimizer.param_groups[0]["lr"] = 0.1 / (t + 1)
        stepped(optimizer, parameters, gradient)
        iterate = update.step(iterate, gradient, options)
        for y, parameter in zip(iterate.lower, parameters, strict=True):
            assert torch.equal(y, parameter.detach())


@cases
def test_steps_go_on_from_the_state_of_torch(kind, settings):
    optimizer, parameters = prepared(kind, settings, num_steps=4)
    update, iterate, options = start_of(optimizer, parameters)
    gradient = tensors()
    stepped(optimizer, parameters, gradient)
    for y, parameter in zip(update.step(iterate, gradient, options).lower, parameters, strict=True):
        assert torch.equal(y, parameter.detach())


def slot_names(optimizer) -> list[str]:
    (group,) = optimizer.param_groups
    return {
        torch.optim.SGD: ["momentum_buffer"],
        torch.optim.NAdam: ["exp_avg", "exp_avg_sq", "mu_product"],
        torch.optim.Adamax: ["exp_avg", "exp_inf"],
        torch.optim.Adagrad: ["sum"],
        torch.optim.RMSprop: ["square_avg"]
        + ["momentum_buffer"] * (group.get("momentum", 0) > 0)
        + ["grad_avg"] * group.get("centered", False),
    }.get(type(optimizer), ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"])


def torch_step(optimizer, parameters, iterate: Iterate, gradient) -> list[Tensor]:
    """What torch makes of given parameters, state and gradient: new parameters, then all slots."""
    twin = copy.deepcopy(optimizer)
    mine = twin.param_groups[0]["params"]
    names = slot_names(optimizer)
    for p, y, state in zip(mine, iterate.lower, iterate.states, strict=True):
        p.data = y.clone()
        for name, slot in zip(names, state.slots, strict=False):
            twin.state[p][name] = slot.clone()
    stepped(twin, mine, gradient)
    ends = [p.detach() for p in mine]
    for p in mine:
        ends += [twin.state[p][n] for n in names if twin.state[p].get(n) is not None]
    return ends


def moved(iterate: Iterate, gradient, direction, h: float):
    """The iterate and the gradient displaced by `h` along a tangent of both."""
    lower, slots, of_gradient = direction
    columns = zip(iterate.states, slots, strict=True)
    states = tuple(
        State(s.num_steps, tuple(a + h * b for a, b in zip(s.slots, d, strict=True)))
        for s, d in columns
    )
    y = tuple(a + h * b for a, b in zip(iterate.lower, lower, strict=True))
    g = tuple(a + h * b for a, b in zip(gradient, of_gradient, strict=True))
    return Iterate(y, states), g


def random_direction(iterate: Iterate):
    slots = tuple(tuple(0.01 * torch.randn_like(t) for t in s.slots) for s in iterate.states)
    return tensors(), slots, tensors()


def differences(optimizer, parameters, iterate, gradient, direction, h=1e-5) -> list[Tensor]:
    plus = torch_step(optimizer, parameters, *moved(iterate, gradient, direction, h))
    minus = torch_step(optimizer, parameters, *moved(iterate, gradient, direction, -h))
    return [(p - m) / (2 * h) for p, m in zip(plus, minus, strict=True)]


@pytest.fixture
def doubles():
    """Double precision for what NAdam keeps in torch's default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("doubles")
@cases
def test_tangents_pushed_forward_are_differences_of_torch_steps(kind, settings):
    optimizer, parameters = prepared(kind, settings, num_steps=3)
    update, iterate, options = start_of(optimizer, parameters)
    gradient = tensors()
    directions = [random_direction(iterate) for _ in range(2)]
    stack = lambda parts: tuple(torch.stack(p) for p in zip(*parts, strict=True))
    tangent = Tangent(
        stack([d[0] for d in directions]),
        tuple(stack([d[1][i] for d in directions]) for i in range(len(SHAPES))),
    )
    pushed = update.pushed_forward(
        iterate, gradient, options, tangent, stack([d[2] for d in directions])
    )
    found = [*pushed.lower, *(t for slots in pushed.slots for t in slots)]
    for k, direction in enumerate(directions):
        expected = differences(optimizer, parameters, iterate, gradient, direction)
        for f, e in zip(found, expected, strict=True):
            torch.testing.assert_close(f[k], e, rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("doubles")
@cases
def test_cotangents_pulled_back_are_adjoint_to_differences_of_torch_steps(kind, settings):
    optimizer, parameters = prepared(kind, settings, num_steps=3)
    update, iterate, options = start_of(optimizer, parameters)
    gradient, direction = tensors(), random_direction(iterate)
    slots = tuple(tuple(torch.randn_like(t) for t in s.slots) for s in iterate.states)
    cotangent = Adjoint(tensors(), slots)
    adjoint, weights, *_ = update.pulled_back(iterate, gradient, options, cotangent)
    ends = differences(optimizer, parameters, iterate, gradient, direction)
    dot = lambda xs, ys: float(sum((x * y).sum() for x, y in zip(xs, ys, strict=True)))
    flat = lambda nested: [t for inner in nested for t in inner]
    expected = dot([*cotangent.lower, *flat(cotangent.slots)], ends)
    found = dot([*adjoint.lower, *flat(adjoint.slots)], [*direction[0], *flat(direction[1])])
    assert found + dot(weights, direction[2]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("num_steps", [0, 3])
@cases
def test_the_gradient_alone_has_the_cotangent_that_it_has_among_all(kind, settings, num_steps):
    optimizer, parameters = prepared(kind, settings, num_steps=num_steps)
    update, iterate, options = start_of(optimizer, parameters)
    first, second = tensors()
    first[0] = 0.0
    gradient, weights = (first, None if num_steps else second), tensors()
    alone = update.gradient_pulled_back(iterate, gradient, options, weights)
    among = update.pulled_back(iterate, gradient, options, Adjoint(weights))
    assert alone.gradient[1] is None or num_steps == 0
    for found, expected in zip(alone.gradient, among.gradient, strict=True):
        # In a first step of Adam the latter leaves terms that cancel to rounding.
        torch.testing.assert_close(found, expected, rtol=1e-10 if num_steps else 1e-6, atol=1e-12)
    torch.testing.assert_close(alone.end, among.end, rtol=1e-14, atol=0)


def test_the_derivative_of_a_first_step_of_adam_has_no_rounding_left():
    # From zero the step is -lr g / (|g| + eps), whose derivative is -lr eps / (|g| + eps)^2.
    optimizer, parameters = prepared(torch.optim.Adam, {"lr": 0.1}, num_steps=0)
    update, iterate, options = start_of(optimizer, parameters)
    gradient, ones = tensors(), tuple(torch.ones_like(p) for p in parameters)
    found = update.gradient_pulled_back(iterate, gradient, options, ones).gradient
    for d, g in zip(found, gradient, strict=True):
        torch.testing.assert_close(d, -0.1e-8 / (g.abs() + 1e-8) ** 2, rtol=1e-13, atol=0)


def test_slots_without_cotangent_count_as_zeros():
    optimizer, parameters = prepared(torch.optim.Adam, {"lr": 0.1}, num_steps=3)
    update, iterate, options = start_of(optimizer, parameters)
    gradient, lower = tensors(), tensors()
    zeros = tuple(tuple(torch.zeros_like(t) for t in s.slots) for s in iterate.states)
    without = update.pulled_back(iterate, gradient, options, Adjoint(lower)).gradient
    given = update.pulled_back(iterate, gradient, options, Adjoint(lower, zeros)).gradient
    for a, b in zip(without, given, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_the_derivative_of_adam_is_finite_where_no_gradient_has_been_seen(amsgrad):
    # At step 1 and g = 0 the step is -lr g / (|g| + eps), whose derivative is -lr / eps.
    optimizer = torch.optim.Adam(
        [torch.nn.Parameter(torch.ones(2).double())], lr=0.1, amsgrad=amsgrad
    )
    update, iterate, options = start_of(optimizer, optimizer.param_groups[0]["params"])
    gradient = (torch.tensor([0.0, 2.0]).double(),)
    cotangent = Adjoint((torch.ones(2).double(),))
    adjoint, weights, *_ = update.pulled_back(iterate, gradient, options, cotangent)
    torch.testing.assert_close(weights[0][0].item(), -0.1 / 1e-8, rtol=1e-7, atol=0)
    slots = [t for s in adjoint.slots for t in s]
    assert all(bool(torch.isfinite(t).all()) for t in [*adjoint.lower, *slots, weights[0]])


ADAPTIVE = [kind for kind in dict(CASES) if kind is not torch.optim.SGD]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ADAPTIVE)
def test_elements_without_history_are_those_that_have_seen_no_gradient(kind, dtype):
    optimizer, parameters = prepared(kind, {"lr": 0.1}, num_steps=0, dtype=dtype)
    update, iterate, options = start_of(optimizer, parameters)
    gradient = (torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]], dtype=dtype), tensors(dtype)[1])
    zeros = tuple(torch.zeros_like(g) for g in gradient)
    for g in (gradient, zeros, zeros):
        iterate = update.step(iterate, g, options)
    first, second = update.without_history(iterate, options)
    assert first.tolist() == [[False, True], [True, True], [True, False]]
    assert not second.any()


def test_sgd_keeps_no_history():
    optimizer, parameters = prepared(torch.optim.SGD, {"lr": 0.1}, num_steps=1)
    update, iterate, options = start_of(optimizer, parameters)
    assert update.without_history(iterate, options) == (None, None)


def test_tensors_passed_over_pass_their_tangents_on():
    optimizer, parameters = prepared(torch.optim.Adam, {"lr": 0.1}, num_steps=1)
    update, iterate, options = start_of(optimizer, parameters)
    stack = lambda x: tuple(torch.randn(2, *t.shape).double() for t in x)
    tangent = Tangent(stack(iterate.lower), tuple(stack(s.slots) for s in iterate.states))
    g = tensors()
    pushed = update.pushed_forward(iterate, (None, g[1]), options, tangent, stack(g))
    assert torch.equal(pushed.lower[0], tangent.lower[0])
    assert all(torch.equal(a, b) for a, b in zip(pushed.slots[0], tangent.slots[0], strict=True))
    assert not torch.equal(pushed.lower[1], tangent.lower[1])


def test_tensors_that_the_optimizer_passed_over_pass_their_cotangents_on():
    optimizer, parameters = prepared(torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.5}, num_steps=1)
    update, iterate, options = start_of(optimizer, parameters)
    lower = tensors()
    adjoint, weights, *_ = update.pulled_back(iterate, (None, lower[1]), options, Adjoint(lower))
    assert weights[0] is None
    assert torch.equal(adjoint.lower[0], lower[0])
    torch.testing.assert_close(adjoint.lower[1], 0.95 * lower[1])


def test_the_decay_of_adamw_is_decoupled_where_its_groups_do_not_say_so():
    optimizer, parameters = prepared(torch.optim.AdamW, {"weight_decay": 0.1}, num_steps=0)
    update, iterate, options = start_of(optimizer, parameters)
    old = tuple({k: v for k, v in o.items() if k != "decoupled_weight_decay"} for o in options)
    gradient = tensors()
    stepped(optimizer, parameters, gradient)
    for y, parameter in zip(update.step(iterate, gradient, old).lower, parameters, strict=True):
        assert torch.equal(y, parameter.detach())


def test_other_optimizers_are_refused_by_name():
    for kind in (torch.optim.RAdam, torch.optim.Adadelta, torch.optim.ASGD):
        name = kind.__name__
        remedy = rf"{name} cannot.*SGD, .*AdamW, .*Adagrad and.*register_update\({name}, "
        with pytest.raises(TypeError, match=remedy):
            UpdateMap(kind)


def test_a_subclass_is_known_by_its_step():
    class Renamed(torch.optim.Adam):
        pass

    class Clipped(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    parameters = [torch.nn.Parameter(torch.ones(1))]
    Renamed(parameters)
    Clipped(parameters)
    assert UpdateMap(Renamed).is_adaptive
    with pytest.raises(TypeError, match="Clipped cannot"):
        UpdateMap(Clipped)


def test_a_learning_rate_in_a_tensor_is_read_as_a_number():
    settings = {"lr": torch.tensor(0.1, dtype=torch.float64)}
    optimizer, parameters = prepared(torch.optim.SGD, settings, num_steps=0)
    update, iterate, options = start_of(optimizer, parameters)
    gradient = tensors()
    stepped(optimizer, parameters, gradient)
    for y, parameter in zip(update.step(iterate, gradient, options).lower, parameters, strict=True):
        torch.testing.assert_close(y, parameter.detach(), rtol=1e-15, atol=0)
