"""Methods that need first derivatives only: what torch offers for those stays on, and changes
nothing.
"""

import pytest
import torch
from oracles import relative_error
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.compatibility import FEATURES, Feature, hypergradients
from benchmarks.rounds import Count
from blo import darts, evolution, f2sa, pbgd, sama, t1t2

METHODS = {
    "darts": darts(),
    "sama": sama(),
    "f2sa": f2sa(3),
    "f2sa, symmetric": f2sa(3, symmetric=True),
    "f2sa, upper loss": f2sa(3, linearised=False),
    "pbgd": pbgd(num_steps=2),
    "evolution": evolution(2),
}
# Dynamo looks at the gradient of a module's input, which is not a leaf here.
NOT_A_LEAF = "ignore:The .grad attribute of a Tensor that is not a leaf"
EXACT = {name: FEATURES[name] for name in ("fused attention", "checkpointing, non-reentrant")}


def received(method, feature):
    return hypergradients(Count(method, 0, 0), feature)


class Kernels(TorchDispatchMode):
    """Counts fused attention kernels, and the softmax that attention consists of otherwise."""

    def __init__(self):
        super().__init__()
        self.fused = self.math = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.fused += "flash_attention" in func.name() or "efficient_attention" in func.name()
        self.math += "softmax" in func.name() and "log_softmax" not in func.name()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("pair", EXACT.values(), ids=EXACT)
def test_hypergradients_are_the_same_with_the_feature(method, pair):
    # Differences amplify the rounding in which kernels differ.
    assert relative_error(received(method, pair[0]), received(method, pair[1])) < 1e-6


@pytest.mark.filterwarnings(NOT_A_LEAF)
@pytest.mark.parametrize(
    "name, backend",
    [("darts", "eager"), ("darts", "aot_eager"), ("f2sa", "aot_eager"), ("pbgd", "aot_eager")],
)
def test_compiled_modules_give_the_same_hypergradients(name, backend, monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda net, **_: compile_(net, backend=backend))
    compiled, plain = (received(METHODS[name], Feature(compiled=c)) for c in (True, False))
    assert relative_error(compiled, plain) < 1e-6


@pytest.mark.filterwarnings(NOT_A_LEAF)
def test_a_compiled_module_runs_uncompiled_where_its_graph_is_differentiated_twice():
    plain, compiled = (received(t1t2(), Feature(compiled=c)) for c in (False, True))
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_attention_runs_fused(method):
    with Kernels() as kernels:
        received(method, Feature(fused=True))
    assert kernels.fused > 0
    assert kernels.math == 0


def test_premise_the_count_sees_a_second_derivative():
    with Kernels() as kernels:
        received(t1t2(), Feature(fused=True))
    assert kernels.math > 0


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_reentrant_checkpointing_is_refused_by_torch_with_the_remedy(method):
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        received(method, Feature(checkpointing="reentrant"))
