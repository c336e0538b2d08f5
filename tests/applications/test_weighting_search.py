"""Weights of sources on frozen features, against closed forms, dense matrices and differences."""

import pytest
import torch

from applications.weighting.folds import RIDGES, SCALES, cross_validated, finished, folds
from applications.weighting.heads import Examples, fit, losses, objective
from applications.weighting.route import learn
from applications.weighting.search import Search, Sources, search, weight_gradient
from applications.weighting.weights import FORMS, Weights, membership, probabilities
from blo import cg

RIDGE = 0.05


def drawn(number, classes, *, seed=0, width=4):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(number, width, generator=generator, dtype=torch.float64)
    if classes == 1:
        answers = torch.randn(number, 1, generator=generator, dtype=torch.float64)
    else:
        answers = torch.rand(number, classes, generator=generator, dtype=torch.float64)
        answers = answers / answers.sum(1, keepdim=True)
    return Examples(features, answers)


def three_sources(classes, number=30):
    groups = [[row % 3] if row % 5 else [0, 2] for row in range(number)]
    return Sources(drawn(number, classes), membership(groups, 3))


def test_a_fitted_head_of_decimals_is_the_weighted_ridge_solution():
    examples = drawn(20, 1)
    weights = torch.linspace(0, 3, 20, dtype=torch.float64)
    centre = torch.ones(4, 1, dtype=torch.float64)
    x, y, w = examples.features, examples.answers, torch.diag(weights) / 20
    normal = x.T @ w @ x + RIDGE * torch.eye(4, dtype=torch.float64)
    expected = torch.linalg.solve(normal, x.T @ w @ y + RIDGE * centre)
    found = fit(examples, weights, ridge=RIDGE, centre=centre)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)  # gradient 1e-6 over ridge


def test_a_fitted_head_of_classes_has_no_gradient_left():
    examples, weights = drawn(20, 3), torch.linspace(0, 3, 20, dtype=torch.float64)
    head = fit(examples, weights, ridge=RIDGE).requires_grad_()
    (gradient,) = torch.autograd.grad(objective(head, examples, weights, ridge=RIDGE), head)
    assert gradient.norm() <= 1e-6


@pytest.mark.parametrize("classes", [1, 3])
def test_a_head_is_finished_by_the_ridge_and_the_scale_with_the_best_held_out_loss(classes):
    """Every pair is tried again by hand; a head that is too little sure is made surer."""
    target, centre = drawn(24, classes), 0.2 * torch.randn(4, classes, dtype=torch.float64)
    if classes > 1:
        sure = torch.nn.functional.one_hot((target.features @ centre).argmax(-1), classes)
        target = Examples(target.features, sure.double())
    parts = folds(target, 4, seed=0)
    tries = {}
    for scale in SCALES if classes > 1 else (1.0,):
        for ridge in RIDGES:
            total = 0.0
            for kept, out in parts:
                one = Examples(target.features[kept], target.answers[kept])
                head = fit(one, one.ones, ridge=ridge, centre=scale * centre)
                total += float(
                    losses(head, Examples(target.features[out], target.answers[out])).sum()
                )
            tries[total] = scale, ridge
    scale, ridge = tries[min(tries)]
    assert classes == 1 or scale > 1
    expected = fit(target, target.ones, ridge=ridge, centre=scale * centre)
    found = finished(target, parts, centre=centre)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)  # gradient 1e-6 over the ridge


def test_features_that_are_not_finite_are_refused():
    examples = drawn(5, 2)
    examples.features[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="are all features finite"):
        fit(examples, examples.ones, ridge=RIDGE)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("classes", [1, 3])
def test_the_weight_gradient_is_the_dense_implicit_one(form, classes):
    """-(df/dtheta)^T H^-1 d2g/dtheta da, with dense second derivatives by autograd."""
    sources, target = three_sources(classes), drawn(7, classes, seed=1)
    weights = Weights(sources.sizes, form)
    upper = weights.start + torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    head = sources.fit(weights(upper), ridge=RIDGE)

    def lower(a, flat):
        row_weights = sources.members @ weights(a)
        return objective(flat.view_as(head), sources.examples, row_weights, ridge=RIDGE)

    flat = head.flatten()
    hessian = torch.autograd.functional.hessian(lambda t: lower(upper, t), flat)
    both = torch.autograd.functional.hessian(lower, (upper, flat))[1][0]
    leaf = head.clone().requires_grad_()
    (cotangent,) = torch.autograd.grad(losses(leaf, target).mean(), leaf)
    expected = -torch.linalg.solve(hessian, cotangent.flatten()) @ both
    found, loss = weight_gradient(
        sources, target, upper, head, weights=weights, ridge=RIDGE, method=cg(50)
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert loss == pytest.approx(float(losses(head, target).mean()))


@pytest.mark.parametrize("form", FORMS)
def test_the_weight_gradient_is_that_of_the_solution_map(form):
    """Central differences of the target loss of heads that are fitted anew."""
    sources, target = three_sources(2), drawn(7, 2, seed=1)
    weights = Weights(sources.sizes, form)
    upper = weights.start + torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    head = sources.fit(weights(upper), ridge=RIDGE)

    def value(a):
        return float(losses(sources.fit(weights(a), ridge=RIDGE, start=head), target).mean())

    step = 1e-2
    expected = torch.tensor(
        [(value(upper + step * e) - value(upper - step * e)) / (2 * step) for e in torch.eye(3)],
        dtype=torch.float64,
    )
    found, _ = weight_gradient(
        sources, target, upper, head, weights=weights, ridge=RIDGE, method=cg(50)
    )
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_every_weight_starts_at_one(form):
    weights = Weights(torch.tensor([10.0, 30.0, 5.0]), form)
    torch.testing.assert_close(weights(weights.start), torch.ones(3, dtype=torch.float64))


def test_softmax_weights_are_shares_of_the_mixture_over_sizes():
    sizes = torch.tensor([10.0, 30.0, 60.0], dtype=torch.float64)
    upper = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
    weights = Weights(sizes)(upper)
    expected = (sizes * upper.exp()) / (sizes * upper.exp()).sum()
    torch.testing.assert_close(probabilities(weights, sizes), expected)
    assert float((weights * sizes).sum() / sizes.sum()) == pytest.approx(1)


def test_a_floor_keeps_every_weight_above_it():
    upper = torch.tensor([50.0, -50.0, 0.0], dtype=torch.float64)
    weights = Weights(torch.tensor([1.0, 1.0, 1.0]), "floor", 0.2)(upper)
    assert float(weights.min()) == pytest.approx(0.2)
    assert float(weights.mean()) == pytest.approx(1)


def poisoned(form="softmax"):
    """Two sources that say the truth and one that says the opposite; a clean target."""
    examples = drawn(90, 2, seed=3)
    target = drawn(30, 2, seed=4)
    truth, known = (e.features[:, 0] > 0 for e in (examples, target))
    source = torch.arange(90) % 3
    said = torch.where(source == 2, ~truth, truth)

    def one_hot(values):
        return torch.nn.functional.one_hot(values.long(), 2).double()

    members = torch.nn.functional.one_hot(source, 3).double()
    return (
        Sources(Examples(examples.features, one_hot(said)), members),
        Examples(target.features, one_hot(known)),
        Search(form, ridge=RIDGE, max_steps=12),
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_source_that_lies_loses_its_weight(form):
    sources, target, settings = poisoned(form)
    found = learn(sources, target, settings, num_folds=3)
    assert found.steps > 0
    assert found.weights[2] < 0.3
    assert found.weights[:2].min() > 0.8
    assert (found.low <= found.weights).all()
    assert (found.weights <= found.high).all()


def test_the_number_of_steps_is_where_held_out_loss_is_least():
    sources, target, settings = poisoned()
    found = learn(sources, target, settings, num_folds=3, seed=5)
    curve = torch.zeros(settings.max_steps + 1, dtype=torch.float64)
    for kept, out in folds(target, 3, seed=5):
        trace = search(sources, target.select(kept), settings, held_out=target.select(out))
        curve += trace.held_out.double() * len(out) / len(target)
    torch.testing.assert_close(found.curve, curve)
    assert found.steps == int(curve.argmin())


def test_the_interval_of_a_weight_is_the_jackknife_over_folds():
    sources, target, settings = poisoned()
    found = learn(sources, target, settings, num_folds=3, num_seeds=2, seed=5)
    variances = []
    for seed in (5, 6):
        parts = folds(target, 3, seed=seed)
        left_out = torch.stack(
            [
                search(sources, target.select(kept), settings, steps=found.steps).weights[-1]
                for kept, _ in parts
            ]
        )
        variances.append(left_out.var(0, correction=0) * 2)
    half = 4.302652729911275 * torch.stack(variances).mean(0).sqrt()  # Student's t for 2
    torch.testing.assert_close(found.high, found.weights + half)
    torch.testing.assert_close(found.low, (found.weights - half).clamp(min=0))


def test_folds_hold_every_example_out_once_and_every_class_in_each():
    target = poisoned()[1]
    parts = folds(target, 5, seed=1)
    assert sorted(torch.cat([out for _, out in parts]).tolist()) == list(range(30))
    for kept, out in parts:
        assert sorted(torch.cat([kept, out]).tolist()) == list(range(30))
        assert set(target.answers[out].argmax(-1).tolist()) == {0, 1}


@pytest.mark.parametrize("name", ["num_folds", "num_seeds"])
def test_too_few_folds_or_seeds_are_refused(name):
    sources, target, settings = poisoned()
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        learn(sources, target, settings, **{name: 0})


def test_every_held_out_example_counts_the_same_in_folds_of_unequal_size():
    """Folds of 2, 2 and 1; heads that are told apart by the number of examples they are made of."""
    target = drawn(5, 1)
    heads = {3: torch.ones(4, 1).double(), 4: torch.full((4, 1), -2.0).double()}
    total = 0.0
    for kept, out in folds(target, 3, seed=0):
        away = target.features[out] @ heads[len(kept)] - target.answers[out]
        total += float(0.5 * away.square().sum())
    found = cross_validated(target, folds(target, 3, seed=0), lambda kept: heads[len(kept)])
    assert found == pytest.approx(total / 5)


@pytest.mark.parametrize("form", FORMS)
def test_a_search_is_adam_on_the_weight_gradient_with_heads_fitted_anew(form):
    sources, target, held_out = three_sources(3), drawn(7, 3, seed=1), drawn(5, 3, seed=2)
    settings = Search(form, floor=0.3, ridge=RIDGE, lr=0.8, max_steps=2)
    weights = Weights(sources.sizes, form, 0.3)
    upper = weights.start.clone().requires_grad_()
    adam = torch.optim.Adam([upper], lr=0.8)
    made, on_target, on_held_out = [], [], []
    for step in range(3):
        now = weights(upper.detach().clone())
        head = fit(sources.examples, sources.members @ now, ridge=RIDGE)
        made.append(now)
        on_target.append(float(losses(head, target).mean()))
        on_held_out.append(float(losses(head, held_out).mean()))
        if step < 2:
            upper.grad, _ = weight_gradient(
                sources, target, upper.detach(), head, weights=weights, ridge=RIDGE, method=cg(15)
            )
            adam.step()
            with torch.no_grad():
                upper.clamp_(min=0 if form == "non_negative" else -torch.inf)
    found = search(sources, target, settings, held_out=held_out)
    torch.testing.assert_close(found.weights, torch.stack(made), rtol=1e-3, atol=1e-4)
    assert found.target.tolist() == pytest.approx(on_target, abs=1e-4)
    assert found.held_out.tolist() == pytest.approx(on_held_out, abs=1e-4)
    torch.testing.assert_close(found.head, head, rtol=0, atol=1e-3)


def test_a_form_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="form must be one of softmax"):
        Weights(torch.tensor([1.0, 2.0]), "helpful")
