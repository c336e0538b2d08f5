"""Parameters that no problem can train are refused when it is built."""

import pytest
import torch
from torch import nn

from blo import Problem


def built(parameter):
    module = nn.ParameterList([nn.Parameter(torch.ones(1)), parameter])
    return Problem("fit", lambda _: None, module, torch.optim.SGD(module, 0.1), [None])


@pytest.mark.parametrize(
    "parameter, message",
    [
        (nn.Parameter(torch.ones(2, dtype=torch.complex64)), r"torch\.complex64.*view_as_real"),
        (nn.Parameter(torch.ones(2, device="meta")), "meta device.*load the weights"),
        (nn.Parameter(torch.eye(2).to_sparse()), r"torch\.sparse_coo.*to_dense"),
        (nn.LazyLinear(2).weight, "without a shape.*call the lazy module once"),
    ],
    ids=["complex", "meta", "sparse", "lazy"],
)
def test_parameters_that_are_not_real_dense_tensors_are_refused(parameter, message):
    with pytest.raises(TypeError, match=f"of problem 'fit' must be real.*{message}"):
        built(parameter)


def test_frozen_parameters_of_any_kind_are_let_through():
    frozen = nn.Parameter(torch.ones(2, dtype=torch.complex64), requires_grad=False)
    assert len(built(frozen).parameters) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_real_parameters_of_other_types_are_let_through(dtype):
    assert len(built(nn.Parameter(torch.ones(2, dtype=dtype))).parameters) == 2
