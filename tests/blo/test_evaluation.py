"""Losses of modules as functions of given parameters: buffers, batches and sparse gradients."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import blo
from blo import dense, t1t2
from blo.derivatives.random_state import RandomState
from blo.evaluation import ModuleObjective, ParameterSpace
from blo.two_level import total_derivative


class Counter(nn.Module):
    """A scale that doubles at every call: once in place, once by another tensor, once late."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("edited", torch.tensor(1.0))
        self.register_buffer("replaced", torch.tensor(1.0))
        self.register_buffer("constant", torch.tensor(7.0))
        self.register_buffer("late", None)

    def forward(self):
        self.late = torch.tensor(1.0) if self.late is None else self.late * 2
        with torch.no_grad():
            self.edited.mul_(2)
        self.replaced = self.replaced * 2
        return self.weight * (self.edited + 10 * self.replaced + 100 * self.late)


def value(evaluate):
    return float(evaluate().detach())


def objective(module, loss, batch=None, **settings):
    return ModuleObjective(
        space=ParameterSpace([module]),
        upper=(),
        lower=tuple(module.parameters()),
        loss=loss,
        batch=batch,
        random_state=RandomState.capture(),
        autocast=None,
        name="fit",
        **settings,
    )


def test_an_evaluation_starts_from_the_given_buffers_and_leaves_those_of_now():
    module = Counter()
    space = ParameterSpace([module])
    before = space.copies_of(range(4))
    values = [value(module) for _ in range(3)]
    assert values == [122.0, 244.0, 488.0]
    held = dict(module.named_buffers())
    versions = {n: b._version for n, b in held.items()}
    term = objective(module, lambda _: module(), buffers=before)
    with term.scope((), term.lower) as evaluate:
        # `late` held nothing then: it is as now, 4, and doubles.
        assert value(evaluate) == 2 + 20 + 800
        assert value(evaluate) == 2 + 20 + 800
    with term.scope((), term.lower) as evaluate:
        assert value(evaluate) == 2 + 20 + 800
    assert {n: id(b) for n, b in module.named_buffers()} == {n: id(b) for n, b in held.items()}
    assert {n: b._version for n, b in module.named_buffers()} == versions
    assert before[0] == before[1] == 1.0
    assert value(module) == 976.0


def test_without_given_buffers_every_evaluation_starts_from_those_of_now():
    module = Counter()
    module()
    term = objective(module, lambda _: module())
    with term.scope((), term.lower) as evaluate:
        assert value(evaluate) == value(evaluate) == 244.0
    assert value(module) == 244.0


def test_changed_buffers_are_known_by_edits_and_by_identity():
    module = Counter()
    space = ParameterSpace([nn.Linear(1, 1), module])
    names = ["edited", "replaced", "constant", "late"]
    before = space.versions()
    assert space.changed(before) == ()
    module()
    assert [names[i] for i in space.changed(before)] == ["edited", "replaced", "late"]
    before = space.versions()
    module.constant[...] = 3.0
    assert space.changed(before) == (2,)
    assert {i: float(b) for i, b in space.copies_of((2, 0)).items()} == {2: 3.0, 0: 2.0}
    del module.late
    assert space.changed(before) == (2, 3)
    assert space.copies_of((3,)) == {}


def test_copies_share_no_memory_with_the_buffers():
    module = Counter()
    space = ParameterSpace([module])
    copies = space.copies_of((0,))
    module()
    assert (copies[0], module.edited) == (1.0, 2.0)


def test_a_buffer_registered_later_is_found_and_has_the_next_number():
    module = nn.Sequential(Counter(), nn.BatchNorm1d(1))
    space = ParameterSpace([module])
    before = space.versions()
    assert len(before) == 7
    module[0].register_buffer("new", torch.tensor(5.0))
    assert space.changed(before) == (7,)
    assert space.copies_of((7,)) == {7: torch.tensor(5.0)}
    assert len(space.buffers()) == 7  # `late` holds nothing
    with space.substituted((), (), {7: torch.tensor(6.0)}):
        assert module[0].new == 6.0
        module[0].new += 1
    assert module[0].new == 5.0


def test_a_buffer_that_an_evaluation_registers_is_gone_after_it():
    class Cached(nn.Linear):
        def forward(self, x):
            if not hasattr(self, "cache"):
                self.register_buffer("cache", self.weight.sum() * 2)
            return super().forward(x) * self.cache

    module = Cached(1, 1)
    term = objective(module, lambda x: module(x).sum(), torch.ones(1, 1))
    for scale in (1.0, 3.0):
        values = tuple(torch.full_like(p, scale) for p in module.parameters())
        with term.scope((), values) as evaluate:
            assert value(evaluate) == value(evaluate) == 4 * scale**2
    assert not hasattr(module, "cache")


def test_buffers_that_are_one_tensor_stay_one():
    a, b = nn.Module(), nn.Module()
    shared = torch.tensor(1.0)
    for module in (a, b):
        module.register_buffer("shared", shared)
    space = ParameterSpace([a, b])
    for buffers in (None, space.copies_of((0, 1))):
        with space.substituted((), (), buffers):
            assert a.shared is b.shared
            assert a.shared is not shared
            a.shared += 1
            assert b.shared == 2.0
        assert a.shared is b.shared is shared
        assert shared == 1.0


def test_buffers_return_when_the_block_raises():
    module = Counter()
    held = dict(module._buffers)

    def stop():
        with ParameterSpace([module]).substituted((), ()):
            module()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert all(module._buffers[n] is b for n, b in held.items())


def test_inference_tensors_are_buffers_like_others():
    module = nn.Module()
    with torch.inference_mode():
        module.register_buffer("scale", torch.ones(2))
    space = ParameterSpace([module])
    before = space.versions()
    with space.substituted((), ()):
        module.scale.mul_(2)
    assert space.changed(before) == ()
    assert torch.equal(module.scale, torch.ones(2))


def test_a_loss_with_spectral_norm_is_that_of_the_step_that_was_taken():
    net = spectral_norm(nn.Linear(40, 30)).double()
    x, y = torch.randn(5, 40).double(), torch.randn(5, 30).double()
    space = ParameterSpace([net])
    before = space.copies_of(range(2))
    taken = (net(x) - y).square().mean()  # moves the buffers
    gradient = torch.autograd.grad(taken, tuple(net.parameters()))
    term = objective(net, lambda _: (net(x) - y).square().mean(), buffers=before)
    for _ in range(2):
        with term.scope((), term.lower) as evaluate:
            again = evaluate()
            assert torch.equal(again, taken)
            grads = torch.autograd.grad(again, term.lower)
        assert all(torch.equal(a, b) for a, b in zip(grads, gradient, strict=True))
    plain = objective(net, term.loss)
    with plain.scope((), plain.lower) as evaluate:
        assert not torch.equal(evaluate(), taken)


@pytest.mark.parametrize("copies", [False, True])
def test_a_loss_that_edits_its_batch_gets_a_copy_each_time(copies):
    net = nn.Linear(2, 1)
    batch = {"x": torch.ones(3, 2), "more": [torch.ones(1)]}

    def loss(b):
        b["more"].append(None)
        return net(b["x"].mul_(0.5)).sum() * b["more"][0].mul_(0.5).sum()

    term = objective(net, loss, batch, copies=copies)
    with term.scope((), term.lower) as evaluate:
        same = value(evaluate) == value(evaluate)
    assert same is copies
    assert torch.equal(batch["x"], torch.ones(3, 2)) is copies
    assert (len(batch["more"]) == 1) is copies


@pytest.mark.parametrize("method", [t1t2(), dense(damping=0.1)], ids=repr)
def test_sparse_embeddings_have_second_derivatives(method):
    net = nn.Sequential(nn.Embedding(5, 2, sparse=True), nn.Linear(2, 1)).double()
    gains = nn.ParameterDict({"value": torch.zeros(3, dtype=torch.float64)})
    ids, y = torch.tensor([[1, 2], [2, 4], [0, 3]]), torch.randn(3).double()
    values = []
    for sparse in (True, False):
        net[0].sparse = sparse
        terms = [
            ModuleObjective(
                space=ParameterSpace([net, gains]),
                upper=tuple(gains.parameters()),
                lower=tuple(net.parameters()),
                loss=loss,
                batch=None,
                random_state=RandomState.capture(),
                autocast=None,
                name="fit",
            )
            for loss in (
                lambda _: (net(ids).mean(1).squeeze(1) - 1).square().mean(),
                lambda _: (gains["value"].exp() * (net(ids).mean(1).squeeze(1) - y).square()).sum(),
            )
        ]
        result = total_derivative(*terms, terms[0].upper, terms[0].lower, method=method)
        values.append(result.grads[0])
        assert net[0].sparse is sparse
    assert torch.equal(*values)
    assert values[0].norm() > 0


def test_sparse_is_set_back_when_the_block_raises():
    bag = nn.EmbeddingBag(3, 2, sparse=True)

    def stop():
        with ParameterSpace([bag]).dense_embeddings():
            assert not bag.sparse
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert bag.sparse


@pytest.mark.parametrize("how", ["frozen weights", "autocast"])
@pytest.mark.parametrize("one_sided", [False, True])
def test_the_radius_fits_what_the_loss_is_computed_in(how, one_sided):
    """All parameters are float32, and the model computes in bfloat16: at float32's radius the
    difference is rounding (31 % to 220 % off).
    """

    def hypergradient(how, method):
        torch.manual_seed(0)
        layers = torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh()
        frozen = torch.nn.Sequential(*layers).requires_grad_(False)
        weights, head = torch.nn.ParameterList([torch.zeros(32)]), torch.nn.Linear(64, 4)
        factors = torch.nn.ParameterList([torch.randn(64, 8) / 10, torch.randn(8, 64) / 10])
        if how == "frozen weights":
            frozen.bfloat16()

        def logits(x):
            h = x + x @ factors[0] @ factors[1]
            with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
                h = frozen(h.to(frozen[0].weight.dtype))
            return head(h.float())

        x, labels = torch.randn(32, 64), torch.randint(0, 4, (32,))
        each = lambda x, how: torch.nn.functional.cross_entropy(logits(x), labels, reduction=how)
        lower = torch.nn.ModuleList([factors, head])
        graph = blo.ProblemGraph(
            [
                blo.Problem(
                    "upper",
                    lambda _: each(x.flip(1), "mean"),
                    weights,
                    torch.optim.SGD(weights.parameters(), 1.0),
                    [None],
                ),
                blo.Problem(
                    "lower",
                    lambda _: (weights[0].sigmoid() * each(x, "none")).mean(),
                    lower,
                    torch.optim.SGD(lower.parameters(), 0.1),
                    [None],
                    method=method,
                ),
            ]
        )
        engine = blo.Engine(graph)
        engine.step("lower")
        return engine.step("upper").value[0]

    exact = hypergradient("float32", blo.t1t2())
    found = hypergradient(how, blo.darts(one_sided=one_sided))
    assert float((found - exact).norm() / exact.norm()) < 0.08
