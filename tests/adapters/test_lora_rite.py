import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from adapters import LoraRite, levels, lora_pairs, two_level
from blo import Engine
from tests.adapters.models import BASES, adapted, inputs, mlp, move

OUT, IN, RANK = 6, 5, 3


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


TARGET = normal(OUT, IN, seed=0)
CURVATURE = normal(IN, IN, seed=1)


def gradient(product: Tensor) -> Tensor:
    """Of ``|(B A - T) C|^2 / 2`` with respect to ``B A``."""
    return (product - TARGET) @ CURVATURE @ CURVATURE.T


def start(seed: int = 2) -> tuple[Tensor, Tensor]:
    return normal(RANK, IN, seed=seed), normal(OUT, RANK, seed=seed + 1)


def run(A: Tensor, B: Tensor, *, steps: int, **options: object) -> list[Tensor]:
    """The products ``B A`` along a run of the optimizer."""
    A, B = A.clone().requires_grad_(), B.clone().requires_grad_()
    optimizer = LoraRite([(A, B)], 0.05, **options)
    products = []
    for _ in range(steps):
        G = gradient((B @ A).detach())
        A.grad, B.grad = B.detach().T @ G, G @ A.detach().T
        optimizer.step()
        products.append((B @ A).detach())
    return products


def projection(X: Tensor) -> Tensor:
    return X @ torch.linalg.pinv(X)


def inverse_root(C: Tensor, rho: Tensor, eps: float) -> Tensor:
    """``(C + rho I)^(-1/2)`` on the whole space, from the eigenvalues."""
    values, vectors = torch.linalg.eigh(C)
    return vectors @ torch.diag(1 / ((values.clamp(min=0) + rho).sqrt() + eps)) @ vectors.T


class Dense:
    """One factor X of ``W = X Y^T`` by matrices of the full space, without any basis.

    What lives in the space of a basis U of Y's columns is written ``U (.) U^T``, which is the same
    matrix for every basis.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.second = torch.zeros(columns, columns, dtype=torch.float64)
        self.first = torch.zeros(rows, columns, dtype=torch.float64)
        self.escaped = torch.zeros((), dtype=torch.float64)

    def change(
        self, G: Tensor, onto: Tensor, step: int, betas: tuple[float, float], escape: bool
    ) -> Tensor:
        """The change of ``X Y^T`` for one unit of the learning rate, ``onto`` the columns of Y."""
        b1, b2 = (beta * (1 - beta ** (step - 1)) / (1 - beta**step) for beta in betas)
        moved = onto @ self.second @ onto
        top = [torch.linalg.eigvalsh(C).flip(0)[:RANK] for C in (self.second, moved)]
        self.escaped = b2 * (self.escaped + (top[0] - top[1]).max().clamp(min=0))
        g = G @ onto
        self.second = b2 * moved + (1 - b2) * g.T @ g / g.shape[0]
        rho = self.escaped if escape else torch.zeros_like(self.escaped)
        S = g @ inverse_root(self.second, rho, 1e-6)
        self.first = b1 * self.first @ onto + (1 - b1) * S
        return self.first


@pytest.mark.parametrize("escape", [True, False])
def test_the_optimizer_is_the_dense_formula_without_bases(escape: bool) -> None:
    betas, lr = (0.8, 0.95), 0.05
    A, B = start()
    found = run(A, B, steps=12, betas=betas, escape=escape)
    left, right = Dense(OUT, IN), Dense(IN, OUT)
    for step, product in enumerate(found, start=1):
        G = gradient(B @ A)
        # X = B with Y = A^T, then X = A^T with Y = B; each change of X follows from that of X Y^T.
        to_B = left.change(G, projection(A.T), step, betas, escape) @ torch.linalg.pinv(A)
        to_A = right.change(G.T, projection(B), step, betas, escape) @ torch.linalg.pinv(B).T
        A, B = A - lr * to_A.T, B - lr * to_B
        torch.testing.assert_close(product, B @ A, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"escape": False}, {"max_norm": 0.5, "weight_decay": 0.1}])
@settings(max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_runs_do_not_depend_on_the_factorisation(options: dict[str, object], seed: int) -> None:
    A, B = start()
    # A random invertible matrix with a condition of at most 10.
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(RANK, RANK, generator=generator, dtype=torch.float64)
    left, _, right = torch.linalg.svd(square)
    values = torch.logspace(-0.5, 0.5, RANK, dtype=torch.float64)
    R = left @ torch.diag(values) @ right
    plain = run(A, B, steps=8, **options)
    transformed = run(R @ A, B @ torch.linalg.inv(R), steps=8, **options)
    for first, second in zip(plain, transformed, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-7, atol=1e-8)


def test_gradients_are_clipped_by_their_norm_over_all_pairs_whatever_the_factorisation() -> None:
    """The norm is that of G on the spaces of the other factors, for two pairs together."""
    ours, theirs = (
        [p.clone().requires_grad_() for seed in (2, 4) for p in start(seed)] for _ in range(2)
    )
    clipped = LoraRite([(ours[0], ours[1]), (ours[2], ours[3])], 0.05, max_norm=20.0)
    plain = LoraRite([(theirs[0], theirs[1]), (theirs[2], theirs[3])], 0.05)
    shrinks = []
    for _ in range(6):
        found = {}
        for A, B in ((theirs[0], theirs[1]), (theirs[2], theirs[3])):
            G = gradient((B @ A).detach())
            found[A], found[B] = B.detach().T @ G, G @ A.detach().T
        norm = torch.stack(
            [
                (gradient((B @ A).detach()) @ projection(A.detach().T)).square().sum()
                + (gradient((B @ A).detach()).T @ projection(B.detach())).square().sum()
                for A, B in ((theirs[0], theirs[1]), (theirs[2], theirs[3]))
            ]
        ).sum()
        shrinks.append(min(1.0, 20.0 / norm.sqrt().item()))
        for parameter, p in zip(ours, theirs, strict=True):
            parameter.grad, p.grad = found[p], shrinks[-1] * found[p]
        clipped.step()
        plain.step()
        for parameter, p in zip(ours, theirs, strict=True):
            torch.testing.assert_close(parameter, p, rtol=1e-9, atol=1e-11)
    assert min(shrinks) < 0.9
    assert len(set(shrinks)) > 1  # a constant factor would be lost in the normalisation


def test_runs_of_adam_do_depend_on_the_factorisation() -> None:
    """The difference that the optimizer is for; the test above could not see it otherwise."""

    def adam(A: Tensor, B: Tensor) -> Tensor:
        A, B = A.clone().requires_grad_(), B.clone().requires_grad_()
        optimizer = torch.optim.Adam([A, B], 0.05)
        for _ in range(8):
            G = gradient((B @ A).detach())
            A.grad, B.grad = B.detach().T @ G, G @ A.detach().T
            optimizer.step()
        return (B @ A).detach()

    A, B = start()
    first, second = adam(A, B), adam(10 * A, B / 10)
    assert (first - second).norm() > 0.1 * first.norm()


def test_a_rank_of_one_in_one_dimension_is_adam_on_the_product() -> None:
    """Scalars: ``g = G sign(a)``, so both factors move the product by Adam's step of G."""
    lr, betas = 0.01, (0.9, 0.99)
    a, b = 2.0, -0.5
    A = torch.tensor([[a]], dtype=torch.float64, requires_grad=True)
    B = torch.tensor([[b]], dtype=torch.float64, requires_grad=True)
    optimizer = LoraRite([(A, B)], lr, betas=betas, eps=1e-12)
    first = second = 0.0
    for step in range(1, 6):
        G = a * b - 3.0
        A.grad = torch.tensor([[G * b]], dtype=torch.float64)
        B.grad = torch.tensor([[G * a]], dtype=torch.float64)
        optimizer.step()
        b1, b2 = (beta * (1 - beta ** (step - 1)) / (1 - beta**step) for beta in betas)
        second = b2 * second + (1 - b2) * G * G
        first = b1 * first + (1 - b1) * G / second**0.5
        a, b = a - lr * first / b, b - lr * first / a
        assert A.item() == pytest.approx(a, rel=1e-9)
        assert B.item() == pytest.approx(b, rel=1e-9)


def test_from_pefts_start_the_first_step_moves_b_alone() -> None:
    torch.manual_seed(0)
    model = get_peft_model(mlp(torch.float64), LoraConfig(r=2, **BASES["mlp"][1]))
    pairs = lora_pairs(model)
    before = [(A.detach().clone(), B.detach().clone()) for A, B in pairs]
    optimizer = LoraRite(pairs, 0.1)
    for moves_A in (False, True):
        model(torch.ones(2, 5, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
        for (A, B), (old_A, old_B) in zip(pairs, before, strict=True):
            assert not torch.equal(B, old_B)
            assert torch.equal(A, old_A) is not moves_A
            assert A.isfinite().all()


def test_a_resumed_run_is_bit_identical() -> None:
    def train(optimizer: LoraRite, A: Tensor, B: Tensor, steps: int) -> None:
        for _ in range(steps):
            G = gradient((B @ A).detach())
            A.grad, B.grad = B.detach().T @ G, G @ A.detach().T
            optimizer.step()

    A, B = (p.requires_grad_() for p in start())
    straight = LoraRite([(A, B)], 0.05)
    train(straight, A, B, 3)
    state = copy.deepcopy(straight.state_dict())
    C, D = (p.detach().clone().requires_grad_() for p in (A, B))
    train(straight, A, B, 4)
    resumed = LoraRite([(C, D)], 0.05)
    resumed.load_state_dict(state)
    train(resumed, C, D, 4)
    assert torch.equal(A, C)
    assert torch.equal(B, D)


def test_pairs_without_gradients_are_left_alone() -> None:
    (A, B), (C, D) = start(2), start(4)
    A.requires_grad_()
    before = [p.detach().clone() for p in (A, B, C, D)]
    optimizer = LoraRite([(A, B.requires_grad_()), (C, D)], 0.1)
    A.grad, B.grad = normal(RANK, IN, seed=8), normal(OUT, RANK, seed=9)
    optimizer.step()
    assert not torch.equal(A, before[0])
    assert not torch.equal(B, before[1])
    assert torch.equal(C, before[2])
    assert torch.equal(D, before[3])


def test_other_parameters_are_updated_by_adamw() -> None:
    A, B = (p.requires_grad_() for p in start())
    ours, theirs = (normal(4, 2, seed=5).requires_grad_() for _ in range(2))
    settings = {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
    optimizer = LoraRite([(A, B)], 0.05, others=[ours], **settings)
    reference = torch.optim.AdamW([theirs], 0.05, **settings)
    for seed in range(5):
        A.grad, B.grad = normal(RANK, IN, seed=seed), normal(OUT, RANK, seed=seed)
        ours.grad = theirs.grad = normal(4, 2, seed=seed)
        optimizer.step()
        reference.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["softmax", "autolora"])
def test_it_trains_the_lower_level_of_an_adapter_with_a_head(method: str) -> None:
    """One round of the engine: what the optimizer does alone with the lower gradient."""
    model, alone = (adapted("bert", method, dtype=torch.float64, moved=0.3) for _ in range(2))

    def optimizer(model: PeftModel) -> LoraRite:
        pairs = lora_pairs(model)
        known = {id(p) for pair in pairs for p in pair}
        others = [p for p in levels(model).lower if id(p) not in known]
        assert others
        return LoraRite(pairs, 0.01, others=others)

    graph = two_level(
        model,
        loss=lambda batch: model(**batch).loss,
        upper_batches=[inputs("bert", 1)],
        lower_batches=[inputs("bert", 2)],
        upper_optimizer=torch.optim.SGD(levels(model).upper, 0.1),
        lower_optimizer=optimizer(model),
    )
    next(iter(Engine(graph).rounds(1)))
    reference = optimizer(alone)
    lower = levels(alone).lower
    loss = alone(**inputs("bert", 2)).loss
    for p, gradient in zip(lower, torch.autograd.grad(loss, lower), strict=True):
        p.grad = gradient
    reference.step()
    for ours, theirs in zip(levels(model).lower, lower, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_half_precision_factors_are_updated_in_float32() -> None:
    A, B = (p.to(torch.bfloat16) for p in start())
    exact = [p.double().requires_grad_() for p in (A, B)]
    rounded = [p.clone().requires_grad_() for p in (A, B)]
    for pair in (exact, rounded):
        pair[0].grad = normal(RANK, IN, seed=8).to(torch.bfloat16).to(pair[0].dtype)
        pair[1].grad = normal(OUT, RANK, seed=9).to(torch.bfloat16).to(pair[1].dtype)
        LoraRite([(pair[0], pair[1])], 0.1).step()
    for p, q in zip(rounded, exact, strict=True):
        torch.testing.assert_close(p, q.to(torch.bfloat16), rtol=8e-3, atol=1e-2)


@pytest.mark.parametrize("method", ["softmax", "bidora"])
def test_the_adapters_of_this_package_have_pairs(method: str) -> None:
    model = adapted("bert", method)
    names = {id(p): n for n, p in model.named_parameters()}
    found = [(names[id(A)], names[id(B)]) for A, B in lora_pairs(model)]
    assert found == [(n, n.replace("lora_A", "lora_B")) for n in names.values() if "lora_A" in n]


def test_misuse_names_the_argument() -> None:
    A, B = (p.requires_grad_() for p in start())
    for options, message in (
        ({"lr": -1.0}, "lr must be a finite number of at least 0, got -1.0"),
        ({"betas": (0.9, 1.0)}, r"betas must be in \[0, 1\), got \(0.9, 1.0\)"),
        ({"eps": -1.0}, "eps must be a finite number of at least 0"),
        ({"max_norm": 0.0}, "max_norm must be a finite number above 0, got 0.0"),
        ({"weight_decay": -0.1}, "weight_decay must be a finite number of at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            LoraRite([(A, B)], **options)
    with pytest.raises(ValueError, match=r"got \(6, 3\) and \(3, 5\); use lora_pairs"):
        LoraRite([(B, A)])
    with pytest.raises(ValueError, match="rank of at most 2"):
        LoraRite([(torch.ones(3, 2, requires_grad=True), torch.ones(4, 3, requires_grad=True))])
    with pytest.raises(ValueError, match="no active LoRA adapter"):
        lora_pairs(move(mlp(), 0.0))  # type: ignore[arg-type]
