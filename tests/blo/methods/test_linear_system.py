"""Packed vectors: their layout, their bases, the rule for singular directions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from systems import normal

from blo.linear.system import Basis, Layout, LinearSystem, numbers
from blo.linear.tensors import numbers_of


def test_packing_and_unpacking_gives_the_tensors_back():
    generator = torch.Generator().manual_seed(0)
    v = (normal(generator, 2, 3), normal(generator, 1)[0], torch.zeros(0), normal(generator, 4))
    layout = Layout.of(v)
    (packed,) = layout.pack(v)
    assert packed.shape == (11,)
    for a, b in zip(layout.unpack((packed,)), v, strict=True):
        assert torch.equal(a, b)


def test_mixed_types_are_packed_in_the_widest_and_come_back_as_they_were():
    v = (torch.ones(2, dtype=torch.bfloat16), torch.full((2,), 0.1, dtype=torch.float64))
    layout = Layout.of(v)
    (packed,) = layout.pack(v)
    assert packed.dtype == torch.float64
    back = layout.unpack((packed,))
    assert [t.dtype for t in back] == [torch.bfloat16, torch.float64]
    assert torch.equal(back[1], v[1])


@pytest.mark.cuda
def test_tensors_on_two_devices_are_packed_apart():
    v = (torch.ones(2), torch.ones(3, device="cuda"), torch.ones(1))
    packed = Layout.of(v).pack(v)
    assert [(t.device.type, t.numel()) for t in packed] == [("cpu", 3), ("cuda", 3)]
    assert [t.device.type for t in Layout.of(v).unpack(packed)] == ["cpu", "cuda", "cpu"]


def test_vectors_of_another_number_of_tensors_are_refused():
    with pytest.raises(ValueError, match="a vector of 1 tensors, got 2"):
        Layout.of((torch.ones(2),)).pack((torch.ones(2), torch.ones(1)))


@given(exponent=st.integers(-90, 90))
def test_the_right_hand_side_is_divided_by_a_power_of_two(exponent):
    rhs = (torch.tensor([3.0, -1.0]) * 2.0**exponent,)
    system = LinearSystem(lambda v: v, rhs)
    assert 0.5 <= float(system.rhs[0].abs().max()) < 1.0
    assert system.rhs[0].tolist() == [0.75, -0.25]
    solution = system.solution(system.rhs, None, system.size)
    assert torch.equal(solution.value[0], rhs[0])
    assert solution.residual == 1.0


def test_a_basis_stays_orthonormal_on_nearly_dependent_vectors():
    # Gram-Schmidt once would lose six digits here.
    generator = torch.Generator().manual_seed(0)
    first = normal(generator, 30)
    basis = Basis(5, (first,))
    for i in range(5):
        v = first if i == 0 else first + 1e-6 * normal(generator, 30)
        rest, coefficients = basis.orthogonalise((v,))
        size = float(rest[0].norm())
        basis.append((rest[0] / size,))
        rebuilt = basis.combine(torch.cat([coefficients, torch.tensor([size])]))
        torch.testing.assert_close(rebuilt[0], v)
    rows = torch.stack([basis.combine(e)[0] for e in torch.eye(5, dtype=torch.float64)])
    torch.testing.assert_close(rows @ rows.T, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-14)


def test_numbers_of_several_types_are_fetched_together():
    a = torch.tensor(0.1, dtype=torch.float64)
    assert numbers(a, torch.tensor(2.0)) == [0.1, 2.0]


def test_numbers_beside_losses_of_single_precision_keep_their_digits():
    assert numbers_of((torch.tensor(0.5), torch.tensor(2**24 + 1))) == [0.5, 2**24 + 1]
