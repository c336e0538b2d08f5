"""The table of methods."""

import json

import pytest
import torch
from peft import LoraConfig

from applications.methods import HYPERGRADIENTS, METHODS, Row
from applications.options.command_line import parse_options
from applications.options.completion import completed
from applications.runs.phases import phases
from blo import Engine, Problem, ProblemGraph
from tests.applications.test_phases import work_of
from tests.applications.tiny_runs import FAMILY, Run, run


def test_a_new_method_is_one_row(tiny: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row("rslora", lambda **settings: LoraConfig(use_rslora=True, **settings))
    monkeypatch.setitem(METHODS, row.name, row)
    summary, folder = run(tiny("rslora", "--max_steps", "2"))
    assert (summary["method"], summary["num_lower_steps"]) == ("rslora", 2)
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["use_rslora"]


def test_a_method_has_learning_rates_of_its_own_and_a_flag_wins(tiny: Run) -> None:
    def rates(*flags: str) -> tuple[float | None, float | None]:
        whole = completed(parse_options(["--task", "sst2", *flags]), FAMILY)
        return whole.run.learning_rate, whole.levels.upper_learning_rate

    for row in METHODS.values():
        below = row.shrunk_learning_rate or row.learning_rate
        above = row.upper_learning_rate or below
        assert rates("--method", row.name) == (below, above if row.bi_level else None)
    assert rates("--method", "bilora") == (5e-3, 1e-2)
    for flags in (("--scale_by_rank",), ("--singular_values", "real")):
        assert rates("--method", "bilora", *flags)[0] == METHODS["lora"].learning_rate
    assert rates("--method", "bilora", "--learning_rate", "3") == (3, 1e-2)
    assert rates("--method", "bilora", "--upper_learning_rate", "3")[1] == 3
    assert rates("--method", "bidora", "--learning_rate", "3") == (3, 3)


def test_a_summary_has_the_learning_rates_of_each_phase(tiny: Run) -> None:
    flags = ("--upper_learning_rate", "0.2", "--retraining_learning_rate", "0.3")
    summary, _ = run(tiny("bidora", "--max_steps", "2", "--learning_rate", "0.1", *flags))
    search, retraining = (phase["learning_rates"] for phase in summary["phases"])
    assert search == {"upper": 0.2, "lower": 0.1}
    assert retraining == {"lower": 0.3}


def test_upper_variables_move_under_a_hypergradient_far_below_the_lower_epsilon(tiny: Run) -> None:
    phase = next(phases(work_of(tiny("lora_weight_decay", "--upper_learning_rate", "0.1"))))
    upper = phase.graph.problems[0]
    before = [parameter.detach().clone() for parameter in upper.parameters]
    for parameter in upper.parameters:
        parameter.grad = torch.full_like(parameter, 1e-12)
    upper.optimizer.step()
    for parameter, start in zip(upper.parameters, before, strict=True):
        assert (start - parameter).detach().numpy() == pytest.approx(0.1, rel=1e-2)


@pytest.mark.parametrize("name", HYPERGRADIENTS)
def test_a_price_is_what_the_engine_counts(name: str) -> None:
    row, steps, products = HYPERGRADIENTS[name], 2, 3
    known = {"scale": 0.1, "products": products, "damping": 0.1}
    method = row.make(**{parameter: known[option] for parameter, option in row.takes.items()})
    x, y = (torch.nn.ParameterList([torch.linspace(0.1, 1, 12).double()]) for _ in range(2))
    curvature = torch.linspace(1, 3, 12).double()

    def below(_: object) -> torch.Tensor:
        return (curvature * (y[0] - x[0].sin()).square() + y[0] ** 4).sum()

    upper = Problem("upper", lambda _: y[0].cos().sum(), x, torch.optim.SGD(x.parameters()), [0])
    optimizer = torch.optim.SGD(y.parameters(), 0.01)
    lower = Problem("lower", below, y, optimizer, [0], steps=steps, method=method)
    engine = Engine(ProblemGraph([upper, lower]))
    engine.run(1)
    first = (engine.num_gradients, engine.num_products)
    engine.run(1)
    price = row.price(products, steps)
    assert engine.num_gradients - first[0] == 1 + steps + price.gradients
    assert engine.num_products - first[1] == price.products
