"""What a run will take, before it is trained: ``--dry_run``."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel

from applications.data.splits import split_task
from applications.families.family import Family
from applications.methods import Price
from applications.models.loading import device, precision
from applications.options.arguments import Options
from applications.options.completion import completed
from applications.runs import graphs
from applications.runs.phases import Phase, Workload, phases, prepare
from applications.runs.plan import count, price, round_cost
from blo import Problem

STEP_COUNT_BYTES = 4
"""AdamW counts the steps of every tensor in one of 32 bits."""
MiB = 2**20


@dataclass(frozen=True)
class Estimate:
    """One phase of a run, before it is trained.

    Attributes:
        phase: its name.
        rounds: updates of its top problem.
        problems: the numbers of parameters that each problem trains, the upper first.
        rates: the learning rate of each problem.
        steps: lower updates in a round.
        frozen: the number of parameters that nothing trains.
        method: the hypergradient method; None for one level.
        gradients: forward and backward passes in a round.
        products: Hessian and mixed products in a round, at most.
        memory: bytes, by what they are for.
        seconds: of a gradient unit, all batches of an update, from a forward and backward pass of
            one row.
    """

    phase: str
    rounds: int
    problems: Mapping[str, int]
    rates: Mapping[str, float]
    steps: int
    frozen: int
    method: str | None
    gradients: int
    products: int
    memory: Mapping[str, int]
    seconds: float

    @property
    def total(self) -> int:
        """All bytes together."""
        return sum(self.memory.values())


def estimates(options: Options, family: Family) -> list[Estimate]:
    """An estimate of every phase of a run; nothing is trained or written.

    The base model and the data are loaded, and one row of the training examples, the longest, goes
    through the model.

    Raises:
        UsageError: what the run would be refused for.
    """
    options = completed(options, family)
    task = family.load_task(options.data)
    work = prepare(options, family, task, split_task(task, options.data))
    return [estimated(phase, work) for phase in phases(work)]


def estimated(phase: Phase, work: Workload) -> Estimate:
    """The estimate of one phase.

    Exact are the numbers of parameters, the bytes of parameters, gradients and optimizer states,
    and the cost of a round (solvers may stop sooner). Activations are what autograd saves for a
    batch of rows as long as the longest, extrapolated from one row and two; for methods with
    Hessian products, for the gradient's own graph too.
    """
    options = work.options
    level, run = options.levels, options.run
    problems = list(phase.graph.problems)
    below = problems[1:]  # those that respond: the upper problem comes first
    response = price(phase, level)
    gradients, products = round_cost(phase, level)
    trained = {id(p): p for problem in problems for p in problem.parameters}
    modules = {id(m): m for problem in problems for m in problem.modules}.values()
    every = {id(t): t for m in modules for t in (*m.parameters(), *m.buffers())}
    row = longest_row(work)
    batch = run.per_device_train_batch_size
    together = batch * run.gradient_accumulation_steps
    first_order = activations(phase, work, row, batch, second=False)
    kept = first_order
    if response is not None and products > 0:
        # Products are taken on one graph of all the batches of an update.
        graph = activations(phase, work, row, together, second=True)
        kept = max(kept, response.graphs * graph)
    return Estimate(
        phase=phase.name,
        rounds=phase.updates.rounds,
        problems={problem.name: count(problem.parameters) for problem in problems},
        rates=phase.learning_rates,
        steps=phase.updates.steps,
        frozen=count([t for t in every.values() if id(t) not in trained]),
        method=level.hypergradient if below else None,
        gradients=gradients,
        products=products,
        memory={
            "parameters": size(every.values()),
            "gradients": size(trained.values()),
            "optimizer states": sum(adamw_bytes(problem) for problem in problems),
            "response": max((response_bytes(p, response) for p in below), default=0),
            "activations": kept,
        },
        seconds=together * seconds_of(phase, work, row),
    )


def size(tensors: Any) -> int:
    """The bytes of the numbers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def adamw_bytes(problem: Problem) -> int:
    """The bytes of AdamW's state: two moments a parameter, and the number of steps a tensor."""
    parameters = problem.parameters
    return 2 * size(parameters) + STEP_COUNT_BYTES * len(parameters)


def response_bytes(problem: Problem, price: Price | None) -> int:
    """What a method holds for the response of a lower problem: vectors, and recorded steps."""
    assert problem.method is not None
    assert price is not None
    needs, own = problem.method.requirements, size(problem.parameters)
    steps = problem.steps if needs.history is None else min(needs.history, problem.steps)
    stride = max(1, math.isqrt(steps)) if needs.stride is None else needs.stride
    snapshots = min(steps, 1) if stride == 0 else math.ceil(steps / stride)
    copies = int(needs.before) + int(needs.lower_gradient) + price.vectors
    return copies * own + snapshots * (own + adamw_bytes(problem))


def longest_row(work: Workload) -> dict[str, Any]:
    """The longest training row."""
    rows = work.family.encode(work.lower, work.tokenizer, work.options)
    return max(rows, key=lambda row: len(row["input_ids"]))


def forward(phase: Phase, work: Workload, rows: Sequence[dict[str, Any]]) -> Callable[[], Tensor]:
    """The training loss of some rows, to be evaluated."""
    loss = graphs.training_loss(phase.model, work.options.adapter)
    place, dtype = device(work.options.model), precision(work.options.model)
    collated = work.family.collator(work.tokenizer)(list(rows))
    batch = {name: value.to(place) for name, value in collated.items()}

    def evaluate() -> Tensor:
        with torch.autocast(place.type, dtype, enabled=dtype is not None):
            value: Tensor = loss(batch)
        return value

    return evaluate


def activations(
    phase: Phase, work: Workload, row: dict[str, Any], rows: int, *, second: bool
) -> int:
    """Bytes that autograd saves for a batch of ``rows`` such rows, from one row and two of them."""
    one, two = (
        saved_bytes(phase.model, forward(phase, work, [row] * number), second=second)
        for number in (1, 2)
    )
    return max(one + (rows - 1) * (two - one), one)


def saved_bytes(model: nn.Module, evaluate: Callable[[], Tensor], *, second: bool) -> int:
    """The bytes that the graph of a loss holds, and with ``second`` that of its gradient too.

    The model's own parameters and buffers are left out, and what several operations save is counted
    once.
    """
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    found: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage  # held, so that its address is not given again
        return tensor

    trained = [p for p in model.parameters() if p.requires_grad]
    kernels = [SDPBackend.MATH] if second else list(SDPBackend.__members__.values())[1:]
    with saved_tensors_hooks(pack, lambda tensor: tensor), sdpa_kernel(kernels):
        loss = evaluate()
        if second:
            torch.autograd.grad(loss, trained, create_graph=True, allow_unused=True)
    return sum(storage.nbytes() for storage in found.values())


def seconds_of(phase: Phase, work: Workload, row: dict[str, Any]) -> float:
    """The seconds of a forward and a backward pass of one row, the second time it is taken."""
    evaluate = forward(phase, work, [row])
    trained = [p for p in phase.model.parameters() if p.requires_grad]
    place = device(work.options.model)
    started = 0.0
    for _ in range(2):
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        started = time.perf_counter()
        torch.autograd.grad(evaluate(), trained, allow_unused=True)
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    return time.perf_counter() - started


def plan_table(found: Sequence[Estimate]) -> Table:
    """A column a phase: the plan, the cost of a round, memory and time."""
    table = Table(title="Dry run: nothing is trained or written")
    table.add_column("")
    for each in found:
        table.add_column(each.phase, justify="right")
    columns = [cells(each) for each in found]
    for name in dict.fromkeys(name for column in columns for name in column):
        table.add_row(name, *(column.get(name, "-") for column in columns))
    return table


def cells(one: Estimate) -> dict[str, str]:
    """The finished cells of one phase, by what they say."""
    units = one.rounds * (one.gradients + one.products)
    return {
        "rounds": f"{one.rounds:,}",
        "lower steps a round": str(one.steps),
        "hypergradient": one.method or "none: one level",
        **{f"trained by {name}": f"{number:,}" for name, number in one.problems.items()},
        **{f"learning rate of {name}": f"{rate:g}" for name, rate in one.rates.items()},
        "numbers not trained": f"{one.frozen:,}",
        "gradient units a round": str(one.gradients),
        "Hessian products a round, at most": str(one.products),
        **{f"MiB, {name}": f"{number / MiB:,.1f}" for name, number in one.memory.items()},
        "MiB in all": f"{one.total / MiB:,.1f}",
        "seconds in all, about": f"{one.seconds * units:,.0f}",
    }
