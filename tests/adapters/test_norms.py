import pytest
import torch

from adapters.glue.norms import frobenius, row_norms


def draw(dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[torch.Tensor, ...]:
    W, A, B = torch.randn(9, 6), torch.randn(3, 6), scale * torch.randn(9, 3)
    return W.to(dtype), A.to(dtype), B.to(dtype)


@pytest.mark.parametrize("scale", [0.0, 0.7, -2.0])
def test_row_norms_are_those_of_the_dense_matrix(scale: float) -> None:
    W, A, B = draw()
    dense = (W + scale * B @ A).norm(dim=1)
    torch.testing.assert_close(row_norms(W, A, B, scale), dense, rtol=1e-13, atol=0)


def test_row_norms_of_the_weight_alone_are_exact() -> None:
    W, A, B = draw(torch.float32)
    assert torch.equal(row_norms(W, A, torch.zeros_like(B), 2.0), W.norm(dim=1))


def test_row_norms_differentiate_twice() -> None:
    W, A, B = draw()
    A, B = A.requires_grad_(), B.requires_grad_()
    function = lambda A, B: row_norms(W, A, B, 0.7)
    assert torch.autograd.gradcheck(function, (A, B))
    assert torch.autograd.gradgradcheck(function, (A, B))


def test_row_norms_of_a_bfloat16_weight_are_summed_in_float32() -> None:
    W, A, B = draw(torch.float32, scale=0.1)
    half = W.bfloat16()
    norms = row_norms(half, A, B, 1.0)
    assert norms.dtype == torch.float32
    # W A^T is rounded to bfloat16, eight bits; it is a small part of the norm.
    torch.testing.assert_close(norms, (half.float() + B @ A).norm(dim=1), rtol=2e-3, atol=0)


def test_row_norms_ignore_autocast() -> None:
    W, A, B = draw(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        norms = row_norms(W, A, B, 1.0)
    assert torch.equal(norms, row_norms(W, A, B, 1.0))


def test_rows_that_cancel_stay_positive_and_finite() -> None:
    W, _, _ = draw(torch.float32)
    A, B = torch.eye(6), (-W).requires_grad_()
    norms = row_norms(W, A, B, 1.0)
    assert (norms > 0).all()
    (gradient,) = torch.autograd.grad(norms.sum(), B)
    assert gradient.isfinite().all()


def test_row_norms_save_nothing_of_the_weights_size() -> None:
    W, A, B = torch.randn(64, 64), torch.randn(2, 64), torch.randn(64, 2)
    sizes: list[int] = []
    own = {t.untyped_storage().data_ptr() for t in (W, A, B)}

    def pack(t: torch.Tensor) -> torch.Tensor:
        if t.untyped_storage().data_ptr() not in own:
            sizes.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        row_norms(W, A.requires_grad_(), B.requires_grad_(), 1.0)
    assert max(sizes) <= B.numel()


@pytest.mark.parametrize("squared", [True, False])
def test_the_frobenius_norm_is_the_dense_one(squared: bool) -> None:
    matrix = torch.randn(4, 5, dtype=torch.float64)
    expected = matrix.norm() ** 2 if squared else matrix.norm()
    torch.testing.assert_close(frobenius(matrix, squared=squared), expected)


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-12, 1e-7])
def test_the_frobenius_norm_has_finite_second_derivatives_at_zero(
    squared: bool, dtype: torch.dtype, size: float
) -> None:
    matrix = torch.full((3, 3), size, dtype=dtype, requires_grad=True)
    norm = frobenius(matrix, squared=squared)
    (gradient,) = torch.autograd.grad(norm, matrix, create_graph=True)
    (product,) = torch.autograd.grad(gradient, matrix, torch.ones_like(matrix))
    assert norm.isfinite()
    assert gradient.isfinite().all()
    assert product.isfinite().all()
