"""The table of methods."""

import json

import pytest
from peft import LoraConfig

from applications.methods import METHODS, Row
from tests.applications.tiny_runs import Run, run


def test_a_new_method_is_one_row(tiny: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row("rslora", lambda **settings: LoraConfig(use_rslora=True, **settings))
    monkeypatch.setitem(METHODS, row.name, row)
    summary, folder = run(tiny("rslora", "--max_steps", "2"))
    assert (summary["method"], summary["num_lower_steps"]) == ("rslora", 2)
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["use_rslora"]
