"""What a phase will train and what its rounds cost, in words: before it is trained."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from applications.methods import HYPERGRADIENTS, Price
from applications.options.arguments import LevelOptions
from applications.runs.phases import Phase, Workload
from blo import Problem


def price(phase: Phase, level: LevelOptions) -> Price | None:
    """What one response costs at most; None without a problem that responds."""
    if len(phase.graph.problems) == 1:
        return None
    made = HYPERGRADIENTS[level.hypergradient]
    return made.price(level.hypergradient_products, phase.updates.steps)


def round_cost(phase: Phase, level: LevelOptions) -> tuple[int, int]:
    """The forward and backward passes of a round, and its Hessian and mixed products at most."""
    below = phase.graph.problems[1:]  # those that respond: the upper problem comes first
    gradients, response = 1 + sum(problem.steps for problem in below), price(phase, level)
    if response is None:
        return gradients, 0
    return gradients + response.gradients * len(below), response.products * len(below)


def count(tensors: Sequence[Tensor]) -> int:
    """The number of numbers."""
    return sum(tensor.numel() for tensor in tensors)


def plan_lines(phase: Phase, work: Workload) -> list[str]:
    """The problems of a phase as a tree, and what its rounds cost."""
    level, graph, rounds = work.options.levels, phase.graph, phase.updates.rounds
    rates = phase.learning_rates
    gradients, products = round_cost(phase, level)
    if len(graph.problems) == 1:
        return [
            f"{phase.name}: {rounds:,} updates of {described(graph.top, rates)}; "
            f"{rounds * gradients:,} gradient units"
        ]
    more = f" and up to {products:,} Hessian products" if products else ""
    whole = f", {rounds * products:,} products" if products else ""
    lines = [
        f"{phase.name}: {rounds:,} rounds of {gradients:,} gradient units{more}; in all "
        f"{rounds * gradients:,} gradient units{whole}"
    ]
    depths: dict[str, int] = {}
    for problem in graph.problems:
        size = f"{problem.name}: {described(problem, rates)}"
        above = graph.role(problem).inputs
        depth = depths[problem.name] = 1 + max((depths[p.name] for p in above), default=-1)
        if depth == 0:
            lines.append(f"  {size}, 1 update a round")
        else:
            pace = f"{problem.steps} update{'s' * (problem.steps > 1)} a round"
            indent = "   " * (depth - 1)
            lines.append(
                f"  {indent}\u2514\u2500 {size}, {pace}, responds by {level.hypergradient}"
            )
    return lines


def described(problem: Problem, rates: Mapping[str, float]) -> str:
    """The size and the learning rate of a problem."""
    return f"{count(problem.parameters):,} parameters, learning rate {rates[problem.name]:g}"


def cut_notes(work: Workload) -> tuple[str, ...]:
    """What is to be said of training examples that are cut: how many are as long as can be."""
    longest = min(work.options.data.max_seq_length, work.tokenizer.model_max_length)
    rows = work.encoded(work.splits.train)
    full = sum(len(row["input_ids"]) >= longest for row in rows)
    if not full:
        return ()
    return (
        f"{full:,} of {len(rows):,} training rows fill all of {longest} tokens (--max_seq_length), "
        f"and what is behind is cut off",
    )


def watching_line(work: Workload, number: int | None) -> str | None:
    """What is validated during training, and how a step is selected; None where nothing was asked.

    Args:
        work: with the options.
        number: of the examples that are evaluated; None without any.
    """
    run = work.options.run
    if run.eval_steps is None:
        return None
    if number is None:
        return (
            "not used: --eval_steps; there is no validation split (--validation_fraction cuts one)"
        )
    line = f"validation: {number:,} examples, every {run.eval_steps} updates"
    if run.metric_for_best_model is not None:
        line += f"; the best {run.metric_for_best_model} selects the step"
    if run.early_stopping_patience is not None:
        line += f", and {run.early_stopping_patience} evaluations without a better one end it"
    return line
