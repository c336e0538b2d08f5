"""The table of methods."""

import json

import pytest
import torch
from peft import LoraConfig

from applications.methods import HYPERGRADIENTS, METHODS, Row
from blo import Engine, Problem, ProblemGraph
from tests.applications.tiny_runs import Run, run


def test_a_new_method_is_one_row(tiny: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row("rslora", lambda **settings: LoraConfig(use_rslora=True, **settings))
    monkeypatch.setitem(METHODS, row.name, row)
    summary, folder = run(tiny("rslora", "--max_steps", "2"))
    assert (summary["method"], summary["num_lower_steps"]) == ("rslora", 2)
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["use_rslora"]


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
