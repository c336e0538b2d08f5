"""The benchmarks of Kronecker factors and of metasmoothness, in small."""

import pytest
import torch

import blo
from benchmarks import kfac, kfac_problems, metasmoothness


def few_pixels(rows):
    inputs = torch.rand(2, rows, 5, dtype=torch.float64)
    return list(inputs), list(torch.randint(10, (2, rows)))


def test_the_reference_of_a_problem_is_the_dense_solution(monkeypatch):
    monkeypatch.setattr(kfac_problems, "digits", few_pixels)
    torch.manual_seed(0)
    case = kfac_problems.softmax_layer(rows=40)
    reference, residual = case.reference()
    assert residual < 1e-8
    error, _, seconds = case.compared(blo.dense(damping=case.damping), reference, repeats=1)
    assert error < 1e-2  # float32, at a condition number of 1e4
    assert seconds > 0.0


def test_a_table_has_a_row_a_method_and_a_cell_a_size():
    line = kfac.Line("cg", "p", "s", 0, 5, 0.25, "indefinite", 1, 5, 0.5, 10, 0.1)
    lines = kfac.tables([line]).splitlines()
    assert lines[0] == "**p** (s; 10 unknowns)"
    assert lines[-1] == "| `cg` |  |  | 2.5e-01! (0.50 s) |  |  |  |  |"


def test_a_short_training_is_smooth_and_foretold_by_its_gradient(monkeypatch):
    monkeypatch.setattr(metasmoothness, "STEP", 1e-4)
    line = metasmoothness.lines("tanh", 0.1, 3, num_directions=2)
    assert line.agreement == pytest.approx(1.0, abs=1e-3)
    assert line.prediction_error < 1e-3
    assert line.same_sign == 1.0
