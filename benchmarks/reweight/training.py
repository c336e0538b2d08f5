"""Fine-tuning with weighted sources in this process: the phases of applications.reweight."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from transformers import set_seed

from applications.data.splits import Splits
from applications.families.family import Family
from applications.models.loading import precision
from applications.options.arguments import Options
from applications.options.weighting import WeightingOptions
from applications.runs.phases import Model, Workload
from applications.weighting.finetuning import weighted_phases, workload
from applications.weighting.gathering import Gathered
from applications.weighting.online import SourceWeights, online_phases
from blo import Engine


@dataclass(frozen=True)
class Took:
    """What a phase took: updates of the model, gradients, Hessian products, CPU seconds."""

    num_updates: int
    num_gradients: int
    num_products: int
    cpu_seconds: float


@dataclass(frozen=True)
class Trained:
    """What a training leaves.

    Attributes:
        work: what it was made of.
        model: trained.
        weights: of the sources, where they were moved along it.
        phases: what each took, in their order.
    """

    work: Workload
    model: Model
    weights: SourceWeights | None
    phases: tuple[Took, ...]

    @property
    def num_gradients(self) -> int:
        """Gradients of a batch that were taken."""
        return sum(phase.num_gradients for phase in self.phases)

    @property
    def num_products(self) -> int:
        """Hessian products of a batch that were taken."""
        return sum(phase.num_products for phase in self.phases)


def trained(
    options: Options,
    family: Family,
    gathered: Gathered,
    target: Splits,
    weights: Mapping[str, float] | None,
) -> Trained:
    """Train with these weights, or move them along the training where there are none, and finish on
    the target where the options say so.
    """
    weighting = options.weighting or WeightingOptions()
    moved: SourceWeights | None = None
    if weights is None:
        work, moved, phases = online_phases(options, family, gathered, target, weighting)
    else:
        work = workload(options, family, gathered, target, weights)
        phases = weighted_phases(work, target.train, weighting)
    took = []
    for phase in phases:
        set_seed(options.run.seed)
        engine = Engine(phase.graph, precision=precision(options.model))
        started = time.process_time()
        engine.run(phase.updates.rounds)
        seconds = time.process_time() - started
        updates = phase.updates.num_lower_steps
        took.append(Took(updates, engine.num_gradients, engine.num_products, seconds))
        model = phase.model
    return Trained(work, model, moved, tuple(took))
