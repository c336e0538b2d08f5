"""Compositions have the values, types, errors and side effects of the operations they stand for."""

import pytest
import torch
import torch.nn.functional as F
from operations import CASES, load, values
from operations import NORMS as NORM_CASES
from oracles import Vector, finite_difference, relative_error
from test_torch_operations import USES, errors, wrong_from
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from blo import Engine, FiniteDifference, Problem, ProblemGraph, cg, dense, hypergradient, minres
from blo.derivatives import composed
from blo.derivatives.composed import WRONG, composing, refuse_wrong, wrong_orders
from blo.derivatives.compositions import OPERATIONS
from blo.derivatives.graphs import refuse_cut_graph

NORMS = {
    "layer_norm": lambda x, w: F.layer_norm(x, (6,), w.new_ones(6) * w[0], w.new_zeros(6)),
    "layer_norm without weight": lambda x, w: F.layer_norm(x, (4, 6)) * w[0],
    "batch_norm": lambda x, w: F.batch_norm(x, None, None, w, w, training=True),
    "instance_norm": lambda x, w: F.instance_norm(x, weight=w, bias=w),
    "_weight_norm": lambda x, w: torch._weight_norm(x, w.to(x.dtype).view(1, 4, 1)[:, :, :1], 0),
    "logcumsumexp": lambda x, w: (x * w.to(x.dtype)[:, None]).logcumsumexp(-1),
    "pow": lambda x, w: x.abs() ** w.to(x.dtype)[:, None],
}


@pytest.mark.parametrize("name", [*USES, *(name for name in NORM_CASES if name not in USES)])
def test_a_composition_has_the_value_of_the_operation(name):
    function, inputs = CASES[name]
    inputs = [t.clone().requires_grad_() for t in inputs]
    plain = function(*inputs)
    with composing(3):
        torch.testing.assert_close(function(*inputs), plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [n for n in NORMS if n != "_weight_norm"])
def test_a_composition_has_the_type_of_the_operation(name, dtype, autocast, device):
    x = values(3, 4, 6).to(device, dtype).requires_grad_()
    w = values(4).to(device, dtype if not autocast else torch.float32).requires_grad_()
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        plain = NORMS[name](x, w)
        with composing(3):
            got = NORMS[name](x, w)
    assert got.dtype == plain.dtype
    assert got.grad_fn is not None
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(got, plain, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.InstanceNorm1d])
def test_running_statistics_move_as_in_torch(kind, momentum):
    layers = [kind(4, momentum=momentum, affine=True, track_running_stats=True) for _ in range(2)]
    x = values(3, 4, 6).float()
    for _ in range(2):
        layers[0](x)
        with composing(3):
            layers[1](x)
    for name, buffer in layers[0].named_buffers():
        torch.testing.assert_close(dict(layers[1].named_buffers())[name], buffer, rtol=0, atol=0)
    moved = kind is nn.BatchNorm1d or momentum is not None  # as in torch, the other stays
    assert (float(layers[1].running_mean.abs().sum()) > 0) == moved
    plain = layers[0].eval()(x)
    with composing(3):
        torch.testing.assert_close(layers[1].eval()(x), plain)


def test_errors_are_those_of_torch():
    w = torch.ones(4, requires_grad=True)
    with composing(3):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            F.batch_norm(torch.ones(1, 4), None, None, w, training=True)
        with pytest.raises(RuntimeError, match="normalized_shape"):
            F.layer_norm(torch.ones(2, 3), (4,), w)


def test_nothing_is_composed_without_a_gradient_or_below_the_order():
    x = values(3, 4).requires_grad_()
    with composing(2):
        assert F.layer_norm(x, (4,)).grad_fn.name() == "NativeLayerNormBackward0"
        assert (x**2).grad_fn.name() == "PowBackward0"
        assert (x**x).grad_fn.name() != "PowBackward1"
        assert (x.detach() ** x).grad_fn.name() == "PowBackward1"
    with composing(3), torch.no_grad():
        assert F.layer_norm(x, (4,)).grad_fn is None


def test_a_power_keeps_torch_at_bases_that_are_not_positive():
    base = torch.tensor([-2.0, -1.0, 0.0, 3.0]).double().requires_grad_()
    exponent = torch.tensor([3.0, 2.0, 2.0, 2.5]).double().requires_grad_()
    plain = torch.autograd.grad((base**exponent).sum(), base)
    with composing(2):
        got = torch.autograd.grad((base**exponent).sum(), base)
    torch.testing.assert_close(got, plain)


def test_a_compiled_module_is_evaluated_within_the_block():
    x = values(3, 4).requires_grad_()
    layer = nn.LayerNorm(4).double()
    compiled = torch.compile(layer, backend="eager")
    with composing(3):
        torch.testing.assert_close(compiled(x), layer(x))
        refuse_cut_graph((compiled(x),), order=3)


def test_gradients_taken_within_the_block_are_torchs():
    x, unused = values(3, 4).requires_grad_(), values(2).requires_grad_()
    y, weight = (x.sin() * x).sum(1), values(3)
    grad = torch.autograd.grad
    plain = grad(y, x, weight, retain_graph=True)[0]
    with composing(2):
        torch.testing.assert_close(grad(y, (x,), (weight,), retain_graph=True)[0], plain)
        torch.testing.assert_close(grad(y.sum(), y)[0], torch.ones(3).double())
        assert grad(y, {"x": x}, weight, retain_graph=True, create_graph=True)["x"].requires_grad
        assert grad(y.sum(), (unused, x), allow_unused=True, retain_graph=True)[0] is None
        filled = grad(y.sum(), (unused, x), materialize_grads=True, retain_graph=True)[0]
        torch.testing.assert_close(filled, torch.zeros(2).double())
        with pytest.raises(RuntimeError, match="not have been used in the graph"):
            grad(y.sum(), unused, retain_graph=True)
        with pytest.raises(RuntimeError, match="does not require grad"):
            grad(y.sum(), weight)
        with pytest.raises(RuntimeError, match="implicitly created only for scalar"):
            grad(y, x)


@pytest.mark.parametrize("name", USES)
def test_what_checkpointing_runs_again_is_composed_again(name):
    function, inputs = CASES[name]
    kept = lambda *tensors: checkpoint(function, *tensors, use_reentrant=False)
    found = errors(kept, inputs, composing)
    assert len(found) == 3
    assert wrong_from(found) is None, found


# Calls that the block cannot see are refused by their nodes.


def unseen(function):
    """The function as C++ calls it: no mode sees its operations."""

    def call(*args):
        with torch._C.DisableTorchFunction():
            return function(*args)

    return call


@pytest.mark.parametrize(
    "name", [name for name, operation in OPERATIONS.items() if operation.nodes]
)
def test_a_node_of_a_wrong_operation_is_refused_from_its_order_on(name):
    wrong_from = wrong_orders()[name]
    remedy = "FiniteDifference" if wrong_from == 2 else "through_response=False"
    for node in OPERATIONS[name].nodes:
        refuse_wrong(node, wrong_from - 1)
        with pytest.raises(RuntimeError, match=rf"derivatives of {name} .*{remedy}"):
            refuse_wrong(node, wrong_from)


@pytest.mark.parametrize("name", [name for name in USES if USES[name] != "pow"])
def test_the_graph_of_a_wrong_operation_has_a_node_that_is_listed(name):
    function, inputs = CASES[name]
    order = wrong_orders()[USES[name]]
    output = function(*(t.clone().requires_grad_() for t in inputs))
    with pytest.raises(RuntimeError, match=USES[name]):
        refuse_cut_graph((output,), order=order)
    with composing(order):
        output = function(*(t.clone().requires_grad_() for t in inputs))
    refuse_cut_graph((output,), order=order)


def test_a_graph_is_walked_up_to_its_inputs_only():
    x = values(3, 4).requires_grad_()
    h = F.layer_norm(x, (4,))
    refuse_cut_graph((h.sin(),), (h,), order=3)
    with pytest.raises(RuntimeError, match="layer_norm"):
        refuse_cut_graph((h.sin(),), order=3)


def test_versions_that_are_not_listed_behave_as_the_newest(monkeypatch):
    monkeypatch.setattr(composed, "WRONG", {"2.9": {"pow": 2}, "2.13": {"pow": 3}})
    assert wrong_orders("2.9.1+cu126") == {"pow": 2}
    assert wrong_orders("2.13.0+cpu") == {"pow": 3}
    assert wrong_orders("2.14.0a0") == wrong_orders("3.0.0") == {"pow": 3}


def test_every_listed_operation_can_be_composed():
    assert all(set(listed) <= set(OPERATIONS) for listed in WRONG.values())


# Through the methods.


def two_level(normalise):
    torch.manual_seed(0)
    X, Y, V, VY = (torch.randn(*s).double() for s in ((8, 3), (8, 2), (9, 3), (9, 2)))
    f = lambda x, y: ((V @ normalise(y[0]).T).tanh() - VY).square().mean()
    g = lambda x, y: (
        (x[0].exp() * ((X @ normalise(y[0]).T).tanh() - Y).square().mean(1)).mean()
        + 0.05 * y[0].square().sum()
    )
    return f, g, (torch.zeros(8).double(),), (torch.randn(2, 3).double(),)


@pytest.mark.parametrize(
    "method", [dense(damping=0.5), cg(50, damping=0.5), minres(50, damping=0.5)], ids=repr
)
def test_hypergradients_through_weight_norm_are_those_of_the_norm_written_out(method):
    layer = weight_norm(nn.Linear(3, 2, bias=False).double())
    gains = layer.parametrizations.weight.original0.detach()
    name = "parametrizations.weight.original1"

    def parametrized(v):
        class Weight(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = layer

            def forward(self):
                return self.layer.weight

        return torch.func.functional_call(Weight(), {f"layer.{name}": v}, ())

    written = lambda v: v * gains / v.norm(dim=1, keepdim=True)
    got = hypergradient(*two_level(parametrized), method=method).grads[0]
    assert relative_error(got, hypergradient(*two_level(written), method=method).grads[0]) < 1e-10


def test_an_unseen_weight_norm_is_refused_where_it_is_differentiated_twice():
    gains = torch.ones(2, 1).double()
    problem = two_level(unseen(lambda v: torch._weight_norm(v, gains, 0)))
    with pytest.raises(RuntimeError, match=r"weight_norm .* use products=FiniteDifference"):
        hypergradient(*problem, method=cg(50, damping=0.5))
    hypergradient(*problem, method=cg(50, damping=0.5, products=FiniteDifference()))


def written_out(t, dims):
    centred = t - t.mean(dims, keepdim=True)
    return centred / (centred.square().mean(dims, keepdim=True) + 1e-5).sqrt()


SPELLINGS = {
    "F.instance_norm": (
        lambda t: F.instance_norm(t.view(2, 2, 6)).view(4, 6),
        lambda t: written_out(t.view(2, 2, 6), 2).view(4, 6),
    ),
    "torch.layer_norm": (lambda t: torch.layer_norm(t, (6,)), lambda t: written_out(t, 1)),
    "torch.batch_norm": (
        lambda t: torch.batch_norm(t, None, None, None, None, True, 0.1, 1e-5, False),
        lambda t: written_out(t, 0),
    ),
    "torch._weight_norm": (
        lambda t: torch._weight_norm(t, torch.ones(4, 1).double(), 0),
        lambda t: t / t.norm(dim=1, keepdim=True),
    ),
}


def middle(norm):
    """The first hypergradient of x over y over z, where y reads z and z's loss has a norm."""
    torch.manual_seed(0)
    A = torch.randn(4, 6).double()
    x, y = Vector(torch.tensor([0.4, -0.3]).double()), Vector(torch.randn(2).double())
    z = Vector(torch.randn(4, 6).double())
    own = lambda: (x.value, y.value, z.value)

    def bottom(_):
        x, y, z = own()
        fit = (norm(z + A * y.sum()) - A.sin()).square().sum()
        return fit + 1.5 * (z - y.prod() - x.sum()).square().sum()

    def between(_):
        x, y, z = own()
        pull = 3 * (y - x).square().sum() + 0.1 * (y**4).sum()
        return pull + (z.sin() * y.sum().cos()).sum()

    top = lambda _: z.value.square().sum() + (y.value - 1).square().sum()
    frozen = lambda m: torch.optim.SGD(m.parameters(), lr=0.0)
    engine = Engine(
        ProblemGraph(
            [
                Problem("x", top, (x, y, z), frozen(x), [None]),
                Problem("y", between, (x, y, z), frozen(y), [None], method=dense()),
                Problem("z", bottom, (x, y, z), frozen(z), [None], method=dense()),
            ]
        )
    )
    grads = []
    engine.graph.top.optimizer.register_step_pre_hook(lambda *_: grads.append(x.value.grad.clone()))
    engine.run(1)
    return grads[0]


@pytest.mark.parametrize("pair", SPELLINGS.values(), ids=SPELLINGS)
def test_a_middle_problem_over_a_normalisation_is_that_of_the_norm_written_out(pair):
    normalised, written = pair
    assert relative_error(middle(normalised), middle(written)) < 1e-10


def test_an_unseen_normalisation_is_refused_where_it_is_differentiated_thrice():
    with pytest.raises(RuntimeError, match=r"derivatives of layer_norm .* order 3"):
        middle(unseen(lambda t: torch.layer_norm(t, (6,))))


def test_an_exponent_at_zero_has_the_mixed_derivative_of_its_differences():
    x, y = values(5).abs().requires_grad_(), torch.zeros(5).double().requires_grad_()
    with composing(2):
        (g,) = torch.autograd.grad((x**y).sum(), x, create_graph=True)
        (mixed,) = torch.autograd.grad(g.sum(), y)
    slope = lambda y: torch.autograd.grad((x**y).sum(), x)[0].sum()
    assert relative_error(mixed, finite_difference(slope, y.detach())) < 1e-7


def test_cases_can_be_loaded_for_a_device():
    assert load("cpu").keys() == CASES.keys()
